"""The linear probe: one linear layer on frozen latents. What it finds, the backbone already knew.

Latents are standardised with the training jets' mean and spread, which a linear layer could absorb but a short
training would have to learn first. The bias starts at what is best said of an unknown jet. Probes train one by one,
side by side with others; batched they would be faster for latents of 64 to 128 numbers, not of 512
(`jobs/benchmark.py probes`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from jetfoundry.downstream.problem import Problem
from jetfoundry.downstream.tasks import ProbeBudget

__all__ = ["linear_probe"]

Floats = npt.NDArray[np.float32]


def linear_probe(problem: Problem, budget: ProbeBudget) -> Floats:
    """Fit on the problem's latents (B, D), return outputs (E, C), or (E, 1) of a target, of its evaluation jets."""
    latent: Floats = problem.train
    mean, spread = latent.mean(axis=0), latent.std(axis=0) + 1e-6
    x, y = torch.from_numpy((latent - mean) / spread), problem.torch_labels
    weights = torch.from_numpy(problem.weights.astype(np.float32))
    generator = torch.Generator().manual_seed(problem.seed)
    layer = nn.Linear(latent.shape[1], problem.outputs)
    with torch.no_grad():
        layer.weight.normal_(0.0, 0.01, generator=generator)
        layer.bias.copy_(torch.from_numpy(problem.prior))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=budget.lr, weight_decay=0.01)
    steps = budget.epochs * -(-len(y) // budget.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(budget.epochs):
        for jets in torch.randperm(len(y), generator=generator).split(budget.batch_size):
            optimizer.zero_grad()
            (weights[jets] * problem.loss(layer(x[jets]), y[jets])).mean().backward()
            optimizer.step()
            schedule.step()
    with torch.inference_mode():
        return np.asarray(layer(torch.from_numpy((problem.evaluate - mean) / spread)).numpy(), dtype=np.float32)
