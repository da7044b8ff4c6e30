"""Run the training loop under Ray Train: one thin module, because Ray's Train API changes with every release.

`pretrain` (driver) starts the workers; `_worker` (each of them) builds the model, opens its part of the shards and
calls `loop.fit`. Checkpoints lie in `<run>/checkpoints/step_…/` as `model.pt` (weights, classes, data YAML: what
other jobs read) and `state.pt` (optimiser, step, position: what a continued run reads). The same call on the
same run folder continues from the last committed checkpoint. Ray does that silently even under a changed
configuration, so the configuration's fingerprint travels in the checkpoint and is compared.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import distributed, nn
from torch.nn import functional

from jetfoundry import config, files, runs
from jetfoundry.data.batch import Batch, Position
from jetfoundry.data.features import DataConfig, load_data_config
from jetfoundry.data.loader import every_jet, prefetched, training_batches
from jetfoundry.data.sampling import class_multiplicity
from jetfoundry.data.shards import ShardSet, open_shards
from jetfoundry.errors import CheckpointError, ConfigError, InputError, nearest
from jetfoundry.labels import label_scheme
from jetfoundry.models.checkpoints import load_state, save_model, save_state
from jetfoundry.models.particle_transformer import ParTConfig, ParticleTransformer
from jetfoundry.models.presets import PRESETS
from jetfoundry.train.loop import Validation, fit, predict
from jetfoundry.train.metrics_log import MetricsLog, progress_bar
from jetfoundry.train.recipe import MAY_CHANGE, Recipe

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

    Raises InputError if the shards cannot serve the recipe, before any worker starts.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

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
    workers = recipe.workers
    threads = workers.threads or max(1, (os.cpu_count() or 1) // workers.num_workers)
    trainer = TorchTrainer(
        _worker,
        train_loop_config=spec,
        torch_config=TorchConfig(backend="nccl" if workers.use_gpu else "gloo", timeout_s=300),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.use_gpu,
            resources_per_worker={"CPU": workers.cpus_per_worker, **({"GPU": 1} if workers.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name="checkpoints",
            storage_path=str(run.resolve()),
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures, controller_failure_limit=5),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=2, checkpoint_score_attribute="val_accuracy", checkpoint_score_order="max"
            ),
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},
        ),
    )
    jets_per_epoch = steps * recipe.loader.batch_size * workers.num_workers
    with progress_bar(run / "metrics.jsonl", jets_per_epoch, recipe.train.epochs):
        result = trainer.fit()
    best, metrics = max(result.best_checkpoints, key=lambda pair: pair[1]["val_accuracy"])
    with best.as_directory() as folder, files.committed(run / "model.pt") as temporary:
        shutil.copyfile(Path(folder) / "model.pt", temporary)
    return {"best": metrics, "timing": result.return_value, "steps_per_epoch": steps, "jets_per_epoch": jets_per_epoch}


def _worker(spec: dict[str, Any]) -> dict[str, Any]:
    """What every training process runs. Rank 0's return value reaches the driver."""
    import ray.train
    import ray.train.torch

    recipe = config.build(Recipe, spec["recipe"])
    rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(recipe.train.seed)
    device = ray.train.torch.get_device()
    data = load_data_config(yaml.safe_load(spec["data_yaml"]), scheme=recipe.labels)
    train, val = open_shards(recipe.data, "train"), open_shards(recipe.data, "val")
    part_config = config.build(ParTConfig, spec["model"])
    model = ray.train.torch.prepare_model(ParticleTransformer(part_config))
    fingerprint = config.fingerprint(recipe, ignore=MAY_CHANGE)
    state = _last_state(fingerprint)
    log = MetricsLog(Path(spec["run"]), state["step"] if state else 0) if rank == 0 else None
    meta = {"manifest_hash": spec["manifest_hash"], "git_commit": runs.git_commit(), "labels": recipe.labels}

    @contextlib.contextmanager
    def stream(start: Position) -> Iterator[Iterator[tuple[Batch, Position]]]:
        def items() -> Iterator[tuple[Batch, Position]]:
            place = {"seed": recipe.train.seed, "rank": rank, "world": world, "start": start}
            return training_batches(train, data, recipe.loader, recipe.sampling, **place)

        with contextlib.closing(prefetched(items, recipe.loader.prefetch)) as batches:
            yield batches

    def validate(network: nn.Module) -> Validation:
        return _validate(network, every_jet(val, data, recipe.loader, rank=rank, world=world), device)

    def save(new_state: dict[str, Any], metrics: dict[str, Any]) -> None:
        # Ray ranks checkpoints by validation accuracy: one that was not validated is kept as the latest only.
        figures = {"val_accuracy": -1.0, **metrics}
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if rank == 0:
                save_model(
                    Path(folder) / "model.pt",
                    model_name="particle_transformer",
                    model_config=part_config,
                    weights=new_state["weights"],
                    classes=data.classes,
                    data_yaml=spec["data_yaml"],
                    meta=meta | figures,
                )
                save_state(Path(folder) / "state.pt", new_state | {"fingerprint": fingerprint})
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            name = f"step_{new_state['step']:08d}"
            ray.train.report(figures, checkpoint=checkpoint, checkpoint_dir_name=name)

    timing = fit(
        model,
        stream,
        validate,
        recipe.train,
        steps_per_epoch=spec["steps_per_epoch"],
        device=device,
        rank=rank,
        state=state,
        save=save,
        log=log or (lambda row: None),
    )
    if log:
        log.close()
    return timing


def _last_state(fingerprint: str) -> dict[str, Any] | None:
    """State of the last committed checkpoint of this run, if there is one and it belongs to this configuration."""
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        state = load_state(Path(folder) / "state.pt")
    if state["fingerprint"] != fingerprint:
        msg = f"{checkpoint.path}: written under another configuration ({state['fingerprint']}, now {fingerprint})"
        raise CheckpointError(msg)
    return state


def _validate(model: nn.Module, batches: Iterator[Batch], device: torch.device) -> Validation:
    """Loss and accuracy over all workers' validation jets."""
    sums = torch.zeros(3, dtype=torch.float64)
    for _, logits, labels in predict(getattr(model, "module", model), batches, device):
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        right = (logits.argmax(dim=1) == labels).sum()
        sums += torch.tensor([loss.item(), right.item(), len(labels)], dtype=torch.float64)
    if distributed.is_initialized():
        sums = sums.to(device)
        distributed.all_reduce(sums)
    loss_sum, right_sum, jets = sums.tolist()
    if jets == 0:
        msg = "the validation split holds no jet that the selection and the label scheme keep"
        raise InputError(msg)
    return Validation(loss_sum / jets, right_sum / jets, int(jets))
