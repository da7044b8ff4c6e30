"""Score jets: ROOT or JetClass-II Parquet in; one Parquet file with scores and latent per jet out, in input order.

    python jobs/evaluate.py runs/demo            input='more/*.root' output=scores.parquet
    python jobs/evaluate.py runs/demo/model.onnx input=jets.parquet  output=scores.parquet

Jets outside the selection of the model's data YAML have no row, unless all_jets=true; they are counted. The input needs
no truth. Class names in order, input files and model hash stand in the metadata of the result. Beside it are written
scores.summary.json and scores.log.txt.
"""

from __future__ import annotations

import sys
from pathlib import Path

from jetfoundry import cli, files, ray_session, runs
from jetfoundry.downstream.score_files import ScoreConfig, score_files
from jetfoundry.evaluate.tables import terminal_table
from jetfoundry.transcript import LOG


def beside(options: ScoreConfig, name: str) -> Path:
    """scores.parquet -> scores.summary.json, scores.log.txt"""
    return Path(options.output).with_suffix(f".{name}")


def main(options: ScoreConfig) -> int:
    with ray_session.session(options.ray.address, options.ray.num_cpus, options.ray.object_store_gb):
        figures = score_files(options)
    files.write_json(beside(options, "summary.json"), {**figures, "provenance": runs.provenance()})
    print(terminal_table([{"what": name, "value": value} for name, value in figures.items()]))
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main, ScoreConfig, usage=__doc__, file_key="model", log_file=lambda c: beside(c, LOG)))
