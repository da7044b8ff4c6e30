"""Row groups of our own shards straight from their pages into flat arrays: a third of the time that Arrow takes.

`parquet_writer.py` writes one page per column and row group, and the same list lengths into every column of a list
group. So the lengths are decoded once instead of 17 times, and the values of several row groups go into one array at
once, where Arrow makes a table of each and copies them together. Everything that a page says of itself is checked, its
CRC-32 first. Shards that another program wrote, or rewrote, are left to Arrow (`read_columns` gives None for them).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cramjam
import deflate
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from jetfoundry import files, remote
from jetfoundry.data.shards import RowGroup
from jetfoundry.errors import InputError
from jetfoundry.features.jagged import Jagged, JetColumns, after

__all__ = ["read_columns"]

_Bytes = npt.NDArray[np.uint8]

_DTYPES = {"BOOLEAN": np.dtype(np.bool_), "INT32": np.dtype(np.int32), "INT64": np.dtype(np.int64),
           "FLOAT": np.dtype(np.float32)}  # fmt: skip
_PLAIN, _RLE, _SPLIT = 0, 3, 9  # parquet.thrift: Encoding
_GAP = 1 << 16  # bytes between wanted pages that are read rather than left out
_REMOTE_GAP = 1 << 20  # the same, where a request takes as long as they do
_FAULTS = (cramjam.DecompressionError, OSError, ValueError, IndexError, struct.error, pa.ArrowException)


@dataclasses.dataclass(eq=False)
class _Column:
    """A column while it grows: `values` has room for all, `filled` are there."""

    values: npt.NDArray[Any]
    is_list: bool
    filled: int = 0


def read_columns(groups: Sequence[RowGroup], columns: Sequence[str]) -> JetColumns | None:
    """The jets of all row groups, in their order; None if a shard is not one of ours as it was written.

    Columns of one list group share their offsets. Raises InputError if a shard is missing or damaged.
    """
    indices = []
    for group in groups:
        with _reading(group):
            # A shard is never changed in place; to ask a server for it would cost as much as to read the shard.
            mtime_ns = 0 if files.is_remote(group.path) else group.path.stat().st_mtime_ns
            indices.append(_metadata(group.path, mtime_ns))
    if not all(_is_ours(index, columns) for index in indices):
        return None
    chunks = [
        [index.row_group(group.index).column(index.places[name]) for name in columns]
        for group, index in zip(groups, indices, strict=True)
    ]
    found = [
        _Column(
            np.empty(sum(of_group[i].num_values for of_group in chunks), _DTYPES[chunks[0][i].physical_type]),
            "." in chunks[0][i].path_in_schema,
        )
        for i in range(len(columns))
    ]
    lengths: list[list[npt.NDArray[np.int64]]] = []  # by row group, of the columns
    for group, of_group in zip(groups, chunks, strict=True):
        with _reading(group):
            lengths.append(_read_group(group, of_group, found))
    return JetColumns(sum(group.rows for group in groups), _joined(columns, found, lengths))


@contextlib.contextmanager
def _reading(group: RowGroup) -> Iterator[None]:
    """Turns what damage and the operating system raise into InputError with the place."""
    try:
        yield
    except _FAULTS as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
        msg = f"{group.path}, row group {group.index}: cannot read: {reason}"
        raise InputError(msg) from error


@dataclasses.dataclass(frozen=True, eq=False)
class _Index:
    """Footer of a shard."""

    metadata: pq.FileMetaData
    places: dict[str, int]

    def row_group(self, number: int) -> Any:
        return self.metadata.row_group(number)


def _metadata(path: Path, mtime_ns: int) -> _Index:
    return (_remote_index if files.is_remote(path) else _index)(path, mtime_ns)


def _read_index(path: Path, mtime_ns: int) -> _Index:
    with files.opened(path) as source:
        metadata = pq.read_metadata(source)
    names = [metadata.schema.column(i).path.partition(".")[0] for i in range(metadata.num_columns)]
    return _Index(metadata, {name: i for i, name in enumerate(names)})


_index = functools.lru_cache(maxsize=32)(_read_index)
_remote_index = functools.lru_cache(maxsize=512)(_read_index)  # to read one again costs some requests


def _is_ours(index: _Index, columns: Sequence[str]) -> bool:
    return index.metadata.created_by == "jetfoundry" and all(name in index.places for name in columns)


def _read_group(group: RowGroup, chunks: Sequence[Any], found: Sequence[_Column]) -> list[npt.NDArray[np.int64]]:
    """Append one row group to the columns; returns the lengths of the lists (R,) of each, empty for plain columns."""
    raw = _fetch(group.path, [(chunk.data_page_offset, chunk.total_compressed_size) for chunk in chunks])
    lengths: list[npt.NDArray[np.int64]] = []
    known: dict[bytes, npt.NDArray[np.int64]] = {}  # by the bytes of their levels
    for chunk, column, data in zip(chunks, found, raw, strict=True):
        page, count, encoding = _open(data, chunk)
        begin = 0
        if column.is_list:
            begin = _end_of_levels(page)
            head = page[:begin].tobytes()
            if head not in known:
                known[head] = _lengths(page, count)
            own = known[head]
            rows, count = len(own), int(own.sum())
        else:
            own, rows = np.empty(0, np.int64), count
        if rows != group.rows:
            msg = f"a column has {rows} rows, wanted {group.rows}"
            raise ValueError(msg)
        lengths.append(own)
        _put(column, page[begin:], count, encoding)
    return lengths


def _fetch(path: Path, places: list[tuple[int, int]]) -> list[_Bytes]:
    """The bytes (begin, size) of each page, neighbours in one request."""
    found: list[_Bytes] = [np.empty(0, np.uint8)] * len(places)
    if files.is_remote(path):
        together = list(_neighbours(places, _REMOTE_GAP))
        blocks = iter(remote.read_ranges(str(path), [(begin, end) for begin, end, _ in together]))
        for begin, _, members in together:
            _cut(np.frombuffer(next(blocks), np.uint8), begin, places, members, found)
        return found
    with path.open("rb", buffering=0) as stream:
        for begin, end, members in _neighbours(places, _GAP):
            block = np.frombuffer(os.pread(stream.fileno(), end - begin, begin), np.uint8)
            _cut(block, begin, places, members, found)
    return found


def _neighbours(places: Sequence[tuple[int, int]], gap: int) -> Iterator[tuple[int, int, list[int]]]:
    """Begin and end of blocks without larger gaps, and which of `places` lie in each."""
    order = sorted(range(len(places)), key=places.__getitem__)
    first = 0
    while first < len(order):
        begin = places[order[first]][0]
        last, end = first, begin
        while last < len(order) and places[order[last]][0] <= end + gap:
            end = max(end, sum(places[order[last]]))
            last += 1
        yield begin, end, order[first:last]
        first = last


def _cut(
    block: _Bytes, begin: int, places: Sequence[tuple[int, int]], members: Sequence[int], found: list[_Bytes]
) -> None:
    """Those of `places` that lie in a block."""
    for i in members:
        at, size = places[i]
        found[i] = block[at - begin : at - begin + size]


def _open(data: _Bytes, chunk: Any) -> tuple[_Bytes, int, int]:
    """The only page of a column chunk, decompressed: content, number of levels or values, encoding."""
    view = memoryview(data.data)
    header, at = _structure(view, 0)
    packed, page = view[at:], header.get(5, {})
    if header.get(1) != 0 or header.get(3) != len(packed) or page.get(1) != chunk.num_values:
        msg = f"the page of {chunk.path_in_schema} is not as long as the footer says"
        raise ValueError(msg)
    if deflate.crc32(packed) != header[4] & 0xFFFFFFFF:
        msg = f"the checksum of {chunk.path_in_schema} does not fit its bytes"
        raise ValueError(msg)
    if page.get(2) not in (_PLAIN, _SPLIT) or (page.get(3), page.get(4)) != (_RLE, _RLE):
        msg = f"the page of {chunk.path_in_schema} has encodings {page.get(2)}, {page.get(3)}, {page.get(4)}"
        raise ValueError(msg)
    size, codec = header[2], chunk.compression
    if codec == "UNCOMPRESSED":
        content = np.frombuffer(packed, np.uint8)
    else:
        content = np.empty(size, np.uint8)
        into = content.data
        done = (
            cramjam.lz4.decompress_block_into(packed, into)
            if codec.startswith("LZ4")
            else cramjam.zstd.decompress_into(packed, into)
        )
        content = content[:done]
    if len(content) != size:
        msg = f"the page of {chunk.path_in_schema} has {len(content)} bytes, wanted {size}"
        raise ValueError(msg)
    return content, int(page[1]), int(page[2])


def _structure(view: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """Integers and structures of a Thrift structure (compact protocol) by field number, and where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    while view[at]:
        number += view[at] >> 4
        kind = view[at] & 15
        at += 1
        if kind == 12:
            fields[number], at = _structure(view, at)
            continue
        if kind not in (5, 6):
            msg = f"a page header with a field of type {kind}"
            raise ValueError(msg)
        value = shift = 0
        while view[at] & 0x80:
            value |= (view[at] & 0x7F) << shift
            shift += 7
            at += 1
        value |= view[at] << shift
        at += 1
        fields[number] = (value >> 1) ^ -(value & 1)
    return fields, at + 1


