"""The training loop in plain PyTorch: the same under Ray Train, torchrun, in a notebook or on a bare GPU machine.

A step (step.py) is B jets in micro-batches -> logits -> cross-entropy, averaged over all B -> one update of the
weights. The loop knows neither files nor Ray: batches come in with their position, checkpoints go out through `save`.
All state that decides the future (weights, optimiser, step, position in the data) is in the dict that `save` gets;
`fit(..., state=that)` continues as if nothing had happened. Random numbers of a step (dropout) are seeded from (seed,
rank, step), so they need no state and do not depend on what ran before.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from jetfoundry import config
from jetfoundry.loading.batch import Batch, Position
from jetfoundry.train.compiled import Compile
from jetfoundry.train.finite import FiniteWatch, Where, nth_jet
from jetfoundry.train.optim import OptimConfig
from jetfoundry.train.schedule import Schedule
from jetfoundry.train.step import Precision, Step, Stepper, joined, outputs_of
from jetfoundry.train.timing import PhaseTimer, peak_memory

__all__ = ["Notice", "TrainConfig", "Validation", "fit", "predict"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how to train."""

    epochs: int = config.option(10, "number of epochs")
    steps_per_epoch: int = config.option(0, "optimiser steps of one epoch, 0 = one pass over the data")
    optim: OptimConfig = config.option(OptimConfig(), "optimiser and schedule")
    amp: Precision = config.option("off", "automatic mixed precision: off, bf16, or fp16 with a loss scaler")
    compile: Compile = config.option("off", "torch.compile of the network: off, default, reduce-overhead")
    checkpoint_steps: int = config.option(0, "also write a checkpoint every so many steps, 0 = at epoch ends only")
    log_steps: int = config.option(10, "write a row of metrics every so many steps")
    seed: int = config.option(1, "seed of weights, dropout and data order")
    sync_timing: bool = config.option(False, "wait for the GPU after each phase: a true time split, some speed lost")

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.steps_per_epoch < 0 or self.log_steps < 1:
            msg = f"wanted epochs >= 1, steps_per_epoch >= 0, log_steps >= 1; got {self.epochs}, "
            raise ValueError(msg + f"{self.steps_per_epoch}, {self.log_steps}")


class Validation(NamedTuple):
    """Mean cross-entropy and accuracy over the validation jets of all workers, their number, and AUCs and the network's
    own figures by name."""

    loss: float
    accuracy: float
    jets: int
    auc: dict[str, float] = {}  # noqa: RUF012 - nobody writes into it
    own: dict[str, float] = {}  # noqa: RUF012 - nobody writes into it

    def figures(self) -> dict[str, Any]:
        """As columns of the metrics."""
        auc = {f"val_auc/{name}": value for name, value in self.auc.items()}
        own = {f"val_{name}": value for name, value in self.own.items()}
        return {"val_loss": self.loss, "val_accuracy": self.accuracy, "val_jets": self.jets, **auc, **own}


TrainStream = Callable[[Position], contextlib.AbstractContextManager[Iterator[tuple[Batch, Position]]]]
"""Opens the endless training batches at a position."""

Save = Callable[[dict[str, Any], dict[str, Any]], None]
"""Stores (state, metrics); called by every worker at the same steps."""

