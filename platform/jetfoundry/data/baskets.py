"""Numbers out of a TTree, straight from its baskets: a third of the time that the general way through uproot takes.

uproot opens the file and knows the branches; this module takes the bytes of the baskets from there. It knows two
kinds of branch: one number per entry, and a list of numbers per entry (with a counter branch, or a C++ vector).
`flat_branches` says which branches it can read; the rest is left to uproot.

Decided here:
- Branches that share a counter share their offsets: the 46 jagged branches of JetClass-II need three arrays of
  offsets, not 46, and everything downstream (checks, mixing) is told by identity that they agree.
- A basket must hold exactly the bytes that its counter announces; anything else is damage, never a shifted list.
- zlib is decoded by libdeflate (`deflate`), in half the time of zlib itself; the other algorithms as uproot does it.
- Neighbouring baskets are fetched in one go: one request instead of 57 if the file lies behind a URL.
"""

from __future__ import annotations

import dataclasses
import lzma
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cramjam
import deflate
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import uproot
import xxhash

__all__ = ["flat_branches", "read_branches"]

_KEY = struct.Struct(">ihiIhh")  # TKey: fNbytes, version, fObjlen, fDatime, fKeylen, fCycle
_TAIL = struct.Struct(">HIIII")  # end of a TBasket's key: version, fBufferSize, fNevBufSize, fNevBuf, fLast
_BLOCK = struct.Struct("<2sB3s3s")  # of compressed data: algorithm, method, compressed and uncompressed size
_GAP = 1 << 16  # bytes: baskets that lie closer are fetched together
_MOST = 1 << 25  # bytes fetched together at most

_Bytes = dict[tuple[str, int], npt.NDArray[np.uint8]]  # of baskets by branch and number
Column = tuple[npt.NDArray[np.int64] | None, npt.NDArray[Any]]
"""Offsets (B+1,) of the lists, or None, and the values (N,)."""


@dataclasses.dataclass(frozen=True)
class _Branch:
    """A branch of numbers. `header`: bytes before each list (10 for a C++ vector), -1 = no lists."""

    name: str
    dtype: np.dtype[Any]
    header: int
    counter: str  # name of the counter branch, '' if there is none
    entries: npt.NDArray[np.int64]  # (baskets+1,) first entry of each basket, and the end
    seek: npt.NDArray[np.int64]  # (baskets,)
    size: npt.NDArray[np.int64]  # (baskets,) bytes on disk

    def baskets(self, start: int, stop: int) -> range:
        """Numbers of the baskets that hold the entries `start <= entry < stop`."""
        if start >= stop:
            return range(0)
        first = int(np.searchsorted(self.entries, start, "right")) - 1
        return range(first, int(np.searchsorted(self.entries, stop, "left")))


def flat_branches(tree: Any, names: Iterable[str]) -> dict[str, _Branch]:
    """Those branches of `names` that can be read here, with the counters they need."""
    found: dict[str, _Branch] = {}
    for name in names:
        branch = _describe(tree[name])
        if branch is None:
            continue
        if branch.counter and branch.counter not in found:
            counter = _describe(tree[name].count_leaf.parent)
            if counter is None or counter.header >= 0 or counter.dtype.kind not in "iu":
                continue
            found[branch.counter] = counter
        found[name] = branch
    return found


def _describe(branch: Any) -> _Branch | None:
    kind, header, counter = branch.interpretation, -1, ""
    if isinstance(kind, uproot.AsJagged):
        kind, header = kind.content, int(kind.header_bytes)
        counter = branch.count_leaf.parent.name if branch.count_leaf is not None else ""
        if bool(counter) == bool(header):  # a counter and no header, or a C++ vector
            return None
    plain = isinstance(kind, uproot.AsDtype) and kind.from_dtype.fields is None and kind.from_dtype.shape == ()
    if not plain or kind.from_dtype.kind not in "biuf" or len(branch.branches) or branch.embedded_baskets:
        return None
    number = branch.num_baskets
    entries = np.asarray(branch.entry_offsets, np.int64)
    seek = np.asarray(branch.member("fBasketSeek")[:number], np.int64)
    size = np.asarray(branch.member("fBasketBytes")[:number], np.int64)
    return _Branch(branch.name, kind.from_dtype, header, counter, entries, seek, size)


