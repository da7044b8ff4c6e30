"""`log.txt` of a run folder: what the person saw on the terminal, with time stamps, appended by every run.

Standard output, standard error and log messages of the driver go to the terminal as before and, line by line, to the
file. Of a progress bar, which writes over its own line, only the last state is kept. The file is opened once its folder
exists: a command that fails before it makes one leaves no trace. A log that cannot be written stops nothing. Behind a
URL it is copied there every ten seconds and at the end: of a killed command the last seconds are lost.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import platform
import re
import shlex
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from jetfoundry import files
from jetfoundry.errors import JetFoundryError

__all__ = ["LOG", "Transcript"]

LOG = "log.txt"
"""Name of the file in the run folder."""

_EVERY = 10.0  # seconds between two copies to a URL

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Transcript:
    """While it is open, the terminal is copied to the file `path`.

    >>> with Transcript("runs/demo/log.txt", ["pretrain.py", "run=runs/demo"]):
    ...     print("epoch 1")  # doctest: +SKIP
    """

    def __init__(self, path: str | Path, command: Sequence[str]) -> None:
        target = files.place(path)
        self._mirror = files.Mirror(target.parent, [target.name])
        self._path = self._mirror.folder / target.name
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="jetfoundry-log", daemon=True)
        self._lines = [self._stamped(f"$ {shlex.join(command)}  (process {os.getpid()} on {platform.node()})")]
        self._lock = threading.Lock()
        self._handler = _Handler(self)
        self._began = time.monotonic()

    def __enter__(self) -> Transcript:
        self._terminal = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (_Copy(stream, self) for stream in self._terminal)
        logging.getLogger().addHandler(self._handler)
        if self._mirror.folder is not self._mirror.target:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for copy in (sys.stdout, sys.stderr):
            if isinstance(copy, _Copy):
                copy.finish()
        sys.stdout, sys.stderr = self._terminal
        logging.getLogger().removeHandler(self._handler)
        if kind is not None:  # a bug: its traceback is printed when nobody listens any more
            for line in "".join(traceback.format_exception(kind, error, where)).splitlines():
                self.add(line)
        self.add(f"ended after {time.monotonic() - self._began:.1f} s")
        if self._thread.is_alive():
            self._ended.set()
            self._thread.join()
            self._save()
        self._mirror.close()

    def add(self, line: str) -> None:
        """Append one line."""
        with self._lock, contextlib.suppress(OSError):
            self._lines.append(self._stamped(line))
            self._write()

    def _write(self) -> None:
        if self._path.parent.is_dir():
            with self._path.open("a", encoding="utf-8") as stream:
                stream.writelines(self._lines)
            self._lines.clear()

    def _follow(self) -> None:
        """Copy the log to its URL now and then; in a thread, so that nobody who says something waits for a server."""
        while not self._ended.wait(_EVERY if self._save() else 1.0):
            pass

    def _save(self) -> bool:
        """Copy the log, if its folder is there: that of a run which has begun."""
        with contextlib.suppress(OSError, JetFoundryError):
            if files.exists(self._mirror.target):
                with self._lock:
                    self._write()  # the command itself, if nothing was said yet
                self._mirror.save()
                return True
        return False

    @staticmethod
    def _stamped(line: str) -> str:
        return f"{datetime.datetime.now().astimezone().isoformat(timespec='seconds')} {line}\n"


class _Copy:
    """A text stream whose whole lines also go to the transcript."""

    def __init__(self, stream: TextIO, transcript: Transcript) -> None:
        self._stream, self._transcript, self._rest = stream, transcript, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        *lines, rest = (self._rest + text).split("\n")
        for line in lines:
            self._add(line)
        self._rest = _last_state(rest)
        return self._stream.write(text)

    def finish(self) -> None:
        self._add(self._rest)
        self._rest = ""

    def _add(self, line: str) -> None:
        shown = _ESCAPES.sub("", _last_state(line)).rstrip()
        if shown:
            self._transcript.add(shown)


def _last_state(line: str) -> str:
    """What a terminal shows of a line that was written over; a carriage return at its end is kept.

    >>> _last_state("10%\\r20%\\r"), _last_state("a\\r   \\rb")
    ('20%\\r', 'b')
    """
    states = [state for state in line.split("\r") if state.strip()]
    return (states[-1] if states else "") + "\r" * line.endswith("\r")


class _Handler(logging.Handler):
    """Log messages go to the terminal by a handler that knows the stream itself; this one is for the transcript."""

    def __init__(self, transcript: Transcript) -> None:
        super().__init__()
        self._transcript = transcript

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():
            self._transcript.add(line)
