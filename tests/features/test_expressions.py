from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jetfoundry.errors import ConfigError, FormulaError, InputError
from jetfoundry.features import functions
from jetfoundry.features.expressions import check_names, compile_formula, evaluate, register
from jetfoundry.features.jagged import Jagged, from_arrow, segments, to_arrow


def jagged(*jets: list[Any], dtype: str = "float32") -> Jagged:
    return Jagged(np.array([x for jet in jets for x in jet], dtype), np.cumsum([0, *map(len, jets)]))


# Three jets; the second has no particles.
COLUMNS: dict[str, Any] = {
    "part_px": jagged([3, 6], [], [5]),
    "part_py": jagged([4, 8], [], [12]),
    "part_charge": jagged([1, -1], [], [0], dtype="int32"),
    "part_isMuon": jagged([True, False], [], [False], dtype="bool"),
    "genpart_pid": jagged([5], [21], [4], dtype="int32"),
    "jet_pt": np.array([10, 20, 40], np.float32),
    "jet_label": np.array([0, 1, 187], np.int32),
}


def value(text: str) -> Any:
    return evaluate(compile_formula(text, where="data.yaml: new_variables.x"), COLUMNS)


def test_a_particle_formula_gives_one_value_per_particle() -> None:
    assert value("np.hypot(part_px, part_py)").tolist() == [[5, 10], [], [13]]


def test_jet_values_are_repeated_for_the_particles_of_their_jet() -> None:
    assert value("part_px / jet_pt").tolist() == [[np.float32(0.3), np.float32(0.6)], [], [0.125]]


def test_a_jet_formula_stays_one_value_per_jet() -> None:
    result = value("500 / jet_pt")
    assert result.tolist() == [50, 25, 12.5]
    assert result.dtype == np.float32


@pytest.mark.parametrize("text", ["log(part_px)", "np.log(part_px)", "numpy.log(part_px)", "math.log(part_px)"])
def test_functions_are_found_with_or_without_their_module(text: str) -> None:
    np.testing.assert_array_equal(value(text).values, np.log(COLUMNS["part_px"].values))


def test_chained_comparisons_join_by_and() -> None:
    assert value("10 < jet_pt < 40").tolist() == [False, True, False]
    assert value("10 <= jet_pt <= 40 != jet_label").tolist() == [True, True, True]


def test_selections_combine_with_and_or_not() -> None:
    assert value("~(jet_pt > 15) | (jet_label == 187) & (jet_pt < 50)").tolist() == [True, False, True]


def test_a_constant_is_its_own_value() -> None:
    assert value("2 ** 10").tolist() == 1024
    assert value("True").tolist() is True


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ak.sum(part_px, axis=1)", [9, 0, 5]),
        ("ak.sum(part_isMuon, axis=1)", [1, 0, 0]),
        ("ak.prod(part_charge, axis=1)", [-1, 1, 0]),
        ("ak.any(part_isMuon, axis=1)", [True, False, False]),
        ("ak.all(part_px > 4, axis=-1)", [False, True, True]),
        ("ak.max(part_px, axis=1)", [6, np.nan, 5]),
        ("ak.min(part_charge, axis=1)", [-1, 0, 0]),
        ("ak.mean(part_px, axis=1)", [4.5, np.nan, 5]),
        ("ak.num(part_px)", [2, 0, 1]),
        ("ak.count(part_px, axis=1)", [2, 0, 1]),
        ("ak.count_nonzero(part_charge, 1)", [2, 0, 0]),
        ("ak.argmax(part_px, axis=1)", [1, -1, 0]),
        ("ak.argmin(part_px, axis=1)", [0, -1, 0]),
        ("np.argmax(np.stack([jet_label == 1, jet_label == 187], axis=1), axis=1)", [0, 0, 1]),
    ],
)
def test_reductions_give_one_value_per_jet_and_know_empty_jets(text: str, expected: list[float]) -> None:
    np.testing.assert_array_equal(value(text), expected)


def test_argmax_takes_the_first_of_equal_values() -> None:
    result = evaluate(compile_formula("ak.argmax(x, axis=1)"), {"x": jagged([1, 7, 7], [2, 2])})
    assert result.tolist() == [1, 0]


def test_where_takes_jet_and_particle_values_and_constants() -> None:
    assert value("np.where(part_isMuon, jet_pt, 0)").tolist() == [[10, 0], [], [0]]


def test_whole_numbers_beyond_64_bits_are_floats() -> None:
    assert evaluate(compile_formula("9**60 * 9**60"), {}) == pytest.approx(9.0**120)
    assert value("jet_pt * 10**30").tolist() == pytest.approx([1e31, 2e31, 4e31])


