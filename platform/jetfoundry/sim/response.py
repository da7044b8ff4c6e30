"""What the detector sees of generator particles: helices, tracks, calorimeter towers, particle flow.

NumPy on flat arrays over the particles of a batch of events; every number comes from the card (`detector.py`).
The logic follows Delphes' particle flow (arXiv:1307.6346): a tower smears the energy it receives, tracks are
subtracted, a significant excess becomes a neutral, otherwise the tracks in the tower are re-scaled to the best
estimate of both. JetClass-II jets have 50 pileup events and PUPPI; `PileupCleaning` stands in for what that does to
soft particles. This is a stand-in for a detector, not a simulation of CMS.

N particles of all events of a batch; momenta in GeV, lengths in mm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry.events.flow import CHARGED_HADRON, ELECTRON, MUON, NEUTRAL_HADRON, PHOTON, Flow
from jetfoundry.sim.detector import MOST_BINS, Calorimeter, DetectorCard, EnergyResolution, PileupCleaning, Tracker

__all__ = ["charges", "propagate", "respond"]

Array = npt.NDArray[Any]

_CURVATURE = 0.299792458e-3  # pT [GeV] = this * B [T] * R [mm]

# Charged particles that Pythia leaves undecayed (c tau above 1 m).
_CHARGE = {11: -1, 13: -1, 211: 1, 321: 1, 2212: 1}


def charges(pid: Array) -> Array:
    """Electric charge of stable particles by PDG id (N,); 0 for all that are not known to be charged."""
    known = np.array(sorted(_CHARGE))
    values = np.array([_CHARGE[i] for i in known])
    position = np.minimum(np.searchsorted(known, np.abs(pid)), len(known) - 1)
    return np.where(known[position] == np.abs(pid), values[position] * np.sign(pid), 0)


def respond(
    card: DetectorCard, event: Array, pid: Array, p4: Array, mass: Array, vertex: Array, rng: np.random.Generator
) -> Flow:
    """Reconstruct stable, visible generator particles.

    `event`, `pid`, `mass` (N,), `p4` (N, 4) = (px, py, pz, E) [GeV], `vertex` (N, 3) [mm], sorted by event.
    Particles made outside the tracking volume are not seen.
    """
    tracker = card.tracker
    seen = np.hypot(vertex[:, 0], vertex[:, 1]) < tracker.radius
    seen &= (np.abs(vertex[:, 2]) < tracker.half_length) & (np.hypot(p4[:, 0], p4[:, 1]) > 0)
    event, pid, p4, mass, vertex = event[seen], pid[seen], p4[seen], mass[seen], vertex[seen]
    charge = charges(pid)
    kind = np.select(
        [np.abs(pid) == 11, np.abs(pid) == 13, pid == 22, charge != 0],
        [ELECTRON, MUON, PHOTON, CHARGED_HADRON],
        NEUTRAL_HADRON,
    )
    hit_eta, hit_phi, d0, dz = propagate(tracker, p4, charge, vertex)
    scale, sigma, d0err, dzerr = _track(tracker, kind, p4, rng)
    momentum2 = (p4[:, :3] ** 2).sum(axis=1)
    found = scale > 0
    energy = np.where(found, np.sqrt(scale**2 * momentum2 + mass**2), 0.0)
    neutrals = []
    for calorimeter, new_kind in ((card.ecal, PHOTON), (card.hcal, NEUTRAL_HADRON)):
        enters = ((kind == ELECTRON) | (kind == PHOTON)) == (new_kind == PHOTON)
        enters &= (kind != MUON) & (np.abs(hit_eta) < calorimeter.towers[-1].eta_max)
        cells = np.flatnonzero(enters)
        excess, factor = _towers(
            calorimeter, event[cells], hit_eta[cells], hit_phi[cells], p4[cells, 3],
            energy[cells], (sigma * energy)[cells], rng,
        )  # fmt: skip
        scale[cells] *= factor
        neutrals.append(_neutrals(new_kind, *excess))
    p3 = p4[found, :3] * scale[found, None]
    smeared_d0 = d0[found] + d0err[found] * rng.standard_normal(len(p3))
    smeared_dz = dz[found] + dzerr[found] * rng.standard_normal(len(p3))
    tracks = Flow(
        event[found], kind[found], charge[found], p3[:, 0], p3[:, 1], p3[:, 2],
        np.sqrt((p3**2).sum(axis=1) + mass[found] ** 2),
        smeared_d0, d0err[found], smeared_dz, dzerr[found],
    )  # fmt: skip
    return _clean(card.pileup_cleaning, _join([tracks, *neutrals]), rng)


def propagate(tracker: Tracker, p4: Array, charge: Array, vertex: Array) -> tuple[Array, Array, Array, Array]:
    """Follow particles to the calorimeter surface: (eta, phi) there, and d0, dz [mm] of the helix, each (N,).

    Charged particles follow a helix around the field axis z, neutral ones a line. d0 is the signed distance of
    closest approach to the beam line, dz the z at that point; both are exact, and 0 for neutrals.
    """
    x, y, z = vertex.T
    pt = np.hypot(p4[:, 0], p4[:, 1])
    ux, uy = p4[:, 0] / pt, p4[:, 1] / pt
    slope = p4[:, 2] / pt
    slope = np.where(np.abs(slope) < 1e-9, 1e-9, slope)
    to_end = (np.sign(slope) * tracker.half_length - z) / slope  # transverse path to the end cap

    along = x * ux + y * uy
    path = np.minimum(np.sqrt(np.maximum(along**2 + tracker.radius**2 - x**2 - y**2, 0.0)) - along, to_end)
    hit_x, hit_y = x + path * ux, y + path * uy
    d0, dz = np.zeros(len(pt)), np.zeros(len(pt))

    q = np.flatnonzero(charge)
    radius = pt[q] / (_CURVATURE * tracker.field) * charge[q]  # signed: phi falls along a positive track
    centre_x, centre_y = x[q] + radius * uy[q], y[q] - radius * ux[q]
    centre, sign, phi = np.hypot(centre_x, centre_y), np.sign(radius), np.arctan2(uy[q], ux[q])
    to_closest = radius * _wrap(phi - np.arctan2(sign * centre_x, -sign * centre_y))
    d0[q] = sign * (centre - np.abs(radius))
    dz[q] = z[q] + to_closest * slope[q]
    cos = (centre**2 + radius**2 - tracker.radius**2) / np.maximum(2 * centre * np.abs(radius), 1e-9)
    to_side = to_closest + np.abs(radius) * np.arccos(np.clip(cos, -1.0, 1.0))
    path[q] = np.where(np.abs(cos) <= 1, np.minimum(to_side, to_end[q]), to_end[q])  # loopers end in the end cap
    end_phi = phi - path[q] / radius
    hit_x[q] = centre_x - radius * np.sin(end_phi)
    hit_y[q] = centre_y + radius * np.cos(end_phi)

    distance = np.maximum(np.hypot(hit_x, hit_y), 1e-9)
    return np.arcsinh((z + path * slope) / distance), np.arctan2(hit_y, hit_x), d0, dz


def _wrap(angle: Array) -> Array:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _row(edges: Sequence[float], abs_eta: Array) -> Array:
    """Index of the first row whose eta_max is not exceeded; len(edges) beyond the last."""
    return np.searchsorted(np.asarray(edges), abs_eta)


def _log_normal(mean: Array, sigma: Array, rng: np.random.Generator) -> Array:
    """Log-normal numbers of this mean and standard deviation; 0 where the mean is 0."""
    safe = np.maximum(mean, 1e-12)
    width2 = np.log1p((sigma / safe) ** 2)
    drawn = np.exp(np.log(safe) - width2 / 2 + np.sqrt(width2) * rng.standard_normal(len(mean)))
    return np.where(mean > 0, drawn, 0.0)


def _track(tracker: Tracker, kind: Array, p4: Array, rng: np.random.Generator) -> tuple[Array, Array, Array, Array]:
    """Tracks of N particles: reconstructed over true pT (0 without a track), sigma(pT)/pT, d0err, dzerr [mm]."""
    pt = np.hypot(p4[:, 0], p4[:, 1])
    abs_eta = np.abs(np.arcsinh(p4[:, 2] / pt))
    efficiency, sigma = np.zeros(len(pt)), np.zeros(len(pt))
    for species, category in (("hadron", CHARGED_HADRON), ("electron", ELECTRON), ("muon", MUON)):
        members = np.flatnonzero((kind == category) & (pt > tracker.pt_min) & (abs_eta < tracker.impact[-1].eta_max))
        eta_m, pt_m = abs_eta[members], pt[members]
        for row in reversed(tracker.efficiency[species]):  # rows are tried in order: the first one wins
            here = (eta_m <= row.eta_max) & (pt_m > row.pt_min) & (pt_m <= row.pt_max)
            efficiency[members[here]] = row.value * np.exp(-row.fall * (pt_m[here] - row.pt_min))
        rows = tracker.momentum[species]
        index = np.minimum(_row([r.eta_max for r in rows], eta_m), len(rows) - 1)
        a, b = np.array([r.a for r in rows])[index], np.array([r.b for r in rows])[index]
        sigma[members] = np.hypot(a, b * pt_m)
    found = rng.uniform(size=len(pt)) < efficiency
    drawn = _log_normal(np.ones(len(pt)), sigma, rng) if tracker.smear_momenta else np.ones(len(pt))
    scale = np.where(found, drawn, 0.0)
    index = np.minimum(_row([r.eta_max for r in tracker.impact], abs_eta), len(tracker.impact) - 1)
    errors = []
    for terms in ([r.d0 for r in tracker.impact], [r.dz for r in tracker.impact]):
        a, b, g = np.array(terms).T[:, index]
        errors.append(np.hypot(a, b / pt**g))
    return scale, sigma, errors[0], errors[1]


def _resolution(rows: Sequence[EnergyResolution], energy: Array, eta: Array) -> Array:
    """Energy resolution [GeV] of towers of `energy` (n,) at `eta` (n,)."""
    abs_eta = np.abs(eta)
    index = np.minimum(_row([r.eta_max for r in rows], abs_eta), len(rows) - 1)
    constant, stochastic, noise, scale, curvature, centre = np.array(
        [(r.constant, r.stochastic, r.noise, r.scale, r.curvature, r.centre) for r in rows]
    ).T[:, index]
    spread = np.sqrt((constant * energy) ** 2 + stochastic**2 * energy + noise**2)
    sigma: Array = (scale + curvature * (abs_eta - centre) ** 2) * spread
    return sigma


def _towers(
    calorimeter: Calorimeter, event: Array, eta: Array, phi: Array, energy: Array,
    track_energy: Array, track_sigma: Array, rng: np.random.Generator,
) -> tuple[tuple[Array, Array, Array, Array], Array]:  # fmt: skip
    """Towers hit by M particles: new neutrals (event, eta, phi, energy), and the factor (M,) of each one's track."""
    rows = calorimeter.towers
    region = np.minimum(_row([r.eta_max for r in rows], np.abs(eta)), len(rows) - 1)
    deta = np.array([r.deta for r in rows])[region]
    dphi = np.radians([r.dphi for r in rows])[region]
    ieta, iphi = np.floor(eta / deta).astype(np.int64), np.floor((phi + np.pi) / dphi).astype(np.int64)
    key = ((event * len(rows) + region) * MOST_BINS + ieta + MOST_BINS // 2) * MOST_BINS + iphi
    _, first, tower = np.unique(key, return_index=True, return_inverse=True)
    deposited, tracked, variance = (np.bincount(tower, w) for w in (energy, track_energy, track_sigma**2))
    centre_eta, centre_phi = (ieta[first] + 0.5) * deta[first], (iphi[first] + 0.5) * dphi[first] - np.pi

    measured = _log_normal(deposited, _resolution(calorimeter.resolution, deposited, centre_eta), rng)
    sigma = _resolution(calorimeter.resolution, measured, centre_eta)
    measured[(measured < calorimeter.energy_min) | (measured < calorimeter.significance_min * sigma)] = 0.0
    excess = measured - tracked
    is_new = excess > calorimeter.energy_min
    is_new &= excess > calorimeter.significance_min * np.sqrt(variance + sigma**2)
    new = np.flatnonzero(is_new)
    spread = rng.uniform(-0.5, 0.5, (2, len(new)))
    neutrals = (
        event[first][new],
        centre_eta[new] + spread[0] * deta[first][new],
        centre_phi[new] + spread[1] * dphi[first][new],
        excess[new],
    )
    combine = ~is_new & (measured > 0) & (tracked > 0)
    factor = np.ones(len(first))
    best = (tracked * sigma**2 + measured * variance)[combine] / (sigma**2 + variance)[combine]
    factor[combine] = best / tracked[combine]
    return neutrals, factor[tower]


def _neutrals(kind: int, event: Array, eta: Array, phi: Array, energy: Array) -> Flow:
    """Massless neutrals from the origin."""
    pt, zero = energy / np.cosh(eta), np.zeros(len(event))
    return Flow(
        event, np.full(len(event), kind), np.zeros(len(event), dtype=np.int64),
        pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), energy, zero, zero, zero, zero,
    )  # fmt: skip


def _join(flows: Sequence[Flow]) -> Flow:
    names = [field.name for field in dataclasses.fields(Flow)]
    joined = Flow(**{name: np.concatenate([getattr(flow, name) for flow in flows]) for name in names})
    return joined.take(np.argsort(joined.event, kind="stable"))


def _clean(cleaning: PileupCleaning, flow: Flow, rng: np.random.Generator) -> Flow:
    """Thin out soft particles as pileup cleaning does; see PileupCleaning."""
    pt = np.hypot(flow.px, flow.py)
    survives = np.interp(np.log(pt), np.log(cleaning.pt), cleaning.keep)
    keep = (flow.kind != CHARGED_HADRON) | (rng.uniform(size=len(pt)) < survives)
    neutral = flow.charge == 0
    whole = rng.uniform(size=len(pt)) < cleaning.neutral_whole
    share = np.where(neutral & ~whole, rng.uniform(cleaning.neutral_share_min, 1.0, len(pt)), 1.0)
    keep &= ~neutral | (pt * share > cleaning.neutral_pt_min)
    scaled = {name: getattr(flow, name) * share for name in ("px", "py", "pz", "energy")}
    return dataclasses.replace(flow, **scaled).take(keep)
