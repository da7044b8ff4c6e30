"""Which entries of which files make which unit, so that every unit is a fair share of all inputs and little is read
twice.

A *line* is all files that belong together, one after the other: those of one group, folder and name up to its number
(Res2P_0001.root, Res2P_0002.root, …). Each unit is owed n / units of a line's n entries, its quota.
1. A line is cut into blocks at its clusters: one cluster, several if they are small, parts of one that is larger than a
   sixth of a unit (ROOT's clusters of 30 MB, some 8,000 jets, stay whole); but not less than a quarter of a cluster.
2. Block by block goes to the unit that has got least of the line so far, drawn among equals. So any `units`
   neighbouring blocks go to different units, in an order that follows no pattern of the line.
3. A block that would exceed the quota of that unit is laid aside. What was laid aside, less than one block a unit, is
   cut such that every unit gets what it is still owed. Clusters are cut here, and in 1 where they are large; only these
   are decoded more than once.
4. Lines that owe a unit less than a quarter of a cluster are joined to one, in their order. If that one still does, its
   quarters of clusters are spread over the units.

Bounds: of a line (of all joined ones together) each unit holds its quota, to less than one entry; of any stretch of a
line, a file say, its share to less than two blocks if they are equal; all units have the same size, to less than one
entry per line. A cluster of C entries is decoded 1 + C / quota times on average (by several units, never twice by one;
1.0-1.2 for 100 files of one cluster of 2,000-3,000 jets or 12 files of 20 clusters of 1,000, 1.1-1.4 for clusters of
5,000), 4 + C / quota if it is larger than a sixth of a unit. Only quarters that are spread (the last case of 4) may be
one more in one unit than in another.

What this does not give: a unit comes from some six places at least, so it is a fair draw of what lies mixed within each
line. If the files of one line, or of lines that had to be joined, hold one class each in large clusters, a unit of six
clusters holds six classes. Three things help, each at its price:
- names that say it, one a class, up to its number: then each class is a line, and exact, as long as a unit is owed a
  quarter of a cluster of it;
- `jets_per_task`: with as many jets as there are, in one unit, shards are exactly fair; memory grows with it;
- `chunk`: blocks of 20 jets of each file go to all units in turn (200 do if each file is a line of its own): every
  unit decodes all clusters, `units` times in all, and the classes of a shard pass the χ² test again.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from jetfoundry.data.inventory import Source

__all__ = ["Range", "deal"]

_DECODINGS = 4  # times a cluster may be decoded so that more units get a share of it
_MIN_PIECE = 100  # entries; below, opening the file costs more than reading it
_MIN_BLOCK = 1000  # entries; smaller clusters are read several at a time
_PLACES = 6  # blocks in a unit, at least: neighbours in a file may be alike


@dataclasses.dataclass(frozen=True)
class Range:
    """Entries `start <= entry < stop` of file number `file`."""

    file: int
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.file}:{self.start}-{self.stop}"


@dataclasses.dataclass(frozen=True, eq=False)
class _Line:
    """Files (numbers), their first positions in the line and its end, and the positions of all cluster edges."""

    files: tuple[int, ...]
    starts: npt.NDArray[np.int64]
    edges: npt.NDArray[np.int64]

    @property
    def entries(self) -> int:
        return int(self.starts[-1])

    @property
    def cluster(self) -> float:
        return self.entries / (len(self.edges) - 1)

    def ranges(self, start: int, stop: int) -> list[Range]:
        """The stretch `start <= position < stop`, file by file."""
        found = []
        first = int(np.searchsorted(self.starts, start, "right")) - 1
        last = int(np.searchsorted(self.starts, stop, "left"))
        for i in range(first, last):
            origin = int(self.starts[i])
            found.append(Range(self.files[i], max(start, origin) - origin, min(stop, int(self.starts[i + 1])) - origin))
        return found


def deal(
    sources: Sequence[Source], units: int, *, per_unit: int, chunk: int = 0, seed: int = 0
) -> list[tuple[Range, ...]]:
    """Deal all entries of `sources` to `units` units of about `per_unit` entries by the rule in this file's head.

    `chunk` is the length of blocks to aim at, 0 = as said there; `seed` decides the draws. Ranges are sorted by file.
    """
    random = np.random.default_rng([seed, units])
    dealt: list[list[Range]] = [[] for _ in range(units)]
    for line in _lines(sources, units, chunk):
        least = _least(line, chunk)
        blocks = _blocks(line, chunk or max(_MIN_BLOCK, least), chunk or max(per_unit / _PLACES, least))
        if line.entries / units < least:
            pieces = max(1, int(line.entries // least))
            to = random.permutation(units)[((np.arange(pieces) + random.random()) * units / pieces).astype(int)]
            parts = [(j * line.entries // pieces, (j + 1) * line.entries // pieces, u) for j, u in enumerate(to)]
        else:
            parts = _in_quotas(blocks, line.entries, units, random)
        for start, stop, unit in parts:
            dealt[unit] += line.ranges(start, stop)
    return [tuple(sorted(part, key=lambda r: (r.file, r.start))) for part in dealt if part]


def _lines(sources: Sequence[Source], units: int, chunk: int) -> list[_Line]:
    """The lines; those that are too short are joined to the last one."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for index, source in enumerate(sources):
        path = PurePosixPath(source.path)
        kind = re.sub(r"[\W_]*\d+$", "", path.stem)
        found.setdefault((source.group, str(path.parent), kind), []).append(index)
    lines = [_line(sources, members) for members in found.values()]
    short = [line for line in lines if line.entries / units < _least(line, chunk)]
    whole = [line for line in lines if line not in short]
    return [*whole, _line(sources, [file for line in short for file in line.files])] if short else whole


