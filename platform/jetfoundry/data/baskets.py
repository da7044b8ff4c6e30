"""Numbers out of a TTree, straight from its baskets: a third of the time that the general way through uproot takes.

uproot opens the file and knows the branches; this module takes the bytes of the baskets from there. It knows two
kinds of branch: one number per entry, and a list of numbers per entry (with a counter branch, or a C++ vector).
`flat_branches` says which branches it can read; the rest is left to uproot.

Decided here:
- Branches that share a counter share their offsets: the 46 jagged branches of JetClass-II need three arrays of
  offsets, not 46, and everything downstream (checks, mixing) is told by identity that they agree.
- A basket must hold exactly the bytes that its counter announces; anything else is damage, never a shifted list.
- zlib is decoded by libdeflate (`deflate`), in half the time of zlib itself, ZSTD by Arrow, which takes each block at
  once (a fifth less than a stream); the other algorithms as uproot does it.
- Neighbouring baskets are fetched in one go: one request instead of 57 if the file lies behind a URL. A basket is
  decompressed when its branch is asked for, into memory that all baskets share, and swapped to native byte order on
  the way out: of all that is read, one branch and one fetched run of baskets are held besides the results.
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
_MOST = 1 << 23  # bytes fetched together at most

_ZSTD = pa.Codec("zstd")

_LEAVES = {
    "TLeafO": "?", "TLeafB": ">i1", "TLeafS": ">i2", "TLeafI": ">i4", "TLeafL": ">i8", "TLeafF": ">f4", "TLeafD": ">f8"
}  # fmt: skip

_Key = tuple[str, int]  # of a basket: name of its branch, number
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
    kind = _of_leaf(branch) or _interpreted(branch)
    if kind is None or len(branch.branches) or branch.embedded_baskets:
        return None
    number = branch.num_baskets
    entries = np.asarray(branch.entry_offsets, np.int64)
    seek = np.asarray(branch.member("fBasketSeek")[:number], np.int64)
    size = np.asarray(branch.member("fBasketBytes")[:number], np.int64)
    return _Branch(branch.name, *kind, entries, seek, size)


_Kind = tuple[np.dtype[Any], int, str]  # type, header and counter of a branch


def _of_leaf(branch: Any) -> _Kind | None:
    """What its only leaf says of a plain branch, as most are: uproot's interpretation takes a third of opening."""
    leaves = branch.member("fLeaves")
    if branch.classname != "TBranch" or len(leaves) != 1 or leaves[0].classname not in _LEAVES:
        return None
    leaf = leaves[0]
    if leaf.member("fLen") != 1:  # an array in each entry, or in each item
        return None
    dtype = np.dtype(_LEAVES[leaf.classname])
    if leaf.member("fIsUnsigned") and dtype.kind == "i":
        dtype = np.dtype(dtype.str.replace("i", "u"))
    counter = leaf.member("fLeafCount")
    return dtype, -1 if counter is None else 0, "" if counter is None else counter.parent.name


def _interpreted(branch: Any) -> _Kind | None:
    kind, header, counter = branch.interpretation, -1, ""
    if isinstance(kind, uproot.AsJagged):
        kind, header = kind.content, int(kind.header_bytes)
        counter = branch.count_leaf.parent.name if branch.count_leaf is not None else ""
        if bool(counter) == bool(header):  # a counter and no header, or a C++ vector
            return None
    plain = isinstance(kind, uproot.AsDtype) and kind.from_dtype.fields is None and kind.from_dtype.shape == ()
    return (kind.from_dtype, header, counter) if plain and kind.from_dtype.kind in "biuf" else None


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
    data = _Baskets(source, {key: _place(branches[key[0]], key[1]) for key in baskets})
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


class _Baskets:
    """Content of baskets at (seek, size), fetched with their neighbours and decompressed one by one."""

    def __init__(self, source: Any, places: dict[_Key, tuple[int, int]]) -> None:
        self._source, self._places = source, places
        self._run_of: dict[_Key, list[_Key]] = {}
        self._fetched: dict[_Key, npt.NDArray[np.uint8]] = {}
        self._scratch = np.empty(0, np.uint8)
        run: list[_Key] = []
        begin = end = 0
        for key, (seek, size) in sorted(places.items(), key=lambda item: item[1]):
            if not run or seek > end + _GAP or seek + size > begin + _MOST:
                run, begin, end = [], seek, seek
            run.append(key)
            self._run_of[key] = run
            end = max(end, seek + size)

    def open(self, name: str, number: int) -> tuple[npt.NDArray[np.uint8], int, int]:
        """Content of a basket (with the byte offsets behind it), length of its data, length of its key.

        The content is good until the next basket is opened.
        """
        raw = self._raw((name, number))
        view = memoryview(raw.data)
        total, _, length, _, key, _ = _KEY.unpack_from(view)
        if total != len(raw) or not _KEY.size + _TAIL.size < key <= total:
            msg = f"a basket's key announces {total} bytes, {len(raw)} are there"
            raise ValueError(msg)
        last = _TAIL.unpack_from(view, key - _TAIL.size - 1)[-1]
        content = raw[key:] if total - key == length else self._inflate(raw[key:], length)
        if not 0 <= last - key <= length:
            msg = f"a basket of {length} bytes says that its data end at byte {last - key}"
            raise ValueError(msg)
        return content, last - key, key

    def _raw(self, key: _Key) -> npt.NDArray[np.uint8]:
        if key not in self._fetched:
            run = self._run_of[key]
            begin, end = self._places[run[0]][0], max(sum(self._places[other]) for other in run)
            block = np.asarray(self._source.chunk(begin, end).raw_data)
            for other in run:
                seek, size = self._places[other]
                self._fetched[other] = block[seek - begin : seek - begin + size]
        return self._fetched.pop(key)

    def _inflate(self, raw: npt.NDArray[np.uint8], length: int) -> npt.NDArray[np.uint8]:
        """Decompress the blocks of a basket, `length` bytes in all."""
        view, at, blocks = memoryview(raw.data), 0, []
        while at < len(view):
            algorithm, _, packed, unpacked = _BLOCK.unpack_from(view, at)
            begin = at + _BLOCK.size
            at = begin + int.from_bytes(packed, "little")
            blocks.append((_DECODERS[algorithm], view[begin:at], int.from_bytes(unpacked, "little")))
        total = sum(wanted for *_, wanted in blocks)
        if total != length:
            msg = f"a basket of {length} bytes has blocks of {total}"
            raise ValueError(msg)
        if len(self._scratch) < length:
            self._scratch = np.empty(length, np.uint8)
        filled = 0
        for decode, block, wanted in blocks:
            found = decode(block, self._scratch[filled : filled + wanted])
            if found != wanted:
                msg = f"a block of {wanted} bytes decompressed to {found}"
                raise ValueError(msg)
            filled += wanted
        return self._scratch[:length]


