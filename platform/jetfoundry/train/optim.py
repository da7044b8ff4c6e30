"""AdamW and the learning-rate schedule: linear warm-up, then half a cosine to zero."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import nn

from jetfoundry import config

__all__ = ["OptimConfig", "build_optimizer", "learning_rate_factor"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and schedule."""

    lr: float = config.option(1e-3, "peak learning rate")
    weight_decay: float = config.option(0.01, "decoupled weight decay; never on norms, biases, class tokens, gains")
    betas: tuple[float, ...] = config.option((0.9, 0.99), "AdamW's running-average factors")
    warmup: float = config.option(0.05, "share of all steps in which the learning rate rises linearly from 0")
    clip_norm: float = config.option(1.0, "largest norm of the gradient, 0 = no clipping")

    def __post_init__(self) -> None:
        if self.lr <= 0 or not 0 <= self.warmup < 1 or len(self.betas) != 2:
            msg = f"wanted lr > 0, 0 <= warmup < 1, two betas; got {self.lr}, {self.warmup}, {self.betas}"
            raise ValueError(msg)


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on weight matrices only (parameters with two or more dimensions that are not tokens)."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 and "token" not in name else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.betas[0], optim.betas[1]))


def learning_rate_factor(step: int, total: int, warmup: float) -> float:
    """Factor on the peak learning rate at optimiser step `step` (from 0) of `total`.

    >>> [round(learning_rate_factor(s, 10, 0.2), 2) for s in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    rising = max(1, round(total * warmup)) if warmup > 0 else 0
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - rising) / max(1, total - rising))))