def _end_of_levels(page: _Bytes) -> int:
    """Where the values of a list column begin: after the repetition and the definition levels."""
    repetition = 4 + int.from_bytes(page[:4].tobytes(), "little")
    return repetition + 4 + int.from_bytes(page[repetition : repetition + 4].tobytes(), "little")


def _lengths(page: _Bytes, count: int) -> npt.NDArray[np.int64]:
    """Lengths (R,) of the lists, from repetition and definition levels: one 0 begins a list, a 0 is an empty one."""
    repetition = 4 + int.from_bytes(page[:4].tobytes(), "little")
    starts = np.flatnonzero(~_levels(page[4:repetition], count))
    filled = _levels(page[repetition + 4 : _end_of_levels(page)], count)
    if not len(starts) or starts[0] != 0:
        msg = "the first list of a page does not begin with it"
        raise ValueError(msg)
    lengths: npt.NDArray[np.int64] = np.diff(np.append(starts, count))
    if not filled.all():
        lengths -= ~filled[starts]
    return lengths


def _levels(data: _Bytes, count: int) -> npt.NDArray[np.bool_]:
    """Levels 0 and 1 (count,) of a page that are one run, of equal or of bit-packed ones."""
    head = at = shift = 0
    while data[at] & 0x80:
        head |= int(data[at] & 0x7F) << shift
        shift += 7
        at += 1
    head |= int(data[at]) << shift
    body = data[at + 1 :]
    if head & 1:
        if len(body) != head >> 1 or 8 * len(body) < count:
            msg = f"{len(body)} bytes of levels, wanted {count} levels"
            raise ValueError(msg)
        return np.unpackbits(body, count=count, bitorder="little").view(np.bool_)
    if head >> 1 != count:
        msg = f"{head >> 1} levels, wanted {count}"
        raise ValueError(msg)
    return np.full(count, bool(body[0]))


