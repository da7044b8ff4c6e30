"""ROOT and Parquet -> shards: the streaming pipeline.

1. `expand` and `take_inventory`: the files, each opened once; unusable ones are set aside with a reason.
2. `make_plan`: entry ranges -> units, written to plan.json. A later run with the same inputs and settings takes that
   plan and does only the missing units; with others it is refused.
3. Ray Data maps units to tasks (`convert_unit`): read, check, mix, write, commit. Some 256 MB of jets are in a task's
   memory, none pass through Ray's object store; a killed job leaves whole units and nothing else that counts.
4. manifest.json gathers the sidecars of all units.

Exactly once: the plan deals every entry to one unit, a unit counts from the rename of its sidecar on, and the manifest
is made of the sidecars of all units. One run at a time writes into a folder (`_alone`): a second is refused, and a run
after a killed one waits for the tasks that this one left behind, which end with their Ray after a second or so.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jetfoundry import config, files, ray_session, remote, runs
from jetfoundry.data import conversion, shards
from jetfoundry.data.delphes_jets import LEFT_OUT, DelphesConfig
from jetfoundry.data.inventory import InputFile, SetAsideFile, Source, expand, take_inventory
from jetfoundry.data.layouts import JETCLASS2, Layout, load_layout
from jetfoundry.data.plan import Plan, ShardConfig, make_plan, matching_plan
from jetfoundry.data.root import jet_schema
from jetfoundry.errors import InputError
from jetfoundry.features.transform import load_data_config
from jetfoundry.labels import FAMILIES

__all__ = [
    "IngestConfig", "IngestReport", "file_key", "ingest", "missing_units", "refuse_mixture", "write_manifest",
]  # fmt: skip

# `shards.*` and `delphes.*` may not; `input` and `schema` only by name: the plan knows the files and the columns.
_MAY_CHANGE = (
    "features", "input", "output", "tree", "schema", "patience", "sample", "verify", "memory_gb",
    "ray.address", "ray.num_cpus", "ray.object_store_gb",
)  # fmt: skip

_LOCK = ".lock"  # the run that writes into the folder holds it


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """What to read and where to put the shards."""

    features: str = config.option("", "data YAML that training will use, only checked here; '' = none")
    input: tuple[str, ...] = config.option(
        (), "ROOT or Parquet files: paths, patterns, folders, URLs; each with its `group:` if it has one"
    )
    output: str = config.option("data/shards", "shard folder")
    tree: str = config.option("", "name of the TTree or RNTuple; '' = the only one, or tree, or Events")
    schema: str = config.option(
        "", "schema YAML of other ntuples, e.g. datasets/schemas/jetclass.yaml; '' = JetClass-II"
    )
    patience: float = config.option(remote.PATIENCE, "for how long a server that does not answer is asked again [s]")
    sample: str = config.option("", "what the jets are, shown on plots; '' = what the files say (string `sample`)")
    delphes: DelphesConfig | None = config.option(
        None, "set if the inputs are Delphes events; all its keys are in datasets/jetclass2_delphes.yaml"
    )
    verify: str = config.option("", "shard folder to compare with its manifest; nothing is ingested then")
    memory_gb: float = config.option(0.0, "memory that all tasks together may take [GB], 0 = what Ray finds free")
    shards: ShardConfig = dataclasses.field(default_factory=ShardConfig)
    ray: ray_session.RayConfig = dataclasses.field(default_factory=ray_session.RayConfig)

    def __post_init__(self) -> None:
        if self.memory_gb < 0:
            msg = f"memory_gb {self.memory_gb} must not be negative"
            raise ValueError(msg)
        if self.delphes and self.schema:
            msg = f"schema {self.schema}: Delphes events give the columns of JetClass-II, leave one of the two out"
            raise ValueError(msg)


def file_key(arguments: Sequence[str]) -> str | None:
    """What the file on the command line is: None for a configuration of this job, else `features`, a data YAML.

    They share no key, so one of IngestConfig tells. What cannot be read is left to those who report it.
    """
    path = next((argument for argument in arguments if "=" not in argument), "")
    if not (path.endswith((".yaml", ".yml")) and files.exists(path)):
        return "features"
    tree = config.load_yaml(path)
    ours = {field.name for field in dataclasses.fields(IngestConfig)}
    return None if isinstance(tree, dict) and ours & tree.keys() else "features"


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestReport:
    """What came out: jets per split, the name of the content, and all that was set aside."""

    folder: Path
    jets: dict[str, int]
    manifest_hash: str
    set_aside_files: tuple[SetAsideFile, ...]
    set_aside_ranges: tuple[str, ...]  # one message per range that could not be decoded
    set_aside_entries: int  # in these ranges
    set_aside_jets: dict[str, int]  # by reason, see check.py and delphes_jets.py
    left_out: dict[str, int]  # Delphes events and jets that give no row by the rules, by reason
    families: dict[str, int]  # jets of Res2P, Res34P and QCD
    class_counts: dict[str, dict[str, int]]  # of each split, classes with jets only
    shards: int
    bytes: int  # of all shards
    new_jets: int  # written by this run; the others were there already
    seconds: float  # of this run, Ray's start included
    cpu_seconds: float  # of all units

    @property
    def complete(self) -> bool:
        """Whether every jet of every input is in a shard; what the rules leave out of Delphes events does not count."""
        return not (self.set_aside_files or self.set_aside_ranges or self.set_aside_jets)

    @property
    def rates(self) -> dict[str, float]:
        """Jets/s of this run, jets per CPU-second of all units, bytes per jet."""
        jets = sum(self.jets.values())
        return {
            "jets_per_second": self.new_jets / self.seconds,
            "jets_per_cpu_second": jets / max(self.cpu_seconds, 1e-9),
            "bytes_per_jet": self.bytes / jets,
        }


def ingest(settings: IngestConfig) -> IngestReport:
    """Convert the inputs to shards, or go on with it; returns when the manifest is written.

    Raises InputError if no jet can be used, the folder holds another ingest or one that is running, or a shard cannot
    be written.
    """
    started = time.perf_counter()
    folder = files.place(settings.output)
    layout = load_layout(settings.schema)
    known = frozenset(jet_schema(layout=layout).names)
    if settings.features:
        load_data_config(settings.features, known=known)  # a misspelt branch shows now, not in training
    paths, stored = expand(settings.input, settings.patience), folder / "plan.json"
    same = (settings.shards, settings.tree, settings.delphes, layout, settings.patience)
    new_jets = 0
    with _alone(folder):
        plan = matching_plan(stored, paths, *same) if stored.exists() else None
        _sweep(folder)
        if plan is None or missing_units(plan, folder):
            try:
                with ray_session.session(**dataclasses.asdict(settings.ray)):
                    plan = plan or _new_plan(settings, paths, layout)
                    with shards.writing("configuration", folder):
                        runs.open_run(folder, settings, may_change=_MAY_CHANGE)
                    how = {"memory_gb": settings.memory_gb, "patience": settings.patience}
                    new_jets = conversion.convert_units(plan, folder, missing_units(plan, folder), **how)
            finally:
                _sweep(folder)
        manifest = write_manifest(plan, folder, settings.sample)
        report = _report(folder, plan, manifest, new_jets, time.perf_counter() - started)
        figures = config.to_dict(report) | report.rates
        figures.pop("folder")
        if new_jets or not (folder / "summary.json").exists():  # else the figures of the run that did it stay
            with shards.writing("summary", folder):
                runs.write_summary(folder, **figures)
    return report


def _report(folder: Path, plan: Plan, manifest: dict[str, Any], new_jets: int, seconds: float) -> IngestReport:
    counts = {split: part["class_counts"] for split, part in manifest["splits"].items()}
    total = [sum(column) for column in zip(*counts.values(), strict=True)]
    records = [record for part in manifest["splits"].values() for record in part["shards"]]
    return IngestReport(
        folder=folder,
        jets={split: part["rows"] for split, part in manifest["splits"].items()},
        manifest_hash=manifest["hash"],
        set_aside_files=plan.inventory.set_aside,
        set_aside_ranges=tuple(manifest["set_aside"]["ranges"]),
        set_aside_entries=manifest["set_aside"]["entries"],
        set_aside_jets=manifest["set_aside"]["jets"],
        left_out=manifest["set_aside"]["left_out"],
        families=_families(plan.layout, total),
        class_counts={
            split: {name: count for name, count in zip(plan.layout.classes, column, strict=True) if count}
            for split, column in counts.items()
        },
        shards=len(records),
        bytes=sum(record["bytes"] for record in records),
        new_jets=new_jets,
        seconds=seconds,
        cpu_seconds=manifest["cpu_seconds"],
    )


def _families(layout: Layout, counts: Sequence[int]) -> dict[str, int]:
    """Jets of Res2P, Res34P and QCD; classes of another layout have no families."""
    families = FAMILIES if layout == JETCLASS2 else {}
    return {name: sum(counts[index] for index in members) for name, members in families.items()}


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other runs out of the folder, and wait for tasks that a killed run left behind; not behind a URL, where
    there are no locks (docs/operations.md)."""
    with contextlib.ExitStack() as stack:
        with shards.writing("shard folder", folder):
            files.make_folder(folder)
            alone = stack.enter_context(files.locked(folder / _LOCK))
        if not alone:
            msg = f"{folder}: another ingest is writing into it; wait for its end, or choose another folder"
            raise InputError(msg)
        with files.locked(folder / conversion.TASKS, wait=conversion.LEFT_BEHIND) as ended:
            if not ended:
                msg = f"{folder}: tasks of an ingest that was killed are still writing into it; end their Ray first"
                raise InputError(msg)
        try:
            yield
        finally:
            if not files.is_remote(folder):
                _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    """Leave no folder behind when it came to nothing."""
    if all(item.name in (_LOCK, conversion.TASKS) for item in folder.iterdir()):
        for item in folder.iterdir():
            item.unlink()
        folder.rmdir()


