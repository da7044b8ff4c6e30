"""Wall time by phase under path-like names (`data/wait`, `train/forward`, `pause/validation`, …), the first step apart.

On a GPU the phases of an asynchronous step are only real with `synchronize=True`, which costs some speed.
"""

from __future__ import annotations

import collections
import contextlib
import resource
import sys
import time
from collections.abc import Iterator

import torch

__all__ = ["PhaseTimer", "peak_memory"]


def peak_memory() -> int:
    """The most memory that this process ever had [bytes]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class PhaseTimer:
    """Adds up seconds per phase. The first `warm_up` steps (allocation, thread start) are left out."""

    def __init__(self, warm_up: int = 1, *, synchronize: bool = False) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.jets = 0
        self._skip = warm_up
        self._synchronize = synchronize and torch.cuda.is_available()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            if self._synchronize:
                torch.cuda.synchronize()
            if self._skip == 0:
                self.seconds[name] += time.perf_counter() - begin

    def step_done(self, jets: int) -> None:
        if self._skip:
            self._skip -= 1
        else:
            self.jets += jets

    def summary(self) -> dict[str, float]:
        """Jets per second while training goes on, pauses left out, and each phase's share of the whole time."""
        total = sum(self.seconds.values())
        working = sum(seconds for name, seconds in self.seconds.items() if not name.startswith("pause/"))
        if working == 0:
            return {"jets_per_s": 0.0}
        shares = {name: round(seconds / total, 4) for name, seconds in sorted(self.seconds.items())}
        return {"jets_per_s": round(self.jets / working, 1), **shares}
