"""The themes of jobs/benchmark.py: which sides, and what the report says of them."""

from __future__ import annotations

from pathlib import Path

from jetfoundry.benchmark import features, ingest, loader, report, sample
from jetfoundry.benchmark.measure import Timing, compare
from jetfoundry.benchmark.settings import BenchmarkConfig

__all__ = ["run"]

_TITLES = {
    "ingest": "ROOT to Parquet: jetfoundry against weaver's converter",
    "features": "Features: jetfoundry against weaver's data set, in memory",
    "loader": "Parquet to batches: jetfoundry against weaver's data set",
}


def run(cfg: BenchmarkConfig) -> tuple[Path, list[Timing]]:
    """Make the sample if it is not there, run all sides in turn, write the report; returns its path and the timings.

    Raises ConfigError without weaver-core 0.5.3 or, for a simulated sample, without the [sim] extra.
    """
    if cfg.theme == "ingest":
        sides, method = ingest.sides(sample.root_files(cfg), cfg.work), ingest.__doc__ or ""
    else:
        theme = features if cfg.theme == "features" else loader
        sides, method = theme.sides(sample.shard_folder(cfg), cfg.features, cfg.work, cfg.jets), theme.__doc__ or ""
    timings = compare(sides, cfg.rounds)
    return report.write_report(cfg, _TITLES[cfg.theme], method.strip(), "weaver", timings), timings
