"""From the collections of Delphes events to labelled jets, by the rules of JetClass-II's ntuples.

The rules are those of the public analysis macro (jet-universe/jetclass2_generation, makeNtuples.C):
- constituents with pT > 0, |eta| <= 5 and |pz| <= 10 TeV, by falling pT;
- dz and the vertices of generator particles count from the event's first vertex, the hard one. A production vertex
  at z = 0 of it has x = y = 0, which single precision does not say;
- the generator-level jet is the nearest one within the radius that no labelled jet of higher pT has taken;
- soft-drop mass and N-subjettiness are those that Delphes stored.
Labels come from the truth rules of events/, the same as for simulated jets.

Charged particles without a measured impact parameter (ErrorD0 = 0) stay, unlike in the simulation.

One thing is decided otherwise. The eta that Delphes stores for a particle-flow candidate is that of the calorimeter
surface it hits, seen from the origin: with vertices spread along z, constituents miss the jet's eta by up to 0.09 and
its energy by some per cent. JetClass-II has it that way (`direction: surface`); by default constituents have the
direction of their momentum (`CtgTheta`) and their momenta sum to that of the jet. What is still missing from its
energy, up to 1 %, are the rest masses of tracks that PUPPI gave the weight 0: they have no momentum and are dropped.

Not every event gives a jet. LEFT_OUT are the normal reasons; REASONS say that something is wrong.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jetfoundry import config
from jetfoundry.data.references import resolve
from jetfoundry.events import columns, flow
from jetfoundry.events.flow import Flow
from jetfoundry.events.jets import Jets, match_jets, offsets_of, storable
from jetfoundry.events.record import Events
from jetfoundry.events.truth_particles import JetTruth, qcd_truth, resonance_truth
from jetfoundry.features.jagged import segments

__all__ = ["LEFT_OUT", "REASONS", "Collection", "DelphesConfig", "Loss", "jets_of", "no_jets"]

Array = npt.NDArray[Any]

LEFT_OUT = {
    "no_candidate": "events without a jet in pt and eta",
    "no_class": "jets that match no class",
}
"""Reasons that are part of the rules, with what they count."""

REASONS = {
    "missing_constituents": "the jet, or its generator-level jet, refers to particles outside the collection",
    "no_substructure": "Delphes computed no soft drop or N-subjettiness for the jet",
    "other_resonance": "the event has no resonance of the wanted ids, but another one (Particle.Status 22)",
    "no_partons": "the event has neither resonance nor partons that enter hadronisation (Particle.Status 71)",
}
"""Reasons for setting a jet aside."""

_RESONANCE, _PARTON = 22, 71  # status codes of Pythia 8 and of the HepMC files it writes


@dataclasses.dataclass(frozen=True, kw_only=True)
class DelphesConfig:
    """Which collections of a Delphes tree become jets, and how they get their labels."""

    jets: str = config.option("JetPUPPIAK8", "branch of the jets")
    particles: str = config.option("ParticleFlowCandidate", "branch of the particles that the jets consist of")
    genjets: str = config.option("GenJetAK8", "branch of the generator-level jets; '' = none, genjet_* are 0")
    genparticles: str = config.option("Particle", "branch of the generator's record")
    vertices: str = config.option("Vertex", "branch of vertices: z and t count from an event's first; used if there")
    radius: float = config.option(0.8, "jet radius: the cone of truth and of generator-level jets")
    pt_min: float = config.option(200.0, "jets above this pT [GeV]")
    eta_max: float = config.option(2.5, "jets up to this |eta|")
    labels: Literal["auto", "resonance", "qcd"] = config.option(
        "auto", "label by resonances, by QCD partons, or by partons where an event has no resonance (auto)"
    )
    resonances: tuple[int, ...] = config.option((25, 35, 37), "|PDG ids| of X and Y in X -> 2 and X -> YY")
    parton_pt_min: float = config.option(10.0, "pT from which a quark counts for a QCD label [GeV]")
    direction: Literal["momentum", "surface"] = config.option(
        "momentum", "eta of constituents: of the momentum (they sum to the jet), or of the surface (as JetClass-II)"
    )

    def __post_init__(self) -> None:
        if not (self.radius > 0 and self.pt_min >= 0 and self.eta_max > 0 and self.parton_pt_min >= 0):
            msg = "radius and eta_max must be positive, pt_min and parton_pt_min not negative"
            raise ValueError(msg)
        if min(self.resonances, default=0) <= 0:
            msg = f"resonances {list(self.resonances)}: wanted one |PDG id| at least, positive"
            raise ValueError(msg)
        for branch in (self.jets, self.genjets):
            named = re.search(r"AK(\d+)$", branch)
            if named and not math.isclose(int(named[1]) / 10, self.radius):
                msg = f"radius {self.radius} does not fit {branch}, whose jets have {int(named[1]) / 10} by their name"
                raise ValueError(msg)
        if not (self.jets and self.particles and self.genparticles):
            msg = "jets, particles and genparticles must name branches"
            raise ValueError(msg)


@dataclasses.dataclass(frozen=True)
class Collection:
    """N objects of a batch of events in flat arrays, sorted by `event` (N,), with their members by Delphes' names.

    Jets have `references`: offsets (N + 1,) and numbers of the objects they consist of. `Tau` is (N, 4 or more),
    `SoftDroppedP4` (N, 4) the groomed jet, the others (N,).
    """

    event: Array
    members: dict[str, Array]
    references: tuple[Array, Array] | None = None

    def __getitem__(self, member: str) -> Array:
        return self.members[member]


def no_jets() -> Collection:
    """A collection of jets without any."""
    members = dict.fromkeys(("PT", "Eta", "Phi", "Mass"), np.zeros(0)) | {"SoftDroppedP4": np.zeros((0, 4))}
    return Collection(np.zeros(0, np.int64), members, (np.zeros(1, np.int64), np.zeros(0, np.int64)))


@dataclasses.dataclass(frozen=True)
class Loss:
    """A jet, or an event without any, that does not come out."""

    entry: int
    reason: str
    field: str
    value: str


def jets_of(found: dict[str, Collection], events: int, settings: DelphesConfig) -> tuple[pa.Table, Array, list[Loss]]:
    """Jets of a batch as a table of the 54 columns, the event (J,) of each, and what was lost.

    `found` has the collections `jets`, `particles`, `genjets`, `genparticles` and perhaps `vertices`. Events of the
    batch count from 0, also in the losses.
    """
    origin = _origin(found.get("vertices"), events)
    part_p4, record = _constituent_p4(found["particles"], settings.direction), _record(found["genparticles"], origin)
    stored = found["jets"]
    chosen = np.flatnonzero((stored["PT"] > settings.pt_min) & (np.abs(stored["Eta"]) <= settings.eta_max))
    chosen = chosen[np.lexsort((-stored["PT"][chosen], stored.event[chosen]))]
    jets, lacking = _with_constituents(stored, chosen, found["particles"], part_p4)
    every = np.arange(len(found["genjets"].event))
    genjets, gen_lacking = _with_constituents(found["genjets"], every, found["genparticles"], record.p4)

    truth, unlabelled = _truth(record, jets, settings)
    labelled, match = np.flatnonzero(unlabelled == ""), np.full(len(jets), -1)
    match[labelled] = match_jets(jets.take(labelled), genjets, settings.radius)
    lacking |= np.concatenate([gen_lacking, [False]])[match]  # the last one for -1
    ungroomed = stored["SoftDroppedP4"][chosen, 3] == 0
    ungroomed |= (stored["Tau"][chosen, 0] == 0) & (np.diff(jets.offsets) > 1)
    reason = np.select(
        [unlabelled != "", lacking, ungroomed], [unlabelled, "missing_constituents", "no_substructure"], ""
    )
    kept = np.flatnonzero(reason == "")
    selected, match, truth = jets.take(kept), match[kept], truth.take(kept)

    particles = _flow(found["particles"], part_p4, origin)
    genjet, genpart, gen_offsets = columns.genpart_columns(
        selected, genjets, match, _genjet_sdmass(found["genjets"], match), record.p4, record.pid, record.vertex
    )
    at = truth.position
    aux, aux_offsets = columns.aux_columns(
        len(selected), truth.owner, truth.role, record.pid[at], record.p4[at], record.mass[at]
    )
    sdmass, tau = _mass(stored["SoftDroppedP4"][chosen[kept]]), stored["Tau"][chosen[kept]]
    table = columns.table(
        {**columns.jet_columns(selected, sdmass, tau, truth.label), **genjet},
        {"part": columns.part_columns(selected, particles), "genpart": genpart, "aux_genpart": aux},
        {"part": selected.offsets, "genpart": gen_offsets, "aux_genpart": aux_offsets},
    )
    return table, selected.event, _losses(stored, jets, reason, events, settings)


def _origin(vertices: Collection | None, events: int) -> Array:
    """z [mm] and t [s] (events, 2) of the first vertex of each event, 0 without one."""
    origin = np.zeros((events, 2))
    if vertices is not None:
        event, first = np.unique(vertices.event, return_index=True)
        origin[event] = np.stack([vertices["Z"][first], vertices["T"][first]], axis=1)
    return origin


def _polar(pt: Array, sinh_eta: Array, phi: Array, mass: Array) -> Array:
    """Four-vectors (N, 4); a negative mass stands for a space-like vector, as in ROOT."""
    pt, sinh_eta, phi, mass = (np.asarray(values, np.float64) for values in (pt, sinh_eta, phi, mass))
    px, py, pz = pt * np.cos(phi), pt * np.sin(phi), pt * sinh_eta
    energy = np.sqrt(np.maximum(px**2 + py**2 + pz**2 + mass * np.abs(mass), 0.0))
    return np.stack([px, py, pz, energy], axis=1)


def _mass(p4: Array) -> Array:
    """Invariant mass (N,), negative for space-like vectors, as ROOT's M()."""
    square = p4[:, 3] ** 2 - (p4[:, :3] ** 2).sum(axis=1)
    mass: Array = np.copysign(np.sqrt(np.abs(square)), square)
    return mass


