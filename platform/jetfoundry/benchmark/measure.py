"""Time sides against each other fairly: each run in a fresh process, in turn, CPU time and wall time, medians.

CPU time is that of the whole process with its threads and children, so a side that hides its work in threads gains
nothing by it. What a side prepares (imports, opening, planning) is outside the measured part. Interleaving the sides
spreads slow minutes of a shared machine over all of them; ratios of one report are trustworthy, absolute numbers less.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import resource
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from jetfoundry.errors import JetFoundryError

__all__ = ["Run", "Side", "Timing", "compare"]


@dataclasses.dataclass(frozen=True)
class Side:
    """One way to do the work. `prepare(**arguments)` gives the state, `run(state)` is measured and returns its jets.

    Both are functions of a module, since a fresh process imports them. `threads` is how many threads numerical
    libraries use, 0 = one for each core.
    """

    name: str
    prepare: Callable[..., Any]
    run: Callable[[Any], int]
    arguments: dict[str, Any]
    threads: int = 1


@dataclasses.dataclass(frozen=True)
class Run:
    """One measured run: jets, CPU seconds of the process and its children, wall seconds, peak memory [MiB]."""

    jets: int
    cpu: float
    wall: float
    peak: float


@dataclasses.dataclass(frozen=True)
class Timing:
    """All runs of a side."""

    name: str
    runs: tuple[Run, ...]

    @property
    def rate(self) -> float:
        """Median of jets per CPU-second."""
        return statistics.median(run.jets / run.cpu for run in self.runs)

    @property
    def spread(self) -> tuple[float, float]:
        """Smallest and largest jets per CPU-second."""
        rates = [run.jets / run.cpu for run in self.runs]
        return min(rates), max(rates)

    @property
    def wall_rate(self) -> float:
        """Median of jets per second of wall time."""
        return statistics.median(run.jets / run.wall for run in self.runs)

    @property
    def peak(self) -> float:
        """Largest peak of memory [MiB]."""
        return max(run.peak for run in self.runs)


def compare(sides: Sequence[Side], rounds: int) -> list[Timing]:
    """Run every side `rounds` times in turn. Raises JetFoundryError with the traceback of a side that fails."""
    runs: dict[str, list[Run]] = {side.name: [] for side in sides}
    with tqdm(total=rounds * len(sides), unit="run", desc="benchmark") as bar:
        for turn in range(rounds):
            for side in sides if turn % 2 == 0 else reversed(sides):
                bar.set_postfix_str(side.name)
                runs[side.name].append(_in_a_process(side))
                bar.update()
    return [Timing(name, tuple(found)) for name, found in runs.items()]


def _in_a_process(side: Side) -> Run:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    with _threads(side.threads):
        process = context.Process(target=_child, args=(theirs, side))
        process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        process.join()
        answer = f"ended with exit code {process.exitcode}"
    process.join()
    if isinstance(answer, str):
        msg = f"{side.name}: {answer}"
        raise JetFoundryError(msg)
    return Run(*answer)


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """Numerical libraries of the child use so many threads: one if per-core figures are asked for."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(number or len(os.sched_getaffinity(0)))))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _child(pipe: multiprocessing.connection.Connection, side: Side) -> None:
    try:
        state = side.prepare(**side.arguments)
        cpu, wall = _cpu_seconds(), time.perf_counter()
        jets = side.run(state)
        cpu, wall = _cpu_seconds() - cpu, time.perf_counter() - wall
        pipe.send((jets, cpu, wall, _peak()))
    except Exception:  # whatever it is belongs into the parent's message
        pipe.send(traceback.format_exc())
    finally:
        pipe.close()


def _peak() -> float:
    """Peak memory of this process [MiB]. Not `getrusage`'s: that one outlives fork and exec."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _cpu_seconds() -> float:
    """Of this process, of children that have ended, and of all descendants that live (Ray's workers, say)."""
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            alive = process.cpu_times()
            total += alive.user + alive.system + alive.children_user + alive.children_system
    return total
