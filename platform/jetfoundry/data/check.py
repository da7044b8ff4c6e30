"""Row checks: which jets of a table can be trained on, and what is wrong with the others.

One jet that fails is set aside with its reason; the rest of its file goes on. The checks, in the order in which
a jet's first fault is reported (each holds for all of the public JetClass-II example):
- `unequal_lengths`: all lists of one group (part, genpart, aux_genpart) have the same length within a jet;
- `no_constituents`: the jet has at least one reconstructed constituent;
- `wrong_count`: `jet_nparticles` is the number of stored constituents, or more if these were cut at 128 or above;
- `not_finite`: every float of part_*, jet_*, genpart_*, genjet_* is finite. The truth record (aux_*) is exempt:
  the pseudorapidity of a particle along the beam is infinite;
- `label_range`: `jet_label` is one of the classes (188, if the layout does not say other).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jetfoundry.data.layouts import JETCLASS2, Layout

__all__ = ["REASONS", "Fault", "check_jets"]

REASONS: tuple[str, ...] = ("unequal_lengths", "no_constituents", "wrong_count", "not_finite", "label_range")
"""Reasons for setting a jet aside, in the order of the checks."""

_SHORTEST_CUT = 128  # JetClass-II's networks use 128 constituents; shorter lists are never cut


@dataclasses.dataclass(frozen=True)
class Fault:
    """The first thing wrong with one jet: row of the table, reason, column, and the value as text."""

    row: int
    reason: str
    field: str
    value: str


def check_jets(table: pa.Table, layout: Layout = JETCLASS2) -> tuple[npt.NDArray[np.bool_], list[Fault]]:
    """Check the B jets of `table` (any subset of the layout's columns).

    Returns the mask (B,) of good jets and one Fault for each other jet, in row order.
    """
    faults: dict[int, Fault] = {}
    for reason, check in zip(REASONS, (_lengths, _constituents, _count, _finite, _label), strict=True):
        for rows, field, values in check(table, layout):
            for row, value in zip(rows.tolist(), values, strict=True):  # failing jets only
                faults.setdefault(row, Fault(row, reason, field, value))
    good = np.ones(table.num_rows, np.bool_)
    good[list(faults)] = False
    return good, [faults[row] for row in sorted(faults)]


Finding = tuple[npt.NDArray[np.int64], str, list[str]]
"""Failing rows, the column, and its value in each of these rows as text."""


def _list(table: pa.Table, name: str) -> pa.ListArray:
    array = table.column(name)
    return array.chunk(0) if array.num_chunks == 1 else array.combine_chunks()


def _lengths_of(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    lengths: npt.NDArray[np.int64] = np.diff(_list(table, name).offsets.to_numpy()).astype(np.int64)
    return lengths


def _jagged(table: pa.Table, layout: Layout, group: str) -> list[str]:
    present = set(table.column_names)
    return [column.name for column in layout.columns if column.group == group and column.name in present]


def _lengths(table: pa.Table, layout: Layout) -> Iterator[Finding]:
    for group in layout.groups:
        names = _jagged(table, layout, group)
        for name in names[1:]:
            if _place(table, name) == _place(table, names[0]):
                continue  # one buffer of offsets, see reader.py
            wanted, found = _lengths_of(table, names[0]), _lengths_of(table, name)
            bad = np.flatnonzero(wanted != found)
            pairs = zip(found[bad], wanted[bad], strict=True)
            yield bad, name, [f"{items} items, {names[0]} has {first}" for items, first in pairs]


def _place(table: pa.Table, name: str) -> tuple[int, int]:
    array = _list(table, name)
    return array.buffers()[1].address, array.offset


def _constituents(table: pa.Table, layout: Layout) -> Iterator[Finding]:
    for name in _jagged(table, layout, "part")[:1]:
        bad = np.flatnonzero(_lengths_of(table, name) == 0)
        yield bad, name, ["0 constituents"] * len(bad)


def _count(table: pa.Table, layout: Layout) -> Iterator[Finding]:
    names = _jagged(table, layout, "part")
    if names and "jet_nparticles" in table.column_names:
        stored, said = _lengths_of(table, names[0]), table.column("jet_nparticles").to_numpy()
        cut = (stored >= _SHORTEST_CUT) & (said > stored)
        bad = np.flatnonzero((said != stored) & ~cut)
        pairs = zip(said[bad], stored[bad], strict=True)
        yield bad, "jet_nparticles", [f"{count}, the lists have {items} items" for count, items in pairs]


def _finite(table: pa.Table, layout: Layout) -> Iterator[Finding]:
    for column in layout.columns:
        if column.kind != "float32" or column.name.startswith("aux_") or column.name not in table.column_names:
            continue
        if not column.jagged:
            values = table.column(column.name).to_numpy()
            bad = np.flatnonzero(~np.isfinite(values))
            yield bad, column.name, [str(value) for value in values[bad]]
            continue
        array = _list(table, column.name)
        offsets, values = array.offsets.to_numpy(), array.values.to_numpy()
        items = np.flatnonzero(~np.isfinite(values[offsets[0] : offsets[-1]])) + offsets[0]
        if items.size:
            bad, first = np.unique(np.searchsorted(offsets, items, "right") - 1, return_index=True)
            pairs = zip(values[items[first]], items[first] - offsets[bad], strict=True)
            yield bad, column.name, [f"{value} at item {position}" for value, position in pairs]


def _label(table: pa.Table, layout: Layout) -> Iterator[Finding]:
    if "jet_label" in table.column_names:
        label = table.column("jet_label").to_numpy()
        bad = np.flatnonzero((label < 0) | (label >= len(layout.classes)))
        yield bad, "jet_label", [f"{value}, wanted 0-{len(layout.classes) - 1}" for value in label[bad]]