def _sinh(eta: Array) -> Array:
    """Of pseudorapidities; particles along the beam have 999.9 in Delphes, whose sinh is too large for a float."""
    return np.sinh(np.clip(np.asarray(eta, np.float64), -30.0, 30.0))


def _constituent_p4(particles: Collection, direction: str) -> Array:
    sinh_eta = particles["CtgTheta"] if direction == "momentum" else _sinh(particles["Eta"])
    return _polar(particles["PT"], sinh_eta, particles["Phi"], particles["Mass"])


def _record(stored: Collection, origin: Array) -> Events:
    """The generator's record; vertices relative to `origin`. Positions outside the event become -1."""
    offsets = offsets_of(stored.event, len(origin))
    first, count = offsets[stored.event], np.diff(offsets)[stored.event]

    def position(member: str) -> Array:
        within = stored[member].astype(np.int64)
        return np.where((within >= 0) & (within < count), within + first, -1)

    z, t = (stored[name] - origin[stored.event, k] for k, name in enumerate("ZT"))
    x, y = (np.where(np.abs(z) < 1e-10, 0.0, stored[name]) for name in "XY")
    return Events(
        offsets=offsets, event=stored.event, pid=stored["PID"], status=stored["Status"],
        mother=position("M1"), daughter1=position("D1"), daughter2=position("D2"),
        p4=np.stack([stored[name] for name in ("Px", "Py", "Pz", "E")], axis=1).astype(np.float64),
        mass=stored["Mass"], vertex=np.stack([x, y, z, t / columns.SECONDS], axis=1),
    )  # fmt: skip


