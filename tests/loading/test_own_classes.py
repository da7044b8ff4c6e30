"""Jets of other classes than JetClass-II's 188: from the files of the first JetClass to balanced training batches."""

from __future__ import annotations

import itertools
from pathlib import Path

import awkward as ak
import numpy as np
import pytest

from jetfoundry import config
from jetfoundry.data.ingest import write_manifest
from jetfoundry.data.inventory import expand, take_inventory
from jetfoundry.data.layouts import load_layout
from jetfoundry.data.plan import ShardConfig, make_plan
from jetfoundry.data.shards import MASS_EDGES, PT_EDGES, open_shards
from jetfoundry.data.unit import convert_unit
from jetfoundry.errors import ConfigError, InputError
from jetfoundry.features.transform import load_data_config
from jetfoundry.loading.data_statistics import complete
from jetfoundry.loading.loader import LoaderConfig, training_batches
from jetfoundry.loading.manifest_histogram import manifest_counts
from jetfoundry.loading.pieces import open_jet_set
from jetfoundry.loading.sampling import SamplingConfig, plan_uses

LAYOUT = load_layout(Path(__file__).resolve().parents[2] / "datasets" / "schemas" / "jetclass.yaml")
LABELS = {name: f"jet_label == {number}" for number, name in enumerate(LAYOUT.classes)}
CLASSES = SamplingConfig(balance="classes", max_repeat=100)


def features(**sections):
    constant = {"length": 8, "pad_mode": "constant"}
    tree = {
        "new_variables": {**LABELS, "part_mask": "ak.ones_like(part_energy)"},
        "inputs": {"pf_features": {**constant, "vars": [["part_deta", None]]}},
        "labels": {"type": "simple", "value": list(LABELS)},
        **sections,
    }
    return tree


def load(**sections):
    known = {column.name for column in LAYOUT.columns}
    return load_data_config(features(**sections), known=known)


def _arrays(labels):
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 5, len(labels))
    arrays = {}
    for column in LAYOUT.columns:
        if column.jagged:
            kind = np.float32 if column.kind == "float32" else np.int32
            arrays[column.name] = ak.unflatten(rng.integers(0, 2, counts.sum()).astype(kind), counts)
        elif column.name != "jet_label":
            arrays[column.name] = rng.uniform(210, 480, len(labels)).astype(np.float32)
    arrays["jet_nparticles"] = counts.astype(np.int32)
    for number, name in enumerate(LAYOUT.classes):
        arrays[f"label_{name}"] = (labels == number).astype(np.float32)
    return arrays


@pytest.fixture
def files(tmp_path, write_root):
    """600 jets, classes 0, 3 and 9 in the ratio 1 : 2 : 12."""
    labels = np.random.default_rng(1).choice([0, 3, 9], 600, p=[1 / 15, 2 / 15, 12 / 15])
    return str(write_root(tmp_path / "in" / "jetclass.root", _arrays(labels), cluster=100))


@pytest.fixture
def folder(tmp_path, files):
    plan = make_plan(take_inventory(expand([files]), layout=LAYOUT), ShardConfig(row_group=50), layout=LAYOUT)
    convert_unit(plan, tmp_path / "out", 0)
    write_manifest(plan, tmp_path / "out", "made up")
    return tmp_path / "out"


@pytest.mark.parametrize("straight", [False, True], ids=["shards", "root"])
def test_jetclass_is_balanced_by_its_own_ten_classes(straight, folder, files):
    train = open_jet_set(files, "train", layout=LAYOUT) if straight else open_jet_set(str(folder), "train")
    assert train.classes == LAYOUT.classes
    assert train.class_counts.shape == (10,)
    data = load()
    uses = plan_uses(train, data, CLASSES)
    assert uses.of_class[[0, 3, 9]] == pytest.approx(train.rows / 3 / train.class_counts[[0, 3, 9]])
    assert np.flatnonzero(uses.of_class).tolist() == [0, 3, 9]
    assert uses.per_pass == pytest.approx(train.rows)
    loader = LoaderConfig(batch_size=50, micro_batches=2, window=100, prefetch=0)
    batches = training_batches(train, data, loader, CLASSES, seed=3)
    drawn = np.zeros(10, int)
    for batch, after in batches:
        for micro in batch.micro:
            drawn += np.bincount(micro.labels.numpy(), minlength=10)
        if after.passes == 3:
            break
    assert drawn[[0, 3, 9]] == pytest.approx(train.rows, rel=0.05)  # three passes, a third each
    assert drawn.sum() == drawn[[0, 3, 9]].sum()


