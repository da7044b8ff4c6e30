"""Files behind a URL, by fsspec: `s3://`, `https://`, `root://` (needs fsspec-xrootd), `memory://` and whatever else.

`RemoteFile` reads any range, patiently: a server that does not answer is asked again, after 1, 2, 4 … 15 seconds, for
`patience` seconds in all. Then the job ends with an error that says so; what is committed stays. What a server
refuses (no such file, no permission) is not asked for twice, and what can only be a bug passes as it is. Whatever else
a file system raises counts as no answer: each has errors of its own for a lost connection.

Credentials come from where the file system takes them (environment variables, a configuration file), never from the
URL: URLs are kept in manifests, configurations and reports.
"""

from __future__ import annotations

import functools
import hashlib
import io
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec

from jetfoundry.errors import InputError

__all__ = [
    "PATIENCE",
    "RemoteFile",
    "file_system",
    "is_from_server",
    "is_url",
    "open_remote",
    "patiently",
    "read_ranges",
    "stamp_of",
]

PATIENCE = 120.0
"""Seconds for which a server that does not answer is asked again."""

_LONGEST_WAIT = 15.0  # seconds between two attempts
_READ_AHEAD = 1 << 18  # bytes: the head of a ROOT file is read in many small pieces
_BUGS = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError)
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError")  # of botocore, which is not always there
_CLIENTS = ("XRootD", "adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "s3fs")
_MODIFIED = ("ETag", "etag", "LastModified", "mtime", "last_modified", "created")

T = TypeVar("T")


def is_url(path: str) -> bool:
    """Whether a path names a protocol."""
    return "://" in path


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it; InputError if it cannot be had, or holds a key."""
    parts = urlsplit(url)
    if parts.username or parts.password or (parts.scheme in ("http", "https") and parts.query):
        msg = f"{parts.scheme}://{parts.hostname or ''}…: a URL with a password or key in it would be kept in "
        msg += "manifests and logs; give credentials by environment variables"
        raise InputError(msg)
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        msg = f"{url}: {parts.scheme}:// needs a Python package that is not installed: {error}"
        raise InputError(msg) from error
    except ValueError as error:
        msg = f"{url}: {error}"
        raise InputError(msg) from error
    return system, path


def patiently(what: str, call: Callable[[], T], patience: float = PATIENCE, doing: str = "read") -> T:
    """What `call` returns, tried again while the other side does not answer; InputError when patience has run out.

    InputError at once for what it refuses; errors that are none of a server's (TypeError, say) pass. Messages say that
    `doing` it to `what` is what could not be done.
    """
    started, wait = time.monotonic(), 1.0
    while True:
        try:
            return call()
        except _BUGS:
            raise
        except Exception as error:
            refusal = _refusal(error)
            if refusal:
                msg = f"{what}: cannot {doing}: {refusal}"
                raise InputError(msg) from error
            if time.monotonic() - started + wait > patience:
                msg = (
                    f"{what}: cannot {doing}: no answer for {patience:g} s ({_text(error)}); the same command continues"
                )
                raise InputError(msg) from error
        time.sleep(wait)
        wait = min(2 * wait, _LONGEST_WAIT)


def is_from_server(error: BaseException) -> bool:
    """Whether an error, or its cause, is of a package that speaks to servers: not of the program, then."""
    found: BaseException | None = error
    while found is not None:
        if type(found).__module__.partition(".")[0] in _CLIENTS:
            return True
        found = found.__cause__
    return False


def _refusal(error: Exception) -> str:
    """Why asking again would not help, or ''. XRootD gives the number of its error in the text only."""
    if isinstance(error, FileNotFoundError) or "[ERROR] Server responded with an error: [3011]" in str(error):
        return "no such file"
    refused = isinstance(error, (PermissionError, IsADirectoryError, NotADirectoryError, ValueError))
    refused |= type(error).__name__ in _NO_CREDENTIALS or "[ERROR] Server responded with an error: [3010]" in str(error)
    return f"refused: {_text(error)}" if refused else ""


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def stamp_of(url: str, patience: float = PATIENCE) -> tuple[int, int]:
    """Size in bytes, and a number that changes with the content: from its ETag or its time of modification."""
    system, path = file_system(url)

    def ask() -> dict[str, Any]:
        system.invalidate_cache()
        info: dict[str, Any] = system.info(path)
        return info

    info = patiently(url, ask, patience)
    size = info.get("size")
    if not isinstance(size, int):
        msg = f"{url}: cannot read: the server does not say how large it is"
        raise InputError(msg)
    mark = next((str(info[key]) for key in _MODIFIED if info.get(key)), "")
    return size, int.from_bytes(hashlib.sha256(mark.encode()).digest()[:7], "big")


class RemoteFile(io.RawIOBase):
    """A file behind a URL, open for reading; see this file's head for what happens when the server goes away."""

    def __init__(self, url: str, patience: float = PATIENCE) -> None:
        super().__init__()
        self.url, self.patience = url, patience
        self.system, self.path = file_system(url)
        self.size, _ = stamp_of(url, patience)
        self.at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def readinto(self, buffer: Any) -> int:
        stop = min(self.at + len(buffer), self.size)
        if stop <= self.at:
            return 0
        ask = functools.partial(self.system.cat_file, self.path, start=self.at, end=stop)
        data = patiently(self.url, ask, self.patience)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def open_remote(url: str, patience: float = PATIENCE) -> io.BufferedReader:
    """Open a URL for reading, with some read-ahead."""
    return io.BufferedReader(RemoteFile(url, patience), _READ_AHEAD)


def read_ranges(url: str, ranges: Sequence[tuple[int, int]], patience: float = PATIENCE) -> list[bytes]:
    """The bytes (begin, end) of a file, all ranges asked for at once where the file system can do that."""
    system, path = file_system(url)
    begins, ends = (list(each) for each in zip(*ranges, strict=True))

    def ask() -> list[bytes]:
        found: list[bytes] = system.cat_ranges([path] * len(begins), begins, ends, on_error="raise")
        return found

    return patiently(url, ask, patience)
