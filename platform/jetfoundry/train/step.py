"""One optimiser step: micro-batches forward and backward, gradients clipped, weights updated.

The loss of a batch of B jets is the mean of their losses, cross-entropies unless the network has others
(`models/losses.py`), whatever the micro-batches: each adds its part to the gradient (which is gradient accumulation: a
batch may be larger than memory holds at once), and workers exchange gradients once, with the last one. Of a network
that compares the jets of a batch all micro-batches go forward before one backward pass: they save padding, not memory,
and no jet is spared the comparison with any other. Lower precision is torch's automatic one; bf16 needs no scaling,
fp16 has a scaler, whose skipped steps (gradients that overflow while it looks for its scale) are no error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from jetfoundry.errors import InputError
from jetfoundry.loading.batch import Batch, MicroBatch
from jetfoundry.models.losses import losses_of
from jetfoundry.train.optim import OptimConfig, build_optimizer, restore_optimizer, set_learning_rate
from jetfoundry.train.timing import PhaseTimer

__all__ = ["Precision", "Step", "Stepper", "autocast", "joined", "judged_weights", "logits_of", "outputs_of"]

Precision = Literal["off", "bf16", "fp16"]

_SMALLEST_SCALE = 1e-3  # it begins at 65,536 and is halved at every overflow

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Step(NamedTuple):
    """What a step was: cross-entropy of each jet (B,) in the batch's order, number of right answers, norm of the
    gradient before it was clipped, sums over the jets of the network's own figures (K,). All on the device."""

    losses: torch.Tensor
    right: torch.Tensor
    norm: torch.Tensor
    figures: torch.Tensor


class Stepper:
    """The model with what changes its weights: optimiser, loss scaler, average of the weights."""

    def __init__(
        self, model: nn.Module, optim: OptimConfig, precision: Precision, device: torch.device, *, graphs: bool = False
    ) -> None:
        """`graphs`: the model is replayed as CUDA graphs, so that gradients must stay at one place of memory."""
        self.model, self.optim, self.precision, self.device = model, optim, precision, device
        self.bare = getattr(model, "module", model)
        self.figures: tuple[str, ...] = getattr(self.bare, "figures", ())
        self.optimizer = build_optimizer(self.bare, optim)
        self.keep_gradients = graphs
        for parameter in self.bare.parameters() if graphs else ():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.average: AveragedModel | None = None
        if optim.ema:
            self.average = AveragedModel(self.bare, multi_avg_fn=get_ema_multi_avg_fn(optim.ema))

    @property
    def judged(self) -> nn.Module:
        """The network to validate and to keep: the average of the weights, if there is one."""
        return self.bare if self.average is None else self.average.module

    def __call__(self, batch: Batch, lr: float, timer: PhaseTimer) -> Step:
        """Make one step at learning rate `lr`."""
        set_learning_rate(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=not self.keep_gradients)
        losses, right = [], torch.zeros((), device=self.device)
        figures = torch.zeros(len(self.figures), device=self.device)
        for parts in [batch.micro] if hasattr(self.bare, "joined") else [(micro,) for micro in batch.micro]:
            with timer.phase("train/forward"), autocast(self.precision, self.device):
                outputs, labels = self._forward(parts, batch)
                ids = None if batch.ids is None else torch.from_numpy(batch.ids).to(self.device)
                found = losses_of(self.bare, outputs, labels, ids)
            with timer.phase("train/backward"):
                self.scaler.scale(found.total.sum() / batch.size).backward()
            losses.append(found.classification)
            right += (found.logits.argmax(1) == labels).sum()
            if self.figures:
                figures += torch.stack([found.figures[name].expand(len(labels)).sum() for name in self.figures])
        with timer.phase("train/optimizer"):
            norm = self._update()
        return Step(torch.cat(losses), right, norm, figures)

    def _forward(self, parts: Sequence[MicroBatch], batch: Batch) -> tuple[Any, torch.Tensor]:
        """Outputs and labels of these micro-batches, all or one of `batch`. Workers exchange gradients in the backward
        pass that follows the last one's forward pass."""
        done = []
        for micro in parts:
            quiet: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
            if micro is not batch.micro[-1] and isinstance(self.model, nn.parallel.DistributedDataParallel):
                quiet = self.model.no_sync()
            with quiet:
                done.append(outputs_of(self.model, micro, self.device, training=True))
        return joined(self.bare, done)

    def _update(self) -> torch.Tensor:
        self.scaler.unscale_(self.optimizer)
        limit = self.optim.clip_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.bare)
        # While fp16 looks for its scale, gradients overflow and the step is skipped.
        return torch.nan_to_num(norm, posinf=0.0) if self.scaler.is_enabled() else norm

    def check_scale(self) -> None:
        """InputError if gradients in fp16 overflow at whatever scale: every step would be skipped, and said nothing."""
        scale = self.scaler.get_scale()
        if self.scaler.is_enabled() and scale < _SMALLEST_SCALE:
            msg = (
                f"fp16: gradients overflow even at a loss scale of {scale:g}, so no step changes the weights; look at "
            )
            raise InputError(msg + "the inputs, lower the learning rate, or take train.amp=bf16 or off")

    def state(self) -> dict[str, Any]:
        """All that decides the next step, as tensors and plain types."""
        state = {"weights": self.bare.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        if self.average is not None:
            state["average"] = self.average.state_dict()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, with the same options."""
        self.bare.load_state_dict(state["weights"])
        restore_optimizer(self.optimizer, state["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])


def logits_of(model: nn.Module, micro: MicroBatch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Move one micro-batch to the device and run the network on its `inputs`: logits (b, C) and labels (b,)."""
    return outputs_of(model, micro, device, training=False)


def outputs_of(
    model: nn.Module, micro: MicroBatch, device: torch.device, *, training: bool
) -> tuple[Any, torch.Tensor]:
    """The same of a network that takes other inputs, and gives other outputs, in `training`."""
    inputs, labels = micro.to(device)
    network: Any = getattr(model, "module", model)
    names = getattr(network, "training_inputs", network.inputs) if training else network.inputs
    return model(*(inputs[name] > 0 if name == "pf_mask" else inputs[name] for name in names)), labels


def joined(network: nn.Module, done: Sequence[tuple[Any, torch.Tensor]]) -> tuple[Any, torch.Tensor]:
    """Outputs and labels of micro-batches as those of one."""
    outputs, labels = zip(*done, strict=True)
    if len(done) == 1:
        return outputs[0], labels[0]
    join: Any = network.joined
    return join(outputs), torch.cat(labels)


def judged_weights(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights that were validated, of a state of `Stepper`: their average, if there is one."""
    if "average" not in state:
        return dict(state["weights"])
    return {name.removeprefix("module."): values for name, values in state["average"].items() if name != "n_averaged"}


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Automatic mixed precision, or nothing."""
    return torch.autocast(device.type, dtype=_DTYPES[precision]) if precision != "off" else contextlib.nullcontext()
