"""Turn ROOT or Parquet files of jets into training shards.

    python jobs/ingest.py datasets/jetclass2.yaml input='ntuples/*.root' output=data/shards

reads TTrees, RNTuples and Parquet files with the JetClass-II columns and writes shuffled Parquet shards for train,
val and test, a manifest with class counts and checksums, config.yaml and summary.json. Interrupted or killed, the
same command continues. Files, entry ranges and single jets that cannot be used are set aside and listed (exit
code 3); units/*.set-aside.jsonl names every one of them. The data YAML is optional: its branches are checked to be
among the columns, so that a misspelt one shows now and not in training. Shards do not depend on it.
"""

from __future__ import annotations

import sys

from jetfoundry import cli
from jetfoundry.data.ingest import IngestConfig, IngestReport, ingest

_LISTED = 20  # set-aside ranges shown; all are in units/*.set-aside.jsonl


def main(config: IngestConfig) -> int:
    report = ingest(config)
    tell(report)
    return cli.EXIT_OK if report.complete else cli.EXIT_SET_ASIDE


def tell(report: IngestReport) -> None:
    """Print the figures, then one line for each thing that was set aside."""
    jets = ", ".join(f"{split} {rows:,}" for split, rows in report.jets.items())
    new = f"{report.new_jets:,} new in {report.seconds:.1f} s" if report.new_jets else "nothing was left to do"
    rate = sum(report.jets.values()) / report.cpu_seconds
    print(f"{report.folder}: {jets} jets; {new}, {rate:,.0f} per CPU-second; content {report.manifest_hash[:12]}")
    for reason, count in report.set_aside_jets.items():
        print(f"set aside: {count:,} jets, {reason}")
    for message in report.set_aside_ranges[:_LISTED]:
        print(f"set aside: {message}")
    if len(report.set_aside_ranges) > _LISTED:
        print(f"set aside: {len(report.set_aside_ranges) - _LISTED} more ranges, see {report.folder / 'units'}")
    for file in report.set_aside_files:
        print(f"set aside: {file.reason}")


if __name__ == "__main__":
    sys.exit(cli.run(main, IngestConfig, usage=__doc__ or "", file_key="features"))
