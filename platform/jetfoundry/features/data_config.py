"""A data YAML as frozen dataclasses: what to select, compute, feed to the network, learn and carry along.

`data_config_reader.py` makes them from weaver's schema; what they mean for the data is in `features.py`. Here is what
follows from the formulas alone: which stored columns to read, in which order to compute, which names do not exist.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterable, Iterator

from jetfoundry.errors import ConfigError, nearest
from jetfoundry.features.expressions import Formula, check_names
from jetfoundry.labels import LabelScheme
from jetfoundry.schema import COLUMNS

__all__ = ["KNOWN_COLUMNS", "InputGroup", "InputVariable", "Labels", "Sections", "Weights"]

_LONGEST_CHAIN = 200  # variables that need one another; Python's own stack ends at some thousand

KNOWN_COLUMNS: frozenset[str] = frozenset({column.name for column in COLUMNS} | {"source_file", "source_entry"})
"""Columns of a shard: JetClass-II's 54 and the two of provenance that ingest adds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputVariable:
    """One row of an input: clip((value - center) * scale, low, high); as it is where `center` is None.

    `auto`: center and scale are still to be measured from the data (`data_statistics.py`).
    """

    name: str
    center: float | None = None
    scale: float = 1.0
    low: float = -5.0
    high: float = 5.0
    pad: float = 0.0
    auto: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputGroup:
    """One input of the network: F variables of at most `length` particles; None = one value per jet each.

    `pad_mode` fills up short jets: `constant` with each variable's pad value, `wrap` with the jet's own particles
    again from the first.
    """

    name: str
    length: int | None
    pad_mode: str
    variables: tuple[InputVariable, ...]

    @property
    def vars(self) -> tuple[str, ...]:
        """Names of the F variables."""
        return tuple(variable.name for variable in self.variables)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """Where labels come from: `simple` (one 0-1 formula per class) or `custom` (named formulas, the first decides)."""

    kind: str
    formulas: dict[str, Formula]
    classes: tuple[str, ...]
    scheme: LabelScheme | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """The `weights` section, checked: precomputed branches, or reweighting of classes in bins of two variables.

    `tables` are weaver's `reweight_hists`, the weight of each class and bin; empty until they are measured. `jets`
    and `mean` are our addition: how many jets pass the selection, and the mean of min(weight, 1) over them.
    """

    precomputed: Formula | None = None
    method: str = ""
    vars: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    classes: tuple[str, ...] = ()
    class_weights: tuple[float, ...] = ()
    base_weight: Formula | None = None
    threshold: float = 10.0
    discard_under_overflow: bool = True
    tables: dict[str, tuple[tuple[float, ...], ...]] = dataclasses.field(default_factory=dict)
    jets: int = 0
    mean: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of bins (X, Y)."""
        x, y = (len(edges) - 1 for edges in self.vars.values())
        return x, y

    @property
    def known(self) -> bool:
        """Whether the weight of a jet can be told: no table is missing."""
        return self.precomputed is not None or bool(self.tables)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sections:
    """A data YAML as read. `formulas` are the new variables; `hash` changes with the content, not with comments."""

    where: str
    hash: str
    treename: str | None
    selection: Formula | None
    test_time_selection: Formula | None
    formulas: dict[str, Formula]
    inputs: dict[str, InputGroup]
    labels: Labels
    observers: tuple[str, ...]
    monitor_variables: tuple[str, ...]
    weights: Weights | None
    data_fraction: float = 0.1

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self.inputs)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels; empty for regression and for custom labels without a scheme."""
        return self.labels.classes

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @functools.cached_property
    def unmeasured(self) -> tuple[str, ...]:
        """Variables whose center is still to be measured, sorted."""
        return tuple(sorted({v.name for group in self.inputs.values() for v in group.variables if v.auto}))

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """Exactly the stored columns that training, testing and reweighting need together, sorted."""
        return self.stored((name for _, name in self._listed()), self._all_formulas())

    @functools.cached_property
    def input_columns(self) -> tuple[str, ...]:
        """The stored columns that selection and network inputs need: enough to score jets without truth, sorted."""
        names = (name for group in self.inputs.values() for name in group.vars)
        return self.stored(names, (self.selection, self.test_time_selection))

    @functools.cached_property
    def label_columns(self) -> tuple[str, ...]:
        """The stored columns that the labels need, sorted."""
        return self.stored((), self.labels.formulas.values())

    @functools.cached_property
    def weight_columns(self) -> tuple[str, ...]:
        """The stored columns that tell which jets are selected and what they weigh, sorted."""
        if self.weights is None:
            return ()
        names = (*self.weights.vars, *self.weights.classes)
        formulas = (self.selection, self.weights.base_weight, self.weights.precomputed)
        return self.stored(names, (*formulas, *self.labels.formulas.values()))

    def stored(self, names: Iterable[str], formulas: Iterable[Formula | None] = ()) -> tuple[str, ...]:
        """The stored columns that these variables and formulas need, sorted."""
        roots = {*names, *(name for formula in formulas if formula for name in formula.names)}
        return tuple(sorted(name for name in self.needed(roots) if name not in self.formulas))

    def check(self, known: Collection[str] | None) -> None:
        """Every name must be one of the `known` columns (None = any) or a new variable, none of which needs itself.

        Raises FormulaError or ConfigError that names section, name and the nearest known names.
        """
        self.needed(self.formulas)
        if known is None:
            return
        names = {*known, *self.formulas}
        for formula in (*self.formulas.values(), *self._all_formulas()):
            check_names(formula, names)
        for section, name in self._listed():
            if name not in names:
                msg = f"{self.where}: {section}: unknown variable {name!r}; {nearest(name, names)}"
                raise ConfigError(msg)

    def _listed(self) -> Iterator[tuple[str, str]]:
        """(section, name) of every variable that is listed by its name."""
        for group in self.inputs.values():
            yield from ((f"inputs.{group.name}.vars", name) for name in group.vars)
        yield from (("observers", name) for name in self.observers)
        yield from (("monitor_variables", name) for name in self.monitor_variables)
        if self.weights:
            yield from (("weights", name) for name in (*self.weights.vars, *self.weights.classes))

    def _all_formulas(self) -> Iterator[Formula]:
        """Every formula outside new_variables: those are only computed if something needs them."""
        weights = (self.weights.base_weight, self.weights.precomputed) if self.weights else ()
        for formula in (self.selection, self.test_time_selection, *weights, *self.labels.formulas.values()):
            if formula is not None:
                yield formula

    def needed(self, names: Iterable[str]) -> list[str]:
        """`names` and all they need, dependencies first. Raises FormulaError for a variable that needs itself."""
        done: dict[str, None] = {}

        def visit(name: str, path: tuple[str, ...]) -> None:
            if name in path:
                self.formulas[name].fail("needs itself: " + " -> ".join([*path[path.index(name) :], name]))
            if name in done:
                return
            if len(path) > _LONGEST_CHAIN:
                self.formulas[path[0]].fail(f"needs more than {_LONGEST_CHAIN} variables one after the other")
            if name in self.formulas:
                for inner in sorted(self.formulas[name].names):
                    visit(inner, (*path, name))
            done[name] = None

        for name in sorted(names):
            visit(name, ())
        return list(done)
