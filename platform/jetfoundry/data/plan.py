"""The plan of an ingest: which entry ranges of which files make which unit. A pure function of inputs and settings.

A unit is what one task reads, mixes in memory and writes; which entries it gets, and how even that is, says dealing.py.
Within a unit the jets are shuffled completely, so each of its shards is a draw without replacement from it. If the
classes of a file are mixed, or each class has a name of its own with enough entries for every unit, a shard is a draw
from the whole input that is at least as even as a random one; else dealing.py says how far it is from that.

train/val/test is a property of the jet, not of the plan: a hash of (file name without folder and suffix, entry).
It stays when the seed, the order or the file format changes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry import config, files, remote
from jetfoundry.data.dealing import Range, deal
from jetfoundry.data.delphes_jets import DelphesConfig
from jetfoundry.data.inventory import InputFile, Inventory, SetAsideFile, Source, stamp
from jetfoundry.data.layouts import JETCLASS2, Layout
from jetfoundry.data.parquet_writer import CODECS
from jetfoundry.errors import InputError, nearest

__all__ = ["Plan", "Range", "ShardConfig", "make_plan", "matching_plan", "split_of"]

_ROW_GROUPS, _ROW_GROUP = 64, (1000, 4000)  # wanted, and their jets at least and at most
_TASK_BYTES = 256 * 2**20  # of jets in memory; two such tasks, Python and all, stay below 1.5 GB


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """What decides the content of the shards. A change of any of these needs a new output folder."""

    jets_per_shard: int = config.option(10_000, "jets of one shard file, about")
    jets_per_task: int = config.option(0, "jets one task holds in memory and mixes; 0 = as many as take 256 MB")
    row_group: int = config.option(
        0, "jets of a row group, the unit of reading; 0 = 1,000 to 4,000, by the data's size"
    )
    compression: str = config.option("lz4", "of the shards: lz4 (fast) or zstd (a sixth smaller)")
    chunk: int = config.option(0, "entries taken from one place of a file; 0 = as fair mixing needs")
    val: float = config.option(0.1, "fraction of jets for validation")
    test: float = config.option(0.1, "fraction of jets for the final test")
    seed: int = config.option(0, "seed of the order of jets; train/val/test do not depend on it")
    round_doubles: bool = config.option(False, "round float64 branches to float32 instead of refusing them")

    def __post_init__(self) -> None:
        if self.jets_per_shard < 1 or min(self.row_group, self.jets_per_task, self.chunk, self.seed) < 0:
            msg = "jets_per_shard must be at least 1, row_group, jets_per_task, chunk and seed not negative"
            raise ValueError(msg)
        if self.compression not in CODECS:
            msg = f"compression {self.compression!r}; {nearest(self.compression, CODECS)}"
            raise ValueError(msg)
        if self.val < 0 or self.test < 0 or self.val + self.test >= 1:
            msg = f"val {self.val} and test {self.test} must not be negative and leave something for train"
            raise ValueError(msg)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Inputs, settings and units; `hash` names all of it. With `delphes` the entries are Delphes events, else jets."""

    config: ShardConfig
    inventory: Inventory
    units: tuple[tuple[Range, ...], ...]
    delphes: DelphesConfig | None = None
    layout: Layout = JETCLASS2

    @property
    def entries(self) -> int:
        return sum(source.entries for source in self.inventory.sources)

    @property
    def row_group(self) -> int:
        """Jets of a row group, about: the larger, the faster to read, but many workers want many of them."""
        fitting = self.entries // _ROW_GROUPS // 500 * 500
        return self.config.row_group or min(max(fitting, _ROW_GROUP[0]), _ROW_GROUP[1])

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
            **({"schema": self.layout.to_dict()} if self.layout != JETCLASS2 else {}),
        }

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> Plan:
        if tree.get("format") != 1:
            msg = f"a plan of format {tree.get('format')}, this version reads 1; ingest into another folder"
            raise InputError(msg)
        sources = [Source(**{**fields, "clusters": tuple(fields["clusters"])}) for fields in tree["inputs"]]
        ranges = [[text.replace(":", "-").split("-") for text in unit.split()] for unit in tree["units"]]
        return cls(
            ShardConfig(**tree["shards"]),
            Inventory(tuple(sources), tuple(SetAsideFile(**fields) for fields in tree["set_aside"])),
            tuple(tuple(Range(*map(int, numbers)) for numbers in unit) for unit in ranges),
            config.build(DelphesConfig, tree["delphes"]) if "delphes" in tree else None,
            Layout.from_dict(tree["schema"]) if "schema" in tree else JETCLASS2,
        )


def make_plan(
    inventory: Inventory, settings: ShardConfig, delphes: DelphesConfig | None = None, layout: Layout = JETCLASS2
) -> Plan:
    """Deal the entry ranges of all files to units by the rule of dealing.py."""
    total = sum(source.entries for source in inventory.sources)
    size = sum(source.entries * source.bytes_per_jet for source in inventory.sources)
    wanted = total / settings.jets_per_task if settings.jets_per_task else size / _TASK_BYTES
    count = max(1, math.ceil(wanted))
    units = deal(inventory.sources, count, per_unit=-(-total // count), chunk=settings.chunk, seed=settings.seed)
    return Plan(settings, inventory, tuple(units), delphes, layout)


def matching_plan(
    path: Path,
    inputs: Sequence[InputFile],
    settings: ShardConfig,
    tree: str = "",
    delphes: DelphesConfig | None = None,
    layout: Layout = JETCLASS2,
    patience: float = remote.PATIENCE,
) -> Plan:
    """Read the plan of an earlier run; InputError naming the difference if inputs or settings are not the same."""
    plan = Plan.from_dict(files.read_json(path))
    folder = path.parent
    old, new = _options(plan.config, plan.delphes), _options(settings, delphes)
    changes = [f"{key} was {old.get(key)}, now {new.get(key)}" for key in old | new if old.get(key) != new.get(key)]
    if plan.layout != layout:
        same = " (of other content)" if plan.layout.name == layout.name else ""
        changes.append(f"schema was {plan.layout.name}, now {layout.name}{same}")
    recorded: list[Source | SetAsideFile] = [*plan.inventory.sources, *plan.inventory.set_aside]
    known = {file.path: file for file in recorded}
    trees = {source.tree for source in plan.inventory.sources if source.tree}
    changes += [f"tree was {name}, now {tree}" for name in sorted(trees) if tree not in ("", name)]
    now = {file.path: file for file in inputs}
    changes += [f"{name} is new" for name in now if name not in known]
    changes += [f"{name} is not among the inputs any more" for name in known if name not in now]
    for name in known.keys() & now.keys():
        if known[name].group != now[name].group:
            changes.append(f"{name} was in group {known[name].group!r}, now in {now[name].group!r}")
        size, mtime_ns = stamp(name, patience)
        if size != known[name].size:
            changes.append(f"{name} had {known[name].size} bytes, now {size}")
        elif mtime_ns != known[name].mtime_ns:
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
