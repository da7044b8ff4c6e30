"""The result of a transfer as a page for the repository: Markdown, the tables as CSV, small images.

The page says on which machine, jets, backbones and commit its figures rest, and what they cannot say. Its first
sentence is made from the figures (`recipes.verdict_sentence`).
"""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jetfoundry import config, files, runs
from jetfoundry.downstream.comparison_report import markdown_table
from jetfoundry.downstream.transfer_report import matrix, overview, recipe_table
from jetfoundry.evaluate.tables import Rows

__all__ = ["backbone_rows", "write_page"]

_LIMITS = """* The backbones are small, trained for minutes on simulated jets of this project: a gain, or its
  absence, at this size says nothing about long trainings of large networks.
* The tasks have few training jets, and one set of hyper-parameters that was tuned for no method and no backbone.
* A verdict is one of many: of comparisons between equals, one in twenty comes out as a difference. Those of one
  task share their backbones, so they are not independent.
* With one seed for a task's trainings (`seeds=1`) all backbones train on the same draw of jets: neither that draw nor
  the first weights of a head are part of any error, least of all on few jets. Trainings from random weights and
  boosting, which know no backbone, are then one training each, shown under every backbone of the same architecture.
* A task without `data` of its own takes its jets from the pre-training's: another split for the evaluation, but the
  same training jets.
"""


def write_page(page: Path, folder: Path, backbones: Sequence[str], hardware: Mapping[str, Any]) -> Path:
    """Write `<page>.md` from the `summary.json` in `folder`, `<page>.csv` and `<page>_recipes.csv` from its tables, and
    `<page>_<plot>.png`. `backbones` are their run folders. Returns the page."""
    summary = files.read_json(folder / "summary.json")
    for name, end in (("table", ".csv"), ("recipes", "_recipes.csv")):
        if (source := folder / f"{name}.csv").exists():
            _copy(source, page.with_name(page.name + end))
    plots = sorted(folder.glob("plots/jets_*.png"))
    for plot in plots:
        _copy(plot, page.with_name(f"{page.name}_{plot.name}"))
    text = _text(page.name, summary, backbone_rows(backbones), hardware, [plot.name for plot in plots])
    files.write_text(page.with_name(f"{page.name}.md"), text)
    return page.with_name(f"{page.name}.md")


def _copy(source: Path, target: Path) -> None:
    with files.fetched(source) as local, files.committed(target) as temporary:
        shutil.copyfile(local, temporary)


def backbone_rows(folders: Sequence[str]) -> Rows:
    """What was trained, from each run folder: network, seed, jets, and the figures of the last validation."""
    rows = []
    for folder in map(files.place, folders):
        recipe = config.load_yaml(folder / "config.yaml")
        validated = [row for row in runs.read_metrics(folder / "metrics.jsonl") if "val_loss" in row]
        jets = recipe["train"]["steps_per_epoch"] * recipe["train"]["epochs"] or None
        per_step = recipe["loader"]["batch_size"] * recipe["workers"]["num_workers"]
        row = {"backbone": folder.name, "network": recipe["model"]["preset"], "seed": recipe["train"]["seed"]}
        row["jets seen"] = f"{jets * per_step:,}" if jets else "–"
        last = {k: v for k, v in validated[-1].items() if k != "val_jets"} if validated else {}
        rows.append(row | {name.replace("val_", ""): value for name, value in last.items() if name.startswith("val_")})
    return rows


def _jets(summary: Mapping[str, Any]) -> Rows:
    rows = []
    for task, splits in summary["jets"].items():
        train, judged = splits["train"], next(counts for split, counts in splits.items() if split != "train")
        row = {"task": task, "classes": len(summary["tasks"][task]["classes"]) or "target"}
        rows.append(row | {"training": f"{train['taken']:,}", "evaluation": f"{judged['taken']:,}"})
    return rows


def _text(
    name: str, summary: Mapping[str, Any], backbones: Rows, hardware: Mapping[str, Any], plots: Sequence[str]
) -> str:
    origin, today = summary["provenance"], datetime.datetime.now(datetime.UTC).date().isoformat()
    versions = ", ".join(f"{name} {origin['versions'][name]}" for name in ("torch", "ray"))
    wall = ", ".join(f"{part} {seconds:,.0f}" for part, seconds in summary["seconds"].items())
    trials = ", ".join(f"{part} {seconds:,.0f}" for part, seconds in summary["seconds_of_trials"].items())
    command = " ".join(["python", *origin["command"]]).replace("python transfer", "python jobs/transfer")
    parts = [
        f"# Transfer: {', '.join(summary['tasks'])}",
        f"{today}, {hardware['processor']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB, no GPU. "
        f"{versions}. Commit {runs.short_commit(origin['git_commit'])} (of the last command; results that it found "
        f"are older). Jets: {summary['sample']}; none is of JetClass-II or of an experiment. All figures: "
        f"[{name}.csv]({name}.csv).",
        f"To repeat: `{command}`",
    ]
    if summary["recipes"]:
        parts += [
            summary["recipes_verdict"],
            "## Which pre-training",
            f"Gains over {summary['recipes'][0]['reference']} [%] in each task's main figure with all training jets: ▲ "
            "better, ▼ worse, ≈ no more than noise.",
            markdown_table(overview([row for row in summary["recipes"] if row["main"]])),
            "In full (mean ± standard deviation over backbones; the gain's error joins both sides' scatter and the "
            f"bootstrap of the evaluation jets; all other figures: [{name}_recipes.csv]({name}_recipes.csv)):",
            markdown_table(recipe_table([row for row in summary["recipes"] if row["main"]])),
        ]
    parts += [
        "## Which backbone",
        "Main figure of each task at the largest size; ★ is the best of a task.",
        markdown_table(matrix(summary)),
        "## Backbones",
        "The last validation of each pre-training:",
        markdown_table(backbones),
        "## Jets",
        "At most, after selection, labels and the task's budget:",
        markdown_table(_jets(summary)),
        *(["## Training jets", *(f"![{plot}]({name}_{plot})" for plot in plots)] if plots else []),
        "## Time",
        f"Wall time [s]: {wall}. Sum of the trials' own times [s]: {trials}. {summary['trials_run']} trials were run, "
        f"{summary['trials_found']} found, {summary['failed_trials']} failed.",
        "## What this does not show",
        _LIMITS,
    ]
    return "\n\n".join(parts)
