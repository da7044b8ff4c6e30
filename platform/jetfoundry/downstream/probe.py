"""The linear probe: one linear layer on frozen latents. What it finds, the backbone already knew.

Latents are standardised with the training jets' mean and spread, which a linear layer could absorb but a short
training would have to learn first. The bias starts at the log of the class frequencies.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from jetfoundry.downstream.tasks import ProbeBudget
from jetfoundry.errors import InputError

__all__ = ["linear_probe"]

Floats = npt.NDArray[np.float32]


def linear_probe(
    latent: Floats,
    labels: npt.NDArray[np.int64],
    num_classes: int,
    evaluate: Floats,
    budget: ProbeBudget,
    *,
    seed: int,
    balance: bool,
) -> Floats:
    """Fit on latent (B, D) and labels (B,), return logits (E, C) of the jets `evaluate` (E, D).

    With `balance`, the loss weights every class equally. Raises InputError if fewer than two classes have jets.
    """
    counts = np.bincount(labels, minlength=num_classes)
    if (counts > 0).sum() < 2:
        msg = f"a probe needs jets of at least two classes, got class counts {counts.tolist()}"
        raise InputError(msg)
    mean, spread = latent.mean(axis=0), latent.std(axis=0) + 1e-6
    x, y = torch.from_numpy((latent - mean) / spread), torch.from_numpy(labels)
    weight = torch.from_numpy(np.where(counts > 0, len(labels) / np.maximum(counts, 1), 0.0).astype(np.float32))
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(latent.shape[1], num_classes)
    with torch.no_grad():
        layer.weight.normal_(0.0, 0.01, generator=generator)
        layer.bias.copy_(torch.zeros(num_classes) if balance else torch.from_numpy(np.log(np.maximum(counts, 0.5))))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=budget.lr, weight_decay=0.01)
    steps = budget.epochs * -(-len(labels) // budget.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(budget.epochs):
        for jets in torch.randperm(len(labels), generator=generator).split(budget.batch_size):
            optimizer.zero_grad()
            loss = functional.cross_entropy(layer(x[jets]), y[jets], weight=weight if balance else None)
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.inference_mode():
        return np.asarray(layer(torch.from_numpy((evaluate - mean) / spread)).numpy(), dtype=np.float32)
