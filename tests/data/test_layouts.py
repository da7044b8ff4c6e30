from __future__ import annotations

from pathlib import Path

import awkward as ak
import numpy as np
import pytest

from jetfoundry import files
from jetfoundry.data.ingest import write_manifest
from jetfoundry.data.inventory import expand, take_inventory
from jetfoundry.data.layouts import JETCLASS2, Layout, load_layout
from jetfoundry.data.plan import Plan, ShardConfig, make_plan, matching_plan
from jetfoundry.data.root import jet_schema, open_jets
from jetfoundry.data.shards import open_shards, read_row_group
from jetfoundry.data.unit import convert_unit
from jetfoundry.errors import ConfigError, InputError
from jetfoundry.labels import UNSEEN

SCHEMAS = Path(__file__).resolve().parents[2] / "datasets" / "schemas"


def _jetclass_arrays(labels: list[int]) -> dict[str, object]:
    """Branches of the first JetClass, in the types that its files have: labels are float, bool and int."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 5, len(labels))
    layout = load_layout(SCHEMAS / "jetclass.yaml")
    arrays: dict[str, object] = {}
    for column in layout.columns:
        if column.jagged:
            flat = rng.integers(0, 2, counts.sum()).astype(np.float32 if column.kind != "bool" else np.int32)
            arrays[column.name] = ak.unflatten(flat, counts)
        elif column.name != "jet_label":
            arrays[column.name] = rng.uniform(200, 500, len(labels)).astype(np.float32)
    arrays["jet_nparticles"] = counts.astype(np.float32)
    kinds = [np.float32, *[np.bool_] * 5, *[np.int32] * 4]
    for number, (name, kind) in enumerate(zip(layout.classes, kinds, strict=True)):
        arrays[f"label_{name}"] = (np.array(labels) == number).astype(kind)
    return arrays


def _convert(tmp_path: Path, layout: Layout) -> tuple[Plan, dict]:
    plan = make_plan(take_inventory(expand([str(tmp_path / "in")]), layout=layout), ShardConfig(), layout=layout)
    sidecar = convert_unit(plan, tmp_path / "out", 0)
    return plan, sidecar


@pytest.mark.parametrize("kind", ["ttree", "rntuple"])
def test_jetclass_comes_in_with_labels_made_of_its_one_hot_branches(kind, tmp_path, write_root):
    labels = [3, 0, 9, 1, 9]
    write_root(tmp_path / "in" / "jets.root", _jetclass_arrays(labels), kind=kind)
    layout = load_layout(SCHEMAS / "jetclass.yaml")
    plan, _ = _convert(tmp_path, layout)
    write_manifest(plan, tmp_path / "out", "made up")
    parts = [open_shards(tmp_path / "out", split) for split in ("train", "val", "test")]
    assert parts[0].classes == ("QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql", "Zqq", "Wqq", "Tbqq", "Tbl")
    assert list(parts[0].columns) == jet_schema(layout=layout).names
    assert sum(part.class_counts for part in parts).tolist() == [1, 1, 0, 1, 0, 0, 0, 0, 0, 2]
    tables = [read_row_group(group) for part in parts for group in part.row_groups]
    found = {}
    for table in tables:
        found |= dict(zip(table["source_entry"].to_pylist(), table["jet_label"].to_pylist(), strict=True))
    assert [found[entry] for entry in range(5)] == labels
    assert tables[0].schema.field("part_charge").type == layout.select(["part_charge"])[0].arrow_type


def test_a_jet_with_two_labels_or_none_is_set_aside(tmp_path, write_root):
    arrays = _jetclass_arrays([3, 0, 9, 1, 9])
    arrays["label_Hbb"] = np.array([True, False, False, True, False])  # the first jet is Hgg already
    arrays["label_Tbl"] = np.array([0, 0, 1, 0, 0], np.int32)  # the last one is nothing now
    write_root(tmp_path / "in" / "jets.root", arrays)
    _, sidecar = _convert(tmp_path, load_layout(SCHEMAS / "jetclass.yaml"))
    assert sidecar["set_aside"]["jets"] == {"label_range": 2}


def test_an_ntuple_with_other_names_comes_in_by_its_schema(tmp_path, write_root):
    lists = ak.values_astype(ak.Array([[1.0, 2.0], [3.0]]), np.float32)
    vertices = ak.values_astype(ak.Array([[], [1.5]]), np.float32)
    numbers = {name: np.array([300.0, 400.0], np.float32) for name in ("fj_pt", "fj_eta", "fj_sdmass")}
    arrays = {f"pfcand_{name}": lists for name in ("pt", "etarel", "phirel", "charge")}
    arrays |= {"sv_mass": vertices, "is_signal": np.array([0, 1], np.int64), **numbers}
    path = write_root(tmp_path / "jets.root", arrays)
    with open_jets(path, layout=load_layout(SCHEMAS / "my_flat.yaml")) as reader:
        table = reader.read(0, 2)
    assert table["part_pt"].to_pylist() == [[1, 2], [3]]
    assert table["part_charge"].to_pylist() == [[1, 2], [3]]
    assert table["sv_mass"].to_pylist() == [[], [1.5]]
    assert table["jet_label"].to_pylist() == [0, 1]
    with open_jets(path) as reader, pytest.raises(InputError, match="missing branch part_px"):
        reader.require()


def test_the_plan_keeps_the_schema_and_refuses_another(tmp_path, write_root):
    write_root(tmp_path / "in" / "jets.root", _jetclass_arrays([1, 2]))
    layout = load_layout(SCHEMAS / "jetclass.yaml")
    inputs = expand([str(tmp_path / "in")])
    plan = make_plan(take_inventory(inputs, layout=layout), ShardConfig(), layout=layout)
    files.write_json(tmp_path / "plan.json", plan.to_dict())
    assert matching_plan(tmp_path / "plan.json", inputs, ShardConfig(), layout=layout) == plan
    with pytest.raises(InputError, match="schema was JetClass, now JetClass-II"):
        matching_plan(tmp_path / "plan.json", inputs, ShardConfig())


def test_no_schema_is_jetclass2():
    assert load_layout("") is JETCLASS2
    assert Layout.from_dict(JETCLASS2.to_dict()) == JETCLASS2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("columns: 3", r"columns: wanted a list"),
        ("classes: [a, a]", r"classes: wanted a list of different names"),
        ("classes: [a, 1]", r"name and classes must be text"),
        ("colums: []", r"wanted the keys classes, columns, name, got .*colums"),
        ("columns: [{name: jet_pt, kind: float}]", r"columns, number 1: jet_pt: kind 'float'; nearest: float32"),
        ("columns: [{name: jet_pt, kind: float32, form: x}]", r"unknown key 'form'; nearest: from"),
        ("columns: [{name: jet_pt, kind: float32, list: jet}]", r"jet_pt must be one value per jet"),
        ("columns: [{name: jet_label, kind: int32, from: [a, b, c]}]", r"one branch for each of the 2 classes"),
        ("columns: [{name: jet_label, kind: float32}]", r"jet_label: kind must be int32"),
        (
            "columns: [{name: jet_label, kind: int32}, {name: jet_ptt, kind: float32}]",
            r"no column jet_pt; nearest: jet_ptt",
        ),
        ("columns: [{name: source_file, kind: int32}]", r"source_file is a column that ingest makes itself"),
    ],
)
def test_a_schema_that_cannot_be_used_says_what_is_wrong(change, message, tmp_path):
    path = tmp_path / "mine.yaml"
    default = {
        "name": "name: mine",
        "classes": "classes: [a, b]",
        "columns": "columns: [{name: jet_pt, kind: float32}]",
    }
    path.write_text("\n".join({**default, change.partition(":")[0]: change}.values()))
    with pytest.raises(ConfigError, match=f"{path}: .*{message}"):
        load_layout(path)


def test_a_schema_may_extend_jetclass2_by_classes(tmp_path):
    layout = load_layout(SCHEMAS / "jetclass2_unseen.yaml")
    assert layout.classes == (*JETCLASS2.classes, *UNSEEN)
    assert layout.columns == JETCLASS2.columns
    assert Layout.from_dict(layout.to_dict()) == layout
    path = tmp_path / "twice.yaml"
    path.write_text("{name: twice, extends: JetClass-II, classes: [X_bb]}")
    with pytest.raises(ConfigError, match="classes: wanted a list of different names"):
        load_layout(path)
    path.write_text("{name: mine, extends: JetClass, classes: [X_bs]}")
    with pytest.raises(ConfigError, match="extends: 'JetClass'; only JetClass-II can be extended"):
        load_layout(path)
    path.write_text("{name: mine, extends: JetClass-II, class: [X_bs]}")
    with pytest.raises(ConfigError, match="wanted the keys classes, extends, name, got"):
        load_layout(path)
