from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jetfoundry.config import load_yaml
from jetfoundry.errors import ConfigError, FormulaError, InputError
from jetfoundry.features import functions
from jetfoundry.features.transform import load_data_config
from jetfoundry.labels import CLASSES
from jetfoundry.schema import arrow_schema

OURS = Path(__file__).resolve().parents[2] / "datasets" / "jetclass2.yaml"

# Four jets with 2, 0, 3 and 1 particles.
TABLE = pa.table(
    {
        "part_px": pa.array([[3.0, 6.0], [], [1.0, 2.0, 3.0], [8.0]], pa.list_(pa.float32())),
        "part_energy": pa.array([[1.0, 4.0], [], [4.0, 2.0, 1.0], [2.0]], pa.list_(pa.float32())),
        "genpart_pid": pa.array([[1], [2], [3], [4]], pa.list_(pa.int32())),
        "jet_pt": pa.array([10.0, 20.0, 30.0, 40.0], pa.float32()),
        "jet_label": pa.array([0, 1, 161, 187], pa.int32()),
        "jet_sdmass": pa.array([1.0, 2.0, 3.0, 4.0], pa.float32()),
    }
)

MINIMAL: dict[str, Any] = load_yaml(Path(__file__).with_name("minimal.yaml"))


def config(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (MINIMAL | changes).items() if value is not None}


def with_input(**changes: Any) -> dict[str, Any]:
    group = {"length": 4, "pad_mode": "constant", "vars": ["part_px"]} | changes
    return config(inputs={"pf_features": group})


def test_features_are_standardised_clipped_and_flat() -> None:
    features = load_data_config(MINIMAL).apply(TABLE, training=True)
    assert features.rows.tolist() == [0, 1, 2, 3]
    assert features.offsets.tolist() == [0, 2, 2, 5, 6]
    values = features.inputs["pf_features"].values
    assert values.dtype == np.float32
    assert values[0].tolist() == [0.5, 1.5, -0.5, 0.0, 0.5, 1.5]  # (px - 2) * 0.5, clipped to -1..1.5
    np.testing.assert_allclose(values[1], [0.3, 0.6, 1 / 30, 2 / 30, 0.1, 0.2], rtol=1e-6)
    assert values[2].tolist() == [1, 4, 4, 2, 1, 2]  # no center: neither scaled nor clipped


def test_padding_goes_to_the_longest_jet_of_the_micro_batch() -> None:
    features = load_data_config(MINIMAL).apply(TABLE, training=True)
    padded = features.pad("pf_mask", [3, 0])
    assert padded.shape == (2, 1, 2)
    assert padded.tolist() == [[[1, 0]], [[1, 1]]]
    assert features.pad("pf_features", np.array([2])).shape == (1, 3, 3)
    assert features.pad("pf_mask", [1, 0], length=3).tolist() == [[[0, 0, 0]], [[1, 1, 0]]]
    assert features.pad("pf_mask", [1]).shape == (1, 1, 1)  # a batch of empty jets still has one slot


def test_padding_shorter_than_a_jet_cuts_it() -> None:
    features = load_data_config(MINIMAL).apply(TABLE, training=True)
    assert features.pad("pf_features", [2], length=2)[0, 2].tolist() == [4, 2]


def test_wrap_repeats_the_jets_own_particles_and_leaves_empty_jets_zero() -> None:
    features = load_data_config(with_input(pad_mode="wrap")).apply(TABLE, training=True)
    assert features.pad("pf_features", [0, 1, 2, 3], length=4)[:, 0].tolist() == [
        [3, 6, 3, 6],
        [0, 0, 0, 0],
        [1, 2, 3, 1],
        [8, 8, 8, 8],
    ]


def test_a_pad_value_is_not_standardised() -> None:
    features = load_data_config(with_input(vars=[["part_px", 2, 1, -5, 5, -9]])).apply(TABLE, training=True)
    assert features.pad("pf_features", [0], length=4)[0, 0].tolist() == [1, 4, -9, -9]


