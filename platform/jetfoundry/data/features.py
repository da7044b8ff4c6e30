"""From a block of stored jets to network inputs: what weaver does in `SimpleIterDataset`, on flat buffers.

    table                                    B jets, stored columns (GeV, mm, rad)
    1. select     selection formula, classes that the label scheme drops             -> rows (B',)
    2. compute    new variables, in the order of their dependencies
    3. cut        each jet to the first `length` particles                           -> offsets (B'+1,), N particles
    4. standardise  float32 clip((value - center) * scale, low, high) where a center is given -> (F, N)
    5. pad        on demand, for the jets of one micro-batch                         -> (b, F, P)

Steps 1-4 run once for a block, step 5 for every batch. All numbers agree with weaver-core 0.5.3 bit by bit
(tests/data/test_weaver_parity.py) with two intended differences: what is infinite and not standardised becomes 0
(weaver feeds it to the network), and all that was not finite is counted in `Features.nonfinite`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jetfoundry.data import data_config_reader
from jetfoundry.data.data_config import KNOWN_COLUMNS, InputGroup, InputVariable, Sections
from jetfoundry.data.expressions import Formula, evaluate
from jetfoundry.data.jagged import Array, Column, Jagged, from_arrow, same_offsets, segments
from jetfoundry.errors import ConfigError, InputError, nearest

__all__ = ["DataConfig", "Features", "FlatInput", "load_data_config"]


def load_data_config(
    source: str | Path | Mapping[str, Any], *, known: Collection[str] | None = KNOWN_COLUMNS, scheme: str = ""
) -> DataConfig:
    """Read and check a data YAML in weaver's schema (a path, or the mapping that it holds).

    `known` are the columns that formulas may read, JetClass-II's by default; with None any name is taken for a column
    and `apply` complains. `scheme` overrides the label scheme of the YAML. Raises ConfigError (FormulaError for
    formulas) that names file, section and the nearest valid names.
    """
    return data_config_reader.read(DataConfig, source, known, scheme)


@dataclasses.dataclass(frozen=True, eq=False)
class FlatInput:
    """One input, not padded. `particles` (N+1, F) float32 is particle-major: a jet's particles are one piece of memory,
    which makes padding a single gather. Its last row is what padding reads; `offsets` (B'+1,) delimit the jets."""

    particles: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.int64]
    group: InputGroup

    @property
    def values(self) -> npt.NDArray[np.float32]:
        """(F, N): standardised, clipped, cut to `length`, all jets one after the other."""
        return self.particles[:-1].T

    def pad(self, jets: npt.NDArray[np.int64], length: int | None) -> npt.NDArray[np.float32]:
        starts, counts = self.offsets[jets], self.offsets[jets + 1] - self.offsets[jets]
        if self.group.length is None:
            return self.particles[starts]
        width = max(1, int(counts.max(initial=0))) if length is None else length
        slots = np.arange(width)
        if self.group.pad_mode == "wrap":
            source = starts[:, None] + slots % np.maximum(counts, 1)[:, None]
            filled = (counts > 0)[:, None]
        else:
            source = starts[:, None] + slots
            filled = slots < counts[:, None]
        gathered = self.particles.take(np.where(filled, source, len(self.particles) - 1), axis=0)  # (b, P, F)
        return np.ascontiguousarray(gathered.transpose(0, 2, 1))

    def take(self, jets: npt.NDArray[np.int64]) -> FlatInput:
        where, offsets = segments(self.offsets, jets)
        return FlatInput(self.particles.take(np.append(where, -1), axis=0), offsets, self.group)


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """The selected jets of a block, B' of B.

    `rows` (B',) are their indices in the table; `offsets` (B'+1,) those of the input with the most particles; `labels`
    (B',) class numbers, -1 for none; `targets` the values of all custom label formulas by name; `observers` quantities
    to carry along (monitor variables in training). `nonfinite` counts, by variable, values that were NaN or infinite.
    """

    rows: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    inputs: dict[str, FlatInput]
    labels: npt.NDArray[np.int64]
    targets: dict[str, Array]
    observers: dict[str, Column]
    nonfinite: dict[str, int]

    def __len__(self) -> int:
        """Number of selected jets B'."""
        return len(self.rows)

    def pad(self, name: str, jets: npt.ArrayLike, length: int | None = None) -> npt.NDArray[np.float32]:
        """Input `name` of the given jets (b,) of this block, padded by weaver's rule to (b, F, P) float32.

        P = `length`, else the longest of these jets (at least 1). Longer jets are cut. An input of jet quantities
        (`length: null` in the YAML) has no particles: (b, F).
        """
        return self.inputs[name].pad(np.asarray(jets, dtype=np.int64), length)

    def take(self, jets: npt.ArrayLike) -> Features:
        """The given jets (indices into this block), in that order. `nonfinite` stays that of the whole block."""
        chosen = np.asarray(jets, dtype=np.int64)
        return Features(
            rows=self.rows[chosen],
            offsets=segments(self.offsets, chosen)[1],
            inputs={name: flat.take(chosen) for name, flat in self.inputs.items()},
            labels=self.labels[chosen],
            targets={name: values[chosen] for name, values in self.targets.items()},
            observers={name: values[chosen] for name, values in self.observers.items()},
            nonfinite=self.nonfinite,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Sections):
    """A data YAML, checked and ready to be applied to blocks of jets."""

    def apply(self, table: pa.Table, *, training: bool) -> Features:
        """Select, compute and standardise the jets of `table` (B rows with at least `columns`).

        In training `selection` decides, jets of no or several classes are an error and monitor variables are carried
        along; else `test_time_selection` (if there is one) decides, such jets get label -1, and observers are carried.
        A block without selected jets gives features with B' = 0. Raises InputError or FormulaError.
        """
        everything = _Block(self, table)
        labels, targets, rows = self._labels(everything, self._selected(everything, training), training)
        block = everything if len(rows) == table.num_rows else _Block(self, table, rows)
        nonfinite: dict[str, int] = {}
        inputs = {name: _flat_input(block, group, nonfinite) for name, group in self.inputs.items()}
        main = max(inputs.values(), key=lambda flat: flat.offsets[-1])
        carried = self.monitor_variables if training else (*self.observers, *self.monitor_variables)
        return Features(
            rows=rows,
            offsets=main.offsets,
            inputs=inputs,
            labels=labels,
            targets=targets,
            observers={name: block.column(name) for name in carried},
            nonfinite=nonfinite,
        )

    def _selected(self, block: _Block, training: bool) -> npt.NDArray[np.int64]:
        formula = self.selection if training or self.test_time_selection is None else self.test_time_selection
        if formula is None:
            return np.arange(block.jets)
        return np.flatnonzero(block.per_jet(formula).astype(bool))

    def _labels(
        self, block: _Block, rows: npt.NDArray[np.int64], training: bool
    ) -> tuple[npt.NDArray[np.int64], dict[str, Array], npt.NDArray[np.int64]]:
        """Labels and targets of the selected rows, and the rows that a label scheme keeps of them."""
        values = {name: block.per_jet(formula)[rows] for name, formula in self.labels.formulas.items()}
        if self.labels.kind == "simple":
            member = np.stack([column == 1 for column in values.values()], axis=1)  # (B', classes)
            classes = member.sum(axis=1)
            if training and (classes != 1).any():
                self._raise_labels(rows, classes)
            return np.where(classes == 1, member.argmax(axis=1), -1), {}, rows
        first = next(iter(values.values()))
        if self.labels.scheme is None:
            labels = first.astype(np.int64) if first.dtype.kind in "iub" else np.full(len(rows), -1)
            return labels, values, rows
        outside = rows[(first < 0) | (first >= len(self.labels.scheme.table))]
        if len(outside):
            msg = (
                f"{self.where}: labels: class numbers outside 0…{len(self.labels.scheme.table) - 1} in {_some(outside)}"
            )
            raise InputError(msg)
        labels = self.labels.scheme.apply(first)
        kept = labels >= 0
        return labels[kept], {name: column[kept] for name, column in values.items()}, rows[kept]

    def _raise_labels(self, rows: npt.NDArray[np.int64], classes: npt.NDArray[np.int64]) -> None:
        none, several = rows[classes == 0], rows[classes > 1]
        what = [f"no class for {_some(none)}"] if len(none) else []
        what += [f"several classes for {_some(several)}"] if len(several) else []
        msg = f"{self.where}: labels.value: {' and '.join(what)}; wanted exactly one of {', '.join(self.classes)}"
        raise InputError(msg)


