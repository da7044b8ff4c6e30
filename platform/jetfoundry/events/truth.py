"""Which of the 188 classes is a jet? The JetClass-II rules on the generator record.

A resonance X has up to four *prongs*: the decay products of X, or those of both Y in X -> Y1 Y2. A prong has a
letter and a direction; it is matched if that direction lies within R of the jet axis in (eta, phi). The class is
the one whose letters are exactly the matched ones:

- quark, gluon, e, mu: its own letter and direction (q = u or d), as it leaves the decay, before showering;
- tau: tauh, taue or taum after its direct decay products. The direction is the tau's own for tauh, that of its first
  listed decay product for taue and taum. With Pythia this is the tau neutrino; kept as in the original, the boosts
  make it harmless;
- e, mu, tau of a charged Y carry a letter of their own (ev, ..., tauhv); their neutrino is never matched.

Because class names contain whole sets of letters only, the remaining rules follow from looking the set up: both
prongs of X -> 2 are needed, three or four of X -> YY, both taus of a Y -> tau tau, and one hadronic tau or Y.
The first X in record order that gives a class wins. QCD jets count quarks as they enter hadronisation.

C candidates (X), J jets. The rules reproduce the stored label of every example jet (tests/events/test_truth.py).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry.events.jets import delta_r
from jetfoundry.events.record import Events
from jetfoundry.labels import CLASSES, INDEX, UNSEEN

__all__ = [
    "LETTERS",
    "Prongs",
    "Resonances",
    "class_of",
    "find_resonances",
    "from_charged",
    "label_qcd",
    "label_resonance",
    "parton_letters",
    "products_of",
    "qcd_index",
]

Array = npt.NDArray[Any]

LETTERS = ("b", "c", "s", "q", "g", "e", "m", "taue", "taum", "tauh", "ev", "mv", "tauev", "taumv", "tauhv")
"""What a prong can be; its code is the position here, -1 stands for a neutrino or no prong."""

RESONANCES = (25, 35, 37)
"""|PDG id| of X and Y in JetClass-II."""

_NEUTRINOS = (12, 14, 16)
_LONGEST = 1000  # copies of a particle, at most

_LETTER_OF = {1: "q", 2: "q", 3: "s", 4: "c", 5: "b", 21: "g", 11: "e", 13: "m"}
_CODE = {letter: code for code, letter in enumerate(LETTERS)}
_WORD = re.compile(r"tau[hem]v|tau[hem]|[em]v|[bcsqgem]")
_POWERS = np.int64(5) ** np.arange(len(LETTERS), dtype=np.int64)  # at most four prongs of a kind
_FROM_CHARGED = _CODE["ev"] - _CODE["e"]


def _lookup(prefix: str) -> tuple[Array, Array]:
    """Sorted set keys of all classes with this prefix, and their indices."""
    rows = sorted(
        (sum(int(_POWERS[_CODE[word]]) for word in _WORD.findall(name.removeprefix(prefix))), index)
        for index, name in enumerate((*CLASSES, *UNSEEN))
        if name.startswith(prefix) and (prefix == "X_YY_" or not name.startswith("X_YY_"))
    )
    return np.array([key for key, _ in rows]), np.array([index for _, index in rows])


_TWO_PRONG, _FOUR_PRONG = _lookup("X_"), _lookup("X_YY_")


@dataclasses.dataclass(frozen=True)
class Prongs:
    """Prongs of C candidates, sorted by event and record order.

    `event` (C,); `cascade` (C,) is True for X -> YY; `letter`, `eta`, `phi` (C, 4), letter -1 where there is none.
    """

    event: Array
    cascade: Array
    letter: Array
    eta: Array
    phi: Array


@dataclasses.dataclass(frozen=True)
class Resonances:
    """Positions in the record, -1 for none: final copies of X (C,) and Y (C, 2), decay products (C, 4) and final
    copies of those that are taus (C, 4). Of X -> YY the products of a hadronic Y come first.
    """

    x: Array
    y: Array
    product: Array
    tau: Array
    prongs: Prongs


def label_resonance(
    prongs: Prongs, jet_event: Array, jet_eta: Array, jet_phi: Array, radius: float, *, unseen: bool = False
) -> tuple[Array, Array]:
    """Class and candidate of J jets, both -1 where no candidate of the event gives a class (see `class_of`)."""
    label, chosen = np.full(len(jet_event), -1), np.full(len(jet_event), -1)
    first = np.searchsorted(prongs.event, jet_event)
    count = np.searchsorted(prongs.event, jet_event, side="right") - first
    for rank in range(count.max(initial=0)):  # one or two candidates an event
        open_jets = np.flatnonzero((label < 0) & (rank < count))
        candidate = first[open_jets] + rank
        letter = prongs.letter[candidate]
        axis = jet_eta[open_jets, None], jet_phi[open_jets, None]
        match = delta_r(prongs.eta[candidate], prongs.phi[candidate], *axis) < radius
        found = class_of(letter, match, prongs.cascade[candidate], unseen=unseen)
        label[open_jets] = found
        chosen[open_jets] = np.where(found >= 0, candidate, -1)
    return label, chosen


def class_of(letter: Array, match: Array, cascade: Array, *, unseen: bool = False) -> Array:
    """Class (n,) of candidates whose prongs have letter codes (n, 4) and are matched (n, 4); -1 where there is none.

    With `unseen`, decays of `labels.UNSEEN` have the numbers after the 188 classes; else they have none.
    """
    key = np.where(match & (letter >= 0), _POWERS[letter], 0).sum(axis=1)
    found = np.where(cascade, _find(key, *_FOUR_PRONG), _find(key, *_TWO_PRONG))
    return found if unseen else np.where(found < len(CLASSES), found, -1)


def parton_letters(pid: Array) -> Array:
    """Letter codes of quarks, gluons, e and mu by PDG id, of any shape; -1 for everything else."""
    letter = np.full(np.shape(pid), -1)
    for value, name in _LETTER_OF.items():
        letter[np.abs(pid) == value] = _CODE[name]
    return letter


def from_charged(letter: Array) -> Array:
    """Letter codes of e, mu and taus whose sibling is a neutrino, from those of the same leptons without one."""
    return np.where(letter >= _CODE["e"], letter + _FROM_CHARGED, letter)


def _find(key: Array, keys: Array, indices: Array) -> Array:
    position = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
    return np.where(keys[position] == key, indices[position], -1)


def qcd_index(nb: Array, nc: Array, ns: Array) -> Array:
    """Class of a QCD jet from its numbers of b, c and s quarks, each counted up to two."""
    b, c, s = (np.minimum(n, 2) for n in (nb, nc, ns))
    index: Array = INDEX["QCD_bbccss"] + 9 * (2 - b) + 3 * (2 - c) + (2 - s)
    return index


def label_qcd(jet: Array, pid: Array, jets: int) -> Array:
    """Class of each of `jets` jets from its matched quarks: `jet` (K,) owner and `pid` (K,) of each quark."""
    counts = [np.bincount(jet[np.abs(pid) == flavour], minlength=jets) for flavour in (5, 4, 3)]
    return qcd_index(*counts)


def find_resonances(events: Events, resonances: Sequence[int] = RESONANCES) -> Resonances:
    """All X of a batch with their prongs: particles with a |PDG id| in `resonances` whose mother has none."""
    resonance = np.isin(np.abs(events.pid), resonances)
    entering = np.flatnonzero(resonance)
    x = entering[(events.mother[entering] < 0) | ~resonance[events.mother[entering]]]
    x_last = _last_copy(events, x)
    daughters = _daughters(events, x_last)  # (C, 2)
    cascade: Array = np.all((daughters >= 0) & resonance[daughters], axis=1)
    y = np.where(cascade[:, None], _last_copy(events, daughters.ravel()).reshape(-1, 2), -1)
    hadronic = np.isin(np.abs(events.pid[_daughters(events, y.ravel())[:, 0].reshape(-1, 2)]), (1, 2, 3, 4, 5, 21))
    swap = cascade & ~hadronic[:, 0] & hadronic[:, 1]
    ordered = np.where(swap[:, None], y[:, ::-1], y)
    from_y = _daughters(events, ordered.ravel()).reshape(-1, 4)
    from_x = np.pad(daughters, ((0, 0), (0, 2)), constant_values=-1)
    product = np.where(cascade[:, None], from_y, from_x)
    neutrino = np.isin(np.abs(events.pid[from_y]), _NEUTRINOS)
    charged = cascade[:, None] & np.repeat(neutrino[:, ::2] | neutrino[:, 1::2], 2, axis=1)
    is_tau = (product >= 0) & (np.abs(events.pid[product]) == 15)
    tau = np.where(is_tau, _last_copy(events, product.ravel()).reshape(-1, 4), -1)
    letter, direction = _letters(events, product, tau, charged)
    p = events.p4[direction]
    with np.errstate(divide="ignore", invalid="ignore"):  # positions without a prong
        eta = np.arcsinh(p[..., 2] / np.hypot(p[..., 0], p[..., 1]))
    prongs = Prongs(events.event[x], cascade, letter, eta, np.arctan2(p[..., 1], p[..., 0]))
    return Resonances(x_last, y, product, tau, prongs)


def _letters(events: Events, product: Array, tau: Array, charged: Array) -> tuple[Array, Array]:
    """Letter codes and the record positions whose directions are matched, both (C, 4)."""
    letter = parton_letters(np.where(product >= 0, events.pid[product], 0))
    direction = product.copy()
    rows, slots = np.nonzero(tau >= 0)
    from_tau = products_of(events, tau[rows, slots])
    product_pid = np.where(from_tau >= 0, np.abs(events.pid[from_tau]), 0)
    is_e, is_m = ((product_pid == lepton).any(axis=1) for lepton in (11, 13))
    letter[rows, slots] = np.select([is_e, is_m], [_CODE["taue"], _CODE["taum"]], _CODE["tauh"])
    direction[rows, slots] = np.where(is_e | is_m, events.daughter1[tau[rows, slots]], product[rows, slots])
    return np.where(charged, from_charged(letter), letter), direction


def products_of(events: Events, position: Array) -> Array:
    """All decay products (n, W) of particles at `position` (n,), filled up with -1; position -1 has none."""
    first, last = events.daughter1[position], events.daughter2[position]
    width = int(np.where(position >= 0, last - first + 1, 0).max(initial=0))
    products = first[:, None] + np.arange(width)
    return np.where((position >= 0)[:, None] & (products <= last[:, None]), products, -1)


def _daughters(events: Events, position: Array) -> Array:
    """Both decay products (n, 2) of particles at `position` (n,); -1 for what does not decay to two, and for -1."""
    first, last = events.daughter1[position], events.daughter2[position]
    two = (position >= 0) & (first >= 0) & (last >= 0) & (last != first) & (last <= first + 1)
    return np.where(two[:, None], np.stack([first, last], axis=1), -1)


def _last_copy(events: Events, position: Array) -> Array:
    """Follow the daughter with the same id to the end. A damaged record may go round in circles: that ends, too."""
    for _ in range(_LONGEST):
        following = position
        for daughter in (events.daughter2[position], events.daughter1[position]):
            same = (position >= 0) & (daughter >= 0) & (events.pid[daughter] == events.pid[position])
            following = np.where(same, daughter, following)
        if np.array_equal(following, position):
            break
        position = following
    return position
