"""What every training process does under Ray Train: open its part of the data, train, report checkpoints.

Ray continues a run silently even under a changed configuration, so the identity of recipe, data YAML, shards and
architecture travels in the checkpoint and is compared here. So do the positions of all workers in the data: a run may
continue with another number of them, on exactly the jets of the pass that are left. Its epochs keep their steps.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional

from jetfoundry import config, files, runs
from jetfoundry.data.shards import open_shards
from jetfoundry.errors import CheckpointError, InputError
from jetfoundry.features.transform import load_data_config
from jetfoundry.gauges import TRAINING, Gauges
from jetfoundry.loading.batch import Batch, Position
from jetfoundry.loading.loader import every_jet, prefetched, resumed, training_batches
from jetfoundry.loading.pieces import JetSet
from jetfoundry.loading.provenance import describe_jet
from jetfoundry.models.checkpoints import load_state, save_model, save_state
from jetfoundry.models.freezing import freeze
from jetfoundry.models.presets import MODELS, build
from jetfoundry.models.start import begin_from
from jetfoundry.train.auc import BinnedAuc
from jetfoundry.train.compiled import compile_network
from jetfoundry.train.finite import Where
from jetfoundry.train.loop import Save, TrainStream, Validation, fit, predict
from jetfoundry.train.metrics_log import MetricsLog, MlflowLog
from jetfoundry.train.network_data import training_data
from jetfoundry.train.ray_notice import Notices
from jetfoundry.train.recipe import Recipe
from jetfoundry.train.step import judged_weights

__all__ = ["train_worker"]


def train_worker(spec: dict[str, Any]) -> dict[str, Any]:
    """Train as one of the workers of `ray_train.pretrain`; rank 0's timing summary and the steps of an epoch reach the
    driver."""
    import ray.train
    import ray.train.torch

    recipe = config.build(Recipe, spec["recipe"])
    context = ray.train.get_context()
    share = {"rank": context.get_world_rank(), "world": context.get_world_size()}
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(recipe.train.seed)
    device = ray.train.torch.get_device()
    data = load_data_config(config.parse_yaml(spec["data_yaml"], recipe.features), known=None, scheme=recipe.labels)
    data = training_data(data, MODELS[spec["model_name"]][1], recipe.loader)
    train, val = (_jets(spec, split) for split in ("train", "val"))
    architecture = config.build(MODELS[spec["model_name"]][0], spec["model"])
    network = build(architecture)
    state = _last_state(spec["identity"])
    if spec["init"] and not state:
        begin_from(network, spec["init"])
    freeze(network, recipe.model.freeze)
    compile_network(network, recipe.train.compile)
    model = ray.train.torch.prepare_model(network)
    steps_per_epoch = spec["steps_per_epoch"]
    if state:
        steps_per_epoch = state["steps_per_epoch"]
        state["position"] = _position(state["positions"], train, recipe, **share)
    run, at_step = files.place(spec["run"]), state["step"] if state else 0
    logs: list[MetricsLog | MlflowLog | Gauges] = []
    rows = MetricsLog(run, at_step) if share["rank"] == 0 else None
    if rows:
        logs = [rows, Gauges(TRAINING, run)]
        logs += [MlflowLog(recipe.mlflow, run)] if recipe.mlflow else []
    notices = Notices(run)
    report = _reporter(spec | {"steps_per_epoch": steps_per_epoch}, recipe, architecture, share["rank"], device)

    def save(state: dict[str, Any], metrics: dict[str, Any]) -> None:
        if rows:
            rows.save()  # a continued run has all rows up to its checkpoint
        report(state, metrics)

    def log(row: dict[str, Any]) -> None:
        for each in logs:
            each(row)

    def batches(start: Position) -> Iterator[tuple[Batch, Position]]:
        place = {**share, "seed": recipe.train.seed, "start": start}
        return training_batches(train, data, recipe.loader, recipe.sampling, **place)

    def validate(network: nn.Module) -> Validation:
        curves = [BinnedAuc.of(plain) for plain in spec["discriminants"]]
        ready = prefetched(
            lambda: _pinned(every_jet(val, data, recipe.loader, **share), device), recipe.loader.prefetch
        )
        with contextlib.closing(ready) as every:
            return _validate(network, every, recipe.loader.batch_size, device, curves, where)

    def where(batch: Batch, index: int) -> str:
        return describe_jet(batch, index, data)

    timing = fit(
        model,
        _stream(batches, recipe.loader.prefetch, device),
        validate,
        recipe.train,
        steps_per_epoch=steps_per_epoch,
        device=device,
        **share,
        state=state,
        save=save,
        log=log,
        where=where,
        notice=notices,
    )
    for each in logs:
        each.close()
    return {"timing": timing, "steps_per_epoch": steps_per_epoch, "stopped": notices.stopped}


def _jets(spec: dict[str, Any], split: str) -> JetSet:
    """Jets of a split: the driver has looked into files that were not ingested, a manifest is read here."""
    return spec["files"][split] if spec["files"] else open_shards(spec["recipe"]["data"], split)


def _position(positions: list[list[Any]], train: JetSet, recipe: Recipe, *, rank: int, world: int) -> list[Any]:
    """Where this worker goes on after workers that stood at `positions`, as many as now or not."""
    if len(positions) == world:
        return positions[rank]
    return list(resumed(train, recipe.loader, recipe.train.seed, [Position(*position) for position in positions]))


def _gathered(position: list[Any], device: torch.device) -> list[list[Any]]:
    """Positions of all workers; they differ in three numbers and share the deal."""
    if not distributed.is_initialized():
        return [position]
    *numbers, deal = position
    every = torch.zeros(distributed.get_world_size(), len(numbers), dtype=torch.int64)
    every[distributed.get_rank()] = torch.tensor(numbers)
    return [[*one, deal] for one in _added(every, device).tolist()]


def _stream(batches: Any, depth: int, device: torch.device) -> TrainStream:
    """Open the batches from a position on in a prefetching thread, and end the thread with the training."""

    def ready(start: Position) -> Iterator[tuple[Batch, Position]]:
        for batch, position in batches(start):
            yield (batch.pinned() if device.type == "cuda" else batch), position

    @contextlib.contextmanager
    def opened(start: Position) -> Iterator[Iterator[tuple[Batch, Position]]]:
        with contextlib.closing(prefetched(lambda: ready(start), depth)) as items:
            yield items

    return opened


def _pinned(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """In memory that a GPU reads by itself, if it is for one."""
    return (batch.pinned() for batch in batches) if device.type == "cuda" else batches


def _reporter(spec: dict[str, Any], recipe: Recipe, architecture: Any, rank: int, device: torch.device) -> Save:
    """What hands a checkpoint to Ray Train: rank 0 writes it, every rank reports, which is a barrier."""
    import ray.train

    meta = {"manifest_hash": spec["manifest_hash"], "git_commit": runs.git_commit(), "labels": recipe.labels}

    def save(state: dict[str, Any], metrics: dict[str, Any]) -> None:
        # By this Ray ranks checkpoints: one that was not validated is kept as the latest only.
        ranked = metrics | {recipe.checkpoints.metric: recipe.checkpoints.score(metrics)}
        place = {"positions": _gathered(state["position"], device), "steps_per_epoch": spec["steps_per_epoch"]}
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if rank == 0:
                save_model(
                    Path(folder) / "model.pt",
                    model_name=spec["model_name"],
                    model_config=architecture,
                    weights=judged_weights(state),
                    classes=spec["classes"],
                    data_yaml=spec["data_yaml"],
                    meta=meta | metrics,
                )
                save_state(Path(folder) / "state.pt", state | place | {"identity": spec["identity"], **meta})
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(ranked, checkpoint=checkpoint, checkpoint_dir_name=f"step_{state['step']:08d}")

    return save


def _last_state(identity: dict[str, str]) -> dict[str, Any] | None:
    """State of the last committed checkpoint of this run; CheckpointError if it belongs to something else."""
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        state = load_state(Path(folder) / "state.pt")
    for what, name in _WHAT.items():
        if state["identity"].get(what) != identity[what]:
            msg = f"{checkpoint.path} was written with another {name}; choose another run folder or delete it"
            raise CheckpointError(msg)
    return state


_WHAT = {  # the cause before what follows from it
    "classes": "class list",
    "features": "data YAML",
    "data": "set of shards",
    "model": "architecture",
    "recipe": "recipe",
}


def _validate(
    model: nn.Module,
    batches: Iterator[Batch],
    full: int,
    device: torch.device,
    curves: Sequence[BinnedAuc],
    where: Where,
) -> Validation:
    """Loss, accuracy and AUCs over all workers' validation jets, the network's own figures over those in batches of
    `full` jets, by the network that is saved: running statistics are those of worker 0. InputError for a jet with an
    output that is not finite."""
    network: Any = getattr(model, "module", model)
    if distributed.is_initialized():
        for buffer in network.buffers():
            distributed.broadcast(buffer, 0)
    names: tuple[str, ...] = getattr(network, "validation_figures", ())
    sums, own = torch.zeros(3, dtype=torch.float64), torch.zeros(1 + len(names), dtype=torch.float64)
    for batch, logits, labels in predict(network, batches, device, own, full):
        if not (good := logits.isfinite().all(dim=1)).all():
            first = int((~good).nonzero()[0])
            msg = f"validation: the network's output is not finite for {where(batch, first)}"
            raise InputError(msg)
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        right = (logits.argmax(dim=1) == labels).sum()
        sums += torch.tensor([loss.item(), right.item(), len(labels)], dtype=torch.float64)
        for curve in curves:
            curve.add(logits, labels)
    if distributed.is_initialized():
        sums, own = _added(sums, device), _added(own, device)
        for curve in curves:
            curve.counts = _added(curve.counts, device)
    loss_sum, right_sum, jets = sums.tolist()
    if jets == 0:
        msg = "the validation split holds no jet that the selection and the label scheme keep"
        raise InputError(msg)
    auc = {curve.name: value for curve in curves if (value := curve.value()) is not None}
    compared, *values = own.tolist()
    figures = {name: value / compared for name, value in zip(names, values, strict=True) if compared}
    return Validation(loss_sum / jets, right_sum / jets, int(jets), auc, figures)


def _added(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Sum over all workers."""
    values = values.to(device)
    distributed.all_reduce(values)
    return values.cpu()