def _some(rows: npt.NDArray[np.int64]) -> str:
    shown = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
    return f"{len(rows)} jet{'s' if len(rows) > 1 else ''} (rows {shown})"


class _Block:
    """Columns and new variables of one table, each computed when first asked for."""

    def __init__(self, config: DataConfig, table: pa.Table, rows: npt.NDArray[np.int64] | None = None) -> None:
        self.config, self.table, self.rows = config, table, rows
        self.jets = table.num_rows if rows is None else len(rows)
        self.done: dict[str, Column] = {}
        self.layouts: list[tuple[Array, Array | None, Array]] = []  # stored offsets, values to take, their offsets

    def compute(self, names: Iterable[str]) -> None:
        """Make `names`, and what they need, available in `done`."""
        for name in self.config.needed(names):
            if name in self.done:
                continue
            formula = self.config.formulas.get(name)
            self.done[name] = self._stored(name) if formula is None else self.value(formula)

    def column(self, name: str) -> Column:
        self.compute([name])
        return self.done[name]

    def value(self, formula: Formula) -> Column:
        """A formula's value for this block; a constant is repeated for every jet."""
        self.compute(formula.names)
        value = evaluate(formula, self.done)
        return value if isinstance(value, Jagged) or value.ndim else np.full(self.jets, value)

    def per_jet(self, formula: Formula) -> Array:
        value = self.value(formula)
        if isinstance(value, Jagged):
            formula.fail("gives one value per particle, wanted one per jet; e.g. ak.any(…, axis=1)")
        return value

    def _stored(self, name: str) -> Column:
        if name not in self.table.column_names:
            msg = f"{self.config.where}: the data have no column {name!r}; {nearest(name, self.table.column_names)}"
            raise InputError(msg)
        column = from_arrow(self.table[name], name)
        if not isinstance(column, Jagged):
            return column if self.rows is None else column[self.rows]
        where, offsets = self._layout(column)
        return Jagged(column.values if where is None else column.values[where], offsets)

    def _layout(self, column: Jagged) -> tuple[Array | None, Array]:
        """Where the selected jets' values lie, worked out once for all columns with the same list lengths."""
        for stored, where, offsets in self.layouts:
            if np.array_equal(column.offsets, stored):
                return where, offsets
        where, offsets = (None, column.offsets) if self.rows is None else segments(column.offsets, self.rows)
        self.layouts.append((column.offsets, where, offsets))
        return where, offsets


