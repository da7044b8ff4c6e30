"""Variables of a block into standardised stores: float32 clip((value - center) * scale, low, high) where weaver does.

Inputs with the same particles and the same padding rule share one store. It is filled piece by piece: variable by
variable into a buffer that fits into the cache, standardised there, then written particle by particle.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from jetfoundry.errors import ConfigError
from jetfoundry.features.block import Block
from jetfoundry.features.data_config import InputGroup, InputVariable
from jetfoundry.features.jagged import Array, Column, Jagged, same_offsets
from jetfoundry.features.padding import FlatInput, Store

__all__ = ["standardised"]

_PIECE = 8192  # particles; 24 variables of a piece take 800 kB
_COLUMNS = 8  # transposed at once: as many rows of `piece` as the processor reads ahead; half the time of all at once

_Key = tuple[int, int, str]  # offsets by identity, length, padding rule: what inputs of one store have in common


def standardised(
    block: Block, groups: Collection[InputGroup], rows: npt.NDArray[np.int64]
) -> tuple[dict[str, FlatInput], dict[str, int]]:
    """The inputs of the jets `rows` of a block, and how many of their values were not finite, by variable."""
    with np.errstate(all="ignore"):  # what becomes infinite or NaN is counted
        columns = {group.name: [block.column(name) for name in group.vars] for group in groups}
        offsets = {group.name: _offsets(block, group, columns[group.name]) for group in groups}
        stores: dict[_Key, list[InputGroup]] = {}
        for group in groups:
            key = (id(offsets[group.name]), group.length or 0, group.pad_mode)
            stores.setdefault(key, []).append(group)
        found: dict[str, FlatInput] = {}
        nonfinite: dict[tuple[str, str], int] = {}
        for together in stores.values():
            own = [column for group in together for column in columns[group.name]]
            store, bad = _store(own, together, offsets[together[0].name], rows)
            names = [(group.name, variable.name) for group in together for variable in group.variables]
            nonfinite |= {name: int(count) for name, count in zip(names, bad, strict=True) if count}
            ends = itertools.accumulate(len(group.variables) for group in together)
            for group, end in zip(together, ends, strict=True):
                found[group.name] = FlatInput(store, slice(end - len(group.variables), end), group)
    return {group.name: found[group.name] for group in groups}, {variable: n for (_, variable), n in nonfinite.items()}


def _offsets(block: Block, group: InputGroup, columns: list[Column]) -> npt.NDArray[np.int64]:
    """Offsets of the particles of an input; jet quantities count as one particle each."""
    jagged = [column for column in columns if isinstance(column, Jagged)]
    names = dict(zip(group.vars, columns, strict=True))
    if group.length is None or not jagged:
        if jagged and group.length is None:
            wrong = next(name for name, column in names.items() if isinstance(column, Jagged))
            msg = f"{block.config.where}: inputs.{group.name}: {wrong} has a value per particle; give a length"
            raise ConfigError(msg)
        return block.each_jet
    for name, column in names.items():
        if not isinstance(column, Jagged):
            reason = f"{name} has one value per jet; write it as {name} * ak.ones_like(<a particle variable>)"
        elif not same_offsets(column, jagged[0]):
            reason = f"{name} and {group.vars[0]} have different numbers of particles; put them into two inputs"
        else:
            continue
        msg = f"{block.config.where}: inputs.{group.name}: {reason}"
        raise ConfigError(msg)
    return jagged[0].offsets


def _store(
    columns: list[Column], groups: list[InputGroup], offsets: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> tuple[Store, npt.NDArray[np.int64]]:
    """One store, and the number of values (F,) of its jets that were not finite."""
    variables = [variable for group in groups for variable in group.variables]
    flat = [column.values if isinstance(column, Jagged) else column for column in columns]
    total = int(offsets[-1])
    particles = np.empty((total + 1, len(flat)), np.float32)
    bad: list[tuple[Array, Array]] = []  # (variables, particles) of a piece
    runs = _runs(variables)
    buffer = np.empty((len(flat), _PIECE), np.float32)
    for begin in range(0, total, _PIECE):
        end = min(begin + _PIECE, total)
        piece = buffer[:, : end - begin]
        for row, values in zip(piece, flat, strict=True):
            row[:] = values[begin:end]
        damaged = not np.isfinite(piece.sum())  # one number to look at; a sum may overflow, so look again then
        if damaged:
            which, where = np.nonzero(~np.isfinite(piece))
            bad.append((which, where + begin))
        for first, last, numbers in runs:
            _standardise(piece[first:last], numbers)
        if damaged:
            piece[~np.isfinite(piece)] = 0  # NaN, and what is infinite and not clipped
        for few in range(0, len(flat), _COLUMNS):
            particles[begin:end, few : few + _COLUMNS] = piece[few : few + _COLUMNS].T
    wrap = groups[0].pad_mode == "wrap"
    # weaver fills jets without particles with 0 where it wraps
    particles[-1] = 0 if wrap else [variable.pad for variable in variables]
    starts, counts = offsets[:-1][rows], np.diff(offsets)[rows]
    length = groups[0].length
    if length is not None and counts.max(initial=0) > length:
        counts = np.minimum(counts, length)
    return Store(particles, starts, counts, wrap), _count(bad, len(flat), starts, counts, total)


def _count(bad: list[tuple[Array, Array]], size: int, starts: Array, counts: Array, total: int) -> Array:
    """How many of these (variable, particle) pairs belong to the jets, by variable (F,)."""
    if not bad:
        return np.zeros(size, np.int64)
    inside = np.zeros(total + 1, np.int64)
    np.add.at(inside, starts, 1)
    np.add.at(inside, starts + counts, -1)
    used = np.cumsum(inside) > 0
    which, where = (np.concatenate(part) for part in zip(*bad, strict=True))
    return np.bincount(which[used[where]], minlength=size)


def _runs(variables: list[InputVariable]) -> list[tuple[int, int, Array]]:
    """Neighbouring variables that are standardised: first, last + 1, and (4, n, 1) center, scale, low, high."""
    runs = []
    for scaled, run in itertools.groupby(enumerate(variables), lambda item: item[1].center is not None):
        members = list(run)
        if scaled:
            numbers = [(v.center, v.scale, v.low, v.high) for _, v in members]
            runs.append((members[0][0], members[-1][0] + 1, np.asarray(numbers, np.float32).T[:, :, None]))
    return runs


def _standardise(values: npt.NDArray[np.float32], numbers: Array) -> None:
    """In place, in float32 as weaver does."""
    center, scale, low, high = numbers
    values -= center
    values *= scale
    np.clip(values, low, high, out=values)
