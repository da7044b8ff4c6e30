"""Make a simulated sample on Ray: shards of exactly `jets_per_shard` jets, restartable, the same for any cluster.

A shard is the unit of work, of randomness and of commit. Its content depends on the configuration, the run seed, its
family and its number only, so it does not matter how many actors work or which of them makes it. Files that exist
are kept; a folder of another configuration, mode or seed is refused. Every actor holds one shard at a time and gets
the next when it is done, so at most one shard a worker is lost when the run is stopped. The shard of an actor that dies
(killed, out of memory, its node gone) is made again by a new one.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.metadata
import importlib.util
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jetfoundry import config, files, ray_session, runs
from jetfoundry.errors import ConfigError, InputError, JetFoundryError
from jetfoundry.labels import CLASSES, FAMILIES, UNSEEN
from jetfoundry.sim.balance import class_probabilities
from jetfoundry.sim.channels import decay_chains
from jetfoundry.sim.detector import DetectorCard
from jetfoundry.sim.settings import SimulateConfig, plan
from jetfoundry.sim.store import read_metadata, write_shard

__all__ = ["check_extra", "checked", "shard_path", "simulate"]

# Keys that change how a sample is made or how large it is, but not what a file holds.
_FREE = (
    "output",
    "jets",
    "workers",
    "card",
    "check",
    "reference",
    "ray.address",
    "ray.num_cpus",
    "ray.object_store_gb",
)
_CLASSES = (*CLASSES, *UNSEEN)  # by `jet_label`
_DEATHS = 3  # workers lost over one file before the run gives up
_VERSIONS = ("jetfoundry", "pythia8mc", "fastjet", "numpy", "awkward", "uproot")

log = logging.getLogger(__name__)


def check_extra() -> None:
    """Say how to install Pythia 8 and FastJet where they are missing."""
    missing = [name for name in ("pythia8mc", "fastjet") if importlib.util.find_spec(name) is None]
    if missing:
        msg = f"simulating jets needs {' and '.join(missing)}; install with: pip install 'jetfoundry[sim]'"
        raise ConfigError(msg)


def shard_path(folder: str | Path, family: str, shard: int) -> Path:
    """File of one shard, e.g. Res2P_neutral_0003.root."""
    return files.place(folder) / f"{family}_{shard:04d}.root"


def simulate(cfg: SimulateConfig) -> dict[str, Any]:
    """Make the missing files of the sample `cfg`, write `config.yaml` and `summary.json`, return the summary.

    Raises ConfigError if Pythia or FastJet are missing or a setting is wrong, CheckpointError if the folder holds a
    sample with other settings, InputError if a file in it is damaged.
    """
    cfg, may_change = checked(cfg)
    folder = runs.open_run(cfg.output, cfg, may_change)
    identity = config.fingerprint(cfg, ignore=may_change)
    _remove_unfinished(folder)
    shards = plan(cfg)
    planned = {shard_path(folder, *shard).name: shard for shard in shards}
    present = {path.name for path in folder.glob("*.root")}
    kept = [shard for name, shard in planned.items() if name in present]
    found = files.for_each(lambda shard: _checked(folder, shard, identity), kept, folder)
    done = dict(zip(kept, found, strict=True))
    missing = [shard for shard in shards if shard not in done]
    surplus = sorted(present - planned.keys())
    if surplus:
        msg = f"{folder}: holds {surplus[0]} and {len(surplus) - 1} more files that are not part of {cfg.jets} jets of "
        msg += "these families, and an ingest would read them; choose another folder"
        raise InputError(msg)
    deaths: collections.Counter[tuple[str, int]] = collections.Counter()
    started = time.perf_counter()
    with tqdm(total=cfg.jets, initial=len(done) * cfg.jets_per_shard, unit="jet", desc="simulate") as bar:
        classes = _reachable(cfg)
        bar.set_postfix_str(_filled(classes, done.values()))
        try:
            for shard, metadata in _make(cfg, identity, missing, deaths):
                done[shard] = metadata
                bar.set_postfix_str(_filled(classes, done.values()), refresh=False)
                bar.update(metadata["jets"])
        finally:
            _remove_unfinished(folder)
    figures = _figures(cfg, [done[shard] for shard in shards])
    figures["this_run"] = {
        "files_made": len(missing),
        "files_kept": len(shards) - len(missing),
        "workers_died": deaths.total(),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "jets_per_second": round(len(missing) * cfg.jets_per_shard / (time.perf_counter() - started), 1),
    }
    runs.write_summary(folder, **figures)
    return figures


def checked(cfg: SimulateConfig) -> tuple[SimulateConfig, tuple[str, ...]]:
    """The configuration with all that it names in it, and the keys that may differ when a sample is continued.

    Raises ConfigError if it cannot be made, CheckpointError if the folder holds a sample with other settings.
    """
    check_extra()
    cfg = _resolved(cfg)
    may_change = (*_FREE, *(f"families.{name}.weight" for name in cfg.families))
    for name, family in cfg.families.items():  # a channel that cannot be shows now, not in an actor
        if family.resonance and not class_probabilities(decay_chains(family.resonance, name)).any():
            msg = f"families.{name}.resonance.decays: no channel gives a class of JetClass-II"
            raise ConfigError(msg)
    runs.check_run(cfg.output, cfg, may_change)
    return cfg, may_change


def _resolved(cfg: SimulateConfig) -> SimulateConfig:
    """The configuration with the detector card in it and an absolute folder, which actors elsewhere need."""
    card = cfg.detector or config.read(DetectorCard, cfg.card)
    return dataclasses.replace(cfg, detector=card, output=files.place(cfg.output).resolve())


def _remove_unfinished(folder: Path) -> None:
    for leftover in folder.glob("*.root.tmp.*"):  # of a killed writer; no reader looks at them
        leftover.unlink(missing_ok=True)


def _checked(folder: Path, shard: tuple[str, int], identity: str) -> dict[str, Any]:
    path = shard_path(folder, *shard)
    metadata = read_metadata(path)
    if metadata.get("fingerprint") != identity:
        msg = (
            f"{path}: made with other settings (fingerprint {metadata.get('fingerprint')}, now {identity}); "
            f"choose another output folder or delete it"
        )
        raise InputError(msg)
    for package in ("pythia8mc", "fastjet"):
        made, now = metadata["versions"][package], importlib.metadata.version(package)
        if made != now:
            msg = f"{path}: made with {package} {made}, this is {now}; choose another output folder or delete it"
            raise InputError(msg)
    return metadata


def _make(
    cfg: SimulateConfig, identity: str, missing: list[tuple[str, int]], deaths: collections.Counter[tuple[str, int]]
) -> Iterator[tuple[tuple[str, int], dict[str, Any]]]:
    """Make shards on actors, yield each with its metadata as it is committed; count workers that died in `deaths`."""
    if not missing:
        return
    import ray

    with ray_session.session(cfg.ray.address, cfg.ray.num_cpus or cfg.workers, cfg.ray.object_store_gb):
        cpus = ray_session.available_cpus()
        remote = ray.remote(num_cpus=1)(_Worker)
        waiting = collections.deque(missing)
        idle = [remote.remote(cfg, identity) for _ in range(min(cfg.workers or cpus, cpus, len(missing)))]
        running: dict[Any, tuple[Any, tuple[str, int]]] = {}
        try:
            while waiting or running:
                while waiting and idle:
                    actor, shard = idle.pop(), waiting.popleft()
                    running[actor.make.remote(*shard)] = (actor, shard)
                (ready,), _ = ray.wait(list(running), num_returns=1)
                actor, shard = running.pop(ready)
                try:
                    metadata = dict(ray.get(ready))
                except ray.exceptions.RayTaskError as error:
                    ray_session.raise_own(error)
                    raise
                except ray.exceptions.RayActorError as error:
                    deaths[shard] += 1
                    if deaths[shard] == _DEATHS:
                        msg = f"{shard[0]} {shard[1]}: {_DEATHS} workers died while they made this file: {error}"
                        raise JetFoundryError(msg) from error
                    log.warning("the worker of %s %d died; a new one makes the file again", *shard)
                    waiting.appendleft(shard)
                    idle.append(remote.remote(cfg, identity))
                    continue
                idle.append(actor)
                yield shard, metadata
        finally:
            for actor in [*idle, *(actor for actor, _ in running.values())]:
                ray.kill(actor)


class _Worker:
    """Makes one shard after the other. State that could leak from one into the next (Pythia, random numbers) is new
    for each shard.
    """

    def __init__(self, cfg: SimulateConfig, identity: str) -> None:
        self._cfg, self._identity = cfg, identity

    def make(self, family: str, shard: int) -> dict[str, Any]:
        """Make and commit one file; returns its metadata."""
        from jetfoundry.sim.chain import make_shard  # needs the [sim] extra

        cfg = self._cfg
        assert cfg.detector is not None
        made = make_shard(cfg, cfg.detector, family, shard)
        counts = np.bincount(made.table["jet_label"].to_numpy(), minlength=len(_CLASSES))
        metadata = {
            "sample": "simulated",
            "source": "embedded",
            "family": family,
            "shard": shard,
            "jets": len(made.table),
            "events": made.events,
            "mode": cfg.mode,
            "balance": cfg.balance,
            "seed": cfg.seed,
            "pythia_seed": made.pythia_seed,
            "cpu_seconds": round(made.cpu_seconds, 2),
            "event_weights": "dropped",
            "jets_per_class": {_CLASSES[i]: int(counts[i]) for i in np.flatnonzero(counts)},
            "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
            "fingerprint": self._identity,
            "settings": {key: value for key, value in config.to_dict(cfg).items() if key not in _FREE},
        }
        write_shard(shard_path(cfg.output, family, shard), made.table, metadata)
        return metadata


def _jets_per_class(shards: Iterable[dict[str, Any]]) -> collections.Counter[str]:
    counts: collections.Counter[str] = collections.Counter()
    for shard in shards:
        counts.update(shard["jets_per_class"])
    return counts


def _reachable(cfg: SimulateConfig) -> list[str]:
    """Classes that the families of the sample can give."""
    found: set[int] = set()
    for family in cfg.families.values():
        if family.weight > 0 and family.resonance:
            found.update(np.flatnonzero(class_probabilities(decay_chains(family.resonance)).any(axis=0)).tolist())
        elif family.weight > 0:
            found.update(FAMILIES["QCD"])
    return [_CLASSES[index] for index in sorted(found)]


def _filled(classes: Sequence[str], shards: Iterable[dict[str, Any]]) -> str:
    """How `classes` fill, for the progress bar."""
    counts = _jets_per_class(shards)
    fewest = min(classes, key=lambda name: counts[name])
    return f"{sum(counts[name] > 0 for name in classes)} of {len(classes)} classes, fewest {fewest} {counts[fewest]}"


def _figures(cfg: SimulateConfig, shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of the whole sample from the metadata of its files."""
    families: dict[str, dict[str, Any]] = {}
    for shard in shards:
        row = families.setdefault(shard["family"], {"files": 0, "jets": 0, "events": 0, "cpu_seconds": 0.0})
        row["files"] += 1
        for key in ("jets", "events", "cpu_seconds"):
            row[key] += shard[key]
    for row in families.values():
        row["cpu_seconds"] = round(row["cpu_seconds"], 1)
        row["jets_per_cpu_second"] = round(row["jets"] / max(row["cpu_seconds"], 0.01), 1)
    classes = _jets_per_class(shards)
    return {
        "sample": "simulated",
        "source": "embedded",
        "mode": cfg.mode,
        "balance": cfg.balance,
        "seed": cfg.seed,
        "jets": sum(shard["jets"] for shard in shards),
        "families": families,
        "classes": len(classes),
        "jets_per_class": {name: classes[name] for name in _CLASSES if name in classes},
    }