def test_evaluation_does_not_change_the_columns() -> None:
    before = COLUMNS["part_px"].values.copy()
    value("np.clip(-part_px * 2 + 1, 0, 1)")
    np.testing.assert_array_equal(COLUMNS["part_px"].values, before)


def test_division_by_zero_is_infinite_and_silent() -> None:
    assert value("jet_pt / 0").tolist() == [np.inf] * 3


def test_a_formula_knows_the_names_it_reads() -> None:
    formula = compile_formula("np.log(part_pt / jet_pt) * np.pi + ak.sum(part_e, axis=1)")
    assert formula.names == {"part_pt", "jet_pt", "part_e"}


def test_a_formula_travels_to_workers() -> None:
    copy = pickle.loads(pickle.dumps(compile_formula("jet_pt + 1", where="here")))  # noqa: S301 - our own bytes
    assert evaluate(copy, COLUMNS).tolist() == [11, 21, 41]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("np.log(part_pt", r"data.yaml: new_variables.x: formula 'np.log\(part_pt': cannot be read at character 7"),
        ("part_px +", "cannot be read"),
        ("", "cannot be read"),
        ("np.lgo(part_px)", r"unknown function 'np.lgo'; nearest: log"),
        ("np.hypotenuse(part_px, part_py)", "nearest: hypot"),
        ('__import__("os").system("true")', "is refused"),
        ('__import__("os")', "unknown function '__import__'"),
        ('open("secret")', "unknown function 'open'"),
        ("part_px.__class__", "'part_px.__class__' is not part of the formula language"),
        ("np.log.__globals__", "not part of the formula language"),
        ("np.random.rand(3)", "is refused"),
        ("().__class__.__base__", "not part of the formula language"),
        ("__builtins__", "do not start with an underscore"),
        ("[x for x in part_px]", "not part of the formula language"),
        ("(lambda: 1)()", "is refused"),
        ("(x := 1)", "not part of the formula language"),
        ("part_px[:, 0, 1]", "choose particles"),
        ("part_px[0:2]", "not part of the formula language"),
        ("len(part_px)", r"len is not offered: .* ak.num\(x\)"),
        ("_knn(part_px, part_py, 3)", "_knn is not offered"),
        ("_p4_from_pxpypze(part_px, part_px, part_px, part_px)", "write the components"),
        ("ak.flatten(part_px)", "forgets which jet"),
        ("ak.sum(part_px, axes=1)", "sum takes no keyword 'axes'"),
        ("part_px if part_isMuon else 0", "np.where"),
        ("(jet_pt > 1) and (jet_pt < 2)", "write & and |"),
        ("not part_isMuon", r"write ~\(…\)"),
        ("jet_pt in (1, 2)", "compare with =="),
        ("'text'", "not part of the formula language"),
        ("1j", "not part of the formula language"),
        ("np", "'np' stands alone"),
        ("np.log(part_px, part_py)", r"log takes 1 argument\(s\), got 2"),  # NumPy would write into part_py
        ("np.log(part_px, out=part_py)", "no keyword 'out'"),
        ("np.where(part_isMuon, 1)", r"where takes 3 argument\(s\), got 2"),
        ("9**9**9**9", "too large"),
        ("1 / 0", "division by zero"),
        ("-" * 5000 + "1", "cannot be read"),
        ("(" * 5000, "cannot be read"),
        ("1+" * 15_000 + "1", "at most 20000 are read"),
        ("1**" * 900 + "1", "a power of constants with 64 parts"),
        ("1 << 10**12", "too large"),
        ("to_numpy(1) << to_numpy(10**30)", "not supported|cannot"),
        ("np.float32", "gives values of type object, wanted numbers"),
    ],
)
def test_what_is_not_a_formula_is_refused_when_loaded(text: str, message: str) -> None:
    with pytest.raises(FormulaError, match=message):
        compile_formula(text, where="data.yaml: new_variables.x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("part_ptx * 2", "unknown name 'part_ptx'; nearest: part_px, part_py"),
        ("jet_pt > 200 & jet_pt < 500", "put brackets around each comparison"),
        ("ak.sum(part_px)", "give axis=1"),
        ("ak.sum(part_px, axis=0)", "give axis=1"),
        ("ak.sum(jet_pt, axis=1)", "one value per particle, got one with one per jet"),
        ("np.stack([jet_pt, part_px], axis=1)", "one value per jet"),
        ("-part_isMuon", "formula '-part_isMuon'"),
        ("part_px[0]", "wanted places or a condition"),
        ("part_px[jet_pt > 15]", "jets are chosen by `selection`"),
        ("jet_pt[part_px > 1]", "wanted a quantity with one value per particle"),
        ("ak.values_astype(part_px, 'text')", "no type 'text'"),
        ("ak.argsort(part_px, axis=0)", "give axis=1"),
        ("ak.values_astype(64, part_px)", "wanted a type of numbers like 'float32'"),
        ("ak.pad_none(part_px, 10**12)", "pad_none: wanted a whole number of particles, at most 10000"),
        ("np._pad(part_px, jet_pt)", "wanted a whole number of particles"),
        ("_repeat_pad(part_px, 0.5)", "_repeat_pad: wanted a whole number of particles"),
        (
            "ak.concatenate([" + "ak.pad_none(part_px, 6000)," * 2 + "], axis=1)",
            "more than 10000 particles in jet row 0",
        ),
    ],
)
def test_what_the_columns_cannot_do_is_an_error_that_shows_the_formula(text: str, message: str) -> None:
    with pytest.raises(FormulaError, match=message):
        value(text)


