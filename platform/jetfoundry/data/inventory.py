"""What there is to read: paths, patterns and URLs -> files with kind, tree, entries, clusters; bad ones with a reason.

Inputs are paths, patterns, folders or URLs of them, each with an optional group as in weaver: `Res2P:/data/a/*.root
QCD:s3://bucket/b/*.root`. The group is kept beside the file; the jets are the same with and without it.

A file that is not ROOT or Parquet, is truncated, has no jets, lacks a branch or stores one in a type that does not
fit is set aside here, before any work is planned; the job goes on with the others. A path that does not exist is
an error at once: it is a slip of the pen, not a damaged file. So is a file that is meant twice: its jets would be too.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from jetfoundry import ray_session, remote
from jetfoundry.data.delphes import open_source
from jetfoundry.data.delphes_jets import DelphesConfig
from jetfoundry.data.layouts import JETCLASS2, Layout
from jetfoundry.data.reader import DamagedFile
from jetfoundry.errors import InputError, nearest

__all__ = ["InputFile", "Inventory", "SetAsideFile", "Source", "expand", "stamp", "take_inventory"]

_SUFFIXES = (".root", ".parquet")
_SCAN_BY_RAY = 32  # files from which on the scan runs as Ray tasks


@dataclasses.dataclass(frozen=True, order=True)
class InputFile:
    """A file that is meant: absolute path or URL, and the group it stands in ('' = none)."""

    path: str
    group: str = ""


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
    mtime_ns: int  # of a URL: a number that changes with the file, see remote.py
    group: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetAsideFile:
    """A file that is not used, and why."""

    path: str
    reason: str
    size: int
    mtime_ns: int
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Inventory:
    """All inputs in the order of their paths; `source_file` of a jet is an index into `sources`."""

    sources: tuple[Source, ...]
    set_aside: tuple[SetAsideFile, ...]


def expand(inputs: Iterable[str], patience: float = remote.PATIENCE) -> list[InputFile]:
    """The files meant by paths, patterns (`*`, `?`, `[…]`, `**`), folders and URLs of these, sorted by path.

    One string may hold several, separated by spaces or commas, each with its `group:`. A folder stands for its ROOT
    and Parquet files. Raises InputError for a path that does not exist, a pattern or folder without files, and a file
    that is meant twice.
    """
    meant: dict[str, tuple[str, str]] = {}
    for text in inputs:
        names = [text] if Path(text).expanduser().exists() else [name for name in re.split(r"[\s,]+", text) if name]
        for name in names:
            group, pattern = _split_group(name)
            for path in _remote_matches(pattern, patience) if remote.is_url(pattern) else _matches(pattern):
                if path in meant:
                    first, again = meant[path][1], f" and {name}" if name != meant[path][1] else " twice"
                    msg = f"{path}: the same file is meant by {first}{again}; its jets would be there twice"
                    raise InputError(msg)
                meant[path] = group, name
    if not meant:
        msg = "no input: wanted paths of ROOT or Parquet files, e.g. input='data/*.root'"
        raise InputError(msg)
    return sorted(InputFile(path, group) for path, (group, _) in meant.items())


def _split_group(name: str) -> tuple[str, str]:
    """`group:path` -> (group, path); the colon of a URL does not count, nor one in the name of a file that is there.

    >>> _split_group("QCD:s3://a/b.root"), _split_group("s3://a/b.root"), _split_group("QCD:b/*.root")
    (('QCD', 's3://a/b.root'), ('', 's3://a/b.root'), ('QCD', 'b/*.root'))
    """
    found = re.fullmatch(r"(\w+):(?!//)(.+)", name)
    return (found[1], found[2]) if found and not Path(name).expanduser().exists() else ("", name)


def _matches(name: str) -> list[str]:
    path = Path(name).expanduser()
    if path.is_dir():
        files = [file for file in path.iterdir() if file.suffix in _SUFFIXES]
    elif path.exists():
        files = [path]
    elif any(sign in name for sign in "*?["):
        files = [file for file in Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))) if file.is_file()]
    else:
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        msg = f"{name}: no such file; {nearest(path.name, beside)}"
        raise InputError(msg)
    if not files:
        msg = f"{name}: no ROOT or Parquet file there"
        raise InputError(msg)
    real = sorted((str(file.resolve()), str(file)) for file in files)
    for (one, first), (other, second) in itertools.pairwise(real):
        if one == other:
            msg = f"{one}: the same file is meant by {first} and {second}; its jets would be there twice"
            raise InputError(msg)
    return [path for path, _ in real]


def _remote_matches(url: str, patience: float) -> list[str]:
    """The files meant by a URL: itself, what a pattern in it matches, or the ROOT and Parquet files of a folder."""
    system, path = remote.file_system(url)
    if system.protocol in ("file", "local") or "file" in system.protocol:
        return _matches(path)

    def ask() -> list[str]:
        system.invalidate_cache()
        if any(sign in path for sign in "*["):
            return [found for found in system.glob(path) if not system.isdir(found)]
        if system.isfile(path):
            return [path]
        return [name for name in system.ls(path, detail=False) if Path(name).suffix in _SUFFIXES]

    found = remote.patiently(url, ask, patience)
    if not found:
        msg = f"{url}: no ROOT or Parquet file there"
        raise InputError(msg)
    return sorted(system.unstrip_protocol(name) for name in found)


def stamp(path: str | Path, patience: float = remote.PATIENCE) -> tuple[int, int]:
    """Size in bytes and modification time in ns (of a URL: see remote.py); InputError if the file has gone."""
    if remote.is_url(str(path)):
        return remote.stamp_of(str(path), patience)
    try:
        status = Path(path).stat()
    except OSError as error:
        msg = f"{path}: cannot read: {error.strerror}"
        raise InputError(msg) from error
    return status.st_size, status.st_mtime_ns


def take_inventory(
    inputs: Sequence[InputFile | Path | str],
    *,
    tree: str = "",
    columns: Sequence[str] | None = None,
    round_doubles: bool = False,
    delphes: DelphesConfig | None = None,
    layout: Layout = JETCLASS2,
    patience: float = remote.PATIENCE,
) -> Inventory:
    """Open every file once; many files are opened by Ray tasks.

    `columns` are those that must be there (None = all of `layout`). With `delphes` the files hold Delphes events.
    """
    paths = [file if isinstance(file, InputFile) else InputFile(str(file)) for file in inputs]

    def scan(file: InputFile) -> Source | SetAsideFile:
        how = {"tree": tree, "delphes": delphes, "layout": layout, "patience": patience}
        return _scan(file, how, columns, round_doubles)

    found = [scan(path) for path in paths] if len(paths) < _SCAN_BY_RAY else _scan_by_ray(paths, scan)
    return Inventory(
        tuple(item for item in found if isinstance(item, Source)),
        tuple(item for item in found if isinstance(item, SetAsideFile)),
    )


def _scan(
    file: InputFile, how: dict[str, Any], columns: Sequence[str] | None, round_doubles: bool
) -> Source | SetAsideFile:
    size, mtime_ns = stamp(file.path, how["patience"])
    about: dict[str, Any] = {"path": file.path, "size": size, "mtime_ns": mtime_ns, "group": file.group}
    try:
        with open_source(file.path, **how) as reader:
            reader.require(columns)
            if reader.entries == 0:
                msg = f"{file.path}: no entries"
                raise DamagedFile(msg)
            return Source(
                kind=reader.kind,
                tree=reader.tree,
                entries=reader.entries,
                clusters=tuple(reader.clusters().tolist()),
                bytes_per_jet=reader.bytes_per_entry(columns, round_doubles=round_doubles),
                sample=reader.sample,
                **about,
            )
    except DamagedFile as error:
        return SetAsideFile(reason=str(error), **about)


def _scan_by_ray(
    paths: Sequence[InputFile], scan: Callable[[InputFile], Source | SetAsideFile]
) -> list[Source | SetAsideFile]:
    import ray

    def task(row: dict[str, Any]) -> dict[str, Any]:
        found = scan(InputFile(row["path"], row["group"]))
        return {"path": row["path"], "usable": isinstance(found, Source), "json": json.dumps(dataclasses.asdict(found))}

    blocks = min(len(paths), 4 * ray_session.available_cpus())
    rows = ray.data.from_items([dataclasses.asdict(path) for path in paths], override_num_blocks=blocks)
    found: dict[str, Source | SetAsideFile] = {}
    for row in rows.map(task).iter_rows():
        fields = json.loads(row["json"])
        if row["usable"]:
            fields["clusters"] = tuple(fields["clusters"])
            found[row["path"]] = Source(**fields)
        else:
            found[row["path"]] = SetAsideFile(**fields)
    return [found[file.path] for file in paths]