def _put(column: _Column, data: _Bytes, count: int, encoding: int) -> None:
    """Append `count` values to a column."""
    begin, end = column.filled, column.filled + count
    dtype, into = column.values.dtype, column.values[begin:end]
    wanted = -(-count // 8) if dtype == np.bool_ else count * dtype.itemsize
    if len(data) != wanted or end > len(column.values):
        msg = f"{len(data)} bytes of values, wanted {wanted}"
        raise ValueError(msg)
    if dtype == np.bool_:
        into[:] = np.unpackbits(data, count=count, bitorder="little").view(np.bool_)
    elif encoding == _SPLIT:
        into.view(np.uint8).reshape(count, dtype.itemsize)[:] = data.reshape(dtype.itemsize, count).T
    else:
        into.view(np.uint8)[:] = data
    column.filled = end


def _joined(
    names: Sequence[str], found: Sequence[_Column], lengths: Sequence[Sequence[npt.NDArray[np.int64]]]
) -> dict[str, Jagged | npt.NDArray[Any]]:
    """Columns by name; those whose lists have the same lengths in every row group share their offsets."""
    offsets: dict[tuple[int, ...], npt.NDArray[np.int64]] = {}
    columns: dict[str, Jagged | npt.NDArray[Any]] = {}
    for i, (name, column) in enumerate(zip(names, found, strict=True)):
        values = column.values[: column.filled]
        if not column.is_list:
            columns[name] = values
            continue
        own = [of_group[i] for of_group in lengths]
        key = tuple(map(id, own))
        if key not in offsets:
            offsets[key] = after(np.concatenate(own))
        columns[name] = Jagged(values, offsets[key])
    return columns
