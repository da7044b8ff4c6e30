"""Plans of the jobs that use trained networks: transfer, evaluate, export, and the benchmark against weaver."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

from jetfoundry import config, files, runs
from jetfoundry.benchmark.settings import BenchmarkConfig
from jetfoundry.data.inventory import expand
from jetfoundry.data.layouts import load_layout
from jetfoundry.data.shards import open_shards
from jetfoundry.downstream.export import ExportConfig
from jetfoundry.downstream.methods import METHODS, grid_of
from jetfoundry.downstream.score_block import open_scorer
from jetfoundry.downstream.score_files import ScoreConfig
from jetfoundry.downstream.shelf import Backbone, open_backbones
from jetfoundry.downstream.tasks import Task, load_tasks
from jetfoundry.downstream.transfer import MAY_CHANGE, TransferConfig
from jetfoundry.dry_run.inputs import look
from jetfoundry.dry_run.rates import benchmark, cpus_of, duration, number_of, shown_cpus, summary_of, time_for
from jetfoundry.errors import InputError
from jetfoundry.evaluate.named_discriminants import load_discriminants
from jetfoundry.models.checkpoints import load_model

__all__ = ["plan_benchmark", "plan_evaluate", "plan_export", "plan_transfer"]

Rows = list[tuple[str, str]]


def plan_transfer(options: TransferConfig) -> Rows:
    """Tasks, backbones, trials and seconds of jobs/transfer.py."""
    tasks, backbones = load_tasks(options.tasks), open_backbones(options.backbone, options.tokens)
    runs.check_run(options.folder, options, MAY_CHANGE)
    data = options.data or config.load_yaml(files.place(options.backbone[0]) / "config.yaml")["data"]
    splits, jets, shards = ("train", options.evaluate_split), 0, 0
    for task in tasks:
        task.check_data()
    places = list(dict.fromkeys(task.data or data for task in tasks))
    for place in places:
        for part in (open_shards(place, split) for split in splits):
            _check_columns([task for task in tasks if (task.data or data) == place], part.columns, place)
            jets += part.rows
            shards += len({group.path for group in part.row_groups})
    trials = {name: _trials(name, options, tasks, backbones) for name in options.methods}
    points = {name: number * len(grid_of(name, options.method)) for name, number in trials.items()}
    cpus = cpus_of(options.ray)
    workers = options.embed_workers or cpus
    found = len(list((options.folder / "trials").glob("*.json"))) if files.exists(options.folder / "trials") else 0
    each = ", ".join(f"{name} {_resources(options.resources.of(name))}" for name in options.methods)
    return [
        ("tasks", f"{len(tasks)}: {', '.join(task.name for task in tasks)}"),
        ("backbones", ", ".join(backbone.name for backbone in backbones)),
        ("input", f"{shards:,} shards in {', '.join(places)}"),
        ("jets", f"{jets:,}, each once through {number_of(len(backbones), 'network')} unless the caches have them"),
        ("output", f"{options.folder}: {f'{found:,} trials are there already' if found else 'new'}"),
        ("trials", f"{sum(trials.values()):,}: " + ", ".join(f"{name} {number:,}" for name, number in trials.items())),
        ("resources", f"{_embedders(workers)}; a trial takes: {each}; {shown_cpus(cpus)}"),
        ("steps", f"embed; {sum(points.values()):,} trainings, each point of a grid one; table, plots, report"),
        ("expected time", _transfer_time(options, jets * len(backbones), sum(trials.values()), cpus)),
    ]


def _resources(of_trial: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in of_trial.items())


def _embedders(workers: int | None) -> str:
    return "a worker on each CPU embeds" if workers is None else f"{number_of(workers, 'worker')} of 1 CPU to embed"


def _check_columns(tasks: list[Task], stored: tuple[str, ...], place: str) -> None:
    for task in tasks if stored else ():
        task.check_columns(stored, place)


def _trials(name: str, options: TransferConfig, tasks: tuple[Task, ...], backbones: list[Backbone]) -> int:
    method = METHODS[name]
    chosen = backbones[:1] if method.of_backbone == "nothing" else backbones
    variants = sum(len(backbone.variants) if method.reads == "latents" else 1 for backbone in chosen)
    return len(tasks) * variants * len(options.sizes) * options.seeds


def _transfer_time(options: TransferConfig, jets: int, trials: int, cpus: int | None) -> str:
    preset = _preset(files.place(options.backbone[0]))
    embedding = time_for(jets, benchmark(f"infer-{preset}-"), cpus) if preset else "unknown: no rate was measured"
    before = summary_of(options.folder)
    run, seconds = before.get("trials_run"), before.get("seconds", {}).get("trials")
    if not run or not seconds:
        return f"embedding {embedding}; trials unknown: no rate was measured in {options.folder}"
    rate = f"at {seconds / run:.2g} s each, measured in {options.folder}/summary.json"
    return f"embedding {embedding}; trials at most ≈ {duration(trials * seconds / run)}, {rate}"


def _preset(run: Path) -> str:
    """Preset of the run's network; '' if it was changed or is not known."""
    if not files.exists(run / "config.yaml"):
        return ""
    model: Any = config.load_yaml(run / "config.yaml").get("model", {})
    return "" if model.get("change") else str(model.get("preset", ""))


