"""Open files of jets: ROOT TTrees, ROOT RNTuples and Parquet, on disk or behind a URL.

`open_jets(path)` gives a reader with three facts (`names`, `entries`, `clusters`) and one verb: `read(start, stop,
columns)`, see reader.py. Nothing is read outside the range except the compressed blocks (baskets, pages, row groups)
that overlap it; memory is a few times the range, whatever the size of the file.

Only the blocks that are needed are read, from disk or from behind a URL (remote.py). TTree branches of
numbers and lists of numbers are decoded here (baskets.py), everything else by uproot.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import struct
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import uproot

from jetfoundry import remote, schema
from jetfoundry.data import baskets
from jetfoundry.data.layouts import JETCLASS2, Layout
from jetfoundry.data.parquet import ParquetReader
from jetfoundry.data.reader import PROVENANCE, DamagedFile, FlatColumn, JetReader, decoding, jet_schema
from jetfoundry.errors import nearest

__all__ = ["PROVENANCE", "DamagedFile", "JetReader", "decoding", "forget", "jet_schema", "open_jets"]

_TREE_CLASSES = {"TTree": "ttree", "TNtuple": "ttree", "TNtupleD": "ttree", "ROOT::RNTuple": "rntuple"}
_HOW: dict[str, Any] = {"array_cache": None, "use_threads": False}  # each thread would keep what it has read
_SAMPLE = "sample"
_USUAL_TREES = ("tree", "Events")


@contextlib.contextmanager
def open_jets(
    path: str | Path,
    *,
    tree: str = "",
    file_index: int = 0,
    layout: Layout = JETCLASS2,
    patience: float = remote.PATIENCE,
) -> Iterator[JetReader]:
    """Open a ROOT or Parquet file of jets.

    `tree` names the TTree or RNTuple ('' = the only one, or the one called `tree` or `Events`); `file_index`
    goes into `source_file`; `layout` says what the branches are; `patience` [s] is for servers that do not answer.
    Raises DamagedFile if the file is empty, truncated, of another format, or has no such tree; InputError if the
    operating system or the server refuses it.
    """
    where = str(path)
    about: dict[str, Any] = {"path": where, "file_index": file_index, "layout": layout}
    with contextlib.ExitStack() as stack:
        with decoding(where):
            stream = stack.enter_context(remote.open_remote(where, patience)) if remote.is_url(where) else None
            kind = _sniff(where, stream)
            if kind == "parquet":
                parquet = stack.enter_context(pq.ParquetFile(stream or path, page_checksum_verification=True))
                sample = (parquet.metadata.metadata or {}).get(_SAMPLE.encode(), b"").decode()
        if kind == "parquet":
            yield ParquetReader(kind=kind, tree="", sample=sample, handle=parquet, **about)
            return
        opened = functools.cache(lambda: stack.enter_context(_uproot(where, stream)))
        facts, source = None, None
        if stream is None:
            key = _key(path, tree)
            local = stack.enter_context(Path(path).open("rb", buffering=0))
            facts, source = _FACTS.get(key), _LocalBytes(local.fileno())
        if facts is None:
            facts = _facts(where, tree, opened())
        handle = functools.cache(lambda: opened()[facts.tree])
        source = source or handle().file.source
        yield _RootReader(kind=facts.kind, tree=facts.tree, sample=facts.sample, handle=handle, facts=facts,
                          source=source, **about)  # fmt: skip
        if stream is None and facts.kind == "ttree":
            _FACTS.pop(key, None)
            _FACTS[key] = facts  # the latest at the end
            while sum(known.size for known in _FACTS.values()) > _REMEMBERED:
                del _FACTS[next(iter(_FACTS))]


@contextlib.contextmanager
def _uproot(where: str, stream: Any) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        with decoding(where):
            how = _HOW if stream else {**_HOW, "handler": uproot.MultithreadedFileSource}
            opened = stack.enter_context(uproot.open(stream or where, **how))
        yield opened


@dataclasses.dataclass(kw_only=True)
class _Facts:
    """What opening a file costs 30 ms to find out: remembered by each process, which meets a file in many units."""

    kind: str
    tree: str
    sample: str
    names: list[str]
    entries: int
    clusters: npt.NDArray[np.int64]
    known: dict[str, Any]  # baskets.flat_branches, as needed
    unknown: set[str]  # branches that it does not read

    @property
    def size(self) -> int:
        """Number of baskets, at 24 bytes each, and of files."""
        return 1000 + sum(len(branch.seek) for branch in self.known.values())


_FACTS: dict[tuple[str, int, int, str], _Facts] = {}
_REMEMBERED = 2_000_000  # baskets: some 50 MB


def forget() -> None:
    """Open all files anew, for those who measure what that costs."""
    _FACTS.clear()


def _key(path: str | Path, tree: str) -> tuple[str, int, int, str]:
    state = Path(path).stat()
    return str(Path(path).resolve()), state.st_size, state.st_mtime_ns, tree


def _facts(where: str, tree: str, opened: Any) -> _Facts:
    with decoding(where):
        classes = opened.classnames(cycle=False)
        sample = str(opened[_SAMPLE]) if classes.get(_SAMPLE) == "TObjString" else ""
    name = _choose_tree(where, tree, classes, finished=opened.file.fSeekFree > 0)
    with decoding(f"{where}, tree {name}"):
        handle, kind = opened[name], _TREE_CLASSES[classes[name]]
        entries = int(handle.num_entries)
        if kind == "rntuple":
            ends = [summary.num_first_entry + summary.num_entries for summary in handle.cluster_summaries]
        else:
            ends = handle.common_entry_offsets()
        clusters = np.unique(np.array([0, *ends, entries], np.int64))
        names = list(handle.keys(recursive=False))
    return _Facts(kind=kind, tree=name, sample=sample, names=names, entries=entries, clusters=clusters, known={},
                  unknown=set())  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _LocalBytes:
    """Bytes of an open local file, with the one method of uproot's sources that baskets.py needs."""

    descriptor: int

    def chunk(self, begin: int, end: int) -> Any:
        return types.SimpleNamespace(raw_data=np.frombuffer(os.pread(self.descriptor, end - begin, begin), np.uint8))


