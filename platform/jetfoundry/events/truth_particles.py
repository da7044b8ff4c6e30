"""Labels of the jets of a batch together with the truth particles that are stored with them (`aux_genpart_*`).

Stored order: X, Y1, Y2; decay products (of X -> YY all four, matched or not; of X -> 2 a hadronic tau first, else
the nearest to the jet first); decay products of taus; quarks of a QCD label in record order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry.events import truth
from jetfoundry.events.columns import AUX_FLAGS
from jetfoundry.events.jets import Jets, delta_r, offsets_of
from jetfoundry.events.record import Events

__all__ = ["JetTruth", "qcd_truth", "resonance_truth"]

Array = npt.NDArray[Any]

_X, _Y, _PRODUCT, _FROM_TAU, _QUARK = range(len(AUX_FLAGS))


@dataclasses.dataclass(frozen=True)
class JetTruth:
    """Classes of J jets (-1: none) and their K truth particles: jet, position in the record, role in AUX_FLAGS."""

    label: Array
    owner: Array
    position: Array
    role: Array

    def take(self, jets: Array) -> JetTruth:
        """The truth of the jets at rising positions `jets`, renumbered from 0."""
        new = np.full(len(self.label), -1)
        new[jets] = np.arange(len(jets))
        keep = new[self.owner] >= 0
        return JetTruth(self.label[jets], new[self.owner][keep], self.position[keep], self.role[keep])

    def join(self, jets: Array, other: JetTruth, other_jets: Array) -> JetTruth:
        """One truth of the jets at `jets` (from this) and `other_jets` (from `other`), together all from 0 on."""
        label = np.empty(len(jets) + len(other_jets), np.int64)
        label[jets], label[other_jets] = self.label, other.label
        owner = np.concatenate([jets[self.owner], other_jets[other.owner]])
        order = np.argsort(owner, kind="stable")
        position = np.concatenate([self.position, other.position])[order]
        return JetTruth(label, owner[order], position, np.concatenate([self.role, other.role])[order])


def resonance_truth(
    events: Events,
    jets: Jets,
    radius: float,
    resonances: Sequence[int] = truth.RESONANCES,
    *,
    unseen: bool = False,
) -> JetTruth:
    """Label jets by the resonances of their event; `resonances` are the |PDG ids| of X and Y, `unseen` as in
    `truth.class_of`."""
    found = truth.find_resonances(events, resonances)
    label, candidate = truth.label_resonance(found.prongs, jets.event, jets.eta, jets.phi, radius, unseen=unseen)
    owner = np.flatnonzero(candidate >= 0)
    chosen = candidate[owner]
    product, tau = _ordered_pair(events, found, jets, owner, chosen)
    from_tau = truth.products_of(events, tau.ravel())
    blocks = [
        (_X, found.x[chosen][:, None]),
        (_Y, found.y[chosen]),
        (_PRODUCT, product),
        (_FROM_TAU, from_tau.reshape(len(owner), 4 * from_tau.shape[1])),
    ]
    position = np.concatenate([block for _, block in blocks], axis=1)
    role = np.concatenate([np.full(block.shape[1], code) for code, block in blocks])
    row, column = np.nonzero(position >= 0)
    return JetTruth(label, owner[row], position[row, column], role[column])


def _ordered_pair(
    events: Events, found: truth.Resonances, jets: Jets, owner: Array, chosen: Array
) -> tuple[Array, Array]:
    """Decay products and taus (n, 4) of the chosen candidates, the two of X -> 2 in stored order."""
    product, tau, letter = found.product[chosen], found.tau[chosen], found.prongs.letter[chosen]
    p = events.p4[product[:, :2]]
    eta, phi = np.arcsinh(p[..., 2] / np.hypot(p[..., 0], p[..., 1])), np.arctan2(p[..., 1], p[..., 0])
    distance = delta_r(eta, phi, jets.eta[owner, None], jets.phi[owner, None])
    hadronic = letter[:, :2] == truth.LETTERS.index("tauh")
    swap = (
        np.where(hadronic[:, 0] == hadronic[:, 1], distance[:, 1] < distance[:, 0], hadronic[:, 1])
        & ~found.prongs.cascade[chosen]
    )
    order = np.where(swap[:, None], [1, 0, 2, 3], [0, 1, 2, 3])
    return np.take_along_axis(product, order, axis=1), np.take_along_axis(tau, order, axis=1)


def qcd_truth(events: Events, jets: Jets, radius: float, parton_pt_min: float) -> JetTruth:
    """Label jets by the quarks that enter hadronisation inside them."""
    pid = np.abs(events.pid)
    entering = (np.abs(events.status) == 71) & (pid >= 1) & (pid <= 5)
    quarks = np.flatnonzero(entering & (np.hypot(events.p4[:, 0], events.p4[:, 1]) > parton_pt_min))
    bounds = offsets_of(events.event[quarks], len(events))
    counts = np.diff(bounds)[jets.event]  # every jet with every quark of its event
    owner = np.repeat(np.arange(len(jets)), counts)
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    position = quarks[bounds[jets.event][owner] + rank]
    p = events.p4[position]
    eta, phi = np.arcsinh(p[:, 2] / np.hypot(p[:, 0], p[:, 1])), np.arctan2(p[:, 1], p[:, 0])
    near = delta_r(eta, phi, jets.eta[owner], jets.phi[owner]) < radius
    owner, position = owner[near], position[near]
    label = truth.label_qcd(owner, events.pid[position], len(jets))
    return JetTruth(label, owner, position, np.full(len(owner), _QUARK))
