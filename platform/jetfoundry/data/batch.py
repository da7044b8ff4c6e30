"""The batch contract between any feed and the training loop: torch tensors and a position, no files, no Ray."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

__all__ = ["Batch", "MicroBatch", "Position"]


class Position(NamedTuple):
    """Where the next batch comes from: pass over the data, window of row groups, batch of the window."""

    passes: int = 0
    window: int = 0
    batch: int = 0


class MicroBatch(NamedTuple):
    """b jets padded to one length: `inputs` by name, each (b, F, P) float32, and `labels` (b,) int64."""

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Batch:
    """The micro-batches of one step. `observers` (jet-level, in the same jet order) only on request."""

    micro: tuple[MicroBatch, ...]
    size: int
    observers: dict[str, Any] = dataclasses.field(default_factory=dict)
