"""Transfer: one or several backbones and task files in, the table that decides between them out.

    embed      every jet once through every backbone, cached in its run folder       (embeddings.py)
    shelf      what trials read, once into the object store                          (shelf.py)
    fan out    tasks x backbones x methods x tokens x sizes x seeds                  (fanout.py)
    table      figures with both errors, gains over the first backbone               (table.py)

Beside the trials stands the pre-trained classifier itself, where a task's classes are its own.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jetfoundry import config, files
from jetfoundry.downstream.fanout import ResourcesConfig, Work, check_resources, fan_out
from jetfoundry.downstream.methods import METHODS, MethodsConfig, check_methods
from jetfoundry.downstream.recipes import recipe_rows, verdict_sentence
from jetfoundry.downstream.shelf import Backbone, Shelf, check_jets, embedded, fill, open_backbones, yaml_hash
from jetfoundry.downstream.table import (
    MODEL_SCORES,
    REFERENCE,
    baseline_rows,
    main_figure,
    measure,
    table_rows,
)
from jetfoundry.downstream.tasks import Task, load_tasks
from jetfoundry.downstream.transfer_plots import plot_task
from jetfoundry.downstream.trials import Outcome, Trial
from jetfoundry.errors import ConfigError, nearest
from jetfoundry.evaluate.discriminants import outputs
from jetfoundry.evaluate.tables import columns
from jetfoundry.ray_session import RayConfig, available_cpus

__all__ = ["MAY_CHANGE", "TransferConfig", "transfer"]

_OF_FIGURES = (
    "title", "data", "simulation", "schema", "compare", "agree", "metrics", "baselines", "min_jets", "few",
    "budget.evaluate_jets",
)  # fmt: skip
"""What of a task decides no training; its jets have a hash of their own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """Which tasks on which backbones, by which methods."""

    tasks: str = config.option("datasets/tasks/demo.yaml", "task file, list of task files, or folder of them")
    backbone: tuple[str, ...] = config.option(
        ("runs/demo",), "run folders of pre-trained backbones, separated by commas; the first is the reference"
    )
    methods: tuple[str, ...] = config.option(
        ("probe",), f"separated by commas: {', '.join(METHODS)}; mlp chooses from a grid by jets held out"
    )
    data: str = config.option("", "shards, '' = those that the first backbone was trained on")
    output: str = config.option(
        "", "result folder, '' = <backbone>/transfer/<name of the tasks>, or runs/transfer/<name> for several backbones"
    )
    tokens: tuple[str, ...] = config.option((), "class tokens that frozen methods read, none = all, each and together")
    seeds: int = config.option(2, "repetitions of every trial")
    sizes: tuple[Any, ...] = config.option(
        (1.0,), "shares of the training jets, e.g. 0.01,0.1,1; the small in the large"
    )
    recipes: tuple[str, ...] = config.option(
        (), "backbones that repeat one pre-training, compared as such: a:runs/a1+runs/a2,b:runs/b1+runs/b2"
    )
    evaluate_split: str = config.option("val", "split that the figures come from: val or test")
    train_jets: int = config.option(0, "training jets of a task at most, beside its own budget; 0 = its own")
    evaluate_jets: int = config.option(0, "evaluation jets of a task at most, beside its own budget; 0 = its own")
    page: str = config.option("", "also write the result as a Markdown page: docs/results/<name>, without .md")
    embed_workers: int = config.option(0, "actors that embed jets, 0 = all CPUs")
    method: MethodsConfig = config.option(MethodsConfig(), "")
    resources: ResourcesConfig = config.option(ResourcesConfig(), "")
    replicas: int = config.option(200, "bootstrap samples of the evaluation jets")
    ray: RayConfig = config.option(RayConfig(object_store_gb=2.0), "")  # all that trials read lies there

    def __post_init__(self) -> None:
        if min(self.train_jets, self.evaluate_jets) < 0:
            msg = f"wanted train_jets and evaluate_jets >= 0, got {self.train_jets} and {self.evaluate_jets}"
            raise ValueError(msg)
        if self.seeds < 1 or self.replicas < 30 or self.evaluate_split not in ("val", "test"):
            msg = f"wanted seeds >= 1, replicas >= 30 and evaluate_split val or test, got {self.seeds}, "
            msg += f"{self.replicas}, {self.evaluate_split!r}"
            raise ValueError(msg)
        for name in ("backbone", "methods", "tokens", "sizes", "recipes"):  # a,b of the command line is one string
            object.__setattr__(self, name, _listed(getattr(self, name)))
        try:
            object.__setattr__(self, "sizes", tuple(sorted({float(size) for size in self.sizes})))
        except (TypeError, ValueError) as error:
            msg = f"sizes: wanted numbers, got {self.sizes}"
            raise ValueError(msg) from error
        if not self.sizes or not 0 < self.sizes[0] <= self.sizes[-1] <= 1:
            msg = f"wanted sizes above 0 and up to 1, got {self.sizes}"
            raise ValueError(msg)
        check_methods(self.methods)

    @property
    def folder(self) -> Path:
        """Where the results go."""
        several = len(self.backbone) > 1
        parent = Path("runs/transfer") if several or not self.backbone else files.place(self.backbone[0]) / "transfer"
        return files.place(self.output) if self.output else parent / files.place(self.tasks).stem


