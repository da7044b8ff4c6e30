"""Pre-train a jet model: shards or ROOT files in; model.pt, metrics, summary.json, report.html in the run folder out.

    python jobs/pretrain.py                                     # the demo recipe; makes its simulated jets first
    python jobs/pretrain.py jobs/recipes/sophon.yaml data=… run=…
    python jobs/pretrain.py jobs/recipes/demo.yaml data='ntuples/*.root' run=…      # without shards: for a first look
    python jobs/pretrain.py jobs/recipes/sophon.yaml … find_lr=true             # only look for a good learning rate
    ray job submit --runtime-env cluster/runtime_env.yaml -- \\
        python jobs/pretrain.py jobs/recipes/sophon.yaml data=/shared/shards run=/shared/runs/sophon

The same command on the same run folder continues from the last checkpoint. SIGTERM or SIGUSR1 (of a batch system, say)
or a file `stop` in the run folder ends the run with a checkpoint. A submitted job runs in a temporary copy of
the checkout: give it URLs, or absolute paths on storage that all nodes see.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jetfoundry import cli, config, files, ray_session, runs
from jetfoundry.downstream.embeddings import embed
from jetfoundry.downstream.reporting import evaluation_plots, result_table, write_report
from jetfoundry.dry_run.training import plan_pretrain
from jetfoundry.errors import CheckpointError
from jetfoundry.evaluate import plots
from jetfoundry.evaluate.tables import terminal_table
from jetfoundry.evaluate.validation import EvaluationConfig, discriminants_of, evaluate_scores
from jetfoundry.features.transform import load_data_config
from jetfoundry.loading.pieces import is_shard_folder
from jetfoundry.models.checkpoints import load_model
from jetfoundry.sim.prepare import prepare
from jetfoundry.train.lr_finder import find_learning_rate
from jetfoundry.train.ray_train import plan, pretrain
from jetfoundry.train.recipe import MAY_CHANGE, Recipe

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "jobs" / "recipes" / "demo.yaml"


def evaluate(recipe: Recipe, run: Path, sample: str, spec: dict[str, Any]) -> dict[str, object]:
    """Score the validation jets with the trained model, draw the plots, return the figures."""
    text = config.parse_yaml(spec["data_yaml"], recipe.features)
    data = load_data_config(text, known=None, scheme=recipe.labels)
    load_model(run / "model.pt", expect_classes=data.classes)
    on_gpu = recipe.workers.use_gpu
    workers = recipe.workers.num_workers if on_gpu else ray_session.available_cpus()
    val = spec["files"]["val"] if spec["files"] else recipe.data
    scored = embed(run / "model.pt", val, "val", run / "embeddings", workers=workers, gpus=float(on_gpu))
    labels = data.class_numbers(scored.columns(list(data.label_columns)))
    jet_pt = scored.columns(["jet_pt"])["jet_pt"].to_numpy()
    options = EvaluationConfig(discriminants=recipe.discriminants)
    figures = evaluate_scores(scored.logits, labels, data.classes, {"jet_pt": jet_pt}, options)
    evaluation_plots(run, scored, labels, data.classes, recipe.discriminants, sample)
    return figures


def find_lr(recipe: Recipe, run: Path, sample: str, spec: dict[str, Any]) -> int:
    """Look for a good learning rate; the run itself is left as it is."""
    found = find_learning_rate(recipe, spec)
    files.write_json(run / "find_lr" / "range_test.json", found._asdict())
    with files.committed(run / "find_lr" / "range_test.png") as temporary:
        temporary.write_bytes(plots.png(plots.learning_rates(found.rows(), found.suggestion, sample)))
    print(f"suggested: train.optim.lr={found.suggestion:.1e}; curve: {run / 'find_lr' / 'range_test.png'}")
    return cli.EXIT_OK


def main(recipe: Recipe) -> int:
    with ray_session.session(recipe.ray.address, recipe.ray.num_cpus, recipe.ray.object_store_gb):
        if is_shard_folder(recipe.data):
            prepare(recipe.data, **config.to_dict(recipe.prepare), features=recipe.features)
        spec = plan(recipe)
        chosen = discriminants_of(spec["classes"], recipe.discriminants)
        spec["discriminants"] = [[d.name, d.signal, d.background, d.weights] for d in chosen]
        run = runs.open_run(recipe.run, recipe, MAY_CHANGE)
        sample = recipe.sample or spec["sample"]
        if recipe.find_lr:
            return find_lr(recipe, run, sample, spec)
        done = files.read_json(run / "summary.json") if (run / "summary.json").exists() else {}
        if done and done["identity"] != spec["identity"]:
            msg = f"{run} is finished, with other data, features or architecture; choose another run folder"
            raise CheckpointError(msg)
        if not done:
            training = pretrain(recipe, run, spec)
            runs.write_summary(
                run,
                sample=sample,
                evaluation=evaluate(recipe, run, sample, spec),
                training=training,
                identity=spec["identity"],
                seed=recipe.train.seed,
                manifest_hash=spec["manifest_hash"],
                model_sha256=files.sha256_file(run / "model.pt"),
            )
    report = write_report(run, sample)
    print(terminal_table(result_table(run)))
    print(f"{run} is finished{', it was before this call' if done else ''}; report: {report}")
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main, Recipe, usage=__doc__, default=DEMO, folder=lambda c: c.run, plan=plan_pretrain))
