"""Resonance pairs for Pythia: gg -> X X with free masses, momenta and decay chains, drawn in blocks of events.

Every event has its own mass, pT and channels, with no re-initialisation of Pythia; decays are isotropic two-body
decays, each pair of coloured daughters a colour singlet of its own. Pythia adds ISR, FSR inside each resonance,
MPI, remnants and hadrons. Decays of X to two resonances (X -> Y1 Y2) take their Y masses from the configuration.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry.errors import ConfigError
from jetfoundry.sim.balance import even_fractions
from jetfoundry.sim.channels import conjugated, decay_chains
from jetfoundry.sim.settings import ResonanceConfig, SecondaryMassConfig

__all__ = ["PairSource", "invariant_mass", "two_body"]

Array = npt.NDArray[Any]

_BLOCK = 256  # events drawn at a time
_BLOCKS = 100  # without an event: then the masses allow none
_FIRST_TAG = 510  # colour tags 501 and 502 belong to the incoming gluons


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

    def __init__(
        self, cfg: ResonanceConfig, beam_energy: float, rng: np.random.Generator, *, balanced: bool = False
    ) -> None:
        self.beam_energy = beam_energy
        self._cfg, self._rng = cfg, rng
        self._chains = decay_chains(cfg)
        self._fraction = even_fractions(self._chains) if balanced else self._chains.fraction
        self._queue: list[tuple[float, list[tuple[Any, ...]]]] = []

    def __iter__(self) -> PairSource:
        return self

    def __next__(self) -> tuple[float, list[tuple[Any, ...]]]:
        for _ in range(_BLOCKS):
            if self._queue:
                return self._queue.pop()
            self._queue = self._draw()[::-1]
        msg = f"no decay is open in {_BLOCKS * _BLOCK} pairs of resonances; mass {self._cfg.mass} or x_max is too low"
        raise ConfigError(msg)

    def _draw(self) -> list[tuple[float, list[tuple[Any, ...]]]]:
        """One block of n events. Per event: 2 gluons, 2 X, then per X two daughters (and per Y two more)."""
        incoming, x, scale = self._pairs()
        n = len(scale)
        if not n:
            return []
        ids = np.tile(np.asarray(self._cfg.ids, dtype=np.int64), n)  # (2n,): X1, X2 of event 0, of event 1, ...
        mass = invariant_mass(x)
        secondary = _secondary_masses(mass, self._cfg.secondary, self._rng) if self._chains.cascade else mass[:, None]
        chain, is_open = self._chain(secondary)
        both = np.repeat(is_open.reshape(n, 2).all(axis=1), 2)  # an event needs an open chain for both of its X
        ids, x, incoming, secondary, chain = ids[both], x[both], incoming[both], secondary[both], chain[both]
        scale, n = scale[both[::2]], int(both.sum()) // 2
        if not n:
            return []
        generations = [_Generation(np.tile([21, 21], n), incoming, -1), _Generation(ids, x, 2)]
        parents, parent_ids = x, ids
        if self._chains.cascade:
            parent_ids = self._of_antiparticles(self._chains.secondary[chain], ids).reshape(-1)
            parents = _interleaved(two_body(x, secondary[:, 0], secondary[:, 1], self._rng))
            generations.append(_Generation(parent_ids, parents, 2))
        products = self._of_antiparticles(self._chains.products[chain], ids).reshape(-1)
        masses = self._chains.masses[chain].reshape(-1, 2)
        final = _interleaved(two_body(parents, masses[:, 0], masses[:, 1], self._rng))
        generations.append(_Generation(products, final, 1, masses.reshape(-1)))
        return _rows(generations, scale)

    def _chain(self, mass: Array) -> tuple[Array, Array]:
        """A decay chain (N,) for each X, of those that `mass` of its decaying particles (N, 1 or 2) leaves open, and
        whether there is one.
        """
        is_open = self._chains.open_at(mass)
        cumulative = np.cumsum(np.where(is_open, self._fraction, 0.0), axis=1)
        drawn = self._rng.uniform(size=(len(mass), 1)) * cumulative[:, -1:]
        chain = (drawn >= cumulative).sum(axis=1)
        return np.minimum(chain, len(self._fraction) - 1), chain < len(self._fraction)

    @staticmethod
    def _of_antiparticles(ids: Array, x: Array) -> Array:
        """`ids` (N, ...) as they are for X, those of the antiparticles where `x` (N,) is negative."""
        return np.where((x < 0)[:, None], conjugated(ids), ids)

    def _pairs(self) -> tuple[Array, Array, Array]:
        """Kinematics of gg -> X X: gluons (2n, 4), X (2n, 4), scale = transverse mass (n,)."""
        cfg, rng, n = self._cfg, self._rng, _BLOCK
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


def invariant_mass(p4: Array) -> Array:
    """Mass (N,) of four-vectors (N, 4) = (px, py, pz, E) [GeV]; 0 where rounding makes its square negative."""
    mass: Array = np.sqrt(np.maximum(p4[:, 3] ** 2 - (p4[:, :3] ** 2).sum(axis=1), 0.0))
    return mass


@dataclasses.dataclass(frozen=True)
class _Generation:
    """Particles of n events that stand at the same place of the decay: ids (n * size,), p4 (n * size, 4), status, and
    masses (n * size,) where they are given.
    """

    ids: Array
    p4: Array
    status: int
    shell: Array | None = None


def _interleaved(pair: tuple[Array, Array]) -> Array:
    return np.stack(pair, axis=1).reshape(-1, 4)


def _colours(generation: _Generation, n: int) -> Array:
    """(colour, anticolour) of the particles: incoming gluons, or one singlet for each pair of decay products."""
    ids = generation.ids
    if generation.status == -1:
        return np.tile([[501, 502], [502, 501]], (n, 1))
    if generation.status == 2:
        return np.zeros((len(ids), 2), dtype=np.int64)
    pairs = len(ids) // n // 2
    tag = np.tile(np.repeat(_FIRST_TAG + 2 * np.arange(pairs), 2), n)
    second = np.arange(len(ids)) % 2 == 1
    quark, gluon = np.abs(ids) <= 6, ids == 21
    colour = np.where(gluon, tag + second, np.where(quark & (ids > 0), tag, 0))
    anticolour = np.where(gluon, tag + ~second, np.where(quark & (ids < 0), tag, 0))
    return np.stack([colour, anticolour], axis=1)


def _rows(generations: list[_Generation], scale: Array) -> list[tuple[float, list[Any]]]:
    """Join generations of particles (2, 2, 4, ... per event) into `addParticle` rows, event by event."""
    n = len(scale)
    blocks, first, previous = [], 1, 1
    for generation in generations:
        ids, p = generation.ids, generation.p4
        size = len(ids) // n
        local = np.tile(np.arange(size), n)
        if generation.status == -1:
            mothers = np.zeros((len(ids), 2), dtype=np.int64)
        elif first == 3:  # X: both gluons
            mothers = np.tile([[1, 2]], (len(ids), 1))
        else:
            mothers = np.stack([previous + local // 2] * 2, axis=1)
        # decay products on shell: no rounding error of boosted momenta
        mass = invariant_mass(p) if generation.shell is None else generation.shell
        status = np.full(len(ids), generation.status)
        integers = np.column_stack([ids, status, mothers, _colours(generation, n)]).reshape(n, size, 6)
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