def test_jets_are_cut_to_the_length_of_the_input_before_padding() -> None:
    features = load_data_config(with_input(length=2, pad_mode="wrap")).apply(TABLE, training=True)
    assert features.offsets.tolist() == [0, 2, 2, 4, 5]
    assert features.pad("pf_features", [2])[0, 0].tolist() == [1, 2]


def test_jet_quantities_without_length_have_no_particle_axis() -> None:
    data = load_data_config(config(inputs={"jet": {"length": None, "vars": ["jet_pt", ["jet_sdmass", 1, 2]]}}))
    features = data.apply(TABLE, training=True)
    assert features.pad("jet", [3, 0]).tolist() == [[40, 5], [10, 0]]


def test_an_unmeasured_center_stops_with_its_name() -> None:
    data = load_data_config(with_input(vars=["part_px"]) | {"preprocess": {"method": "auto"}})
    with pytest.raises(ConfigError, match="center: auto of part_px is not measured yet"):
        data.apply(TABLE, training=True)


def test_not_finite_values_of_jets_that_are_not_used_are_not_counted() -> None:
    ratio = {"part_ratio": "part_px / (part_px - 3)"}  # infinite in rows 0 and 2
    data = load_data_config(with_input(vars=["part_ratio"]) | {"new_variables": ratio, "selection": "jet_pt > 15"})
    assert data.apply(TABLE, training=True).nonfinite == {"part_ratio": 1}
    cut = load_data_config(with_input(vars=["part_ratio"], length=2) | {"new_variables": ratio, "selection": None})
    assert cut.apply(TABLE, training=True).nonfinite == {"part_ratio": 1}


def test_not_finite_values_are_counted_are_counted_and_replaced() -> None:
    data = load_data_config(
        with_input(vars=["part_ratio", ["part_log", 0, 1]])
        | {"new_variables": {"part_ratio": "part_px / (part_px - 3)", "part_log": "np.log(part_px - 3)"}}
    )
    features = data.apply(TABLE, training=True)
    assert features.nonfinite == {"part_ratio": 2, "part_log": 4}
    ratio, log = features.inputs["pf_features"].values
    assert ratio.tolist() == [0, 2, -0.5, -2, 0, np.float32(1.6)]  # 3/0
    assert log[[0, 2, 3, 4]].tolist() == [-5, 0, 0, -5]  # log(0) is clipped, the log of a negative number is 0
    assert load_data_config(MINIMAL).apply(TABLE, training=True).nonfinite == {}


def test_selection_gives_the_rows_of_the_table() -> None:
    features = load_data_config(config(selection="(jet_pt > 15) & (ak.num(part_px) > 0)")).apply(TABLE, training=True)
    assert features.rows.tolist() == [2, 3]
    assert features.offsets.tolist() == [0, 3, 4]
    assert features.labels.tolist() == [161, 187]
    assert features.inputs["pf_features"].values[2].tolist() == [4, 2, 1, 2]


def test_testing_uses_its_own_selection_if_there_is_one() -> None:
    data = load_data_config(config(test_time_selection="jet_pt < 15"))
    assert data.apply(TABLE, training=True).rows.tolist() == [0, 1, 2, 3]
    assert data.apply(TABLE, training=False).rows.tolist() == [0]


def test_observers_are_raw_and_carried_in_testing_only() -> None:
    data = load_data_config(config(selection="jet_pt > 15"))
    observers = data.apply(TABLE, training=False).observers
    assert observers["jet_pt"].tolist() == [20, 30, 40]
    assert observers["part_px"].tolist() == [[], [1, 2, 3], [8]]
    assert data.apply(TABLE, training=True).observers == {}


def test_monitor_variables_are_carried_in_training() -> None:
    data = load_data_config(config(observers=None, monitor_variables=["jet_pt"]))
    assert data.apply(TABLE, training=True).observers["jet_pt"].tolist() == [10, 20, 30, 40]


