"""The Particle Transformer, ParT (Qu, Li, Qian, arXiv:2202.03772), as trained for Sophon (arXiv:2405.12972).

The way of a batch (B jets, P particles, F features, D model dim, H heads, N pairs of real particles):

1. features (B, F, P) -> normalise -> per-particle network -> particle tokens (B, P, D)
2. vectors (B, 4, P) -> pair features (N, 4) of the lower triangle -> per-pair network (N, H), the same for
   (a, b) and (b, a) -> attention bias (B, H, P, P), shared by all particle blocks
3. particle blocks: every particle looks at every other -> (B, P, D)
4. class blocks: learned tokens, one or a few, read the particles -> norm -> one latent (B, D) for each
5. heads: latent -> logits (B, C), and what further tasks want (`tasks.py`)

On the CPU the first two steps run on packed rows, real particles and real pairs only. On a GPU they run on padded ones
with a mask: sizes that depend on the content would make it wait for the host, and nothing could be compiled.

Decided here: the content of padded slots never matters (it is zeroed first, NaN included); pair features carry no
gradient to the four-vectors (ln deltaR of a particle with itself has none); the names of weights do not depend on
how many tasks there are: the first task's stay `readout.*` and `head.*`, others come under `readouts` and `heads`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from jetfoundry import config as cfg
from jetfoundry.loading.batch import INPUTS
from jetfoundry.models.attention import BlockConfig, ClassBlock, Dropout, ParticleBlock, linear, mask_bias
from jetfoundry.models.normalisation import BatchRenorm, LinearRenorm
from jetfoundry.models.pair_features import PAIR_FEATURES, kinematics, pair_features
from jetfoundry.models.tasks import TaskConfig, token_groups

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
    pair_activation: bool = cfg.option(True, "GELU after the last pair layer (weaver: not use_pre_activation_pair)")
    tasks: tuple[TaskConfig, ...] = cfg.option((), "heads and their class tokens; none given = one classification")

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
        token_groups(self.all_tasks)
        if self.all_tasks[0].outputs not in (0, self.num_classes):
            msg = f"tasks: the first task classifies: wanted outputs 0 or {self.num_classes}, got "
            raise ValueError(msg + str(self.all_tasks[0].outputs))

    @property
    def all_tasks(self) -> tuple[TaskConfig, ...]:
        """`tasks`, or the one that stands for none."""
        return self.tasks or (TaskConfig(),)

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
        if torch.compiler.is_exporting() or padded_shapes(features):
            x = features.transpose(1, 2).masked_fill(~real[..., None], 0)  # (B, P, F)
            return self.layers(self.norm(x, real)).masked_fill(~real[..., None], 0)
        jet, slot = real.nonzero(as_tuple=True)
        rows = features[jet, :, slot].to(self.norm.weight.dtype)  # (particles, F)
        rows = self.layers(self.norm(rows))  # (particles, D)
        x = rows.new_zeros(*real.shape, rows.shape[-1])
        x[jet, slot] = rows
        return x


class PairEmbedding(nn.Module):
    """Per-pair network: batch norm, then (linear, batch norm, GELU) for each width; the last width is H."""

    def __init__(self, widths: Sequence[int], last_activation: bool) -> None:
        super().__init__()
        self.norm = BatchRenorm(len(PAIR_FEATURES))
        self.layers = nn.Sequential()
        for inner, outer in pairwise((len(PAIR_FEATURES), *widths)):
            self.layers.extend((LinearRenorm(inner, outer), nn.GELU()))
        if not last_activation:
            self.layers.pop(-1)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """(B, 4, P) and mask (B, 1, P) -> attention bias (B, H, P, P), very negative where the key is padding."""
        with torch.no_grad(), torch.autocast(vectors.device.type, enabled=False):
            particles = kinematics(vectors, mask)  # (7, B, P)
        if torch.compiler.is_exporting():  # an ONNX graph prefers twice the work to data-dependent shapes
            pairs = pair_features(particles[..., :, None], particles[..., None, :])  # (B, P, P, 4)
            bias = self._embed(pairs).movedim(-1, 1)
            return bias + mask_bias(mask, bias.dtype)[:, :, None, :]
        embed = self._padded if padded_shapes(vectors) else self._packed
        return embed(particles, mask)

    def _packed(self, particles: Tensor, mask: Tensor) -> Tensor:
        """Real pairs only, of all jets in one row."""
        real = mask.squeeze(1)  # (B, P)
        jet, a, b = (real[:, :, None] & real[:, None, :]).tril().nonzero(as_tuple=True)  # N pairs with a >= b
        length = real.shape[1]
        a, b = a + jet * length, b + jet * length  # particles counted through the batch
        with torch.no_grad(), torch.autocast(particles.device.type, enabled=False):
            flat = particles.flatten(1)  # (7, B * P)
            pairs = pair_features(flat.index_select(1, a), flat.index_select(1, b))  # (N, 4)
        heads = self._embed(pairs)  # (N, H)
        bias = mask_bias(mask, heads.dtype)[..., None].expand(-1, length, -1, heads.shape[1]).flatten(0, 2)
        bias = bias.index_copy(0, a * length + b % length, heads).index_copy(0, b * length + a % length, heads)
        return bias.view(*real.shape, length, -1).movedim(-1, 1).contiguous()  # (B * P * P, H) -> (B, H, P, P)

    def _padded(self, particles: Tensor, mask: Tensor) -> Tensor:
        """All T = P (P + 1) / 2 pairs of slots of every jet."""
        real, length = mask.squeeze(1), mask.shape[-1]
        a, b = _triangle(length, mask.device)  # (T,) each, a >= b
        with torch.no_grad(), torch.autocast(particles.device.type, enabled=False):
            pairs = pair_features(particles[..., a], particles[..., b])  # (B, T, 4)
        heads = self._embed(pairs, real[:, a] & real[:, b])  # (B, T, H)
        bias = _Mirror.apply(heads.transpose(1, 2), length).unflatten(-1, (length, length))  # (B, H, P, P)
        return bias + mask_bias(mask, bias.dtype)[:, :, None, :]

    def _embed(self, pairs: Tensor, real: Tensor | None = None) -> Tensor:
        rows = self.norm(pairs, real)
        for layer in self.layers:
            rows = layer(rows, real) if isinstance(layer, LinearRenorm) else layer(rows)
        return rows


def _triangle(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`torch.tril_indices` by a formula, which can be compiled for all lengths at once; float64 is exact here."""
    pair = torch.arange(length * (length + 1) // 2, device=device)
    a = (((8 * pair + 1).double().sqrt() - 1) / 2).long()
    return a, pair - a * (a + 1) // 2


class _Mirror(torch.autograd.Function):
    """Lower triangles (..., T) -> symmetric matrices (..., P * P). Both directions only gather: torch's own gradient of
    the first would add up atomically, in an order of its own on every GPU."""

    @staticmethod
    def forward(ctx: Any, lower: Tensor, length: int) -> Tensor:
        ctx.length = length
        slot = torch.arange(length, device=lower.device)
        large, small = torch.maximum(slot[:, None], slot), torch.minimum(slot[:, None], slot)
        return lower[..., (large * (large + 1) // 2 + small).flatten()]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (up,) = gradients
        a, b = _triangle(ctx.length, up.device)
        return up[..., a * ctx.length + b] + up[..., b * ctx.length + a] * (a != b), None


def padded_shapes(values: Tensor) -> bool:
    """Whether to compute on padded rows (see the module docstring)."""
    return values.device.type != "cpu" or torch.compiler.is_compiling()


class ClassReadout(nn.Module):
    """Learned class tokens that read the particles, and each other, through class blocks."""

    def __init__(self, block: BlockConfig, num_layers: int, num_tokens: int = 1) -> None:
        super().__init__()
        shape = (block.dim,) if num_tokens == 1 else (num_tokens, block.dim)
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))
        self.blocks = nn.ModuleList(ClassBlock(block) for _ in range(num_layers))
        self.norm = nn.LayerNorm(block.dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Particle tokens (B, P, D) and mask (B, 1, P) -> latents (B, T, D) of the T class tokens."""
        tokens = self.token.expand(x.shape[0], -1, -1) if self.token.ndim > 1 else self.token.expand(x.shape[0], 1, -1)
        bias = mask_bias(nn.functional.pad(mask, (tokens.shape[1], 0), value=True), x.dtype)[:, None]  # (B, 1, 1, T+P)
        for block in self.blocks:
            tokens = block(tokens, x, bias)
        return self.norm(tokens)


class ParticleTransformer(nn.Module):
    """Jets to logits; see the module docstring for the steps."""

    inputs = INPUTS

    def __init__(self, config: ParTConfig) -> None:
        super().__init__()
        self.config = config
        block = config.block(config.dropout, config.attention_dropout, config.activation_dropout)
        self.embed = ParticleEmbedding(config.input_dim, config.embed_dims)
        self.pair_embed = PairEmbedding((*config.pair_embed_dims, config.num_heads), config.pair_activation)
        self.blocks = nn.ModuleList(ParticleBlock(block, depth) for depth in range(1, config.num_layers + 1))
        class_block = config.block(*(config.class_dropout,) * 3)
        readouts = {
            name: ClassReadout(class_block, config.num_class_layers, len(tokens))
            for name, tokens in token_groups(config.all_tasks).items()
        }
        heads = {task.name: self._head(task) for task in config.all_tasks}
        self.readout, self.head = readouts.pop(next(iter(readouts))), heads.pop(next(iter(heads)))
        self.readouts, self.heads = nn.ModuleDict(readouts), nn.ModuleDict(heads)

    def _head(self, task: TaskConfig) -> nn.Sequential:
        widths = (self.config.dim, *(self.config.fc_dims if task.head is None else task.head))
        head = nn.Sequential()
        for inner, outer in pairwise(widths):
            head.extend((linear(inner, outer), nn.ReLU(), Dropout(self.config.fc_dropout)))
        return head.append(linear(widths[-1], task.outputs or self.config.num_classes))

    def forward(self, features: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, C) of features (B, F, P), vectors (B, 4, P) in GeV and mask (B, 1, P), True for real."""
        return self.head(self.latent(features, vectors, mask))

    def latent(self, features: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
        """The first task's class token after the last norm, (B, D): what downstream tasks are trained on."""
        return self.readout(*self.encode(features, vectors, mask))[:, 0]

    def latents(self, features: Tensor, vectors: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Every class token after its last norm by name, (B, D) each; the first is `latent`."""
        x, mask = self.encode(features, vectors, mask)
        groups = token_groups(self.config.all_tasks).values()
        return {
            token: latent
            for tokens, readout in zip(groups, (self.readout, *self.readouts.values()), strict=True)
            for token, latent in zip(tokens, readout(x, mask).unbind(1), strict=True)
        }

    def outputs(self, features: Tensor, vectors: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Outputs of every task's head by the task's name, (B, C) each; the first are `forward`'s logits."""
        latents = self.latents(features, vectors, mask)
        heads = (self.head, *self.heads.values())
        return {task.name: head(latents[task.reads]) for task, head in zip(self.config.all_tasks, heads, strict=True)}

    def encode(self, features: Tensor, vectors: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Particle tokens (B, P, D) after the particle blocks, and the mask (B, 1, P) of those to read."""
        mask = mask.bool()
        x = self.embed(features, mask)
        bias = self.pair_embed(vectors, mask)
        for block in self.blocks:
            x = block(x, bias)
        return x, mask
