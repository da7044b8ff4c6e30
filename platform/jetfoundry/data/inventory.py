"""What there is to read: paths and patterns -> files with kind, tree, entries, clusters; bad ones with a reason.

A file that is not ROOT or Parquet, is truncated, has no jets, lacks a branch or stores one in a type that does not
fit is set aside here, before any work is planned; the job goes on with the others. A path that does not exist is
an error at once: it is a slip of the pen, not a damaged file.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from jetfoundry import ray_session
from jetfoundry.data.delphes import open_source
from jetfoundry.data.delphes_jets import DelphesConfig
from jetfoundry.data.root import DamagedFile
from jetfoundry.errors import InputError, nearest

__all__ = ["Inventory", "SetAsideFile", "Source", "expand", "stamp", "take_inventory"]

_SUFFIXES = (".root", ".parquet")
_SCAN_BY_RAY = 32  # files from which on the scan runs as Ray tasks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A file of jets that can be read."""

    path: str
    kind: str  # ttree, rntuple, parquet or delphes
    tree: str  # '' for Parquet
    entries: int
    clusters: tuple[int, ...]  # entry numbers from 0 to `entries`, see JetReader.clusters
    bytes_per_jet: int  # in memory, of an entry, estimated from the first ones
    sample: str  # what the jets are, if the file says so
    size: int
    mtime_ns: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetAsideFile:
    """A file that is not used, and why."""

    path: str
    reason: str
    size: int
    mtime_ns: int


@dataclasses.dataclass(frozen=True)
class Inventory:
    """All inputs in the order of their paths; `source_file` of a jet is an index into `sources`."""

    sources: tuple[Source, ...]
    set_aside: tuple[SetAsideFile, ...]


def expand(inputs: Iterable[str]) -> list[Path]:
    """The files meant by paths, patterns (`*`, `?`, `[…]`, `**`) and folders, each once, sorted, absolute.

    One string may hold several, separated by spaces or commas. A folder stands for its ROOT and Parquet files.
    Raises InputError for a path that does not exist and a pattern or folder without files.
    """
    found: set[Path] = set()
    for text in inputs:
        names = [text] if Path(text).expanduser().exists() else [name for name in re.split(r"[\s,]+", text) if name]
        for name in names:
            found.update(path.resolve() for path in _matches(name))
    if not found:
        msg = "no input: wanted paths of ROOT or Parquet files, e.g. input='data/*.root'"
        raise InputError(msg)
    return sorted(found)


def _matches(name: str) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_dir():
        files = [file for file in path.iterdir() if file.suffix in _SUFFIXES]
    elif path.exists():
        return [path]
    elif any(sign in name for sign in "*?["):
        files = [file for file in Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))) if file.is_file()]
    else:
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        msg = f"{name}: no such file; {nearest(path.name, beside)}"
        raise InputError(msg)
    if not files:
        msg = f"{name}: no ROOT or Parquet file there"
        raise InputError(msg)
    return files


def stamp(path: str | Path) -> tuple[int, int]:
    """Size in bytes and modification time in ns; InputError if the file has gone."""
    try:
        status = Path(path).stat()
    except OSError as error:
        msg = f"{path}: cannot read: {error.strerror}"
        raise InputError(msg) from error
    return status.st_size, status.st_mtime_ns


def take_inventory(
    paths: Sequence[Path],
    *,
    tree: str = "",
    columns: Sequence[str] | None = None,
    round_doubles: bool = False,
    delphes: DelphesConfig | None = None,
) -> Inventory:
    """Open every file once; many files are opened by Ray tasks.

    `columns` are those that must be there (None = all 54 of JetClass-II). With `delphes` the files hold Delphes events.
    """

    def scan(path: Path) -> Source | SetAsideFile:
        return _scan(str(path), tree, columns, round_doubles, delphes)

    found = [scan(path) for path in paths] if len(paths) < _SCAN_BY_RAY else _scan_by_ray(paths, scan)
    return Inventory(
        tuple(item for item in found if isinstance(item, Source)),
        tuple(item for item in found if isinstance(item, SetAsideFile)),
    )


def _scan(
    path: str, tree: str, columns: Sequence[str] | None, round_doubles: bool, delphes: DelphesConfig | None
) -> Source | SetAsideFile:
    size, mtime_ns = stamp(path)
    try:
        with open_source(path, tree=tree, delphes=delphes) as reader:
            reader.require(columns)
            if reader.entries == 0:
                msg = f"{path}: no entries"
                raise DamagedFile(msg)
            return Source(
                path=path,
                kind=reader.kind,
                tree=reader.tree,
                entries=reader.entries,
                clusters=tuple(reader.clusters().tolist()),
                bytes_per_jet=reader.bytes_per_entry(columns, round_doubles=round_doubles),
                sample=reader.sample,
                size=size,
                mtime_ns=mtime_ns,
            )
    except DamagedFile as error:
        return SetAsideFile(path=path, reason=str(error), size=size, mtime_ns=mtime_ns)


def _scan_by_ray(paths: Sequence[Path], scan: Callable[[Path], Source | SetAsideFile]) -> list[Source | SetAsideFile]:
    import ray

    def task(row: dict[str, Any]) -> dict[str, Any]:
        found = scan(Path(row["path"]))
        return {"path": row["path"], "usable": isinstance(found, Source), "json": json.dumps(dataclasses.asdict(found))}

    blocks = min(len(paths), 4 * ray_session.available_cpus())
    rows = ray.data.from_items([{"path": str(path)} for path in paths], override_num_blocks=blocks)
    found: dict[str, Source | SetAsideFile] = {}
    for row in rows.map(task).iter_rows():
        fields = json.loads(row["json"])
        if row["usable"]:
            fields["clusters"] = tuple(fields["clusters"])
            found[row["path"]] = Source(**fields)
        else:
            found[row["path"]] = SetAsideFile(**fields)
    return [found[str(path)] for path in paths]
