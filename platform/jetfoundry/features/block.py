"""The columns of one block of jets, read from Arrow and computed by formulas when they are first asked for.

Selected jets are taken column by column, and only of columns that something needs. Columns with the same list lengths
share one array of offsets, so comparing the lengths of two of them later costs nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jetfoundry.errors import InputError, nearest
from jetfoundry.features.data_config import Sections
from jetfoundry.features.expressions import Formula, evaluate
from jetfoundry.features.jagged import Array, Column, Jagged, JetColumns, from_arrow, segments

__all__ = ["Block", "Jets"]

Jets: TypeAlias = pa.Table | JetColumns
"""B stored jets."""


class Block:
    """B jets of a table, or the `rows` (B',) of it: columns by name, stored or computed."""

    def __init__(self, config: Sections, table: Jets, rows: npt.NDArray[np.int64] | None = None) -> None:
        self.config, self.table, self.rows = config, table, rows
        self.jets = table.num_rows if rows is None else len(rows)
        self.done: dict[str, Column] = {}
        self.layouts: list[tuple[Array, Array | None, Array]] = []  # stored offsets, values to take, their offsets

    @functools.cached_property
    def each_jet(self) -> npt.NDArray[np.int64]:
        """Offsets (B+1,) of lists with one value for each jet."""
        return np.arange(self.jets + 1)

    def compute(self, names: Iterable[str]) -> None:
        """Make `names`, and what they need, available in `done`."""
        for name in self.config.needed(names):
            if name in self.done:
                continue
            formula = self.config.formulas.get(name)
            self.done[name] = self._stored(name) if formula is None else self.value(formula)

    def column(self, name: str) -> Column:
        """A stored column or new variable; missing values are NaN or 0. InputError if the table lacks what it needs."""
        self.compute([name])
        return _filled(self.done[name])

    def value(self, formula: Formula) -> Column:
        """A formula's value for these jets; a constant is repeated for every jet."""
        self.compute(formula.names)
        value = evaluate(formula, self.done)
        if isinstance(value, np.ndarray) and value.ndim == 0:
            return np.full(self.jets, value)
        if len(value) != self.jets or (isinstance(value, np.ndarray) and value.ndim > 1):
            shape = value.shape if isinstance(value, np.ndarray) else (len(value),)
            formula.fail(f"gives values of shape {shape}, wanted one for each of {self.jets} jets or for each particle")
        return value

    def per_jet(self, formula: Formula) -> Array:
        """A formula's value (B,). Raises FormulaError if it gives one value per particle."""
        value = self.value(formula)
        if isinstance(value, Jagged):
            formula.fail("gives one value per particle, wanted one per jet; e.g. ak.any(…, axis=1)")
        return np.ma.getdata(value)

    def _stored(self, name: str) -> Column:
        if name not in self.table.column_names:
            msg = f"{self.config.where}: the data have no column {name!r}; {nearest(name, self.table.column_names)}"
            raise InputError(msg)
        stored = self.table[name]
        column = from_arrow(stored, name) if isinstance(stored, pa.ChunkedArray) else stored
        if not isinstance(column, Jagged):
            return column if self.rows is None else column[self.rows]
        where, offsets = self._layout(column)
        return Jagged(column.values if where is None else column.values[where], offsets)

    def _layout(self, column: Jagged) -> tuple[Array | None, Array]:
        """Where the selected jets' values lie, worked out once for all columns with the same list lengths."""
        for stored, where, offsets in self.layouts:
            if column.offsets is stored or np.array_equal(column.offsets, stored):
                return where, offsets
        where, offsets = (None, column.offsets) if self.rows is None else segments(column.offsets, self.rows)
        self.layouts.append((column.offsets, where, offsets))
        return where, offsets


def _filled(column: Column) -> Column:
    """`column` as a tensor can hold it: what nobody filled with ak.fill_none is what lies there, NaN or 0."""
    if isinstance(column, Jagged):
        masked = isinstance(column.values, np.ma.MaskedArray)
        return Jagged(np.ma.getdata(column.values), column.offsets) if masked else column
    return np.ma.getdata(column)
