"""The jets of one unit in flat buffers: filled table by table, handed out in any order.

All columns of a list group have the same lengths in every jet (check.py has seen to that), so 46 jagged columns need
three arrays of offsets. The lists of a jet are moved as one string of bytes: a third of the time of moving their items.

A unit is in memory once: each column is one piece of memory from the start, as long as the first jets make likely
(memory that is reserved and not written to takes none), into which readers' columns are copied one by one; and jets
are drawn row group by row group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jetfoundry.data.layouts import Layout
from jetfoundry.data.reader import FlatColumn, jet_schema

__all__ = ["Draw", "MixedJets"]

_SPARE = 1.25  # reserved, of what the first jets make likely; longer lists later on cost one copy of their column


class MixedJets:
    """Jets with `jet_schema(layout=layout)`; `expected` of them in the end, or less.

    `memory` holds what earlier jets of this layout have left (`memory` of theirs): it is written over.
    """

    def __init__(self, layout: Layout, expected: int, memory: Sequence[npt.NDArray[Any]] = ()) -> None:
        self.layout, self.schema = layout, jet_schema(layout=layout)
        self._groups = [column.group for column in layout.columns]
        self._groups += [""] * (len(self.schema) - len(self._groups))  # one value per jet
        kinds = [f.type.value_type if g else f.type for f, g in zip(self.schema, self._groups, strict=True)]
        self.memory: list[npt.NDArray[Any]] = list(memory) or [np.empty(0, kind.to_pandas_dtype()) for kind in kinds]
        self._filled = [0] * len(kinds)
        self._lengths: dict[str, list[npt.NDArray[np.int32]]] = {group: [] for group in self._groups if group}
        self._offsets: dict[tuple[str, int], pa.Buffer] = {}  # in bytes, by group and size of an item
        self._expected = expected
        self._latest = 0  # number of the first jet that was added last

    def __len__(self) -> int:
        return self._filled[-1]

    def add(self, columns: Iterable[FlatColumn]) -> bool:
        """Copy the columns of some jets as a reader gives them, each before the next is decoded.

        False, and nothing is kept, if the lists of a group differ in length; nor if reading raises.
        """
        filled, lists = list(self._filled), dict[str, npt.NDArray[Any]]()
        for i, (group, (offsets, values)) in enumerate(zip(self._groups, columns, strict=True)):
            if offsets is not None and lists.setdefault(group, offsets) is not offsets:
                return False
            filled[i] = self._put(i, values, len(self) + (len(values) if offsets is None else len(offsets) - 1))
        for group, offsets in lists.items():
            self._lengths[group].append(np.diff(offsets).astype(np.int32))
        self._latest = len(self)
        self._filled = filled
        self._offsets.clear()
        return True

    def append(self, table: pa.Table) -> None:
        """Copy the jets of a table of this schema whose lists agree."""
        for batch in table.to_batches():
            lists = {
                group: array.offsets.to_numpy()
                for group, array in zip(self._groups, batch.columns, strict=True)
                if group
            }
            self.add(
                (lists.get(group), (array.flatten() if group else array).to_numpy(zero_copy_only=False))
                for group, array in zip(self._groups, batch.columns, strict=True)
            )

    def _put(self, i: int, items: npt.NDArray[Any], jets: int) -> int:
        """Copy the items of column `i` to its end, for `jets` in all; returns where they end."""
        begin, end = self._filled[i], self._filled[i] + len(items)
        if end > len(self.memory[i]):
            room = int(_SPARE * end * self._expected / max(1, jets))
            longer = np.empty(max(end, room), self.memory[i].dtype)
            longer[:begin] = self.memory[i][:begin]
            self.memory[i] = longer
        self.memory[i][begin:end] = items
        return end

    def latest(self) -> pa.Table:
        """Numbers of the jets added last (no flags), without a copy."""
        lists = {group: np.concatenate([[0], np.cumsum(lengths[-1])]) for group, lengths in self._lengths.items()}
        offsets = {group: pa.array(ends, pa.int32()) for group, ends in lists.items()}
        arrays = {}
        for i, (field, group) in enumerate(zip(self.schema, self._groups, strict=True)):
            count = int(lists[group][-1]) if group else len(self) - self._latest
            values = self.memory[i][self._filled[i] - count : self._filled[i]]
            if values.dtype == np.bool_:
                continue
            array = pa.array(values)
            arrays[field.name] = pa.ListArray.from_arrays(offsets[group], array) if group else array
        return pa.table(arrays)

    def keep(self, good: npt.NDArray[np.bool_]) -> None:
        """Of the jets added last, keep those that are `good` (R,)."""
        for i, group in enumerate(self._groups):
            mask = np.repeat(good, self._lengths[group][-1]) if group else good
            begin = self._filled[i] - len(mask)
            items = self.memory[i][begin : self._filled[i]][mask]
            self.memory[i][begin : begin + len(items)] = items
            self._filled[i] = begin + len(items)
        for lengths in self._lengths.values():
            lengths[-1] = lengths[-1][good]
        self._offsets.clear()

    def column(self, name: str) -> npt.NDArray[Any]:
        """Values of one column, over all jets."""
        i = self.schema.get_field_index(name)
        values: npt.NDArray[Any] = self.memory[i][: self._filled[i]]
        return values

    def take(self, rows: npt.NDArray[np.int64]) -> Iterator[FlatColumn]:
        """The columns of the jets `rows` (R,) in that order; those of one group share their offsets (R+1,)."""
        chosen = pa.array(rows)
        lists: dict[str, npt.NDArray[np.int32]] = {}
        for values, filled, group in zip(self.memory, self._filled, self._groups, strict=True):
            if not group:
                yield None, values[rows]
                continue
            ends, items = self._gather(values[:filled], group, chosen)
            if group not in lists:
                lists[group] = (ends // values.itemsize).astype(np.int32)
            yield lists[group], items

    def _gather(
        self, values: npt.NDArray[Any], group: str, rows: pa.Array
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """Offsets in bytes (R+1,) and items (M,) of the lists `rows`, one list after the other."""
        key = group, values.itemsize
        if key not in self._offsets:
            ends = np.cumsum(np.concatenate([[0], *self._lengths[group]]), dtype=np.int64)
            self._offsets[key] = pa.py_buffer(ends * values.itemsize)
        strings = pa.Array.from_buffers(
            pa.large_binary(), len(self), [None, self._offsets[key], pa.py_buffer(values.view(np.uint8))]
        )
        taken = pc.take(strings, rows, boundscheck=False)
        _, ends, data = taken.buffers()
        offsets = np.frombuffer(ends, np.int64, len(rows) + 1)
        items = np.frombuffer(data, values.dtype, offsets[-1] // values.itemsize) if data else values[:0]
        return offsets, items


@dataclasses.dataclass(frozen=True)
class Draw:
    """Some jets in a new order, drawn column by column when they are written."""

    jets: MixedJets
    rows: npt.NDArray[np.int64]

    @property
    def schema(self) -> pa.Schema:
        return self.jets.schema

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> npt.NDArray[Any]:
        """Values (R,) of a column with one value per jet."""
        return self.jets.column(name)[self.rows]

    def columns(self, start: int, stop: int) -> Iterator[FlatColumn]:
        """The jets `start <= number < stop` of the draw, column by column."""
        return self.jets.take(self.rows[start:stop])
