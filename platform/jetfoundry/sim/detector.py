"""The detector card: every number of the parametrised detector, with its unit.

`datasets/cards/cms.yaml` is the CMS-like card of the JetClass-II look-alike samples; copy it to describe another
detector. What is done with the numbers stands in `response.py`.
"""

from __future__ import annotations

import dataclasses

from jetfoundry.config import option

__all__ = [
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

_SPECIES = ("hadron", "electron", "muon")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Tracking efficiency in |eta| <= eta_max and pt_min < pT <= pt_max: value * exp(-fall * (pT - pt_min))."""

    eta_max: float = option(dataclasses.MISSING, "upper |eta|")
    pt_min: float = option(dataclasses.MISSING, "lower pT [GeV]")
    pt_max: float = option(dataclasses.MISSING, "upper pT [GeV]")
    value: float = option(dataclasses.MISSING, "efficiency")
    fall: float = option(0.0, "exponential fall [1/GeV]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MomentumResolution:
    """sigma(pT)/pT = sqrt(a^2 + (b pT)^2) up to |eta| = eta_max."""

    eta_max: float = option(dataclasses.MISSING, "upper |eta|")
    a: float = option(dataclasses.MISSING, "constant term")
    b: float = option(dataclasses.MISSING, "term that grows with pT [1/GeV]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImpactResolution:
    """sigma = sqrt(a^2 + (b / pT^g)^2) [mm, pT in GeV] up to |eta| = eta_max; triples (a, b, g)."""

    eta_max: float = option(dataclasses.MISSING, "upper |eta|")
    d0: tuple[float, ...] = option(dataclasses.MISSING, "a, b, g of the transverse impact parameter")
    dz: tuple[float, ...] = option(dataclasses.MISSING, "a, b, g of the longitudinal impact parameter")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tracker:
    """Volume, magnetic field and track resolutions by species (hadron, electron, muon)."""

    radius: float = option(dataclasses.MISSING, "radius of the calorimeter surface [mm]")
    half_length: float = option(dataclasses.MISSING, "half length of the calorimeter surface [mm]")
    field: float = option(dataclasses.MISSING, "magnetic field [T]")
    pt_min: float = option(dataclasses.MISSING, "smallest pT of a track [GeV]")
    efficiency: dict[str, tuple[Efficiency, ...]] = option(dataclasses.MISSING, "by species")
    momentum: dict[str, tuple[MomentumResolution, ...]] = option(dataclasses.MISSING, "by species")
    impact: tuple[ImpactResolution, ...] = option(dataclasses.MISSING, "impact parameters")

    def __post_init__(self) -> None:
        for name, table in (("efficiency", self.efficiency), ("momentum", self.momentum)):
            if set(table) != set(_SPECIES):
                msg = f"{name}: wanted {', '.join(_SPECIES)}, got {', '.join(table)}"
                raise ValueError(msg)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Towers:
    """Tower size up to |eta| = eta_max."""

    eta_max: float = option(dataclasses.MISSING, "upper |eta|")
    deta: float = option(dataclasses.MISSING, "size in eta")
    dphi: float = option(dataclasses.MISSING, "size in phi [degrees]")


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calorimeter:
    """One calorimeter: towers, thresholds and energy resolution."""

    energy_min: float = option(dataclasses.MISSING, "smallest tower energy and smallest neutral excess [GeV]")
    significance_min: float = option(dataclasses.MISSING, "smallest energy in units of its resolution")
    towers: tuple[Towers, ...] = option(dataclasses.MISSING, "tower sizes by |eta|")
    resolution: tuple[EnergyResolution, ...] = option(dataclasses.MISSING, "energy resolution by |eta|")


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectorCard:
    """All numbers of the detector."""

    name: str = option(dataclasses.MISSING, "name of the card")
    tracker: Tracker = option(dataclasses.MISSING, "tracking")
    ecal: Calorimeter = option(dataclasses.MISSING, "calorimeter of electrons and photons")
    hcal: Calorimeter = option(dataclasses.MISSING, "calorimeter of hadrons")
    pileup_cleaning: PileupCleaning = option(dataclasses.MISSING, "stand-in for pileup and PUPPI")