def read_branches(
    source: Any, branches: dict[str, _Branch], names: Sequence[str], start: int, stop: int
) -> Iterator[Column]:
    """Yield (offsets, values) of the branches `names`, entries `start <= entry < stop`, values in native byte order.

    `source` is uproot's of the file. Branches with one counter get the same array of offsets. Raises ValueError if a
    basket does not hold what its key or counter says; what decompressors and the source raise passes.
    """
    wanted = {name: branches[name].baskets(start, stop) for name in names}
    spans: dict[str, tuple[int, int]] = {}  # entries of each counter that are needed: whole baskets of its branches
    for name, numbers in wanted.items():
        branch = branches[name]
        if branch.counter and numbers:
            low, high = int(branch.entries[numbers[0]]), int(branch.entries[numbers[-1] + 1])
            old = spans.get(branch.counter, (low, high))
            spans[branch.counter] = min(low, old[0]), max(high, old[1])
    baskets = [(name, number) for name, numbers in wanted.items() for number in numbers]
    baskets += [(name, number) for name, span in spans.items() for number in branches[name].baskets(*span)]
    data = _fetch(source, {key: _place(branches[key[0]], key[1]) for key in baskets})
    counted = {name: _offsets(branches[name], data, *span) for name, span in spans.items()}
    shared = {name: _slice(offsets, start - spans[name][0], stop - spans[name][0]) for name, offsets in counted.items()}
    empty = np.zeros(1, np.int64)
    for name in names:
        branch = branches[name]
        if branch.header < 0:
            yield None, _flat(branch, data, start, stop)
        elif branch.counter:
            offsets, first = counted.get(branch.counter, empty), spans.get(branch.counter, (start, start))[0]
            yield shared.get(branch.counter, empty), _counted(branch, data, offsets, first, start, stop)
        else:
            yield _vector(branch, data, start, stop)


def _slice(offsets: npt.NDArray[np.int64], start: int, stop: int) -> npt.NDArray[np.int64]:
    part: npt.NDArray[np.int64] = offsets[start : stop + 1] - offsets[start]
    return part


def _place(branch: _Branch, number: int) -> tuple[int, int]:
    return int(branch.seek[number]), int(branch.size[number])


def _fetch(source: Any, places: dict[tuple[str, int], tuple[int, int]]) -> _Bytes:
    """The bytes (seek, size) of each basket, neighbours in one request."""
    found: _Bytes = {}
    run: list[tuple[str, int]] = []
    begin = end = 0

    def flush() -> None:
        if run:
            block = np.asarray(source.chunk(begin, end).raw_data)
            for key in run:
                seek, size = places[key]
                found[key] = block[seek - begin : seek - begin + size]
            run.clear()

    for key, (seek, size) in sorted(places.items(), key=lambda item: item[1]):
        if not run or seek > end + _GAP or seek + size > begin + _MOST:
            flush()
            begin = end = seek
        run.append(key)
        end = max(end, seek + size)
    flush()
    return found


def _open(raw: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], int, int]:
    """Content of a basket (with the byte offsets behind it), length of its data, length of its key."""
    view = memoryview(raw.data)
    total, _, length, _, key, _ = _KEY.unpack_from(view)
    if total != len(raw) or not _KEY.size + _TAIL.size < key <= total:
        msg = f"a basket's key announces {total} bytes, {len(raw)} are there"
        raise ValueError(msg)
    last = _TAIL.unpack_from(view, key - _TAIL.size - 1)[-1]
    content = raw[key:] if total - key == length else _inflate(raw[key:], length)
    if not 0 <= last - key <= length:
        msg = f"a basket of {length} bytes says that its data end at byte {last - key}"
        raise ValueError(msg)
    return content, last - key, key


def _inflate(raw: npt.NDArray[np.uint8], length: int) -> npt.NDArray[np.uint8]:
    """Decompress the blocks of a basket, `length` bytes in all."""
    view, blocks, at, filled = memoryview(raw.data), [], 0, 0
    while at < len(view):
        algorithm, _, packed, unpacked = _BLOCK.unpack_from(view, at)
        at += _BLOCK.size
        size, wanted = int.from_bytes(packed, "little"), int.from_bytes(unpacked, "little")
        block = _DECODERS[algorithm](view[at : at + size], wanted)
        if len(block) != wanted:
            msg = f"a block of {wanted} bytes decompressed to {len(block)}"
            raise ValueError(msg)
        blocks.append(np.frombuffer(block, np.uint8))
        at += size
        filled += wanted
    if filled != length:
        msg = f"a basket of {length} bytes decompressed to {filled}"
        raise ValueError(msg)
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _lz4(block: memoryview, size: int) -> Any:
    data = bytes(block[8:])
    if xxhash.xxh64_intdigest(data) != int.from_bytes(block[:8], "big"):
        msg = "the checksum of an LZ4 block does not fit its bytes"
        raise ValueError(msg)
    return cramjam.lz4.decompress_block(data, output_len=size)


