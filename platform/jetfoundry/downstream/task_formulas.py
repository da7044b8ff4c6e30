"""The formulas of a task: what columns they read, and their values for the jets of a table.

Names are stored columns, the task's variables, or classes, groups and families of JetClass-II (`X_bb`, `QCD`), which
are conditions on `jet_label`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jetfoundry.downstream import truth
from jetfoundry.errors import ConfigError
from jetfoundry.features.expressions import compile_formula, evaluate
from jetfoundry.features.jagged import Column, Jagged, from_arrow
from jetfoundry.labels import CLASSES, FAMILIES, GROUPS, select_classes
from jetfoundry.schema import COLUMNS

__all__ = ["CONDITIONS", "LABEL", "Formulas", "Values"]

assert truth  # imported for the functions it registers

CONDITIONS = frozenset((*CLASSES, *GROUPS, *FAMILIES))
"""Names that are true for the jets of a class, group or family."""

LABEL = "jet_label"


@dataclasses.dataclass(frozen=True)
class Formulas:
    """A task's variables (name -> formula, later ones may read earlier ones); `where` opens error messages."""

    where: str
    variables: Mapping[str, str]

    def check(self) -> None:
        """Raise ValueError for a variable that hides another name, or reads one that stands below it."""
        order = list(self.variables)
        taken = CONDITIONS | {column.name for column in COLUMNS}
        for number, (name, text) in enumerate(self.variables.items()):
            if name in taken or not name.isidentifier():
                msg = f"variables: {name!r} is no name for a variable, or that of a column or class"
                raise ValueError(msg)
            if late := self._names(text) & set(order[number:]):
                msg = f"variables: {name} reads {min(late)}, which does not stand above it"
                raise ValueError(msg)

    def columns(self, texts: Iterable[str]) -> set[str]:
        """Stored columns behind formulas, through the variables and conditions that they name."""
        return {LABEL if name in CONDITIONS else name for name in self.names(texts) - set(self.variables)}

    def names(self, texts: Iterable[str]) -> set[str]:
        """All names that formulas read, those behind variables included."""
        found: set[str] = set()
        todo = list(texts)
        while todo:
            new = self._names(todo.pop()) - found
            found |= new
            todo += [self.variables[name] for name in new if name in self.variables]
        return found

    def _names(self, text: str) -> frozenset[str]:
        return compile_formula(text, where=self.where).names

    def values(self, table: pa.Table, texts: Iterable[str]) -> Values:
        """Ready to evaluate `texts` for the B jets of `table`, which has their columns."""
        needed = self.names(texts)
        columns: dict[str, Column] = {
            name: from_arrow(table[name], name) for name in needed - set(self.variables) - CONDITIONS
        }
        if conditions := needed & CONDITIONS:
            label = table[LABEL].to_numpy()
            columns |= {name: np.isin(label, select_classes(name)) for name in conditions}
        values = Values(self.where, table.num_rows, columns)
        for name, text in self.variables.items():
            if name in needed:
                columns[name] = values.column(text)
        return values


@dataclasses.dataclass(frozen=True)
class Values:
    """Columns and variables of B = `jets` jets by name."""

    where: str
    jets: int
    columns: Mapping[str, Column]

    def column(self, text: str) -> Column:
        """The formula's values, of any shape."""
        return evaluate(compile_formula(text, where=self.where), self.columns)

    def per_jet(self, text: str) -> npt.NDArray[np.float64]:
        """The formula's value of each jet (B,), NaN where it is missing; ConfigError if it has one per particle."""
        value = self.column(text)
        if isinstance(value, Jagged):
            msg = f"{self.where}: {text!r} gives one value per particle, wanted one per jet"
            raise ConfigError(msg)
        return np.broadcast_to(np.ma.filled(np.ma.asarray(value, np.float64), np.nan), (self.jets,))

    def condition(self, text: str) -> npt.NDArray[np.bool_]:
        """Whether the formula is true for each jet (B,); false where its value is missing or NaN."""
        return np.asarray(np.nan_to_num(self.per_jet(text)) != 0)
