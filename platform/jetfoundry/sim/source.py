"""Resonance pairs for Pythia: gg -> X X with free masses, momenta and decay chains, drawn in blocks of events.

Every event has its own mass, pT and channels, with no re-initialisation of Pythia; decays are isotropic two-body
decays, each pair of coloured daughters a colour singlet of its own. Pythia adds ISR, FSR inside each resonance,
MPI, remnants and hadrons. Decays of X to two resonances (X -> Y1 Y2) take their Y masses from the configuration.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry.errors import ConfigError
from jetfoundry.sim.settings import ResonanceConfig, SecondaryMassConfig

__all__ = ["PairSource", "two_body"]

Array = npt.NDArray[Any]

# Masses on the mass shell [GeV], PDG; light quarks and gluons massless.
_MASS = {4: 1.5, 5: 4.8, 11: 0.000511, 13: 0.10566, 15: 1.77686}
_SELF_CONJUGATE = (21, 22, 25, 35)
_FIRST_TAG = 510  # colour tags 501 and 502 belong to the incoming gluons


@dataclasses.dataclass(frozen=True)
class _Channels:
    """Open channels of one parent: daughters (C, 2), their masses (C, 2) and fractions (C,)."""

    ids: Array
    masses: Array
    fractions: Array


def _channels(parent: str, table: dict[str, float], known: set[str]) -> _Channels:
    wrong = [daughters for daughters in table if not re.fullmatch(r"-?\d+ +-?\d+", daughters)]
    if wrong or not table:
        msg = f"decays.{parent}: wanted channels like '5 -5', got {wrong[0] if wrong else 'none'!r}"
        raise ConfigError(msg)
    ids = np.array([[int(word) for word in daughters.split()] for daughters in table], dtype=np.int64)
    cascade = np.isin(np.abs(ids).astype(str), list(known))
    if cascade.any() and not cascade.all():
        msg = f"decays.{parent}: channels to two resonances and to two particles cannot be mixed in one table"
        raise ConfigError(msg)
    fractions = np.array(list(table.values()), dtype=np.float64)
    if (fractions < 0).any() or fractions.sum() <= 0:
        msg = f"decays.{parent}: branching fractions must be >= 0 and not all 0"
        raise ConfigError(msg)
    return _Channels(ids, _shell_mass(ids), fractions)


def _shell_mass(ids: Array) -> Array:
    mass = np.zeros(ids.shape)
    for pid, value in _MASS.items():
        mass[np.abs(ids) == pid] = value
    return mass


def two_body(parent: Array, m1: Array, m2: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Isotropic decay of `parent` (n, 4) = (px, py, pz, E) into masses m1, m2 (n,): two arrays (n, 4) [GeV]."""
    n = len(parent)
    mass2 = parent[:, 3] ** 2 - (parent[:, :3] ** 2).sum(axis=1)
    mass = np.sqrt(mass2)
    momentum = np.sqrt(np.maximum((mass2 - (m1 + m2) ** 2) * (mass2 - (m1 - m2) ** 2), 0.0)) / (2 * mass)
    cos = rng.uniform(-1, 1, n)
    sin, phi = np.sqrt(1 - cos**2), rng.uniform(-np.pi, np.pi, n)
    direction = np.stack([sin * np.cos(phi), sin * np.sin(phi), cos], axis=1)
    daughters = []
    for sign, m in ((1.0, m1), (-1.0, m2)):
        p = sign * momentum[:, None] * direction
        energy = np.sqrt(momentum**2 + m**2)
        # boost from the rest frame of the parent
        along = (p * parent[:, :3]).sum(axis=1)
        shift = (along / (parent[:, 3] + mass) + energy) / mass
        boosted = p + shift[:, None] * parent[:, :3]
        daughters.append(np.column_stack([boosted, (energy * parent[:, 3] + along) / mass]))
    return daughters[0], daughters[1]


