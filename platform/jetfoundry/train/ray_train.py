"""Start a pre-training under Ray Train and collect its result: the driver's side.

Ray Train's calls live here and in `ray_worker.py` only, because its API changes with every release. Checkpoints lie in
`<run>/checkpoints/step_…/` as `model.pt` (weights, classes, data YAML: what other jobs read) and `state.pt`
(optimiser, step, position: what a continued run reads). The same call on the same run folder continues from the last
committed checkpoint.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from jetfoundry import config, files
from jetfoundry.data.features import DataConfig, load_data_config
from jetfoundry.data.sampling import class_multiplicity
from jetfoundry.data.shards import ShardSet, open_shards
from jetfoundry.errors import ConfigError, JetFoundryError, nearest
from jetfoundry.labels import label_scheme
from jetfoundry.models.particle_transformer import ParTConfig
from jetfoundry.models.presets import PRESETS
from jetfoundry.train.metrics_log import progress_bar
from jetfoundry.train.ray_worker import train_worker
from jetfoundry.train.recipe import Recipe, WorkersConfig

__all__ = ["model_config", "pretrain", "steps_per_epoch"]


def model_config(recipe: Recipe, data: DataConfig) -> ParTConfig:
    """The preset with the recipe's changes; input features and classes come from the data YAML and label scheme."""
    if recipe.model.preset not in PRESETS:
        msg = f"model.preset: unknown preset {recipe.model.preset!r}; {nearest(recipe.model.preset, PRESETS)}"
        raise ConfigError(msg)
    tree = config.to_dict(PRESETS[recipe.model.preset]) | recipe.model.change
    tree |= {"input_dim": len(data.inputs["pf_features"].vars), "num_classes": label_scheme(recipe.labels).num_classes}
    return config.build(ParTConfig, tree, "model.change")


def steps_per_epoch(recipe: Recipe, shards: ShardSet) -> int:
    """Steps of one epoch: as given, or one pass over the jets that the sampling uses."""
    if recipe.train.steps_per_epoch:
        return recipe.train.steps_per_epoch
    scheme = label_scheme(recipe.labels)
    uses = class_multiplicity(shards.class_counts, scheme, recipe.sampling)
    table, counts = np.asarray(scheme.table), np.asarray(shards.class_counts)
    jets = float(np.dot(uses[table[table >= 0]], counts[table >= 0]))
    return max(1, round(jets / (recipe.loader.batch_size * recipe.workers.num_workers)))


def pretrain(recipe: Recipe, run: Path) -> dict[str, Any]:
    """Train to the end, or continue; leaves `<run>/model.pt` (best validation accuracy) and returns its figures.

    Raises InputError or ConfigError if the shards cannot serve the recipe, before any worker starts.
    """
    shards = open_shards(recipe.data, "train")
    data = load_data_config(recipe.features, scheme=recipe.labels)
    steps = steps_per_epoch(recipe, shards)
    spec = {
        # Workers change directory and may run on another machine: absolute paths, and the YAML's text itself.
        "recipe": config.to_dict(recipe) | {"data": str(Path(recipe.data).resolve())},
        "data_yaml": Path(recipe.features).read_text(encoding="utf-8"),
        "model": config.to_dict(model_config(recipe, data)),
        "steps_per_epoch": steps,
        "manifest_hash": shards.manifest_hash,
        "run": str(run.resolve()),
    }
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
            cause: BaseException | None = failure
            while cause is not None and not isinstance(cause, JetFoundryError):
                cause = getattr(cause, "cause", None) or getattr(cause, "base_exc", None) or cause.__cause__
            if cause is not None:
                raise cause from error
        raise


def _trainer(spec: dict[str, Any], workers: WorkersConfig) -> Any:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    threads = workers.threads or max(1, (os.cpu_count() or 1) // workers.num_workers)
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
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},
        ),
    )
