"""The Particle Transformer, ParT (Qu, Li, Qian, arXiv:2202.03772), as trained for Sophon (arXiv:2405.12972).

The way of a batch (B jets, P particles, F features, D model dim, H heads, N pairs of real particles):

1. features (B, F, P) -> normalise -> per-particle network -> particle tokens (B, P, D)
2. vectors (B, 4, P) -> pair features (N, 4) of the lower triangle -> per-pair network (N, H), the same for
   (a, b) and (b, a) -> attention bias (B, H, P, P), shared by all particle blocks
3. particle blocks: every particle looks at every other -> (B, P, D)
4. class blocks: one learned token reads the particles -> norm -> latent (B, D)
5. head: latent -> logits (B, C)

Decided here: the content of padded slots never matters (it is zeroed first, NaN included); pair features carry no
gradient to the four-vectors (ln deltaR of a particle with itself has none); tokens are read out by a module of
their own, so that a second class token is a second `ClassReadout`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from jetfoundry import config as cfg
from jetfoundry.models.attention import BlockConfig, ClassBlock, Dropout, ParticleBlock, linear, mask_bias
from jetfoundry.models.normalisation import BatchRenorm, LinearRenorm
from jetfoundry.models.pair_features import PAIR_FEATURES, kinematics, pair_features

__all__ = ["ClassReadout", "PairEmbedding", "ParTConfig", "ParticleEmbedding", "ParticleTransformer"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParTConfig:
    """Architecture of a Particle Transformer; the defaults are Sophon's."""

    input_dim: int = cfg.option(17, "features of one particle (F)")
    num_classes: int = cfg.option(188, "outputs (C)")
    embed_dims: tuple[int, ...] = cfg.option((128, 512, 128), "widths of the per-particle network; the last one is D")
    pair_embed_dims: tuple[int, ...] = cfg.option((64, 64, 64), "widths of the per-pair network before the heads")
    num_heads: int = cfg.option(8, "attention heads (H)")
    num_layers: int = cfg.option(8, "particle-attention blocks")
    num_class_layers: int = cfg.option(2, "class-attention blocks")
    ffn_ratio: int = cfg.option(4, "width of the feed-forward networks in units of D")
    dropout: float = cfg.option(0.1, "dropout rate after attention and feed-forward network, particle blocks")
    attention_dropout: float = cfg.option(0.1, "dropout rate of attention weights, particle blocks")
    activation_dropout: float = cfg.option(0.1, "dropout rate inside the feed-forward network, particle blocks")
    class_dropout: float = cfg.option(0.0, "all three dropout rates of the class blocks")
    fc_dims: tuple[int, ...] = cfg.option((512,), "hidden widths of the head")
    fc_dropout: float = cfg.option(0.1, "dropout rate of the head")
    scale_attn: bool = cfg.option(True, "norm after the attention")
    scale_fc: bool = cfg.option(True, "norm inside the feed-forward network")
    scale_heads: bool = cfg.option(True, "one learned factor per head")
    scale_resids: bool = cfg.option(True, "one learned factor per residual channel")

    def __post_init__(self) -> None:
        widths = (*self.embed_dims, *self.pair_embed_dims, *self.fc_dims)
        counts = (self.input_dim, self.num_classes, self.num_heads, self.num_layers, self.ffn_ratio)
        if not self.embed_dims or min(*widths, *counts, self.num_class_layers) < 1:
            msg = "all widths and numbers of a Particle Transformer must be at least 1, and embed_dims not empty"
            raise ValueError(msg)
        if self.dim % self.num_heads:
            msg = f"num_heads={self.num_heads} must divide the model dimension embed_dims[-1]={self.dim}"
            raise ValueError(msg)
        for name in ("dropout", "attention_dropout", "activation_dropout", "class_dropout", "fc_dropout"):
            if not 0 <= getattr(self, name) < 1:
                msg = f"{name}={getattr(self, name)} must be in [0, 1)"
                raise ValueError(msg)

    @property
    def dim(self) -> int:
        """D, the width of particle tokens, class token and latent."""
        return self.embed_dims[-1]

    def block(self, dropout: float, attention_dropout: float, activation_dropout: float) -> BlockConfig:
        """Configuration of one block with these dropout rates."""
        return BlockConfig(
            dim=self.dim,
            num_heads=self.num_heads,
            ffn_dim=self.dim * self.ffn_ratio,
            dropout=dropout,
            attention_dropout=attention_dropout,
            activation_dropout=activation_dropout,
            scale_attn=self.scale_attn,
            scale_fc=self.scale_fc,
            scale_heads=self.scale_heads,
            scale_resids=self.scale_resids,
        )


