"""Learning-rate range test (Smith, arXiv:1506.01186): one short training whose rate rises exponentially.

The loss first stays, then falls, then diverges. Suggested is the rate at which the smoothed loss falls most steeply per
decade: a good peak for a schedule with warm-up. Nothing of this training is kept but its curve.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from jetfoundry import config
from jetfoundry.data.shards import open_shards
from jetfoundry.features.transform import load_data_config
from jetfoundry.loading.batch import Batch
from jetfoundry.loading.loader import prefetched, training_batches
from jetfoundry.models.freezing import freeze
from jetfoundry.models.presets import MODELS, build
from jetfoundry.models.start import begin_from
from jetfoundry.train.loop import TrainConfig
from jetfoundry.train.recipe import Recipe
from jetfoundry.train.step import Stepper
from jetfoundry.train.timing import PhaseTimer

__all__ = ["RangeTest", "find_learning_rate", "range_test"]

_SMOOTHING = 0.9  # of the running average of the loss
_SETTLED = 10  # steps after which that average is one
_DIVERGED = 4.0  # times its smallest value: stop


class RangeTest(NamedTuple):
    """Learning rates, the loss at each and its running average, the suggested rate, and whether the loss diverged."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float
    diverged: bool

    def rows(self) -> list[dict[str, Any]]:
        """As rows of a table."""
        names = ("lr", "loss", "smoothed")
        return [dict(zip(names, row, strict=True)) for row in zip(self.rates, self.losses, self.smoothed, strict=True)]


def find_learning_rate(recipe: Recipe, spec: dict[str, Any]) -> RangeTest:
    """Range test of a planned run (`ray_train.plan`) in this process: its network, its first batches, each as large as
    those of all its workers together, on a GPU if its workers and this machine have one."""
    data = load_data_config(config.parse_yaml(spec["data_yaml"], recipe.features), known=None, scheme=recipe.labels)
    train = spec["files"]["train"] if spec["files"] else open_shards(recipe.data, "train")
    world, loader = recipe.workers.num_workers, recipe.loader
    whole = dataclasses.replace(
        loader, batch_size=world * loader.batch_size, micro_batches=world * loader.micro_batches
    )
    torch.manual_seed(recipe.train.seed)
    device = torch.device("cuda" if recipe.workers.use_gpu and torch.cuda.is_available() else "cpu")
    network = build(config.build(MODELS[spec["model_name"]][0], spec["model"]))
    if spec["init"]:
        begin_from(network, spec["init"])
    freeze(network, recipe.model.freeze)

    def batches() -> Iterator[Batch]:
        for batch, _ in training_batches(train, data, whole, recipe.sampling, seed=recipe.train.seed):
            yield batch

    with contextlib.closing(prefetched(batches, loader.prefetch)) as items:
        return range_test(network.to(device), items, recipe.train, device)


def range_test(
    model: nn.Module,
    batches: Iterator[Batch],
    options: TrainConfig,
    device: torch.device,
    *,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 100,
) -> RangeTest:
    """Train `model`, which is spoilt by it, for at most `steps` steps from the lowest to the highest rate."""
    stepper, timer = Stepper(model, options.optim, options.amp, device), PhaseTimer()
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    mean, diverged = 0.0, False
    model.train()
    for step in range(steps):
        rates.append(lowest * (highest / lowest) ** (step / (steps - 1)))
        batch = next(batches)
        losses.append(stepper(batch, rates[-1], timer).losses.sum().item() / batch.size)
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * losses[-1]
        smoothed.append(mean / (1 - _SMOOTHING ** (step + 1)))
        diverged = not math.isfinite(smoothed[-1]) or smoothed[-1] > _DIVERGED * min(smoothed)
        if diverged:
            rates, losses, smoothed = rates[:-1], losses[:-1], smoothed[:-1]
            break
    return RangeTest(rates, losses, smoothed, _steepest(rates, smoothed), diverged)


def _steepest(rates: list[float], smoothed: list[float]) -> float:
    """The rate at which the loss falls most steeply, before its minimum and after the average has settled."""
    lowest = int(np.argmin(smoothed))
    if lowest < _SETTLED + 2:
        return rates[min(_SETTLED, len(rates) - 1)]
    slope = np.gradient(np.asarray(smoothed[_SETTLED : lowest + 1]), np.log(rates[_SETTLED : lowest + 1]))
    return float(rates[_SETTLED + int(np.argmin(slope[:-1]))])