def _sweep(folder: Path) -> None:
    """Remove unfinished files of tasks that were killed; nothing that is not ours."""
    for part in (folder, folder / "units", *(folder / split for split in shards.SPLITS)):
        for stale in part.glob("*.tmp.*"):
            if stale.suffix[1:].isdigit():  # files.committed ends the name with the process id
                stale.unlink(missing_ok=True)


def _new_plan(settings: IngestConfig, paths: list[InputFile], layout: Layout) -> Plan:
    inventory = take_inventory(
        paths,
        tree=settings.tree,
        round_doubles=settings.shards.round_doubles,
        delphes=settings.delphes,
        layout=layout,
        patience=settings.patience,
    )
    if not inventory.sources:
        more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
        msg = f"none of the inputs can be used: {inventory.set_aside[0].reason}{more}"
        raise InputError(msg)
    if not settings.sample:
        refuse_mixture(inventory.sources)
    plan = make_plan(inventory, settings.shards, settings.delphes, layout)
    path = files.place(settings.output) / "plan.json"
    with shards.writing("plan", path):
        files.write_json(path, plan.to_dict())
    return plan


def refuse_mixture(sources: Sequence[Source]) -> None:
    """Jets of one data set are made in one way; a network would learn the difference between their classes."""
    example = {source.sample: source.path for source in reversed(sources)}
    if len(example) > 1:
        kinds = "; ".join(f"{text or 'nothing'!r} in {path}" for text, path in sorted(example.items()))
        msg = f"the inputs say that they were made in different ways: {kinds}. A network would learn to tell them "
        msg += "apart; ingest them into folders of their own, or say what the mixture is with sample='…'"
        raise InputError(msg)


