"""Everything the physics check measures, made in parallel on Ray: the gates, and real jets replayed if there are any.

What is made depends on the configuration, its seed and the sizes only, not on the number of workers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from jetfoundry import config, ray_session
from jetfoundry.data.root import open_jets
from jetfoundry.sim.detector import DetectorCard
from jetfoundry.sim.run import check_extra
from jetfoundry.sim.settings import SimulateConfig
from jetfoundry.sim.validation import gates
from jetfoundry.sim.validation.comparison import Comparison, Sample, compare
from jetfoundry.sim.validation.gates import Gate, Multiplicity, Sizes
from jetfoundry.sim.validation.tagging import Auc, auc, features, kinematic_weights

__all__ = ["CHANNELS", "Measured", "Replay", "measure"]

CHANNELS = {"bb": "5 -5", "cc": "4 -4", "ss": "3 -3", "uu": "2 -2", "gg": "21 21"}
"""Decays of X whose charged multiplicity is measured."""

Key = tuple[Any, ...]
Call = tuple[Key, Callable[..., Any], tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class Replay:
    """Real jets and their simulated copies with all comparisons."""

    real: Sample
    simulated: Sample
    comparisons: list[Comparison]
    without_copies: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the check found; `aucs` by the features used, `tagging_jets` of each class."""

    gates: list[Gate]
    multiplicities: list[Multiplicity]
    aucs: dict[str, Auc]
    tagging_jets: int
    replay: Replay | None

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)


def measure(cfg: SimulateConfig, reference: str | Path = "", sizes: Sizes = Sizes()) -> Measured:  # noqa: B008 - frozen
    """Make what the gates need and measure it; with `reference`, a file of real jets, compare with these, too.

    Raises ConfigError if Pythia or FastJet are missing or a setting is wrong, InputError for a bad reference.
    """
    check_extra()
    card = cfg.detector or config.read(DetectorCard, cfg.card)
    real = _read(reference, sizes.reference_jets) if reference else None
    made = _run(cfg, list(_calls(cfg, card, real, sizes)))
    multiplicities = [made["multiplicity", name] for name in CHANNELS]
    tables = {key: [made[k] for k in made if k[:2] == ("tagging", key)] for key in (True, False)}
    both = pa.concat_tables([*tables[True], *tables[False]]).combine_chunks()
    aucs = _aucs(both, sum(len(table) for table in tables[True]), cfg.seed)
    masses = {key[1]: deviation for key, deviation in made.items() if key[0] == "mass"}
    found = [
        *gates.mass_gates(masses),
        *gates.multiplicity_gates(multiplicities),
        gates.sum_gate(both),
        *gates.tagging_gates(aucs["all features"], aucs["without displacement"]),
    ]
    replay = None
    if real is not None:
        replay = _replayed(real, [made.get(("copies", i)) for i in range(len(real))], cfg.seed, sizes)
        found += gates.comparison_gates(replay.comparisons)
    return Measured(found, multiplicities, aucs, sizes.tagging_jets, replay)


def _read(reference: str | Path, most: int) -> pa.Table:
    """All columns of the first `most` jets."""
    with open_jets(reference) as reader:
        return reader.read(0, min(reader.entries, most), None).combine_chunks()


def _calls(cfg: SimulateConfig, card: DetectorCard, real: pa.Table | None, sizes: Sizes) -> Iterable[Call]:
    """Every sample to make: its name, the function and its arguments. Long ones first, so that none is left alone."""
    from jetfoundry.sim.validation import replay, samples  # need the [sim] extra

    for i, jet in enumerate(replay.true_jets(real) if real is not None else []):
        if jet.replayable:
            yield ("copies", i), replay.copies, (cfg, card, jet, i, sizes.copies, sizes.copy_events)
    jets = sizes.jets_per_task
    for shard in range(-(-sizes.tagging_jets // jets)):
        for signal in (True, False):
            wanted = min(jets, sizes.tagging_jets - shard * jets)
            yield ("tagging", signal, shard), samples.tagging_jets, (cfg, card, shard, wanted, signal)
    for name in CHANNELS:
        yield ("multiplicity", name), _multiplicity, (cfg, name, sizes.multiplicity_events)
    for name, family in cfg.families.items():
        if family.resonance is not None:
            yield ("mass", name), _mass, (cfg, name, sizes.mass_events)


def _multiplicity(cfg: SimulateConfig, channel: str, events: int) -> Multiplicity:
    from jetfoundry.sim.validation import samples

    family = samples.two_prong(cfg, CHANNELS[channel], gates.AT_Z)
    return gates.charged_multiplicity(samples.events_of(cfg, family, f"multiplicity {channel}", events), channel)


def _mass(cfg: SimulateConfig, name: str, events: int) -> float:
    from jetfoundry.sim.validation import samples

    return gates.mass_of_descendants(samples.events_of(cfg, cfg.families[name], f"mass {name}", events))


def _run(cfg: SimulateConfig, calls: list[Call]) -> dict[Key, Any]:
    """Results by name, in the order of the calls."""
    import ray

    results: dict[Key, Any] = {}
    with ray_session.session(cfg.ray.address, cfg.ray.num_cpus or cfg.workers, cfg.ray.object_store_gb):
        remote = ray.remote(num_cpus=1)(_call)
        running = {remote.remote(function, arguments): key for key, function, arguments in calls}
        try:
            for _ in tqdm(range(len(calls)), unit="sample", desc="check"):
                (ready,), _ = ray.wait(list(running), num_returns=1)
                try:
                    results[running[ready]] = ray.get(ready)
                except ray.exceptions.RayTaskError as error:
                    ray_session.raise_own(error)
                    raise
                del running[ready]
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
    return {key: results[key] for key, _, _ in calls}


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(*arguments)


def _aucs(table: pa.Table, signal: int, seed: int) -> dict[str, Auc]:
    """AUC of the first `signal` jets against the rest, by the features used."""
    is_signal = np.arange(len(table)) < signal
    plain, displaced = features(table)
    weights = kinematic_weights(table, is_signal)
    inputs = {
        "all features": np.concatenate([plain, displaced], axis=1),
        "without displacement": plain,
        "displacement only": displaced,
    }
    return {name: auc(columns, is_signal, weights, seed) for name, columns in inputs.items()}


def _replayed(real: pa.Table, copies: list[pa.Table | None], seed: int, sizes: Sizes) -> Replay:
    counts = [0 if table is None else len(table) for table in copies]
    table = pa.concat_tables([table for table in copies if table is not None]).combine_chunks()
    simulated = Sample.of(table, np.repeat(np.arange(len(real)), counts))
    original = Sample.of(real, np.arange(len(real)))
    comparisons = compare(original, simulated, sizes.pseudo_experiments, seed)
    return Replay(original, simulated, comparisons, counts.count(0))
