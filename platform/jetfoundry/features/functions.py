"""The functions that formulas may call, on flat buffers.

Four kinds: *elementwise* (`np.log`, `np.where`, …: result per particle if any argument is, per jet otherwise; jet
values are repeated for the particles of their jet), *reductions* of one jet's particles to one value
(`reductions.py`), functions of *lists* (`list_functions.py`), and Python functions added with `register`. Types follow
NumPy 2 as in weaver-core 0.5.3: a float32 column stays float32 with Python constants, `np.log` of an integer is
float64. What weaver's formulas could call and these may not is refused by name.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jetfoundry.errors import ConfigError, FormulaError, InputError
from jetfoundry.features.jagged import Array, Jagged, same_offsets
from jetfoundry.features.list_functions import LIST_FUNCTIONS, missing
from jetfoundry.features.reductions import REDUCTIONS, reduction

__all__ = ["FUNCTIONS", "REFUSED", "Function", "elementwise", "register"]


def elementwise(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a NumPy function on flat values; jet values (B,) are repeated for the particles of their jet.

    Raises InputError if two arguments have different numbers of particles in a jet.
    """
    jagged = [argument for argument in arguments if isinstance(argument, Jagged)]
    if not jagged:
        return _unmasked(function, arguments)
    first = jagged[0]
    for other in jagged[1:]:
        _check_lengths(first, other)
    counts = first.counts
    flat = [
        argument.values
        if isinstance(argument, Jagged)
        else np.repeat(argument, counts)
        if np.ndim(argument)
        else argument
        for argument in arguments
    ]
    return Jagged(_unmasked(function, flat), first.offsets)


