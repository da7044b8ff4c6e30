"""A benchmark as a Markdown file: hardware, date, versions, how the number was read, the table, the verdict."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from jetfoundry import config, files, runs
from jetfoundry.benchmark.measure import Timing
from jetfoundry.benchmark.settings import BenchmarkConfig

__all__ = ["hardware", "write_report"]

_PACKAGES = ("weaver-core", "uproot", "awkward", "pyarrow", "numpy", "torch", "ray")


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory [GiB], load average at the end."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": model, "cores": cores, "memory_gib": round(memory), "load": round(os.getloadavg()[0], 1)}


def write_report(
    cfg: BenchmarkConfig,
    title: str,
    method: str,
    baseline: str,
    timings: Sequence[Timing],
    *,
    name: str = "",
    wall: bool = False,
    more: str = "",
) -> Path:
    """Write `<name>_<hardware>_<date>.md` and a JSON of the same name (`name` '' = the theme). Ratios are to the side
    named `baseline`, of jets per CPU-second or, with `wall`, of jets per second of wall time."""
    machine, today = hardware(), datetime.datetime.now(datetime.UTC).date().isoformat()
    gpu = torch.cuda.get_device_name() if cfg.device == "cuda" and torch.cuda.is_available() else ""
    short = re.sub(r"[^a-z0-9]+", "-", (gpu or f"{machine['cores']}x {machine['processor']}").lower()).strip("-")
    path = cfg.output / f"{name or cfg.theme}_{short}_{today}.md"
    options = ", ".join(f"{key}={value}" for key, value in config.to_dict(cfg).items() if key not in ("work", "output"))
    base = next(timing for timing in timings if timing.name == baseline)

    def ratio(timing: Timing) -> float:
        return timing.wall_rate / base.wall_rate if wall else timing.rate / base.rate

    rows = [
        f"| {t.name} | {t.rate:,.0f} | {t.spread[0]:,.0f}–{t.spread[1]:,.0f} | {ratio(t):.2f} "
        f"| {t.wall_rate:,.0f} | {t.peak:,.0f} |"
        for t in timings
    ]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    header: tuple[str, ...] = (
        "side",
        "jets per CPU-second, median",
        "smallest-largest",
        f"ratio to {baseline}{' (wall)' if wall else ''}",
    )
    header += ("jets per second, wall", "peak memory of its process [MiB]")
    text = f"""# {title}

{today}, {machine["processor"]}, {machine["cores"]} cores, {machine["memory_gib"]} GiB, {gpu or "no GPU used"}; load
average {machine["load"]}. {versions}. Commit {runs.git_commit()}.

{method}

{cfg.jets:,} jets, {cfg.rounds} runs of each side in turn, each in a fresh process with
{"all cores" if wall and cfg.theme != "probes" else "one thread per numerical library"}. Options: {options}.

| {" | ".join(header)} |
|{" --- |" * len(header)}
"""
    text += "\n".join(rows) + "\n" + (f"\n{more.strip()}\n" if more else "")
    files.write_text(path, text)
    record = {
        "theme": cfg.theme,
        "hardware": machine | {"gpu": gpu},
        "options": config.to_dict(cfg),
        "date": today,
        "baseline": baseline,
    }
    record["sides"] = {
        t.name: {"rate": t.rate, "wall": t.wall_rate, "ratio": ratio(t), "peak_mib": t.peak} for t in timings
    }
    files.write_json(path.with_suffix(".json"), record)
    return path
