"""Start a pre-training under Ray Train and collect its result: the driver's side.

Ray Train's calls live in the `ray_….py` of this folder only, because its API changes with every release. Checkpoints
lie in `<run>/checkpoints/step_…/`, or in the storage that the recipe names, as `model.pt` (weights, classes, data YAML:
what other jobs read) and `state.pt` (optimiser, step, position: what a continued run reads). The same call on the same
run folder continues from the last committed checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from jetfoundry import config, files, ray_session
from jetfoundry.data.layouts import Layout, load_layout
from jetfoundry.data.shards import open_shards
from jetfoundry.errors import ClusterError, ConfigError, InputError, nearest
from jetfoundry.features.transform import DataConfig, load_data_config
from jetfoundry.labels import class_list_hash
from jetfoundry.loading.data_statistics import complete
from jetfoundry.loading.loader import uses_per_pass
from jetfoundry.loading.pieces import JetFiles, JetSet, is_shard_folder, open_jet_set
from jetfoundry.loading.sampling import balance_of
from jetfoundry.models.checkpoints import architecture_hash
from jetfoundry.models.freezing import freeze
from jetfoundry.models.presets import MODELS, build, configure, model_name
from jetfoundry.models.start import begin_from
from jetfoundry.train.metrics_log import MlflowLog, progress_bar
from jetfoundry.train.network_data import check_columns, check_truth, naming_the_way_out, training_data
from jetfoundry.train.ray_notice import stop_on_signal
from jetfoundry.train.ray_worker import train_worker
from jetfoundry.train.recipe import MAY_CHANGE, CheckpointsConfig, Recipe, WorkersConfig

__all__ = ["known_columns", "model_config", "plan", "pretrain", "steps_per_epoch"]

log = logging.getLogger("jetfoundry")


def model_config(recipe: Recipe, data: DataConfig) -> Any:
    """Configuration of the network: the preset with the recipe's changes; numbers of input features and of classes come
    from the data YAML. ConfigError if that lacks an input which the network takes."""
    chosen = recipe.model
    sizes = {"input_dim": len(data.inputs["pf_features"].vars) if "pf_features" in data.inputs else 1}
    architecture = configure(chosen.preset, chosen.change, **sizes, num_classes=data.num_classes, name=chosen.name)
    training_data(data, MODELS[model_name(architecture)][1], recipe.loader)
    untrained = [task.name for task in getattr(architecture, "tasks", ())[1:]]
    if untrained:
        msg = f"model.change.tasks: nothing trains {', '.join(untrained)}: a network alone learns its first task; "
        raise ConfigError(msg + "further ones need a loss, such as that of model.preset=sophon_pp_contrastive")
    return architecture


def steps_per_epoch(recipe: Recipe, jets: JetSet, data: DataConfig) -> int:
    """Steps of one epoch: as given, or one pass over the jets that the sampling uses."""
    if recipe.train.steps_per_epoch:
        return recipe.train.steps_per_epoch
    expected = uses_per_pass(jets, data, recipe.sampling).per_pass
    return max(1, round(expected / (recipe.loader.batch_size * recipe.workers.num_workers)))


def plan(recipe: Recipe) -> dict[str, Any]:
    """Check everything that can be checked before training; what the workers need to know.

    Jets are read for what the data YAML leaves to the data, and of files that were not ingested to count the classes.
    Raises InputError or ConfigError, before anything is written or started.
    """
    layout = load_layout(recipe.schema)
    known = known_columns(recipe.data, layout)
    raw = load_data_config(recipe.features, known=known, scheme=recipe.labels)
    if not raw.num_classes:
        targets = ", ".join(raw.labels.formulas)
        msg = f"{raw.where}: labels: no classes to train on, only {targets}; name a label scheme in "
        msg += "the recipe, e.g. labels=sophon188, or give labels of type simple"
        raise ConfigError(msg)
    architecture = model_config(recipe, raw)
    taken = training_data(raw, MODELS[model_name(architecture)][1], recipe.loader)
    check_columns(taken, known)
    how: dict[str, Any] = {"columns": sorted({*raw.columns, *taken.columns}), "layout": layout}
    how["count"] = raw.labels.scheme is not None or balance_of(recipe.sampling, raw) in ("classes", "groups")
    with naming_the_way_out(taken):
        train, val = (open_jet_set(recipe.data, split, **how) for split in ("train", "val"))
    for jets in (train, val):
        if not jets.rows:
            msg = f"{recipe.data}: the {jets.split} split holds no jets; ingest more, or with other split fractions"
            raise InputError(msg)
    text = complete(
        recipe.features,
        train,
        known=known,
        scheme=recipe.labels,
        weights=balance_of(recipe.sampling, raw) == "yaml",
        skip_empty=recipe.sampling.empty_classes == "skip",
    )
    data = load_data_config(config.parse_yaml(text, recipe.features), known=known, scheme=recipe.labels)
    uses_per_pass(train, data, recipe.sampling)
    _check_start(recipe, architecture)
    check_truth(training_data(data, MODELS[model_name(architecture)][1], recipe.loader), train)
    where = {} if isinstance(train, JetFiles) else {"data": str(train.folder.resolve())}
    spec = {
        # Workers change directory and may run on another machine: absolute paths, and the YAML's text itself.
        "recipe": config.to_dict(recipe) | where,
        "data_yaml": text,
        "model": config.to_dict(architecture),
        "model_name": model_name(architecture),
        "init": str(files.place(recipe.model.init).resolve()) if recipe.model.init else "",
        "steps_per_epoch": steps_per_epoch(recipe, train, data),
        "manifest_hash": train.manifest_hash,
        "sample": train.sample,
        "discriminants": [],  # (name, signal outputs, background outputs, weights): their AUCs go into the metrics
        "files": {"train": train, "val": val} if isinstance(train, JetFiles) else None,
    }
    identity = {
        "recipe": config.fingerprint(recipe, ignore=MAY_CHANGE),
        "features": raw.hash,
        "data": train.manifest_hash,
        "classes": class_list_hash(data.classes),
        "model": architecture_hash(architecture),
    }
    return spec | {"identity": identity, "classes": list(data.classes)}


def _check_start(recipe: Recipe, architecture: Any) -> None:
    """CheckpointError or ConfigError for weights to begin with, or patterns to freeze, that are not this network's."""
    if recipe.model.init or recipe.model.freeze:
        network = build(architecture)
        if recipe.model.init:
            left = begin_from(network, recipe.model.init)
            log.info("%s: taken, but for %s", recipe.model.init, ", ".join(left) or "nothing")
        freeze(network, recipe.model.freeze)


