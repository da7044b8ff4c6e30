"""Plans of the jobs that train networks: pretrain and compare."""

from __future__ import annotations

import torch

from jetfoundry import files, runs
from jetfoundry.data.inventory import expand
from jetfoundry.data.layouts import load_layout
from jetfoundry.data.plan import ShardConfig
from jetfoundry.data.shards import open_shards
from jetfoundry.downstream.comparison import ComparisonConfig, Training, trainings_of
from jetfoundry.dry_run.inputs import look
from jetfoundry.dry_run.rates import Rate, benchmark, cpus_of, number_of, shown_cpus, summary_of, time_for
from jetfoundry.errors import InputError
from jetfoundry.evaluate.validation import discriminants_of
from jetfoundry.features.transform import DataConfig, load_data_config
from jetfoundry.loading.pieces import is_shard_folder
from jetfoundry.loading.sampling import balance_of
from jetfoundry.models.presets import MODELS, build, model_name
from jetfoundry.train.network_data import check_columns, training_data
from jetfoundry.train.ray_train import known_columns, model_config, steps_per_epoch
from jetfoundry.train.recipe import MAY_CHANGE, Recipe

__all__ = ["plan_compare", "plan_pretrain"]

Rows = list[tuple[str, str]]


def plan_pretrain(recipe: Recipe) -> Rows:
    """Network, jets, steps, workers and seconds of jobs/pretrain.py."""
    to_be_made = _to_be_made(recipe)
    layout = load_layout(recipe.schema)
    known = {column.name for column in layout.columns} if to_be_made else known_columns(recipe.data, layout)
    data = load_data_config(recipe.features, known={*known, "source_file", "source_entry"}, scheme=recipe.labels)
    architecture = model_config(recipe, data)
    taken = training_data(data, MODELS[model_name(architecture)][1], recipe.loader)
    if not to_be_made:
        check_columns(taken, known)
    discriminants_of(data.classes, recipe.discriminants)
    with torch.device("meta"):  # shapes without memory
        parameters = sum(each.numel() for each in build(architecture).parameters())
    about, exact, steps = _jets(recipe, data, to_be_made)
    runs.check_run(recipe.run, recipe, MAY_CHANGE)
    batch = recipe.loader.batch_size * recipe.workers.num_workers
    epochs, total = recipe.train.epochs, steps * recipe.train.epochs
    return [
        *about,
        ("network", f"{recipe.model.preset}: {parameters:,} parameters, {data.num_classes} classes"),
        ("run", f"{recipe.run}: {_state(recipe)}"),
        ("steps", f"{'' if exact else '≈ '}{total:,}: {epochs} epochs of {steps:,} steps of {batch:,} jets"),
        ("resources", _workers(recipe)),
        ("expected time", _time(recipe, total * batch)),
    ]  # fmt: skip


def _to_be_made(recipe: Recipe) -> bool:
    """Whether the recipe makes its shards first."""
    there = files.exists(files.place(recipe.data) / "manifest.json")
    return is_shard_folder(recipe.data) and bool(recipe.prepare.simulate) and not there


def _jets(recipe: Recipe, data: DataConfig, to_be_made: bool) -> tuple[Rows, bool, int]:
    """Rows about the jets, whether their number is exact, and the steps of an epoch."""
    batch = recipe.loader.batch_size * recipe.workers.num_workers
    if to_be_made:
        usual = ShardConfig()
        jets = round(recipe.prepare.jets * (1 - usual.val - usual.test))
        first = f"simulates {recipe.prepare.jets:,} jets into {recipe.prepare.root}, ingests them into {recipe.data}"
        return (
            [("first", first), ("input", f"shards in {recipe.data}, to be made"), ("jets", f"≈ {jets:,} to train on")],
            False,
            recipe.train.steps_per_epoch or max(1, round(jets / batch)),
        )
    if is_shard_folder(recipe.data):
        train, val = (open_shards(recipe.data, split) for split in ("train", "val"))
        for shards in (train, val):
            if not shards.rows:
                msg = f"{recipe.data}: the {shards.split} split holds no jets"
                raise InputError(msg)
        measured = balance_of(recipe.sampling, data) != "yaml" or (data.weights is not None and data.weights.known)
        steps = steps_per_epoch(recipe, train, data) if measured else max(1, round(train.rows / batch))
        exact = measured or bool(recipe.train.steps_per_epoch)
        number = len({group.path for group in (*train.row_groups, *val.row_groups)})
        about = f"{train.rows:,} to train on, {val.rows:,} for validation ({train.sample or 'of no name'})"
        return (
            [("input", f"{number:,} shards of {recipe.data}"), ("jets", about)],
            exact,
            recipe.train.steps_per_epoch or steps,
        )
    usual = ShardConfig()
    found = look(expand([recipe.data]), layout=load_layout(recipe.schema))
    jets = round(found.jets * (1 - usual.val - usual.test))
    rows = [*found.rows(), ("", f"≈ {jets:,} of them to train on, without an ingest")]
    return rows, False, recipe.train.steps_per_epoch or max(1, round(jets / batch))


