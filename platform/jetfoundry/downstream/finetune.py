"""The whole network trained for a task: from the backbone's weights (`finetune`), or from random ones (`scratch`).

Both have the architecture of the backbone's jet network with a new head for the task's classes, the same steps, and the
same batches for a seed. Fine-tuning gives each layer a learning rate of its own: the head's times `layer_decay` for
every layer between (ELECTRA's rule, arXiv:2003.10555, section 3.2 and appendix A). The jets' features are made once
and lie in memory; a step is that of pre-training (`train/step.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from jetfoundry import config
from jetfoundry.downstream.problem import Particles, Problem
from jetfoundry.errors import InputError
from jetfoundry.features.padding import Features
from jetfoundry.loading.batch import Batch
from jetfoundry.loading.sampling import systematic_draw
from jetfoundry.loading.window import length_sorted
from jetfoundry.models.checkpoints import load_model
from jetfoundry.models.contrastive import ContrastiveConfig
from jetfoundry.models.losses import Losses
from jetfoundry.models.particle_transformer import ParTConfig
from jetfoundry.models.presets import build
from jetfoundry.models.start import begin_from
from jetfoundry.models.tasks import TaskConfig, token_groups
from jetfoundry.train.optim import OptimConfig
from jetfoundry.train.schedule import Schedule
from jetfoundry.train.step import Stepper, logits_of
from jetfoundry.train.timing import PhaseTimer

__all__ = ["NetworkConfig", "jet_config", "jet_network", "layer_rates", "train_network"]

_SCORED_AT_ONCE = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """How long the whole network trains, alike for `finetune` and `scratch`."""

    epochs: int = config.option(10, "passes over the training jets")
    min_steps: int = config.option(100, "steps at least, for few jets")
    batch_size: int = config.option(256, "jets of one step")
    micro_batches: int = config.option(4, "parts of a batch, sorted by length, each padded to its longest jet")
    lr: float = config.option(1e-3, "peak learning rate, of the head and of a network with random weights")
    layer_decay: float = config.option(0.75, "finetune: factor on the learning rate for each layer below the head")
    weight_decay: float = config.option(0.01, "decoupled weight decay")

    def __post_init__(self) -> None:
        if not 1 <= self.micro_batches <= self.batch_size or min(self.epochs, self.min_steps) < 1:
            msg = f"wanted epochs, min_steps >= 1 and 1 <= micro_batches <= batch_size, got {self}"
            raise ValueError(msg)
        if self.lr <= 0 or not 0 < self.layer_decay <= 1:
            msg = f"wanted lr > 0 and 0 < layer_decay <= 1, got {self.lr} and {self.layer_decay}"
            raise ValueError(msg)


def jet_config(model_config: Any, num_classes: int) -> Any:
    """Configuration of what is trained: the backbone's jet network (of a contrastive pair, that part) with a head for C
    classes. Class tokens that go through class blocks of their own, and their heads, are left out: the classification
    never sees them, so a pair and its classification alone are one architecture."""
    jet = model_config.jet if isinstance(model_config, ContrastiveConfig) else model_config
    jet = dataclasses.replace(jet, num_classes=num_classes)
    if not isinstance(jet, ParTConfig):
        return jet
    seen = next(iter(token_groups(jet.all_tasks).values()))
    tasks = tuple(task for task in jet.all_tasks if task.reads in seen)
    return dataclasses.replace(jet, tasks=() if tasks == (TaskConfig(),) else tasks)


def jet_network(model_config: Any, num_classes: int) -> nn.Module:
    """The network of `jet_config` with random weights from torch's generator."""
    return build(jet_config(model_config, num_classes))


def layer_rates(network: nn.Module, decay: float) -> dict[str, float]:
    """Factors on the learning rate by parameter name, for `OptimConfig.lr_mult`: layers in the order in which the
    network has them, the heads' factor being 1. Class tokens that the classification does not read are no layers."""
    aside = ("head.", "heads.", "readouts.")
    names = [name for name, _ in network.named_parameters() if not name.startswith(aside)]
    layers = list(dict.fromkeys(re.match(r"[^.]+(\.\d+)?", name)[0] for name in names))  # type: ignore[index]
    return {rf"{re.escape(layer)}(\.|$)": decay ** (len(layers) - i) for i, layer in enumerate(layers)}


