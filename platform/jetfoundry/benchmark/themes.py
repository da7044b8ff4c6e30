"""The themes of jobs/benchmark.py: which sides, and what the report says of them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from jetfoundry.benchmark import features, ingest, loader, probes, report, sample, scaling, scaling_report, train
from jetfoundry.benchmark.measure import Timing, compare
from jetfoundry.benchmark.settings import BenchmarkConfig

__all__ = ["run"]

_POOL = 12_000  # jets that training batches are drawn from, at least
_TRAINED_ON = 0.7  # share of a shard folder's jets that are surely in its train split

_TITLES = {
    "ingest": "ROOT to Parquet: jetfoundry against weaver's converter",
    "features": "Features: jetfoundry against weaver's data set, in memory",
    "loader": "Parquet to batches: jetfoundry against weaver's data set",
    "train": "Training steps: jetfoundry's Particle Transformer against weaver's",
    "infer": "Inference: jetfoundry's Particle Transformer against weaver's",
    "probes": "The second linear probe: kept embeddings against a forward pass for every epoch",
}


def run(cfg: BenchmarkConfig) -> tuple[Path, list[Timing]]:
    """Make the sample if it is not there, run all sides in turn, write the report; returns its path and the timings.

    Raises ConfigError without weaver-core 0.5.3 or, for a simulated sample, without the [sim] extra.
    """
    if cfg.theme == "scaling":
        todo = scaling.cases(cfg)
        return scaling_report.write_report(cfg, todo, scaling.measure(todo, cfg.rounds)), []
    name: str = cfg.theme
    more, wall, baseline = "", cfg.theme in ("train", "infer", "probes"), "weaver"
    if cfg.theme == "ingest":
        sides, method = ingest.sides(sample.root_files(cfg), cfg.work), ingest.__doc__ or ""
        name = f"ingest-{cfg.compression}"
    elif cfg.theme == "probes":
        sides, method = probes.sides(cfg, sample.shard_folder(cfg)), probes.__doc__ or ""
        name, baseline = f"probes-{cfg.preset}", probes.FORWARD
    elif wall:
        pool = max(_POOL, math.ceil(max(cfg.jets, cfg.curves * cfg.batch_size) / _TRAINED_ON))
        shards = sample.shard_folder(dataclasses.replace(cfg, jets=pool))
        sides, method = train.sides(cfg, shards), train.__doc__ or ""
        name = f"{cfg.theme}-{cfg.preset}-{cfg.batch_size}"
        more = _curves(cfg, shards) if cfg.theme == "train" and cfg.curves else ""
    else:
        theme = features if cfg.theme == "features" else loader
        sides, method = theme.sides(sample.shard_folder(cfg), cfg.features, cfg.work, cfg.jets), theme.__doc__ or ""
    timings = compare(sides, cfg.rounds)
    if cfg.theme == "probes":
        more = f"{probes.agreement(cfg)}\n\n{probes.batched_table(cfg.jets, cfg.rounds)}"
    how: dict[str, Any] = {"name": name, "wall": wall, "more": more}
    return report.write_report(cfg, _TITLES[cfg.theme], method.strip(), baseline, timings, **how), timings


def _curves(cfg: BenchmarkConfig, shards: Path) -> str:
    """Mean loss of the last fifth of short trainings, how much it scatters between seeds, and whether both agree."""
    lines = [f"Mean training loss of the last fifth of {cfg.curves} steps of {cfg.batch_size} jets, 3 seeds:", ""]
    found = {}
    for side, curves in train.losses(cfg, shards, 3).items():
        last = np.asarray(curves)[:, -max(1, cfg.curves // 5) :].mean(axis=1)
        found[side] = last.mean(), last.std(ddof=1)
        lines.append(f"- {side}: {last.mean():.3f}, standard deviation {last.std(ddof=1):.3f}")
    (ours, spread), (theirs, their_spread) = found["jetfoundry"], found["weaver"]
    agree = abs(ours - theirs) <= np.hypot(spread, their_spread)
    verdict = "agree within" if agree else "do not agree within"
    return "\n".join([*lines, "", f"They differ by {ours - theirs:+.3f}: they {verdict} the spread of the seeds."])
