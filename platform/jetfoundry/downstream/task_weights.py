"""Weights of a task's jets: flat in two variables within each class, or classes alike.

Where the classes differ in mass or pT, a head separates them by these alone. Flat weights take that away; they are
those of the data YAML (features/reweighting.py), used as weights of a loss or a figure, not as chances of a draw.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from jetfoundry import config
from jetfoundry.errors import InputError
from jetfoundry.features.data_config import Weights
from jetfoundry.features.reweighting import JetBins, bin_numbers, class_histograms, jet_weights, weight_tables

__all__ = ["Reweighting", "class_weights", "flat_weights"]

Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reweighting:
    """Make each class flat in two variables, up to the `threshold` percentile of its filled bins."""

    variables: dict[str, tuple[float, ...]] = config.option(
        dataclasses.MISSING, "two columns or variables -> their bin edges; jets outside have weight 0"
    )
    threshold: float = config.option(10.0, "percentile of the filled bins that a class is flat up to")
    evaluate: bool = config.option(True, "whether the figures are weighted, too")

    def __post_init__(self) -> None:
        if len(self.variables) != 2 or any(len(e) < 2 or list(e) != sorted(set(e)) for e in self.variables.values()):
            shown = {name: list(edges) for name, edges in self.variables.items()}
            msg = f"variables: wanted two, each with two or more rising edges, got {shown}"
            raise ValueError(msg)
        if not 0 < self.threshold <= 100:
            msg = f"threshold {self.threshold}: wanted a percentile above 0, up to 100"
            raise ValueError(msg)


def flat_weights(
    rule: Reweighting, values: Sequence[npt.NDArray[np.floating]], labels: npt.NDArray[np.int64], classes: Sequence[str]
) -> Floats:
    """Weights (N,) of mean 1 from the two variables (N,) and class numbers (N,); classes come out with equal sums.

    Classes without jets are passed over. Raises InputError if all jets of a class lie outside the bins.
    """
    present = np.unique(labels)
    names = tuple(classes[number] for number in present)
    section = Weights(
        method="flat",
        vars=rule.variables,
        classes=names,
        class_weights=(1.0,) * len(names),
        threshold=rule.threshold,
    )
    bins = bin_numbers(values, list(rule.variables.values()), discard=True)
    jets = JetBins(bins, labels == present[:, None])
    for name, member in zip(names, jets.members, strict=True):
        if not (member & (bins >= 0)).any():
            msg = f"reweighting: all {int(member.sum())} jets of class {name} lie outside the bins of "
            raise InputError(msg + " and ".join(rule.variables))
    weights = jet_weights(jets, weight_tables(class_histograms(jets, section.shape), section))
    return np.asarray(weights / weights.mean(dtype=np.float64), np.float32)


def class_weights(labels: npt.NDArray[np.int64], num_classes: int) -> Floats:
    """Weights (N,) of mean 1 that give all classes that have jets the same sum."""
    counts = np.bincount(labels, minlength=num_classes)
    return np.asarray(len(labels) / (np.count_nonzero(counts) * counts[labels]), np.float32)
