"""Networks and baselines with one budget and the same seeds, compared on the same test jets.

A network is a recipe with some keys changed; each of its trainings is a run folder of jobs/pretrain.py like any other:
it continues, and one that is finished is not repeated. Scores of the test jets are cached in the run folders. The
baselines (baselines.py) are fitted anew each time, in seconds.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry import config, files, runs
from jetfoundry.data.plan import ShardConfig
from jetfoundry.data.shards import open_shards
from jetfoundry.downstream.baselines import BASELINES, fit_and_score, numbers_of, training_numbers
from jetfoundry.downstream.embeddings import Embeddings, embed
from jetfoundry.errors import CheckpointError, ConfigError, InputError, nearest
from jetfoundry.evaluate.comparison import TestJets, compare
from jetfoundry.evaluate.discriminants import group_outputs, parse
from jetfoundry.evaluate.metrics import Floats, accuracy, confusion_matrix
from jetfoundry.features.transform import load_data_config
from jetfoundry.labels import label_scheme, select_classes
from jetfoundry.models.checkpoints import load_model
from jetfoundry.ray_session import RayConfig
from jetfoundry.train.recipe import MAY_CHANGE, PrepareConfig, Recipe

__all__ = ["Compared", "ComparisonConfig", "Training", "compare_methods", "is_finished", "trainings_of"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """Which networks and baselines, on which jets."""

    recipe: str = config.option("jobs/recipes/comparison_training.yaml", "recipe of all trainings: the common budget")
    networks: dict[str, tuple[str, ...]] = config.option({}, "name -> key.sub=value in which it differs from that")
    baselines: tuple[str, ...] = config.option(tuple(BASELINES), "methods on substructure")
    substructure: str = config.option("datasets/substructure.yaml", "data YAML of their jet quantities")
    seeds: tuple[int, ...] = config.option((1, 2, 3), "seeds of every network and baseline")
    compare: str = config.option("X_bb vs QCD", "discriminant 'A vs B' that all methods are compared in")
    efficiencies: tuple[float, ...] = config.option((0.3, 0.5), "signal efficiencies at which rejections are given")
    mass_edges: tuple[float, ...] = config.option(
        (20.0, 80.0, 140.0, 220.0, 500.0), "edges of the jet_sdmass ranges in which rejections are repeated [GeV]"
    )
    expected_signal: float = config.option(1000.0, "signal jets of the significance plot, before any cut")
    expected_background: float = config.option(1e6, "background jets of the significance plot, before any cut")
    replicas: int = config.option(200, "bootstrap samples of the test jets")
    runs: str = config.option("runs/comparison", "folder of the run folders")
    output: str = config.option("docs/results/comparison_simulated", "results: <output>.md, .json and _….png")
    prepare: PrepareConfig = config.option(PrepareConfig(), "")
    shards: ShardConfig = config.option(ShardConfig(test=0.3), "")
    ray: RayConfig = config.option(RayConfig(), "")

    def __post_init__(self) -> None:
        if not self.networks or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            msg = f"wanted networks and different seeds, got {len(self.networks)} networks and seeds {self.seeds}"
            raise ValueError(msg)
        if not all(0 < efficiency < 1 for efficiency in self.efficiencies) or self.replicas < 2:
            msg = f"wanted efficiencies between 0 and 1 and replicas >= 2, got {self.efficiencies}, {self.replicas}"
            raise ValueError(msg)
        for name in self.baselines:
            if name not in BASELINES:
                msg = f"baselines: no method {name!r}; {nearest(name, BASELINES)}"
                raise ValueError(msg)
        if min(self.expected_signal, self.expected_background) <= 0:
            msg = "expected_signal and expected_background must be above 0"
            raise ValueError(msg)

    @property
    def scheme(self) -> str:
        """The label scheme of signal and background alone."""
        return f"binary:{self.compare}"


@dataclasses.dataclass(frozen=True)
class Training:
    """One network with one seed: its recipe, and how to say it on the command line of jobs/pretrain.py."""

    name: str
    seed: int
    recipe: Recipe
    arguments: tuple[str, ...]

    @property
    def run(self) -> Path:
        return files.place(self.recipe.run)


@dataclasses.dataclass(frozen=True)
class Compared:
    """What came out: JSON-safe `figures`; log-odds (B,) of every method and seed on the test `jets`; the rows of the
    metrics of every network and seed; and the group confusion (G, G) of the first network, summed over its seeds."""

    figures: dict[str, Any]
    scores: dict[str, list[Floats]]
    jets: TestJets
    metrics: dict[str, list[list[dict[str, Any]]]]
    groups: tuple[str, ...]
    confusion: npt.NDArray[np.int64]


def trainings_of(options: ComparisonConfig) -> list[Training]:
    """All trainings, seed by seed, so that an interrupted comparison has whole seeds. ConfigError if two networks do
    not share data and budget."""
    found = []
    for seed, (name, changes) in itertools.product(options.seeds, options.networks.items()):
        run = files.place(options.runs) / f"{_short(name)}_seed{seed}"
        arguments = (*changes, f"train.seed={seed}", f"run={run}")
        recipe = config.read(Recipe, options.recipe, arguments)
        parse(options.compare, label_scheme(recipe.labels).classes)
        found.append(Training(name, seed, recipe, arguments))
    first = found[0]
    for other in found[1:]:
        if _budget(other.recipe) != _budget(first.recipe):
            msg = f"networks: {other.name} has another budget than {first.name}: data, features, sampling, workers, "
            msg += "batch_size, epochs and steps_per_epoch belong to the recipe that all share"
            raise ConfigError(msg)
    if len({training.run for training in found}) < len(found):
        msg = f"networks: two names give one run folder: {', '.join(options.networks)}"
        raise ConfigError(msg)
    return found


def _short(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _budget(recipe: Recipe) -> tuple[Any, ...]:
    train, workers = recipe.train, recipe.workers.num_workers
    jets = (recipe.loader.batch_size * workers, train.steps_per_epoch, train.epochs)
    return recipe.data, recipe.features, recipe.sampling, jets


def is_finished(training: Training) -> bool:
    """Whether the run is done. CheckpointError if its folder holds another configuration or other jets."""
    if not training.run.exists():
        return False
    runs.open_run(training.run, training.recipe, MAY_CHANGE)
    if not (training.run / "summary.json").exists():
        return False
    wanted = open_shards(training.recipe.data, "train").manifest_hash
    if files.read_json(training.run / "summary.json")["manifest_hash"] != wanted:
        msg = f"{training.run} was trained on other jets than {training.recipe.data} holds; choose another folder"
        raise CheckpointError(msg)
    return True


def compare_methods(options: ComparisonConfig, trainings: Sequence[Training], workers: int) -> Compared:
    """Score the test jets with all finished networks and the baselines, and compare them. Needs Ray."""
    data = trainings[0].recipe.data
    scores: dict[str, list[Floats]] = {name: [] for name in (*options.networks, *options.baselines)}
    metrics: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in options.networks}
    networks: dict[str, list[dict[str, Any]]] = {name: [] for name in options.networks}
    confusion: Any = 0
    groups: tuple[str, ...] = ()
    test: _TestSet | None = None
    for training in trainings:
        scored = embed(training.run / "model.pt", data, "test", training.run / "embeddings", workers=workers)
        test = test or _TestSet.of(scored, options)
        test.check(scored, training)
        classes = label_scheme(training.recipe.labels)
        odds = parse(options.compare, classes.classes).log_odds(scored.logits[test.rows])
        scores[training.name].append(np.asarray(odds, np.float64))
        metrics[training.name].append(runs.read_metrics(training.run / "metrics.jsonl"))
        truth = classes.apply(test.jet_label)
        kept = truth >= 0
        predicted = scored.logits[kept].argmax(axis=1)
        networks[training.name].append(_run_figures(training, accuracy(scored.logits[kept], truth[kept])))
        if training.name == trainings[0].name:
            groups, group = group_outputs(classes.classes)
            confusion = confusion + confusion_matrix(group[truth[kept]], group[predicted], len(groups))
    assert test is not None
    baseline = load_data_config(options.substructure, scheme=options.scheme)
    train = training_numbers(baseline, open_shards(data, "train"), trainings[0].recipe.sampling)
    x = numbers_of(baseline, test.table(baseline.columns))
    for name, seed in itertools.product(options.baselines, options.seeds):
        scores[name].append(fit_and_score(name, train, x, seed))
    figures = compare(scores, test.jets, options.efficiencies, options.mass_edges, replicas=options.replicas)
    figures |= {
        "seeds": list(options.seeds),
        "comparison": options.compare,
        "jets": _numbers(data, options, test, train.uses),
        "networks": networks,
        "group_accuracy": float(np.trace(confusion) / confusion.sum()),
        "confusion_of_class_groups": {"groups": list(groups), "counts": confusion.tolist()},
    }
    return Compared(figures, scores, test.jets, metrics, groups, confusion)


@dataclasses.dataclass(frozen=True, eq=False)
class _TestSet:
    """The test jets that every network scores, and `rows`, those of signal and background among them."""

    scored: Embeddings
    jet_label: npt.NDArray[Any]
    rows: npt.NDArray[np.int64]
    jets: TestJets

    @classmethod
    def of(cls, scored: Embeddings, options: ComparisonConfig) -> _TestSet:
        truth = scored.columns(["jet_label", "jet_pt", "jet_sdmass"])
        jet_label, *observers = (truth[name].to_numpy() for name in truth.column_names)
        side = label_scheme(options.scheme).apply(jet_label)
        rows = np.flatnonzero(side >= 0)
        is_signal = side[rows] == 0
        if not is_signal.any() or is_signal.all():
            msg = f"{options.compare}: {int(is_signal.sum())} test jets of signal and {int((~is_signal).sum())} of "
            raise InputError(msg + "background, wanted both")
        return cls(scored, jet_label, rows, TestJets(is_signal, *(values[rows] for values in observers)))

    def check(self, scored: Embeddings, training: Training) -> None:
        same = [np.array_equal(a, b) for a, b in zip(self.scored.rows, scored.rows, strict=False)]
        if self.scored.shards != scored.shards or not all(same):
            msg = f"{training.run}: its data YAML selects other test jets than that of the first network"
            raise InputError(msg)

    def table(self, columns: Sequence[str]) -> Any:
        """Stored columns of the jets `rows`."""
        return self.scored.columns(list(columns)).take(self.rows)


def _run_figures(training: Training, test_accuracy: float) -> dict[str, Any]:
    summary = files.read_json(training.run / "summary.json")
    done = summary["training"]
    return {
        "seed": training.seed,
        "run": str(training.run),
        "labels": training.recipe.labels,
        "preset": training.recipe.model.preset,
        "parameters": sum(weight.numel() for weight in load_model(training.run / "model.pt").build().parameters()),
        "test_accuracy": test_accuracy,
        "best": done["best"],
        "jets_per_s": done["timing"]["jets_per_s"],
        "jets_per_epoch": done["jets_per_epoch"],
        "epochs": training.recipe.train.epochs,
        "model_sha256": summary["model_sha256"],
        "git_commit": summary["provenance"]["git_commit"],
    }


def _numbers(data: str, options: ComparisonConfig, test: _TestSet, uses: Floats) -> Mapping[str, Any]:
    """How many jets there are of what, and how many the sampling is worth to the baselines."""
    train = open_shards(data, "train")
    counts = np.asarray(train.class_counts)
    signal, background = (counts[list(select_classes(side))].sum() for side in options.compare.split(" vs "))
    return {
        "sample": train.sample,
        "manifest_hash": train.manifest_hash,
        "train": {"all": train.rows, "signal": int(signal), "background": int(background)},
        "val": open_shards(data, "val").rows,
        "test": {
            "all": len(test.jet_label),
            "signal": int(test.jets.is_signal.sum()),
            "background": int((~test.jets.is_signal).sum()),
        },
        "baselines_effective": float(uses.sum() ** 2 / (uses**2).sum()),
    }
