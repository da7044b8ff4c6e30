"""Per-jet sampling weights from histograms, as weaver makes them (`weights` section of a data YAML).

    counts (K, X, Y) of K reweighting classes in bins of two variables
      flat:  w = min(1, r / n) with r the `threshold` percentile of the filled bins     -> flat in both variables
      ref:   w = min(1, n_first / n / u), u the 100 - `threshold` percentile            -> the shape of the first class
    then all classes are scaled so that their expected jets stand in the ratio of the class weights, the scarcest class
    keeping 90 % of its jets. The weight of a jet is that of its class and bin, times its base weight.

A weight is the probability that a jet is accepted in one trial; `sampling.py` makes expected uses of it. As in
weaver-core 0.5.3 a jet of several classes counts in all of them and takes the weight of the last, jets of no class
or outside the bins have weight 0, and with `reweight_discard_under_overflow: false` the outer bins take what lies
beyond them. Two differences: a class without jets is an error here (weaver divides by nothing), and a variable that is
NaN is outside the bins in any case. Pure NumPy, no files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry.errors import InputError
from jetfoundry.features.data_config import Weights

__all__ = ["MAX_WEIGHT", "JetBins", "bin_numbers", "class_histograms", "jet_weights", "overall_scale", "weight_tables"]

MAX_WEIGHT = 0.9
"""Mean acceptance of the scarcest class: below 1, so that also its jets are drawn at random."""

_Table = npt.NDArray[np.float32]
_NEGLIGIBLE = 0.01  # bins with less than this part of the median do not enter the percentile of `flat`


@dataclasses.dataclass(frozen=True, eq=False)
class JetBins:
    """B jets as reweighting sees them: `bins` (B,) flat bin number or -1 outside, `members` (K, B) whether a jet is of
    a class, `base` (B,) float32 base weights or None."""

    bins: npt.NDArray[np.int64]
    members: npt.NDArray[np.bool_]
    base: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.bins)

    @property
    def inside(self) -> npt.NDArray[np.bool_]:
        """Jets that are counted (B,): in a bin and of at least one class."""
        return (self.bins >= 0) & self.members.any(axis=0)

    @property
    def classes(self) -> npt.NDArray[np.int64]:
        """The last class of each jet (B,), -1 for none."""
        last = len(self.members) - 1 - self.members[::-1].argmax(axis=0)
        return np.where(self.members.any(axis=0), last, -1)

    def take(self, rows: Any) -> JetBins:
        """The jets `rows` (indices or mask)."""
        return JetBins(self.bins[rows], self.members[:, rows], None if self.base is None else self.base[rows])


def bin_numbers(
    values: Sequence[npt.NDArray[Any]], edges: Sequence[Sequence[float]], *, discard: bool
) -> npt.NDArray[np.int64]:
    """Flat bin number (B,) of jets with two `values` (B,) each, -1 outside.

    Bins include their lower edge, the last one also its upper. Without `discard` the outer bins have no end.
    """
    number = np.zeros(len(values[0]), np.int64)
    inside = np.ones(len(values[0]), bool)
    for column, bounds in zip(values, edges, strict=True):
        bins = len(bounds) - 1
        number = number * bins + np.clip(np.searchsorted(bounds, column, "right") - 1, 0, bins - 1)
        inside &= (column >= bounds[0]) & (column <= bounds[-1]) if discard else ~np.isnan(column)
    return np.where(inside, number, -1)


def class_histograms(jets: JetBins, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Jets, or their base weights, summed by class and bin: (K, X, Y)."""
    histograms = np.empty((len(jets.members), shape[0] * shape[1]))
    for row, member in zip(histograms, jets.members, strict=True):
        chosen = member & (jets.bins >= 0)
        weights = None if jets.base is None else jets.base[chosen]
        row[:] = np.bincount(jets.bins[chosen], weights=weights, minlength=row.size)
    return histograms.reshape(len(jets.members), *shape)


def weight_tables(histograms: npt.NDArray[np.float64], section: Weights) -> npt.NDArray[np.float32]:
    """Weight of each class and bin (K, X, Y) from the classes' histograms (K, X, Y).

    Raises InputError, naming the class, if a class has no jets in the bins or (`ref`) shares no bin with the first.
    """
    counts = histograms.astype(np.float32)  # weaver's precision
    tables = np.empty_like(counts)
    expected = np.empty(len(counts))
    for k, (name, share) in enumerate(zip(section.classes, section.class_weights, strict=True)):
        if not (counts[k] > 0).any():
            msg = f"weights.reweight_classes: {name} has no jets inside the bins of {' and '.join(section.vars)}"
            raise InputError(msg)
        flat = section.method == "flat"
        tables[k] = _flat(counts[k], section) if flat else _like(counts[0], counts[k], name, section)
        expected[k] = np.sum(counts[k] * tables[k]) / share
    return np.asarray(tables * (expected.min() * MAX_WEIGHT / expected)[:, None, None], np.float32)


def _flat(counts: _Table, section: Weights) -> _Table:
    filled = counts[counts > np.median(counts[counts > 0]) * np.float32(_NEGLIGIBLE)]
    return np.clip(_ratio(np.float32(np.percentile(filled, section.threshold)), counts), 0, 1)


def _like(first: _Table, counts: _Table, name: str, section: Weights) -> _Table:
    ratio = _ratio(first, counts)
    if not (ratio > 0).any():
        msg = f"weights.reweight_classes: {name} and {section.classes[0]}, its reference, have no filled bin in common"
        raise InputError(msg)
    upper = np.float32(np.percentile(ratio[ratio > 0], 100 - section.threshold))
    return np.asarray(np.clip(ratio / upper, 0, 1))


def _ratio(numerator: Any, counts: _Table) -> _Table:
    """numerator / counts, 0 in empty bins."""
    with np.errstate(all="ignore"):
        return np.asarray(np.nan_to_num(numerator / counts, posinf=0), np.float32)


def jet_weights(jets: JetBins, tables: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Weight of each jet (B,) from the `tables` (K, X, Y) of `weight_tables`; 0 outside bins and classes."""
    flat = tables.reshape(len(tables), -1)
    weights = np.where(jets.inside, flat[jets.classes, jets.bins], np.float32(0))
    return weights if jets.base is None else weights * jets.base


def overall_scale(weights: npt.NDArray[np.float32], section: Weights) -> float:
    """What the tables are divided by where base weights spread the jets' weights (B,): their upper percentile."""
    return float(np.percentile(weights, 100 - section.threshold))
