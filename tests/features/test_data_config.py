from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from jetfoundry.config import load_yaml
from jetfoundry.errors import ConfigError, FormulaError
from jetfoundry.features.transform import load_data_config
from jetfoundry.labels import CLASSES, GROUP_WEIGHTS, GROUPS

OURS = Path(__file__).resolve().parents[2] / "datasets" / "jetclass2.yaml"

MINIMAL: dict[str, Any] = load_yaml(Path(__file__).with_name("minimal.yaml"))


def config(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (MINIMAL | changes).items() if value is not None}


def with_input(**changes: Any) -> dict[str, Any]:
    group = {"length": 4, "pad_mode": "constant", "vars": ["part_px"]} | changes
    return config(inputs={"pf_features": group})


def test_keyed_variables_mean_the_same_as_weavers_lists() -> None:
    keyed = {"name": "part_px", "center": 2, "scale": "5e-1", "clip": [-1, 1.5], "pad": -9}
    listed = ["part_px", 2, 0.5, -1, 1.5, -9]
    read = [load_data_config(with_input(vars=[entry])).inputs["pf_features"].variables for entry in (keyed, listed)]
    assert read[0] == read[1]


def test_defaults_are_weavers() -> None:
    (variable,) = load_data_config(with_input(vars=[["part_px", 1.5]])).inputs["pf_features"].variables
    assert (variable.center, variable.scale, variable.low, variable.high, variable.pad) == (1.5, 1, -5, 5, 0)


def test_the_auto_method_measures_what_has_no_center_and_is_not_switched_off() -> None:
    variables = [
        "part_px",
        ["part_energy", None],
        ["part_share", 1],
        {"name": "part_log_e", "center": None},
        "part_mask",
    ]
    for method, expected in (("auto", ("part_px",)), ("manual", ())):
        group = {"pf_features": {"length": 4, "vars": variables}}
        assert load_data_config(config(inputs=group, preprocess={"method": method})).unmeasured == expected
    asked = with_input(vars=[["part_px", "auto", 1, 0, 3]])
    (variable,) = load_data_config(asked).inputs["pf_features"].variables
    assert (variable.auto, variable.center, variable.low, variable.high) == (True, None, 0, 3)


def test_columns_are_exactly_what_is_needed() -> None:
    data = load_data_config(config(weights=WEIGHTS | {"reweight_vars": {"genjet_pt": [0, 1], "jet_pt": [0, 1]}}))
    assert data.columns == ("genjet_pt", "jet_label", "jet_pt", "part_energy", "part_px")
    unused = load_data_config(config(new_variables=MINIMAL["new_variables"] | {"unused": "genpart_pid * 2"}))
    assert "genpart_pid" not in unused.columns


