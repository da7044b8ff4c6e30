"""Formula functions that reorder, cut, join or fill up the lists of particles: Awkward's, on flat buffers.

    x[index]  x[mask]  x[:, 0]  x[:, :3]     particles of each jet by their place, by a condition, the first ones
    ak.argsort  ak.sort  ak.local_index      places in each jet
    ak.concatenate([x, y], axis=1)           two collections of a jet one after the other
    ak.firsts  ak.pad_none  ak.fill_none  ak.is_none      what Awkward answers with None

Missing values are masked arrays, and functions of them are masked where an argument is. A missing value that is not
filled and reaches an input is NaN (0 for integers): no tensor can hold None. Functions of weaver's `tools` that pad
(`_pad`, `_repeat_pad`) give lists of equal length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry.errors import FormulaError, InputError
from jetfoundry.features.jagged import Array, Jagged, after, same_offsets

__all__ = ["LIST_FUNCTIONS", "LONGEST_LIST", "as_lists", "missing", "part", "pick"]

LONGEST_LIST = 10_000
"""Particles of a jet that a formula may make or an input may ask for, at most: no slip shall fill the memory."""


def missing(values: Array, mask: Array) -> Array:
    """`values` with None where `mask`; what lies there counts if nobody fills it (NaN, 0)."""
    return np.ma.MaskedArray(values, mask) if np.any(mask) else values


def as_lists(x: Any, what: str) -> Jagged:
    """`x`, which must have one value per particle."""
    if not isinstance(x, Jagged):
        msg = f"{what}: wanted a quantity with one value per particle, got one with one per jet"
        raise FormulaError(msg)
    return x


def _axis(axis: Any, what: str, usual: Any = -1) -> None:
    axis = usual if axis is None else axis
    if axis not in (1, -1) or isinstance(axis, bool):
        msg = f"{what}: give axis=1 (over the particles of each jet); a result over several jets would depend on"
        raise FormulaError(msg + " how they are grouped")


def _jets(x: Jagged) -> npt.NDArray[np.int64]:
    """Jet number of each particle (N,)."""
    return np.repeat(np.arange(len(x)), x.counts)


def pick(x: Any, index: Any) -> Any:
    """`x[index]`: particles by their place in the jet (Jagged integers), or those that pass (Jagged booleans)."""
    x = as_lists(x, "[…]")
    if not isinstance(index, Jagged):
        msg = "[…]: wanted places or a condition with one value per particle; jets are chosen by `selection`"
        raise FormulaError(msg)
    if index.values.dtype.kind == "b":
        if not same_offsets(x, index):
            msg = "[…]: the condition has other numbers of particles than what it chooses from"
            raise InputError(msg)
        chosen = np.ma.filled(index.values, False)
        return Jagged(x.values[chosen], after(np.add.reduceat(np.append(chosen, 0), x.offsets)[:-1] * (x.counts > 0)))
    if index.values.dtype.kind not in "iu" or len(index) != len(x):
        msg = "[…]: wanted whole numbers or a condition for each jet"
        raise FormulaError(msg)
    jets = _jets(index)
    places = np.ma.filled(index.values, 0).astype(np.int64)
    places = np.where(places < 0, places + x.counts[jets], places)
    empty = np.ma.getmaskarray(index.values)
    outside = ((places < 0) | (places >= x.counts[jets])) & ~empty
    if outside.any():
        jet = int(jets[outside][0])
        msg = f"[…]: place {index.values[outside][0]} of the {x.counts[jet]} particles in jet row {jet}"
        raise InputError(msg)
    where = x.offsets[jets] + places
    if empty.any():
        where = np.minimum(where, max(len(x.values) - 1, 0))
    values = x.values[where] if len(x.values) else np.zeros(len(where), x.values.dtype)
    return Jagged(missing(values, empty), index.offsets)


def _nth(x: Any, place: int) -> Array:
    """`x[:, place]`, (B,). Raises InputError for a jet with fewer particles, as Awkward does."""
    x = as_lists(x, "[:, …]")
    short = np.flatnonzero(x.counts < (place + 1 if place >= 0 else -place))
    if len(short):
        msg = f"[:, {place}]: jet row {short[0]} has {x.counts[short[0]]} particles; ak.firsts and ak.pad_none fill up"
        raise InputError(msg)
    return np.asanyarray(x.values[(x.offsets[:-1] if place >= 0 else x.offsets[1:]) + place])


def part(x: Any, *ends: int | None) -> Jagged | Array:
    """`x[:, start:stop]` for two ends, `x[:, place]` for one."""
    if len(ends) == 1:
        return _nth(x, ends[0] or 0)
    start, stop = ends
    x = as_lists(x, "[:, …:…]")
    first, last = (_bound(end, x.counts, usual) for end, usual in ((start, np.zeros_like(x.counts)), (stop, x.counts)))
    counts = np.maximum(last - first, 0)
    new = after(counts)
    return Jagged(x.values[np.repeat(x.offsets[:-1] + first - new[:-1], counts) + np.arange(new[-1])], new)


def _bound(end: int | None, counts: Array, usual: Array) -> Array:
    return usual if end is None else np.clip(end if end >= 0 else counts + end, 0, counts)


def _local_index(x: Any, axis: Any = None) -> Jagged:
    _axis(axis, "local_index")
    x = as_lists(x, "local_index")
    return Jagged(np.arange(len(x.values)) - np.repeat(x.offsets[:-1], x.counts), x.offsets)


def _argsort(x: Any, axis: Any = None, ascending: Any = True, stable: Any = True) -> Jagged:
    _axis(axis, "argsort")
    x = as_lists(x, "argsort")
    keys = np.ma.getdata(x.values)
    keys = keys.astype(np.int8) if keys.dtype.kind == "b" else keys
    order = np.lexsort((keys if ascending else -keys, _jets(x)))
    return Jagged(order - np.repeat(x.offsets[:-1], x.counts), x.offsets)


def _sort(x: Any, axis: Any = None, ascending: Any = True, stable: Any = True) -> Jagged:
    return Jagged(pick(x, _argsort(x, axis, ascending, stable)).values, x.offsets)


def _firsts(x: Any, axis: Any = None) -> Array:
    _axis(axis, "firsts", 1)
    x = as_lists(x, "firsts")
    return _at(x.values, x.offsets[:-1], x.counts == 0)


def _at(values: Array, where: Array, empty: Array) -> Array:
    """values[where], None where `empty`."""
    if not empty.any():
        return np.asanyarray(values[where])
    padded = np.append(np.ma.getdata(values), np.zeros(1, values.dtype))
    found = padded[np.where(empty, len(values), where)]
    if found.dtype.kind == "f":
        found[empty] = np.nan
    hidden = np.append(np.ma.getmaskarray(values), True)[np.where(empty, len(values), where)]
    return missing(found, hidden)


def _length(target: Any, what: str) -> int:
    """`target`, the particles that each jet shall have."""
    if not isinstance(target, int) or isinstance(target, bool) or not 0 <= target <= LONGEST_LIST:
        msg = f"{what}: wanted a whole number of particles, at most {LONGEST_LIST}"
        raise FormulaError(msg)
    return target


def _pad_none(x: Any, target: Any, axis: Any = None, clip: Any = False) -> Jagged:
    _axis(axis, "pad_none", 1)
    x, target = as_lists(x, "pad_none"), _length(target, "pad_none")
    counts = np.full_like(x.counts, target) if clip else np.maximum(x.counts, target)
    new = after(counts)
    place = np.arange(new[-1]) - np.repeat(new[:-1], counts)
    jets = np.repeat(np.arange(len(x)), counts)
    return Jagged(_at(x.values, x.offsets[jets] + place, place >= x.counts[jets]), new)


def _fill_none(x: Any, value: Any, axis: Any = None) -> Any:
    values = x.values if isinstance(x, Jagged) else x
    if not isinstance(values, np.ma.MaskedArray):
        return x if isinstance(x, Jagged) else np.asanyarray(x)
    kind = np.result_type(values.dtype, np.asarray(value).dtype)
    filled = np.where(np.ma.getmaskarray(values), value, np.ma.getdata(values)).astype(kind)
    return Jagged(filled, x.offsets) if isinstance(x, Jagged) else filled


def _is_none(x: Any, axis: Any = None) -> Any:
    if isinstance(x, Jagged):
        return Jagged(np.ma.getmaskarray(x.values).copy(), x.offsets)
    return np.ma.getmaskarray(x).copy()


def _concatenate(parts: Any, axis: Any = 0) -> Jagged:
    _axis(axis, "concatenate", 0)
    lists = [as_lists(x, "concatenate") for x in parts]
    if len({len(x) for x in lists}) != 1:
        msg = f"concatenate: wanted lists of the same jets, got {len(lists)} parts with other numbers of jets"
        raise InputError(msg)
    new = after(np.sum([x.counts for x in lists], axis=0))
    if np.diff(new).max(initial=0) > LONGEST_LIST:  # variables of variables would double it again and again
        msg = f"concatenate: more than {LONGEST_LIST} particles in jet row {np.diff(new).argmax()}"
        raise FormulaError(msg)
    values = np.empty(new[-1], np.result_type(*(x.values.dtype for x in lists)))
    begin = new[:-1].copy()
    for x in lists:
        values[np.repeat(begin - x.offsets[:-1], x.counts) + np.arange(len(x.values))] = x.values
        begin += x.counts
    return Jagged(values, new)


def _singles(x: Any) -> Jagged:
    """A quantity of jets as lists of one value, as weaver pads it."""
    return x if isinstance(x, Jagged) else Jagged(np.asanyarray(x), np.arange(len(x) + 1))


def _pad(x: Any, maxlen: Any, value: Any = 0) -> Jagged:
    padded = _fill_none(_pad_none(_singles(x), maxlen, clip=True), value)
    return Jagged(padded.values.astype(np.float32), padded.offsets)


def _repeat_pad(x: Any, maxlen: Any) -> Jagged:
    x = _singles(x)
    slots = np.arange(_length(maxlen, "_repeat_pad"))
    places = x.offsets[:-1, None] + slots % np.maximum(x.counts, 1)[:, None]
    values = _at(x.values, places.ravel(), np.repeat(x.counts == 0, maxlen))
    return Jagged(np.ma.filled(values, 0).astype(np.float32), np.arange(len(x) + 1) * maxlen)


# Python's hash of a tuple of integers: xxHash's rounds on 64 bits (CPython, Objects/tupleobject.c).
_PRIME_1, _PRIME_2, _PRIME_5 = (np.uint64(n) for n in (11400714785074694791, 14029467366897019727, 2870177450012600261))
_MODULUS = (1 << 61) - 1  # of Python's hash of an integer


def _hash(*columns: Any) -> npt.NDArray[np.int64]:
    if not columns or any(isinstance(x, Jagged) or np.asarray(x).dtype.kind not in "iub" for x in columns):
        msg = "_hash: wanted whole numbers, one per jet"
        raise FormulaError(msg)
    state = np.full(len(columns[0]), _PRIME_5)
    for x in columns:
        number = np.asarray(x).astype(np.int64)
        lane = np.sign(number) * (np.abs(number) % _MODULUS)
        lane[lane == -1] = -2
        state = state + lane.astype(np.uint64) * _PRIME_2
        state = ((state << np.uint64(31)) | (state >> np.uint64(33))) * _PRIME_1
    state = state + (np.uint64(len(columns)) ^ (_PRIME_5 ^ np.uint64(3527539)))
    state[state == np.uint64(2**64 - 1)] = 1546275796
    return state.view(np.int64)


# name -> function, fewest and most arguments, keywords
LIST_FUNCTIONS: dict[str, tuple[Any, int, int, tuple[str, ...]]] = {
    "local_index": (_local_index, 1, 2, ("axis",)),
    "argsort": (_argsort, 1, 4, ("axis", "ascending", "stable")),
    "_batch_argsort": (_argsort, 1, 1, ()),
    "_batch_gather": (pick, 2, 2, ()),
    "sort": (_sort, 1, 4, ("axis", "ascending", "stable")),
    "firsts": (_firsts, 1, 2, ("axis",)),
    "pad_none": (_pad_none, 2, 4, ("axis", "clip")),
    "fill_none": (_fill_none, 2, 3, ("axis", "value")),
    "is_none": (_is_none, 1, 2, ("axis",)),
    "concatenate": (_concatenate, 1, 2, ("axis",)),
    "_concat": (_concatenate, 1, 2, ("axis",)),
    "_pad": (_pad, 2, 3, ("maxlen", "value")),
    "_repeat_pad": (_repeat_pad, 2, 2, ("maxlen",)),
    "_hash": (_hash, 1, 100, ()),
}
"""Functions of lists by name."""