def known_columns(data: str, layout: Layout) -> Collection[str]:
    """The columns that formulas may read: those of the shards, of the layout else."""
    stored = open_shards(data, "train").columns if is_shard_folder(data) else ()
    return {*(stored or (column.name for column in layout.columns)), "source_file", "source_entry"}


def pretrain(recipe: Recipe, run: Path, spec: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train to the end, or continue; leaves `<run>/model.pt` (best by `checkpoints.metric`), returns its figures.

    `spec` is the result of `plan(recipe)`, made here if it is not given.
    """
    spec = (spec or plan(recipe)) | {"run": str(run.resolve())}
    steps = spec["steps_per_epoch"]
    jets_per_step = recipe.loader.batch_size * recipe.workers.num_workers
    _check_metric(recipe.checkpoints.metric, spec["discriminants"])
    _check_resources(recipe)
    if recipe.mlflow:
        MlflowLog(recipe.mlflow, run).close()
    with (
        stop_on_signal(run),
        _start_limit(recipe.workers),
        progress_bar(run / "metrics.jsonl", steps * jets_per_step, recipe.train.epochs),
    ):
        result = _fit(_trainer(spec, recipe.workers, recipe.checkpoints))
    if result.return_value["stopped"]:
        raise KeyboardInterrupt
    best, metrics = _best(result.best_checkpoints, recipe.checkpoints)
    with best.as_directory() as folder, files.committed(run / "model.pt") as temporary:
        shutil.copyfile(Path(folder) / "model.pt", temporary)
    steps = result.return_value["steps_per_epoch"]
    timing = result.return_value["timing"]
    return {"best": metrics, "timing": timing, "steps_per_epoch": steps, "jets_per_epoch": steps * jets_per_step}


def _best(checkpoints: list[tuple[Any, dict[str, Any]]], chosen: CheckpointsConfig) -> tuple[Any, dict[str, Any]]:
    """The best checkpoint that was validated, and its figures."""
    sign = 1 if chosen.order == "max" else -1
    judged = [pair for pair in checkpoints if pair[1][chosen.metric] != chosen.score({})]
    if not judged:
        msg = f"checkpoints.metric: no checkpoint has a {chosen.metric}: the validation jets do not give it"
        raise InputError(msg)
    return max(judged, key=lambda pair: sign * pair[1][chosen.metric])


def _check_metric(metric: str, discriminants: list[list[Any]]) -> None:
    known = ["step", "val_accuracy", "val_loss", *(f"val_auc/{name}" for name, *_ in discriminants)]
    if metric not in known:
        msg = f"checkpoints.metric: the validation gives no {metric!r}; {nearest(metric, known)}"
        raise ConfigError(msg)


def _check_resources(recipe: Recipe) -> None:
    """What nobody can give would be waited for: a CPU beside the workers for the tasks of the `ray` feed, and what this
    machine lacks where it is all that there is (a cluster may start nodes that have it)."""
    workers = recipe.workers
    gpus, wanted = ray_session.available_gpus(), workers.num_workers * workers.gpus_per_worker
    alone = not recipe.ray.address and not ray_session.in_job()
    if workers.use_gpu and alone and gpus < wanted:
        msg = (
            f"workers.use_gpu=true with {workers.num_workers} worker(s), but this machine has {gpus:g} GPUs; "
            "train on the CPU with workers.use_gpu=false, or on a cluster with ray.address"
        )
        raise ConfigError(msg)
    cpus, reserved = ray_session.available_cpus(), workers.num_workers * workers.cpus_per_worker
    if alone and reserved > cpus:
        msg = (
            f"{workers.num_workers} worker(s) of {workers.cpus_per_worker:g} CPUs, but this Ray has {cpus}; "
            "lower workers.num_workers or workers.cpus_per_worker, or take a cluster with ray.address"
        )
        raise ConfigError(msg)
    if recipe.loader.feed == "ray" and cpus - reserved < 1:
        msg = (
            f"loader.feed=ray needs a CPU that no worker has reserved, {cpus - reserved:g} of {cpus} are "
            "left; lower workers.cpus_per_worker or take loader.feed=direct"
        )
        raise ConfigError(msg)


@contextlib.contextmanager
def _start_limit(workers: WorkersConfig) -> Iterator[None]:
    """Let Ray look again for machines after a minute at most: in between nobody sees that the time is up."""
    seconds, name = min(60.0, 60 * workers.wait_minutes), "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
    before = os.environ.get(name)
    os.environ.setdefault(name, str(seconds))
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _fit(trainer: Any) -> Any:
    """Run the trainer; an error of ours that ended a worker or the waiting for them is raised as itself, not as Ray's
    wrapping of it, and the loss of workers as a ClusterError."""
    import ray.train

    try:
        return trainer.fit()
    except ray.train.ControllerError as error:
        ray_session.raise_own(error.controller_failure)
        raise
    except ray.train.WorkerGroupError as error:
        for failure in error.worker_failures.values():
            ray_session.raise_own(failure)
        lost = {rank: text for rank, failure in error.worker_failures.items() if (text := _lost(failure))}
        if not lost:
            raise
        rank, text = min(lost.items())
        msg = f"worker {rank} was lost more than workers.max_failures times, the last time: {text}; the same command "
        raise ClusterError(msg + "continues from the last checkpoint") from error


def _lost(failure: BaseException) -> str:
    """What Ray says of a worker that died; '' if it ended by an error of its own."""
    import ray.exceptions

    found: BaseException | None = failure
    while found is not None:
        if isinstance(found, ray.exceptions.RayActorError):
            return " ".join(str(found).split())[:200]
        found = found.__cause__
    return ""


def _trainer(spec: dict[str, Any], workers: WorkersConfig, checkpoints: CheckpointsConfig) -> Any:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from jetfoundry.train.ray_watch import RunWatch

    threads = workers.threads or max(1, ray_session.usable_cores() // workers.num_workers)
    least = workers.min_workers or workers.num_workers
    each = " and ".join(f"{number:g} {name}" for name, number in workers.resources.items())
    return TorchTrainer(
        train_worker,
        train_loop_config=spec,
        # A lost peer would hang the others for Ray's default of half an hour.
        torch_config=TorchConfig(backend=workers.backend, timeout_s=300),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(least, workers.num_workers) if least < workers.num_workers else workers.num_workers,
            use_gpu=workers.use_gpu,
            resources_per_worker=workers.resources,
        ),
        run_config=ray.train.RunConfig(
            name="checkpoints",
            **ray_session.storage(checkpoints.storage or spec["run"]),
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=checkpoints.keep,
                checkpoint_score_attribute=checkpoints.metric,
                checkpoint_score_order=checkpoints.order,
            ),
            callbacks=[RunWatch(60 * workers.wait_minutes, f"{least} worker(s) of {each}")],
            # Micro-batches of many sizes would leave holes in each thread's arena: a worker took 2 GB for 1 GB of data.
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads), "MALLOC_ARENA_MAX": "2"}},
        ),
    )
