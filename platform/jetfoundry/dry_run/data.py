"""Plans of the jobs that make data: simulate and ingest."""

from __future__ import annotations

import collections
from typing import Any

from jetfoundry import files
from jetfoundry.data.conversion import bytes_per_task
from jetfoundry.data.ingest import IngestConfig, missing_units, refuse_mixture
from jetfoundry.data.inventory import expand
from jetfoundry.data.layouts import load_layout
from jetfoundry.data.plan import Plan, make_plan, matching_plan
from jetfoundry.data.root import jet_schema
from jetfoundry.data.shards import SPLITS, read_manifest
from jetfoundry.dry_run.inputs import look
from jetfoundry.dry_run.rates import Rate, benchmark, cpus_of, duration, number_of, shown_cpus, summary_of, time_for
from jetfoundry.features.transform import load_data_config
from jetfoundry.sim.run import checked, shard_path
from jetfoundry.sim.settings import SimulateConfig
from jetfoundry.sim.settings import plan as files_of

__all__ = ["plan_ingest", "plan_simulate"]

Rows = list[tuple[str, str]]

_SIMULATED = {  # jets per CPU-second, docs/simulation.md
    "full": {"Res2P_neutral": 117.0, "Res2P_charged": 124.0, "Res34P": 104.0, "QCD": 86.0},
    "fast": {"Res2P_neutral": 302.0, "Res2P_charged": 478.0, "Res34P": 323.0, "QCD": 362.0},
}


def plan_simulate(cfg: SimulateConfig) -> Rows:
    """Files, jets by family and seconds of jobs/simulate.py."""
    output, (cfg, _) = cfg.output, checked(cfg)  # which makes it absolute
    cpus = cpus_of(cfg.ray)
    if cfg.check:
        return [
            ("output", f"{output}/check"),
            ("jets", "those of the physics gates; no sample is made"),
            ("resources", shown_cpus(cpus)),
            ("steps", "small samples of each family, gates, comparison with real jets if there are some, page"),
            ("expected time", "unknown: no rate was measured for this"),
        ]
    wanted = files_of(cfg)
    missing = [family for family, shard in wanted if not shard_path(cfg.output, family, shard).exists()]
    counts, todo = collections.Counter(family for family, _ in wanted), collections.Counter(missing)
    workers = min(cfg.workers or cpus or len(missing), cpus or len(missing), max(1, len(missing)))
    return [
        ("output", f"{output}: {len(wanted):,} files, {len(wanted) - len(missing):,} of them are there"),
        ("jets", f"{cfg.jets:,}, {len(missing) * cfg.jets_per_shard:,} of them still to be made"),
        *((f"  {name}", f"{n * cfg.jets_per_shard:,} jets in {number_of(n, 'file')}") for name, n in counts.items()),
        ("mode", f"{cfg.mode}, balance {cfg.balance}, seed {cfg.seed}"),
        ("resources", f"{number_of(workers, 'worker')} of 1 CPU; {shown_cpus(cpus)}"),
        ("steps", "one file after the other on each worker; then summary.json"),
        ("expected time", _simulation_time(cfg, todo, workers)),
    ]  # fmt: skip


def _simulation_time(cfg: SimulateConfig, todo: collections.Counter[str], workers: int) -> str:
    if not todo:
        return "nothing is left to do"
    before = summary_of(cfg.output)
    measured = {name: row["jets_per_cpu_second"] for name, row in before.get("families", {}).items()}
    source = f"measured in {cfg.output}/summary.json"
    if not measured.keys() >= todo.keys() or before.get("mode") != cfg.mode:
        measured, source = _SIMULATED.get(cfg.mode, {}), "measured on 2 x86-64 cores, docs/simulation.md"
    if not measured.keys() >= todo.keys() or not all(measured[name] > 0 for name in todo):
        return "unknown: no rate was measured for these families"
    seconds = sum(number * cfg.jets_per_shard / measured[name] for name, number in todo.items())
    rates = ", ".join(f"{name} {measured[name]:g}" for name in todo)
    return f"≈ {duration(seconds / workers)} on {number_of(workers, 'CPU')}, at jets per CPU-second: {rates}; {source}"