@pytest.mark.parametrize("table", [TABLE.slice(0, 0), TABLE])
def test_no_selected_jet_gives_empty_features(table: pa.Table) -> None:
    features = load_data_config(config(selection="jet_pt > 1e6")).apply(table, training=True)
    assert len(features) == 0
    assert features.offsets.tolist() == [0]
    assert features.inputs["pf_features"].values.shape == (3, 0)
    assert features.pad("pf_features", []).shape == (0, 3, 1)
    assert features.labels.tolist() == []


def test_chunks_and_slices_of_a_table_change_nothing() -> None:
    data = load_data_config(MINIMAL)
    whole = data.apply(TABLE, training=False)
    pieces = data.apply(pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1, 3)]), training=False)
    np.testing.assert_array_equal(whole.inputs["pf_features"].values, pieces.inputs["pf_features"].values)
    part = data.apply(TABLE.slice(2), training=False)
    np.testing.assert_array_equal(part.pad("pf_features", [0, 1], 4), whole.pad("pf_features", [2, 3], 4))


def test_features_can_be_taken_in_any_order() -> None:
    features = load_data_config(MINIMAL).apply(TABLE, training=False)
    taken = features.take([3, 0])
    assert taken.rows.tolist() == [3, 0]
    assert taken.labels.tolist() == [187, 0]
    assert taken.observers["part_px"].tolist() == [[8], [3, 6]]
    np.testing.assert_array_equal(taken.pad("pf_features", [0, 1], 4), features.pad("pf_features", [3, 0], 4))


def test_a_label_scheme_maps_classes_and_drops_jets() -> None:
    binary = config(labels={"scheme": "binary:X_bb vs QCD", "from": "jet_label"})
    features = load_data_config(binary).apply(TABLE, training=False)
    assert features.rows.tolist() == [0, 2, 3]
    assert features.labels.tolist() == [0, 1, 1]
    assert load_data_config(binary).classes == ("X_bb", "QCD")


def test_jet_label_alone_means_the_188_classes_and_a_caller_can_ask_for_another_scheme() -> None:
    assert load_data_config(MINIMAL).classes == CLASSES
    data = load_data_config(MINIMAL, scheme="sophon42")
    assert (data.num_classes, data.apply(TABLE, training=True).labels.tolist()) == (42, [0, 1, 15, 41])
    assert data.hash != load_data_config(MINIMAL).hash


def test_class_numbers_outside_the_188_name_the_rows() -> None:
    for label in (pa.array([0, 188, -1, 0], pa.int32()), pa.array([0, np.nan, -1, 0], pa.float32())):
        with pytest.raises(InputError, match=r"class numbers outside 0…187 in 2 jets \(rows 1, 2\)"):
            load_data_config(MINIMAL).apply(TABLE.set_column(4, "jet_label", label), training=True)


def simple(*value: str) -> dict[str, Any]:
    new = MINIMAL["new_variables"] | {"light": "jet_label == 187"}
    return config(labels={"type": "simple", "value": list(value)}, new_variables=new)


def test_simple_labels_are_the_position_of_the_one_true_column() -> None:
    data = load_data_config(simple("jet_label == 0", "light", "(jet_label > 0) & (jet_label < 187)"))
    assert data.apply(TABLE, training=True).labels.tolist() == [0, 2, 2, 1]
    assert data.classes[:2] == ("jet_label == 0", "light")


def test_in_training_a_jet_must_belong_to_exactly_one_class() -> None:
    data = load_data_config(simple("jet_label > 0", "light"))
    message = r"no class for 1 jet \(rows 0\) and several classes for 1 jet \(rows 3\); wanted exactly one of"
    with pytest.raises(InputError, match=message):
        data.apply(TABLE, training=True)
    assert data.apply(TABLE, training=False).labels.tolist() == [-1, 0, 0, -1]