def _unmasked(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """Call on plain arrays; the result is missing where an argument is."""
    masks = [np.ma.getmaskarray(argument) for argument in arguments if isinstance(argument, np.ma.MaskedArray)]
    if not masks:
        return function(*arguments)
    values = function(*(np.ma.getdata(a) if isinstance(a, np.ma.MaskedArray) else a for a in arguments))
    return missing(values, functools.reduce(np.logical_or, masks))


def _check_lengths(first: Jagged, other: Jagged) -> None:
    if same_offsets(first, other):
        return
    if len(first) != len(other):
        msg = f"columns of {len(first)} and {len(other)} jets"
        raise InputError(msg)
    jet = int(np.flatnonzero(first.counts != other.counts)[0])
    msg = f"lists of different length: {first.counts[jet]} and {other.counts[jet]} particles in jet row {jet}"
    raise InputError(msg)


def _where(condition: Array, if_true: Any, if_false: Any) -> Array:
    # Constants count with their full type here (Awkward's rule): where(mask, float32, 0.0) is float64.
    return np.where(condition, np.asarray(if_true), np.asarray(if_false))


_NUMPY: dict[str, Callable[..., Any]] = {
    name: getattr(np, name)
    for name in (
        "abs", "absolute", "fabs", "sign", "floor", "ceil", "trunc", "rint", "round",
        "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "cbrt", "square", "hypot", "power",
        "sin", "cos", "tan", "arcsin", "arccos", "arctan", "arctan2",
        "sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh",
        "maximum", "minimum", "fmax", "fmin", "fmod", "mod", "remainder", "floor_divide", "logaddexp", "heaviside",
        "add", "subtract", "multiply", "divide", "true_divide", "negative", "positive", "reciprocal", "copysign",
        "equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "deg2rad", "rad2deg", "radians",
        "degrees", "invert", "bitwise_and", "bitwise_or", "bitwise_xor", "left_shift", "right_shift", "signbit",
        "isnan", "isfinite", "isinf", "logical_and", "logical_or", "logical_not", "logical_xor",
        "ones_like", "zeros_like",
    )
}  # fmt: skip


def _stack(parts: Any, axis: Any = 0) -> Array:
    if axis != 1 or not isinstance(parts, list) or not all(getattr(part, "ndim", 0) == 1 for part in parts):
        msg = "stack: wanted np.stack([a, b, …], axis=1) of quantities with one value per jet"
        raise FormulaError(msg)
    return np.stack(parts, axis=1)


def _as_type(x: Any, to: Any) -> Any:
    try:
        kind = np.dtype(to) if isinstance(to, str | np.dtype) else np.dtype(object)
    except TypeError as error:
        msg = f"values_astype: no type {to!r}"
        raise FormulaError(msg) from error
    if kind.kind not in "biuf":
        msg = f"values_astype: wanted a type of numbers like 'float32', got {str(to)[:40]!r}"
        raise FormulaError(msg)
    return elementwise(lambda values: np.asarray(values).astype(kind), x)


def _full_like(x: Any, value: Any) -> Any:
    return elementwise(lambda values: np.full_like(values, value), x)


def _clip(x: Any, low: Any = None, high: Any = None, **bounds: Any) -> Any:
    for name, value in bounds.items():  # a_min and a_max of NumPy 1, min and max of NumPy 2
        low, high = (value, high) if name.endswith("min") else (low, value)
    low, high = -np.inf if low is None else low, np.inf if high is None else high
    return elementwise(np.clip, x, low, high)


def _nan_to_num(x: Any, nan: Any = 0.0, posinf: Any = None, neginf: Any = None) -> Any:
    return elementwise(lambda values: np.nan_to_num(values, nan=nan, posinf=posinf, neginf=neginf), x)


def _to_numpy(x: Any) -> Any:
    return x if isinstance(x, Jagged) else np.asanyarray(x)


@dataclasses.dataclass(frozen=True)
class Function:
    """What a name in a formula calls. `most` is None for a registered function: Python checks its arguments."""

    call: Callable[..., Any]
    least: int = 0
    most: int | None = None
    keywords: tuple[str, ...] = ()


def _elementwise(function: Callable[..., Any], arguments: int) -> Function:
    # A fixed number of arguments matters: NumPy takes one more as the place to write to.
    return Function(lambda *values: elementwise(function, *values), arguments, arguments)


FUNCTIONS: dict[str, Function] = {
    **{name: _elementwise(function, getattr(function, "nin", 1)) for name, function in _NUMPY.items()},
    "clip": Function(_clip, 2, 3, ("a_min", "a_max", "min", "max")),
    "_clip": Function(_clip, 3, 3, ("a_min", "a_max")),  # weaver's own name, reachable from its formulas
    "nan_to_num": Function(_nan_to_num, 1, 4, ("nan", "posinf", "neginf")),
    "where": _elementwise(_where, 3),
    "to_numpy": Function(_to_numpy, 1, 1),  # weaver's label formulas wrap jet quantities in it
    "full_like": Function(_full_like, 2, 2, ("fill_value",)),
    "values_astype": Function(_as_type, 2, 2, ("to",)),
    **{name: Function(reduction(name), 1, 3, ("axis", "keepdims")) for name in REDUCTIONS},
    "stack": Function(_stack, 1, 2, ("axis",)),
    "_stack": Function(functools.partial(_stack, axis=1), 1, 2, ("axis",)),
    **{name: Function(*entry) for name, entry in LIST_FUNCTIONS.items()},
}
"""Every name that a formula may call, with or without `np.`, `ak.` or `math.` in front."""

REFUSED: dict[str, str] = {
    "len": "the number of jets depends on how they are grouped; the particles of a jet are ak.num(x)",
    "flatten": "it forgets which jet a particle is of",
    "ravel": "it forgets which jet a particle is of",
    **dict.fromkeys(("_knn", "_batch_knn"), "neighbours are found by the network; weaver's fails with SciPy >= 1.9"),
    **dict.fromkeys(
        ("_batch_permute_indices", "_batch_permute_and_drop_indices"),
        "inputs that change at random would change from run to run",
    ),
    **dict.fromkeys(
        ("_p4_from_pxpypze", "_p4_from_ptetaphie", "_p4_from_ptetaphim"),
        "write the components that you need: np.hypot(px, py), np.arctan2(py, px), np.arcsinh(pz / pt)",
    ),
}
"""Functions of weaver's formulas that are not offered, and why."""


def register(name: str, function: Callable[..., Any]) -> None:
    """Let formulas call `function` by `name`.

    It receives Jagged (per particle), arrays (B,) (per jet) or constants, and returns Jagged or an array (B,).
    A name can be given only once; registering the same function again does nothing.
    """
    if not name.isidentifier():
        msg = f"cannot register {name!r}: not a name"
        raise ConfigError(msg)
    if FUNCTIONS.setdefault(name, Function(function)).call is not function:
        msg = f"cannot register {name!r}: formulas already have a function of that name"
        raise ConfigError(msg)
