"""Score jets: any ROOT or Parquet files in; scores, latent, observers and discriminants of each jet out, in order.

    python jobs/evaluate.py runs/demo            input='more/*.root' output=scores.parquet
    python jobs/evaluate.py runs/demo/model.onnx input=jets.parquet  output=scores.root \\
                            discriminants=datasets/discriminants/sophon.yaml
    python jobs/evaluate.py runs/demo            input='more/*.root' output=friends

Entry i of the output is entry i of the input (several in the order of their paths); with a folder as output, each input
has its own file, and its TTree `scores` can be a friend: tree->AddFriend("scores", "friends/a.root"). Jets outside the
selection of the model's data YAML have NaN, unless all_jets=true; they are counted. The input needs no truth.

Class names in order, inputs, model hash and discriminants stand in the file (Parquet: metadata; ROOT: strings beside
the tree). A file that is there from the same model, inputs and options is kept, so an interrupted job goes on with the
next one; any other is never overwritten. Beside the output are written scores.summary.json and scores.log.txt, in a
folder summary.json and log.txt.
"""

from __future__ import annotations

import sys
from pathlib import Path

from jetfoundry import cli, files, ray_session, runs
from jetfoundry.downstream.score_files import ScoreConfig, score_files
from jetfoundry.dry_run.downstream import plan_evaluate
from jetfoundry.evaluate.tables import terminal_table
from jetfoundry.transcript import LOG


def beside(options: ScoreConfig, name: str) -> Path:
    """scores.parquet -> scores.summary.json, scores.log.txt; a folder -> the same in it."""
    output = files.place(options.output)
    is_file = output.suffix in (".parquet", ".root") and not output.is_dir()
    return output.with_suffix(f".{name}") if is_file else output / name


def main(options: ScoreConfig) -> int:
    with ray_session.session(options.ray.address, options.ray.num_cpus, options.ray.object_store_gb):
        figures = score_files(options)
    files.write_json(beside(options, "summary.json"), {**figures, "provenance": runs.provenance()})
    print(terminal_table([{"what": name, "value": value} for name, value in figures.items()]))
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(
        cli.run(
            main, ScoreConfig, usage=__doc__, file_key="model", log_file=lambda c: beside(c, LOG), plan=plan_evaluate
        )
    )
