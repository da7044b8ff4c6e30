"""NaN protection: a run stops at the first jet whose loss is not finite, and says which jet that is.

A NaN spreads to every weight in one step, and nothing after it means anything. So each step's losses are looked at, jet
by jet, before anything of them is logged, validated or saved. On a GPU the answer of a step is read one step later, so
the check does not make the CPU wait for the device. The gradient is that of all workers: when it is not finite all of
them stop at the same step, with the message of the first that has such a jet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import distributed

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
        self._pending: _Pending | None = None

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
        found = self._of_jets(step, batch, losses)
        if distributed.is_initialized() and not math.isfinite(norm.item()):  # so for all workers: all of them are here
            found = _first_of_all_workers(found)
        if found is None:
            worst = int(losses.argmax())
            found = f"step {step}: the gradient's norm is {norm.item()}; the largest loss, {losses[worst].item():.4g}, "
            found += f"is that of {self._where(batch, worst)}"
        raise InputError(found + ". Look at these inputs, or lower the learning rate")

    def _of_jets(self, step: int, batch: Batch, losses: torch.Tensor) -> str | None:
        bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
        if not bad:
            return None
        all_of_them = " (so are all others: the weights of the step before are damaged)" * (len(bad) == batch.size)
        msg = f"step {step}: the training loss of {len(bad)} of {batch.size} jets is not finite{all_of_them}; "
        return msg + f"the first is {losses[bad[0]].item()} for {self._where(batch, bad[0])}"


def _first_of_all_workers(message: str | None) -> str | None:
    messages: list[str | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(messages, message)
    return next((f"worker {rank}, {text}" for rank, text in enumerate(messages) if text is not None), None)
