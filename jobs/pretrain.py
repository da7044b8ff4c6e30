"""Pre-train a jet model: shards in; model.pt, metrics, summary.json and report.html in the run folder out.

    python jobs/pretrain.py                                     # the demo recipe; makes its simulated jets first
    python jobs/pretrain.py jobs/recipes/sophon.yaml data=… run=…
    ray job submit --runtime-env cluster/runtime_env.yaml -- python jobs/pretrain.py jobs/recipes/demo.yaml

The same command on the same run folder continues from the last checkpoint.
"""

from __future__ import annotations

import sys
from pathlib import Path

from jetfoundry import cli, config, files, ray_session, runs
from jetfoundry.data.ingest import IngestConfig, ingest
from jetfoundry.data.shards import open_shards
from jetfoundry.downstream.embeddings import embed
from jetfoundry.downstream.reporting import evaluation_plots, result_table, write_report
from jetfoundry.evaluate.tables import terminal_table
from jetfoundry.evaluate.validation import EvaluationConfig, evaluate_scores
from jetfoundry.labels import label_scheme
from jetfoundry.train.ray_train import pretrain
from jetfoundry.train.recipe import MAY_CHANGE, Recipe

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "jobs" / "recipes" / "demo.yaml"


def prepare(recipe: Recipe) -> None:
    """Simulate and ingest what the recipe lacks, if it says how."""
    made = Path(recipe.data) / "manifest.json"
    if made.exists() or not recipe.prepare.simulate:
        return
    from jetfoundry.sim.run import simulate  # needs the [sim] extra
    from jetfoundry.sim.settings import SimulateConfig

    overrides = [f"output={recipe.prepare.root}", f"jets={recipe.prepare.jets}"]
    simulate(config.read(SimulateConfig, recipe.prepare.simulate, overrides))
    ingest(IngestConfig(features=recipe.features, input=(f"{recipe.prepare.root}/*.root",), output=recipe.data))


def evaluate(recipe: Recipe, run: Path, sample: str) -> dict[str, object]:
    """Score the validation jets with the trained model, draw the plots, return the figures."""
    scheme = label_scheme(recipe.labels)
    scored = embed(run / "model.pt", recipe.data, "val", run / "embeddings", workers=ray_session.available_cpus())
    stored = scored.columns(["jet_label", "jet_pt"])
    labels = scheme.apply(stored["jet_label"].to_numpy())
    options = EvaluationConfig(discriminants=recipe.discriminants)
    figures = evaluate_scores(scored.logits, labels, scheme.classes, {"jet_pt": stored["jet_pt"].to_numpy()}, options)
    evaluation_plots(run, scored, labels, scheme.classes, recipe.discriminants, sample)
    return figures


def main(recipe: Recipe) -> int:
    run = runs.open_run(recipe.run, recipe, MAY_CHANGE)
    with ray_session.session(recipe.ray.address, recipe.ray.num_cpus, recipe.ray.object_store_gb):
        prepare(recipe)
        shards = open_shards(recipe.data, "train")
        sample = recipe.sample or shards.sample
        if (run / "summary.json").exists() and (run / "model.pt").exists():
            print(f"{run} is finished; its results follow. Choose another run folder to train again.")
        else:
            training = pretrain(recipe, run)
            evaluation = evaluate(recipe, run, sample)
            runs.write_summary(
                run,
                sample=sample,
                evaluation=evaluation,
                training=training,
                seed=recipe.train.seed,
                manifest_hash=shards.manifest_hash,
                model_sha256=files.sha256_file(run / "model.pt"),
            )
    report = write_report(run, sample)
    print(terminal_table(result_table(run)))
    print(f"report: {report}")
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main, Recipe, usage=__doc__, default=DEMO))
