"""Start a pre-training under Ray Train and collect its result: the driver's side.

Ray Train's calls live here and in `ray_worker.py` only, because its API changes with every release. Checkpoints lie in
`<run>/checkpoints/step_…/` as `model.pt` (weights, classes, data YAML: what other jobs read) and `state.pt`
(optimiser, step, position: what a continued run reads). The same call on the same run folder continues from the last
committed checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from jetfoundry import config, files, ray_session
from jetfoundry.data.layouts import Layout, load_layout
from jetfoundry.data.shards import open_shards
from jetfoundry.errors import ConfigError, InputError, nearest
from jetfoundry.features.transform import DataConfig, load_data_config
from jetfoundry.loading.batch import CHANNELS
from jetfoundry.loading.data_statistics import complete
from jetfoundry.loading.loader import uses_per_pass
from jetfoundry.loading.pieces import JetFiles, JetSet, is_shard_folder, open_jet_set
from jetfoundry.loading.sampling import balance_of
from jetfoundry.models.presets import MODELS, configure, model_name
from jetfoundry.train.metrics_log import progress_bar
from jetfoundry.train.ray_worker import train_worker
from jetfoundry.train.recipe import MAY_CHANGE, Recipe, WorkersConfig

__all__ = ["model_config", "plan", "pretrain", "steps_per_epoch"]


def model_config(recipe: Recipe, data: DataConfig) -> Any:
    """Configuration of the network: the preset with the recipe's changes; numbers of input features and of classes come
    from the data YAML. ConfigError if that lacks an input which the network takes."""
    chosen = recipe.model
    sizes = {"input_dim": len(data.inputs["pf_features"].vars) if "pf_features" in data.inputs else 1}
    architecture = configure(chosen.preset, chosen.change, **sizes, num_classes=data.num_classes, name=chosen.name)
    network: Any = MODELS[model_name(architecture)][1]
    for name in network.inputs:
        if name not in data.inputs:
            msg = f"{data.where}: inputs: the network needs {name!r}; {nearest(name, data.inputs)}"
            raise ConfigError(msg)
        wanted, got = CHANNELS.get(name, 0), len(data.inputs[name].vars)
        if wanted and got != wanted:
            msg = f"{data.where}: inputs: wanted {wanted} variables in {name}, got {got}"
            raise ConfigError(msg)
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
    known = _known_columns(recipe.data, layout)
    raw = load_data_config(recipe.features, known=known, scheme=recipe.labels)
    if not raw.num_classes:
        targets = ", ".join(raw.labels.formulas)
        msg = f"{raw.where}: labels: no classes to train on, only {targets}; name a label scheme in "
        msg += "the recipe, e.g. labels=sophon188, or give labels of type simple"
        raise ConfigError(msg)
    how: dict[str, Any] = {"columns": raw.columns, "layout": layout}
    how["count"] = raw.labels.scheme is not None or balance_of(recipe.sampling, raw) in ("classes", "groups")
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
    architecture = model_config(recipe, data)
    spec = {
        # Workers change directory and may run on another machine: absolute paths, and the YAML's text itself.
        "recipe": config.to_dict(recipe) | {"data": str(Path(recipe.data).resolve())},
        "data_yaml": text,
        "model": config.to_dict(architecture),
        "model_name": model_name(architecture),
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
        "model": json.dumps(spec["model"], sort_keys=True),
    }
    return spec | {"identity": identity, "classes": list(data.classes)}


def _known_columns(data: str, layout: Layout) -> Collection[str]:
    """The columns that formulas may read: those of the shards, of the layout else."""
    stored = open_shards(data, "train").columns if is_shard_folder(data) else ()
    return {*(stored or (column.name for column in layout.columns)), "source_file", "source_entry"}


def pretrain(recipe: Recipe, run: Path, spec: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train to the end, or continue; leaves `<run>/model.pt` (best validation accuracy) and returns its figures.

    `spec` is the result of `plan(recipe)`, made here if it is not given.
    """
    spec = (spec or plan(recipe)) | {"run": str(run.resolve())}
    steps = spec["steps_per_epoch"]
    jets_per_step = recipe.loader.batch_size * recipe.workers.num_workers
    _check_resources(recipe)
    with progress_bar(run / "metrics.jsonl", steps * jets_per_step, recipe.train.epochs):
        result = _fit(_trainer(spec, recipe.workers))
    best, metrics = max(result.best_checkpoints, key=lambda pair: pair[1]["val_accuracy"])
    with best.as_directory() as folder, files.committed(run / "model.pt") as temporary:
        shutil.copyfile(Path(folder) / "model.pt", temporary)
    steps = result.return_value["steps_per_epoch"]
    return {"best": metrics, **result.return_value, "jets_per_epoch": steps * jets_per_step}


def _check_resources(recipe: Recipe) -> None:
    """What nobody can give would be waited for for ever: a CPU beside the workers for the tasks of the `ray` feed, and
    GPUs on this machine (a cluster may start nodes that have some)."""
    gpus = ray_session.available_gpus()
    if recipe.workers.use_gpu and not recipe.ray.address and gpus < recipe.workers.num_workers:
        msg = (
            f"workers.use_gpu=true with {recipe.workers.num_workers} worker(s), but this machine has {gpus:g} GPUs; "
            "train on the CPU with workers.use_gpu=false, or on a cluster with ray.address"
        )
        raise ConfigError(msg)
    free = ray_session.available_cpus() - recipe.workers.num_workers * recipe.workers.cpus_per_worker
    if recipe.loader.feed == "ray" and free < 1:
        msg = (
            f"loader.feed=ray needs a CPU that no worker has reserved, {free:g} of {ray_session.available_cpus()} are "
            "left; lower workers.cpus_per_worker or take loader.feed=direct"
        )
        raise ConfigError(msg)


def _fit(trainer: Any) -> Any:
    """Run the trainer; an error of ours that ended a worker is raised as itself, not as Ray's wrapping of it."""
    import ray.train

    try:
        return trainer.fit()
    except ray.train.WorkerGroupError as error:
        for failure in error.worker_failures.values():
            ray_session.raise_own(failure)
        raise


def _trainer(spec: dict[str, Any], workers: WorkersConfig) -> Any:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    threads = workers.threads or max(1, ray_session.usable_cores() // workers.num_workers)
    return TorchTrainer(
        train_worker,
        train_loop_config=spec,
        # A lost peer would hang the others for Ray's default of half an hour.
        torch_config=TorchConfig(backend="nccl" if workers.use_gpu else "gloo", timeout_s=300),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.use_gpu,
            resources_per_worker={"CPU": workers.cpus_per_worker, **({"GPU": 1} if workers.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name="checkpoints",
            storage_path=spec["run"],
            # Without a limit a run whose node is gone for good waits for ever.
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures, controller_failure_limit=5),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=2, checkpoint_score_attribute="val_accuracy", checkpoint_score_order="max"
            ),
            # Micro-batches of many sizes would leave holes in each thread's arena: a worker took 2 GB for 1 GB of data.
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads), "MALLOC_ARENA_MAX": "2"}},
        ),
    )
