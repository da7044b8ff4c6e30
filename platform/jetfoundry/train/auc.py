"""AUC of discriminants over validation jets that lie on many workers, from histograms that can be added up.

The log-odds ln(g_A / g_B) of a jet, with g the sum of the softmax over the outputs of A or B, are filled into 6,000
bins of 0.01; jets of one bin count as tied, which changes an AUC by far less than its statistical error. The figures of
the final evaluation are made of the scores themselves.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

__all__ = ["BinnedAuc"]

_BINS, _LIMIT = 6000, 30.0


@dataclasses.dataclass(eq=False)
class BinnedAuc:
    """Counts of signal and background jets (2, bins) in bins of the log-odds of one discriminant."""

    name: str
    signal: tuple[int, ...]
    background: tuple[int, ...]
    weights: tuple[float, ...]
    counts: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(2, _BINS, dtype=torch.float64))

    @classmethod
    def of(cls, plain: list[Any]) -> BinnedAuc:
        """From (name, signal outputs, background outputs, weights of the signal outputs)."""
        name, *parts = plain
        signal, background, weights = (tuple(part) for part in parts)
        return cls(name, signal, background, weights)

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Jets with logits (B, C) and class numbers (B,); those of neither side are left out."""
        weights = torch.tensor(self.weights).log()
        odds = (logits[:, list(self.signal)] + weights).logsumexp(1) - logits[:, list(self.background)].logsumexp(1)
        bins = ((odds + _LIMIT) * (_BINS / (2 * _LIMIT))).clamp(0, _BINS - 1).long()
        for row, classes in zip(self.counts, (self.signal, self.background), strict=True):
            row += torch.bincount(bins[torch.isin(labels, torch.tensor(classes))], minlength=_BINS)

    def value(self) -> float | None:
        """Probability that a signal jet lies above a background jet, ties half; None without jets of both."""
        signal, background = self.counts
        pairs = (signal.sum() * background.sum()).item()
        below = background.cumsum(0) - background / 2
        return (signal * below).sum().item() / pairs if pairs else None