WEIGHTS: dict[str, Any] = {
    "reweight_method": "flat",
    "reweight_vars": {"jet_pt": [200, 300], "jet_sdmass": [20, 30, 40]},
    "reweight_classes": ["jet_label"],
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selections": "jet_pt > 1"}, "data config: unknown section 'selections'; nearest: selection"),
        ({"new_variables": {"part_pt": "np.hypott(part_px, part_py)"}},
         r"new_variables.part_pt: formula 'np.hypott\(.*\)': unknown function 'np.hypott'; nearest: hypot"),
        ({"new_variables": {"part_pt": "np.hypot(part_px, part_pyy)"}},
         "formula .*: unknown name 'part_pyy'; nearest: part_py"),
        ({"new_variables": {"own": "np.hypot(part_px, part_py)"}, "selection": "owm > 1"}, "nearest: own"),
        ({"new_variables": {"x": '__import__("os")'}}, "new_variables.x: .*unknown function '__import__'"),
        ({"new_variables": {"x": "part_px.__class__"}}, "not part of the formula language"),
        ({"new_variables": {"x": "y + 1", "y": "z", "z": "x"}}, "needs itself: x -> y -> z -> x"),
        ({"new_variables": {"x": None}}, "new_variables.x: wanted a formula, got nothing"),
        ({"new_variables": ["x"]}, "new_variables: wanted a mapping"),
        ({"selection": "jet_ptt > 1"}, "selection: formula 'jet_ptt > 1': unknown name 'jet_ptt'; nearest: jet_pt"),
        ({"selection": ["jet_pt > 1"]}, "selection: wanted a formula"),
        ({"observers": ["jet_ptt"]}, "observers: unknown variable 'jet_ptt'; nearest: jet_pt"),
        ({"observers": "jet_pt"}, "observers: wanted a list of names"),
        ({"monitor_variables": ["jet_pt"]}, "monitor_variables: weaver takes either"),
        ({"bucketing": {"var": "jet_pt"}}, "bucketing: this section of weaver is not supported"),
        ({"preprocess": {"method": "automatic"}}, "preprocess.method: wanted manual or auto, got 'automatic'"),
        ({"preprocess": {"data_fraction": 2}}, "preprocess.data_fraction: wanted a number above 0 and at most 1"),
        ({"preprocess": {"params": ["part_px"]}}, "preprocess.params: wanted a mapping"),
        ({"preprocess": {"metod": "manual"}}, "preprocess: unknown key 'metod'; nearest: method"),
        ({"inputs": None}, "inputs: wanted a mapping"),
        ({"inputs": {"pf": {"lenght": 4, "vars": ["part_px"]}}}, "inputs.pf: unknown key 'lenght'; nearest: length"),
        ({"inputs": {"pf": {"length": 0, "vars": ["part_px"]}}}, "inputs.pf.length: wanted a whole number above 0"),
        ({"inputs": {"pf": {"length": 4, "pad_mode": "zero", "vars": ["part_px"]}}}, "wanted constant or wrap"),
        ({"inputs": {"pf_mask": {"length": 4, "pad_mode": "wrap", "vars": ["part_px"]}}}, "wanted constant"),
        ({"inputs": {"pf": {"length": 4, "vars": []}}}, "inputs.pf.vars: wanted a list of variables"),
        ({"inputs": {"pf": {"length": 4, "vars": ["part_ptx"]}}}, "inputs.pf.vars: unknown variable 'part_ptx'"),
        ({"inputs": {"pf": {"length": 4, "vars": [["part_px", "a"]]}}}, "part_px: wanted a number, got 'a'"),
        ({"inputs": {"pf": {"length": 4, "vars": [["part_px", 0, 1, 5, -5]]}}}, "nothing is in between"),
        ({"inputs": {"pf": {"length": 4, "vars": [["part_px", 0, 1, 2, 3, 4, 5]]}}}, "at most 6 entries"),
        ({"inputs": {"pf": {"length": 4, "vars": [{"name": "part_px", "shift": 1}]}}}, "unknown key 'shift'"),
        ({"inputs": {"pf": {"length": 4, "vars": [{"name": "part_px", "clip": 1}]}}}, r"wanted \[low, high\]"),
        ({"inputs": {"pf": {"length": 4, "vars": [[1]]}}}, "wanted a name"),
        ({"labels": None}, "labels.type: wanted simple or custom"),
        ({"labels": {"type": "simpel", "value": ["jet_label"]}}, "wanted simple or custom"),
        ({"labels": {"type": "simple", "value": {"a": "jet_label"}}}, "wants a list of 0-1 columns"),
        ({"labels": {"type": "custom", "value": ["jet_label"]}}, "wants a mapping"),
        ({"labels": {"scheme": "sophon88"}}, "labels.scheme: unknown label scheme 'sophon88'; nearest: sophon188"),
        ({"labels": {"type": "simple", "value": ["jet_label"], "scheme": "sophon188"}}, "type simple has 0-1 columns"),
        ({"weights": {"reweight": "flat"}}, "weights: unknown key 'reweight'; nearest: reweight"),
        ({"weights": WEIGHTS | {"reweight_method": "falt"}}, "reweight_method: wanted flat or ref"),
        ({"weights": WEIGHTS | {"reweight_classes": ["X_QQQ"]}}, "weights: unknown variable 'X_QQQ'"),
        ({"weights": WEIGHTS | {"class_weights": [1, 2]}}, "one number above 0 for each of the 1"),
        ({"weights": WEIGHTS | {"reweight_vars": {"jet_pt": [1, 2]}}}, "wanted two variables"),
        ({"weights": WEIGHTS | {"reweight_vars": {"jet_pt": [2, 1], "jet_eta": [0, 1]}}}, "in rising order"),
        ({"weights": WEIGHTS | {"reweight_threshold": 101}}, "wanted a percentile"),
        ({"weights": WEIGHTS | {"reweight_hists": {"jet_label": [[1, 2, 3]]}}}, "wanted 1 rows of 2 numbers"),
        ({"weights": WEIGHTS | {"reweight_hists": {}}}, "reweight_hists: jet_label is missing"),
        ({"weights": {"use_precomputed_weights": True}}, "weight_branches: wanted a list of columns, got nothing"),
        ({"weights": {"use_precomputed_weights": True, "weight_branches": ["jet_ptt"]}}, "nearest: jet_pt"),
        ({"weights": WEIGHTS | {"statistics": {"jet": 1}}}, "weights.statistics: unknown key 'jet'; nearest: jets"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_named_when_the_yaml_is_loaded(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_data_config(MINIMAL | changes)


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(config(selection="jet_ptt > 1")), encoding="utf-8")
    with pytest.raises(FormulaError, match=r"mine\.yaml: selection: formula 'jet_ptt > 1': unknown name 'jet_ptt'"):
        load_data_config(path)


def test_our_yaml_has_sophons_inputs_classes_and_sampling_groups() -> None:
    data = load_data_config(OURS)
    assert {name: len(group.vars) for name, group in data.inputs.items()} == {
        "pf_points": 2, "pf_features": 17, "pf_vectors": 4, "pf_mask": 1,
    }  # fmt: skip
    assert {group.length for group in data.inputs.values()} == {128}
    assert data.classes == CLASSES
    assert len(data.observers) == 10
    weights = data.weights
    assert weights is not None
    assert dict(zip(weights.classes, weights.class_weights, strict=True)) == GROUP_WEIGHTS
    assert [len(edges) for edges in weights.vars.values()] == [15, 49]


def test_the_groups_of_our_yaml_hold_the_classes_of_the_label_table() -> None:
    inputs = {"jet": {"length": None, "vars": ["jet_label"]}}
    tree = yaml.safe_load(OURS.read_text(encoding="utf-8"))
    tree |= {"inputs": inputs, "selection": None, "observers": list(GROUPS)}
    every_class = pa.table({"jet_label": pa.array(range(188), pa.int32())})
    observers = load_data_config(tree).apply(every_class, training=False).observers
    assert {name: tuple(np.flatnonzero(observers[name])) for name in GROUPS} == GROUPS


def test_a_public_yaml_of_weavers_shape_is_read_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "jetclass.yaml"
    path.write_text(PUBLIC, encoding="utf-8")
    columns = {"part_px", "part_py", "part_energy", "part_deta", "part_d0err", "jet_pt", "label_QCD", "label_Hbb"}
    data = load_data_config(path, known=columns)
    assert data.columns == tuple(sorted(columns))
    assert data.classes == ("label_QCD", "label_Hbb")
    assert data.inputs["pf_features"].variables[2].high == 1
    assert data.weights is None


PUBLIC = """
selection:
   ### use `&`, `|`, `~` for logical operations on numpy arrays
new_variables:
   ### [format] name: formula
   part_mask: ak.ones_like(part_energy)
   part_pt: np.hypot(part_px, part_py)
   part_logptrel: np.log(part_pt/jet_pt)
   part_isCHad: (np.abs(part_deta)==211) + (np.abs(part_deta)==321)*0.5
preprocess:
  method: manual
  data_fraction:
inputs:
   pf_points:
      length: 128
      pad_mode: wrap
      vars:
         - [part_deta, null]
   pf_features:
      length: 128
      pad_mode: wrap
      vars:
         - [part_logptrel, -4.7, 0.7]
         - part_isCHad
         - [part_d0err, 0, 1, 0, 1]
   pf_mask:
      length: 128
      vars:
         - part_mask
labels:
   type: simple
   value: [
      label_QCD, label_Hbb,
      ]
observers:
   - jet_pt
weights:
"""


def test_variables_in_a_very_long_chain_are_refused() -> None:
    chain = {"v0": "part_px", **{f"v{n}": f"v{n - 1} + 1" for n in range(1, 3000)}}
    with pytest.raises(FormulaError, match="needs more than 200 variables one after the other"):
        load_data_config(config(new_variables=chain))


def test_keys_that_are_no_text_are_read_as_text() -> None:
    data = load_data_config(
        config(inputs={1: {"length": 4, "vars": ["part_px"]}}, new_variables={2: "part_px", "a": "1"})
    )
    assert list(data.inputs) == ["1"]
    assert set(data.formulas) == {"2", "a"}


def test_a_length_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match="length: wanted a whole number above 0, at most 10000"):
        load_data_config(with_input(length=10**9))
