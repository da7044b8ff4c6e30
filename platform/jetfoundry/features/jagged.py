"""Jagged columns as flat NumPy buffers: one array of values for all particles, one of offsets for the jets.

    jet 0      jet 1   jet 2
    [a, b, c], [],     [d]      ->   values (N,) = [a, b, c, d],  offsets (B+1,) = [0, 3, 3, 4]

A quantity with one value per jet is a plain array (B,). Columns come out of Arrow without a copy where Arrow
stores what NumPy can read (everything but bit-packed booleans). Null values are refused: the schema has none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jetfoundry.errors import InputError

__all__ = ["Array", "Column", "Jagged", "JetColumns", "after", "from_arrow", "same_offsets", "segments", "to_arrow"]

Array: TypeAlias = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Jagged:
    """One value per particle of B jets: `values` (N,) and `offsets` (B+1,) int64 with offsets[0] = 0."""

    values: Array
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of jets B."""
        return len(self.offsets) - 1

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Particles of each jet, (B,)."""
        return np.diff(self.offsets)

    def __getitem__(self, rows: Any) -> Jagged:
        """The jets `rows` (indices, slice or mask), as for an array (B,)."""
        where, offsets = segments(self.offsets, np.arange(len(self))[rows])
        return Jagged(self.values[where], offsets)

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: NumPy would take the jets one by one."""
        msg = "a quantity with one value per particle is not an array; use its .values and .offsets"
        raise TypeError(msg)

    def tolist(self) -> list[list[Any]]:
        """Nested Python lists: for messages and tests."""
        return [part.tolist() for part in np.split(self.values, self.offsets[1:-1])] if len(self) else []


Column: TypeAlias = "Jagged | Array"
"""One value per particle, or one per jet."""


@dataclasses.dataclass(frozen=True, eq=False)
class JetColumns:
    """Flat columns of `num_rows` jets by name, where a `pyarrow.Table` would be copied to get them."""

    num_rows: int
    columns: Mapping[str, Column]

    @property
    def column_names(self) -> list[str]:
        return list(self.columns)

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]


def from_arrow(column: pa.Array | pa.ChunkedArray, name: str = "column") -> Column:
    """Flat buffers of an Arrow column; lists become Jagged, scalars an array (B,).

    Raises InputError, with `name`, for null values and for types that are neither numbers nor lists of them.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return _flat(column, name)
    if column.null_count:
        msg = f"{name}: {column.null_count} of {len(column)} jets have a null list; an empty list was wanted"
        raise InputError(msg)
    offsets = column.offsets.to_numpy().astype(np.int64)
    if len(offsets) == 0:  # Arrow may leave out the offsets of an empty column
        offsets = np.zeros(1, np.int64)
    return Jagged(_flat(column.flatten(), name), offsets - offsets[0])


def _flat(array: pa.Array, name: str) -> Array:
    if array.null_count:
        msg = f"{name}: {array.null_count} of {len(array)} values are null"
        raise InputError(msg)
    if pa.types.is_boolean(array.type):
        packed = array.buffers()[1]
        if packed is None or len(array) == 0:
            return np.zeros(0, bool)
        bits = np.frombuffer(packed, np.uint8)  # 14 times faster than Arrow's own to_numpy
        return np.unpackbits(bits, count=array.offset + len(array), bitorder="little")[array.offset :].view(bool)
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        msg = f"{name}: wanted numbers or lists of numbers, got Arrow type {array.type}"
        raise InputError(msg)
    return np.asarray(array.to_numpy(zero_copy_only=True))


def to_arrow(column: Column) -> pa.Array:
    """The Arrow array of a column: `list<...>` for Jagged, else a plain array."""
    if isinstance(column, Jagged):
        return pa.ListArray.from_arrays(pa.array(column.offsets.astype(np.int32)), pa.array(column.values))
    return pa.array(column)


def same_offsets(first: Jagged, second: Jagged) -> bool:
    """Whether two columns have equally many particles in each jet."""
    return first.offsets is second.offsets or np.array_equal(first.offsets, second.offsets)


def segments(
    offsets: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], length: int | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where the first `length` particles (None = all) of the jets `rows` (b,) lie in the flat values; their offsets.

    >>> segments(np.array([0, 3, 3, 4]), np.array([2, 0]), 2)[0].tolist()
    [3, 0, 1]
    """
    starts, counts = offsets[rows], offsets[rows + 1] - offsets[rows]
    if length is not None:
        counts = np.minimum(counts, length)
    new = after(counts)
    return np.repeat(starts - new[:-1], counts) + np.arange(new[-1]), new


def after(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Offsets (B+1,) of lists with these numbers of particles (B,)."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets
