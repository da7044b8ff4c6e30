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
from jetfoundry.data.block import Block
from jetfoundry.data.data_config import KNOWN_COLUMNS, InputGroup, InputVariable, Sections
from jetfoundry.data.jagged import Array, Column, Jagged, same_offsets, segments
from jetfoundry.errors import ConfigError, InputError

__all__ = ["DataConfig", "Features", "FlatInput", "load_data_config"]

_PIECE = 8192  # particles; 17 variables of a piece take half a megabyte


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

    def source(self, jets: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
        """Rows of `particles` that fill the slots of these jets, (b, width)."""
        starts, counts = self.offsets[jets], self.offsets[jets + 1] - self.offsets[jets]
        slots, padding = np.arange(width), len(self.particles) - 1
        if self.group.pad_mode == "wrap":
            wrapped = starts[:, None] + slots % np.maximum(counts, 1)[:, None]
            return np.where((counts > 0)[:, None], wrapped, padding)
        return np.where(slots < counts[:, None], starts[:, None] + slots, padding)

    def gather(self, source: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(b, F, P) of `source` (b, P)."""
        return np.ascontiguousarray(self.particles.take(source, axis=0).transpose(0, 2, 1))

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
        return self._pad([name], jets, length)[name]

    def pad_all(self, jets: npt.ArrayLike, length: int | None = None) -> dict[str, npt.NDArray[np.float32]]:
        """All inputs of these jets, as `pad` gives them one by one; the work that they share is done once."""
        return self._pad(self.inputs, jets, length)

    def _pad(self, names: Iterable[str], jets: npt.ArrayLike, length: int | None) -> dict[str, npt.NDArray[np.float32]]:
        chosen = np.asarray(jets, dtype=np.int64)
        sources: dict[tuple[int, str], npt.NDArray[np.int64]] = {}
        padded = {}
        for name in names:
            flat = self.inputs[name]
            if flat.group.length is None:
                padded[name] = flat.particles[chosen]
                continue
            key = (id(flat.offsets), flat.group.pad_mode)
            if key not in sources:
                longest = int((flat.offsets[chosen + 1] - flat.offsets[chosen]).max(initial=1))
                sources[key] = flat.source(chosen, longest if length is None else length)
            padded[name] = flat.gather(sources[key])
        return padded

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

    def apply(self, table: pa.Table, *, training: bool, labels: bool = True) -> Features:
        """Select, compute and standardise the jets of `table` (B rows with at least `columns`).

        In training `selection` decides, jets of no or several classes are an error and monitor variables are carried
        along; else `test_time_selection` (if there is one) decides, such jets get label -1, and observers are carried.
        A block without selected jets gives features with B' = 0. With `labels=False`, for jets without truth, only
        `input_columns` are needed: all labels are -1, no class is dropped, nothing is carried along. Raises InputError
        or FormulaError.
        """
        everything = Block(self, table)
        rows = self._selected(everything, training)
        numbers: npt.NDArray[np.int64] = np.full(len(rows), -1)
        targets: dict[str, Array] = {}
        if labels:
            numbers, targets, rows = self._labels(everything, rows, training)
        block = everything if len(rows) == table.num_rows else Block(self, table, rows)
        nonfinite: dict[tuple[str, str], int] = {}
        with np.errstate(all="ignore"):  # what becomes infinite or NaN is counted
            inputs = {name: _flat_input(block, group, nonfinite) for name, group in self.inputs.items()}
        main = max(inputs.values(), key=lambda flat: flat.offsets[-1])
        carried = self.monitor_variables if training else (*self.observers, *self.monitor_variables)
        return Features(
            rows=rows,
            offsets=main.offsets,
            inputs=inputs,
            labels=numbers,
            targets=targets,
            observers={name: block.column(name) for name in carried} if labels else {},
            nonfinite={variable: count for (_, variable), count in nonfinite.items()},
        )

    def class_numbers(self, table: pa.Table) -> npt.NDArray[np.int64]:
        """Class number of every jet of `table` (B,), -1 for none or a dropped class; needs `label_columns` only."""
        numbers = np.full(table.num_rows, -1)
        found, _, rows = self._labels(Block(self, table), np.arange(table.num_rows), training=False)
        numbers[rows] = found
        return numbers

    def _selected(self, block: Block, training: bool) -> npt.NDArray[np.int64]:
        formula = self.selection if training or self.test_time_selection is None else self.test_time_selection
        if formula is None:
            return np.arange(block.jets)
        return np.flatnonzero(block.per_jet(formula).astype(bool))

    def _labels(
        self, block: Block, rows: npt.NDArray[np.int64], training: bool
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
        last = len(self.labels.scheme.table) - 1
        outside = rows[~((first >= 0) & (first <= last))]
        if len(outside):
            msg = f"{self.where}: labels: class numbers outside 0…{last} in {_some(outside)}"
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


def _flat_input(block: Block, group: InputGroup, nonfinite: dict[tuple[str, str], int]) -> FlatInput:
    """Steps 3 and 4 for one input, piece by piece: a piece is computed variable by variable and stored particle by
    particle while it is in the cache."""
    columns = [block.column(name) for name in group.vars]
    offsets, where = _layout(block, group, columns)
    total = int(offsets[-1])
    flat = [column.values if isinstance(column, Jagged) else column for column in columns]
    if where is not None:
        flat = [values[where] for values in flat]
    particles = np.empty((total + 1, len(flat)), np.float32)
    buffer = np.empty((len(flat), _PIECE), np.float32)
    for begin in range(0, total, _PIECE):
        end = min(begin + _PIECE, total)
        rows = buffer[:, : end - begin]
        for row, values, variable in zip(rows, flat, group.variables, strict=True):
            row[:] = values[begin:end]
            bad = _standardise(row, variable)
            if bad:
                nonfinite[group.name, variable.name] = nonfinite.get((group.name, variable.name), 0) + bad
        particles[begin:end] = rows.T
    # weaver fills jets without particles with 0 where it wraps
    particles[-1] = 0 if group.pad_mode == "wrap" else [variable.pad for variable in group.variables]
    return FlatInput(particles, offsets, group)


def _layout(
    block: Block, group: InputGroup, columns: list[Column]
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
    return block.cut(jagged[0], group.length)


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
