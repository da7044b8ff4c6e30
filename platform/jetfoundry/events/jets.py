"""Jets of a batch of events, and distances between directions."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Jets", "delta_r", "match_jets", "offsets_of", "storable", "wrap_phi"]

Array = npt.NDArray[Any]

_LARGEST_PZ, _LARGEST_ETA = 10_000.0, 5.0


@dataclasses.dataclass(frozen=True)
class Jets:
    """J jets sorted by event, then falling pT. `p4` (J, 4) [GeV].

    `index[offsets[j]:offsets[j + 1]]` are the positions of jet j's constituents in the clustered particles,
    by falling pT.
    """

    event: Array
    p4: Array
    index: Array
    offsets: Array

    @property
    def pt(self) -> Array:
        return np.hypot(self.p4[:, 0], self.p4[:, 1])

    @property
    def eta(self) -> Array:
        return np.arcsinh(self.p4[:, 2] / self.pt)

    @property
    def phi(self) -> Array:
        return np.arctan2(self.p4[:, 1], self.p4[:, 0])

    def __len__(self) -> int:
        return len(self.event)

    def take(self, jets: Array) -> Jets:
        """The jets at positions `jets`, in that order."""
        counts = np.diff(self.offsets)[jets]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        inner = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        return Jets(self.event[jets], self.p4[jets], self.index[np.repeat(self.offsets[jets], counts) + inner], offsets)


def wrap_phi(angle: Array) -> Array:
    """Wrap angles to [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def offsets_of(event: Array, events: int) -> Array:
    """List offsets (events + 1,) of particles sorted by event number."""
    return np.searchsorted(event, np.arange(events + 1))


def storable(p4: Array) -> Array:
    """Which particles (N, 4) = (px, py, pz, E) [GeV] JetClass-II stores: pT > 0, |eta| <= 5 and |pz| <= 10 TeV."""
    pt, pz = np.hypot(p4[:, 0], p4[:, 1]), np.abs(p4[:, 2])
    stored: Array = (pt > 0) & (pz <= _LARGEST_PZ) & (pz <= np.sinh(_LARGEST_ETA) * pt)
    return stored


def delta_r(eta1: Array, phi1: Array, eta2: Array, phi2: Array) -> Array:
    """Distance in (eta, phi). Shapes broadcast."""
    dphi = (phi1 - phi2 + np.pi) % (2 * np.pi) - np.pi
    distance: Array = np.hypot(eta1 - eta2, dphi)
    return distance


def match_jets(selected: Jets, genjets: Jets, radius: float) -> Array:
    """Nearest generator-level jet within `radius` of each jet, -1 if none; jets choose by falling pT, each once."""
    match = np.full(len(selected), -1)
    taken = np.zeros(len(genjets), dtype=bool)
    first = np.searchsorted(genjets.event, selected.event)
    count = np.searchsorted(genjets.event, selected.event, side="right") - first
    rank = np.arange(len(selected)) - np.searchsorted(selected.event, selected.event)
    for turn in range(rank.max(initial=-1) + 1):
        chooser = np.flatnonzero((rank == turn) & (count > 0))
        option = np.arange(count[chooser].max(initial=0))
        position = np.minimum(first[chooser, None] + option, len(genjets) - 1)
        axis = selected.eta[chooser, None], selected.phi[chooser, None]
        distance = delta_r(genjets.eta[position], genjets.phi[position], *axis)
        distance[(option >= count[chooser, None]) | taken[position]] = np.inf
        if not distance.size:
            continue
        nearest = distance.argmin(axis=1)
        rows = np.flatnonzero(distance.min(axis=1) < radius)
        match[chooser[rows]] = position[rows, nearest[rows]]
        taken[match[chooser[rows]]] = True
    return match
