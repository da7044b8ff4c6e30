"""Formula functions that reduce the particles of a jet to one value: `ak.sum(x, axis=1)`, `ak.max`, `ak.any`, …

Sums of integers are int64; of float32 they are float32, added one by one as Awkward does. Of a jet without particles:
sum 0, prod 1, any False, all True, count 0, mean NaN; max, min, argmax and argmin are missing, as Awkward's None
(`list_functions.py`), and NaN, 0 and -1 where nobody fills them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry.errors import FormulaError
from jetfoundry.features.jagged import Array, Jagged, after
from jetfoundry.features.list_functions import as_lists, missing

__all__ = ["REDUCTIONS", "reduction"]


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
    if x.values.dtype.kind != "f":
        return _per_jet(x, np.add, np.int64, 0)
    total = np.zeros(len(x), x.values.dtype)
    np.add.at(total, np.repeat(np.arange(len(x)), x.counts), x.values)  # one by one in this type, as Awkward does
    return total


def _mean(x: Jagged) -> Array:
    return np.asarray(np.divide(_per_jet(x, np.add, np.float64, 0), x.counts))


def _variance(x: Jagged) -> Array:
    values = x.values.astype(np.float64)
    mean = np.repeat(_mean(Jagged(values, x.offsets)), x.counts)
    return _mean(Jagged((values - mean) ** 2, x.offsets))


def _extreme(x: Jagged, ufunc: np.ufunc) -> Array:
    empty = np.nan if x.values.dtype.kind == "f" else 0
    return missing(_per_jet(x, ufunc, x.values.dtype, empty), x.counts == 0)


def _arg_extreme(x: Jagged, ufunc: np.ufunc) -> Array:
    best = np.repeat(np.ma.getdata(_extreme(x, ufunc)), x.counts)
    hits = np.flatnonzero(x.values == best)
    jets = np.repeat(np.arange(len(x)), x.counts)[hits]
    result = np.full(len(x), -1, np.int64)
    found, first = np.unique(jets, return_index=True)
    result[found] = hits[first] - x.offsets[found]
    return missing(result, x.counts == 0)


def _present(x: Jagged, name: str) -> Jagged:
    """`x` without its missing values, which Awkward's reductions leave out."""
    if not isinstance(x.values, np.ma.MaskedArray):
        return x
    if name.startswith("arg"):
        msg = f"{name}: some values are missing; fill them with ak.fill_none"
        raise FormulaError(msg)
    there = ~np.ma.getmaskarray(x.values)
    counts = np.bincount(np.repeat(np.arange(len(x)), x.counts)[there], minlength=len(x))
    return Jagged(np.ma.getdata(x.values)[there], after(counts))


REDUCTIONS: dict[str, Callable[[Jagged], Array]] = {
    "sum": _sum,
    "prod": lambda x: _per_jet(x, np.multiply, _sum_type(x.values), 1),
    "any": lambda x: _per_jet(_truth(x), np.logical_or, np.bool_, False),
    "all": lambda x: _per_jet(_truth(x), np.logical_and, np.bool_, True),
    "max": lambda x: _extreme(x, np.maximum),
    "min": lambda x: _extreme(x, np.minimum),
    "mean": _mean,
    "var": _variance,
    "std": lambda x: np.sqrt(_variance(x)),
    "ptp": lambda x: _extreme(x, np.maximum) - _extreme(x, np.minimum),
    "count": lambda x: x.counts,
    "num": lambda x: x.counts,
    "count_nonzero": lambda x: _sum(_truth(x)),
    "argmax": lambda x: _arg_extreme(x, np.maximum),
    "argmin": lambda x: _arg_extreme(x, np.minimum),
}
"""Functions that take one quantity per particle and an axis, which must be 1: over the particles of each jet."""


def reduction(name: str) -> Callable[..., Array | Jagged]:
    """The function `name` with its axis checked; `keepdims=True` gives lists of one value."""

    def call(x: Any, axis: Any = 1 if name == "num" else None, keepdims: Any = False) -> Array | Jagged:
        if axis not in (1, -1) or isinstance(axis, bool):
            msg = f"{name}: give axis=1 (over the particles of each jet); a result over several jets would depend on"
            raise FormulaError(msg + " how they are grouped")
        if isinstance(x, np.ndarray) and x.ndim == 2 and hasattr(np, name):  # np.stack of jet quantities, (B, K)
            return np.asarray(getattr(np, name)(x, axis=1))
        if name != "num":
            x = _present(as_lists(x, name), name)
        values = REDUCTIONS[name](as_lists(x, name))
        return Jagged(values, np.arange(len(values) + 1)) if keepdims else values

    return call
