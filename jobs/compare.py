"""Train networks with one budget and the same seeds, and compare them and baselines on the same test jets.

    python jobs/compare.py                                          # simulates and ingests its jets first
    python jobs/compare.py jobs/recipes/comparison.yaml seeds=1 …

Every training is jobs/pretrain.py with the common recipe and a few keys changed, in a run folder of its own. The same
command continues; what is finished is not trained again. Written: <output>.md, <output>.json and images beside them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from jetfoundry import cli, config, files, ray_session
from jetfoundry.benchmark.report import hardware
from jetfoundry.downstream.comparison import ComparisonConfig, Training, compare_methods, is_finished, trainings_of
from jetfoundry.downstream.comparison_report import result_rows, write_results
from jetfoundry.dry_run.training import plan_compare
from jetfoundry.evaluate.tables import terminal_table
from jetfoundry.sim.prepare import prepare

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = ROOT / "jobs" / "recipes" / "comparison.yaml"


def train(options: ComparisonConfig, training: Training) -> int:
    """One training to its end, in a process of its own; returns its exit code."""
    job = ROOT / "jobs" / "pretrain.py"
    return subprocess.run([sys.executable, str(job), options.recipe, *training.arguments], check=False).returncode


def main(options: ComparisonConfig) -> int:
    trainings = trainings_of(options)
    recipe, ray = trainings[0].recipe, options.ray
    if not (files.place(recipe.data) / "manifest.json").exists():
        how = {**config.to_dict(options.prepare), "features": recipe.features, "shards": options.shards}
        with ray_session.session(ray.address, ray.num_cpus, ray.object_store_gb):
            prepare(recipe.data, **how)
    todo = [training for training in trainings if not is_finished(training)]
    for number, training in enumerate(todo, 1):
        print(f"training {number} of {len(todo)}: {training.name}, seed {training.seed}, {training.run}", flush=True)
        code = train(options, training)
        if code != cli.EXIT_OK:
            return code
    with ray_session.session(ray.address, ray.num_cpus, ray.object_store_gb):
        compared = compare_methods(options, trainings, ray_session.available_cpus())
    report = write_results(options, trainings, compared, hardware())
    print(terminal_table(result_rows(compared.figures)))
    print(f"results: {report}")
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(
        cli.run(main, ComparisonConfig, usage=__doc__, default=DEFAULT, folder=lambda c: c.runs, plan=plan_compare)
    )