def test_shards_and_files_of_other_classes_have_the_same_counts(folder, files):
    for split in ("train", "val", "test"):
        counts = open_jet_set(files, split, layout=LAYOUT).class_counts
        assert counts.tolist() == open_shards(folder, split).class_counts.tolist()


def test_labels_that_merge_and_leave_out_classes_are_balanced_as_they_are(folder):
    merged = {"Higgs": "(jet_label >= 1) & (jet_label <= 5)", "top": "jet_label == 9", "QCD": "jet_label == 0"}
    data = load(new_variables={**merged, "part_mask": "part_energy"}, labels={"type": "simple", "value": list(merged)})
    train = open_shards(folder, "train")
    uses = plan_uses(train, data, CLASSES)
    assert uses.of_class == pytest.approx(train.rows / 3 / train.class_counts[[3, 9, 0]])


def test_a_label_scheme_of_the_188_classes_is_refused_for_jets_of_others(folder):
    data = load_data_config(features(labels={"type": "custom", "value": {"truth": "jet_label"}}), scheme="sophon188")
    train = open_shards(folder, "train")
    message = r"out: its jets are of 10 classes \(QCD, Hbb, Hcc, …\), the label scheme sophon188 maps the 188 of JetC"
    with pytest.raises(ConfigError, match=message):
        plan_uses(train, data, CLASSES)
    scheme = {"type": "custom", "value": {"truth": "jet_label"}}
    with pytest.raises(ConfigError, match=message):
        complete(features(labels=scheme), train, scheme="sophon188", known=None)


def test_what_balance_cannot_do_is_refused_by_name(folder):
    train = open_shards(folder, "train")
    with pytest.raises(ConfigError, match="the groups are those of JetClass-II; take classes"):
        plan_uses(train, load(), SamplingConfig(balance="groups"))
    other = load(
        new_variables={"light": "jet_sdmass < 300", "heavy": "jet_sdmass >= 300"},
        labels={"type": "simple", "value": ["light", "heavy"]},
    )
    with pytest.raises(ConfigError, match="needs a label scheme, or labels that are formulas of jet_label alone"):
        plan_uses(train, other, CLASSES)


def test_a_label_outside_the_classes_is_named_before_training_from_files(tmp_path, write_root):
    labels = np.array([3, 0, 9, 10])  # the last jet has no class
    path = write_root(tmp_path / "bad.root", _arrays(labels))
    with pytest.raises(
        InputError, match=r"bad.root, entry 3: jet_label -1, wanted 0-9; an ingest sets such jets aside"
    ):
        open_jet_set(str(path), "train", layout=LAYOUT)


def test_reweighting_by_own_classes_takes_the_manifest_and_gives_what_a_scan_gives(folder):
    section = {
        "reweight_method": "flat",
        "reweight_vars": {"jet_pt": list(PT_EDGES), "jet_sdmass": list(MASS_EDGES)},
        "reweight_classes": ["QCD", "Hgg", "Tbl"],
        "class_weights": [1, 1, 1],
        "reweight_threshold": 10,
        "reweight_discard_under_overflow": True,
    }
    train, data = open_shards(folder, "train"), load(weights=section)
    histograms, jets, _, _ = manifest_counts(data, data.weights, train)
    assert histograms.sum(axis=(1, 2)).tolist() == train.class_counts[[0, 3, 9]].tolist()
    assert jets == train.rows
    measured = complete(features(weights=section), train, known=None)
    again = load_data_config(config.parse_yaml(measured, "measured"), known=None)
    uses = plan_uses(train, again, SamplingConfig())
    loader = LoaderConfig(batch_size=40, micro_batches=1, prefetch=0)
    drawn = itertools.islice(training_batches(train, again, loader, SamplingConfig(), seed=1), 20)
    found = np.sum([np.bincount(batch.micro[0].labels, minlength=10) for batch, _ in drawn], axis=0)
    assert uses.trials >= 1
    assert set(np.flatnonzero(found)) == {0, 3, 9}


def test_a_public_yaml_of_jetclass_runs_on_ingested_jets_as_it_is(folder):
    path = Path(__file__).resolve().parents[1] / "features" / "configs" / "jetclass_full.yaml"
    tree = config.load_yaml(path)
    tree["observers"] = ["jet_pt", "aux_genpart_pid", "aux_truth_match"]
    train = open_shards(folder, "train")
    data = load_data_config(tree, known=train.columns)
    loader = LoaderConfig(batch_size=50, micro_batches=2, window=100, prefetch=0)
    some = itertools.islice(training_batches(train, data, loader, SamplingConfig(), seed=3), 8)
    assert data.classes == tuple(f"label_{name}" for name in train.classes)
    assert {int(label) for batch, _ in some for micro in batch.micro for label in micro.labels} == {0, 3, 9}