def _copied(data: bytes | bytearray | pa.Buffer, out: npt.NDArray[np.uint8]) -> int:
    if len(data) == len(out):
        out[:] = np.frombuffer(data, np.uint8)
    return len(data)


def _lz4(block: memoryview, out: npt.NDArray[np.uint8]) -> int:
    if xxhash.xxh64_intdigest(block[8:]) != int.from_bytes(block[:8], "big"):
        msg = "the checksum of an LZ4 block does not fit its bytes"
        raise ValueError(msg)
    return int(cramjam.lz4.decompress_block_into(block[8:], out.data, output_len=len(out)))


_DECODERS: dict[bytes, Callable[[memoryview, npt.NDArray[np.uint8]], int]] = {
    b"ZL": lambda block, out: _copied(deflate.zlib_decompress(block, len(out)), out),
    b"XZ": lambda block, out: _copied(lzma.decompress(block), out),
    b"L4": _lz4,
    b"ZS": lambda block, out: _copied(_ZSTD.decompress(block, len(out)), out),
}
"""From a block into memory of the size that it announces; returns the bytes that it gave."""


def _native(branch: _Branch, count: int) -> npt.NDArray[Any]:
    """Memory for `count` values; copying baskets into it swaps their bytes."""
    return np.empty(count, branch.dtype.newbyteorder("="))


def _flat(branch: _Branch, data: _Baskets, start: int, stop: int) -> npt.NDArray[Any]:
    """Values (B,) of a branch with one number per entry."""
    out = _native(branch, stop - start)
    for number in branch.baskets(start, stop):
        content, length, _ = data.open(branch.name, number)
        low, high = int(branch.entries[number]), int(branch.entries[number + 1])
        _expect(branch, length, (high - low) * branch.dtype.itemsize)
        begin, end = max(start, low), min(stop, high)
        out[begin - start : end - start] = content[:length].view(branch.dtype)[begin - low : end - low]
    return out


def _offsets(counter: _Branch, data: _Baskets, start: int, stop: int) -> npt.NDArray[np.int64]:
    """Offsets (stop - start + 1,) from the lengths that a counter branch holds."""
    lengths = _flat(counter, data, start, stop)
    if lengths.size and lengths.min() < 0:
        msg = f"the counter {counter.name} is negative"
        raise ValueError(msg)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _counted(
    branch: _Branch, data: _Baskets, offsets: npt.NDArray[np.int64], first: int, start: int, stop: int
) -> npt.NDArray[Any]:
    """Values of a branch of lists; `offsets` of its counter begin at entry `first`."""
    numbers = branch.baskets(start, stop)
    origin = int(offsets[start - first]) if numbers else 0
    out = _native(branch, int(offsets[stop - first]) - origin if numbers else 0)
    for number in numbers:
        content, length, _ = data.open(branch.name, number)
        low, high = int(branch.entries[number]), int(branch.entries[number + 1])
        base = int(offsets[low - first])
        _expect(branch, length, (int(offsets[high - first]) - base) * branch.dtype.itemsize)
        begin, end = int(offsets[max(start, low) - first]), int(offsets[min(stop, high) - first])
        out[begin - origin : end - origin] = content[:length].view(branch.dtype)[begin - base : end - base]
    return out


def _vector(branch: _Branch, data: _Baskets, start: int, stop: int) -> Column:
    """Offsets and values of a C++ vector: a header before each list, byte offsets behind the data of a basket."""
    pieces, lengths = [], []
    for number in branch.baskets(start, stop):
        content, length, key = data.open(branch.name, number)
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
        values = np.frombuffer(bare.buffers()[2], np.uint8)[begin:end].view(branch.dtype)
        pieces.append(values.astype(branch.dtype.newbyteorder("=")))
        lengths.append(items)
    offsets = np.zeros(stop - start + 1, np.int64)
    if lengths:
        np.cumsum(np.concatenate(lengths), out=offsets[1:])
    return offsets, np.concatenate([_native(branch, 0), *pieces])


def _expect(branch: _Branch, found: int, wanted: int) -> None:
    if found != wanted:
        msg = f"{branch.name}: a basket holds {found} bytes where its entries and counter need {wanted}"
        raise ValueError(msg)
