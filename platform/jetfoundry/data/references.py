"""References between the objects of an event: TRefArrays decoded from their bytes, and the objects they mean.

ROOT gives every referenced object a number that is unique within its event (`fUniqueID`); a TRefArray holds the
numbers of its members. As stored, in bytes, big endian:

    0  length of what follows, with bit 30 set     17  number of members n
    4  version                                     21  lower bound
    6  TObject: version, unique ID, bits           25  which TProcessID
    16 length of the name: 0                       27  the n numbers, 4 each

The arrays of one event follow each other without an index, so their places are found rank by rank, for all events
at once. Only 24 bits of a number count: the others say which process wrote it, which changes when files are merged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["decode", "resolve"]

Array = npt.NDArray[Any]

_COUNT_BIT = 1 << 30
_MEMBERS, _NUMBERS = 17, 27
_NUMBER_BITS = 24


def decode(raw: Array, bounds: Array, counts: Array) -> tuple[Array, Array]:
    """The offsets (A + 1,) and numbers (R,) of the A TRefArrays of E events.

    `raw` (N,) uint8, of which `bounds` (E + 1,) are the events, and `counts` (E,) how many arrays each has.
    Raises ValueError or IndexError if the bytes are no TRefArrays.
    """
    first = np.cumsum(counts) - counts
    place = np.asarray(bounds[:-1], np.int64).copy()
    start = np.empty(counts.sum(), np.int64)
    for rank in range(int(counts.max(initial=0))):
        here = np.flatnonzero(counts > rank)
        start[first[here] + rank] = place[here]
        place[here] += 4 + (_uint32(raw, place[here]) & ~_COUNT_BIT)
    members = _uint32(raw, start + _MEMBERS)
    length = _uint32(raw, start)
    if not (np.array_equal(place, bounds[1:]) and np.array_equal(length, _COUNT_BIT | _NUMBERS - 4 + 4 * members)):
        msg = "the bytes are no TRefArrays without a name"
        raise ValueError(msg)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(members)])
    inner = np.arange(offsets[-1]) - np.repeat(offsets[:-1], members)
    return offsets, _uint32(raw, np.repeat(start + _NUMBERS, members) + 4 * inner)


def _uint32(raw: Array, at: Array) -> Array:
    numbers: Array = raw[at[:, None] + np.arange(4)].view(">u4")[:, 0].astype(np.int64)
    return numbers


def resolve(event: Array, number: Array, target_event: Array, target_number: Array) -> Array:
    """Position (R,) of the referenced object among the targets, -1 if it is not there or the reference is empty.

    `event`, `number` (R,) of the references; `target_event`, `target_number` (T,) of the objects.
    """
    if not len(target_number):
        return np.full(len(number), -1)
    key, target = (_key(e, n) for e, n in ((event, number), (target_event, target_number)))
    order = np.argsort(target, kind="stable")
    at = order[np.minimum(np.searchsorted(target, key, sorter=order), len(order) - 1)]
    return np.where((target[at] == key) & (number != 0), at, -1)


def _key(event: Array, number: Array) -> Array:
    key: Array = event.astype(np.int64) << _NUMBER_BITS | number.astype(np.int64) & (1 << _NUMBER_BITS) - 1
    return key