MAY_CHANGE = tuple(key for key, _, _ in config.describe(TransferConfig) if key not in ("data", "output"))
"""Keys that may differ when a result folder is used again: trials are kept under their own identity."""


def _listed(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        part for value in values for part in (filter(None, value.split(",")) if isinstance(value, str) else (value,))
    )


def transfer(options: TransferConfig, folder: Path) -> dict[str, Any]:
    """Embed, train, compare on the running Ray; writes `table.csv` and plots to `folder`, returns the figures for its
    summary, of which `sample` says what the jets are."""
    import ray

    clock = _Clock()
    check_resources(options.resources, options.ray, options.methods)
    tasks = [_limited(task, options) for task in load_tasks(options.tasks)]
    backbones = open_backbones(options.backbone, options.tokens)
    recipes, splits = _recipes(options, backbones), ("train", options.evaluate_split)
    data = {task.name: task.data or _usual_data(options) for task in tasks}
    by_data = {where: [task for task in tasks if data[task.name] == where] for where in dict.fromkeys(data.values())}
    samples = [check_jets(own, backbones, where, splits) for where, own in by_data.items()]  # before hours of work
    sample = " + ".join(dict.fromkeys(filter(None, samples)))
    workers = options.embed_workers or available_cpus()
    clock.lap("check")
    gpus = options.resources.embed_gpus
    found = {(where, split): embedded(backbones, where, split, workers, gpus) for where in by_data for split in splits}
    clock.lap("embed")
    needs = {what: any(METHODS[name].reads == what for name in options.methods) for what in ("particles", "numbers")}
    shelves = {
        (where, split): fill(own, backbones, found[where, split], needs, options.method.substructure, ray.put)
        for where, own in by_data.items()
        for split in splits
    }
    of_task = {task.name: _Shelves(*(shelves[data[task.name], split] for split in splits)) for task in tasks}
    clock.lap("prepare")
    work = [each for task in tasks for each in _work(options, task, backbones, of_task[task.name], ray.put)]
    outcomes, counts = fan_out(work, folder, options.method, options.resources)
    clock.lap("trials")
    rows, compared = _compared(options, tasks, backbones, of_task, outcomes, recipes, folder, sample)
    clock.lap("table and plots")
    return {
        "sample": sample,
        "table": rows,
        "recipes": compared,
        "recipes_verdict": verdict_sentence(compared),
        "tasks": {
            task.name: {"title": task.title, "classes": list(task.class_names), "figure": main_figure(task).name}
            for task in tasks
        },
        "trials": [each.row for each in outcomes],
        "failed_trials": sum(each.logits is None for each in outcomes),
        "trials_found": counts["found"],
        "trials_run": counts["run"],
        "jets": {
            task.name: {each.split: each.samples[task.name].counts for each in of_task[task.name]} for task in tasks
        },
        "embeddings": [
            {"backbone": name, "data": where, "split": split, **each.cache_figures}
            for (where, split), of_split in found.items()
            for name, each in of_split.items()
        ],
        "seconds": clock.laps,
        "seconds_of_trials": _seconds(outcomes),
        "manifest_hash": " ".join(dict.fromkeys(shelf.manifest for shelf in shelves.values())),
    }


def _limited(task: Task, options: TransferConfig) -> Task:
    """The task with no more jets than the options allow."""
    budget = task.budget
    jets, evaluate = (
        min(filter(None, (own, given)), default=0)
        for own, given in ((budget.jets, options.train_jets), (budget.evaluate_jets, options.evaluate_jets))
    )
    return dataclasses.replace(task, budget=dataclasses.replace(budget, jets=jets, evaluate_jets=evaluate))


def _usual_data(options: TransferConfig) -> str:
    """Shards for tasks that name none."""
    return options.data or str(config.load_yaml(files.place(options.backbone[0]) / "config.yaml")["data"])


class _Shelves(NamedTuple):
    """What a task trains on and is judged by."""

    train: Shelf
    evaluate: Shelf


