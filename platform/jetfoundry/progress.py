"""Progress of a long job: a bar on a terminal; in a batch job or a pipe, a log line now and then."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

from tqdm import tqdm

__all__ = ["Progress", "progress"]

_EVERY = 60.0  # seconds between two log lines

log = logging.getLogger(__name__)


class Progress:
    """Counts what is done; made by `progress`."""

    def __init__(self, what: str, unit: str, total: int, bar: tqdm) -> None:  # type: ignore[type-arg]
        self.what, self.unit, self.total, self.done = what, unit, total, 0
        self._bar, self._began = bar, time.monotonic()
        self._said = self._began

    def update(self, done: int = 1, note: str = "") -> None:
        """`done` more are done; `note` is shown behind the figures."""
        self.done += done
        if not self._bar.disable:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done)
            return
        now = time.monotonic()
        if now - self._said >= _EVERY:
            self._said = now
            share = f"{self.done:,} of {self.total:,} {self.unit}s ({self.done / max(self.total, 1):.0%})"
            rate = f"{self.done / (now - self._began):,.0f} {self.unit}s/s"
            log.info("%s: %s, %s%s", self.what, share, rate, f", {note}" if note else "")

    @property
    def seconds(self) -> float:
        """Since the start, never 0."""
        return max(time.monotonic() - self._began, 1e-9)


@contextlib.contextmanager
def progress(what: str, unit: str, total: int) -> Iterator[Progress]:
    """`total` of `unit` (singular) are to be done; `what` names the job."""
    with tqdm(total=total, unit=unit, unit_scale=True, desc=what, disable=None) as bar:
        yield Progress(what, unit, total, bar)
