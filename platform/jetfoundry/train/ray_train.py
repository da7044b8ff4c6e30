"""Start a pre-training under Ray Train and collect its result: the driver's side.

Ray Train's calls live here and in `ray_worker.py` only, because its API changes with every release. Checkpoints lie in
`<run>/checkpoints/step_…/` as `model.pt` (weights, classes, data YAML: what other jobs read) and `state.pt`
(optimiser, step, position: what a continued run reads). The same call on the same run folder continues from the last
committed checkpoint.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from jetfoundry import config, files, ray_session
from jetfoundry.data.batch import INPUTS
from jetfoundry.data.features import DataConfig, load_data_config
from jetfoundry.data.loader import jets_per_pass, uses_per_pass
from jetfoundry.data.shards import ShardSet, open_shards
from jetfoundry.errors import ConfigError, InputError, nearest
from jetfoundry.models.particle_transformer import ParTConfig
from jetfoundry.models.presets import PRESETS
from jetfoundry.train.metrics_log import progress_bar
from jetfoundry.train.ray_worker import train_worker
from jetfoundry.train.recipe import MAY_CHANGE, Recipe, WorkersConfig

__all__ = ["model_config", "plan", "pretrain", "steps_per_epoch"]

log = logging.getLogger(__name__)


def model_config(recipe: Recipe, data: DataConfig) -> ParTConfig:
    """The preset with the recipe's changes; numbers of input features and classes come from the data YAML."""
    if recipe.model.preset not in PRESETS:
        msg = f"model.preset: unknown preset {recipe.model.preset!r}; {nearest(recipe.model.preset, PRESETS)}"
        raise ConfigError(msg)
    for name in INPUTS:
        if name not in data.inputs:
            msg = f"{data.where}: inputs: the network needs {name!r}; {nearest(name, data.inputs)}"
            raise ConfigError(msg)
    rows = [len(data.inputs[name].vars) for name in INPUTS]
    if rows[1:] != [4, 1]:
        msg = f"{data.where}: inputs: wanted 4 variables in pf_vectors and 1 in pf_mask, got {rows[1]} and {rows[2]}"
        raise ConfigError(msg)
    tree = config.to_dict(PRESETS[recipe.model.preset]) | recipe.model.change
    return config.build(ParTConfig, tree | {"input_dim": rows[0], "num_classes": data.num_classes}, "model.change")


def steps_per_epoch(recipe: Recipe, shards: ShardSet, data: DataConfig) -> int:
    """Steps of one epoch: as given, or one pass over the jets that the sampling uses."""
    if recipe.train.steps_per_epoch:
        return recipe.train.steps_per_epoch
    jets = jets_per_pass(shards, data, recipe.sampling)
    return max(1, round(jets / (recipe.loader.batch_size * recipe.workers.num_workers)))


def plan(recipe: Recipe) -> dict[str, Any]:
    """Check everything that can be checked without reading a jet; what the workers need to know.

    Raises InputError or ConfigError, before anything is written or started.
    """
    train, val = open_shards(recipe.data, "train"), open_shards(recipe.data, "val")
    for shards in (train, val):
        if not shards.rows:
            msg = f"{recipe.data}: the {shards.split} split holds no jets; ingest more, or with other split fractions"
            raise InputError(msg)
    data = load_data_config(recipe.features, scheme=recipe.labels)
    uses_per_pass(train, data, recipe.sampling)
    if data.weights:
        log.warning(
            "%s: its weights section is not used yet; sampling.balance=%s decides", data.where, recipe.sampling.balance
        )
    spec = {
        # Workers change directory and may run on another machine: absolute paths, and the YAML's text itself.
        "recipe": config.to_dict(recipe) | {"data": str(Path(recipe.data).resolve())},
        "data_yaml": Path(recipe.features).read_text(encoding="utf-8"),
        "model": config.to_dict(model_config(recipe, data)),
        "steps_per_epoch": steps_per_epoch(recipe, train, data),
        "manifest_hash": train.manifest_hash,
    }
    identity = {
        "recipe": config.fingerprint(recipe, ignore=MAY_CHANGE),
        "features": data.hash,
        "data": train.manifest_hash,
        "model": json.dumps(spec["model"], sort_keys=True),
    }
    return spec | {"identity": identity, "classes": list(data.classes)}


def pretrain(recipe: Recipe, run: Path, spec: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train to the end, or continue; leaves `<run>/model.pt` (best validation accuracy) and returns its figures.

    `spec` is the result of `plan(recipe)`, made here if it is not given.
    """
    spec = (spec or plan(recipe)) | {"run": str(run.resolve())}
    steps = spec["steps_per_epoch"]
    jets_per_epoch = steps * recipe.loader.batch_size * recipe.workers.num_workers
    with progress_bar(run / "metrics.jsonl", jets_per_epoch, recipe.train.epochs):
        result = _fit(_trainer(spec, recipe.workers))
    best, metrics = max(result.best_checkpoints, key=lambda pair: pair[1]["val_accuracy"])
    with best.as_directory() as folder, files.committed(run / "model.pt") as temporary:
        shutil.copyfile(Path(folder) / "model.pt", temporary)
    return {"best": metrics, "timing": result.return_value, "steps_per_epoch": steps, "jets_per_epoch": jets_per_epoch}


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
