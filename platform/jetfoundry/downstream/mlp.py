"""A small feed-forward network on frozen latents: what the backbone knows, but not linearly.

A part of the training jets, the same for all points of the grid, chooses between them and says after which epoch a
point was best: that state of the network is the result. The evaluation jets choose nothing.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from jetfoundry import config
from jetfoundry.downstream.problem import Problem, Report, held_out
from jetfoundry.errors import InputError

__all__ = ["MlpConfig", "mlp"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlpConfig:
    """The grid, and how long each of its points trains."""

    widths: tuple[int, ...] = config.option((64, 256), "grid: width of the hidden layers")
    depths: tuple[int, ...] = config.option((1, 2), "grid: number of hidden layers")
    lrs: tuple[float, ...] = config.option((1e-3, 1e-2), "grid: peak learning rate, decays as a cosine")
    epochs: int = config.option(20, "passes over the training jets")
    batch_size: int = config.option(1024, "jets of one step")
    dropout: float = config.option(0.1, "after each hidden layer")
    held_out: float = config.option(0.2, "share of the training jets that chooses the grid point")

    def __post_init__(self) -> None:
        if not self.grid or min(*self.widths, *self.depths, self.epochs, self.batch_size) < 1:
            msg = f"wanted widths, depths, epochs and batch_size >= 1 and learning rates, got {self}"
            raise ValueError(msg)
        if not 0 < self.held_out < 1 or not 0 <= self.dropout < 1:
            msg = f"wanted 0 < held_out < 1 and 0 <= dropout < 1, got {self.held_out} and {self.dropout}"
            raise ValueError(msg)

    @property
    def grid(self) -> list[dict[str, Any]]:
        """All points."""
        values = itertools.product(self.widths, self.depths, self.lrs)
        return [{"width": width, "depth": depth, "lr": lr} for width, depth, lr in values]


def mlp(problem: Problem, point: Mapping[str, Any], options: MlpConfig, report: Report) -> npt.NDArray[np.float32]:
    """Train one point of the grid; logits (E, C). Every epoch is reported with the best loss so far on the jets held
    out. Raises InputError if that loss is not finite."""
    latent: npt.NDArray[np.float32] = problem.train
    out = held_out(problem.labels, options.held_out, problem.seed)
    mean, spread = latent[~out].mean(axis=0), latent[~out].std(axis=0) + 1e-6
    x, y = (torch.from_numpy((latent - mean) / spread), problem.torch_labels)
    weights = torch.from_numpy(problem.weights.astype(np.float32))
    x_out, y_out, w_out, x, y, weights = x[out], y[out], weights[out], x[~out], y[~out], weights[~out]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(problem.seed)
        network = _network(latent.shape[1], problem.outputs, point, options.dropout)
        optimizer = torch.optim.AdamW(network.parameters(), lr=point["lr"], weight_decay=0.01)
        steps = options.epochs * -(-len(y) // options.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        best, state = float("inf"), network.state_dict()
        for epoch in range(1, options.epochs + 1):
            network.train()
            for jets in torch.randperm(len(y)).split(options.batch_size):
                optimizer.zero_grad()
                (weights[jets] * problem.loss(network(x[jets]), y[jets])).mean().backward()
                optimizer.step()
                schedule.step()
            network.eval()
            with torch.inference_mode():
                loss = (w_out * problem.loss(network(x_out), y_out)).mean().item()
            if not np.isfinite(loss):
                msg = f"the loss is not finite in epoch {epoch} of {dict(point)}"
                raise InputError(msg)
            if loss < best:
                best, state = loss, copy.deepcopy(network.state_dict())
            report(epoch, best)
    network.load_state_dict(state)
    with torch.inference_mode():
        return np.asarray(network(torch.from_numpy((problem.evaluate - mean) / spread)).numpy(), np.float32)


def _network(inputs: int, outputs: int, point: Mapping[str, Any], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(point["depth"]):
        layers += [nn.Linear(inputs, point["width"]), nn.GELU(), nn.Dropout(dropout)]
        inputs = point["width"]
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))
