"""Downstream tasks as data: which jets, which label, which comparisons, which budget (`datasets/tasks/*.yaml`).

A label is either a label scheme of `labels.py` (`scheme: "binary:X_bb vs QCD"`) or a formula on any stored
column, truth included, that gives the class number of each jet; jets with NaN or a negative number are left out
and counted.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jetfoundry import config
from jetfoundry.downstream import truth
from jetfoundry.errors import ConfigError, nearest
from jetfoundry.evaluate.discriminants import parse
from jetfoundry.features.expressions import compile_formula, evaluate
from jetfoundry.features.jagged import Jagged, from_arrow
from jetfoundry.labels import label_scheme
from jetfoundry.schema import COLUMNS

__all__ = ["LabelRule", "ProbeBudget", "Task", "load_tasks"]

assert truth  # imported for the functions it registers


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelRule:
    """Where a jet's class number comes from: one of the two."""

    scheme: str = config.option("", "label scheme of the 188 classes")
    formula: str = config.option("", "class number as a formula of stored columns")

    def __post_init__(self) -> None:
        if bool(self.scheme) == bool(self.formula):
            msg = "give either a scheme or a formula"
            raise ValueError(msg)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeBudget:
    """How long a linear probe trains."""

    epochs: int = config.option(30, "passes over the training jets")
    batch_size: int = config.option(1024, "jets of one step")
    lr: float = config.option(1e-2, "peak learning rate, decays as a cosine")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One downstream classification task."""

    name: str
    title: str
    label: LabelRule
    classes: tuple[str, ...] = config.option((), "class names; a scheme brings its own")
    selection: str = config.option("", "formula; only jets for which it is true take part")
    compare: tuple[str, ...] = config.option((), "discriminants 'A vs B' to report; two classes need none")
    balance: bool = config.option(True, "weight classes equally in the probe's loss")
    budget: ProbeBudget = config.option(ProbeBudget(), "")

    def __post_init__(self) -> None:
        for text in self.compare:
            parse(text, self.class_names)

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        return label_scheme(self.label.scheme).classes if self.label.scheme else self.classes

    @property
    def columns(self) -> list[str]:
        """Stored columns that label and selection read."""
        formulas = [text for text in (self.label.formula, self.selection) if text]
        names = {name for text in formulas for name in compile_formula(text, where=self.name).names}
        stored = [column.name for column in COLUMNS]
        unknown = names - set(stored)
        if unknown:
            msg = f"task {self.name}: unknown column {min(unknown)!r}; {nearest(min(unknown), stored)}"
            raise ConfigError(msg)
        return sorted(names | ({"jet_label"} if self.label.scheme else set()))

    def labels(self, table: pa.Table) -> npt.NDArray[np.int64]:
        """Class number of each jet (B,), -1 for jets that do not take part."""
        columns = {name: from_arrow(table[name]) for name in self.columns}
        if self.label.scheme:
            number = label_scheme(self.label.scheme).apply(table["jet_label"].to_numpy())
        else:
            raw = self._per_jet(self.label.formula, columns).astype(np.float64)
            number = np.where(np.isfinite(raw) & (raw >= 0), np.nan_to_num(raw, nan=-1), -1).astype(np.int64)
        if number.max(initial=-1) >= len(self.class_names):
            msg = f"task {self.name}: the label formula gives class {number.max()}, but {len(self.class_names)} classes"
            raise ConfigError(msg + " are named")
        if self.selection:
            number = np.where(self._per_jet(self.selection, columns).astype(bool), number, -1)
        return number

    def _per_jet(self, text: str, columns: dict[str, Jagged | npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
        value = evaluate(compile_formula(text, where=f"task {self.name}"), columns)
        if isinstance(value, Jagged):
            msg = f"task {self.name}: {text!r} gives one value per particle, wanted one per jet"
            raise ConfigError(msg)
        return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TaskList:
    tasks: tuple[str, ...]


def load_tasks(path: str | Path) -> tuple[Task, ...]:
    """Read one task file, a file that lists task files (`tasks: [a.yaml, b.yaml]`), or a folder of task files."""
    path = Path(path)
    if path.is_dir():
        found = [task for file in sorted(path.glob("*.yaml")) for task in load_tasks(file)]
        return tuple({task.name: task for task in found}.values())
    tree = config.load_yaml(path)
    if isinstance(tree, dict) and "tasks" in tree:
        listed = config.build(_TaskList, tree, str(path))
        return tuple(task for name in listed.tasks for task in load_tasks(path.parent / name))
    return (config.read(Task, path),)
