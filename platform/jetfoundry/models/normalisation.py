"""Batch normalisation that is the same in training and inference, for batches that are not alike.

Our micro-batches hold jets of similar length. Plain batch norm would subtract each micro-batch's own mean: jets with
20 particles would be trained with other constants than they are judged with, and ln(pT/pT_jet) alone moves by one
standard deviation between short and long jets. Two decisions follow:

1. Normalised are rows of real particles or real pairs, never padding: how far a batch was padded does not matter.
2. Batch renormalisation (Ioffe, arXiv:1702.03275), made for batches that are not drawn alike: the forward pass
   uses the running mean and variance, the backward pass keeps the gradient of the batch statistics.

In eval mode this is plain batch norm, and parameters and buffers are those of `torch.nn.BatchNorm1d`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BatchRenorm", "LinearRenorm"]


class BatchRenorm(nn.Module):
    """Normalise C channels, then scale and shift them.

    `momentum` is the weight of one micro-batch in the running statistics: 0.02 averages over several optimiser
    steps of 4-16 micro-batches each, short jets and long jets together. The first micro-batches count equally.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, *, momentum: float = 0.02, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, rows: Tensor) -> Tensor:
        """Normalise `rows` (N, C); in training take their statistics into the running ones.

        Where a gradient must pass, with r = sigma_batch / sigma_running and d = (mu_batch - mu_running) /
        sigma_running held constant, a row x becomes ((x - mu_batch) / sigma_batch * r + d) * weight + bias; r and d
        are clipped as in the paper. For inputs of the network this is (x - mu_running) / sigma_running.
        """
        if self.training and len(rows) > 1:  # one row has no variance
            r, d = self._update(rows.detach())
            if rows.requires_grad:
                weight, bias = self.weight * r, self.bias + self.weight * d
                return F.batch_norm(rows, None, None, weight, bias, True, 0.0, self.eps)
        scale, shift = self.inference_affine()
        return rows * scale + shift

    def inference_affine(self) -> tuple[Tensor, Tensor]:
        """(scale, shift), each (C,), of the running statistics: y = x * scale + shift."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale

    @torch.no_grad()
    def _update(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Update the running statistics with those of `rows` and return (r, d), each (C,)."""
        rows = rows.to(self.running_mean.dtype)
        mean = rows.mean(0)
        var = (rows - mean).square().mean(0)
        self.num_batches_tracked += 1
        step = torch.clamp(1 / self.num_batches_tracked, min=self.momentum)
        self.running_mean.lerp_(mean, step)
        self.running_var.lerp_(var * (len(rows) / (len(rows) - 1)), step)  # unbiased, as in torch's batch norm
        inverse_running = torch.rsqrt(self.running_var + self.eps)
        r = ((var + self.eps).sqrt() * inverse_running).clamp(1 / 3, 3)
        d = ((mean - self.running_mean) * inverse_running).clamp(-5, 5)
        return r, d


class LinearRenorm(nn.Linear):
    """A linear layer and its `BatchRenorm`; in eval mode the two are one linear layer."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, bias)
        self.norm = BatchRenorm(out_channels)

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows (..., C_in) to (..., C_out); in training there is one leading dimension."""
        if self.training:
            return self.norm(super().forward(rows))
        scale, shift = self.norm.inference_affine()
        if self.bias is not None:
            shift = self.bias * scale + shift
        return F.linear(rows, self.weight * scale[:, None], shift)
