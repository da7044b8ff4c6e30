"""What every reader of jets has in common: the schema of its tables, exact types, and what counts as damage.

A reader gives flat buffers (`_flat`); `JetReader.columns` gives them exactly the types of the layout and adds the
provenance columns `source_file` and `source_entry`, `JetReader.read` makes a `pyarrow.Table` of all.

Decided here:
- A value is cast to the layout's type only if the cast gives the value back (`int64` 5 to `int32` 5, `uint8` 1 to
  true); anything else is an error that names column and types. float64 may be rounded on request.
- Lists with equal offsets share one array of them: that they agree is then known without another look.
- `DamagedFile` is for bytes that cannot be decoded: ingest sets them aside. What the operating system or a server
  refuses (permission, I/O error) is a plain InputError: the file may be well, so the job ends instead of losing it.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import lzma
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import cramjam
import deflate
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import uproot

from jetfoundry import schema
from jetfoundry.data.layouts import JETCLASS2, Layout
from jetfoundry.errors import InputError, nearest

__all__ = ["PROVENANCE", "DamagedFile", "FlatColumn", "JetReader", "cast", "decoding", "jet_schema"]

PROVENANCE: tuple[pa.Field, ...] = (
    pa.field("source_file", pa.int32(), nullable=False),
    pa.field("source_entry", pa.int64(), nullable=False),
)
"""Where a jet comes from: index of the file in the list of inputs, entry in that file."""

# What uproot, awkward, pyarrow and the decompressors raise on damaged bytes, collected by flipping bytes in files
# of each kind and compression; DeserializationError covers uproot's own checks.
_DECODING_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, NameError, RuntimeError, TypeError,
    ValueError, struct.error, zlib.error, lzma.LZMAError, cramjam.DecompressionError, deflate.DeflateError,
    uproot.DeserializationError,
)  # fmt: skip


FlatColumn = tuple[npt.NDArray[Any] | None, npt.NDArray[Any]]
"""Offsets (B+1,) of the lists, or None, and the values (N,). Columns whose lists agree share the offsets."""


class DamagedFile(InputError):
    """A file, or a range of its entries, that cannot be turned into jets."""


def jet_schema(columns: Sequence[str] | None = None, layout: Layout = JETCLASS2) -> pa.Schema:
    """Schema of the tables read here: the layout's `columns` (None = all) in stored order, then PROVENANCE."""
    return pa.schema([*(column.field for column in layout.select(columns)), *PROVENANCE])


