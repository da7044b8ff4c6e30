"""What every method gets: training jets with labels and weights, evaluation jets, the number of classes, a seed.

`train` and `evaluate` are what the method reads of the jets: latents (B, D), jet-level numbers (B, F), or `Particles`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from jetfoundry.errors import InputError
from jetfoundry.features.padding import Features

__all__ = ["Particles", "Problem", "Report", "held_out", "strata"]

Report: TypeAlias = Callable[[int, float], None]
"""Tells epoch (from 1) and loss on jets that are not trained on; whoever listens may end the training there."""


@dataclasses.dataclass(frozen=True, eq=False)
class Particles:
    """These `jets` (indices) of a block of features in memory."""

    features: Features
    jets: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """B training jets with `labels` (B,), class numbers or, where there are no classes, a target; their `weights` (B,)
    in the loss; E evaluation jets."""

    train: Any
    labels: npt.NDArray[Any]
    weights: npt.NDArray[np.float32]
    evaluate: Any
    num_classes: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_classes and (self.counts > 0).sum() < 2:
            msg = f"training needs jets of at least two classes, got class counts {self.counts.tolist()}"
            raise InputError(msg)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Training jets of each class (C,)."""
        return np.bincount(self.labels, minlength=self.num_classes)

    @property
    def outputs(self) -> int:
        """Numbers that a network gives for a jet: C, or 1 for a target."""
        return self.num_classes or 1

    @property
    def torch_labels(self) -> torch.Tensor:
        """Labels (B,) as `loss` takes them."""
        return torch.from_numpy(self.labels.astype(np.int64 if self.num_classes else np.float32))

    @property
    def prior(self) -> npt.NDArray[np.float32]:
        """What is best said of a jet of which nothing is known (C,): logarithms of the weighted class frequencies, or
        the weighted mean of the target."""
        if not self.num_classes:
            return np.array([np.average(self.labels, weights=self.weights)], np.float32)
        sums = np.bincount(self.labels, self.weights, self.num_classes)
        return np.log(np.maximum(sums, 0.5) / max(sums.mean(), 0.5)).astype(np.float32)

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss of each jet (b,): cross-entropy, or of a target Huber's with its bend at 0.1, nearly the absolute
        difference, whose best answer is the median."""
        if self.num_classes:
            return functional.cross_entropy(outputs, labels, reduction="none")
        return functional.smooth_l1_loss(outputs[:, 0], labels, beta=0.1, reduction="none")


def strata(labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Groups of jets of which samples take the same share: the classes; one for a target."""
    return labels.astype(np.int64) if labels.dtype.kind in "iu" else np.zeros(len(labels), np.int64)


def held_out(labels: npt.NDArray[Any], share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which training jets (B,) choose between grid points instead of training: this share of every class, at least one
    of each class that has two."""
    rng = np.random.default_rng([seed, 0x4E1D])
    out = np.zeros(len(labels), bool)
    groups = strata(labels)
    for number in np.unique(groups):
        jets = rng.permutation(np.flatnonzero(groups == number))
        out[jets[: min(len(jets) - 1, max(1, round(share * len(jets))))]] = True
    return out