def missing_units(plan: Plan, folder: Path) -> list[int]:
    """Units without a sidecar, or whose shards are not there in full length."""
    committed = files.for_each(functools.partial(_is_committed, folder), range(len(plan.units)), folder)
    return [unit for unit, there in enumerate(committed) if not there]


def _is_committed(folder: Path, unit: int) -> bool:
    sidecar = shards.sidecar_path(folder, unit)
    if not sidecar.exists():
        return False
    written = [(folder / shard["path"], shard["bytes"]) for shard in files.read_json(sidecar)["shards"]]
    return all(path.exists() and path.stat().st_size == size for path, size in written)


def _sample_of(folder: Path) -> str:
    """What an earlier run called the jets."""
    path = folder / "manifest.json"
    return str(files.read_json(path).get("sample", "")) if path.exists() else ""


def write_manifest(plan: Plan, folder: Path, sample: str) -> dict[str, Any]:
    """Gather the sidecars into manifest.json; InputError if not a single jet is left."""
    paths = [shards.sidecar_path(folder, unit) for unit in range(len(plan.units))]
    sidecars = files.for_each(files.read_json, paths, folder)
    reasons: collections.Counter[str] = collections.Counter()
    left_out: collections.Counter[str] = collections.Counter()
    for sidecar in sidecars:
        reasons.update(sidecar["set_aside"]["jets"])
        left_out.update(sidecar["set_aside"].get("left_out", {}))  # not there in folders begun by an older version
    ranges = [message for sidecar in sidecars for message in sidecar["set_aside"]["ranges"]]
    digests = [shards.digest(shard) for sidecar in sidecars for shard in sidecar["shards"]]
    if not digests:
        why = ", ".join(ranges[:1] + [f"{count} jets {reason}" for reason, count in reasons.items()])
        why = ", ".join([why] * bool(why) + [f"{count} {LEFT_OUT[reason]}" for reason, count in left_out.items()])
        what = "events" if plan.delphes else "jets"
        msg = f"none of the {plan.entries} {what} can be used: {why}; details in {folder / 'units'}"
        raise InputError(msg)
    manifest = {
        "format": shards.FORMAT,
        "hash": shards.content_hash(digests),
        "plan": plan.hash,
        "sample": sample or _sample_of(folder) or plan.inventory.sources[0].sample,
        "schema": plan.layout.name,
        "columns": jet_schema(layout=plan.layout).names,
        "classes": list(plan.layout.classes),
        "row_group": plan.row_group,
        "splits": {split: shards.gather(split, sidecars) for split in shards.SPLITS},
        "histogram_edges": {"jet_pt": shards.PT_EDGES, "jet_sdmass": shards.MASS_EDGES},
        "inputs": [
            {key: getattr(source, key) for key in ("path", "group", "kind", "tree", "entries")}
            for source in plan.inventory.sources
        ],
        "set_aside": {
            "files": [dataclasses.asdict(file) for file in plan.inventory.set_aside],
            "entries": sum(sidecar["set_aside"]["entries"] for sidecar in sidecars),
            "ranges": ranges,
            "jets": dict(sorted(reasons.items())),
            "left_out": dict(sorted(left_out.items())),
        },
        "cpu_seconds": sum(sidecar["cpu_seconds"] for sidecar in sidecars),
        "shards": config.to_dict(plan.config),
        "provenance": runs.provenance(),
    }
    with shards.writing("manifest", folder / "manifest.json"):
        files.write_json(folder / "manifest.json", manifest)
    return manifest