Notice = Literal["", "save", "stop"]
"""What the world outside asks for: nothing, a checkpoint now, or a checkpoint and the end of the run."""


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
    where: Where = nth_jet,
    notice: Callable[[], Notice] = lambda: "",
) -> dict[str, Any]:
    """Train `model` (bare, or wrapped for data-parallel training) to the end; returns the timing summary: jets/s of
    all `world` workers, and how this worker's time splits.

    `state` continues an earlier run. `save(state, metrics)` is called at every epoch's end and every
    `checkpoint_steps`; `log(row)` every `log_steps` and after each validation; `notice()` is asked every `log_steps`
    whether there is to be a checkpoint out of turn. Raises InputError when a loss is not finite, with what `where` says
    of the first such jet; nothing of that step is logged or saved.
    """
    stepper = Stepper(model, options.optim, options.amp, device, graphs=options.compile == "reduce-overhead")
    step, position = 0, Position()
    if state is not None:
        stepper.restore(state)
        step, position = int(state["step"]), Position(*state["position"])
    total = options.epochs * steps_per_epoch
    schedule = Schedule(options.optim.schedule, options.optim.warmup, options.epochs, steps_per_epoch)
    timer = PhaseTimer(synchronize=options.sync_timing)
    watch, sums = FiniteWatch(device, where), _Sums(device, stepper.figures, state)
    with train(position) as batches:
        while step < total:
            model.train()
            with timer.phase("data/wait"):
                batch, position = next(batches)
            torch.manual_seed(_step_seed(options.seed, rank, step))
            lr = options.optim.lr * schedule(step)
            done = stepper(batch, lr, timer)
            step += 1
            timer.step_done(batch.size * world)  # all workers make their steps together
            watch.add(step, batch, done.losses, done.norm)
            sums.add(done, batch.size)
            epoch_done = step % steps_per_epoch == 0
            asked = notice() if step % options.log_steps == 0 and step < total else ""
            saving = epoch_done or asked or (options.checkpoint_steps and step % options.checkpoint_steps == 0)
            if saving or step % options.log_steps == 0:
                watch.settle()
                stepper.check_scale()
            if epoch_done or step % options.log_steps == 0:
                row = {"step": step, "epoch": step / steps_per_epoch, "lr": lr, **sums.means()}
                log({**row, **_resources(timer, world, batch, device), "position": list(position)})
                sums = _Sums(device, stepper.figures)
            metrics: dict[str, Any] = {"step": step, "epoch": step / steps_per_epoch}
            if epoch_done:
                with timer.phase("pause/validation"):
                    metrics |= validate(stepper.judged).figures()
                log(metrics)
            if saving:
                with timer.phase("pause/checkpoint"):
                    save(stepper.state() | sums.state() | {"step": step, "position": list(position)}, metrics)
            if asked == "stop":
                break
    return timer.summary()


class _Sums:
    """Sums over the steps since the last row of metrics, on the device; a continued run goes on with them."""

    def __init__(self, device: torch.device, figures: tuple[str, ...], state: dict[str, Any] | None = None) -> None:
        self.figures, self.values = figures, torch.zeros(3 + len(figures), device=device)
        self.jets, self.steps = 0, 0
        if state is not None:
            values, self.jets, self.steps = state["sums"]
            self.values += torch.tensor(values, device=device)

    def state(self) -> dict[str, Any]:
        return {"sums": [self.values.tolist(), self.jets, self.steps]}

    def add(self, done: Step, jets: int) -> None:
        self.values += torch.cat((torch.stack((done.losses.sum(), done.right, done.norm)), done.figures))
        self.jets += jets
        self.steps += 1

    def means(self) -> dict[str, float]:
        loss, right, norm, *figures = self.values.tolist()  # the one place where the loop waits for the device
        own = {name: value / self.jets for name, value in zip(self.figures, figures, strict=True)}
        return {"loss": loss / self.jets, "accuracy": right / self.jets, "grad_norm": norm / self.steps, **own}


def _resources(timer: PhaseTimer, world: int, batch: Batch, device: torch.device) -> dict[str, float]:
    """Speed of all workers and of this one, share of the time that data were waited for, padding, peak memory."""
    summary = timer.summary()
    slots = [micro.inputs["pf_mask"] for micro in batch.micro]
    real = sum(mask.sum().item() for mask in slots)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
    return {
        "jets_per_s": summary["jets_per_s"],
        "jets_per_s_worker": summary["jets_per_s"] / world,
        "data_wait": summary.get("data/wait", 0.0),
        "padding": 1 - real / sum(mask.numel() for mask in slots),
        "memory_mib": round(peak / 2**20),
    }


def predict(
    model: nn.Module,
    batches: Iterator[Batch],
    device: torch.device,
    figures: torch.Tensor | None = None,
    full: int = 0,
) -> Iterator[tuple[Batch, torch.Tensor, torch.Tensor]]:
    """Yield (batch, logits (B, C), labels (B,)) in evaluation mode, on the CPU, jets in the batch's order.

    To `figures` (1 + K,) are added the number of jets in batches of `full` and, over these jets, the sums of the
    network's own `validation_figures`: jets are compared with those of their batch, so only equal batches count.
    """
    model.eval()
    own: Any = getattr(model, "validation", None) if figures is not None else None
    for batch in batches:
        with torch.inference_mode():
            parts = [outputs_of(model, micro, device, training=own is not None) for micro in batch.micro]
            if own is not None and figures is not None:
                outputs, labels = joined(model, parts)
                if batch.size == full:
                    figures[0] += full
                    figures[1:] += own(outputs).sum(0).to(figures)
                parts = [(outputs.logits, labels)]
        yield batch, torch.cat([p[0] for p in parts]).float().cpu(), torch.cat([p[1] for p in parts]).cpu()


def _step_seed(seed: int, rank: int, step: int) -> int:
    """A 63-bit seed that differs for every (seed, rank, step)."""
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)[0] >> 1)
