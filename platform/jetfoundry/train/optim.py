"""The optimiser: which one, what it leaves alone, and whose learning rate is multiplied.

No weight decay on norms, biases, gains and class tokens: a parameter decays if it has two or more dimensions and is not
a token. `lr_mult` gives parameters whose name matches a regular expression another learning rate, for fine-tuning.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import nn

from jetfoundry import config
from jetfoundry.errors import CheckpointError
from jetfoundry.models.freezing import matching
from jetfoundry.train.ranger import Ranger
from jetfoundry.train.schedule import Shape

__all__ = ["OptimConfig", "build_optimizer", "restore_optimizer", "set_learning_rate"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and schedule."""

    name: Literal["adamw", "radam", "ranger"] = config.option("adamw", "ranger = RAdam + Lookahead, weaver's default")
    schedule: Shape = config.option("cosine", "course of the learning rate, see train/schedule.py")
    lr: float = config.option(1e-3, "peak learning rate")
    lr_mult: dict[str, Any] = config.option({}, "factors on it by parameter name, e.g. {'blocks\\..*': 0.1}")
    weight_decay: float = config.option(0.01, "decoupled weight decay; never on norms, biases, class tokens, gains")
    betas: tuple[float, ...] = config.option((), "running-average factors; none = (0.9, 0.99), ranger (0.95, 0.999)")
    eps: float = config.option(0.0, "added to the denominator; 0 = 1e-8, ranger 1e-5")
    warmup: float = config.option(0.05, "share of all steps in which the learning rate rises linearly from 0")
    clip_norm: float = config.option(1.0, "largest norm of the gradient, 0 = no clipping")
    ema: float = config.option(0.0, "decay of an exponential average of the weights, which is validated; 0 = none")

    def __post_init__(self) -> None:
        if self.lr <= 0 or not 0 <= self.warmup < 1 or len(self.betas) not in (0, 2) or not 0 <= self.ema < 1:
            msg = f"wanted lr > 0, 0 <= warmup < 1, two betas, 0 <= ema < 1; got {self.lr}, {self.warmup}, "
            raise ValueError(msg + f"{self.betas}, {self.ema}")
        for pattern, factor in self.lr_mult.items():
            if isinstance(factor, bool) or not isinstance(factor, int | float) or factor < 0:
                msg = f"lr_mult: wanted a factor >= 0 for {pattern!r}, got {factor!r}"
                raise ValueError(msg)


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser for all parameters of `model` that want a gradient. Each of its groups has a `factor` on the
    learning rate: that of the first pattern of `lr_mult` which matches the name's beginning, as in weaver, else 1.

    Raises ConfigError, with the nearest names, for a pattern that matches nothing.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    factors: dict[str, float] = {}
    for pattern, factor in optim.lr_mult.items():
        for name in matching([name for name, _ in named], pattern, "train.optim.lr_mult"):
            factors.setdefault(name, float(factor))
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        decay = optim.weight_decay if parameter.ndim >= 2 and "token" not in name.split(".")[-1] else 0.0
        groups.setdefault((decay, factors.get(name, 1.0)), []).append(parameter)
    params: list[dict[str, Any]] = [
        {"params": members, "weight_decay": decay, "factor": factor}
        for (decay, factor), members in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]
    if optim.name == "ranger":
        first, second = optim.betas or (0.95, 0.999)
        return Ranger(params, optim.lr, (first, second), optim.eps or 1e-5)
    first, second = optim.betas or (0.9, 0.99)
    if optim.name == "radam":
        return torch.optim.RAdam(params, optim.lr, (first, second), optim.eps or 1e-8, decoupled_weight_decay=True)
    fused = all(parameter.is_cuda for _, parameter in named)
    return torch.optim.AdamW(params, optim.lr, (first, second), optim.eps or 1e-8, fused=fused)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Let `optimizer` go on from the `state_dict` of one that was made alike; CheckpointError if it was not.

    torch itself compares only the numbers of groups and of their parameters.
    """
    groups, stored = optimizer.param_groups, state["param_groups"]
    wanted, got = ([len(group["params"]) for group in each] for each in (groups, stored))
    if wanted != got:
        msg = f"the optimiser's state does not fit: it is of groups of {got} parameters, wanted {wanted}"
        raise CheckpointError(msg)
    for mine, theirs in zip(groups, stored, strict=True):
        if mine.keys() != theirs.keys():
            names = ", ".join(sorted(mine.keys() ^ theirs.keys()))
            msg = f"the optimiser's state does not fit: it is not of a {type(optimizer).__name__} ({names})"
            raise CheckpointError(msg)
        for parameter, number in zip(mine["params"], theirs["params"], strict=True):
            for name, values in state["state"].get(number, {}).items():
                if torch.is_tensor(values) and values.ndim and values.shape != parameter.shape:
                    msg = f"the optimiser's state does not fit: {name} of parameter {number} is {tuple(values.shape)}, "
                    raise CheckpointError(msg + f"wanted {tuple(parameter.shape)}")
    optimizer.load_state_dict(state)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Let every group learn at `lr` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]
