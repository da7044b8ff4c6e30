"""The learning rate over a run, as a factor on its peak: a pure function of the step, so resuming needs no state.

cosine      linear warm-up, then half a cosine to zero
flat_decay  weaver's flat+decay: constant, then exponentially to 1 % in the last 30 % of the epochs, epoch by epoch
flat_cos    linear warm-up, constant for 70 % of the steps, then half a cosine
one_cycle   from 1/25 by a cosine to the peak in 30 % of the steps, then to 1/250,000 (Smith, arXiv:1708.07120;
            the numbers of torch.optim.lr_scheduler.OneCycleLR)
steps       weaver's steps: a tenth after one third of the epochs, a hundredth after two
constant    linear warm-up, then constant
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

__all__ = ["Schedule", "Shape"]

Shape = Literal["cosine", "flat_decay", "flat_cos", "one_cycle", "steps", "constant"]

_FLAT = 0.7  # share of the steps before the decay
_LAST = 0.01  # factor in the last epoch of flat_decay
_RISE, _START, _END = 0.3, 1 / 25, 1 / 250_000  # of one_cycle


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A shape for `epochs` epochs of `steps_per_epoch` steps; `warmup` is the share of all steps in which the rate
    rises linearly from 0 (cosine, flat_cos, constant)."""

    shape: Shape
    warmup: float
    epochs: int
    steps_per_epoch: int

    def __call__(self, step: int) -> float:
        """Factor on the peak learning rate at optimiser step `step`, from 0.

        >>> [round(Schedule("cosine", 0.2, 1, 10)(step), 2) for step in (0, 1, 2, 6, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
        """
        total, epoch = self.epochs * self.steps_per_epoch, step // self.steps_per_epoch
        if self.shape == "flat_decay":
            decaying = max(1, int(self.epochs * (1 - _FLAT) + 1e-9))
            return float(_LAST ** (max(0, epoch - (self.epochs - decaying) + 1) / decaying))
        if self.shape == "steps":
            third = max(1, round(self.epochs / 3))
            return float(0.1 ** min(2, epoch // third))
        if self.shape == "one_cycle":
            top = _RISE * total - 1
            if step <= top:
                return _cosine(_START, 1.0, step / max(top, 1))
            return _cosine(1.0, _END, min(1.0, (step - top) / max(total - 1 - top, 1)))
        rising = max(1, round(total * self.warmup)) if self.warmup > 0 else 0
        if step < rising:
            return (step + 1) / rising
        if self.shape == "constant":
            return 1.0
        flat = rising if self.shape == "cosine" else max(rising, round(_FLAT * total))
        return _cosine(1.0, 0.0, min(1.0, max(0, step - flat) / max(1, total - flat)))


def _cosine(start: float, end: float, share: float) -> float:
    """Half a cosine from `start` (share 0) to `end` (share 1)."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * share))
