"""Every way one resonance X of a family can decay, down to the particles that Pythia showers.

A *chain* is X -> a b, or X -> Y1 Y2 with a channel of each Y. A family has some ten to two hundred of them; an event
draws one for each X among those that its masses allow. Chains are checked when they are built: particles are known,
channels conserve charge and are colour singlets, and each can be reached by some mass of the spectrum.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry.errors import ConfigError, nearest
from jetfoundry.sim.settings import ResonanceConfig

__all__ = ["Chains", "conjugated", "decay_chains"]

Array = npt.NDArray[Any]

_THIRDS = {1: -1, 2: 2, 3: -1, 4: 2, 5: -1, 21: 0, 11: -3, 12: 0, 13: -3, 14: 0, 15: -3, 16: 0, 37: 3}
_SELF_CONJUGATE = (21, 22, 25, 35)


@dataclasses.dataclass(frozen=True)
class Chains:
    """K decay chains of X (not of its antiparticle).

    `secondary` (K, 2) ids of Y1 and Y2, or (K, 0); `products` (K, 2) or (K, 4) ids, `masses` of the same shape [GeV];
    `fraction` (K,) natural probability, of sum 1.
    """

    secondary: Array
    products: Array
    masses: Array
    fraction: Array

    @property
    def cascade(self) -> bool:
        """Whether X decays to two resonances."""
        return bool(self.secondary.size)

    def open_at(self, mass: Array) -> Array:
        """Which chains (n, K) are open for parents of `mass`: X (n, 1), or Y1 and Y2 (n, 2) [GeV]."""
        needed = self.masses.reshape(len(self.masses), -1, 2).sum(axis=2)
        return np.asarray((needed[None, :, :] < mass[:, None, :]).all(axis=2))


def _shell_mass(ids: Array, masses: Mapping[str, float]) -> Array:
    """Mass [GeV] of partons and leptons by |PDG id|, of any shape; 0 for those that `masses` does not name."""
    mass = np.zeros(np.shape(ids))
    for pid, value in masses.items():
        mass[np.abs(ids) == int(pid)] = value
    return mass


def conjugated(ids: Array) -> Array:
    """Ids of the antiparticles, of any shape."""
    return np.where(np.isin(ids, _SELF_CONJUGATE), ids, -ids)


def decay_chains(cfg: ResonanceConfig, name: str = "") -> Chains:
    """The decay chains of a family; ConfigError names the channel that cannot be (`name` is the family's)."""
    where = f"families.{name}.resonance.decays" if name else "decays"
    for parent in cfg.decays:
        if not parent.isdigit():
            msg = f"{where}: wanted PDG ids of X and Y, got {parent!r}"
            raise ConfigError(msg)
    tables = {parent: _channels(f"{where}.{parent}", parent, table, cfg) for parent, table in cfg.decays.items()}
    top = tables[str(abs(cfg.ids[0]))]
    cascade = {pair for pair in top if all(str(abs(i)) in tables for i in pair)}
    if cascade and len(cascade) < len(top):
        msg = f"{where}.{abs(cfg.ids[0])}: channels to two resonances and to two particles cannot be mixed"
        raise ConfigError(msg)
    highest = cfg.mass[1] * (max(cfg.secondary.ratio) if cascade else 1.0)
    for parent, table in tables.items():
        if cascade and parent == str(abs(cfg.ids[0])):
            continue
        for pair in table:
            needed = float(_shell_mass(np.array(pair), cfg.masses).sum())
            if needed >= highest:
                msg = f"{where}.{parent}: the channel '{pair[0]} {pair[1]}' needs more than {needed:g} GeV, "
                msg += f"the spectrum ends at {highest:g} GeV"
                raise ConfigError(msg)
    if not cascade:
        return _chains([], list(top), list(top.values()), cfg.masses)
    rows = []
    for pair, fraction in top.items():
        sides = [_side(tables, y) for y in pair]
        for (first, p1), (second, p2) in itertools.product(*sides):
            rows.append((pair, (*first, *second), fraction * p1 * p2))
    return _chains([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows], cfg.masses)


def _chains(
    secondary: list[tuple[int, int]],
    products: list[tuple[int, ...]],
    fraction: list[float],
    masses: Mapping[str, float],
) -> Chains:
    ids = np.array(products, dtype=np.int64)
    natural = np.array(fraction, dtype=np.float64)
    return Chains(
        np.array(secondary, dtype=np.int64).reshape(len(ids), -1),
        ids,
        _shell_mass(ids, masses),
        natural / natural.sum(),
    )


def _side(tables: dict[str, dict[tuple[int, int], float]], y: int) -> list[tuple[tuple[int, int], float]]:
    """Channels of a Y with their fractions normalised; those of the antiparticle for a negative id."""
    table = tables[str(abs(y))]
    total = sum(table.values())
    ids = conjugated(np.array(list(table))) if y < 0 else np.array(list(table))
    return [((int(a), int(b)), fraction / total) for (a, b), fraction in zip(ids, table.values(), strict=True)]


def _channels(where: str, parent: str, table: dict[str, float], cfg: ResonanceConfig) -> dict[tuple[int, int], float]:
    """Channels of one parent with a fraction above 0, checked for what does not depend on masses."""
    channels: dict[tuple[int, int], float] = {}
    for text, fraction in table.items():
        if not re.fullmatch(r"-?\d+ +-?\d+", text):
            msg = f"{where}: wanted channels like '5 -5', got {text!r}"
            raise ConfigError(msg)
        first, second = (int(word) for word in text.split())
        for pid in (abs(first), abs(second)):
            if pid not in _THIRDS and str(pid) not in cfg.decays:
                msg = f"{where}: unknown particle {pid} in channel {text!r}; {nearest(str(pid), map(str, _THIRDS))}"
                raise ConfigError(msg)
        if not 0 <= fraction < math.inf:
            msg = f"{where}: the fraction of {text!r} must be >= 0, got {fraction}"
            raise ConfigError(msg)
        charge = _charge(first) + _charge(second)
        if charge != _charge(int(parent)):
            has, wanted = (f"{thirds:+d}/3" if thirds else "0" for thirds in (charge, _charge(int(parent))))
            msg = f"{where}: {text!r} has charge {has}, {parent} has {wanted}"
            raise ConfigError(msg)
        if not _keeps_flavour(first, second):
            msg = f"{where}: {text!r} breaks lepton number; wanted a lepton and the antilepton or neutrino of its kind"
            raise ConfigError(msg)
        if not _is_singlet(first, second):
            msg = f"{where}: {text!r} is no colour singlet; wanted a quark and an antiquark, two gluons, or no colour"
            raise ConfigError(msg)
        if fraction > 0:
            channels[first, second] = fraction
    if not channels:
        msg = f"{where}: no channel has a fraction above 0"
        raise ConfigError(msg)
    return channels


def _charge(pid: int) -> int:
    """Electric charge in thirds; resonances that are not known count as neutral."""
    return _THIRDS.get(abs(pid), 0) * (1 if pid > 0 else -1)


def _keeps_flavour(first: int, second: int) -> bool:
    """No leptons, or a lepton and an antilepton of one generation (11 and 12, 13 and 14, 15 and 16)."""
    generation = [(abs(pid) - 9) // 2 if 11 <= abs(pid) <= 16 else 0 for pid in (first, second)]
    return generation == [0, 0] or (generation[0] == generation[1] and first * second < 0)


def _is_singlet(first: int, second: int) -> bool:
    quarks = [pid for pid in (first, second) if 1 <= abs(pid) <= 6]
    gluons = [pid for pid in (first, second) if pid == 21]
    return len(gluons) in (0, 2) and (not quarks or (len(quarks) == 2 and quarks[0] * quarks[1] < 0))