def test_lists_of_different_length_in_one_formula_name_the_jet() -> None:
    with pytest.raises(InputError, match=r"formula 'part_px \+ genpart_pid': .* 2 and 1 particles in jet row 0"):
        value("part_px + genpart_pid")


def test_names_are_checked_against_what_is_known() -> None:
    with pytest.raises(FormulaError, match="unknown name 'part_ptt'; nearest: part_pt"):
        check_names(compile_formula("part_ptt * jet_pt"), {"part_pt", "jet_pt", "part_eta"})


@pytest.fixture
def registered() -> Any:
    before = dict(functions.FUNCTIONS)
    yield register
    functions.FUNCTIONS.clear()
    functions.FUNCTIONS.update(before)


def test_a_registered_function_receives_columns_and_returns_one(registered: Callable[..., None]) -> None:
    def leading(x: Jagged) -> Any:
        return np.array([jet[0] if jet else -1 for jet in x.tolist()])

    registered("leading", leading)
    registered("leading", leading)
    assert value("leading(part_px) + 1").tolist() == [4, 0, 6]
    with pytest.raises(ConfigError, match="already have a function"):
        registered("leading", len)
    with pytest.raises(ConfigError, match="already have a function"):
        registered("log", len)
    with pytest.raises(ConfigError, match="not a name"):
        registered("os.system", len)


def test_arrow_lists_become_flat_buffers_without_a_copy() -> None:
    column = pa.array([[1.0, 2.0], [], [3.0]], pa.list_(pa.float32()))
    flat = from_arrow(column)
    assert isinstance(flat, Jagged)
    assert flat.tolist() == [[1, 2], [], [3]]
    assert flat.values.ctypes.data == column.values.buffers()[1].address


def test_a_slice_of_an_arrow_column_starts_at_offset_zero() -> None:
    column = pa.array([[True], [False, True], [], [True, True, False]])
    flat = from_arrow(column.slice(1))
    assert isinstance(flat, Jagged)
    assert flat.offsets.tolist() == [0, 2, 2, 5]
    assert flat.tolist() == [[False, True], [], [True, True, False]]
    assert from_arrow(pa.chunked_array([column.slice(3), column.slice(0, 1)])).tolist() == [[True, True, False], [True]]
    assert from_arrow(pa.array([False, True, True]).slice(1)).tolist() == [True, True]


@pytest.mark.parametrize("column", [[[1], None], [[1, None]], [1, None]])
def test_null_values_are_refused(column: list[Any]) -> None:
    with pytest.raises(InputError, match="part_px: 1 of"):
        from_arrow(pa.array(column), "part_px")


def test_columns_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(InputError, match=r"name: wanted numbers .* got Arrow type string"):
        from_arrow(pa.array(["a"]), "name")


def test_an_empty_column_is_a_column_without_jets() -> None:
    for kind in (pa.list_(pa.float32()), pa.list_(pa.bool_())):
        empty = from_arrow(pa.array([], kind))
        assert isinstance(empty, Jagged)
        assert (len(empty), empty.values.shape, empty.tolist()) == (0, (0,), [])


def test_jets_can_be_taken_in_any_order_and_cut() -> None:
    x = jagged([1, 2, 3], [], [4, 5])
    assert x[[2, 0, 2]].tolist() == [[4, 5], [1, 2, 3], [4, 5]]
    assert x[np.array([True, True, False])].tolist() == [[1, 2, 3], []]
    where, offsets = segments(x.offsets, np.array([2, 1, 0]), length=2)
    assert (x.values[where].tolist(), offsets.tolist()) == ([4, 5, 1, 2], [0, 2, 2, 4])


def test_numpy_cannot_take_a_jagged_column_for_an_array() -> None:
    with pytest.raises(TypeError, match=r"not an array; use its \.values"):
        np.log(jagged([1], [2, 3]))


def test_a_column_goes_back_to_arrow() -> None:
    x = jagged([1, 2], [], [3])
    assert to_arrow(x).to_pylist() == [[1, 2], [], [3]]