def _compared(
    options: TransferConfig,
    tasks: Sequence[Task],
    backbones: Sequence[Backbone],
    of_task: Mapping[str, _Shelves],
    outcomes: Sequence[Outcome],
    recipes: Mapping[str, Sequence[str]],
    folder: Path,
    sample: str,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the table and of the recipes, which are also written to `folder`, with the plots."""
    rows: list[dict[str, Any]] = []
    compared: list[dict[str, Any]] = []
    for task in tasks:
        jets = of_task[task.name].evaluate.samples[task.name]
        trials = [each for each in outcomes if each.trial.task == task.name]
        trials += _without_training(task, backbones, of_task[task.name].evaluate)
        measured = measure(task, trials, jets, options.replicas)
        rows += [*table_rows(task, measured, jets), *baseline_rows(task, jets, options.replicas)]
        compared += recipe_rows(task, measured, recipes)
        plot_task(task, trials, rows, jets, folder, sample, compared=compared)
    _write_csv(rows, folder / "table.csv")
    if compared:
        _write_csv(compared, folder / "recipes.csv")
    return rows, compared


class _Clock:
    """Wall time of one part after the other [s]."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 2), now


def _seconds(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Sum of the trials' own times by method [s]."""
    sums: dict[str, float] = {}
    for each in {each.trial.key: each for each in outcomes}.values():  # shared ones once
        sums[each.trial.method] = round(
            sums.get(each.trial.method, 0.0) + each.record.get("seconds_of_grid", each.record.get("seconds", 0.0)), 2
        )
    return sums


def _recipes(options: TransferConfig, backbones: Sequence[Backbone]) -> dict[str, list[str]]:
    """Names of the backbones of each recipe; ConfigError for a folder that is none of them."""
    names = dict(zip(options.backbone, (backbone.name for backbone in backbones), strict=True))
    found = {}
    for text in options.recipes:
        recipe, _, listed = text.partition(":")
        found[recipe] = listed.split("+")
        for folder in found[recipe]:
            if folder not in names:
                msg = f"recipes: {recipe}: {folder!r} is no backbone; {nearest(folder, names)}"
                raise ConfigError(msg)
    return {recipe: [names[folder] for folder in folders] for recipe, folders in found.items()}


def _work(
    options: TransferConfig,
    task: Task,
    backbones: Sequence[Backbone],
    shelves: _Shelves,
    put: Callable[[Any], Any],
) -> Iterator[Work]:
    """All trials of a task, in the order of the table."""
    train, evaluate = shelves
    sample = train.samples[task.name]
    refs = [put(each) for each in (sample.jets, sample.labels, sample.weights, evaluate.samples[task.name].jets)]
    jets = f"{train.identity(task.name)} {evaluate.identity(task.name)}"
    for name in options.methods:
        method = METHODS[name]
        for backbone in backbones[:1] if method.of_backbone == "nothing" else backbones:
            shown = "" if method.of_backbone == "nothing" else backbone.name
            identity, source = _identity(options, task, name, backbone), _source(name, backbone)
            variants = backbone.variants if method.reads == "latents" else {"": slice(None)}
            points = itertools.product(variants.items(), options.sizes, range(1, options.seeds + 1))
            for (token, part), size, seed in points:
                key = files.sha256_bytes(f"{identity} {jets} {token} {size!r} {seed}".encode())[:16]
                trial = Trial(task=task.name, backbone=shown, method=name, token=token, size=size, seed=seed, key=key)
                model, stores = backbone.model.resolve(), (train.refs[source], evaluate.refs[source])
                yield Work(trial, task, model, *stores, part, *refs)


def _source(method: str, backbone: Backbone) -> tuple[str, str]:
    """Under which name a shelf has what a method reads."""
    reads = METHODS[method].reads
    return reads, {"latents": backbone.name, "particles": backbone.data.hash, "numbers": ""}[reads]


def _identity(options: TransferConfig, task: Task, name: str, backbone: Backbone) -> str:
    """What decides a method's result beside its jets: the task, its own options, what it takes of the backbone."""
    method = METHODS[name]
    of_backbone = {"weights": backbone.weights, "architecture": backbone.architecture, "nothing": ""}
    chosen = getattr(options.method, method.options) if method.options else None
    parts = {
        "task": config.fingerprint(task, ignore=_OF_FIGURES),
        "method": name,
        "options": yaml_hash(options.method.substructure) if name == "boosting" else config.to_dict(chosen),
        "backbone": of_backbone[method.of_backbone],
        "features": "" if method.of_backbone == "nothing" else backbone.data.hash,
    }
    return config.fingerprint(parts)


def _without_training(task: Task, backbones: Sequence[Backbone], evaluate: Shelf) -> list[Outcome]:
    """What needs none: the pre-trained heads' logits (E, C) for the task's classes, of those backbones that have them;
    of a target the quantity that it is relative to."""
    jets = evaluate.samples[task.name].jets
    found = {}
    if task.is_regression:
        found = {("", REFERENCE): np.zeros((len(jets), 1), np.float32)}
    for backbone in backbones if task.class_members else ():
        try:
            members = [outputs(name, backbone.classes) for name in task.class_members or ()]
        except ConfigError:
            continue
        logits = evaluate.logits[backbone.name][jets]
        summed = [np.logaddexp.reduce(logits[:, list(indices)], axis=1) for indices in members]
        found[backbone.name, MODEL_SCORES] = np.stack(summed, axis=1)
    return [
        Outcome(Trial(task=task.name, backbone=name, method=method, token="", size=0.0, seed=0, key=""), values, {})
        for (name, method), values in found.items()
    ]


def _write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    with files.committed(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns(rows))
        writer.writeheader()
        for row in rows:  # six digits: no figure has more, and the files are kept in docs/
            writer.writerow({key: f"{cell:.6g}" if isinstance(cell, float) else cell for key, cell in row.items()})
