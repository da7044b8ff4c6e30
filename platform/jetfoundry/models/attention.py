"""Attention blocks of the Particle Transformer (arXiv:2202.03772, fig. 3).

A block is pre-norm attention and a pre-norm feed-forward network, each with a residual connection, with the NormFormer
scalings (arXiv:2110.09456): one factor per head, a norm after the attention and inside the feed-forward network,
one factor per residual channel. Particle blocks let all particles of a jet look at each other, biased by the
pair features; class blocks let one class token look at all particles (CaiT, arXiv:2103.17239).

Masking is a finite, very negative attention bias: equal to -inf for every jet with a particle, and no NaN for one
without. Shapes: B jets, P particles, D model dim, H heads.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BlockConfig", "ClassBlock", "Dropout", "ParticleBlock", "linear", "mask_bias"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Dimensions, dropout rates and scalings of one block; made by `ParTConfig`."""

    dim: int
    num_heads: int
    ffn_dim: int
    dropout: float
    attention_dropout: float
    activation_dropout: float
    scale_attn: bool
    scale_fc: bool
    scale_heads: bool
    scale_resids: bool


def mask_bias(real: Tensor, dtype: torch.dtype) -> Tensor:
    """Attention bias of the same shape as `real`: 0 where True, very negative where False."""
    return torch.zeros_like(real, dtype=dtype).masked_fill(~real, torch.finfo(dtype).min / 2)


def linear(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer that starts with Xavier-uniform weights and no bias, as all of weaver 0.5's do."""
    layer = nn.Linear(in_features, out_features)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Dropout(nn.Module):
    """Inverted dropout; on CPU with 16 random bits for each element instead of torch's 64.

    torch's CPU dropout is serial in its random numbers: in the Sophon configuration it takes longer than the
    matrix products. The rate is rounded to a multiple of 2⁻¹⁶ and the expectation stays exact.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.rate)
        dropped = round(self.rate * 65536)
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        draws = draws.view(torch.int16)[: x.numel()].view(x.shape)
        keep = torch.ge(draws, dropped - 32768, out=torch.empty_like(x, requires_grad=False))  # 1 or 0; bool is slow
        return x * keep.mul_(65536 / (65536 - dropped))


class Attention(nn.Module):
    """Multi-head attention with an additive bias."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.in_proj = linear(config.dim, 3 * config.dim)  # query, key, value: three matrices to the initialisation
        for projection in self.in_proj.weight.detach().chunk(3):
            nn.init.xavier_uniform_(projection)
        self.out_proj = linear(config.dim, config.dim)
        self.dropout = Dropout(config.attention_dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Self-attention of `x` (B, P, D) under `bias` (B, H, P, P)."""
        query, key, value = (self._heads(part) for part in self.in_proj(x).chunk(3, dim=-1))
        return self._attend(query, key, value, bias)

    def read(self, token: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        """Attention of `token` (B, 1, D) to `x` (B, P, D) under `bias` (B, 1, 1, P)."""
        dim = token.shape[-1]
        query = F.linear(token, self.in_proj.weight[:dim], self.in_proj.bias[:dim])
        key, value = F.linear(x, self.in_proj.weight[dim:], self.in_proj.bias[dim:]).chunk(2, dim=-1)
        return self._attend(self._heads(query), self._heads(key), self._heads(value), bias)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, P, D) -> (B, H, P, D/H)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        if torch.compiler.is_exporting() or (self.training and query.device.type == "cpu"):
            # torch has no fused CPU kernel for a bias with a gradient, its CPU dropout is slow (see `Dropout`), and
            # an ONNX graph of plain products runs everywhere.
            jets_heads, scale = query.shape[:2], query.shape[-1] ** -0.5
            query, key, value = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)  # (B * H, P, D/H)
            bias = bias.expand(*jets_heads, -1, -1).flatten(0, 1)
            scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scale)  # (B * H, P_query, P)
            out = torch.bmm(self.dropout(scores.softmax(-1)), value).unflatten(0, jets_heads)
        else:
            rate = self.dropout.rate if self.training else 0.0
            out = F.scaled_dot_product_attention(query, key, value, bias, rate)
        return self.out_proj(out.transpose(1, 2).flatten(2))  # (B, H, P, D/H) -> (B, P, D)


class _Block(nn.Module):
    """What particle and class blocks share: all but who attends to whom."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        dim = config.dim
        self.pre_attn_norm = nn.LayerNorm(dim)
        self.attn = Attention(config)
        self.head_scale = nn.Parameter(torch.ones(config.num_heads)) if config.scale_heads else None
        self.post_attn_norm = nn.LayerNorm(dim) if config.scale_attn else nn.Identity()
        self.pre_fc_norm = nn.LayerNorm(dim)
        self.fc1 = linear(dim, config.ffn_dim)
        self.activation_dropout = Dropout(config.activation_dropout)
        self.post_fc_norm = nn.LayerNorm(config.ffn_dim) if config.scale_fc else nn.Identity()
        self.fc2 = linear(config.ffn_dim, dim)
        self.residual_scale = nn.Parameter(torch.ones(dim)) if config.scale_resids else None
        self.dropout = Dropout(config.dropout)

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Everything after the attention: scalings, residuals and the feed-forward network."""
        if self.head_scale is not None:
            attended = attended * self.head_scale.repeat_interleave(attended.shape[-1] // len(self.head_scale))
        x = x + self.dropout(self.post_attn_norm(attended))
        hidden = self.activation_dropout(F.gelu(self.fc1(self.pre_fc_norm(x))))
        update = self.dropout(self.fc2(self.post_fc_norm(hidden)))
        return update + (x if self.residual_scale is None else x * self.residual_scale)


class ParticleBlock(_Block):
    """The `depth`-th block (from 1); its residual branches start divided by sqrt(2 depth), as in weaver 0.5."""

    def __init__(self, config: BlockConfig, depth: int) -> None:
        super().__init__(config)
        with torch.no_grad():
            self.attn.out_proj.weight /= (2 * depth) ** 0.5
            self.fc2.weight /= (2 * depth) ** 0.5

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Update the particles `x` (B, P, D) under `bias` (B, H, P, P)."""
        return self._finish(x, self.attn(self.pre_attn_norm(x), bias))


class ClassBlock(_Block):
    def forward(self, token: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        """Update the class token (B, 1, D) from itself and the particles `x` (B, P, D); `bias` (B, 1, 1, 1 + P)."""
        context = self.pre_attn_norm(torch.cat((token, x), dim=1))  # (B, 1 + P, D)
        return self._finish(token, self.attn.read(token, context, bias))