def _sniff(where: str, stream: Any) -> str:
    """`root` or `parquet` by the first bytes; a ROOT file shorter than its header announces is truncated."""
    if stream is None:
        size = Path(where).stat().st_size
        with Path(where).open("rb") as local:
            head = local.read(20)
    else:
        size, head = stream.raw.size, stream.read(20)
        stream.seek(0)
    if size == 0:
        msg = f"{where}: empty file (0 bytes)"
        raise DamagedFile(msg)
    if head.startswith(b"PAR1"):
        return "parquet"
    if not head.startswith(b"root"):
        msg = f"{where}: neither ROOT nor Parquet, it begins with {head[:8]!r}"
        raise DamagedFile(msg)
    (version,) = struct.unpack(">i", head[4:8])
    (end,) = struct.unpack(">q", head[12:20]) if version >= 1_000_000 else struct.unpack(">i", head[12:16])
    if end > size:
        msg = f"{where}: truncated ROOT file, its header announces {end} bytes, it has {size}"
        raise DamagedFile(msg)
    return "root"


def _choose_tree(where: str, wanted: str, classes: dict[str, str], *, finished: bool) -> str:
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
    if not trees and not finished:
        found += "; the file was not closed by what wrote it (ROOT may recover it: open it there with UPDATE)"
    msg = f"{where}: wanted one TTree or RNTuple, found: {found}" + ("; choose one with tree=<name>" if trees else "")
    raise DamagedFile(msg)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _RootReader(JetReader):
    """A TTree or RNTuple; `handle()` is uproot's, opened when it is needed, `source` gives bytes of the file."""

    facts: _Facts
    source: Any

    @property
    def names(self) -> list[str]:
        return self.facts.names

    @property
    def entries(self) -> int:
        return self.facts.entries

    def clusters(self) -> npt.NDArray[np.int64]:
        return self.facts.clusters

    def bytes_per_entry(self, columns: Sequence[str] | None = None, *, round_doubles: bool = False) -> int:
        first = super().bytes_per_entry(columns, round_doubles=round_doubles)
        if self.kind != "ttree":
            return first
        handle = self.handle()
        branches = [handle[name] for column in self.layout.select(columns) for name in column.branches]
        return -(-sum(int(branch.uncompressed_bytes) for branch in branches) // self.entries)  # of all, not the first

    def _flat(self, branches: Sequence[tuple[str, schema.Column]], start: int, stop: int) -> Iterable[FlatColumn]:
        names, facts = [name for name, _ in branches], self.facts
        with decoding(f"{self.path}, entries {start}-{stop}"):
            if self.kind == "ttree":
                new = [name for name in names if name not in facts.known and name not in facts.unknown]
                facts.known.update(baskets.flat_branches(self.handle(), new) if new else {})
                facts.unknown.update(name for name in new if name not in facts.known)
            direct = [name for name in names if name in facts.known]
            columns = baskets.read_branches(self.source, facts.known, direct, start, stop)
            rest = [name for name in names if name not in facts.known]
            arrays = (
                self.handle().arrays(filter_name=rest, entry_start=start, entry_stop=stop, library="ak", how=dict)
                if rest
                else {}
            )
        for name, column in branches:
            if name in facts.known:
                with decoding(f"{self.path}, entries {start}-{stop}, {column.name}"):
                    offsets, values = next(columns)
                if (offsets is not None) != column.jagged:
                    raise self._wrong_type(column, f"{'a list of ' if column.jagged is False else ''}{values.dtype}")
                yield offsets, values
            else:
                rest.remove(name)  # a branch may belong to two columns; its buffers live until the last is converted
                yield self._from_awkward((arrays[name] if name in rest else arrays.pop(name)).layout, column)

    def _from_awkward(self, layout: Any, column: schema.Column) -> FlatColumn:
        found, offsets = str(layout.form.type), None
        if column.jagged:
            if not layout.is_list:
                raise self._wrong_type(column, found)
            layout = layout.to_ListOffsetArray64(True)
            offsets = np.asarray(layout.offsets.data)
            layout = layout.content[: offsets[-1]]
        if not layout.is_numpy or layout.purelist_depth != 1 or layout.dtype.kind not in "biuf":
            raise self._wrong_type(column, found)
        return offsets, np.asarray(layout.data)
