"""From a block of stored jets to network inputs: what weaver does in `SimpleIterDataset`, on flat buffers.

    table                                    B jets, stored columns (GeV, mm, rad)
    1. select     selection formula, classes that the label scheme drops             -> rows (B',)
    2. compute    new variables, in the order of their dependencies
    3. standardise  float32 clip((value - center) * scale, low, high) where a center is given   (standardise.py)
    4. cut        each jet to the first `length` particles                           -> starts and counts (B',)
    5. weigh      sampling weights, if the YAML has them                             (reweighting.py)
    6. pad        on demand, for the jets of one micro-batch                         -> (b, F, P)   (padding.py)

Steps 1-5 run once for a block, step 6 for every batch. All numbers agree with weaver-core 0.5.3 to the last bit or two
of float32 (tests/features/test_weaver_parity.py) with two intended differences: what is infinite and not standardised
becomes 0 (weaver feeds it to the network), and all that was not finite is counted in `Features.nonfinite`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry.errors import ConfigError, InputError
from jetfoundry.features import data_config_reader
from jetfoundry.features.block import Block, Jets
from jetfoundry.features.data_config import KNOWN_COLUMNS, Sections
from jetfoundry.features.jagged import Array, Jagged
from jetfoundry.features.padding import Features, FlatInput
from jetfoundry.features.reweighting import JetBins, bin_numbers, jet_weights
from jetfoundry.features.standardise import standardised

__all__ = ["DataConfig", "Features", "FlatInput", "load_data_config"]

_MOST = 0.7  # part of the jets


def load_data_config(
    source: str | Path | Mapping[str, Any], *, known: Collection[str] | None = KNOWN_COLUMNS, scheme: str = ""
) -> DataConfig:
    """Read and check a data YAML in weaver's schema (a path, or the mapping that it holds).

    `known` are the columns that formulas may read, JetClass-II's by default; with None any name is taken for a column
    and `apply` complains. `scheme` overrides the label scheme of the YAML. Raises ConfigError (FormulaError for
    formulas) that names file, section and the nearest valid names.
    """
    return data_config_reader.read(DataConfig, source, known, scheme)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Sections):
    """A data YAML, checked and ready to be applied to blocks of jets."""

    def apply(self, table: Jets, *, training: bool, labels: bool = True) -> Features:
        """Select, compute and standardise the jets of `table` (B rows with at least `columns`).

        In training `selection` decides, jets of no or several classes are an error and monitor variables are carried
        along; else `test_time_selection` (if there is one) decides, such jets get label -1, and observers are carried.
        A block without selected jets gives features with B' = 0. With `labels=False`, for jets without truth, only
        `input_columns` are needed: all labels are -1, no class is dropped, nothing is carried along. Raises InputError
        or FormulaError, and ConfigError if a center is still to be measured.
        """
        if self.unmeasured:
            msg = f"{self.where}: center: auto of {', '.join(self.unmeasured)} is not measured yet"
            raise ConfigError(msg)
        block = Block(self, table)
        rows = self._selected(block, training)
        numbers: npt.NDArray[np.int64] = np.full(len(rows), -1)
        targets: dict[str, Array] = {}
        if labels:
            numbers, targets, rows = self._labels(block, rows, training)
        found = rows
        if len(rows) < _MOST * table.num_rows:  # else computing the few others costs less than leaving them out
            block, rows = Block(self, table, rows), np.arange(len(rows))
        inputs, nonfinite = standardised(block, self.inputs.values(), rows)
        main = max(inputs.values(), key=lambda flat: flat.store.counts.sum())
        carried = self.monitor_variables if training else (*self.observers, *self.monitor_variables)
        weigh = labels and training and self.weights is not None and self.weights.known
        return Features(
            rows=found,
            offsets=main.offsets,
            inputs=inputs,
            labels=numbers,
            targets=targets,
            observers={name: block.column(name)[rows] for name in carried} if labels else {},
            weights=self.jet_weights(block)[rows] if weigh else None,
            nonfinite=nonfinite,
        )

    def class_numbers(self, table: Jets) -> npt.NDArray[np.int64]:
        """Class number of every jet of `table` (B,), -1 for none or a dropped class; needs `label_columns` only."""
        numbers = np.full(table.num_rows, -1)
        found, _, rows = self._labels(Block(self, table), np.arange(table.num_rows), training=False)
        numbers[rows] = found
        return numbers

    def selected(self, table: Jets) -> Block:
        """The jets that `selection` keeps for training, before a label scheme drops any of them."""
        block = Block(self, table)
        return block if self.selection is None else Block(self, table, self._selected(block, training=True))

    def kept(self, block: Block) -> npt.NDArray[np.int64]:
        """Which jets of `block` (indices) are of a class that the label scheme keeps."""
        return self._labels(block, np.arange(block.jets), training=False)[2]

    def members(self, block: Block) -> npt.NDArray[np.bool_]:
        """Whether each jet is of each of the K reweighting classes, (K, B)."""
        assert self.weights is not None
        return np.stack([self._per_jet(block, name) == 1 for name in self.weights.classes])

    def jet_bins(self, block: Block) -> JetBins:
        """Bins, reweighting classes and base weights of the jets of `block`."""
        section = self.weights
        assert section is not None
        values = [self._per_jet(block, name) for name in section.vars]
        bins = bin_numbers(values, list(section.vars.values()), discard=section.discard_under_overflow)
        base = None if section.base_weight is None else block.per_jet(section.base_weight).astype(np.float32)
        return JetBins(bins, self.members(block), base)

    def jet_weights(self, block: Block) -> npt.NDArray[np.float32]:
        """Sampling weight of each jet of `block` (B,); the `weights` section must be complete."""
        section = self.weights
        assert section is not None
        assert section.known
        if section.precomputed is not None:
            return block.per_jet(section.precomputed).astype(np.float32)
        return jet_weights(self.jet_bins(block), self.weight_tables)

    @functools.cached_property
    def weight_tables(self) -> npt.NDArray[np.float32]:
        """Weight by reweighting class and bin (K, X, Y)."""
        assert self.weights is not None
        return np.asarray([self.weights.tables[name] for name in self.weights.classes], np.float32)

    def _per_jet(self, block: Block, name: str) -> Array:
        column = block.column(name)
        if isinstance(column, Jagged):
            msg = f"{self.where}: weights: {name} has one value per particle, wanted one per jet"
            raise ConfigError(msg)
        return column

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
