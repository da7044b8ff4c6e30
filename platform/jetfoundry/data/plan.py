"""The plan of an ingest: which entry ranges of which files make which unit. A pure function of inputs and settings.

A unit is what one task reads, mixes in memory and writes. The rule that gives each unit a fair share of each file:
1. A file of n entries is cut into ranges at its cluster boundaries (`cut`). The aim is one cluster, or n / units
   entries if that is less, so that every unit gets something of the file; but not less than a quarter of a
   cluster, since each of its ranges decodes the whole of it.
2. The ranges of a file are ordered by the fractional part of j * golden ratio (j = 0, 1, … along the file), so any
   run of neighbours in that order is spread evenly over the file, also if its entries are sorted by class.
3. The k-th range in that order of a file with m ranges stands at (k + u) / m in [0, 1), u in [0, 1) fixed per file,
   itself spread evenly over the files.
4. The ranges standing in [i / units, (i + 1) / units) are unit i.
Bound: of a file with m ranges every unit holds m / units, to less than one range. Units differ in size by a few per
cent for many files or ranges.

train/val/test is a property of the jet, not of the plan: a hash of (file name without folder and suffix, entry).
It stays when the seed, the order or the file format changes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry import config, files
from jetfoundry.data.delphes_jets import DelphesConfig
from jetfoundry.data.inventory import Inventory, SetAsideFile, Source, stamp
from jetfoundry.errors import InputError

__all__ = ["Plan", "Range", "ShardConfig", "cut", "make_plan", "matching_plan", "split_of"]

_GOLDEN = (math.sqrt(5) - 1) / 2
_DECODINGS = 4  # times a cluster may be decoded so that more units get a share of it
_MIN_RANGE = 100  # entries; below, opening the file costs more than reading it
_MIN_CLUSTER = 1000  # entries; smaller clusters are read several at a time
_RANGES_PER_UNIT = 8  # at least, so that a unit mixes several places and reading takes little memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """What decides the content of the shards. A change of any of these needs a new output folder."""

    jets_per_shard: int = config.option(10_000, "jets of one shard file, about")
    jets_per_task: int = config.option(64_000, "jets one task holds in memory and mixes, at 10-15 kB each")
    row_group: int = config.option(1000, "jets of one Parquet row group, the unit of reading in training")
    chunk: int = config.option(0, "entries taken from one place of a file; 0 = as fair mixing needs")
    val: float = config.option(0.1, "fraction of jets for validation")
    test: float = config.option(0.1, "fraction of jets for the final test")
    seed: int = config.option(0, "seed of the order of jets; train/val/test do not depend on it")
    round_doubles: bool = config.option(False, "round float64 branches to float32 instead of refusing them")

    def __post_init__(self) -> None:
        if min(self.jets_per_shard, self.jets_per_task, self.row_group) < 1 or self.chunk < 0 or self.seed < 0:
            msg = "jets_per_shard, jets_per_task and row_group must be at least 1, chunk and seed not negative"
            raise ValueError(msg)
        if self.val < 0 or self.test < 0 or self.val + self.test >= 1:
            msg = f"val {self.val} and test {self.test} must not be negative and leave something for train"
            raise ValueError(msg)


@dataclasses.dataclass(frozen=True)
class Range:
    """Entries `start <= entry < stop` of file number `file`."""

    file: int
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.file}:{self.start}-{self.stop}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Inputs, settings and units; `hash` names all of it. With `delphes` the entries are Delphes events, else jets."""

    config: ShardConfig
    inventory: Inventory
    units: tuple[tuple[Range, ...], ...]
    delphes: DelphesConfig | None = None

    @property
    def entries(self) -> int:
        return sum(source.entries for source in self.inventory.sources)

    @property
    def hash(self) -> str:
        return config.fingerprint(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """For plan.json; the ranges of a unit are one line `file:start-stop …`."""
        return {
            "format": 1,
            "shards": config.to_dict(self.config),
            "inputs": [dataclasses.asdict(source) for source in self.inventory.sources],
            "set_aside": [dataclasses.asdict(file) for file in self.inventory.set_aside],
            "units": [" ".join(map(str, unit)) for unit in self.units],
            **({"delphes": config.to_dict(self.delphes)} if self.delphes else {}),
        }

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> Plan:
        sources = [Source(**{**fields, "clusters": tuple(fields["clusters"])}) for fields in tree["inputs"]]
        ranges = [[text.replace(":", "-").split("-") for text in unit.split()] for unit in tree["units"]]
        return cls(
            ShardConfig(**tree["shards"]),
            Inventory(tuple(sources), tuple(SetAsideFile(**fields) for fields in tree["set_aside"])),
            tuple(tuple(Range(*map(int, numbers)) for numbers in unit) for unit in ranges),
            config.build(DelphesConfig, tree["delphes"]) if "delphes" in tree else None,
        )


def cut(clusters: Sequence[int], aim: int) -> list[tuple[int, int]]:
    """Cut a file into ranges of about `aim` entries (at most 2.5 times as many), at cluster boundaries if possible.

    A cluster much longer than `aim` is divided evenly.

    >>> cut([0, 10, 20, 30], 20), cut([0, 10], 4)
    ([(0, 20), (20, 30)], [(0, 5), (5, 10)])
    """
    edges = np.asarray(clusters, np.int64)
    parts = np.maximum(np.rint(np.diff(edges) / aim), 1).astype(np.int64)
    within = np.concatenate([np.arange(p) / p for p in parts]) if parts.size else np.empty(0)
    fine = np.repeat(edges[:-1], parts) + (within * np.repeat(np.diff(edges), parts)).astype(np.int64)
    _, first = np.unique(fine // aim, return_index=True)
    bounds = [*fine[first].tolist(), int(edges[-1])]
    return list(itertools.pairwise(bounds))


def make_plan(inventory: Inventory, settings: ShardConfig, delphes: DelphesConfig | None = None) -> Plan:
    """Deal the entry ranges of all files to units by the rule in this file's head."""
    total = sum(source.entries for source in inventory.sources)
    count = max(1, -(-total // settings.jets_per_task))
    shift = float(np.random.default_rng(settings.seed).random())
    ranges: list[Range] = []
    places: list[npt.NDArray[np.float64]] = []
    for index, source in enumerate(inventory.sources):
        pieces = cut(source.clusters, settings.chunk or _chunk(source, count, settings.jets_per_task))
        order = np.argsort((np.arange(len(pieces)) * _GOLDEN) % 1.0, kind="stable")
        ranges += [Range(index, *pieces[k]) for k in order]
        places.append((np.arange(len(pieces)) + (shift + index * _GOLDEN) % 1.0) / len(pieces))
    dealt: list[list[Range]] = [[] for _ in range(count)]
    for part, place in zip(ranges, np.concatenate(places).tolist(), strict=True):
        dealt[int(place * count)].append(part)
    units = (tuple(sorted(part, key=lambda r: (r.file, r.start))) for part in dealt if part)
    return Plan(settings, inventory, tuple(units), delphes)


def _chunk(source: Source, units: int, jets_per_task: int) -> int:
    cluster = source.entries / (len(source.clusters) - 1)
    aim = max(min(max(cluster, _MIN_CLUSTER), source.entries / units), cluster / _DECODINGS)
    return math.ceil(max(min(aim, jets_per_task / _RANGES_PER_UNIT), _MIN_RANGE))


def matching_plan(
    path: Path, paths: Sequence[Path], settings: ShardConfig, tree: str = "", delphes: DelphesConfig | None = None
) -> Plan:
    """Read the plan of an earlier run; InputError naming the difference if inputs or settings are not the same."""
    plan = Plan.from_dict(files.read_json(path))
    folder = path.parent
    old, new = _options(plan.config, plan.delphes), _options(settings, delphes)
    changes = [f"{key} was {old.get(key)}, now {new.get(key)}" for key in old | new if old.get(key) != new.get(key)]
    recorded: list[Source | SetAsideFile] = [*plan.inventory.sources, *plan.inventory.set_aside]
    known = {file.path: (file.size, file.mtime_ns) for file in recorded}
    trees = {source.tree for source in plan.inventory.sources if source.tree}
    changes += [f"tree was {name}, now {tree}" for name in sorted(trees) if tree not in ("", name)]
    now = {str(path): path for path in paths}
    changes += [f"{name} is new" for name in now if name not in known]
    changes += [f"{name} is not among the inputs any more" for name in known if name not in now]
    for name in known.keys() & now.keys():
        size, mtime_ns = stamp(now[name])
        if size != known[name][0]:
            changes.append(f"{name} had {known[name][0]} bytes, now {size}")
        elif mtime_ns != known[name][1]:
            changes.append(f"{name} was modified since")
    if changes:
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        msg = f"{folder} holds shards of another ingest: {'; '.join(sorted(changes)[:3])}{more}; choose another folder"
        raise InputError(msg)
    return plan


def _options(settings: ShardConfig, delphes: DelphesConfig | None) -> dict[str, Any]:
    options = config.to_dict(delphes) if delphes else {}
    return {**config.to_dict(settings), **{f"delphes.{key}": value for key, value in options.items()}}


def split_of(path: str, entries: npt.NDArray[np.int64], val: float, test: float) -> npt.NDArray[np.int8]:
    """Index into `shards.SPLITS` (B,) of the jets at `entries` (B,) of the file `path`, from hash(file stem, entry)."""
    stem = int.from_bytes(hashlib.sha256(Path(path).stem.encode()).digest()[:8], "little")
    uniform = (_splitmix64(entries.astype(np.uint64) + np.uint64(stem)) >> np.uint64(11)) * 2.0**-53
    return np.select([uniform < val, uniform < val + test], [1, 2], 0).astype(np.int8)


def _splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), for arrays; wraps modulo 2^64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