def _workers(recipe: Recipe) -> str:
    workers, cpus = recipe.workers, cpus_of(recipe.ray)
    each = ", ".join(f"{amount:g} {name}" for name, amount in workers.resources.items())
    many = number_of(workers.num_workers, "worker")
    return f"{many} of {each}; {shown_cpus(cpus)}; memory: unknown until the first batches"


def _state(recipe: Recipe) -> str:
    run = files.place(recipe.run)
    if files.exists(run / "summary.json"):
        return "finished; only its report would be written again"
    rows = runs.read_metrics(run / "metrics.jsonl")
    if not rows:
        return "new"
    return f"continues from its last checkpoint, up to step {max(row['step'] for row in rows):,}"


def _time(recipe: Recipe, jets: int) -> str:
    run = files.place(recipe.run)
    if recipe.find_lr:
        return "unknown: only a learning rate is looked for"
    if summary_of(run):
        return "nothing is left to do"
    logged = [row["jets_per_s"] for row in runs.read_metrics(run / "metrics.jsonl") if row.get("jets_per_s")]
    if logged:
        return time_for(jets, Rate(logged[-1], f"measured in {run}/metrics.jsonl; less what is done", of=""))
    return time_for(jets, _rate(recipe), _processors(recipe))


def _rate(recipe: Recipe) -> Rate | None:
    """Of the recipe's network, where it is that of the preset."""
    gpu = recipe.workers.use_gpu
    return None if recipe.model.change else benchmark(f"train-{recipe.model.preset}-", gpu=gpu)


def _processors(recipe: Recipe) -> float | None:
    """GPUs of the workers; without them the CPUs that their threads fill, None on a cluster."""
    workers, cpus = recipe.workers, cpus_of(recipe.ray)
    if workers.use_gpu:
        return workers.num_workers * workers.gpus_per_worker
    return None if cpus is None else min(cpus, workers.num_workers * (workers.threads or cpus))


def plan_compare(options: ComparisonConfig) -> Rows:
    """Trainings, baselines and seconds of jobs/compare.py."""
    trainings = trainings_of(options)
    for training in trainings:
        runs.check_run(training.run, training.recipe, MAY_CHANGE)
    todo = [training for training in trainings if not files.exists(training.run / "summary.json")]
    recipe = trainings[0].recipe
    made = files.exists(files.place(recipe.data) / "manifest.json")
    make = f"simulates {options.prepare.jets:,} jets into {options.prepare.root}, ingests them into {recipe.data}"
    rows: Rows = [("first", make)] if not made else []
    rows += [
        ("input", f"shards in {recipe.data}{'' if made else ', to be made'}"),
        ("jets", _split_sizes(options, recipe, made)),
        ("trainings", f"{len(trainings)}, {len(trainings) - len(todo)} of them are there"),
        *((f"  {training.name}", f"seed {training.seed}: {training.run}") for training in todo),
        ("baselines", ", ".join(options.baselines) or "none"),
        ("output", f"{options.output}.md and .json"),
        ("resources", _workers(recipe)),
        ("steps", f"{len(todo)} times jobs/pretrain.py, each {_steps(recipe, options, made)}; then scores, figures"),
        ("expected time", _all_times(todo, options, made)),
    ]
    return rows


def _split_sizes(options: ComparisonConfig, recipe: Recipe, made: bool) -> str:
    if made:
        sizes = {split: open_shards(recipe.data, split).rows for split in ("train", "val", "test")}
    else:
        shares = {"val": options.shards.val, "test": options.shards.test}
        shares = {"train": 1 - sum(shares.values()), **shares}
        sizes = {split: round(share * options.prepare.jets) for split, share in shares.items()}
    return ", ".join(f"{split} {'' if made else '≈ '}{number:,}" for split, number in sizes.items())


def _jets_of(recipe: Recipe, options: ComparisonConfig, made: bool) -> int:
    """Jets that one training takes in all its epochs."""
    batch = recipe.loader.batch_size * recipe.workers.num_workers
    share = 1 - options.shards.val - options.shards.test
    rows = open_shards(recipe.data, "train").rows if made else share * options.prepare.jets
    return round((recipe.train.steps_per_epoch or max(1, round(rows / batch))) * recipe.train.epochs * batch)


def _steps(recipe: Recipe, options: ComparisonConfig, made: bool) -> str:
    batch = recipe.loader.batch_size * recipe.workers.num_workers
    return f"{_jets_of(recipe, options, made) // batch:,} steps of {batch:,} jets"


def _all_times(todo: list[Training], options: ComparisonConfig, made: bool) -> str:
    if not todo:
        return "trainings: nothing is left to do; figures: unknown, no rate was measured for them"
    presets: dict[str, list[Recipe]] = {}
    for training in todo:
        presets.setdefault(training.recipe.model.preset, []).append(training.recipe)
    parts = []
    for preset, recipes in presets.items():
        jets = sum(_jets_of(recipe, options, made) for recipe in recipes)
        time = time_for(jets, _rate(recipes[0]), _processors(recipes[0]))
        parts.append(f"{number_of(len(recipes), 'training')} of {preset} {time}")
    return "; ".join(parts)
