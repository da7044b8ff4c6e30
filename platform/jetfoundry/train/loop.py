"""The training loop in plain PyTorch: the same under Ray Train, torchrun, in a notebook or on a bare GPU machine.

One step: B jets in micro-batches of equal length classes -> logits -> cross-entropy, averaged over all B -> one
optimiser step. The loop knows neither files nor Ray: batches come in with their position, checkpoints go out
through `save`. All state that decides the future (weights, optimiser, step, position in the data) is in the dict
that `save` gets; `fit(..., state=that)` continues as if nothing had happened. Random numbers of a step (dropout) are
seeded from (seed, rank, step), so they need no state and do not depend on what ran before.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from jetfoundry import config
from jetfoundry.errors import InputError
from jetfoundry.loading.batch import Batch, MicroBatch, Position
from jetfoundry.train.optim import OptimConfig, build_optimizer, learning_rate_factor
from jetfoundry.train.timing import PhaseTimer

__all__ = ["TrainConfig", "Validation", "fit", "predict"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how to train."""

    epochs: int = config.option(10, "number of epochs")
    steps_per_epoch: int = config.option(0, "optimiser steps of one epoch, 0 = one pass over the data")
    optim: OptimConfig = config.option(OptimConfig(), "optimiser and schedule")
    amp: Literal["off", "bf16"] = config.option("off", "automatic mixed precision")
    checkpoint_steps: int = config.option(0, "also write a checkpoint every so many steps, 0 = at epoch ends only")
    log_steps: int = config.option(10, "write a row of metrics every so many steps")
    seed: int = config.option(1, "seed of weights, dropout and data order")
    sync_timing: bool = config.option(False, "wait for the GPU after each phase: a true time split, some speed lost")

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.steps_per_epoch < 0 or self.log_steps < 1:
            msg = f"wanted epochs >= 1, steps_per_epoch >= 0, log_steps >= 1; got {self.epochs}, "
            raise ValueError(msg + f"{self.steps_per_epoch}, {self.log_steps}")


class Validation(NamedTuple):
    """Mean cross-entropy and accuracy over the validation jets of all workers, and their number."""

    loss: float
    accuracy: float
    jets: int


TrainStream = Callable[[Position], contextlib.AbstractContextManager[Iterator[tuple[Batch, Position]]]]
"""Opens the endless training batches at a position."""

Save = Callable[[dict[str, Any], dict[str, Any]], None]
"""Stores (state, metrics); called by every worker at the same steps."""


def fit(
    model: nn.Module,
    train: TrainStream,
    validate: Callable[[nn.Module], Validation],
    options: TrainConfig,
    *,
    steps_per_epoch: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    state: dict[str, Any] | None = None,
    save: Save,
    log: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
    """Train `model` (bare, or wrapped for data-parallel training) to the end; returns the timing summary: jets/s of
    all `world` workers, and how this worker's time splits.

    `state` continues an earlier run. `save(state, metrics)` is called at every epoch's end and every
    `checkpoint_steps`; `log(row)` every `log_steps` and after each validation.
    """
    bare = getattr(model, "module", model)
    optimizer = build_optimizer(bare, options.optim)
    step, position = _restore(state, bare, optimizer)
    total = options.epochs * steps_per_epoch
    timer = PhaseTimer(synchronize=options.sync_timing)
    loss_sum, jets = torch.zeros((), device=device), 0
    with train(position) as batches:
        while step < total:
            model.train()
            with timer.phase("data/wait"):
                batch, position = next(batches)
            torch.manual_seed(_step_seed(options.seed, rank, step))
            lr = options.optim.lr * learning_rate_factor(step, total, options.optim.warmup)
            loss_sum += _step(model, batch, optimizer, lr, options, device, timer)
            jets += batch.size
            step += 1
            timer.step_done(batch.size * world)  # all workers make their steps together
            epoch_done = step % steps_per_epoch == 0
            if step % options.log_steps == 0 or epoch_done:
                row = {"step": step, "epoch": step / steps_per_epoch, "lr": lr, "loss": _mean(loss_sum, jets, step)}
                log({**row, "jets_per_s": timer.summary()["jets_per_s"], "position": list(position)})
                loss_sum, jets = torch.zeros((), device=device), 0
            metrics: dict[str, Any] = {"step": step, "epoch": step / steps_per_epoch}
            if epoch_done:
                result = validate(model)
                metrics |= {"val_loss": result.loss, "val_accuracy": result.accuracy, "val_jets": result.jets}
                log(metrics)
            if epoch_done or (options.checkpoint_steps and step % options.checkpoint_steps == 0):
                save(_state(bare, optimizer, step, position), metrics)
    return timer.summary()


def _step(
    model: nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    lr: float,
    options: TrainConfig,
    device: torch.device,
    timer: PhaseTimer,
) -> torch.Tensor:
    """One optimiser step; returns the sum of the cross-entropy over the batch's jets, still on the device."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=device)
    for i, micro in enumerate(batch.micro):
        # Workers exchange gradients once per step, with the last micro-batch.
        last = i == len(batch.micro) - 1
        quiet: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if not last and isinstance(model, nn.parallel.DistributedDataParallel):
            quiet = model.no_sync()
        with quiet:
            with timer.phase("train/forward"), _autocast(options.amp, device):
                logits, labels = _logits(model, micro, device)
                loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
            with timer.phase("train/backward"):
                (loss / batch.size).backward()
        total += loss.detach()
    with timer.phase("train/optimizer"):
        if options.optim.clip_norm > 0:
            nn.utils.clip_grad_norm_(model.parameters(), options.optim.clip_norm)
        optimizer.step()
    return total


def _logits(model: nn.Module, micro: MicroBatch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Move one micro-batch to the device and run the network: logits (b, C) and labels (b,)."""
    inputs = {name: values.to(device, non_blocking=True) for name, values in micro.inputs.items()}
    logits = model(inputs["pf_features"], inputs["pf_vectors"], inputs["pf_mask"] > 0)
    return logits, micro.labels.to(device, non_blocking=True)


def _autocast(amp: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if amp == "bf16" else contextlib.nullcontext()


def _mean(loss_sum: torch.Tensor, jets: int, step: int) -> float:
    """Mean loss since the last row; the one place where the loop waits for the device."""
    loss = loss_sum.item() / max(jets, 1)
    if loss != loss or loss in (float("inf"), float("-inf")):
        msg = f"the training loss became {loss} in the steps before step {step}; lower the learning rate or look "
        raise InputError(msg + "for extreme values in the inputs of these steps")
    return loss


def predict(
    model: nn.Module, batches: Iterator[Batch], device: torch.device
) -> Iterator[tuple[Batch, torch.Tensor, torch.Tensor]]:
    """Yield (batch, logits (B, C), labels (B,)) in evaluation mode, on the CPU, jets in the batch's order."""
    model.eval()
    for batch in batches:
        with torch.inference_mode():
            parts = [_logits(model, micro, device) for micro in batch.micro]
        yield batch, torch.cat([p[0] for p in parts]).float().cpu(), torch.cat([p[1] for p in parts]).cpu()


def _state(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, position: Position) -> dict[str, Any]:
    """Everything that decides the rest of the run, as tensors and plain types."""
    return {
        "weights": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "position": list(position),
    }


def _restore(state: dict[str, Any] | None, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, Position]:
    if state is None:
        return 0, Position()
    model.load_state_dict(state["weights"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), Position(*state["position"])


def _step_seed(seed: int, rank: int, step: int) -> int:
    """A 63-bit seed that differs for every (seed, rank, step)."""
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)[0] >> 1)
