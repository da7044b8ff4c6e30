"""The functions that formulas may call, on flat buffers.

Three kinds: *elementwise* (`np.log`, `np.where`, …: result per particle if any argument is, per jet otherwise; jet
values are repeated for the particles of their jet), *reductions* of one jet's particles to one value
(`ak.sum(x, axis=1)`, …), and Python functions added with `register`. Types follow NumPy 2 as in weaver-core 0.5.3:
a float32 column stays float32 with Python constants, `np.log` of an integer is float64, sums of integers are int64.

Reductions of a jet without particles: sum 0, prod 1, any False, all True, count 0, mean NaN; max and min are NaN
(0 for integers), argmax and argmin -1, where Awkward has None, which no tensor can hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry.data.jagged import Array, Jagged, same_offsets
from jetfoundry.errors import ConfigError, FormulaError, InputError

__all__ = ["FUNCTIONS", "Function", "elementwise", "register"]


def elementwise(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a NumPy function on flat values; jet values (B,) are repeated for the particles of their jet.

    Raises InputError if two arguments have different numbers of particles in a jet.
    """
    jagged = [argument for argument in arguments if isinstance(argument, Jagged)]
    if not jagged:
        return function(*arguments)
    first = jagged[0]
    for other in jagged[1:]:
        _check_lengths(first, other)
    flat = [
        argument.values
        if isinstance(argument, Jagged)
        else np.repeat(argument, first.counts)
        if np.ndim(argument)
        else argument
        for argument in arguments
    ]
    return Jagged(function(*flat), first.offsets)


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
        "maximum", "minimum", "fmod", "mod", "remainder",
        "isnan", "isfinite", "isinf", "nan_to_num", "logical_and", "logical_or", "logical_not", "logical_xor",
        "ones_like", "zeros_like",
    )
}  # fmt: skip


def _per_jet(x: Jagged, ufunc: np.ufunc, dtype: npt.DTypeLike, empty: Any) -> Array:
    """Reduce each jet's particles with `ufunc`, in `dtype`; jets without particles get `empty`."""
    result = np.full(len(x), empty, dtype=dtype)
    filled = x.counts > 0
    if filled.any():  # reduceat takes the start of each segment; empty ones in between add nothing
        result[filled] = ufunc.reduceat(x.values, x.offsets[:-1][filled], dtype=dtype)
    return result


def _sum_type(values: Array) -> np.dtype[Any]:
    return values.dtype if values.dtype.kind == "f" else np.dtype(np.int64)


def _truth(x: Jagged) -> Jagged:
    return Jagged(x.values != 0, x.offsets)


def _sum(x: Jagged) -> Array:
    # In float64 and rounded once: no worse than any order of float32 additions.
    dtype = _sum_type(x.values)
    return _per_jet(x, np.add, np.float64 if dtype.kind == "f" else np.int64, 0).astype(dtype, copy=False)


def _mean(x: Jagged) -> Array:
    return np.asarray(np.divide(_sum(x), x.counts))


def _extreme(x: Jagged, ufunc: np.ufunc) -> Array:
    empty = np.nan if x.values.dtype.kind == "f" else 0
    return _per_jet(x, ufunc, x.values.dtype, empty)


def _arg_extreme(x: Jagged, ufunc: np.ufunc) -> Array:
    best = np.repeat(_extreme(x, ufunc), x.counts)
    hits = np.flatnonzero(x.values == best)
    jets = np.repeat(np.arange(len(x)), x.counts)[hits]
    result = np.full(len(x), -1, np.int64)
    found, first = np.unique(jets, return_index=True)
    result[found] = hits[first] - x.offsets[found]
    return result


_REDUCTIONS: dict[str, Callable[[Jagged], Array]] = {
    "sum": _sum,
    "prod": lambda x: _per_jet(x, np.multiply, _sum_type(x.values), 1),
    "any": lambda x: _per_jet(_truth(x), np.logical_or, np.bool_, False),
    "all": lambda x: _per_jet(_truth(x), np.logical_and, np.bool_, True),
    "max": lambda x: _extreme(x, np.maximum),
    "min": lambda x: _extreme(x, np.minimum),
    "mean": _mean,
    "count": lambda x: x.counts,
    "num": lambda x: x.counts,
    "count_nonzero": lambda x: _sum(_truth(x)),
    "argmax": lambda x: _arg_extreme(x, np.maximum),
    "argmin": lambda x: _arg_extreme(x, np.minimum),
}
"""Functions that take one quantity per particle and an axis, which must be 1: over the particles of each jet."""


def _reduction(name: str) -> Callable[..., Array]:
    def call(x: Any, axis: Any = 1 if name == "num" else None) -> Array:
        if axis not in (1, -1) or isinstance(axis, bool):
            msg = f"{name}: give axis=1 (over the particles of each jet); a result over several jets would depend on"
            raise FormulaError(msg + " how they are grouped")
        if isinstance(x, np.ndarray) and x.ndim == 2 and hasattr(np, name):  # np.stack of jet quantities, (B, K)
            return np.asarray(getattr(np, name)(x, axis=1))
        if not isinstance(x, Jagged):
            msg = f"{name}: wanted a quantity with one value per particle, got one with one per jet"
            raise FormulaError(msg)
        return _REDUCTIONS[name](x)

    return call


def _stack(parts: Any, axis: Any = 0) -> Array:
    if axis != 1 or not isinstance(parts, list) or not all(getattr(part, "ndim", 0) == 1 for part in parts):
        msg = "stack: wanted np.stack([a, b, …], axis=1) of quantities with one value per jet"
        raise FormulaError(msg)
    return np.stack(parts, axis=1)


@dataclasses.dataclass(frozen=True)
class Function:
    """What a name in a formula calls. `most` is None for a registered function: Python checks its arguments."""

    call: Callable[..., Any]
    least: int = 0
    most: int | None = None
    takes_axis: bool = False


def _elementwise(function: Callable[..., Any], arguments: int) -> Function:
    # A fixed number of arguments matters: NumPy takes one more as the place to write to.
    return Function(lambda *values: elementwise(function, *values), arguments, arguments)


FUNCTIONS: dict[str, Function] = {
    **{name: _elementwise(function, getattr(function, "nin", 1)) for name, function in _NUMPY.items()},
    "clip": _elementwise(np.clip, 3),
    "_clip": _elementwise(np.clip, 3),  # weaver's own name, reachable from its formulas
    "where": _elementwise(_where, 3),
    "to_numpy": Function(lambda x: x, 1, 1),  # weaver's label formulas wrap jet quantities in it
    **{name: Function(_reduction(name), 1, 2, takes_axis=True) for name in _REDUCTIONS},
    "stack": Function(_stack, 1, 2, takes_axis=True),
}
"""Every name that a formula may call, with or without `np.`, `ak.` or `math.` in front."""


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
