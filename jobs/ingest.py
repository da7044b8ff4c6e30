"""Turn ROOT or Parquet files of jets into training shards.

    python jobs/ingest.py datasets/jetclass2.yaml input='ntuples/*.root' output=data/shards

reads TTrees, RNTuples and Parquet files with the JetClass-II columns and writes shuffled Parquet shards for train,
val and test, a manifest with class counts and checksums, report.html to look at, summary.json, config.yaml and log.txt.

    python jobs/ingest.py datasets/jetclass2_delphes.yaml input='events/*.root'

makes the same of Delphes trees. Interrupted or killed, the same command continues. Files, entry ranges and single
jets that cannot be used are set aside and listed (exit code 3); units/*.set-aside.jsonl names every one of them. It
also names the Delphes events without a jet and the jets without a class; these are left out by the rules, so they
are counted and change no exit code.

    python jobs/ingest.py verify=data/shards

reads shards again and compares them with their manifest: checksums, columns, counts, histograms, each jet only once.
One line per fault, exit code 1 if there is any.

The file is a configuration of this job with any of the keys below, or a data YAML. The latter is optional: its
branches are checked to be among the columns, so that a misspelt one shows now and not in training.
"""

from __future__ import annotations

import sys

from jetfoundry import cli
from jetfoundry.data.delphes_jets import LEFT_OUT
from jetfoundry.data.ingest import IngestConfig, IngestReport, file_key, ingest
from jetfoundry.data.verify import verify
from jetfoundry.dry_run.data import plan_ingest
from jetfoundry.evaluate import ingest_report

_LISTED = 20  # set-aside ranges shown; all are in units/*.set-aside.jsonl


def main(config: IngestConfig) -> int:
    if config.verify:
        return check(config.verify)
    report = ingest(config)
    tell(report)
    print(f"report: {ingest_report.write(report.folder, config.features)}")
    return cli.EXIT_OK if report.complete else cli.EXIT_SET_ASIDE


def check(folder: str) -> int:
    """Compare shards with their manifest; print one line per fault, or one if there is none."""
    found = verify(folder)
    for fault in found.faults:
        print(fault)
    if not found.faults:
        size = found.bytes / 1e6
        print(f"{found.folder}: {found.shards:,} shards, {found.rows:,} jets, {size:,.1f} MB: all as in the manifest")
    return cli.EXIT_FAILED if found.faults else cli.EXIT_OK


def tell(report: IngestReport) -> None:
    """Print the figures, then one line for each thing that was set aside."""
    jets = ", ".join(f"{split} {rows:,}" for split, rows in report.jets.items())
    new = f"{report.new_jets:,} new in {report.seconds:.1f} s" if report.new_jets else "nothing was left to do"
    rates = report.rates
    size = f"{rates['jets_per_cpu_second']:,.0f} per CPU-second, {rates['bytes_per_jet']:,.0f} bytes per jet"
    print(f"{report.folder}: {jets} jets; {new}, {size}; content {report.manifest_hash[:12]}")
    if report.families:  # classes of another schema have none
        print("jets by family: " + ", ".join(f"{family} {count:,}" for family, count in report.families.items()))
    for reason, count in report.left_out.items():
        print(f"left out: {count:,} {LEFT_OUT[reason]} ({reason})")
    for reason, count in report.set_aside_jets.items():
        print(f"set aside: {count:,} jets, {reason}")
    for message in report.set_aside_ranges[:_LISTED]:
        print(f"set aside: {message}")
    if len(report.set_aside_ranges) > _LISTED:
        print(f"set aside: {len(report.set_aside_ranges) - _LISTED} more ranges, see {report.folder / 'units'}")
    for file in report.set_aside_files:
        print(f"set aside: {file.reason}")


if __name__ == "__main__":
    key = file_key(sys.argv[1:])
    sys.exit(
        cli.run(
            main,
            IngestConfig,
            usage=__doc__ or "",
            file_key=key,
            folder=lambda c: c.verify or c.output,
            plan=plan_ingest,
        )
    )
