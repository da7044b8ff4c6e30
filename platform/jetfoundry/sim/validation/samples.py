"""Small simulated samples for the physics check, from the families and settings of a configuration."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from jetfoundry.errors import ConfigError
from jetfoundry.events.record import Events
from jetfoundry.sim.chain import make_shard
from jetfoundry.sim.detector import DetectorCard
from jetfoundry.sim.generator import Generator
from jetfoundry.sim.settings import FamilyConfig, SimulateConfig, seeds
from jetfoundry.sim.source import PairSource

__all__ = ["events_of", "qcd_family", "tagging_jets", "two_prong"]

_HIGGS = 25


def _family(cfg: SimulateConfig, *, resonance: bool) -> str:
    for name, family in cfg.families.items():
        if (family.resonance is not None) == resonance:
            return name
    msg = f"families: the check needs one {'with' if resonance else 'without'} a resonance, there is none"
    raise ConfigError(msg)


def qcd_family(cfg: SimulateConfig) -> str:
    """Name of the first family that is not a resonance."""
    return _family(cfg, resonance=False)


def two_prong(cfg: SimulateConfig, daughters: str, mass: float | None = None) -> FamilyConfig:
    """A family of neutral X with one decay ('5 -5'), with the spectrum of the first resonance family, or one mass."""
    spectrum = cfg.families[_family(cfg, resonance=True)].resonance
    assert spectrum is not None
    masses = spectrum.mass if mass is None else (mass, mass)
    decays = {str(_HIGGS): {daughters: 1.0}}
    return FamilyConfig(
        weight=1.0, resonance=dataclasses.replace(spectrum, ids=(_HIGGS, _HIGGS), mass=masses, decays=decays)
    )


def events_of(cfg: SimulateConfig, family: FamilyConfig, name: str, number: int) -> Events:
    """`number` generator events of a resonance family; `name` chooses the random numbers."""
    assert family.resonance is not None
    pythia_seed, rng, _ = seeds(cfg.seed, f"check {name}", 0)
    source = PairSource(family.resonance, cfg.beam_energy, rng)
    settings = (*cfg.common_settings, *family.settings)
    return Generator(settings, pythia_seed, source).batch(number)


def tagging_jets(cfg: SimulateConfig, card: DetectorCard, shard: int, jets: int, signal: bool) -> pa.Table:
    """`jets` jets of X -> bb, or of QCD, with the spectra of the sample; different for each `shard`."""
    qcd = qcd_family(cfg)
    families = {"check X_bb": two_prong(cfg, "5 -5")} if signal else {"check QCD": cfg.families[qcd]}
    families = {name: dataclasses.replace(family, weight=1.0) for name, family in families.items()}
    own = dataclasses.replace(cfg, families=families, jets=jets, jets_per_shard=jets, balance="natural")
    table = make_shard(own, card, next(iter(families)), shard).table
    assert np.all((table["jet_label"].to_numpy() == 0) == signal)
    return table