def train_network(
    problem: Problem, model: Path, options: NetworkConfig, *, trained: bool, device: str = "cpu"
) -> tuple[npt.NDArray[np.float32], int]:
    """Train on the problem's `Particles`, from the weights of `model` or from random ones.

    Returns logits (E, C) and how many jets the steps took. InputError if the loss stops being finite.
    """
    where = torch.device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(problem.seed)
        network = jet_network(load_model(model).model_config, problem.outputs)
        if trained:  # the head is new, even if the pre-trained one happens to be of the same size
            head = {f"head.{name}": weight.clone() for name, weight in network.head.state_dict().items()}  # type: ignore[union-attr]
            begin_from(network, model)
            network.load_state_dict(head, strict=False)
        if not problem.num_classes:
            network.losses = functools.partial(_target_losses, problem)  # type: ignore[assignment]
        network = network.to(where).train()
        rates = layer_rates(network, options.layer_decay) if trained else {}
        optim = OptimConfig(lr=options.lr, lr_mult=rates, weight_decay=options.weight_decay)
        stepper, timer = Stepper(network, optim, "off", where), PhaseTimer()
        per_epoch = -(-len(problem.labels) // options.batch_size)
        steps = max(options.epochs * per_epoch, options.min_steps)
        schedule, seen = Schedule("cosine", optim.warmup, 1, steps), 0
        for step, batch in zip(
            range(steps), _batches(problem, options.batch_size, options.micro_batches), strict=False
        ):
            done = stepper(batch, options.lr * schedule(step), timer)
            seen += batch.size
            if step % per_epoch == 0 and not done.losses.isfinite().all():
                msg = f"the loss is not finite in step {step} of {steps}; lower the learning rate"
                raise InputError(msg)
    return _scores(network.eval(), problem.evaluate, where), seen


def _batches(problem: Problem, batch_size: int, micro_batches: int) -> Iterator[Batch]:
    """Endless batches, in which jets come as often as their weights say: all once in a pass, if these are equal."""
    particles: Particles = problem.train
    features = _labelled(particles, problem.labels)
    rng = np.random.default_rng([problem.seed, 0xBA7C])
    uses = problem.weights.astype(np.float64)
    while True:
        drawn = systematic_draw(uses, len(uses), rng)
        for part in np.array_split(particles.jets[drawn], -(-len(drawn) // batch_size)):
            yield length_sorted(features, part, micro_batches)


def _target_losses(problem: Problem, outputs: torch.Tensor, labels: torch.Tensor, _: Any) -> Losses:
    each = problem.loss(outputs.float(), labels)
    return Losses(each, each.detach(), outputs.detach(), {})


def _labelled(particles: Particles, labels: npt.NDArray[Any]) -> Features:
    every: npt.NDArray[Any] = np.zeros(len(particles.features), np.int64 if labels.dtype.kind in "iu" else np.float32)
    every[particles.jets] = labels
    return dataclasses.replace(particles.features, labels=every)


def _scores(network: nn.Module, particles: Particles, device: torch.device) -> npt.NDArray[np.float32]:
    """Logits (E, C) in the order of the jets; batches are of equal lengths."""
    order = np.argsort(np.diff(particles.features.offsets)[particles.jets], kind="stable")
    found = []
    with torch.inference_mode():
        for begin in range(0, len(order), _SCORED_AT_ONCE):
            jets = particles.jets[order[begin : begin + _SCORED_AT_ONCE]]
            (micro,) = length_sorted(particles.features, jets, 1).micro
            found.append(logits_of(network, micro, device)[0].float().cpu().numpy())
    return np.concatenate(found)[np.argsort(order, kind="stable")]