def test_custom_labels_are_targets_of_a_regression() -> None:
    data = load_data_config(config(labels={"type": "custom", "value": {"mass": "np.log(jet_sdmass)", "pt": "jet_pt"}}))
    features = data.apply(TABLE, training=True)
    np.testing.assert_allclose(features.targets["mass"], np.log([1, 2, 3, 4]), rtol=1e-6)
    assert list(features.targets) == ["mass", "pt"]
    assert features.labels.tolist() == [-1] * 4
    assert data.num_classes == 0


def test_new_variables_may_build_on_each_other_in_any_order() -> None:
    new = {"b": "a + 1", "c": "b * a", "a": "jet_pt / 10", "jet_pt": "jet_pt"}
    features = load_data_config(config(new_variables=new, observers=["c"], inputs=PLAIN)).apply(TABLE, training=False)
    assert features.observers["c"].tolist() == [2, 6, 12, 20]


def test_a_constant_new_variable_has_one_value_per_jet() -> None:
    data = load_data_config(config(new_variables={"one": 1}, observers=["one"], inputs=PLAIN))
    assert data.apply(TABLE, training=False).observers["one"].tolist() == [1, 1, 1, 1]


PLAIN: dict[str, Any] = {"pf_features": {"length": 4, "vars": ["part_px"]}}


def test_without_known_columns_the_data_decide_what_exists() -> None:
    data = load_data_config(config(observers=["jet_ptt"]), known=None)
    with pytest.raises(InputError, match="the data have no column 'jet_ptt'; nearest: jet_pt"):
        data.apply(TABLE, training=False)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (["part_px", "jet_pt"], r"inputs.pf_features: jet_pt has one value per jet; .* jet_pt \* ak.ones_like"),
        (["part_px", "genpart_pid"], "genpart_pid and part_px have different numbers of particles"),
    ],
)
def test_variables_of_one_input_must_have_the_same_particles(variables: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_data_config(with_input(vars=variables)).apply(TABLE, training=True)


def test_a_selection_per_particle_is_refused() -> None:
    with pytest.raises(FormulaError, match="selection: formula 'part_px > 1': gives one value per particle"):
        load_data_config(config(selection="part_px > 1")).apply(TABLE, training=True)


@pytest.mark.parametrize("selection", ["np.stack([jet_pt, jet_sdmass], axis=1) > 1", "first_two(jet_pt) > 0"])
def test_a_formula_of_another_shape_is_refused(selection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(functions.FUNCTIONS, "first_two", functions.Function(lambda x: x[:2]))
    with pytest.raises(FormulaError, match=r"gives values of shape \(.*\), wanted one for each of 4 jets"):
        load_data_config(config(selection=selection)).apply(TABLE, training=True)


def test_all_inputs_padded_at_once_are_those_padded_one_by_one() -> None:
    features = load_data_config(OURS).apply(real_like(), training=True)
    together = features.pad_all([2, 0])
    assert list(together) == ["pf_points", "pf_features", "pf_vectors", "pf_mask"]
    for name, padded in together.items():
        np.testing.assert_array_equal(padded, features.pad(name, [2, 0]))
    assert features.pad_all([1], length=5)["pf_mask"].tolist() == [[[1, 1, 0, 0, 0]]]


def real_like() -> pa.Table:
    """Three jets of 3, 2 and 1 particles with all columns that our YAML needs, in their right types."""
    lists = [[1, 2, 3], [1, 2], [1]]
    values = {"jet_pt": 500, "jet_energy": 600, "jet_sdmass": 80, "jet_label": 5}
    fields = [arrow_schema().field(name) for name in load_data_config(OURS).columns]
    arrays = [pa.array(lists if pa.types.is_list(f.type) else [values.get(f.name, 1)] * 3) for f in fields]
    return pa.table({f.name: a.cast(f.type) for f, a in zip(fields, arrays, strict=True)})


# The layout of published files: three-space indentation, comments, empty sections.
