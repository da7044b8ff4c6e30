"""Downstream tasks as data: which jets, which label, which comparisons, which budget (`datasets/tasks/*.yaml`).

Formulas are in the language of the data YAML. They may read any stored column, the truth record included, the task's
own `variables`, and every class, group or family of JetClass-II by its name: `X_bb`, `X_YY_QQQQ`, `QCD` are true for
the jets of that label. Whoever trains on a task asks for these things only:

    task.columns                            the stored columns to read
    task.check_data()                       whether the shards that it names are there
    task.check_columns(stored, where)       whether the data have the columns, before anything expensive
    task.sample(table, training=True)       the jets that take part, with labels, weights and baselines
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jetfoundry import config, files
from jetfoundry.downstream.task_formulas import CONDITIONS, LABEL, Formulas, Values
from jetfoundry.downstream.task_labels import Assigned, LabelRule, by_formula, by_rules, by_scheme, settled
from jetfoundry.downstream.task_weights import Reweighting, class_weights, flat_weights
from jetfoundry.errors import ConfigError, InputError, nearest
from jetfoundry.evaluate.discriminants import parse
from jetfoundry.evaluate.metrics import require_finite

__all__ = ["Baseline", "LabelRule", "Metrics", "ProbeBudget", "Reweighting", "Task", "TaskSample", "load_tasks"]

_DEEPEST_LIST = 3  # lists of lists of tasks


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeBudget:
    """How much a method may train."""

    epochs: int = config.option(30, "passes over the training jets")
    batch_size: int = config.option(1024, "jets of one step")
    lr: float = config.option(1e-2, "peak learning rate, decays as a cosine")
    jets: int = config.option(0, "training jets at most, drawn at random once for all methods; 0 = all")
    evaluate_jets: int = config.option(0, "evaluation jets at most, drawn once; 0 = all")

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size) < 1 or self.lr <= 0 or min(self.jets, self.evaluate_jets) < 0:
            msg = "wanted epochs and batch_size >= 1, lr > 0, jets and evaluate_jets >= 0"
            raise ValueError(msg)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metrics:
    """Which figures the task is judged by, besides accuracy (classes) or response and resolution (target)."""

    efficiencies: tuple[float, ...] = config.option((0.3, 0.5), "signal efficiencies at which rejections are given")
    within_one: bool = config.option(False, "classes are ordered: give the share of jets within one class, too")
    one_vs_rest: bool = config.option(False, "a discriminant of each class against all others, too")
    bins: tuple[float, ...] = config.option((), "edges of the target in which response and resolution are repeated")

    def __post_init__(self) -> None:
        if not all(0 < efficiency < 1 for efficiency in self.efficiencies) or list(self.bins) != sorted(set(self.bins)):
            msg = f"wanted efficiencies between 0 and 1 and rising bins, got {self.efficiencies}, {self.bins}"
            raise ValueError(msg)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baseline:
    """A quantity of the jet that the methods have to beat: larger means more like the first side of `compare`."""

    formula: str = config.option(dataclasses.MISSING, "one number per jet")
    compare: tuple[str, ...] = config.option(dataclasses.MISSING, "the discriminants 'A vs B' that it stands for")


@dataclasses.dataclass(frozen=True)
class TaskSample:
    """The N jets of a table that take part in a task.

    `jets` (N,) rising rows of the table. `labels` (N,) what is learnt: class numbers int64, or float64
    ln(target / relative_to). `weights` (N,) float32 of mean 1, for the loss or for the figures. `reference` (N,)
    relative_to [unit of the target], so that target = reference * exp(label), the prediction to beat by itself; None
    for classes. `baselines` name -> scores (N,). `counts` says how the jets of the table became these; jets outside the
    bins of a reweighting are among them with weight 0.
    """

    jets: npt.NDArray[np.int64]
    labels: npt.NDArray[Any]
    weights: npt.NDArray[np.float32]
    reference: npt.NDArray[np.float64] | None
    baselines: dict[str, npt.NDArray[np.float64]]
    counts: dict[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One downstream task: classification, or regression where the label is a target."""

    name: str
    title: str
    label: LabelRule
    data: str = config.option("", "shards, '' = those that the backbone was trained on")
    simulation: str = config.option("", "YAML beside this one with which jobs/simulate.py makes such jets")
    schema: str = config.option("", "schema YAML that their ingest needs, '' = JetClass-II")
    classes: tuple[str, ...] = config.option((), "class names of a formula; schemes and rules bring their own")
    selection: str = config.option("", "formula; only jets for which it is true take part")
    variables: dict[str, str] = config.option({}, "name -> formula, for all formulas below it")
    compare: tuple[str, ...] = config.option((), "discriminants 'A vs B' to report; two classes need none")
    agree: tuple[tuple[str, ...], ...] = config.option((), "pairs of `compare` whose figures a symmetry makes equal")
    metrics: Metrics = config.option(Metrics(), "")
    baselines: dict[str, Baseline] = config.option({}, "name -> a quantity of the jet to compare with")
    reweighting: Reweighting | None = config.option(None, "weights flat in two variables; without, see `balance`")
    balance: bool = config.option(True, "weight classes equally in the loss")
    min_jets: int = config.option(1, "fewest jets of every class, in each split; 0 = classes may be empty")
    few: Literal["error", "leave out"] = config.option("error", "what happens to classes with fewer than min_jets")
    budget: ProbeBudget = config.option(ProbeBudget(), "")

    def __post_init__(self) -> None:
        if bool(self.classes) != bool(self.label.formula):
            msg = "classes: a label formula, and nothing else, needs the names of its classes"
            raise ValueError(msg)
        if self.is_regression and (self.compare or self.baselines):
            msg = "compare and baselines belong to classes, the label is a target"
            raise ValueError(msg)
        self._language.check()
        for pair in self.agree:
            if len(pair) != 2 or not set(pair) <= set(self.compare):
                msg = f"agree: wanted pairs of {list(self.compare)}, got {list(pair)}"
                raise ValueError(msg)
        for text in itertools.chain(self.discriminants, *(rule.compare for rule in self.baselines.values())):
            parse(text, self.class_names)

    @property
    def is_regression(self) -> bool:
        return bool(self.label.target)

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of their numbers; none for regression."""
        scheme = self.label.label_scheme
        named = scheme.classes if scheme else self.classes or tuple(self.label.rules)
        return named if self.label.other in ("", *named) else (*named, self.label.other)

    @property
    def discriminants(self) -> tuple[str, ...]:
        """`compare`, and with `metrics.one_vs_rest` each class against all others."""
        names = self.class_names if self.metrics.one_vs_rest else ()
        return (*self.compare, *(f"{name} vs {'+'.join(other for other in names if other != name)}" for name in names))

    @property
    def class_members(self) -> tuple[str, ...] | None:
        """For each class the classes of JetClass-II that it stands for, joined by '+': what a head that was trained on
        the 188 has to sum. None where the label is not a scheme alone."""
        scheme = self.label.label_scheme
        return None if scheme is None or self.label.other else tuple("+".join(names) for names in scheme.members)

    @functools.cached_property
    def columns(self) -> list[str]:
        """Stored columns that all formulas of the task read."""
        return sorted(self._language.columns(self._formulas))

    def check_columns(self, stored: Collection[str], where: str) -> None:
        """Raise ConfigError if `stored`, the columns of the data `where`, lack one that the task reads."""
        for name in self.columns:
            if name not in stored:
                known = {*stored, *self.variables, *CONDITIONS}
                msg = f"task {self.name}: no column {name!r} in {where}; {nearest(name, known)}"
                raise ConfigError(msg)

    def check_data(self) -> None:
        """Raise InputError, with the way to make them, if the task names shards that are not there."""
        if self.data and not files.exists(files.place(self.data) / "manifest.json"):
            how = f"; {self.simulation} makes such jets, its first lines say how" if self.simulation else ""
            msg = f"task {self.name}: no shards in {self.data} (manifest.json is missing){how}"
            raise InputError(msg)

    def labels(self, table: pa.Table) -> npt.NDArray[Any]:
        """What is learnt of each of B jets: class number, -1 for those that do not take part; of a regression
        ln(target / relative_to), NaN for those that do not."""
        with self._blamed("jets"):
            return self._labels(self._values(table))[0]

    def sample(self, table: pa.Table, *, training: bool, where: str = "jets") -> TaskSample:
        """The jets of `table` (B rows with `columns`) that take part; `where` (training jets, say) opens messages.

        With `training`, weights are those of the loss and at most `budget.jets` are taken; else those of the figures
        and `budget.evaluate_jets`. Raises InputError if a class has fewer than `min_jets` and is not left out, if fewer
        than two have any, if no jet is left, or if jets are unlabelled or overlap where the label does not allow it.
        """
        with self._blamed(where):
            values = self._values(table)
            labels, reference, counts = self._labels(values)
            jets = np.flatnonzero(np.isfinite(labels) if self.is_regression else labels >= 0)
            most = self.budget.jets if training else self.budget.evaluate_jets
            if 0 < most < len(jets):
                jets = np.sort(np.random.default_rng(0).permutation(jets)[:most])
            if self.few == "leave out" and not self.is_regression:
                small = np.bincount(labels[jets], minlength=len(self.class_names)) < self.min_jets
                counts["in_small_classes"] = int(small[labels[jets]].sum())
                jets = jets[~small[labels[jets]]]
            counts["taken"] = len(jets)
            self._check_classes(labels[jets], counts)
            baselines = {name: values.per_jet(rule.formula)[jets] for name, rule in self.baselines.items()}
            for name, scores in baselines.items():
                require_finite(f"baseline {name!r}", scores)
            weights = self._weights(labels[jets], values, jets, training)
            counts["outside_bins"] = int((weights == 0).sum())
        return TaskSample(
            jets, labels[jets], weights, None if reference is None else reference[jets], baselines, counts
        )

    def _labels(self, values: Values) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64] | None, dict[str, int]]:
        """Labels (B,), references (B,) of a regression, and what happened to the jets."""
        selected = values.condition(self.selection) if self.selection else np.ones(values.jets, bool)
        counts = {"jets": values.jets, "selected": int(selected.sum())}
        rule = self.label
        if self.is_regression:
            target = values.per_jet(rule.target)
            reference = values.per_jet(rule.relative_to) if rule.relative_to else np.ones(values.jets)
            with np.errstate(all="ignore"):
                ratio = target / reference
            good = np.isfinite(target) & (target > 0) & (reference > 0) & np.isfinite(ratio) & (ratio > 0)
            assigned = settled(np.where(good, 0, -1), selected, rule, (), {})
            taken = assigned.classes >= 0
            counts["unlabelled"] = assigned.unlabelled
            return np.log(ratio, out=np.full(values.jets, np.nan), where=taken), reference, counts
        assigned = self._classes(values, selected)
        return (
            assigned.classes,
            None,
            counts
            | {
                "unlabelled": assigned.unlabelled,
                "overlapping": assigned.overlapping,
            },
        )

    def _classes(self, values: Values, selected: npt.NDArray[np.bool_]) -> Assigned:
        rule, names = self.label, self.class_names
        conditions = {name: values.condition(text) for name, text in rule.rules.items()}
        if rule.label_scheme:
            found = by_scheme(rule.label_scheme, values.per_jet(LABEL).astype(np.int64))
        elif rule.formula:
            found = by_formula(values.per_jet(rule.formula), selected, names)
        else:
            found = by_rules(np.stack(list(conditions.values())))
        return settled(found, selected, rule, names, conditions)

    def _check_classes(self, labels: npt.NDArray[Any], counts: dict[str, int]) -> None:
        story = f"{counts['jets']} jets, {counts['selected']} selected, {counts['unlabelled']} of them without label"
        if small := counts.get("in_small_classes"):
            story += f", {small} in classes with less than {self.min_jets} jets"
        if not len(labels):
            msg = f"no jet takes part: {story}"
            raise InputError(msg)
        if self.is_regression:
            return
        found = np.bincount(labels, minlength=len(self.class_names))
        least = self.min_jets if self.few == "error" else 0
        few = [f"{name} ({n})" for name, n in zip(self.class_names, found, strict=True) if n < least]
        if few or np.count_nonzero(found) < 2:
            shown = ", ".join(few[:5]) + (", …" if len(few) > 5 else "")
            wanted = f"classes with less than {self.min_jets} jets: {shown}" if few else "only one class has jets"
            msg = f"{wanted}; {story}; `few: leave out` sets their jets aside and `min_jets: 0` allows empty classes, "
            msg += "as long as two have jets"
            raise InputError(msg)

    def _weights(
        self, labels: npt.NDArray[Any], values: Values, jets: npt.NDArray[np.int64], training: bool
    ) -> npt.NDArray[np.float32]:
        rule = self.reweighting
        if rule and (training or rule.evaluate):
            variables = [values.per_jet(name)[jets] for name in rule.variables]
            number = np.zeros(len(labels), np.int64) if self.is_regression else labels
            return flat_weights(rule, variables, number, self.class_names or (self.name,))
        if training and self.balance and not self.is_regression:
            return class_weights(labels, len(self.class_names))
        return np.ones(len(labels), np.float32)

    @property
    def _language(self) -> Formulas:
        return Formulas(f"task {self.name}", self.variables)

    @property
    def _formulas(self) -> list[str]:
        """All formulas that a sample evaluates."""
        weighted = self.reweighting.variables if self.reweighting else ()
        of_baselines = [baseline.formula for baseline in self.baselines.values()]
        texts = [self.selection, *self.label.formulas, *weighted, *of_baselines, LABEL if self.label.scheme else ""]
        return [text for text in texts if text]

    def _values(self, table: pa.Table) -> Values:
        self.check_columns(table.column_names, "the table")
        return self._language.values(table, self._formulas)

    @contextlib.contextmanager
    def _blamed(self, where: str) -> Iterator[None]:
        """Open the message of an InputError with the task's name and `where`."""
        try:
            yield
        except InputError as error:
            msg = f"task {self.name}, {where}: {error}"
            raise InputError(msg) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TaskList:
    tasks: tuple[str, ...]