def plan_evaluate(options: ScoreConfig) -> Rows:
    """Files, jets, columns and seconds of jobs/evaluate.py."""
    network = open_scorer(options.model, "cpu", options.all_jets)
    named = load_discriminants(options.discriminants, network.classes)
    found = look(
        expand(options.input), tree=options.tree, columns=network.data.input_columns, layout=load_layout(options.schema)
    )
    if found.inventory.set_aside:
        raise InputError(found.inventory.set_aside[0].reason)
    target = files.place(options.output)
    one = target.suffix in (".parquet", ".root") and not target.is_dir()
    there = files.exists(target) if one else any(target.glob("*.parquet")) or any(target.glob("*.root"))
    cpus, gpu = cpus_of(options.ray), options.device != "cpu"
    folder = files.place(options.model) if files.place(options.model).is_dir() else files.place(options.model).parent
    preset = _preset(folder)
    rate = benchmark(f"infer-{preset}-", gpu=gpu) if preset else None
    at_once = options.workers if gpu else min(options.workers, cpus or options.workers)
    written = number_of(1 if one else found.files, "file")
    return [
        *found.rows(),
        ("network", f"{options.model}: {len(network.classes)} classes, latent of {network.latent_dim}"),
        ("output", f"{target}: {written}, {'some are there: the same is kept, another refused' if there else 'new'}"),
        ("columns", ", ".join([*options.write, *named.names, *options.observers])),
        ("resources", f"{number_of(options.workers, 'worker')} of 1 {'GPU' if gpu else 'CPU'}; {shown_cpus(cpus)}"),
        ("steps", "read, score, write in the order of the input; summary and log beside the output"),
        ("expected time", time_for(found.jets, rate, at_once)),
    ]


def plan_export(options: ExportConfig) -> Rows:
    """Network and check of jobs/export.py."""
    run = files.place(options.run)
    model = load_model(run / "model.pt")
    data = options.data or config.load_yaml(run / "config.yaml")["data"]
    shards = open_shards(data, "val")
    if not shards.rows:
        msg = f"{data}: the val split holds no jets to check the export on"
        raise InputError(msg)
    output = files.place(options.output or run / "model.onnx")
    jets = min(options.check_jets, shards.row_groups[0].rows)
    return [
        ("input", f"{run / 'model.pt'}: {len(model.classes)} classes; 1 of the shards in {data}"),
        ("jets", f"{jets:,} to compare ONNX and PyTorch on"),
        ("output", f"{output}: {'is there and will be replaced' if files.exists(output) else 'new'}"),
        ("resources", "1 process on this machine; no Ray"),
        ("steps", f"export; check to {options.tolerance:g}; export.json; report.html"),
        ("expected time", "unknown: no rate was measured for this"),
    ]


def plan_benchmark(cfg: BenchmarkConfig) -> Rows:
    """Sides, rounds and sample of jobs/benchmark.py."""
    given = expand(cfg.input) if cfg.input else []
    made = collections.Counter(path.name.partition("-")[0] for path in files.place(cfg.work).glob("*-*"))
    trains = cfg.theme in ("train", "infer")
    rate = benchmark(f"{cfg.theme}-{cfg.preset}-{cfg.batch_size}_", gpu=cfg.device != "cpu") if trains else None
    jets = f"{cfg.jets:,}, repeated from {f'{len(given)} files' if given else '4,000 simulated ones'}"
    ours = f"; ours alone {time_for(cfg.jets * cfg.rounds, rate, cfg.workers)}" if rate else ""
    return [
        ("theme", cfg.theme),
        ("input", f"{len(given):,} files" if given else "none: jets are simulated first"),
        ("jets", jets),
        ("sample", f"in {cfg.work}: {made['root']} samples as ROOT files and {made['shards']} as shards are there"),
        ("rounds", f"{cfg.rounds} runs of each side, in turn, each in a process of its own"),
        ("output", f"{cfg.output}/{cfg.theme}…_<hardware>_<date>.md and .json"),
        ("resources", f"{number_of(cfg.workers, 'worker')} on {cfg.device}, one side at a time"),
        ("steps", "sample, unless it is there; runs; report"),
        ("expected time", f"unknown: that of weaver's side was not measured for this{ours}"),
    ]