def _flat_input(block: _Block, group: InputGroup, nonfinite: dict[str, int]) -> FlatInput:
    columns = [block.column(name) for name in group.vars]
    offsets, where = _layout(block, group, columns)
    total = int(offsets[-1])
    rows = np.empty((len(columns), total), np.float32)
    for row, column, variable in zip(rows, columns, group.variables, strict=True):
        values = column.values if isinstance(column, Jagged) else column
        row[:] = values if where is None else values[where]
        bad = _standardise(row, variable)
        if bad:
            nonfinite[variable.name] = bad
    particles = np.empty((total + 1, len(columns)), np.float32)
    particles[:-1] = rows.T
    # weaver fills jets without particles with 0 where it wraps
    particles[-1] = 0 if group.pad_mode == "wrap" else [variable.pad for variable in group.variables]
    return FlatInput(particles, offsets, group)


def _layout(
    block: _Block, group: InputGroup, columns: list[Column]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    """Offsets of an input cut to its length, and which flat values remain (None = all)."""
    jagged = [column for column in columns if isinstance(column, Jagged)]
    names = dict(zip(group.vars, columns, strict=True))
    if group.length is None or not jagged:
        if jagged:
            wrong = next(name for name, column in names.items() if isinstance(column, Jagged))
            msg = f"{block.config.where}: inputs.{group.name}: {wrong} has a value per particle; give a length"
            raise ConfigError(msg)
        return np.arange(block.jets + 1), None
    for name, column in names.items():
        if not isinstance(column, Jagged):
            reason = f"{name} has one value per jet; write it as {name} * ak.ones_like(<a particle variable>)"
        elif not same_offsets(column, jagged[0]):
            reason = f"{name} and {group.vars[0]} have different numbers of particles; put them into two inputs"
        else:
            continue
        msg = f"{block.config.where}: inputs.{group.name}: {reason}"
        raise ConfigError(msg)
    offsets = jagged[0].offsets
    if not (jagged[0].counts > group.length).any():
        return offsets, None
    where, cut = segments(offsets, np.arange(block.jets), group.length)
    return cut, where


def _standardise(row: npt.NDArray[np.float32], variable: InputVariable) -> int:
    """Standardise and clip in place, in float32 as weaver does; NaN and what is still infinite becomes 0.

    Returns how many values were not finite before."""
    bad = row.size - int(np.count_nonzero(np.isfinite(row)))
    if variable.center is not None:
        row -= np.float32(variable.center)
        row *= np.float32(variable.scale)
        np.clip(row, np.float32(variable.low), np.float32(variable.high), out=row)
    if bad:
        row[~np.isfinite(row)] = 0
    return bad