def plan_ingest(settings: IngestConfig) -> Rows:
    """Files, jets, units, shards, memory and seconds of jobs/ingest.py."""
    if settings.verify:
        return _plan_verify(settings)
    layout = load_layout(settings.schema)
    if settings.features:
        load_data_config(settings.features, known=frozenset(jet_schema(layout=layout).names))
    paths = expand(settings.input, settings.patience)
    how: dict[str, Any] = {
        "tree": settings.tree,
        "delphes": settings.delphes,
        "layout": layout,
        "patience": settings.patience,
    }
    found = look(paths, round_doubles=settings.shards.round_doubles, **how)
    if not settings.sample:
        refuse_mixture(found.inventory.sources)
    folder, stored = files.place(settings.output), files.place(settings.output) / "plan.json"
    plan = make_plan(found.inventory, settings.shards, settings.delphes, layout)
    units, missing = round(len(plan.units) * found.jets / plan.entries), None
    if stored.exists():
        plan = matching_plan(stored, paths, settings.shards, **how)
        units, missing = len(plan.units), len(missing_units(plan, folder))
    cpus, memory = cpus_of(settings.ray), bytes_per_task(plan)
    fitting = max(1, int(settings.memory_gb * 2**30 // memory)) if settings.memory_gb else units
    at_once = min(units, cpus or units, fitting)
    jets = found.jets * (1 if missing is None else missing / units)
    state = "new" if missing is None else f"{units - missing:,} of {units:,} units are there, {missing:,} are missing"
    about = "" if found.whole else "≈ "
    return [
        *found.rows("events" if settings.delphes else "jets"),
        ("schema", layout.name),
        ("output", f"{folder}: {state}"),
        ("units", f"{about}{units:,}, each read, mixed and written by one task"),
        ("shards", _shards(settings, found.jets, plan, about)),
        ("resources", f"{number_of(at_once, 'task')} at once of 1 CPU and {memory / 2**30:.2f} GB; {shown_cpus(cpus)}"),
        ("steps", "inventory of all files; plan.json; units; manifest.json; report.html"),
        ("expected time", _ingest_time(settings, jets, at_once if cpus else None)),
    ]  # fmt: skip


def _shards(settings: IngestConfig, jets: int, plan: Plan, about: str) -> str:
    size, val, test = settings.shards.jets_per_shard, settings.shards.val, settings.shards.test
    if settings.delphes:
        return f"of {size:,} jets; their number is unknown: events have 0, 1, … jets"
    parts = {name: share * jets for name, share in zip(SPLITS, (1 - val - test, val, test), strict=True)}
    count = sum(max(1, round(part / size)) for part in parts.values() if part)
    each = ", ".join(f"{name} ≈ {part:,.0f}" for name, part in parts.items())
    how = f"row groups of {about}{plan.row_group:,}, {settings.shards.compression}"
    return f"≈ {count:,} of {size:,} jets in {how}; {each}"


def _ingest_time(settings: IngestConfig, jets: float, cpus: int | None) -> str:
    if not jets:
        return "nothing is left to do"
    before = summary_of(settings.output).get("jets_per_cpu_second")
    if before:
        rate: Rate | None = Rate(before, f"measured in {settings.output}/summary.json")
    else:
        rate = None if settings.delphes else benchmark("ingest-zlib", "ingest")
    return time_for(jets, rate, cpus)


def _plan_verify(settings: IngestConfig) -> Rows:
    manifest = read_manifest(files.place(settings.verify))
    records = [record for part in manifest["splits"].values() for record in part["shards"]]
    return [
        ("input", f"{len(records):,} shards in {settings.verify}, {sum(r['bytes'] for r in records) / 1e9:,.2f} GB"),
        ("jets", f"{sum(record['rows'] for record in records):,}"),
        ("output", "none: nothing is written"),
        ("resources", "1 CPU; no Ray"),
        ("steps", "checksums, columns, counts, histograms, each jet only once"),
        ("expected time", "unknown: no rate was measured for this"),
    ]
