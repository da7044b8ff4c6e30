"""ROOT and Parquet -> shards: the streaming pipeline.

1. `expand` and `take_inventory`: the files, each opened once; unusable ones are set aside with a reason.
2. `make_plan`: entry ranges -> units, written to plan.json. A later run with the same inputs and settings takes that
   plan and does only the missing units; with others it is refused.
3. Ray Data maps units to tasks (`convert_unit`): read, check, mix, write, commit. Some 64,000 jets are in a task's
   memory, none pass through Ray's object store; a killed job leaves whole units and nothing else that counts.
4. manifest.json gathers the sidecars of all units.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jetfoundry import config, files, ray_session, runs
from jetfoundry.data import shards
from jetfoundry.data.delphes_jets import LEFT_OUT, DelphesConfig
from jetfoundry.data.features import load_data_config
from jetfoundry.data.inventory import SetAsideFile, Source, expand, take_inventory
from jetfoundry.data.plan import Plan, ShardConfig, make_plan, matching_plan
from jetfoundry.data.root import jet_schema
from jetfoundry.data.unit import convert_unit
from jetfoundry.errors import InputError
from jetfoundry.labels import FAMILIES

__all__ = ["IngestConfig", "IngestReport", "file_key", "ingest", "write_manifest"]

# `shards.*` and `delphes.*` may not, `input` only by name: they are compared with the plan, which knows the files.
_MAY_CHANGE = ("features", "input", "output", "tree", "sample", "ray.address", "ray.num_cpus", "ray.object_store_gb")


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """What to read and where to put the shards."""

    features: str = config.option("", "data YAML that training will use, only checked here; '' = none")
    input: tuple[str, ...] = config.option((), "ROOT or Parquet files: paths, patterns, folders")
    output: str = config.option("data/shards", "shard folder")
    tree: str = config.option("", "name of the TTree or RNTuple; '' = the only one, or tree, or Events")
    sample: str = config.option("", "what the jets are, shown on plots; '' = what the files say (string `sample`)")
    delphes: DelphesConfig | None = config.option(
        None, "set if the inputs are Delphes events; all its keys are in datasets/jetclass2_delphes.yaml"
    )
    shards: ShardConfig = dataclasses.field(default_factory=ShardConfig)
    ray: ray_session.RayConfig = dataclasses.field(default_factory=ray_session.RayConfig)


def file_key(arguments: Sequence[str]) -> str | None:
    """What the file on the command line is: None for a configuration of this job, else `features`, a data YAML.

    They share no key, so one of IngestConfig tells. What cannot be read is left to those who report it.
    """
    path = next((argument for argument in arguments if "=" not in argument), "")
    if not (path.endswith((".yaml", ".yml")) and Path(path).exists()):
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
    new_jets: int  # written by this run; the others were there already
    seconds: float  # of this run, Ray's start included
    cpu_seconds: float  # of all units

    @property
    def complete(self) -> bool:
        """Whether every jet of every input is in a shard; what the rules leave out of Delphes events does not count."""
        return not (self.set_aside_files or self.set_aside_ranges or self.set_aside_jets)


def ingest(settings: IngestConfig) -> IngestReport:
    """Convert the inputs to shards, or go on with it; returns when the manifest is written.

    Raises InputError if no jet can be used, the folder holds another ingest, or a shard cannot be written.
    """
    started = time.perf_counter()
    folder = Path(settings.output)
    if settings.features:
        load_data_config(settings.features)  # a misspelt branch shows now, not in training
    paths, stored = expand(settings.input), folder / "plan.json"
    known = (settings.shards, settings.tree, settings.delphes)
    plan = matching_plan(stored, paths, *known) if stored.exists() else None
    new_jets = 0
    _sweep(folder)
    if plan is None or _missing(plan, folder):
        try:
            with ray_session.session(**dataclasses.asdict(settings.ray)):
                plan = plan or _new_plan(settings, paths)
                with shards.writing("configuration", folder):
                    runs.open_run(folder, settings, may_change=_MAY_CHANGE)
                new_jets = _convert(plan, folder, _missing(plan, folder))
        finally:
            _sweep(folder)
    manifest = write_manifest(plan, folder, settings.sample)
    counts = [sum(column) for column in zip(*(s["class_counts"] for s in manifest["splits"].values()), strict=True)]
    report = IngestReport(
        folder=folder,
        jets={split: part["rows"] for split, part in manifest["splits"].items()},
        manifest_hash=manifest["hash"],
        set_aside_files=plan.inventory.set_aside,
        set_aside_ranges=tuple(manifest["set_aside"]["ranges"]),
        set_aside_entries=manifest["set_aside"]["entries"],
        set_aside_jets=manifest["set_aside"]["jets"],
        left_out=manifest["set_aside"]["left_out"],
        families={name: sum(counts[index] for index in members) for name, members in FAMILIES.items()},
        new_jets=new_jets,
        seconds=time.perf_counter() - started,
        cpu_seconds=manifest["cpu_seconds"],
    )
    figures = config.to_dict(report)
    figures.pop("folder")
    with shards.writing("summary", folder):
        runs.write_summary(folder, **figures)
    return report


def _sweep(folder: Path) -> None:
    """Remove unfinished files of tasks that were killed; nothing that is not ours."""
    for part in (folder, folder / "units", *(folder / split for split in shards.SPLITS)):
        for stale in part.glob("*.tmp.*"):
            if stale.suffix[1:].isdigit():  # files.committed ends the name with the process id
                stale.unlink(missing_ok=True)


def _new_plan(settings: IngestConfig, paths: list[Path]) -> Plan:
    rounding = settings.shards.round_doubles
    inventory = take_inventory(paths, tree=settings.tree, round_doubles=rounding, delphes=settings.delphes)
    if not inventory.sources:
        more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
        msg = f"none of the inputs can be used: {inventory.set_aside[0].reason}{more}"
        raise InputError(msg)
    if not settings.sample:
        _refuse_mixture(inventory.sources)
    plan = make_plan(inventory, settings.shards, settings.delphes)
    path = Path(settings.output) / "plan.json"
    with shards.writing("plan", path):
        files.write_json(path, plan.to_dict())
    return plan


def _refuse_mixture(sources: Sequence[Source]) -> None:
    """Jets of one data set are made in one way; a network would learn the difference between their classes."""
    example = {source.sample: source.path for source in reversed(sources)}
    if len(example) > 1:
        kinds = "; ".join(f"{text or 'nothing'!r} in {path}" for text, path in sorted(example.items()))
        msg = f"the inputs say that they were made in different ways: {kinds}. A network would learn to tell them "
        msg += "apart; ingest them into folders of their own, or say what the mixture is with sample='…'"
        raise InputError(msg)


def _missing(plan: Plan, folder: Path) -> list[int]:
    """Units without a sidecar, or whose shards are not there in full length."""
    return [unit for unit in range(len(plan.units)) if not _is_committed(folder, unit)]


def _is_committed(folder: Path, unit: int) -> bool:
    sidecar = shards.sidecar_path(folder, unit)
    if not sidecar.exists():
        return False
    written = [(folder / shard["path"], shard["bytes"]) for shard in files.read_json(sidecar)["shards"]]
    return all(path.exists() and path.stat().st_size == size for path, size in written)


def _convert(plan: Plan, folder: Path, todo: list[int]) -> int:
    """Run the units `todo` as Ray tasks; returns the number of jets they wrote."""
    import ray

    task = functools.partial(_task, plan=plan, folder=folder.resolve())
    at_once = ray.data.TaskPoolStrategy(size=min(len(todo), _tasks_at_once(plan)))
    rows = ray.data.from_items([{"unit": unit} for unit in todo], override_num_blocks=len(todo))
    entries = sum(r.stop - r.start for unit in todo for r in plan.units[unit])
    jets = set_aside = 0
    unit = "event" if plan.delphes else "jet"
    with tqdm(total=entries, unit=unit, unit_scale=True, desc="ingest", disable=None) as bar:
        for row in rows.map(task, num_cpus=1, compute=at_once).iter_rows():
            if row["error"]:
                msg = f"{row['error']}; what is committed is kept, the same command continues"
                raise InputError(msg)
            jets += row["jets"]
            set_aside += row["set_aside"]
            bar.update(row["entries"])
            bar.set_postfix(set_aside=set_aside)
    return jets


def _tasks_at_once(plan: Plan) -> int:
    """As many tasks as there are CPUs, but no more than fit into the memory that Ray knows of."""
    import ray

    resources = ray.cluster_resources()
    per_jet = max(source.bytes_per_jet for source in plan.inventory.sources)
    jets = max(sum(r.stop - r.start for r in unit) for unit in plan.units)
    bytes_per_task = 2 * per_jet * jets + 300 * 2**20
    fitting = int(resources.get("memory", bytes_per_task) // bytes_per_task)
    return max(1, min(int(resources.get("CPU", 1)), fitting))


def _task(row: dict[str, Any], plan: Plan, folder: Path) -> dict[str, Any]:
    """One unit in a Ray worker. What is the input's fault comes back as text, to end the job with one line."""
    try:
        sidecar = convert_unit(plan, folder, row["unit"])
    except InputError as error:
        return {"unit": row["unit"], "jets": 0, "entries": 0, "set_aside": 0, "error": str(error)}
    jets = sum(shard["rows"] for shard in sidecar["shards"])
    set_aside = sidecar["set_aside"]["entries"] + sum(sidecar["set_aside"]["jets"].values())
    return {"unit": row["unit"], "jets": jets, "entries": sidecar["entries"], "set_aside": set_aside, "error": ""}


def write_manifest(plan: Plan, folder: Path, sample: str) -> dict[str, Any]:
    """Gather the sidecars into manifest.json; InputError if not a single jet is left."""
    sidecars = [files.read_json(shards.sidecar_path(folder, unit)) for unit in range(len(plan.units))]
    reasons: collections.Counter[str] = collections.Counter()
    left_out: collections.Counter[str] = collections.Counter()
    for sidecar in sidecars:
        reasons.update(sidecar["set_aside"]["jets"])
        left_out.update(sidecar["set_aside"].get("left_out", {}))  # not there in folders begun by an older version
    ranges = [message for sidecar in sidecars for message in sidecar["set_aside"]["ranges"]]
    digests = [shard["sha256"] for sidecar in sidecars for shard in sidecar["shards"]]
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
        "sample": sample or plan.inventory.sources[0].sample,
        "columns": jet_schema().names,
        "row_group": plan.config.row_group,
        "splits": {split: shards.gather(split, sidecars) for split in shards.SPLITS},
        "histogram_edges": {"jet_pt": shards.PT_EDGES, "jet_sdmass": shards.MASS_EDGES},
        "inputs": [
            {"path": source.path, "kind": source.kind, "tree": source.tree, "entries": source.entries}
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
