"""Delphes trees to jets: ten real events whose decays are known, and events made by hand (conftest.py)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jetfoundry import cli, config, files, schema
from jetfoundry.data import delphes as delphes_module
from jetfoundry.data.delphes import open_source
from jetfoundry.data.delphes_jets import DelphesConfig
from jetfoundry.data.ingest import IngestConfig, file_key, ingest
from jetfoundry.data.inventory import take_inventory
from jetfoundry.data.plan import Plan, ShardConfig, make_plan
from jetfoundry.data.root import DamagedFile, jet_schema
from jetfoundry.data.shards import open_shards
from jetfoundry.data.unit import convert_unit
from jetfoundry.data.verify import verify
from jetfoundry.errors import ConfigError, InputError
from jetfoundry.labels import CLASSES

DATASETS = Path(__file__).resolve().parents[2] / "datasets"


@pytest.fixture(scope="session")
def example(shared):
    """Ten events of X X, X -> 2 with m_X = 85 GeV, pileup 50."""
    return shared / "data" / "delphes" / "events_delphes_example.root"


def convert(path, start=0, stop=None, **options):
    with open_source(path, delphes=DelphesConfig(**options)) as reader:
        reader.require()
        return reader.convert(start, reader.entries if stop is None else stop)


def names(table):
    return [CLASSES[index] for index in table["jet_label"].to_pylist()]


def sums(jet, prefix):
    """pT, eta, phi and energy of all constituents together."""
    px, py, pz, energy = (np.sum(jet[f"{prefix}_{name}"], dtype=np.float64) for name in ("px", "py", "pz", "energy"))
    return np.hypot(px, py), np.arcsinh(pz / np.hypot(px, py)), np.arctan2(py, px), energy


# --- the real events --------------------------------------------------------------------------------------------


def test_labels_are_the_decays_that_the_generator_made(example):
    table, losses = convert(example)
    assert list(zip(table["source_entry"].to_pylist(), names(table), strict=True)) == [
        (0, "X_bb"), (0, "X_cc"), (1, "X_gg"), (1, "X_gg"), (2, "X_tauhtauh"), (2, "X_ee"), (3, "X_cc"), (3, "X_bb"),
        (4, "X_gg"), (4, "X_ee"), (5, "X_cc"), (5, "X_tauhtauh"), (6, "X_tauhtauh"), (6, "X_cc"), (7, "X_qq"),
        (7, "X_bb"), (8, "X_ss"), (8, "X_tauhtaum"), (9, "X_cc"), (9, "X_bb"),
    ]  # fmt: skip
    # Two jets come from gluons of the initial state.
    assert [(loss.entry, loss.reason, loss.value) for loss in losses] == [
        (0, "no_class", "jet with pt 231.3, eta -0.10"),
        (4, "no_class", "jet with pt 317.3, eta 1.54"),
    ]


def test_the_truth_record_holds_the_resonance_and_what_it_decays_to(example):
    table, _ = convert(example)
    for jet in table.to_pylist():
        pid, mass = np.array(jet["aux_genpart_pid"]), np.array(jet["aux_genpart_mass"])
        assert pid[jet["aux_genpart_isResX"]].tolist() == [25]
        assert mass[0] == pytest.approx(85, abs=0.1)
        first, second = pid[jet["aux_genpart_isResDecayProd"]]
        assert first == second == 21 or first == -second
        assert any(jet["aux_genpart_isTauDecayProd"]) == (abs(first) == 15)


def test_columns_have_exactly_the_types_of_the_schema(example):
    table, _ = convert(example)
    assert table.schema.equals(jet_schema())
    assert table.drop_columns(["source_file", "source_entry"]).schema.equals(schema.arrow_schema())


def test_momenta_of_constituents_sum_to_the_jet(example):
    table, _ = convert(example)
    for jet in table.to_pylist():
        for prefix, own in (("part", "jet"), ("genpart", "genjet")):
            pt, eta, phi, energy = sums(jet, prefix)
            assert pt == pytest.approx(jet[f"{own}_pt"], rel=1e-6)
            assert eta == pytest.approx(jet[f"{own}_eta"], abs=1e-6)
            assert phi == pytest.approx(jet[f"{own}_phi"], abs=1e-6)
            # Delphes' jet also holds the rest masses of tracks with PUPPI weight 0, which have no momentum.
            assert energy == pytest.approx(jet[f"{own}_energy"], rel=1e-6 if prefix == "genpart" else 0.012)
        assert jet["part_deta"] == pytest.approx(
            np.sign(jet["jet_eta"])
            * (np.arcsinh(np.array(jet["part_pz"]) / np.hypot(jet["part_px"], jet["part_py"])) - jet["jet_eta"]),
            abs=1e-5,
        )


def test_the_surface_direction_misses_the_axis_as_in_the_published_files(example):
    table, _ = convert(example, direction="surface")
    off = [abs(sums(jet, "part")[1] - jet["jet_eta"]) for jet in table.to_pylist()]
    assert 0.02 < max(off) < 0.09
    part = next(iter(table.slice(5, 1).to_pylist()))  # X -> e e: the electrons have their mass on any direction
    e, p2 = part["part_energy"][0], sum(part[f"part_p{k}"][0] ** 2 for k in "xyz")
    assert e**2 == pytest.approx(p2, rel=1e-5)


def test_impact_parameters_count_from_the_primary_vertex(example):
    table, _ = convert(example)
    dz = np.concatenate(table["part_dzval"].to_pylist())
    charge = np.concatenate(table["part_charge"].to_pylist())
    assert np.median(np.abs(dz[charge != 0])) < 0.1  # mm; the vertices themselves are tens of mm apart
    assert not dz[charge == 0].any()
    time = np.concatenate(table["genpart_t"].to_pylist())
    assert np.median(time) < 1e-14 < time.max() < 1e-6  # seconds


def test_constituents_fall_in_pt_and_carry_one_category(example):
    table, _ = convert(example)
    kinds = [column.name for column in schema.COLUMNS if column.name.startswith("part_is")]
    for jet in table.to_pylist():
        assert np.all(np.diff(np.hypot(jet["part_px"], jet["part_py"])) <= 0)
        assert np.all(np.sum([jet[kind] for kind in kinds], axis=0) == 1)
        assert jet["jet_nparticles"] == len(jet["part_px"]) > 0
    present = {kind for kind in kinds if np.concatenate(table[kind].to_pylist()).any()}
    assert present == set(kinds)


def test_other_collections_of_the_file_are_options(example):
    table, losses = convert(example, jets="JetPUPPIAK15", genjets="GenJetAK15", radius=1.5)
    assert table.num_rows + len([loss for loss in losses if loss.reason == "no_class"]) >= 20
    jets, losses = convert(example, jets="JetAK8")  # not made of the particles after PUPPI
    assert [loss.reason for loss in losses].count("missing_constituents") == 20
    assert jets.num_rows == 0


def test_two_entry_ranges_give_the_rows_of_one(example):
    whole, lost = convert(example)
    parts = [convert(example, 0, 4), convert(example, 4, 10)]
    assert pa.concat_tables([table for table, _ in parts]).equals(whole)
    assert [loss for _, losses in parts for loss in losses] == lost


@pytest.mark.ray
def test_the_job_makes_shards_of_a_delphes_file_as_written_in_its_yaml(example, tmp_path, ray_local, capsys):
    out = tmp_path / "shards"
    assert job(str(DATASETS / "jetclass2_delphes.yaml"), f"input={example}", f"output={out}") == cli.EXIT_OK
    shown = capsys.readouterr().out
    assert "Res2P 20, Res34P 0, QCD 0" in shown
    assert "left out: 2 jets that match no class (no_class)" in shown
    stored = pa.concat_tables(pq.read_table(path) for path in sorted(out.rglob("*.parquet")))
    order = [("source_entry", "ascending"), ("jet_pt", "descending")]
    assert stored.sort_by(order).equals(convert(example)[0])
    assert verify(out).faults == ()
    assert open_shards(out, "train").sample == "simulated (Delphes)"
    split_of = {}
    for path in out.rglob("*.parquet"):
        for entry in pq.read_table(path)["source_entry"].to_pylist():
            assert split_of.setdefault(entry, path.parent.name) == path.parent.name  # no event in two splits
    manifest = files.read_json(out / "manifest.json")
    assert manifest["set_aside"]["left_out"] == {"no_class": 2}
    lines = (out / "units" / "00000.set-aside.jsonl").read_text().splitlines()
    assert [json.loads(line)["entry"] for line in lines] == [0, 4]


# --- events by hand ---------------------------------------------------------------------------------------------


def test_a_made_up_event_comes_out_number_by_number(tmp_path, delphes_event, write_delphes):
    table, losses = convert(write_delphes(tmp_path / "one.root", [delphes_event(pt=400)]))
    assert losses == []
    (jet,) = table.to_pylist()
    assert CLASSES[jet["jet_label"]] == "X_bb"
    px, py = 200 * np.cos(0.2), 200 * np.sin(0.2)
    assert jet["part_px"] == pytest.approx([px, px])
    assert sorted(jet["part_py"]) == pytest.approx([-py, py])
    assert jet["part_pz"] == [0, 0]  # not those of the surface
    assert (jet["jet_pt"], jet["jet_energy"]) == pytest.approx((2 * px, 400))
    assert jet["jet_nparticles"] == 2  # without the one of pT 0
    assert jet["jet_sdmass"] == 4
    assert [jet[f"jet_tau{n}"] for n in range(1, 5)] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    track = jet["part_charge"].index(1)
    assert jet["part_isChargedHadron"][track]
    assert jet["part_isPhoton"][1 - track]
    assert (jet["part_d0val"][track], jet["part_dzval"][track]) == pytest.approx((0.1, 1.0))
    assert (jet["part_d0err"][track], jet["part_dzerr"][track]) == pytest.approx((0.01, 0.01))
    assert jet["genjet_nparticles"] == 2
    assert jet["genpart_x"] == jet["genpart_z"] == [0, 0]
    assert jet["genpart_t"] == pytest.approx([0.9e-9, 0.9e-9])
    assert jet["aux_genpart_pid"] in ([25, 5, -5], [25, -5, 5])
    assert jet["genjet_sdmass"] == 4


def test_an_event_without_resonance_is_labelled_by_its_partons(tmp_path, delphes_event, write_delphes):
    event = delphes_event(products=(4, -3), resonance=21)
    event["genparticles"]["Status"][:2] = [23, 51]
    path = write_delphes(tmp_path / "qcd.root", [event, delphes_event()])
    table, losses = convert(path)
    assert names(table) == ["QCD_cs", "X_bb"]
    assert table["aux_genpart_isQcdParton"].to_pylist() == [[True, True], [False, False, False]]
    assert losses == []
    assert names(convert(path, labels="qcd")[0]) == ["QCD_cs", "QCD_bb"]
    table, losses = convert(path, labels="resonance")
    assert names(table) == ["X_bb"]
    assert [loss.reason for loss in losses] == ["no_class"]


def test_what_is_neither_signal_nor_qcd_is_not_called_light_qcd(tmp_path, delphes_event, write_delphes):
    top = delphes_event(resonance=6)
    bare = delphes_event(resonance=21)
    bare["genparticles"]["Status"] = [3, 3, 2, 2, 2, 2, 1, 1]  # a generator with other status codes
    path = write_delphes(tmp_path / "events.root", [top, bare])
    table, losses = convert(path)
    assert table.num_rows == 0
    assert [(loss.entry, loss.reason) for loss in losses] == [(0, "other_resonance"), (1, "no_partons")]
    assert names(convert(path, resonances=(6,))[0]) == ["X_bb"]


def test_an_event_without_a_candidate_is_counted(tmp_path, delphes_event, write_delphes):
    nothing = {name: {member: [] for member in event} for name, event in delphes_event().items()}
    events = [delphes_event(pt=150), delphes_event(), nothing]
    table, losses = convert(write_delphes(tmp_path / "events.root", events))
    assert table["source_entry"].to_pylist() == [1]
    assert [(loss.entry, loss.reason, loss.value) for loss in losses] == [
        (0, "no_candidate", "none of 1 jets with pt > 200 and |eta| <= 2.5"),
        (2, "no_candidate", "none of 0 jets with pt > 200 and |eta| <= 2.5"),
    ]


def test_events_without_anything_are_no_error(tmp_path, delphes_event, write_delphes):
    nothing = {name: {member: [] for member in event} for name, event in delphes_event().items()}
    table, losses = convert(write_delphes(tmp_path / "none.root", [nothing, nothing]))
    assert table.num_rows == 0
    assert len(losses) == 2


@pytest.mark.parametrize("collection", ["jets", "genjets"])
def test_a_jet_that_refers_to_unknown_particles_is_set_aside(collection, tmp_path, delphes_event, write_delphes):
    event = delphes_event()
    event[collection]["Constituents"][0] = [*event[collection]["Constituents"][0], 999]
    table, losses = convert(write_delphes(tmp_path / "events.root", [event, delphes_event()]))
    assert table["source_entry"].to_pylist() == [1]
    assert [(loss.entry, loss.reason) for loss in losses] == [(0, "missing_constituents")]


def test_a_jet_without_a_class_takes_no_generator_level_jet(tmp_path, delphes_event, write_delphes):
    event = delphes_event()
    for member, values in event["jets"].items():
        values.append({"PT": 500.0, "Phi": 0.75}.get(member, values[0]))
    table, losses = convert(write_delphes(tmp_path / "events.root", [event]))
    assert [(loss.reason, loss.value) for loss in losses] == [("no_class", "jet with pt 500.0, eta 0.00")]
    assert table["genjet_pt"].to_pylist() == table["jet_pt"].to_pylist()


def test_a_jet_without_soft_drop_is_set_aside(tmp_path, delphes_event, write_delphes):
    event = delphes_event()
    event["jets"]["SoftDroppedP4"] = [bytes(320)]
    _, losses = convert(write_delphes(tmp_path / "events.root", [event]))
    assert [loss.reason for loss in losses] == ["no_substructure"]


def test_generator_level_jets_and_vertices_may_be_missing(tmp_path, delphes_event, write_delphes):
    path = write_delphes(tmp_path / "events.root", [delphes_event()], leave_out=["GenJetAK8", "Vertex"])
    (jet,) = convert(path, genjets="")[0].to_pylist()
    assert jet["genjet_pt"] == jet["genjet_nparticles"] == 0
    assert jet["genpart_px"] == []
    assert max(jet["part_dzval"]) == 51


def test_batches_and_baskets_change_nothing(tmp_path, delphes_event, write_delphes, monkeypatch):
    events = [delphes_event(pt=150 + 20 * k, vertex=k, products=((5, -5), (4, -4))[k % 2]) for k in range(10)]
    whole = convert(write_delphes(tmp_path / "whole.root", events))
    path = write_delphes(tmp_path / "parts.root", events, cluster=4)
    with open_source(path, delphes=DelphesConfig()) as reader:
        assert reader.clusters().tolist() == [0, 4, 8, 10]
    monkeypatch.setattr(delphes_module, "_BATCH", 3)
    table, losses = convert(path)
    assert table.equals(whole[0])
    assert losses == whole[1]
    assert table["source_entry"].to_pylist() == list(range(3, 10))


# --- files that do not fit, settings ----------------------------------------------------------------------------


def reason(path, **options):
    inventory = take_inventory([path], delphes=DelphesConfig(**options))
    assert not inventory.sources
    return inventory.set_aside[0].reason


def test_a_missing_collection_is_named_with_the_nearest_ones(tmp_path, delphes_event, write_delphes):
    path = write_delphes(tmp_path / "events.root", [delphes_event()])
    message = f"{path}: no collection 'JetPUPPIAK9' (delphes.jets); nearest: "
    assert message in reason(path, jets="JetPUPPIAK9", radius=0.9, genjets="")
    assert "JetPUPPIAK8" in reason(path, jets="JetPUPPIAK9", radius=0.9, genjets="")
    assert "(delphes.particles)" in reason(path, particles="EFlowTrack")


def test_a_missing_member_is_named(tmp_path, delphes_event, write_delphes):
    path = write_delphes(tmp_path / "events.root", [delphes_event()], leave_out=["JetPUPPIAK8.Tau"])
    assert reason(path).startswith(f"{path}: missing branch JetPUPPIAK8.Tau; ")


def test_a_file_of_jets_is_no_delphes_file(tmp_path, make_jets, write_root):
    path = write_root(tmp_path / "jets.root", make_jets(3))
    assert reason(path) == f"{path}: no TTree or RNTuple 'Delphes'; known: tree"
    path = write_root(tmp_path / "jets.parquet", make_jets(3), kind="parquet")
    assert reason(path) == f"{path}: wanted a TTree of Delphes, got parquet"


def test_references_that_cannot_be_decoded_are_a_damaged_range(tmp_path, delphes_event, write_delphes):
    event = delphes_event()
    path = write_delphes(tmp_path / "events.root", [event])
    with open_source(path, delphes=DelphesConfig(genjets="")) as reader:
        reader.branches["JetPUPPIAK8.Constituents"] = reader.branches["JetPUPPIAK8.SoftDroppedP4"]
        with pytest.raises(DamagedFile, match=r"events\.root, entries 0-1: damaged or truncated"):
            reader.convert(0, 1)


def test_a_plan_keeps_the_options_of_delphes(tmp_path, delphes_event, write_delphes):
    path, options = write_delphes(tmp_path / "events.root", [delphes_event()] * 3), DelphesConfig(eta_max=2.0)
    plan = make_plan(take_inventory([path], delphes=options), ShardConfig(), options)
    assert Plan.from_dict(plan.to_dict()) == plan
    sidecar = convert_unit(plan, tmp_path / "out", 0)
    assert sidecar["entries"] == sum(shard["rows"] for shard in sidecar["shards"]) == 3


@pytest.mark.ray
def test_a_changed_option_of_delphes_is_refused(tmp_path, delphes_event, write_delphes, ray_local):
    path = write_delphes(tmp_path / "events.root", [delphes_event()] * 3)
    settings = {"input": (str(path),), "output": str(tmp_path / "out")}
    ingest(IngestConfig(**settings, delphes=DelphesConfig()))
    with pytest.raises(InputError, match=r"delphes\.pt_min was 200\.0, now 300\.0; choose another folder"):
        ingest(IngestConfig(**settings, delphes=DelphesConfig(pt_min=300.0)))


@pytest.mark.ray
def test_the_job_says_why_no_event_gives_a_jet(tmp_path, delphes_event, write_delphes, ray_local, capsys):
    path = write_delphes(tmp_path / "events.root", [delphes_event(pt=100), delphes_event(pt=900)])
    yaml = str(DATASETS / "jetclass2_delphes.yaml")
    assert job(yaml, f"input={path}", f"output={tmp_path / 'out'}", "delphes.pt_min=1000") == cli.EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert "error: none of the 2 events can be used: 2 events without a jet in pt and eta" in error
    assert job(yaml, f"input={path}", f"output={tmp_path / 'out2'}") == cli.EXIT_OK
    assert "left out: 1 events without a jet in pt and eta (no_candidate)" in capsys.readouterr().out


def test_the_yaml_spells_out_the_defaults():
    settings = config.read(IngestConfig, DATASETS / "jetclass2_delphes.yaml")
    assert settings.delphes == DelphesConfig()


def test_a_data_yaml_and_a_configuration_are_told_apart(tmp_path):
    assert file_key([str(DATASETS / "jetclass2_delphes.yaml"), "input=x"]) is None
    assert file_key([str(DATASETS / "jetclass2.yaml")]) == "features"
    assert file_key(["input=x"]) == "features"
    assert file_key([str(tmp_path / "missing.yaml")]) == "features"


@pytest.mark.parametrize(
    "override", ["radius=0", "radius=1.5", "resonances=[]", "resonances=[-25]", "jets=", "labels=both"]
)
def test_impossible_options_are_refused(override):
    with pytest.raises(ConfigError, match="delphes"):
        config.read(IngestConfig, None, [f"delphes.{override}"])


def job(*arguments):
    path = DATASETS.parent / "jobs" / "ingest.py"
    spec = importlib.util.spec_from_file_location("ingest_job", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cli.run(module.main, IngestConfig, arguments, file_key=file_key(arguments))
