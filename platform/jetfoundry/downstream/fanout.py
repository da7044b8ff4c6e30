"""Ray Tune fans out tasks x seeds over cached embeddings: one thin module, because Tune's API changes often.

The embeddings are put into the object store once and every trial reads them without a copy. A trial's result is a
JSON file of its own: a failing trial does not end the others, and an interrupted fan-out does the missing trials only.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry import config, files
from jetfoundry.downstream.embeddings import Embeddings
from jetfoundry.downstream.probe import linear_probe
from jetfoundry.downstream.tasks import Task
from jetfoundry.errors import InputError
from jetfoundry.evaluate.validation import EvaluationConfig, evaluate_scores

__all__ = ["Sample", "TaskData", "fan_out", "task_data"]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Jets of one split that take part in a task: latent (B, D), class numbers (B,), their rows in the split."""

    latent: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    jets: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class TaskData:
    """Training and evaluation jets of one task. `key` names task, network and jets: results belong to it."""

    key: str
    train: Sample
    evaluate: Sample


def task_data(task: Task, train: Embeddings, evaluate: Embeddings) -> TaskData:
    """Select and label the jets of a task; raises InputError if a side is empty."""
    samples = []
    for name, embeddings in (("training", train), ("evaluation", evaluate)):
        labels = task.labels(embeddings.columns(task.columns))
        jets = np.flatnonzero(labels >= 0)
        if not len(jets):
            msg = f"task {task.name}: none of the {len(labels)} {name} jets passes its selection and label rule"
            raise InputError(msg)
        samples.append(Sample(embeddings.latent[jets], labels[jets], jets))
    key = files.sha256_bytes(f"{config.fingerprint(task)} {train.key} {evaluate.key}".encode())[:12]
    return TaskData(key, *samples)


def fan_out(
    tasks: Sequence[Task], data: dict[str, TaskData], seeds: int, folder: Path, *, cpus_per_trial: float = 1.0
) -> list[dict[str, Any]]:
    """Run a linear probe for every task and seed; returns one row per trial, in (task, seed) order.

    A failed trial's row has `error` instead of figures.
    """
    import ray
    from ray import tune

    by_name = {task.name: task for task in tasks}
    grid = [(task.name, seed) for task in tasks for seed in range(1, seeds + 1)]
    results = {(name, seed): _file(folder.resolve(), name, data[name].key, seed) for name, seed in grid}
    todo = [pair for pair in grid if not results[pair].exists()]
    if todo:
        stored = {name: ray.put(data[name]) for name in {name for name, _ in todo}}

        def trial(point: dict[str, Any]) -> None:
            name, seed = point["trial"]
            run_trial(by_name[name], ray.get(stored[name]), seed, results[name, seed])
            tune.report({"done": 1})

        tune.Tuner(
            tune.with_resources(trial, {"cpu": cpus_per_trial}),
            param_space={"trial": tune.grid_search([list(pair) for pair in todo])},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(name="tune", storage_path=str(folder.resolve()), verbose=0),
        ).fit()
    return [_row(*pair, results[pair]) for pair in grid]


def run_trial(task: Task, data: TaskData, seed: int, result: Path) -> None:
    """One probe: fit, evaluate; its figures go to `result` (JSON), its logits (E, C) beside it (`.npy`)."""
    begin = time.perf_counter()
    logits = linear_probe(
        data.train.latent,
        data.train.labels,
        len(task.class_names),
        data.evaluate.latent,
        task.budget,
        seed=seed,
        balance=task.balance,
    )
    seconds = time.perf_counter() - begin
    labels = data.evaluate.labels
    figures = evaluate_scores(logits, labels, task.class_names, None, EvaluationConfig(discriminants=task.compare))
    row = {
        "task": task.name,
        "method": "probe",
        "seed": seed,
        "train_jets": len(data.train.labels),
        "seconds": round(seconds, 3),
        **figures,
        "accuracy_within_one_class": _within_one(logits, labels),
    }
    with files.committed(result.with_suffix(".npy")) as temporary, temporary.open("wb") as stream:
        np.save(stream, logits)
    files.write_json(result, row)


def _within_one(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float | None:
    """Share of jets whose class is right or off by one: for ordered classes (bins); None for two classes."""
    return float((np.abs(logits.argmax(axis=1) - labels) <= 1).mean()) if logits.shape[1] > 2 else None


def _file(folder: Path, task: str, key: str, seed: int) -> Path:
    return folder / "trials" / f"{task}-probe-{key}-{seed}.json"


def _row(task: str, seed: int, result: Path) -> dict[str, Any]:
    if not result.exists():
        return {"task": task, "method": "probe", "seed": seed, "error": "the trial failed, see the folder tune/"}
    logits = np.load(result.with_suffix(".npy"), allow_pickle=False)
    return {**files.read_json(result), "logits": logits}
