"""Reconstructed particles of a batch of events, as flat arrays."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy.typing as npt

__all__ = ["CHARGED_HADRON", "ELECTRON", "MUON", "NEUTRAL_HADRON", "PHOTON", "Flow"]

Array = npt.NDArray[Any]

ELECTRON, MUON, PHOTON, CHARGED_HADRON, NEUTRAL_HADRON = range(5)
"""Categories of reconstructed particles."""


@dataclasses.dataclass(frozen=True)
class Flow:
    """Reconstructed particles of a batch: flat arrays sorted by event. Momenta in GeV, lengths in mm.

    `kind` is one of the five categories of this module; impact parameters and their errors are 0 for neutrals.
    """

    event: Array
    kind: Array
    charge: Array
    px: Array
    py: Array
    pz: Array
    energy: Array
    d0: Array
    d0err: Array
    dz: Array
    dzerr: Array

    def take(self, index: Array) -> Flow:
        """The particles at `index` (positions or mask), in that order."""
        return Flow(**{field.name: getattr(self, field.name)[index] for field in dataclasses.fields(Flow)})
