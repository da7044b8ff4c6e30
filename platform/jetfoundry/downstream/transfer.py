"""Transfer: a backbone and task files in, one table out.

Embeddings of the backbone are made once per split and cached in its run folder; the probes of all tasks and seeds
fan out over them. Beside the probes stands the pre-trained classifier itself, where the task's classes are its own.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jetfoundry import config, files
from jetfoundry.data.shards import open_shards
from jetfoundry.downstream.embeddings import Embeddings, embed
from jetfoundry.downstream.fanout import TaskData, fan_out, task_data
from jetfoundry.downstream.reporting import mean_rows
from jetfoundry.downstream.scoring import open_network
from jetfoundry.downstream.tasks import Task, load_tasks
from jetfoundry.errors import ConfigError
from jetfoundry.evaluate import plots
from jetfoundry.evaluate.discriminants import outputs
from jetfoundry.evaluate.metrics import roc_curve
from jetfoundry.evaluate.tables import columns
from jetfoundry.evaluate.validation import EvaluationConfig, discriminants_of, evaluate_scores
from jetfoundry.ray_session import RayConfig

__all__ = ["MAY_CHANGE", "TransferConfig", "transfer"]

MAY_CHANGE = (
    "seeds", "evaluate_split", "embed_workers", "cpus_per_trial", "ray.address", "ray.num_cpus", "ray.object_store_gb"
)  # fmt: skip
"""Keys that may differ when a result folder is used again: trials are kept under their own identity."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """Which tasks on which backbone."""

    tasks: str = config.option("datasets/tasks/demo.yaml", "task file, list of task files, or folder of them")
    backbone: str = config.option("runs/demo", "run folder of the pre-trained backbone")
    data: str = config.option("", "shards, '' = those that the backbone was trained on")
    output: str = config.option("", "result folder, '' = <backbone>/transfer/<name of the tasks file>")
    tokens: tuple[str, ...] = config.option(
        (), "class tokens that probes read, none = the first; e.g. [classification, contrastive]"
    )
    seeds: int = config.option(2, "repetitions of every trial")
    evaluate_split: str = config.option("val", "split that the figures come from: val or test")
    embed_workers: int = config.option(0, "actors that embed jets, 0 = all CPUs")
    cpus_per_trial: float = config.option(1.0, "CPUs that Tune reserves for a trial")
    ray: RayConfig = config.option(RayConfig(), "")

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.evaluate_split not in ("val", "test"):
            msg = f"wanted seeds >= 1 and evaluate_split val or test, got {self.seeds}, {self.evaluate_split!r}"
            raise ValueError(msg)

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return Path(self.output or Path(self.backbone) / "transfer" / Path(self.tasks).stem)


def transfer(options: TransferConfig, data: str, folder: Path, workers: int, sample: str) -> dict[str, Any]:
    """Embed, probe, compare; writes `table.csv` and plots to `folder`, returns the figures for its summary."""
    tasks = load_tasks(options.tasks)
    model = Path(options.backbone) / "model.pt"
    cache = Path(options.backbone) / "embeddings"
    train, evaluate = (
        embed(model, data, split, cache, workers=workers, tokens=options.tokens)
        for split in ("train", options.evaluate_split)
    )
    prepared = {task.name: task_data(task, train, evaluate) for task in tasks}
    trials = fan_out(tasks, prepared, options.seeds, folder, cpus_per_trial=options.cpus_per_trial)
    classes = open_network(model).classes
    direct = {task.name: _model_scores(task, prepared[task.name], evaluate, classes) for task in tasks}
    rows: list[dict[str, Any]] = []
    for task in tasks:
        own = [trial for trial in trials if trial["task"] == task.name]
        scores = direct[task.name]
        rows += mean_rows([*own, *([_direct_row(task, prepared[task.name], scores)] if scores is not None else [])])
        _plot(task, prepared[task.name], own, scores, folder, sample)
    with files.committed(folder / "table.csv") as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns(rows))
        writer.writeheader()
        writer.writerows(rows)
    return {
        "table": rows,
        "trials": [{key: value for key, value in trial.items() if key != "logits"} for trial in trials],
        "classes": {task.name: list(task.class_names) for task in tasks},
        "embedded_shards": {"computed": train.computed + evaluate.computed, "all": len(train.shards + evaluate.shards)},
        "failed_trials": sum("error" in trial for trial in trials),
        "manifest_hash": open_shards(data, "train").manifest_hash,
    }


def _model_scores(task: Task, data: TaskData, evaluate: Embeddings, classes: Sequence[str]) -> Any:
    """Logits (E, C) for the task's classes from the pre-trained head, or None where it does not have these classes."""
    try:
        members = [outputs(name, classes) for name in task.class_names]
    except ConfigError:
        return None
    logits = evaluate.logits[data.evaluate.jets]
    return np.stack([np.logaddexp.reduce(logits[:, list(indices)], axis=1) for indices in members], axis=1)


def _direct_row(task: Task, data: TaskData, logits: Any) -> dict[str, Any]:
    options = EvaluationConfig(discriminants=task.compare)
    figures = evaluate_scores(logits, data.evaluate.labels, task.class_names, None, options)
    return {"task": task.name, "method": "model scores", "seed": 0, **figures}


def _plot(task: Task, data: TaskData, trials: Sequence[dict[str, Any]], direct: Any, folder: Path, sample: str) -> None:
    """ROC of every comparison: the probe's first seed and, where there is one, the pre-trained head."""
    named = {f"probe, seed {trial['seed']}": trial["logits"] for trial in trials[:1] if "logits" in trial}
    if direct is not None:
        named["model scores"] = direct
    labels = data.evaluate.labels
    for found in discriminants_of(task.class_names, task.compare):
        used = np.isin(labels, [*found.signal, *found.background])
        is_signal = np.isin(labels[used], found.signal)
        curves = {name: roc_curve(found.log_odds(logits[used]), is_signal) for name, logits in named.items()}
        picture = plots.png(plots.roc(curves, sample, *found.name.split(" vs ")), dpi=144)
        with files.committed(folder / "plots" / f"roc_{task.name}.png") as temporary:
            temporary.write_bytes(picture)