def load_tasks(path: str | Path) -> tuple[Task, ...]:
    """Read one task file, a file that lists task files (`tasks: [a.yaml, b.yaml]`), or a folder of task files.

    ConfigError if two files give different tasks one name, if a folder holds none, if a list is a part of itself, or if
    a simulation YAML that a task names (relative to its own file) does not exist.
    """
    return _tasks_of(files.place(path), ())


def _tasks_of(path: Path, above: tuple[Path, ...]) -> tuple[Task, ...]:
    """The tasks of `path`, which stands in the lists `above`."""
    if len(above) > _DEEPEST_LIST:
        msg = f"{above[0]}: lists of lists of tasks, more than {_DEEPEST_LIST} deep; is one a part of itself?"
        raise ConfigError(msg)
    if files.exists(path) and path.is_dir():
        if not (every := sorted(path.glob("*.yaml"))):
            msg = f"{path}: no task files (*.yaml) in this folder"
            raise ConfigError(msg)
        return _each_once(path, every, above)
    tree = config.load_yaml(path)
    if isinstance(tree, dict) and "tasks" in tree:
        listed = config.build(_TaskList, tree, str(path))
        return _each_once(path, [path.parent / name for name in listed.tasks], above)
    task = config.read(Task, path)
    simulation = path.parent / task.simulation
    if task.simulation and not files.exists(simulation):
        msg = f"{path}: simulation: there is no file {simulation}; it is looked for beside the task file"
        raise ConfigError(msg)
    shown = str(simulation) if files.is_remote(simulation) else os.path.relpath(simulation)
    return (dataclasses.replace(task, simulation=shown if task.simulation else ""),)


def _each_once(path: Path, every: Sequence[Path], above: tuple[Path, ...]) -> tuple[Task, ...]:
    """The tasks of these files; ConfigError if two different ones have one name."""
    by_name: dict[str, Task] = {}
    for task in (task for file in every for task in _tasks_of(file, (*above, path))):
        if by_name.setdefault(task.name, task) != task:
            msg = f"{path}: two different tasks are called {task.name!r}"
            raise ConfigError(msg)
    return tuple(by_name.values())
