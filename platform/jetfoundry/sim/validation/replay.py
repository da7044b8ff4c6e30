"""Real jets simulated again from their own truth, so that both samples differ in what was simulated only.

A real resonance jet stores X and its decay products before their shower (`aux_genpart_*`). They become one Les
Houches event: that decay, and its point reflection as the second X. Pythia showers it, again and again, and the jets
that get the class of the real jet are its *copies*. The decay is not drawn anew: its angles decide class, mass and
softness, and a copy with other angles would have to be selected by the very observables that are compared. For the
same reason copies are not selected by their reconstructed pT.

Truth of a QCD jet is less: its copies are jets of the QCD family with a generator-level pT within e^0.2 of the
real one's and the same heaviest quark (b, c, lighter).

Taus decay anew, the class fixes their mode; ISR is added once more to an X that has recoiled already.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jetfoundry.errors import InputError
from jetfoundry.labels import CLASSES, FAMILIES
from jetfoundry.sim.chain import analyse
from jetfoundry.sim.channels import conjugated
from jetfoundry.sim.detector import DetectorCard
from jetfoundry.sim.generator import Generator
from jetfoundry.sim.settings import SelectionConfig, SimulateConfig, seeds
from jetfoundry.sim.validation.observables import particle_columns
from jetfoundry.sim.validation.samples import qcd_family

__all__ = ["ReplaySource", "TrueJet", "copies", "true_jets"]

Array = npt.NDArray[Any]

_GLUON = 21
_WINDOW = 0.2  # of ln pT
_HARD = 0.75, 1.4  # pT of the hard process over that of a generator-level QCD jet
_ALL = SelectionConfig(pt=(0.0, np.inf), sdmass=(-1.0, np.inf))  # real jets were not selected by mass
_BATCH = 50
_ROLES = ("isResX", "isResY", "isResDecayProd")


@dataclasses.dataclass(frozen=True)
class TrueJet:
    """What is known of a real jet before any simulation.

    Of a resonance: ids of X (), of its Y (0 or 2,) and of the decay products (2 or 4, pairs in the order of Y) with
    their four-momenta (2 or 4, 4) [GeV]. Of a QCD jet: no products.
    """

    label: int
    genjet_pt: float
    x: int
    y: Array
    products: Array
    p4: Array

    @property
    def replayable(self) -> bool:
        """A resonance always is; a QCD jet needs a generator-level jet."""
        return bool(self.x) or self.genjet_pt > 0


def true_jets(table: pa.Table) -> list[TrueJet]:
    """Truth of the B jets of a table with the 54 columns; InputError if a resonance jet does not hold its decay."""
    aux, offsets = particle_columns(table, "aux_genpart")
    pt, eta, phi, mass = (aux[name].astype(np.float64) for name in ("pt", "eta", "phi", "mass"))
    energy = np.sqrt((pt * np.cosh(eta)) ** 2 + mass**2)
    p4 = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), energy], axis=1)
    pid = aux["pid"]
    labels, genjet_pt = table["jet_label"].to_numpy(), table["genjet_pt"].to_numpy()
    found = []
    for jet, label in enumerate(labels.tolist()):
        here = np.arange(offsets[jet], offsets[jet + 1])
        x, y, product = (here[aux[name][here].astype(bool)] for name in _ROLES)
        if label in FAMILIES["QCD"]:
            x, y, product = here[:0], here[:0], here[:0]
        elif (len(x), len(y), len(product)) not in ((1, 0, 2), (1, 2, 4)):
            msg = f"entry {jet} ({CLASSES[label]}): wanted X with 2 decay products, or with 2 Y and 4, in aux_genpart; "
            msg += f"got {len(x)} X, {len(y)} Y, {len(product)} products"
            raise InputError(msg)
        elif len(y):
            # The hadronic Y's products come first, whichever Y that is.
            apart = [np.abs(p4[product[:2]].sum(axis=0) - p4[i]).sum() for i in y]
            y = y if apart[0] <= apart[1] else y[::-1]
        x_id = int(pid[x[0]]) if len(x) else 0
        found.append(TrueJet(label, float(genjet_pt[jet]), x_id, pid[y], pid[product], p4[product]))
    return found


class ReplaySource:
    """The event of one true resonance jet, again and again, in the protocol of `source.PairSource`."""

    def __init__(self, jet: TrueJet, beam_energy: float) -> None:
        self.beam_energy = beam_energy
        x = jet.p4.sum(axis=0)
        if not x[3] < beam_energy:
            msg = f"{CLASSES[jet.label]} jet: X has {x[3]:.0f} GeV, more than the beam ({beam_energy:g} GeV)"
            raise InputError(msg)
        mirror = np.array([-1.0, -1.0, -1.0, 1.0])
        gluon = np.array([[0.0, 0.0, x[3], x[3]], [0.0, 0.0, -x[3], x[3]]])
        rows = [_row(_GLUON, -1, 0, 0, 501, 502, gluon[0], 0.0), _row(_GLUON, -1, 0, 0, 502, 501, gluon[1], 0.0)]
        rows += [_row(jet.x, 2, 1, 2, 0, 0, x), _row(int(conjugated(np.array(jet.x))), 2, 1, 2, 0, 0, x * mirror)]
        for mother, reflected in ((3, np.ones(4)), (4, mirror)):
            rows += _decay(jet, mother, len(rows) + 1, reflected)
        self._event = float(np.hypot(np.hypot(x[0], x[1]), _mass(x))), rows

    def __next__(self) -> tuple[float, list[tuple[Any, ...]]]:
        return self._event


def _decay(jet: TrueJet, mother: int, position: int, reflected: Array) -> list[tuple[Any, ...]]:
    """Rows of what the X in row `mother` decays to; the first of them is row `position` of the event."""
    pairs = jet.p4.reshape(-1, 2, 4) * reflected
    products, y = (conjugated(ids) if reflected[0] < 0 else ids for ids in (jet.products, jet.y))
    rows = [_row(i, 2, mother, mother, 0, 0, pairs[k].sum(axis=0)) for k, i in enumerate(y.tolist())]
    for number, (ids, pair) in enumerate(zip(products.reshape(-1, 2).tolist(), pairs, strict=True)):
        parent = position + number if len(y) else mother
        tag = 501 + 4 * position + 2 * number  # one colour singlet a pair
        for second, (i, p) in enumerate(zip(ids, pair, strict=True)):
            gluon, quark = i == _GLUON, abs(i) <= 6
            colour = tag + second if gluon else tag * (quark and i > 0)
            anticolour = tag + 1 - second if gluon else tag * (quark and i < 0)
            rows.append(_row(i, 1, parent, parent, colour, anticolour, p))
    return rows


def _row(
    pid: int, status: int, mother1: int, mother2: int, colour: int, anticolour: int, p: Array, mass: float | None = None
) -> tuple[Any, ...]:
    """Arguments of Pythia's `addParticle` from `id` to `m`."""
    return (
        pid,
        status,
        mother1,
        mother2,
        int(colour),
        int(anticolour),
        *p.tolist(),
        _mass(p) if mass is None else mass,
    )