def _with_constituents(stored: Collection, chosen: Array, particles: Collection, p4: Array) -> tuple[Jets, Array]:
    """The jets `chosen` of `stored`, and which of them (J,) refer to something that is not among the particles."""
    assert stored.references is not None
    where, offsets = segments(stored.references[0], chosen)
    owner = np.repeat(np.arange(len(chosen)), np.diff(offsets))
    event = stored.event[chosen]
    position = resolve(event[owner], stored.references[1][where], particles.event, particles["fUniqueID"])
    lacking = np.zeros(len(chosen), dtype=bool)
    lacking[owner[position < 0]] = True

    owner, position = owner[position >= 0], position[position >= 0]
    stored_too = storable(p4[position])
    position, owner = position[stored_too], owner[stored_too]
    by_pt = np.lexsort((-np.hypot(p4[position, 0], p4[position, 1]), owner))
    bounds = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(chosen)))])
    pt, eta, phi, mass = (stored[name][chosen] for name in ("PT", "Eta", "Phi", "Mass"))
    return Jets(event, _polar(pt, _sinh(eta), phi, mass), position[by_pt], bounds), lacking


def _truth(record: Events, jets: Jets, settings: DelphesConfig) -> tuple[JetTruth, Array]:
    """Truth of J jets, and the reason (J,) why a jet cannot be used, '' where it can."""

    def has(which: Array) -> Array:
        return np.bincount(record.event[which], minlength=len(record))[jets.event] > 0

    with_resonance = has(np.isin(np.abs(record.pid), settings.resonances))
    if settings.labels != "auto":
        with_resonance = np.full(len(jets), settings.labels == "resonance")
    status = np.abs(record.status)
    foreign = has(status == _RESONANCE) & ~with_resonance & (settings.labels == "auto")
    without_partons = ~has(status == _PARTON) & ~with_resonance

    by_resonance, by_partons = np.flatnonzero(with_resonance), np.flatnonzero(~with_resonance)
    first = resonance_truth(record, jets.take(by_resonance), settings.radius, settings.resonances)
    second = qcd_truth(record, jets.take(by_partons), settings.radius, settings.parton_pt_min)
    truth = first.join(by_resonance, second, by_partons)
    reasons = np.select([foreign, without_partons, truth.label < 0], ["other_resonance", "no_partons", "no_class"], "")
    return truth, reasons


