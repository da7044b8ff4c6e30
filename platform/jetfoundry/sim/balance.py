"""Decay chains drawn so that the classes of a family fill evenly (`balance: classes`).

A class is drawn first, then a chain that can give it, in natural proportions. Which classes a chain gives follows
from the label rules (events/truth.py), the decay modes of the tau and the chance that a prong misses the jet. That
alone leaves classes uneven, because a chain aimed at one class also gives others; so the chance of each class is
lowered or raised until the expected numbers of jets are as even as they can be. Some stay rare: a class with
three matched prongs needs the fourth to miss the jet, which few chains of few spectra give.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry.events import truth
from jetfoundry.labels import CLASSES, UNSEEN
from jetfoundry.sim.channels import Chains

__all__ = ["class_probabilities", "even_fractions"]

Array = npt.NDArray[Any]

_TAU = {"taue": 0.178, "taum": 0.174, "tauh": 0.648}  # PDG, charged leptons and the rest
_MISSES = 0.087  # that a given prong of four is outside and three are in, of jets with three or four in (measured)
_ROUNDS = 60
_NEUTRINOS = (12, 14, 16)


def even_fractions(chains: Chains) -> Array:
    """Probabilities (K,) of the chains with which their classes fill as evenly as possible."""
    by_class = class_probabilities(chains)
    by_class = by_class[:, by_class.any(axis=0)]  # (K, L) classes that can be reached
    aimed = chains.fraction[:, None] * by_class
    aimed = aimed / aimed.sum(axis=0)  # (K, L): the chain, given the class drawn first
    share = np.full(aimed.shape[1], 1.0 / aimed.shape[1])
    for _ in range(_ROUNDS):
        filled = aimed @ share @ by_class
        share *= np.sqrt(filled.mean() / filled)
        share /= share.sum()
    even: Array = aimed @ share
    return even


def class_probabilities(chains: Chains) -> Array:
    """P(class | chain), (K, 188 + those of `labels.UNSEEN`), of jets with all prongs but at most one inside; the rest
    have no class."""
    pids = np.zeros((len(chains.products), 4), dtype=np.int64)
    pids[:, : chains.products.shape[1]] = chains.products
    is_tau = np.abs(pids) == 15
    neutrino = np.isin(np.abs(pids), _NEUTRINOS)
    has_neutrino = np.repeat(neutrino[:, ::2] | neutrino[:, 1::2], 2, axis=1) & chains.cascade
    base = truth.parton_letters(pids)
    rows = np.arange(len(pids))
    found = np.zeros((len(pids), len(CLASSES) + len(UNSEEN)))
    masks = [np.ones(4, dtype=bool), *~np.eye(4, dtype=bool)] if chains.cascade else [np.ones(4, dtype=bool)]
    for modes in itertools.product(_TAU, repeat=int(is_tau.sum(axis=1).max(initial=0))):
        letter, weight = base.copy(), np.ones(len(pids))
        order = np.cumsum(is_tau, axis=1) - 1  # which of the chain's taus
        for number, mode in enumerate(modes):
            here = is_tau & (order == number)
            letter[here] = truth.LETTERS.index(mode)
            weight *= _TAU[mode]  # modes of taus that a chain does not have sum to 1
        letter = np.where(has_neutrino, truth.from_charged(letter), letter)
        for mask in masks:
            cascade = np.full(len(pids), chains.cascade)
            label = truth.class_of(letter, np.tile(mask, (len(pids), 1)), cascade, unseen=True)
            chance = weight * (1 - 4 * _MISSES if mask.all() else _MISSES) if chains.cascade else weight
            np.add.at(found, (rows[label >= 0], label[label >= 0]), chance[label >= 0])
    return found