class ParticleEmbedding(nn.Module):
    """Per-particle network: batch norm, then (layer norm, linear, GELU) for each width."""

    def __init__(self, input_dim: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.norm = BatchRenorm(input_dim)
        self.layers = nn.Sequential()
        for inner, outer in pairwise((input_dim, *widths)):
            self.layers.extend((nn.LayerNorm(inner), linear(inner, outer), nn.GELU()))

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """(B, F, P) and mask (B, 1, P) -> (B, P, D), zero for padding."""
        real = mask.squeeze(1)  # (B, P)
        if torch.compiler.is_exporting():
            x = features.transpose(1, 2).masked_fill(~real[..., None], 0)  # (B, P, F)
            return self.layers(self.norm(x)).masked_fill(~real[..., None], 0)
        jet, slot = real.nonzero(as_tuple=True)
        rows = features[jet, :, slot].to(self.norm.weight.dtype)  # (particles, F)
        rows = self.layers(self.norm(rows))  # (particles, D)
        x = rows.new_zeros(*real.shape, rows.shape[-1])
        x[jet, slot] = rows
        return x


class PairEmbedding(nn.Module):
    """Per-pair network: batch norm, then (linear, batch norm, GELU) for each width; the last width is H."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.norm = BatchRenorm(len(PAIR_FEATURES))
        self.layers = nn.Sequential()
        for inner, outer in pairwise((len(PAIR_FEATURES), *widths)):
            self.layers.extend((LinearRenorm(inner, outer), nn.GELU()))

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """(B, 4, P) and mask (B, 1, P) -> attention bias (B, H, P, P), very negative where the key is padding."""
        with torch.no_grad(), torch.autocast(vectors.device.type, enabled=False):
            particles = kinematics(vectors, mask)  # (7, B, P)
        if torch.compiler.is_exporting():  # an ONNX graph prefers twice the work to data-dependent shapes
            pairs = pair_features(particles[..., :, None], particles[..., None, :])  # (B, P, P, 4)
            bias = self._embed(pairs).movedim(-1, 1)
            return bias + mask_bias(mask, bias.dtype)[:, :, None, :]
        real = mask.squeeze(1)  # (B, P)
        jet, a, b = (real[:, :, None] & real[:, None, :]).tril().nonzero(as_tuple=True)  # N pairs with a >= b
        length = real.shape[1]
        a, b = a + jet * length, b + jet * length  # particles counted through the batch
        with torch.no_grad(), torch.autocast(vectors.device.type, enabled=False):
            flat = particles.flatten(1)  # (7, B * P)
            pairs = pair_features(flat.index_select(1, a), flat.index_select(1, b))  # (N, 4)
        heads = self._embed(pairs)  # (N, H)
        bias = mask_bias(mask, heads.dtype)[..., None].expand(-1, length, -1, heads.shape[1]).flatten(0, 2)
        bias = bias.index_copy(0, a * length + b % length, heads).index_copy(0, b * length + a % length, heads)
        return bias.view(*real.shape, length, -1).movedim(-1, 1).contiguous()  # (B * P * P, H) -> (B, H, P, P)

    def _embed(self, pairs: Tensor) -> Tensor:
        return self.layers(self.norm(pairs))


class ClassReadout(nn.Module):
    """A learned class token that reads the particles through class blocks: one per task."""

    def __init__(self, block: BlockConfig, num_layers: int) -> None:
        super().__init__()
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(block.dim), std=0.02))
        self.blocks = nn.ModuleList(ClassBlock(block) for _ in range(num_layers))
        self.norm = nn.LayerNorm(block.dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Particle tokens (B, P, D) and mask (B, 1, P) -> latent (B, D)."""
        bias = mask_bias(nn.functional.pad(mask, (1, 0), value=True), x.dtype)[:, None]  # (B, 1, 1, 1 + P)
        token = self.token.expand(x.shape[0], 1, -1)
        for block in self.blocks:
            token = block(token, x, bias)
        return self.norm(token).squeeze(1)


class ParticleTransformer(nn.Module):
    """Jets to logits; see the module docstring for the steps."""

    def __init__(self, config: ParTConfig) -> None:
        super().__init__()
        self.config = config
        block = config.block(config.dropout, config.attention_dropout, config.activation_dropout)
        self.embed = ParticleEmbedding(config.input_dim, config.embed_dims)
        self.pair_embed = PairEmbedding((*config.pair_embed_dims, config.num_heads))
        self.blocks = nn.ModuleList(ParticleBlock(block, depth) for depth in range(1, config.num_layers + 1))
        self.readout = ClassReadout(config.block(*(config.class_dropout,) * 3), config.num_class_layers)
        self.head = nn.Sequential()
        for inner, outer in pairwise((config.dim, *config.fc_dims)):
            self.head.extend((linear(inner, outer), nn.ReLU(), Dropout(config.fc_dropout)))
        self.head.append(linear((config.dim, *config.fc_dims)[-1], config.num_classes))

    def forward(self, features: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, C) of features (B, F, P), vectors (B, 4, P) in GeV and mask (B, 1, P), True for real."""
        return self.head(self.latent(features, vectors, mask))

    def latent(self, features: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
        """The class token after the last norm, (B, D): what downstream tasks are trained on."""
        return self.readout(self.encode(features, vectors, mask), mask.bool())

    def encode(self, features: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
        """Particle tokens (B, P, D) after the particle blocks."""
        mask = mask.bool()
        x = self.embed(features, mask)
        bias = self.pair_embed(vectors, mask)
        for block in self.blocks:
            x = block(x, bias)
        return x