def _flow(stored: Collection, p4: Array, origin: Array) -> Flow:
    pid, charge = np.abs(stored["PID"]), stored["Charge"]
    kind = np.select(
        [pid == 11, pid == 13, pid == 22, charge != 0],
        [flow.ELECTRON, flow.MUON, flow.PHOTON, flow.CHARGED_HADRON],
        flow.NEUTRAL_HADRON,
    )
    dz = np.where(stored["DZ"] != 0, stored["DZ"] - origin[stored.event, 0], 0.0)  # 0 is what neutrals have
    return Flow(
        event=stored.event, kind=kind, charge=charge, px=p4[:, 0], py=p4[:, 1], pz=p4[:, 2], energy=p4[:, 3],
        d0=stored["D0"], d0err=stored["ErrorD0"], dz=dz, dzerr=stored["ErrorDZ"],
    )  # fmt: skip


def _genjet_sdmass(genjets: Collection, match: Array) -> Array:
    sdmass = np.zeros(len(match))
    sdmass[match >= 0] = _mass(genjets["SoftDroppedP4"][match[match >= 0]])
    return sdmass


def _losses(stored: Collection, jets: Jets, reason: Array, events: int, settings: DelphesConfig) -> list[Loss]:
    """One for each jet with a reason and each event without a candidate, in the order of events."""
    lost = np.flatnonzero(reason != "")
    kinematics = zip(jets.event[lost], reason[lost], jets.pt[lost], jets.eta[lost], strict=True)
    losses = [
        Loss(int(e), str(r), settings.jets, f"jet with pt {pt:.1f}, eta {eta:.2f}") for e, r, pt, eta in kinematics
    ]
    empty = np.bincount(jets.event, minlength=events) == 0
    count = np.bincount(stored.event, minlength=events)
    wanted = f"with pt > {settings.pt_min:g} and |eta| <= {settings.eta_max:g}"
    losses += [
        Loss(int(e), "no_candidate", settings.jets, f"none of {count[e]} jets {wanted}") for e in np.flatnonzero(empty)
    ]
    return sorted(losses, key=lambda loss: loss.entry)
