"""Places on this machine and behind URLs, atomic writes, checksums: a file is either whole under its name or not there.

A place that a user names (`place`) is a folder or file of this machine, or a URL that fsspec knows (`s3://bucket/run`).
Both are written in one way, `committed`. Here: write beside the target, flush to disk, rename; a killed process leaves
at most a `*.tmp.<pid>` file, which no reader looks at. Behind a URL: write a local file and hand it over whole, which
an object store shows at its end and not before. What must be a true file, or grows, is a local copy (`fetched`,
`Mirror`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

import xxhash
from upath import UPath

from jetfoundry import remote
from jetfoundry.errors import InputError

__all__ = [
    "Mirror", "committed", "exists", "fetched", "for_each", "is_remote", "locked", "make_folder", "opened", "place",
    "read_json", "read_text", "sha256_bytes", "sha256_file", "write_json", "write_text", "xxh128_file",
]  # fmt: skip

_LOCAL = ("file", "local")
_AT_ONCE = 16  # requests to a server
_STORES = ("abfs", "abfss", "adl", "az", "gcs", "gs", "memory", "oci", "oss", "r2", "s3", "s3a")
"""Protocols of object stores: no folders to make, and an upload is seen when it is complete."""
_WITH_SLASHES = {*_STORES, "ftp", "hdfs", "http", "https", "root", "sftp", "ssh"} - {"memory"}

T = TypeVar("T")
R = TypeVar("R")


def place(name: str | Path, *, ask: bool = True) -> Path:
    """The folder or file that `name`, a path or a URL, means.

    Behind a URL it is a UPath, which has the methods of the Path that it is typed as but is no file name: what opens
    files by name takes `opened` or `fetched`. InputError for a URL with a key in it, or whose server refuses us: it is
    asked once, unless not to `ask` is wanted (to read a configuration must do nothing).
    """
    if isinstance(name, str) and remote.is_url(name):
        system, inside = remote.file_system(name)
        if any(protocol in _LOCAL for protocol in _protocols(system)):
            return Path(inside)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of protocols for which there is no special class
            # Other processes write there, too: nothing may be answered from memory.
            name = cast("Path", UPath(name.rstrip("/"), use_listings_cache=False))
    path = Path(name) if isinstance(name, str) else name
    _refuse_mangled(path)
    if ask and is_remote(path):
        _greet(_behind(path))
    return path


_GREETED: set[str] = set()


def _greet(path: UPath) -> None:
    """Ask each server once for something: credentials that lack are an error in one line here, a crash elsewhere."""
    server = "://".join(urlsplit(str(path))[:2])
    if server not in _GREETED:
        remote.patiently(str(path), lambda: path.fs.exists(path.path), doing="use")
        _GREETED.add(server)


def _refuse_mangled(path: Path) -> None:
    """`Path` makes s3:/bucket of a URL: better an error than a folder of the name `s3:`."""
    if isinstance(path, Path) and str(path).partition(":/")[0] in _WITH_SLASHES:
        msg = f"{path}: neither a path nor a URL; wanted {str(path).replace(':/', '://', 1)}, where a URL can be taken"
        raise InputError(msg)


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def is_remote(path: Path) -> bool:
    """Whether a place is behind a URL."""
    return not isinstance(path, Path)


def make_folder(path: Path) -> None:
    """Make a folder with its parents, if it is not there; an object store has none and needs none."""
    _refuse_mangled(path)
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)
    elif _behind(path).protocol not in _STORES:
        where = _behind(path)
        remote.patiently(str(path), lambda: where.fs.makedirs(where.path, exist_ok=True), doing="write")


def _behind(path: Path) -> UPath:
    return cast("UPath", path)


@contextlib.contextmanager
def committed(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path, of a local file; on a clean exit it becomes the file at `path`, else it is removed.

    Behind a URL InputError if the server refuses it, or does not answer for `remote.PATIENCE` seconds.
    """
    target = place(path)
    if is_remote(target):
        with tempfile.TemporaryDirectory(prefix="jetfoundry-") as folder:
            temporary = Path(folder) / target.name
            yield temporary
            _upload(temporary, target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.tmp.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _upload(local: Path, target: Path) -> None:
    """Whole or not at all: an object store sees to that, elsewhere it is renamed at the end."""
    where = _behind(target)

    def put() -> None:
        if where.protocol in _STORES:
            where.fs.put_file(str(local), where.path)
            return
        beside = f"{where.path}.tmp.{os.getpid()}"
        where.fs.makedirs(where.parent.path, exist_ok=True)
        where.fs.put_file(str(local), beside)
        where.fs.mv(beside, where.path)

    remote.patiently(str(target), put, doing="write")


@contextlib.contextmanager
def fetched(path: str | Path) -> Iterator[Path]:
    """Yield a true file with the content of `path`: that itself, or a copy of what is behind a URL, removed at the end.

    What has it mapped into memory then keeps it. InputError if the server does not give it.
    """
    source = place(path)
    if not is_remote(source):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="jetfoundry-") as folder:
        local = Path(folder) / source.name
        _download(source, local)
        yield local