_DECODERS: dict[bytes, Callable[[memoryview, int], Any]] = {
    b"ZL": lambda block, size: deflate.zlib_decompress(block, size),
    b"XZ": lambda block, size: lzma.decompress(block),
    b"L4": _lz4,
    b"ZS": lambda block, size: cramjam.zstd.decompress(block, output_len=size),
}


def _joined(pieces: list[npt.NDArray[Any]], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """One array of its own in native byte order: swapping and joining are one pass."""
    native = dtype.newbyteorder("=")
    return pieces[0].astype(native) if len(pieces) == 1 else np.concatenate([np.empty(0, native), *pieces])


def _flat(branch: _Branch, data: _Bytes, start: int, stop: int) -> npt.NDArray[Any]:
    """Values (B,) of a branch with one number per entry."""
    pieces = []
    for number in branch.baskets(start, stop):
        content, length, _ = _open(data[branch.name, number])
        low, high = int(branch.entries[number]), int(branch.entries[number + 1])
        _expect(branch, length, (high - low) * branch.dtype.itemsize)
        values = content[:length].view(branch.dtype)
        pieces.append(values[max(start - low, 0) : stop - low])
    return _joined(pieces, branch.dtype)


def _offsets(counter: _Branch, data: _Bytes, start: int, stop: int) -> npt.NDArray[np.int64]:
    """Offsets (stop - start + 1,) from the lengths that a counter branch holds."""
    lengths = _flat(counter, data, start, stop)
    if lengths.size and lengths.min() < 0:
        msg = f"the counter {counter.name} is negative"
        raise ValueError(msg)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _counted(
    branch: _Branch, data: _Bytes, offsets: npt.NDArray[np.int64], first: int, start: int, stop: int
) -> npt.NDArray[Any]:
    """Values of a branch of lists; `offsets` of its counter begin at entry `first`."""
    pieces = []
    for number in branch.baskets(start, stop):
        content, length, _ = _open(data[branch.name, number])
        low, high = int(branch.entries[number]), int(branch.entries[number + 1])
        base = offsets[low - first]
        _expect(branch, length, int(offsets[high - first] - base) * branch.dtype.itemsize)
        begin, end = offsets[max(start, low) - first] - base, offsets[min(stop, high) - first] - base
        pieces.append(content[:length].view(branch.dtype)[begin:end])
    return _joined(pieces, branch.dtype)


def _vector(branch: _Branch, data: _Bytes, start: int, stop: int) -> Column:
    """Offsets and values of a C++ vector: a header before each list, byte offsets behind the data of a basket."""
    pieces, lengths = [], []
    for number in branch.baskets(start, stop):
        content, length, key = _open(data[branch.name, number])
        low, high = int(branch.entries[number]), int(branch.entries[number + 1])
        at = content[length : length + 4 * (high - low + 2)]
        _expect(branch, len(at), 4 * (high - low + 2))
        ends = at.view(">i4")[1:].astype(np.int32) - np.int32(key)
        ends[-1] = length
        mine = ends[max(start - low, 0) : stop - low + 1]
        items, rest = np.divmod(np.diff(mine) - branch.header, branch.dtype.itemsize)
        if items.size and (items.min() < 0 or rest.any() or mine[0] < 0 or mine[-1] > length):
            msg = f"{branch.name}: the lists of a basket do not fit its bytes"
            raise ValueError(msg)
        # Arrow cuts the headers off: one copy per list in C++ instead of a mask over all bytes.
        lists = pa.Array.from_buffers(pa.binary(), len(items), [None, pa.py_buffer(mine), pa.py_buffer(content)])
        bare = pc.binary_slice(lists, branch.header, len(content))  # without an end it miscounts (pyarrow 26)
        begin, end = np.frombuffer(bare.buffers()[1], np.int32)[[0, len(items)]]
        pieces.append(np.frombuffer(bare.buffers()[2], np.uint8)[begin:end].view(branch.dtype))
        lengths.append(items)
    offsets = np.zeros(stop - start + 1, np.int64)
    if lengths:
        np.cumsum(np.concatenate(lengths), out=offsets[1:])
    return offsets, _joined(pieces, branch.dtype)


def _expect(branch: _Branch, found: int, wanted: int) -> None:
    if found != wanted:
        msg = f"{branch.name}: a basket holds {found} bytes where its entries and counter need {wanted}"
        raise ValueError(msg)
