"""NaN protection: a run stops at the first jet whose loss is not finite, and says which jet that is.

A NaN spreads to every weight in one step, and nothing after it means anything. So each step's losses are looked at, jet
by jet, before anything of them is logged, validated or saved. On a GPU the answer of a step is read one step later, so
the check does not make the CPU wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from jetfoundry.errors import InputError
from jetfoundry.loading.batch import Batch

__all__ = ["FiniteWatch", "Where", "nth_jet"]

Where = Callable[[Batch, int], str]
"""Says where jet number i of a batch comes from, and what is unusual about it."""


def nth_jet(batch: Batch, index: int) -> str:
    """All that is known of a jet without its shard."""
    return f"jet {index} of {batch.size} in the batch"


class _Pending(NamedTuple):
    step: int
    batch: Batch
    losses: torch.Tensor
    norm: torch.Tensor
    total: torch.Tensor  # on the CPU, once `event` has come
    event: torch.cuda.Event | None


class FiniteWatch:
    """Looks at every step; `settle` before anything is made of the weights."""

    def __init__(self, device: torch.device, where: Where) -> None:
        self._device, self._where = device, where
        self._pending: tuple[int, Batch, torch.Tensor, torch.Tensor, torch.Tensor, torch.cuda.Event | None] | None = (
            None
        )

    def add(self, step: int, batch: Batch, losses: torch.Tensor, norm: torch.Tensor) -> None:
        """Step number `step` (from 1) had these `losses` (B,) and this norm of the gradient, both on the device."""
        self.settle()
        total = (losses.sum() + norm).to("cpu", non_blocking=True)  # one number: NaN or inf if any is
        event = None
        if self._device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
        self._pending = _Pending(step, batch, losses, norm, total, event)
        if event is None:
            self.settle()

    def settle(self) -> None:
        """Raise InputError if the last step was not finite."""
        if self._pending is None:
            return
        step, batch, losses, norm, total, event = self._pending
        self._pending = None
        if event is not None:
            event.synchronize()
        if math.isfinite(total.item()):
            return
        bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
        if bad:
            value = losses[bad[0]].item()
            all_of_them = " (so are all others: the weights of the step before are damaged)" * (len(bad) == batch.size)
            msg = f"step {step}: the training loss of {len(bad)} of {batch.size} jets is not finite{all_of_them}; "
            msg += f"the first is {value} for {self._where(batch, bad[0])}"
        else:
            worst = int(losses.argmax())
            msg = f"step {step}: the gradient's norm is {norm.item()}; the largest loss, {losses[worst].item():.4g}, "
            msg += f"is that of {self._where(batch, worst)}"
        msg += ". Look at these inputs, or lower the learning rate"
        raise InputError(msg)