def _download(source: Path, local: Path) -> None:
    where = _behind(source)
    remote.patiently(str(source), lambda: where.fs.get_file(where.path, str(local)))


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[Path | BinaryIO]:
    """Yield what readers of parts of a file (Arrow, uproot) take: its path, or an open file behind a URL."""
    source = place(path)
    if not is_remote(source):
        yield source
        return
    with remote.open_remote(str(source)) as stream:
        yield cast("BinaryIO", stream)


class Mirror:
    """A folder of this machine whose files `save` copies to `target`, for files that grow, as logs do.

    `target` itself, with nothing to copy, if it is on this machine. Of what is there already, `names` are fetched. Two
    that write files of one name overwrite each other's: the last to save wins.
    """

    def __init__(self, target: Path, names: Iterable[str] = ()) -> None:
        self.target, self.folder = target, target
        self._copied: dict[Path, tuple[int, int]] = {}
        if is_remote(target):
            self._temporary = tempfile.TemporaryDirectory(prefix="jetfoundry-")
            self.folder = Path(self._temporary.name)
            for name in names:
                if (target / name).exists():
                    _download(target / name, self.folder / name)

    def save(self) -> None:
        """Copy what has changed since the last time."""
        if self.folder is self.target:
            return
        for path in sorted(self.folder.rglob("*")):
            state = path.stat()
            mark = state.st_size, state.st_mtime_ns
            if path.is_file() and self._copied.get(path) != mark:
                _upload(path, self.target / path.relative_to(self.folder).as_posix())
                self._copied[path] = mark

    def close(self) -> None:
        """Remove the local copy."""
        if self.folder is not self.target:
            self._temporary.cleanup()


def for_each(call: Callable[[T], R], items: Iterable[T], folder: Path) -> list[R]:
    """`[call(item), …]`: behind a URL several at once, because each waits for the server."""
    if not is_remote(folder):
        return [call(item) for item in items]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(call, items))


@contextlib.contextmanager
def locked(path: str | Path, *, shared: bool = False, wait: float = 0.0) -> Iterator[bool]:
    """Hold a lock on the file `path` (made if need be); yields False if it is not free within `wait` seconds.

    Several processes may hold a shared lock at once, an exclusive one excludes all others. The kernel frees it when the
    process ends, in whatever way. On a file system without locks, and behind a URL, everybody gets it.
    """
    if is_remote(place(path)):
        yield True
        return
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    deadline = time.monotonic() + wait
    with Path(path).open("a+b") as stream:  # NFS gives a shared lock only to those who may read
        while True:
            try:
                fcntl.flock(stream, operation)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    yield False
                    return
                time.sleep(0.05)
                continue
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
            yield True
            return


def exists(path: str | Path) -> bool:
    """Whether there is something at `path`; a name that no file can have is not there. InputError if a server does not
    say it."""
    try:
        target = place(path)
        return remote.patiently(str(path), target.exists) if is_remote(target) else target.exists()
    except (OSError, ValueError):  # too long, or with a zero in it
        return False


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    with committed(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically. NaN and infinity are refused: they are not JSON, and never a result of ours."""
    write_text(path, json.dumps(value, indent=1, sort_keys=False, allow_nan=False) + "\n")


def read_text(path: str | Path) -> str:
    """A text file; OSError or ValueError if it cannot be read, InputError if a server does not give it."""
    source = place(path)
    if not is_remote(source):
        return source.read_text(encoding="utf-8")
    return remote.patiently(str(source), lambda: source.read_text(encoding="utf-8"))


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a missing or damaged one is an InputError that names it."""
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError) as error:
        msg = f"{path}: cannot read as JSON: {error}"
        raise InputError(msg) from error


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of `data` in hex."""
    return hashlib.sha256(data).hexdigest()


def xxh128_file(path: str | Path) -> str:
    """XXH128 of a file's content, in hex; `xxh128sum` prints the same."""
    with fetched(path) as local, local.open("rb") as stream:
        return hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's content in hex."""
    with fetched(path) as local, local.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
