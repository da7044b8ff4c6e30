"""Read jets from ROOT TTrees, ROOT RNTuples and Parquet files, one range of entries at a time.

`open_jets(path)` gives a reader with three facts (`names`, `entries`, `clusters`) and one verb: `read(start, stop,
columns)`, a `pyarrow.Table` with exactly the types of `schema.py` plus the provenance columns `source_file` and
`source_entry`. Nothing is read outside the range except the compressed blocks (baskets, pages, row groups)
that overlap it; memory is a few times the range, whatever the size of the file.

Decided here:
- A value is cast to the schema's type only if the cast gives the value back (`int64` 5 to `int32` 5, `uint8` 1 to
  true); anything else is an error that names column and types. float64 may be rounded on request.
- Jagged branches go from uproot's flat buffers to Arrow lists; no Python loop over jets.
- `DamagedFile` is for bytes that cannot be decoded: ingest sets them aside. What the operating system refuses
  (permission, I/O error) is a plain InputError: the file may be well, so the job ends instead of losing it.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cramjam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import uproot

from jetfoundry import schema
from jetfoundry.errors import InputError, nearest

__all__ = ["PROVENANCE", "DamagedFile", "JetReader", "decoding", "jet_schema", "open_jets"]

PROVENANCE: tuple[pa.Field, ...] = (
    pa.field("source_file", pa.int32(), nullable=False),
    pa.field("source_entry", pa.int64(), nullable=False),
)
"""Where a jet comes from: index of the file in the list of inputs, entry in that file."""

_TREE_CLASSES = {"TTree": "ttree", "TNtuple": "ttree", "TNtupleD": "ttree", "ROOT::RNTuple": "rntuple"}
_SAMPLE = "sample"
_USUAL_TREES = ("tree", "Events")

# What uproot, awkward, pyarrow and the decompressors raise on damaged bytes, collected by flipping bytes in files
# of each kind and compression; DeserializationError covers uproot's own checks.
_DECODING_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError,
    struct.error, zlib.error, cramjam.DecompressionError, uproot.DeserializationError,
)  # fmt: skip


class DamagedFile(InputError):
    """A file, or a range of its entries, that cannot be turned into jets."""


def jet_schema(columns: Sequence[str] | None = None) -> pa.Schema:
    """Schema of the tables read here: the JetClass-II `columns` (None = all 54) in stored order, then PROVENANCE."""
    wanted = _select(columns)
    return pa.schema([*(column.field for column in wanted), *PROVENANCE])


def _select(columns: Sequence[str] | None) -> tuple[schema.Column, ...]:
    if columns is None:
        return schema.COLUMNS
    known = {column.name for column in schema.COLUMNS}
    for name in columns:
        if name not in known:
            msg = f"{name!r} is not a JetClass-II column; {nearest(name, known)}"
            raise InputError(msg)
    return tuple(column for column in schema.COLUMNS if column.name in set(columns))


@contextlib.contextmanager
def open_jets(path: str | Path, *, tree: str = "", file_index: int = 0) -> Iterator[JetReader]:
    """Open a ROOT or Parquet file of jets.

    `tree` names the TTree or RNTuple ('' = the only one, or the one called `tree` or `Events`); `file_index`
    goes into `source_file`. Raises DamagedFile if the file is empty, truncated, of another format, or has no
    such tree; InputError if the operating system refuses it.
    """
    where = str(path)
    with contextlib.ExitStack() as stack:
        with decoding(where):
            kind = _sniff(Path(path))
            if kind == "parquet":
                opened = stack.enter_context(pq.ParquetFile(path, page_checksum_verification=True))
            else:
                opened = stack.enter_context(uproot.open(path, handler=uproot.MemmapSource, array_cache=None))
        if kind == "parquet":
            sample = (opened.metadata.metadata or {}).get(_SAMPLE.encode(), b"").decode()
            yield _ParquetReader(path=where, kind=kind, tree="", file_index=file_index, sample=sample, handle=opened)
            return
        with decoding(where):
            classes = opened.classnames(cycle=False)
            sample = str(opened[_SAMPLE]) if classes.get(_SAMPLE) == "TObjString" else ""
        name = _choose_tree(where, tree, classes)
        with decoding(f"{where}, tree {name}"):
            handle = opened[name]
        kind = _TREE_CLASSES[classes[name]]
        yield _RootReader(path=where, kind=kind, tree=name, file_index=file_index, sample=sample, handle=handle)


def _sniff(path: Path) -> str:
    """`root` or `parquet` by the first bytes; a ROOT file shorter than its header announces is truncated."""
    size = path.stat().st_size
    if size == 0:
        msg = f"{path}: empty file (0 bytes)"
        raise DamagedFile(msg)
    with path.open("rb") as stream:
        head = stream.read(20)
    if head.startswith(b"PAR1"):
        return "parquet"
    if not head.startswith(b"root"):
        msg = f"{path}: neither ROOT nor Parquet, it begins with {head[:8]!r}"
        raise DamagedFile(msg)
    (version,) = struct.unpack(">i", head[4:8])
    (end,) = struct.unpack(">q", head[12:20]) if version >= 1_000_000 else struct.unpack(">i", head[12:16])
    if end > size:
        msg = f"{path}: truncated ROOT file, its header announces {end} bytes, it has {size}"
        raise DamagedFile(msg)
    return "root"


def _choose_tree(where: str, wanted: str, classes: dict[str, str]) -> str:
    trees = [name for name, kind in classes.items() if kind in _TREE_CLASSES]
    if wanted:
        if wanted in trees:
            return wanted
        msg = f"{where}: no TTree or RNTuple {wanted!r}; {nearest(wanted, trees)}"
        raise DamagedFile(msg)
    usual = [name for name in _USUAL_TREES if name in trees]
    if len(trees) == 1 or usual:
        return usual[0] if usual else trees[0]
    found = ", ".join(sorted(trees)) or "none"
    msg = f"{where}: wanted one TTree or RNTuple, found: {found}" + ("; choose one with tree=<name>" if trees else "")
    raise DamagedFile(msg)


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
    """An open file of jets; made by `open_jets`, not directly.

    `sample` says what its jets are ('simulated', say): a TObjString or Parquet metadata of that name in the file.
    """

    path: str
    kind: str
    tree: str
    file_index: int
    sample: str
    handle: Any

    @property
    @abc.abstractmethod
    def names(self) -> list[str]:
        """Names of the branches, fields or columns."""

    @property
    @abc.abstractmethod
    def entries(self) -> int:
        """Number of jets."""

    @abc.abstractmethod
    def clusters(self) -> np.ndarray:
        """Entry numbers (C+1,) int64, from 0 to `entries`, between which all columns can be decoded on their own."""

    @abc.abstractmethod
    def _flat(self, columns: Sequence[schema.Column], start: int, stop: int) -> Iterable[tuple[Any, np.ndarray]]:
        """(offsets (B+1,) or None, values (N,)) for each column."""

    def require(self, columns: Sequence[str] | None = None) -> None:
        """Raise DamagedFile if a column (None = any of the 54) is missing, with the nearest names of the file."""
        names = set(self.names)
        missing = [column.name for column in _select(columns) if column.name not in names]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            shown = "; ".join(f"{name} ({nearest(name, names)})" for name in missing[:3])
            msg = f"{self.path}: missing branch {shown}{more}"
            raise DamagedFile(msg)

    def read(
        self, start: int, stop: int, columns: Sequence[str] | None = None, *, round_doubles: bool = False
    ) -> pa.Table:
        """Read the jets `start <= entry < stop` as a table with `jet_schema(columns)`.

        Raises DamagedFile if the bytes cannot be decoded, or a value does not fit the schema's type.
        """
        wanted = _select(columns)
        arrays = []
        for column, (offsets, values) in zip(wanted, self._flat(wanted, start, stop), strict=True):
            where = f"{self.path}, entries {start}-{stop}, {column.name}"
            values = _cast(values, column, where, round_doubles)
            array = pa.array(values)
            if column.jagged:
                array = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), array, type=column.arrow_type)
            arrays.append(array)
        arrays.append(pa.array(np.full(stop - start, self.file_index, np.int32)))
        arrays.append(pa.array(np.arange(start, stop, dtype=np.int64)))
        return pa.table(arrays, schema=jet_schema(columns))

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _RootReader(JetReader):
    @property
    def names(self) -> list[str]:
        return list(self.handle.keys(recursive=False))

    @property
    def entries(self) -> int:
        return int(self.handle.num_entries)

    def clusters(self) -> np.ndarray:
        with decoding(f"{self.path}, tree {self.tree}"):
            if self.kind == "rntuple":
                ends = [summary.num_first_entry + summary.num_entries for summary in self.handle.cluster_summaries]
            else:
                ends = self.handle.common_entry_offsets()
        return np.unique(np.array([0, *ends, self.entries], np.int64))

    def _flat(self, columns: Sequence[schema.Column], start: int, stop: int) -> Iterable[tuple[Any, np.ndarray]]:
        names = [column.name for column in columns]
        with decoding(f"{self.path}, entries {start}-{stop}"):
            arrays = (
                self.handle.arrays(filter_name=names, entry_start=start, entry_stop=stop, library="ak", how=dict)
                if names
                else {}
            )
        for column in columns:
            layout = arrays.pop(column.name).layout  # popped: each buffer lives until its column is converted
            found, offsets = str(layout.form.type), None
            if column.jagged:
                if not layout.is_list:
                    raise self._wrong_type(column, found)
                layout = layout.to_ListOffsetArray64(True)
                offsets = np.asarray(layout.offsets.data)
                layout = layout.content[: offsets[-1]]
            if not layout.is_numpy or layout.purelist_depth != 1 or layout.dtype.kind not in "biuf":
                raise self._wrong_type(column, found)
            yield offsets, np.asarray(layout.data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ParquetReader(JetReader):
    @property
    def names(self) -> list[str]:
        return list(self.handle.schema_arrow.names)

    @property
    def entries(self) -> int:
        return int(self.handle.metadata.num_rows)

    def clusters(self) -> np.ndarray:
        metadata = self.handle.metadata
        rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        return np.unique(np.concatenate([[0], np.cumsum(rows, dtype=np.int64)]))

    def probe(self, columns: Sequence[str] | None = None, *, round_doubles: bool = False) -> pa.Table:
        # A row group may hold the whole file: take its first pages only.
        wanted = _select(columns)
        names = [column.name for column in wanted]
        with decoding(f"{self.path}, first row group"):
            batch = next(self.handle.iter_batches(16, columns=names, use_threads=False))
        for column in wanted:
            _, values = self._buffers(column, pa.chunked_array([batch.column(column.name)]), copy=False)
            _cast(values, column, f"{self.path}, {column.name}", round_doubles)
        return pa.Table.from_batches([batch])

    def _flat(self, columns: Sequence[schema.Column], start: int, stop: int) -> Iterable[tuple[Any, np.ndarray]]:
        edges = self.clusters()
        first = int(np.searchsorted(edges, start, "right")) - 1
        last = int(np.searchsorted(edges, stop, "left"))
        groups = list(range(first, max(last, first + 1)))
        # Published files hold 100,000 jets in one row group: column by column, only one is ever decoded whole.
        for column in columns:
            with decoding(f"{self.path}, entries {start}-{stop}, {column.name}"):
                table = self.handle.read_row_groups(groups, columns=[column.name], use_threads=False)
            part = table.column(0).slice(start - int(edges[first]), stop - start)
            yield self._buffers(column, part, copy=table.num_rows > stop - start)

    def _buffers(self, column: schema.Column, array: pa.ChunkedArray, *, copy: bool) -> tuple[Any, np.ndarray]:
        found, offsets = str(array.type), None
        flat = array.combine_chunks()
        if flat.null_count:
            raise self._wrong_type(column, f"{flat.null_count} nulls")
        if column.jagged:
            if not (pa.types.is_list(flat.type) or pa.types.is_large_list(flat.type)):
                raise self._wrong_type(column, found)
            offsets = flat.offsets.to_numpy()
            first, last = int(offsets[0]), int(offsets[-1])
            offsets, flat = offsets - first, flat.values.slice(first, last - first)
        is_number = pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type) or pa.types.is_boolean(flat.type)
        if not is_number or flat.null_count:
            raise self._wrong_type(column, found if not is_number else f"{flat.null_count} nulls")
        values = flat.to_numpy(zero_copy_only=False)
        return offsets, values.copy() if copy else values  # a slice would keep the whole row group alive


def _cast(values: np.ndarray, column: schema.Column, where: str, round_doubles: bool) -> np.ndarray:
    """`values` as the schema's element type, if that gives every value back."""
    target = np.dtype(column.kind)
    if values.dtype == target:
        return np.ascontiguousarray(values)
    with np.errstate(invalid="ignore", over="ignore"):
        cast = values.astype(target)
        back = cast.astype(values.dtype)
    same = back == values
    if values.dtype.kind == "f":
        same |= np.isnan(values) & (target.kind == "f")
        if round_doubles and target.kind == "f":
            same |= np.isfinite(cast)
    if not same.all():
        value = values[np.argmin(same)]
        hint = "; round_doubles=true rounds to float32" if values.dtype == np.float64 and target.kind == "f" else ""
        msg = f"{where}: cannot store {values.dtype} as {column.kind} without loss, e.g. {value}{hint}"
        raise DamagedFile(msg)
    return cast
