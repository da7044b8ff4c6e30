"""Batch normalisation that is the same in training and inference, for batches that are not alike.

Our micro-batches hold jets of similar length. Plain batch norm would subtract each micro-batch's own mean: jets with
20 particles would be trained with other constants than they are judged with, and ln(pT/pT_jet) alone moves by one
standard deviation between short and long jets. Two decisions follow:

1. Normalised are rows of real particles or real pairs, never padding: how far a batch was padded does not matter.
   Rows come packed, or padded with a mask that says which are real (shapes that depend on no content: for compilers
   and GPUs).
2. Batch renormalisation (Ioffe, arXiv:1702.03275), made for batches that are not drawn alike: the forward pass
   uses the running mean and variance, the backward pass keeps the gradient of the batch statistics.

In eval mode this is plain batch norm, and parameters and buffers are those of `torch.nn.BatchNorm1d`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BatchRenorm", "LinearRenorm"]


class _Statistics(NamedTuple):
    """Mean and 1 / sigma of a batch, r and d of the paper, (C,) each, and the number of rows (), a float."""

    mean: Tensor
    inverse: Tensor
    r: Tensor
    d: Tensor
    number: Tensor


class _Renormalise(torch.autograd.Function):
    """y = ((x - mean) inverse r + d) weight + bias, differentiated with mean and inverse as functions of the rows, and
    r and d as constants. Rows that are not real get no gradient and give none."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, real: Tensor | None, *batch: Tensor) -> Tensor:
        mean, inverse, r, d, number = batch  # _Statistics
        ctx.save_for_backward(rows, weight, mean, inverse, r, d, number, real)
        scale = weight * r * inverse
        return (rows * scale + (bias + weight * d - mean * scale)).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, mean, inverse, r, d, number, real = ctx.saved_tensors
        up = gradients[0].to(mean.dtype)
        if real is not None:
            up = up * real[:, None]
        sum_up = up.sum(0)
        sum_up_x = ((up * rows).sum(0) - mean * sum_up) * inverse  # sum of up (x - mean) / sigma
        scale = weight * r * inverse
        slope = -scale * inverse * sum_up_x / number
        down = up * scale + (rows * slope - (slope * mean + scale * sum_up / number))
        if real is not None:
            down = down * real[:, None]
        return down.to(rows.dtype), r * sum_up_x + d * sum_up, sum_up, *[None] * 6


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

    def forward(self, rows: Tensor, real: Tensor | None = None) -> Tensor:
        """Normalise `rows` (..., C); in training take their statistics into the running ones. With `real` (...), those
        rows only; what comes out for the others is finite if they are.

        Where a gradient must pass, with r = sigma_batch / sigma_running and d = (mu_batch - mu_running) /
        sigma_running held constant, a row x becomes ((x - mu_batch) / sigma_batch * r + d) * weight + bias; r and d
        are clipped as in the paper. For inputs of the network this is (x - mu_running) / sigma_running.
        """
        if self.training and rows[..., 0].numel() > 1:  # one row has no variance
            flat, which = rows.flatten(0, -2), None if real is None else real.flatten()
            batch = self._update(flat.detach(), which)
            if rows.requires_grad:
                return _Renormalise.apply(flat, self.weight, self.bias, which, *batch).view(rows.shape)
        scale, shift = self.inference_affine()
        return rows * scale + shift

    def inference_affine(self) -> tuple[Tensor, Tensor]:
        """(scale, shift), each (C,), of the running statistics: y = x * scale + shift."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        mean = self.running_mean.clone()  # the next micro-batch moves it, perhaps before the backward pass of this one
        return scale, self.bias - mean * scale

    @torch.no_grad()
    def _update(self, rows: Tensor, real: Tensor | None) -> _Statistics:
        """Update the running statistics with those of the real ones of `rows` (N, C)."""
        rows = rows.to(self.running_mean.dtype)
        if real is None:
            number = rows.new_full((), len(rows))
            mean = rows.mean(0)
            var = (rows - mean).square().mean(0)
        else:
            weight = real[:, None].to(rows.dtype)
            number = weight.sum().clamp(min=1)
            mean = (rows * weight).sum(0) / number
            var = ((rows - mean).square() * weight).sum(0) / number
            mean = torch.where(number > 1, mean, self.running_mean)  # one row has no variance
            var = torch.where(number > 1, var, self.running_var)
        self.num_batches_tracked += number > 1
        step = torch.clamp(1 / self.num_batches_tracked.clamp(min=1), min=self.momentum)
        self.running_mean.lerp_(mean, step)
        self.running_var.lerp_(var * (number / (number - 1).clamp(min=1)), step)  # unbiased, as in torch's batch norm
        inverse_running = torch.rsqrt(self.running_var + self.eps)
        r = ((var + self.eps).sqrt() * inverse_running).clamp(1 / 3, 3)
        d = ((mean - self.running_mean) * inverse_running).clamp(-5, 5)
        return _Statistics(mean, torch.rsqrt(var + self.eps), r, d, number)


class LinearRenorm(nn.Linear):
    """A linear layer and its `BatchRenorm`; in eval mode the two are one linear layer."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, bias)
        self.norm = BatchRenorm(out_channels)

    def forward(self, rows: Tensor, real: Tensor | None = None) -> Tensor:
        """Map rows (..., C_in) to (..., C_out); `real` (...) as in `BatchRenorm`."""
        if self.training:
            return self.norm(super().forward(rows), real)
        scale, shift = self.norm.inference_affine()
        if self.bias is not None:
            shift = self.bias * scale + shift
        return F.linear(rows, self.weight * scale[:, None], shift)
