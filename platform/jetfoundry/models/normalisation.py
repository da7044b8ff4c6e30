"""Batch normalisation that is the same in training and inference, for batches that are not alike.

Our micro-batches hold jets of similar length. Plain batch norm would subtract each micro-batch's own mean: jets with
20 particles would be trained with other constants than they are judged with, and ln(pT/pT_jet) alone moves by one
standard deviation between short and long jets. Two decisions follow:

1. Statistics see real particles only, never padding: results do not depend on how far a batch was padded.
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
    steps of 4-16 micro-batches each, short jets and long jets together. The first batches count equally.
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

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """Normalise `x` (..., C) with statistics of the rows where `real` (..., 1) is True; other rows must be 0."""
        x = x.to(self.weight.dtype)
        if not self.training:
            scale, shift = self.inference_affine()
            return x * scale + shift
        over = tuple(range(x.ndim - 1))
        count = real.sum().clamp(min=1)
        mean = x.sum(over) / count
        var = ((x - mean) * real).square().sum(over) / count
        scale, shift = self.training_affine(mean, var, count)
        return x * scale + shift

    def inference_affine(self) -> tuple[Tensor, Tensor]:
        """(scale, shift), each (C,), of the running statistics: y = x * scale + shift."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale

    def training_affine(self, mean: Tensor, var: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Take a batch's statistics (C,) into the running ones and return its (scale, shift).

        With r = sigma_batch / sigma_running and d = (mu_batch - mu_running) / sigma_running held constant,
        y = ((x - mu_batch) / sigma_batch * r + d) * weight + bias. r and d are clipped as in the paper.
        """
        with torch.no_grad():
            self.num_batches_tracked += 1
            step = torch.clamp(1 / self.num_batches_tracked, min=self.momentum)
            self.running_mean.lerp_(mean, step)
            self.running_var.lerp_(var * count / (count - 1).clamp(min=1), step)
            inverse_running = torch.rsqrt(self.running_var + self.eps)
            r = ((var + self.eps).sqrt() * inverse_running).clamp(1 / 3, 3)
            d = ((mean - self.running_mean) * inverse_running).clamp(-5, 5)
        scale = self.weight * torch.rsqrt(var + self.eps) * r
        return scale, self.bias + self.weight * d - mean * scale


class LinearRenorm(nn.Linear):
    """A linear layer followed by `BatchRenorm`, computed as one linear layer.

    Mean and variance of W x + b follow from the mean and covariance of x: W mu + b and diag(W C Wᵀ). The wide
    output is therefore written once and never read again for its statistics.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.norm = BatchRenorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map rows (N, C_in) to (N, C_out); all rows are real."""
        if self.training:
            with torch.autocast(x.device.type, enabled=False):  # sums over millions of pairs need float32
                scale, shift = self._batch_affine(x.float())
        else:
            scale, shift = self.norm.inference_affine()
        return F.linear(x, self.weight * scale[:, None], self.bias * scale + shift)

    def _batch_affine(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = max(len(x), 1)
        mean = x.sum(0) / rows
        covariance = x.T @ x / rows - torch.outer(mean, mean)
        var = ((self.weight @ covariance) * self.weight).sum(1).clamp(min=0)
        return self.norm.training_affine(self.weight @ mean + self.bias, var, var.new_tensor(rows))
