"""How long a job may take: only from rates that somebody has measured, and saying where.

First come figures of an earlier run in the same folder, then those of our benchmarks in docs/benchmarks, which name
their processor. Without either the answer is `unknown`. Rates are per CPU-second and are taken to grow with the CPUs.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jetfoundry import files, ray_session
from jetfoundry.errors import InputError

__all__ = ["Rate", "benchmark", "cpus_of", "duration", "number_of", "shown_cpus", "summary_of", "time_for"]

BENCHMARKS = Path(__file__).resolve().parents[3] / "docs" / "benchmarks"


@dataclasses.dataclass(frozen=True)
class Rate:
    """Jets per second of one `of`, CPU or GPU, or of all that the earlier run had (''), and where it was measured."""

    jets_per_second: float
    source: str
    of: str = "CPU"


def benchmark(*names: str, gpu: bool = False) -> Rate | None:
    """Ours in the newest benchmark, on a GPU or without, whose file begins with one of `names`, e.g. ingest-zlib."""
    for name in names:
        for path in sorted(BENCHMARKS.glob(f"{name}*.json"), key=lambda path: path.stem[-10:], reverse=True):
            found = files.read_json(path)
            hardware, ours = found["hardware"], found["sides"].get("jetfoundry")
            if ours is None or bool(hardware.get("gpu")) != gpu:
                continue
            source = f"measured on {hardware['gpu' if gpu else 'processor']}, docs/benchmarks/{path.stem}"
            return Rate(ours["wall" if gpu else "rate"], source, "GPU" if gpu else "CPU")
    return None


def summary_of(folder: str | Path) -> dict[str, Any]:
    """The summary of an earlier run in the folder; empty if there is none that can be read."""
    path = files.place(folder) / "summary.json"
    try:
        found = files.read_json(path) if files.exists(path) else {}
    except InputError:
        found = {}
    return found if isinstance(found, dict) else {}


def cpus_of(ray: ray_session.RayConfig) -> int | None:
    """CPUs that the job will have; None on a cluster, which only knows itself."""
    if ray.address not in ("", "local") or ray_session.in_job():
        return None
    return ray.num_cpus or ray_session.usable_cores()


def shown_cpus(cpus: int | None) -> str:
    """What `cpus_of` says, in words."""
    return "CPUs of the cluster" if cpus is None else f"{number_of(cpus, 'CPU')} on this machine"


def time_for(jets: float, rate: Rate | None, processors: float | None = None) -> str:
    """`≈ 3 min, …` on so many CPUs or GPUs (None = what a cluster has), or what is not known.

    Ray's start, some seconds, comes on top.
    """
    if rate is None or rate.jets_per_second <= 0:
        return "unknown: no rate was measured for this"
    seconds, each = jets / rate.jets_per_second, f"{rate.jets_per_second:,.0f} jets/s"
    if not rate.of:
        return f"≈ {duration(seconds)}, at {each}, {rate.source}"
    if processors is None:
        return f"unknown: it depends on the cluster; ≈ {duration(seconds)} on one {rate.of}, at {each}, {rate.source}"
    used = number_of(processors, rate.of)
    return f"≈ {duration(seconds / processors)} on {used}, at {each} of each, {rate.source}"


def number_of(number: float, what: str) -> str:
    """
    >>> number_of(1, "CPU"), number_of(2000, "task")
    ('1 CPU', '2,000 tasks')
    """
    return f"{number:,g} {what}{'' if number == 1 else 's'}" if number < 1e5 else f"{number:,.0f} {what}s"


def duration(seconds: float) -> str:
    """
    >>> duration(3), duration(200), duration(9000), duration(1e6)
    ('3 s', '3.3 min', '2.5 h', '11.6 days')
    """
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (unit != "days" and seconds >= size):
            return f"{seconds / size:.3g} {unit}"
    return f"{max(1, round(seconds))} s"