def _line(sources: Sequence[Source], members: Sequence[int]) -> _Line:
    starts = np.cumsum([0, *(sources[file].entries for file in members)], dtype=np.int64)
    clusters = [np.asarray(sources[file].clusters, np.int64) for file in members]
    edges = np.concatenate([own[:-1] + start for own, start in zip(clusters, starts, strict=False)])
    return _Line(tuple(members), starts, np.append(edges, starts[-1]))


def _least(line: _Line, chunk: int) -> float:
    return min(chunk or math.inf, max(_MIN_PIECE, line.cluster / _DECODINGS))


def _blocks(line: _Line, aim: float, largest: float) -> npt.NDArray[np.int64]:
    """Edges of the blocks: neighbouring clusters up to about `aim` entries, larger ones cut below `largest`."""
    sizes = np.diff(line.edges)
    parts = np.maximum(np.ceil(sizes / largest), 1).astype(np.int64)
    within = np.concatenate([np.arange(p) / p for p in parts])
    fine = np.repeat(line.edges[:-1], parts) + (within * np.repeat(sizes, parts)).astype(np.int64)
    _, first = np.unique(fine // max(1, int(aim)), return_index=True)
    return np.append(fine[first], line.entries)


def _in_quotas(
    blocks: npt.NDArray[np.int64], entries: int, units: int, random: np.random.Generator
) -> list[tuple[int, int, int]]:
    """Deal blocks, then what exceeds the quotas: parts (start, stop, unit) of the line."""
    order = random.permutation(units)
    owed = np.empty(units, np.int64)
    owed[order] = np.diff(np.arange(units + 1) * entries // units)
    quotas, parts, aside = owed.tolist(), [], []
    waiting = [(0, float(draw), unit) for unit, draw in enumerate(random.random(units))]
    heapq.heapify(waiting)
    for start, stop in zip(blocks[:-1].tolist(), blocks[1:].tolist(), strict=True):
        got, _, unit = waiting[0]
        if got + stop - start > quotas[unit]:
            aside.append((start, stop))
            continue
        heapq.heapreplace(waiting, (got + stop - start, float(random.random()), unit))
        parts.append((start, stop, unit))
    for got, _, unit in waiting:
        owed[unit] -= got
    ends = np.cumsum(owed[order])
    position = 0
    for start, stop in aside:  # their entries in a row; unit order[i] takes those up to ends[i]
        length = stop - start
        cuts = np.unique([position, *ends[(ends > position) & (ends < position + length)], position + length])
        to = order[np.searchsorted(ends, cuts[:-1], "right")]
        offset = start - position
        parts += zip((cuts[:-1] + offset).tolist(), (cuts[1:] + offset).tolist(), to.tolist(), strict=True)
        position += length
    return parts
