"""The detector card: every number of the parametrised detector, with its unit.

`datasets/cards/cms.yaml` is the CMS-like card of the JetClass-II look-alike samples; copy it to describe another
detector. What is done with the numbers stands in `response.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from jetfoundry.config import option
from jetfoundry.errors import nearest

__all__ = [
    "MOST_BINS",
    "Calorimeter",
    "DetectorCard",
    "Efficiency",
    "EnergyResolution",
    "ImpactResolution",
    "MomentumResolution",
    "PileupCleaning",
    "Towers",
    "Tracker",
]

MOST_BINS = 8192
"""Towers side by side in eta or in phi, at most: response.py numbers them."""

_SPECIES = ("hadron", "electron", "muon")


def _check(wanted: dict[str, bool]) -> None:
    """Raise ValueError that names the first rule which does not hold."""
    for rule, holds in wanted.items():
        if not holds:
            msg = f"unphysical: wanted {rule}"
            raise ValueError(msg)


def _is_width(terms: tuple[float, ...]) -> bool:
    return len(terms) == 3 and terms[0] > 0 and min(terms) >= 0


class _Row(Protocol):
    @property
    def eta_max(self) -> float: ...


def _check_rows(name: str, rows: Sequence[_Row]) -> None:
    """Rows are tried in order of |eta|: there must be some, and the limits must not fall."""
    limits = [row.eta_max for row in rows]
    if not limits or limits != sorted(limits) or limits[0] <= 0:
        msg = f"{name}: wanted rows with rising eta_max above 0, got {limits or 'none'}"
        raise ValueError(msg)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Tracking efficiency in |eta| <= eta_max and pt_min < pT <= pt_max: value * exp(-fall * (pT - pt_min))."""

    eta_max: float = option(dataclasses.MISSING, "upper |eta|")
    pt_min: float = option(dataclasses.MISSING, "lower pT [GeV]")
    pt_max: float = option(dataclasses.MISSING, "upper pT [GeV]")
    value: float = option(dataclasses.MISSING, "efficiency")
    fall: float = option(0.0, "exponential fall [1/GeV]")

    def __post_init__(self) -> None:
        _check(
            {
                f"efficiency from 0 to 1, got {self.value}": 0 <= self.value <= 1,
                f"fall >= 0, got {self.fall}": self.fall >= 0,
                f"pt_min < pt_max, got {self.pt_min} and {self.pt_max}": 0 <= self.pt_min < self.pt_max,
            }
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MomentumResolution:
    """sigma(pT)/pT = sqrt(a^2 + (b pT)^2) up to |eta| = eta_max."""

    eta_max: float = option(dataclasses.MISSING, "upper |eta|")
    a: float = option(dataclasses.MISSING, "constant term")
    b: float = option(dataclasses.MISSING, "term that grows with pT [1/GeV]")

    def __post_init__(self) -> None:
        _check({f"resolution terms >= 0, got a {self.a}, b {self.b}": min(self.a, self.b) >= 0})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImpactResolution:
    """sigma = sqrt(a^2 + (b / pT^g)^2) [mm, pT in GeV] up to |eta| = eta_max; triples (a, b, g)."""

    eta_max: float = option(dataclasses.MISSING, "upper |eta|")
    d0: tuple[float, ...] = option(dataclasses.MISSING, "a, b, g of the transverse impact parameter")
    dz: tuple[float, ...] = option(dataclasses.MISSING, "a, b, g of the longitudinal impact parameter")

    def __post_init__(self) -> None:
        for name, terms in (("d0", self.d0), ("dz", self.dz)):
            _check({f"{name}: three terms a > 0, b >= 0, g >= 0, got {terms}": _is_width(terms)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tracker:
    """Volume, magnetic field and track resolutions by species (hadron, electron, muon)."""

    radius: float = option(dataclasses.MISSING, "radius of the calorimeter surface [mm]")
    half_length: float = option(dataclasses.MISSING, "half length of the calorimeter surface [mm]")
    field: float = option(dataclasses.MISSING, "magnetic field [T]")
    pt_min: float = option(dataclasses.MISSING, "smallest pT of a track [GeV]")
    efficiency: dict[str, tuple[Efficiency, ...]] = option(dataclasses.MISSING, "by species")
    momentum: dict[str, tuple[MomentumResolution, ...]] = option(dataclasses.MISSING, "by species")
    smear_momenta: bool = option(True, "false: the resolution only weighs tracks against towers")
    impact: tuple[ImpactResolution, ...] = option(dataclasses.MISSING, "impact parameters")

    def __post_init__(self) -> None:
        for name, table in (("efficiency", self.efficiency), ("momentum", self.momentum)):
            if set(table) != set(_SPECIES):
                unknown = [f"unknown particle {key}, {nearest(key, _SPECIES)}" for key in table if key not in _SPECIES]
                missing = [f"{key} is missing" for key in _SPECIES if key not in table]
                msg = f"{name}: {'; '.join(unknown + missing)}"
                raise ValueError(msg)
            for species, rows in table.items():
                _check_rows(f"{name}.{species}", rows)
        _check_rows("impact", self.impact)
        _check(
            {
                f"0 < radius < 100 m, got {self.radius} mm": 0 < self.radius < 1e5,
                f"0 < half_length < 100 m, got {self.half_length} mm": 0 < self.half_length < 1e5,
                f"0 < field < 100 T, got {self.field}": 0 < self.field < 100,
                f"pt_min >= 0, got {self.pt_min}": self.pt_min >= 0,
            }
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Towers:
    """Tower size up to |eta| = eta_max."""

    eta_max: float = option(dataclasses.MISSING, "upper |eta|")
    deta: float = option(dataclasses.MISSING, "size in eta")
    dphi: float = option(dataclasses.MISSING, "size in phi [degrees]")

    def __post_init__(self) -> None:
        fits = self.deta > self.eta_max / MOST_BINS * 2 and 360 / MOST_BINS < self.dphi <= 360
        _check({f"0 < deta, 0 < dphi <= 360 and at most {MOST_BINS} bins, got {self.deta}, {self.dphi}": fits})


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnergyResolution:
    """(scale + curvature (|eta| - centre)^2) sqrt(constant^2 E^2 + stochastic^2 E + noise^2) [GeV] up to eta_max."""

    eta_max: float = option(dataclasses.MISSING, "upper |eta|")
    constant: float = option(dataclasses.MISSING, "constant term")
    stochastic: float = option(dataclasses.MISSING, "stochastic term [sqrt(GeV)]")
    noise: float = option(0.0, "noise term [GeV]")
    scale: float = option(1.0, "overall factor")
    curvature: float = option(0.0, "growth with |eta|")
    centre: float = option(0.0, "|eta| where the growth starts")

    def __post_init__(self) -> None:
        terms = (self.constant, self.stochastic, self.noise, self.scale, self.curvature)
        _check({f"resolution terms >= 0, got {terms}": min(terms) >= 0})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calorimeter:
    """One calorimeter: towers, thresholds and energy resolution."""

    energy_min: float = option(dataclasses.MISSING, "smallest tower energy and smallest neutral excess [GeV]")
    significance_min: float = option(dataclasses.MISSING, "smallest energy in units of its resolution")
    towers: tuple[Towers, ...] = option(dataclasses.MISSING, "tower sizes by |eta|")
    resolution: tuple[EnergyResolution, ...] = option(dataclasses.MISSING, "energy resolution by |eta|")

    def __post_init__(self) -> None:
        _check_rows("towers", self.towers)
        _check_rows("resolution", self.resolution)
        thresholds = (self.energy_min, self.significance_min)
        _check({f"energy_min and significance_min >= 0, got {thresholds}": min(thresholds) >= 0})


@dataclasses.dataclass(frozen=True, kw_only=True)
class PileupCleaning:
    """What PUPPI among 50 pileup events does to the soft particles of a jet, measured on real JetClass-II jets.

    A charged hadron survives with `keep` (interpolated in log pT); a neutral keeps its energy with probability
    `neutral_whole`, else a uniform share in (`neutral_share_min`, 1); softer neutrals are dropped.
    """

    pt: tuple[float, ...] = option(dataclasses.MISSING, "pT of the points [GeV]")
    keep: tuple[float, ...] = option(dataclasses.MISSING, "probability to keep a charged hadron at these points")
    neutral_whole: float = option(dataclasses.MISSING, "probability that a neutral keeps all its energy")
    neutral_share_min: float = option(dataclasses.MISSING, "smallest share kept otherwise")
    neutral_pt_min: float = option(dataclasses.MISSING, "smallest pT of a neutral [GeV]")

    def __post_init__(self) -> None:
        if len(self.pt) != len(self.keep) or list(self.pt) != sorted(self.pt):
            msg = f"pt and keep must be lists of the same length with rising pt, got {self.pt} and {self.keep}"
            raise ValueError(msg)
        shares = (*self.keep, self.neutral_whole, self.neutral_share_min)
        _check(
            {
                f"pt > 0, got {self.pt}": min(self.pt, default=0) > 0,
                f"probabilities from 0 to 1, got {shares}": min(shares) >= 0 and max(shares) <= 1,
                f"neutral_pt_min >= 0, got {self.neutral_pt_min}": self.neutral_pt_min >= 0,
            }
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectorCard:
    """All numbers of the detector."""

    name: str = option(dataclasses.MISSING, "name of the card")
    tracker: Tracker = option(dataclasses.MISSING, "tracking")
    ecal: Calorimeter = option(dataclasses.MISSING, "calorimeter of electrons and photons")
    hcal: Calorimeter = option(dataclasses.MISSING, "calorimeter of hadrons")
    pileup_cleaning: PileupCleaning = option(dataclasses.MISSING, "stand-in for pileup and PUPPI")
