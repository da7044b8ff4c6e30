"""Compare our speed with weaver-core 0.5.3, both sides in turn in one run, and write a report.

    python jobs/benchmark.py ingest
    python jobs/benchmark.py features
    python jobs/benchmark.py loader jets=100000 rounds=7
    python jobs/benchmark.py probes jets=4000 preset=demo rounds=3
    python jobs/benchmark.py scaling jets=20000 preset=demo rounds=3 workers=2
    python jobs/benchmark.py train jets=512 batch_size=128 rounds=3 curves=10     # and infer; preset=demo, device=cuda

Makes its own sample (simulated, needs the [sim] extra) or takes `input='jets/*.root'`. Installs nothing: weaver-core
must be there (the [dev] extra). Written: docs/benchmarks/<theme>_<hardware>_<date>.md and .json; log.txt in the
folder of the samples, `work`.
"""

from __future__ import annotations

import sys

from jetfoundry import cli
from jetfoundry.benchmark.settings import BenchmarkConfig
from jetfoundry.benchmark.themes import run
from jetfoundry.dry_run.downstream import plan_benchmark


def main(cfg: BenchmarkConfig) -> int:
    report, timings = run(cfg)
    base = timings[-1].rate if cfg.theme in ("ingest", "features", "loader") else None
    for timing in timings:
        ratio = f"  {timing.rate / base:6.2f} of {timings[-1].name}" if base else f"  {timing.wall_rate:,.1f} jets/s"
        print(f"{timing.name:<40} {timing.rate:>10,.1f} jets per CPU-second{ratio}")
    print(report)
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(
        cli.run(main, BenchmarkConfig, usage=__doc__, file_key="theme", folder=lambda c: c.work, plan=plan_benchmark)
    )
