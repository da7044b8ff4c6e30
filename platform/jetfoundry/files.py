"""Atomic writes and checksums: a file is either whole under its name or not there.

The way to commit is always the same: write beside the target, flush to disk, rename. A killed process leaves
at most a `*.tmp.<pid>` file, which no reader looks at.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from jetfoundry.errors import InputError

__all__ = ["committed", "locked", "read_json", "sha256_bytes", "sha256_file", "write_json", "write_text", "xxh128_file"]


@contextlib.contextmanager
def committed(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it is flushed and renamed, else removed."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.tmp.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: str | Path, *, shared: bool = False, wait: float = 0.0) -> Iterator[bool]:
    """Hold a lock on the file `path` (made if need be); yields False if it is not free within `wait` seconds.

    Several processes may hold a shared lock at once, an exclusive one excludes all others. The kernel frees it when the
    process ends, in whatever way. On a file system without locks everybody gets it.
    """
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


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    with committed(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically. NaN and infinity are refused: they are not JSON, and never a result of ours."""
    write_text(path, json.dumps(value, indent=1, sort_keys=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a missing or damaged one is an InputError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path}: cannot read as JSON: {error}"
        raise InputError(msg) from error


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of `data` in hex."""
    return hashlib.sha256(data).hexdigest()


def xxh128_file(path: str | Path) -> str:
    """XXH128 of a file's content, in hex; `xxh128sum` prints the same."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's content in hex."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
