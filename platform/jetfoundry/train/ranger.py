"""Ranger: RAdam (Liu et al., arXiv:1908.03265) with Lookahead (Zhang et al., arXiv:1907.08610), weaver's default.

Fast weights make `k` steps of RAdam, then the slow ones go `alpha` of the way to them and both go on from there. The
slow weights and the count of steps are part of the optimiser's state, so a continued run is the uninterrupted one
(weaver begins a new look-ahead after each restart).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

__all__ = ["Ranger"]


class Ranger(torch.optim.RAdam):
    """RAdam with decoupled weight decay, and slow weights."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.95, 0.999),
        eps: float = 1e-5,
        *,
        alpha: float = 0.5,
        k: int = 6,
    ) -> None:
        super().__init__(params, lr, betas, eps, decoupled_weight_decay=True)
        self.alpha, self.k = alpha, k
        for group in self.param_groups:
            group.setdefault("fast_steps", 0)  # since the slow weights moved; groups are saved with the state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of RAdam; after every `k` of them fast and slow weights meet."""
        fresh = {p: p.clone() for group in self.param_groups for p in group["params"] if not self.state[p]}
        loss = super().step(closure)
        for group in self.param_groups:
            moving = [p for p in group["params"] if self.state[p]]
            for p in moving:
                if "slow" not in self.state[p]:
                    self.state[p]["slow"] = fresh[p]
            group["fast_steps"] = (group["fast_steps"] + 1) % self.k
            if moving and group["fast_steps"] == 0:
                slow = [self.state[p]["slow"] for p in moving]
                torch._foreach_lerp_(slow, moving, self.alpha)
                torch._foreach_copy_(moving, slow)
        return loss