@contextlib.contextmanager
def decoding(where: str) -> Iterator[None]:
    """Turn what foreign decoders raise into DamagedFile, and refusals of the operating system into InputError."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # pyarrow and uproot also use OSError for bytes they cannot decode
            raise DamagedFile(_damage(where, error)) from error
        msg = f"{where}: cannot read: {error.strerror}"
        raise InputError(msg) from error
    except _DECODING_ERRORS as error:
        raise DamagedFile(_damage(where, error)) from error


def _damage(where: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:160] or "no reason given"
    return f"{where}: damaged or truncated, cannot be decoded ({type(error).__name__}: {reason})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class JetReader(abc.ABC):
    """An open file of jets; made by `root.open_jets`, not directly.

    `sample` says what its jets are ('simulated', say): a TObjString or Parquet metadata of that name in the file.
    """

    path: str
    kind: str
    tree: str
    file_index: int
    sample: str
    handle: Any
    layout: Layout

    @property
    @abc.abstractmethod
    def names(self) -> list[str]:
        """Names of the branches, fields or columns."""

    @property
    @abc.abstractmethod
    def entries(self) -> int:
        """Number of jets."""

    @abc.abstractmethod
    def clusters(self) -> npt.NDArray[np.int64]:
        """Entry numbers (C+1,), from 0 to `entries`, between which all columns can be decoded on their own."""

    @abc.abstractmethod
    def _flat(self, branches: Sequence[tuple[str, schema.Column]], start: int, stop: int) -> Iterable[FlatColumn]:
        """(offsets (B+1,) or None, values (N,)) of each branch, which belongs to the column beside it."""

    def require(self, columns: Sequence[str] | None = None) -> None:
        """Raise DamagedFile if a branch of these columns (None = all) is missing, with the nearest names there are."""
        names = set(self.names)
        wanted = [branch for column in self.layout.select(columns) for branch in column.branches]
        missing = [branch for branch in wanted if branch not in names]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            shown = "; ".join(f"{name} ({nearest(name, names)})" for name in missing[:3])
            msg = f"{self.path}: missing branch {shown}{more}"
            raise DamagedFile(msg)

    def columns(
        self,
        start: int,
        stop: int,
        columns: Sequence[str] | None = None,
        *,
        round_doubles: bool = False,
        only: Sequence[tuple[int, int]] = (),
    ) -> Iterator[FlatColumn]:
        """Read the jets `start <= entry < stop` column by column, in the order of `jet_schema(columns)`.

        `only` keeps those of some ranges within (rising, apart): what lies between is decoded and dropped. Raises
        DamagedFile if the bytes cannot be decoded, or a value does not fit the layout's type.
        """
        wanted = self.layout.select(columns)
        branches = [(branch, column) for column in wanted for branch in column.branches]
        flat = iter(self._flat(branches, start, stop))
        entries = np.concatenate([np.arange(*part, dtype=np.int64) for part in only or [(start, stop)]])
        rows = entries - start if only else None
        lists: dict[str, _Lists] = {}
        for column in wanted:
            offsets, values = next(flat)
            if len(column.branches) > 1:
                values = _one_hot([values, *(next(flat)[1] for _ in column.branches[1:])])
            values = cast(values, column, f"{self.path}, entries {start}-{stop}, {column.name}", round_doubles)
            if offsets is None:
                yield None, values if rows is None else values[rows]
                continue
            known = lists.get(column.group)
            if known is None or not (known.read is offsets or np.array_equal(known.read, offsets)):
                known = lists[column.group] = _Lists.of(offsets, rows)
            yield known.kept, values if known.items is None else values[known.items]
        yield None, np.full(len(entries), self.file_index, np.int32)
        yield None, entries

    def read(
        self, start: int, stop: int, columns: Sequence[str] | None = None, *, round_doubles: bool = False
    ) -> pa.Table:
        """Read the jets `start <= entry < stop` as a table with `jet_schema(columns)`; raises as `columns` does."""
        schema, arrays = jet_schema(columns, self.layout), []
        lists: tuple[npt.NDArray[Any] | None, pa.Array] = (None, None)
        for field, (offsets, values) in zip(
            schema, self.columns(start, stop, columns, round_doubles=round_doubles), strict=True
        ):
            array = pa.array(values)
            if offsets is not None:
                if offsets is not lists[0]:
                    lists = offsets, pa.array(offsets, pa.int32())
                array = pa.ListArray.from_arrays(lists[1], array, type=field.type)
            arrays.append(array)
        return pa.table(arrays, schema=schema)

    def probe(self, columns: Sequence[str] | None = None, *, round_doubles: bool = False) -> pa.Table:
        """The first jets (at most 16): finds a wrong type or an unreadable file before any work is planned."""
        return self.read(0, min(16, self.entries), columns, round_doubles=round_doubles)

    def bytes_per_entry(self, columns: Sequence[str] | None = None, *, round_doubles: bool = False) -> int:
        """Memory that a jet takes, from the first ones. Raises as `probe` does."""
        first = self.probe(columns, round_doubles=round_doubles)
        return int(first.nbytes // first.num_rows)

    def _wrong_type(self, column: schema.Column, found: str) -> DamagedFile:
        wanted = f"a list of {column.kind} per jet" if column.jagged else f"one {column.kind} per jet"
        return DamagedFile(f"{self.path}, {column.name}: wanted {wanted}, the file has {found}")


@dataclasses.dataclass(frozen=True)
class _Lists:
    """Offsets of a list group as read, those of the lists that are kept, and which items these are (N,), None = all."""

    read: npt.NDArray[Any]
    kept: npt.NDArray[Any]
    items: npt.NDArray[np.bool_] | None

    @classmethod
    def of(cls, offsets: npt.NDArray[Any], rows: npt.NDArray[np.int64] | None) -> _Lists:
        if rows is None:
            return cls(offsets, offsets, None)
        lengths, chosen = np.diff(offsets), np.zeros(len(offsets) - 1, np.bool_)
        chosen[rows] = True
        return cls(offsets, np.concatenate([[0], np.cumsum(lengths[chosen])]), np.repeat(chosen, lengths))


def _one_hot(flags: list[npt.NDArray[Any]]) -> npt.NDArray[np.int32]:
    """Class (B,) of one-hot flags, one array (B,) a class; -1, which no class is, unless one is 1 and all others 0."""
    ones = np.stack([values == 1 for values in flags])
    zeros = np.stack([values == 0 for values in flags])
    clear = (ones.sum(0) == 1) & (ones | zeros).all(0)
    return np.where(clear, ones.argmax(0), -1).astype(np.int32)


def cast(values: npt.NDArray[Any], column: schema.Column, where: str, round_doubles: bool) -> npt.NDArray[Any]:
    """`values` as the layout's element type, if that gives every value back."""
    target = np.dtype(column.kind)
    if values.dtype == target:
        return np.ascontiguousarray(values)
    with np.errstate(invalid="ignore", over="ignore"):
        result = values.astype(target)
        back = result.astype(values.dtype)
    same = back == values
    if values.dtype.kind == "f":
        same |= np.isnan(values) & (target.kind == "f")
        if round_doubles and target.kind == "f":
            same |= np.isfinite(result)
    if not same.all():
        value = values[np.argmin(same)]
        hint = "; round_doubles=true rounds to float32" if values.dtype == np.float64 and target.kind == "f" else ""
        msg = f"{where}: cannot store {values.dtype} as {column.kind} without loss, e.g. {value}{hint}"
        raise DamagedFile(msg)
    return result
