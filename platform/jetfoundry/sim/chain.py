"""From generator events to labelled jets: the whole chain for one batch, and a shard from batches.

1. Pythia makes a batch of events, flat arrays of all particles (generator.py)
2. stable visible particles go through the detector (response.py) and are clustered into jets (jets.py)
3. a jet is kept if it has a label (truth.py), then if pT and soft-drop mass pass the selection
4. what survives gets N-subjettiness, its generator-level jet and its truth particles
5. all of it becomes an Arrow table of the 54 columns (columns.py)

Costly steps come after the cuts. Pythia's event weights (biased pT, enhanced splittings) are dropped: the training
re-weights flat in (pT, mass) within each class.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jetfoundry.errors import ConfigError
from jetfoundry.events import columns
from jetfoundry.events.jets import Jets, match_jets, offsets_of, storable
from jetfoundry.events.record import Events
from jetfoundry.events.truth_particles import qcd_truth, resonance_truth
from jetfoundry.sim import jets
from jetfoundry.sim.detector import DetectorCard
from jetfoundry.sim.generator import Generator
from jetfoundry.sim.response import respond
from jetfoundry.sim.settings import SimulateConfig, seeds
from jetfoundry.sim.source import PairSource

__all__ = ["Shard", "analyse", "make_shard"]

Array = npt.NDArray[Any]

_NEUTRINOS = (12, 14, 16)
_HOPELESS = 2000  # events without any jet


@dataclasses.dataclass(frozen=True)
class Shard:
    """Jets of one file with what they cost."""

    table: pa.Table
    events: int
    pythia_seed: int
    cpu_seconds: float


def make_shard(cfg: SimulateConfig, card: DetectorCard, family: str, shard: int) -> Shard:
    """Exactly `cfg.jets_per_shard` jets; the content depends on cfg, card, family and shard number only."""
    started = time.process_time()
    pythia_seed, source_rng, detector_rng = seeds(cfg.seed, family, shard)
    resonance = cfg.families[family].resonance
    balanced = cfg.balance == "classes"
    source = PairSource(resonance, cfg.beam_energy, source_rng, balanced=balanced) if resonance else None
    generator = Generator(cfg.pythia_settings(family), pythia_seed, source)
    tables, made, events = [], 0, 0
    while made < cfg.jets_per_shard:
        wanted = 1.05 * (cfg.jets_per_shard - made) * events / made if made else cfg.batch_events
        batch = generator.batch(min(cfg.batch_events, math.ceil(wanted)))  # the last batch is cut to what is missing
        tables.append(analyse(batch, cfg, card, detector_rng, qcd=resonance is None))
        made, events = made + len(tables[-1]), events + len(batch)
        if not made and events > _HOPELESS:
            msg = f"{family}: no jet in {events} events passes the selection (pt {cfg.selection.pt}, sdmass "
            msg += f"{cfg.selection.sdmass}) with a label; check the spectrum and the cuts"
            raise ConfigError(msg)
    table = pa.concat_tables(tables).slice(0, cfg.jets_per_shard).combine_chunks()
    return Shard(table, events, pythia_seed, time.process_time() - started)


def analyse(
    events: Events, cfg: SimulateConfig, card: DetectorCard, rng: np.random.Generator, *, qcd: bool
) -> pa.Table:
    """Labelled jets of a batch of events that pass the selection, with all 54 columns."""
    visible = np.flatnonzero((events.status > 0) & ~np.isin(np.abs(events.pid), _NEUTRINOS))
    flow = respond(
        card, events.event[visible], events.pid[visible], events.p4[visible], events.mass[visible],
        events.vertex[visible, :3], rng,
    )  # fmt: skip
    p4 = np.stack([flow.px, flow.py, flow.pz, flow.energy], axis=1)
    stored = storable(p4)  # what is not stored is not clustered
    flow, p4 = flow.take(stored), p4[stored]
    offsets = offsets_of(flow.event, len(events))
    found = jets.cluster(p4, offsets, cfg.jet.radius, cfg.jet.pt_min, cfg.jet.eta_max)

    if qcd:
        known = qcd_truth(events, found, cfg.jet.radius, cfg.jet.qcd_parton_pt_min)
    else:
        known = resonance_truth(events, found, cfg.jet.radius, unseen=True)
    kept = np.flatnonzero((known.label >= 0) & _between(found.pt, cfg.selection.pt))
    candidates = found.take(kept)
    sdmass = jets.softdrop_mass(p4[candidates.index], candidates.offsets, cfg.jet.softdrop_zcut)
    passes = _between(sdmass, cfg.selection.sdmass)
    selected, sdmass, known = found.take(kept[passes]), sdmass[passes], known.take(kept[passes])
    tau = jets.nsubjettiness(p4[selected.index], selected.offsets, cfg.jet.radius)

    genjet, genpart, genpart_offsets = _generator_level(events, visible, selected, cfg)
    aux, aux_offsets = columns.aux_columns(
        len(selected), known.owner, known.role,
        events.pid[known.position], events.p4[known.position], events.mass[known.position],
    )  # fmt: skip
    return columns.table(
        {**columns.jet_columns(selected, sdmass, tau, known.label), **genjet},
        {"part": columns.part_columns(selected, flow), "genpart": genpart, "aux_genpart": aux},
        {"part": selected.offsets, "genpart": genpart_offsets, "aux_genpart": aux_offsets},
    )


def _between(values: Array, limits: tuple[float, ...]) -> Array:
    """Strictly inside the limits, as stored in single precision."""
    single = values.astype(np.float32)
    passes: Array = (single > limits[0]) & (single < limits[1])
    return passes


def _generator_level(
    events: Events, visible: Array, selected: Jets, cfg: SimulateConfig
) -> tuple[dict[str, Array], dict[str, Array], Array]:
    """Generator-level jets of the selected jets: `genjet_*`, `genpart_*` columns and the offsets of the latter."""
    wanted = np.zeros(len(events), dtype=bool)
    wanted[selected.event] = True
    particles = visible[wanted[events.event[visible]]]
    particles = particles[storable(events.p4[particles])]
    p4 = events.p4[particles]
    offsets = offsets_of(events.event[particles], len(events))
    genjets = jets.cluster(p4, offsets, cfg.jet.radius, cfg.jet.pt_min)
    match = match_jets(selected, genjets, cfg.jet.radius)
    sdmass = np.zeros(len(selected))
    matched = genjets.take(match[match >= 0])
    sdmass[match >= 0] = jets.softdrop_mass(p4[matched.index], matched.offsets, cfg.jet.softdrop_zcut)
    vertex, pid = events.vertex[particles], events.pid[particles]
    return columns.genpart_columns(selected, genjets, match, sdmass, p4, pid, vertex)
