"""The batch contract between any feed and the training loop: torch tensors and a position, no files, no Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["CHANNELS", "INPUTS", "Batch", "MicroBatch", "Position"]

INPUTS = ("pf_features", "pf_vectors", "pf_mask")
"""Inputs that the networks take, by their names in the data YAML: (b, F, P), (b, 4, P) and (b, 1, P)."""

CHANNELS = {"pf_points": 2, "pf_vectors": 4, "pf_mask": 1, "gen_particles": 10}
"""Numbers of variables of inputs whose meaning is fixed: (eta, phi), (px, py, pz, energy), 1 for a particle, and those
of `gen_particles.py`."""


class Position(NamedTuple):
    """Where the next batch comes from: pass over the data, window of it, batch of the window; `deal` says which windows
    were left when the present workers began (`order.Deal`), in plain numbers."""

    passes: int = 0
    window: int = 0
    batch: int = 0
    deal: tuple[Any, ...] = ()


class MicroBatch(NamedTuple):
    """b jets padded to one length: `inputs` by name, each (b, F, P) float32, and `labels` (b,) int64.

    Inputs of the same particles are views of one piece of memory, particle by particle with all its variables: it was
    gathered at once, and travels at once, to another process (`ray_feed.py`) or to the device (`to`).
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor

    def memory(self) -> dict[int, torch.Tensor]:
        """The pieces of memory that the inputs are views of, flat, by address."""
        found: dict[int, torch.Tensor] = {}
        for values in self.inputs.values():
            storage = values.untyped_storage()
            if storage.data_ptr() not in found:
                found[storage.data_ptr()] = values.as_strided((storage.nbytes() // values.itemsize,), (1,), 0)
        return found

    def to(self, device: torch.device) -> MicroBatch:
        """The same on `device`; copies from pinned memory do not wait."""
        if self.labels.device == device:
            return self
        return self._with(lambda values: values.to(device, non_blocking=True))

    def pinned(self) -> MicroBatch:
        """The same in memory that a GPU reads by itself."""
        return self._with(torch.Tensor.pin_memory)

    def _with(self, move: Callable[[torch.Tensor], torch.Tensor]) -> MicroBatch:
        moved = {place: move(values) for place, values in self.memory().items()}
        inputs = {
            name: moved[values.untyped_storage().data_ptr()].as_strided(
                values.shape, values.stride(), values.storage_offset()
            )
            for name, values in self.inputs.items()
        }
        return MicroBatch(inputs, move(self.labels))


@dataclasses.dataclass(frozen=True)
class Batch:
    """The micro-batches of one step. `rows` (B,) says which rows of the jets of `pieces`, one after the other, these
    are, in the order of the micro-batches (`provenance.py`). `ids` (B,), in batches with `gen_particles`, are equal for
    equal jets, in whatever batch of whichever worker."""

    micro: tuple[MicroBatch, ...]
    size: int
    rows: npt.NDArray[np.int64] | None = None
    pieces: tuple[Any, ...] = ()
    ids: npt.NDArray[np.int64] | None = None

    def pinned(self) -> Batch:
        """The same with micro-batches in memory that a GPU reads by itself."""
        return dataclasses.replace(self, micro=tuple(micro.pinned() for micro in self.micro))