def _mass(p: Array) -> float:
    return float(np.sqrt(max(p[3] ** 2 - (p[:3] ** 2).sum(), 0.0)))


def copies(
    cfg: SimulateConfig, card: DetectorCard, jet: TrueJet, number: int, wanted: int, max_events: int
) -> pa.Table:
    """Up to `wanted` copies of a real jet, the `number`-th of its file, with the 54 columns; fewer, or none, if
    `max_events` events do not give more. The result depends on the arguments only.
    """
    cfg = dataclasses.replace(cfg, selection=_ALL, balance="natural")
    pythia_seed, _, rng = seeds(cfg.seed, "copies", number)
    resonance = bool(jet.x)
    if resonance:
        source, settings = ReplaySource(jet, cfg.beam_energy), cfg.common_settings
    else:
        low, high = (jet.genjet_pt * factor for factor in _HARD)
        hard = f"PhaseSpace:pTHatMin = {low:.1f}", f"PhaseSpace:pTHatMax = {high:.1f}"
        source, settings = None, (*cfg.pythia_settings(qcd_family(cfg)), *hard)
    generator = Generator(settings, pythia_seed, source)
    tables, made, events = [], 0, 0
    while made < wanted and events < max_events:
        found = analyse(generator.batch(_BATCH), cfg, card, rng, qcd=not resonance)
        tables.append(found.filter(_alike(found, jet)))
        made, events = made + len(tables[-1]), events + _BATCH
    return pa.concat_tables(tables).slice(0, wanted).combine_chunks()


def _alike(found: pa.Table, jet: TrueJet) -> pa.Array:
    label = found["jet_label"].to_numpy()
    if jet.x:
        return pa.array(label == jet.label)
    with np.errstate(divide="ignore"):
        distance = np.abs(np.log(found["genjet_pt"].to_numpy() / jet.genjet_pt))
    heaviest = np.array([_heaviest(i) for i in range(len(CLASSES))])
    return pa.array((distance < _WINDOW) & (heaviest[label] == heaviest[jet.label]))


def _heaviest(label: int) -> int:
    """5, 4 or 0: the heaviest quark in a QCD class; -1 for a resonance."""
    if label not in FAMILIES["QCD"]:
        return -1
    flavours = CLASSES[label].removeprefix("QCD_")
    return 5 if "b" in flavours else 4 if "c" in flavours else 0
