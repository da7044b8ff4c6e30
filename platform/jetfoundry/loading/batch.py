"""The batch contract between any feed and the training loop: torch tensors and a position, no files, no Ray."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

__all__ = ["INPUTS", "Batch", "MicroBatch", "Position"]

INPUTS = ("pf_features", "pf_vectors", "pf_mask")
"""Inputs that the networks take, by their names in the data YAML: (b, F, P), (b, 4, P) and (b, 1, P)."""


class Position(NamedTuple):
    """Where the next batch comes from: pass over the data, window of it, batch of the window; `deal` says which windows
    were left when the present workers began (`order.Deal`), in plain numbers."""

    passes: int = 0
    window: int = 0
    batch: int = 0
    deal: tuple[Any, ...] = ()


class MicroBatch(NamedTuple):
    """b jets padded to one length: `inputs` by name, each (b, F, P) float32, and `labels` (b,) int64."""

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Batch:
    """The micro-batches of one step."""

    micro: tuple[MicroBatch, ...]
    size: int
