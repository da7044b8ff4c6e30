"""The report of the theme `scaling`: one table, the overhead of Ray in words, and the same as JSON."""

from __future__ import annotations

import collections
import datetime
import importlib.metadata
import re
import statistics
from pathlib import Path
from typing import Any

from jetfoundry import config, files, runs
from jetfoundry.benchmark import scaling
from jetfoundry.benchmark.report import hardware
from jetfoundry.benchmark.scaling import Case, Measured, rate
from jetfoundry.benchmark.settings import BenchmarkConfig

__all__ = ["overhead", "rows_of", "write_report"]

_HEADER = ("what", "scaling", "workers", "jets", "jets/s, median", "smallest-largest", "efficiency", "around it [s]")


def write_report(cfg: BenchmarkConfig, cases: list[Case], found: dict[int, list[Measured]]) -> Path:
    """Write `scaling-<preset>_<hardware>_<date>.md` and a JSON of the same name; returns the path of the first."""
    machine, today = hardware(), datetime.datetime.now(datetime.UTC).date().isoformat()
    short = re.sub(r"[^a-z0-9]+", "-", f"{machine['cores']}x {machine['processor']}".lower()).strip("-")
    path = cfg.output / f"scaling-{cfg.preset}_{short}_{today}.md"
    rows, ray = rows_of(cases, found), overhead(cases, found)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "ray", "pyarrow", "numpy"))
    options = ", ".join(f"{key}={value}" for key, value in config.to_dict(cfg).items() if key not in ("work", "output"))
    rounds = ", ".join(f"{each:.3f}" for each in ray["rounds"])
    lines = [
        f"| {row['what']} | {row['kind'] or '–'} | {row['workers']} | {row['jets']:,} | {row['jets_per_s']:,.0f} | "
        f"{row['slowest']:,.0f}–{row['fastest']:,.0f} | {row['efficiency']:.2f} | {row['around']:.1f} |"
        for row in rows
    ]
    text = f"""# Scaling on one machine, and what Ray costs

{today}, {machine["processor"]}, {machine["cores"]} cores (shared with other machines' work), {machine["memory_gib"]}
GiB, no GPU; load average {machine["load"]}. {versions}. Commit {runs.git_commit()}.

{(scaling.__doc__ or "").strip()}

{cfg.rounds} runs of each. Options: {options}.

| {" | ".join(_HEADER)} |
|{" --- |" * len(_HEADER)}
{chr(10).join(lines)}

Ray Train with one worker makes {ray["ratio"]:.3f} times the steps of the plain loop in a second (rounds:
{rounds}); around the steps it takes {ray["seconds"]:.1f} s longer (its start, that of the worker, a
checkpoint; also the validation, which the plain loop was not given). Losses of both: largest difference
{ray["largest_difference"]:.1e} over {ray["steps"]} steps.
"""
    files.write_text(path, text)
    record = {"hardware": machine, "date": today, "options": config.to_dict(cfg), "rows": rows, "ray": ray}
    files.write_json(path.with_suffix(".json"), record)
    return path


def rows_of(cases: list[Case], found: dict[int, list[Measured]]) -> list[dict[str, Any]]:
    """A row for each case; its efficiency is over all runs with one worker of the same name (`baseline`, jets/s): one
    worker has the same work in strong and in weak scaling."""
    alone: dict[str, list[Measured]] = collections.defaultdict(list)
    for index, case in enumerate(cases):
        if case.workers == 1:
            alone[case.name] += found[index]
    rows = []
    for index, case in sorted(enumerate(cases), key=lambda pair: (pair[1].name, pair[1].kind, pair[1].workers)):
        rates = [run.jets / run.seconds for run in found[index]]
        rows.append(
            {
                "what": case.name,
                "kind": case.kind,
                "workers": case.workers,
                "jets": found[index][0].jets,
                "jets_per_s": rate(found[index]),
                "slowest": min(rates),
                "fastest": max(rates),
                "baseline": rate(alone[case.name]),
                "efficiency": rate(found[index]) / (case.workers * rate(alone[case.name])),
                "around": statistics.median(run.around for run in found[index]),
            }
        )
    return rows


def overhead(cases: list[Case], found: dict[int, list[Measured]]) -> dict[str, Any]:
    """Ray Train with one worker over the plain loop: steps in a second, by round and in the median, further seconds,
    and how far the losses of the same steps are apart."""
    by_name = {(case.name, case.kind, case.workers): found[index] for index, case in enumerate(cases)}
    plain, under_ray = by_name["plain loop", "", 1], by_name["training", "weak", 1]
    ratios = [(b.jets / b.seconds) / (a.jets / a.seconds) for a, b in zip(plain, under_ray, strict=True)]
    apart = [abs(x - y) for a, b in zip(plain, under_ray, strict=True) for x, y in zip(a.losses, b.losses, strict=True)]
    seconds = statistics.median(b.around - a.around for a, b in zip(plain, under_ray, strict=True))
    return {
        "ratio": statistics.median(ratios),
        "rounds": ratios,
        "seconds": seconds,
        "largest_difference": max(apart),
        "steps": len(plain[0].losses),
    }