class PairSource:
    """Draws Les Houches events of one resonance family from a random stream.

    Iterating yields (scale, rows) for ever; a row holds the arguments of Pythia's `addParticle` from `id` to
    `m`: id, status, mother1, mother2, colour, anticolour, px, py, pz, E, m. Mothers count from 1.
    """

    def __init__(self, cfg: ResonanceConfig, beam_energy: float, rng: np.random.Generator, block: int = 256) -> None:
        self.beam_energy = beam_energy
        self._cfg, self._rng, self._block = cfg, rng, block
        self._tables = {int(parent): _channels(parent, table, set(cfg.decays)) for parent, table in cfg.decays.items()}
        self._queue: list[tuple[float, list[tuple[Any, ...]]]] = []

    def __iter__(self) -> PairSource:
        return self

    def __next__(self) -> tuple[float, list[tuple[Any, ...]]]:
        if not self._queue:
            self._queue = self._draw()[::-1]
        return self._queue.pop()

    def _draw(self) -> list[tuple[float, list[tuple[Any, ...]]]]:
        """One block of n events. Per event: 2 gluons, 2 X, then per X two daughters (and per Y two more)."""
        incoming, x, scale = self._pairs()
        n = len(scale)
        ids = np.tile(np.asarray(self._cfg.ids, dtype=np.int64), n)  # (2n,): X1, X2 of event 0, of event 1, ...
        generations = [(np.tile([21, 21], n), incoming, np.zeros((2 * n, 2), dtype=np.int64), -1)]
        generations[0][2][:] = np.tile([[501, 502], [502, 501]], (n, 1))
        parents = x
        while True:
            is_resonance = np.isin(np.abs(ids), list(self._tables))
            status = 2 if is_resonance[0] else 1
            colours = self._colours(ids, n) if status == 1 else np.zeros((len(ids), 2), dtype=np.int64)
            generations.append((ids, parents, colours, status))
            if status == 1:
                return self._rows(generations, scale)
            ids, parents = self._decay(ids, parents)

    def _pairs(self) -> tuple[Array, Array, Array]:
        """Kinematics of gg -> X X: gluons (2n, 4), X (2n, 4), scale = transverse mass (n,)."""
        cfg, rng, n = self._cfg, self._rng, self._block
        mass = rng.uniform(cfg.mass[0], cfg.mass[1], n)
        low = np.maximum(cfg.pt[0], cfg.min_boost * mass)
        pt = low * (cfg.pt[1] / low) ** rng.uniform(size=n)
        y1, y2 = rng.uniform(-cfg.rapidity, cfg.rapidity, (2, n))
        phi = rng.uniform(-np.pi, np.pi, n)
        mt = np.hypot(mass, pt)
        e1 = 0.5 * mt * (np.exp(y1) + np.exp(y2))
        e2 = 0.5 * mt * (np.exp(-y1) + np.exp(-y2))
        keep = np.maximum(e1, e2) < cfg.x_max * self.beam_energy
        zero = np.zeros_like(e1)
        gluons = np.stack([np.stack([zero, zero, e1, e1], 1), np.stack([zero, zero, -e2, e2], 1)], 1)
        px, py = pt * np.cos(phi), pt * np.sin(phi)
        x1 = np.stack([px, py, mt * np.sinh(y1), mt * np.cosh(y1)], 1)
        x2 = np.stack([-px, -py, mt * np.sinh(y2), mt * np.cosh(y2)], 1)
        x = np.stack([x1, x2], 1)
        return gluons[keep].reshape(-1, 4), x[keep].reshape(-1, 4), mt[keep]

    def _decay(self, ids: Array, parents: Array) -> tuple[Array, Array]:
        """Daughters (2N,) and momenta (2N, 4) of N parents; channels that are closed by mass are not drawn."""
        n = len(ids)
        mass = np.sqrt(parents[:, 3] ** 2 - (parents[:, :3] ** 2).sum(axis=1))
        chosen, masses = np.zeros((n, 2), dtype=np.int64), np.zeros((n, 2))
        for pid, table in self._tables.items():
            rows = np.flatnonzero(np.abs(ids) == pid)
            is_open = table.masses.sum(axis=1)[None, :] < mass[rows, None]
            cumulative = np.cumsum(table.fractions[None, :] * is_open, axis=1)
            channel = (self._rng.uniform(size=(len(rows), 1)) * cumulative[:, -1:] >= cumulative).sum(axis=1)
            chosen[rows], masses[rows] = table.ids[channel], table.masses[channel]
        conjugate = (ids < 0)[:, None] & ~np.isin(chosen, _SELF_CONJUGATE)
        chosen = np.where(conjugate, -chosen, chosen)
        if np.isin(np.abs(chosen[0, 0]), list(self._tables)):
            masses = _secondary_masses(mass, self._cfg.secondary, self._rng)
        first, second = two_body(parents, masses[:, 0], masses[:, 1], self._rng)
        return chosen.reshape(-1), np.stack([first, second], axis=1).reshape(-1, 4)

    @staticmethod
    def _colours(ids: Array, n: int) -> Array:
        """(colour, anticolour) of decay products, which come in pairs: one singlet per pair."""
        pairs = len(ids) // n // 2
        tag = np.tile(np.repeat(_FIRST_TAG + 2 * np.arange(pairs), 2), n)
        second = np.arange(len(ids)) % 2 == 1
        quark, gluon = np.abs(ids) <= 6, ids == 21
        colour = np.where(gluon, tag + second, np.where(quark & (ids > 0), tag, 0))
        anticolour = np.where(gluon, tag + ~second, np.where(quark & (ids < 0), tag, 0))
        return np.stack([colour, anticolour], axis=1)

    @staticmethod
    def _rows(generations: list[tuple[Array, Array, Array, int]], scale: Array) -> list[tuple[float, list[Any]]]:
        """Join generations of particles (2, 2, 4, ... per event) into `addParticle` rows, event by event."""
        n = len(scale)
        blocks, first, previous = [], 1, 1
        for ids, p, colours, status in generations:
            size = len(ids) // n
            local = np.tile(np.arange(size), n)
            if status == -1:
                mothers = np.zeros((len(ids), 2), dtype=np.int64)
            elif first == 3:  # X: both gluons
                mothers = np.tile([[1, 2]], (len(ids), 1))
            else:
                mothers = np.stack([previous + local // 2] * 2, axis=1)
            mass = np.sqrt(np.maximum(p[:, 3] ** 2 - (p[:, :3] ** 2).sum(axis=1), 0.0))
            if status == 1:  # on shell: no rounding error of boosted momenta
                mass = _shell_mass(ids)
            integers = np.column_stack([ids, np.full(len(ids), status), mothers, colours]).reshape(n, size, 6)
            floats = np.column_stack([p, mass]).reshape(n, size, 5)
            blocks.append((integers, floats))
            previous, first = first, first + size
        integers = np.concatenate([block[0] for block in blocks], axis=1).tolist()
        floats = np.concatenate([block[1] for block in blocks], axis=1).tolist()
        return [
            (s, [(*i, *f) for i, f in zip(event_i, event_f, strict=True)])
            for s, event_i, event_f in zip(scale.tolist(), integers, floats, strict=True)
        ]


def _secondary_masses(mass: Array, cfg: SecondaryMassConfig, rng: np.random.Generator) -> Array:
    """Masses (N, 2) of Y1, Y2 from X of mass (N,) [GeV]; see SecondaryMassConfig."""
    n = len(mass)
    ratio = rng.uniform(cfg.ratio[0], cfg.ratio[1], n)
    smeared = ratio[:, None] * rng.normal(1.0, cfg.smear, (n, 2))
    off_shell = cfg.off_shell_min + rng.uniform(size=n) * (cfg.off_shell_max - ratio - cfg.off_shell_min)
    swap = rng.uniform(size=n) < 0.5
    pair = np.where(swap[:, None], np.stack([off_shell, smeared[:, 0]], 1), np.stack([smeared[:, 0], off_shell], 1))
    ratios = np.where(ratio[:, None] > 0.5, pair, smeared)
    ratios = ratios / np.maximum(ratios.sum(axis=1, keepdims=True) / 0.98, 1.0)  # stay below threshold
    masses: Array = np.maximum(ratios * mass[:, None], cfg.floor)
    return masses
