from __future__ import annotations

import re

import numpy as np
import pytest

from jetfoundry import files
from jetfoundry.data.ingest import write_manifest
from jetfoundry.data.inventory import expand, take_inventory
from jetfoundry.data.plan import ShardConfig, make_plan
from jetfoundry.data.unit import convert_unit
from jetfoundry.errors import InputError
from jetfoundry.evaluate import ingest_plots, ingest_report
from jetfoundry.labels import CLASSES


@pytest.fixture
def folder(tmp_path, toy_jets, write_root):
    """600 toy jets of X_bb and QCD_light in two units, six of them bad, and a file that is no ROOT file."""
    table = toy_jets(600)
    energy = table["jet_energy"].to_numpy().copy()
    energy[::100] = np.nan
    write_root(tmp_path / "in" / "jets.root", table, cluster=50, jet_energy=energy)
    (tmp_path / "in" / "broken.root").write_text("nothing")
    plan = make_plan(
        take_inventory(expand([str(tmp_path / "in")])), ShardConfig(jets_per_task=300, jets_per_shard=100, row_group=50)
    )
    for unit in range(len(plan.units)):
        convert_unit(plan, tmp_path / "out", unit)
    write_manifest(plan, tmp_path / "out", "simulated <toys>")
    return tmp_path / "out"


def _text(page: str) -> str:
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def test_the_page_says_what_was_ingested_and_what_was_not(folder):
    path = ingest_report.write(folder)
    assert path == folder / "report.html"
    page = path.read_text()
    text = _text(page)
    assert "594 jets from 1 files" in text
    assert "simulated &lt;toys&gt;" in page
    counts = sum(
        np.array(part["class_counts"]) for part in files.read_json(folder / "manifest.json")["splits"].values()
    )
    splits = files.read_json(folder / "manifest.json")["splits"]
    row = " ".join(f"{part['class_counts'][0]:,}" for part in splits.values())
    assert f"0 X_bb {row}" in text
    assert counts.sum() == 594
    assert re.search(r"jets not_finite 6 \S+jets\.root, entry \d+, jet_energy: \S", text)
    assert "broken.root: neither ROOT nor Parquet" in text
    assert files.read_json(folder / "manifest.json")["hash"] in text
    assert page.count("data:image/png") == 3  # classes, planes, stored columns


def test_inputs_of_the_data_yaml_are_drawn_and_a_yaml_that_does_not_fit_is_reported(folder, tmp_path):
    good = tmp_path / "good.yaml"
    good.write_text(
        "new_variables: {part_pt: 'np.hypot(part_px, part_py)'}\n"
        "inputs:\n  pf: {length: 16, vars: [[part_pt, 10, 0.1], part_charge]}\n"
        "  again: {length: 16, vars: [part_charge]}\n"
        "labels: {type: custom, value: {truth_label: jet_label}, scheme: sophon188}\n"
    )
    page = ingest_report.write(folder, str(good)).read_text()
    assert "Inputs of good.yaml as the network gets them" in page
    assert "Input pf." in page
    assert "Input again." not in page  # all of it is drawn already
    bad = tmp_path / "bad.yaml"
    bad.write_text(good.read_text().replace("part_charge", "part_chrage"))
    page = ingest_report.write(folder, str(bad)).read_text()
    assert "could not be computed" in page
    assert "Stored columns." in page


def test_values_that_are_read_in_parts_are_those_of_the_whole(tmp_path, toy_jets):
    yaml = tmp_path / "cut.yaml"
    yaml.write_text(
        "selection: jet_pt > 400\n"
        "inputs:\n  pf: {length: 16, vars: [part_charge, [part_d0val, null]]}\n  jet: {length: null, vars: [jet_pt]}\n"
        "labels: {type: custom, value: {truth_label: jet_label}, scheme: sophon188}\n"
    )
    table, kinds = toy_jets(90), ingest_plots.families_of(CLASSES)
    whole, parts = (
        ingest_plots.inputs_of(str(yaml), kinds, lambda columns, cuts=cuts: [
            table.select(columns).slice(begin, end - begin) for begin, end in cuts
        ])
        for cuts in ([(0, 90)], [(0, 20), (20, 21), (21, 90)])
    )  # fmt: skip
    assert whole[1] == parts[1] == (table["jet_pt"].to_numpy() > 400).sum()
    for one, two in zip(whole[0], parts[0], strict=True):
        assert (one.family == two.family).all()
        for name, (values, jets) in one.columns.items():
            assert (values == two.columns[name][0]).all()
            assert (jets == two.columns[name][1]).all()
    lengths = table["part_charge"].combine_chunks().value_lengths().to_numpy()[table["jet_pt"].to_numpy() > 400]
    assert (np.bincount(whole[0][0].columns["part_charge"][1]) == np.minimum(lengths, 16)).all()


def test_no_more_jets_are_read_than_are_drawn(folder, monkeypatch):
    monkeypatch.setattr(ingest_report, "_SAMPLED", 120)
    tables = list(ingest_report._sample_jets(folder, ["jet_pt"]))
    assert len(tables) == 2
    assert 0 < sum(table.num_rows for table in tables) <= 120


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(InputError, match="no manifest"):
        ingest_report.write(tmp_path)


def test_outer_bins_hold_what_lies_beyond_and_whole_numbers_get_a_bin_each():
    values = np.concatenate([np.random.default_rng(0).normal(size=10_000), [1e6]])
    edges = ingest_plots._edges(values)
    assert edges[-1] < 5
    assert ingest_plots._edges(np.array([-1.0, 0, 1, 1])).tolist() == [-1.5, -0.5, 0.5, 1.5]
    assert len(ingest_plots._edges(np.zeros(0))) == 2


def test_kinds_of_jets_are_families_or_classes():
    assert list(ingest_plots.families_of(CLASSES)) == ["Res2P", "Res34P", "QCD"]
    assert ingest_plots.families_of(["QCD", "Hbb"]) == {"QCD": (0,), "Hbb": (1,)}
    assert ingest_plots.families_of([str(i) for i in range(11)]) == {"all": tuple(range(11))}
