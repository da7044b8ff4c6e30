"""Sophon++: a jet network that also learns to tell which hard process each of its jets came from.

Two Particle Transformers: one reads the jet, with one task that classifies and one that projects; a smaller one reads
the generator-level particles (`gen_particles.py`) and projects too. Loss = w_contrastive * contrastive (projections of
the same jet agree, `contrastive_loss.py`) + w_classification * cross-entropy.

Decided here: after pre-training the jet network is used alone, so this network called without `gen_particles` is the
jet network; a jet without any particle of the hard process has one learned token in their place; the scale of the
cosines is part of the model, so that a learned one is trained.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jetfoundry import config as cfg
from jetfoundry.errors import InputError
from jetfoundry.loading.gen_particles import GEN_COLUMNS
from jetfoundry.models.contrastive_loss import Contrast, contrastive_loss
from jetfoundry.models.gen_particles import GEN_FEATURES, gen_inputs
from jetfoundry.models.losses import Losses
from jetfoundry.models.particle_transformer import ParTConfig, ParticleTransformer
from jetfoundry.models.tasks import TaskConfig

__all__ = ["ContrastiveConfig", "ContrastiveOutputs", "ContrastiveTransformer", "GenTransformer"]

PROJECTION = "contrastive"
"""Name of the jet network's task that projects."""

_LARGEST_SCALE = 100.0


def _jet_network() -> ParTConfig:
    projection = TaskConfig(name=PROJECTION, head=(512, 512, 512), outputs=256)
    return ParTConfig(embed_dims=(512, 128, 512), tasks=(TaskConfig(), projection))


def _gen_network() -> ParTConfig:
    return ParTConfig(
        input_dim=len(GEN_FEATURES), num_classes=256, embed_dims=(64, 64, 64), pair_embed_dims=(32, 32, 32),
        num_heads=4, num_layers=4, fc_dims=(),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """Both networks and their loss; the defaults are Sophon++'s, the width of the projections excepted, which its
    description gives as 512 and as 256."""

    jet: ParTConfig = cfg.option(_jet_network(), "network of the jet, with a task named contrastive")
    gen: ParTConfig = cfg.option(
        _gen_network(), "network of the generator-level particles; its outputs are projections"
    )
    w_contrastive: float = cfg.option(0.1, "weight of the contrastive loss (alpha)")
    w_classification: float = cfg.option(1.0, "weight of the cross-entropy (beta)")
    temperature: float = cfg.option(0.07, "cosines are divided by this")
    learn_temperature: bool = cfg.option(False, "train the temperature, from that value on and not below 0.01")
    symmetric: Literal["sum", "mean"] = cfg.option(
        "sum", "jet -> particles and back: added (Sophon++) or averaged (CLIP)"
    )
    negatives: Literal["local", "global"] = cfg.option("local", "jets to compare with: this worker's, or all workers'")
    gen_tokens: Literal["final_state", "with_resonances"] = cfg.option("final_state", "particles of the hard process")

    def __post_init__(self) -> None:
        if self.w_contrastive <= 0 or self.w_classification < 0 or self.temperature < 1 / _LARGEST_SCALE:
            got = f"{self.w_contrastive}, {self.w_classification}, {self.temperature}"
            msg = "wanted w_contrastive > 0 (without it, train the jet network alone), w_classification >= 0 and "
            raise ValueError(msg + f"temperature >= {1 / _LARGEST_SCALE}; got {got}")
        outputs = {task.name: task.outputs or self.jet.num_classes for task in self.jet.tasks}
        if outputs.get(PROJECTION) != self.gen.num_classes:
            msg = f"the projections must be equally wide: the jet network's task {PROJECTION!r} has "
            raise ValueError(msg + f"{outputs.get(PROJECTION, 0)} outputs, the gen network {self.gen.num_classes}")
        if self.gen.input_dim != len(GEN_FEATURES):
            msg = (
                f"gen.input_dim: generator-level particles have {len(GEN_FEATURES)} features, got {self.gen.input_dim}"
            )
            raise ValueError(msg)

    @property
    def input_dim(self) -> int:
        """Features of one particle of the jet (F)."""
        return self.jet.input_dim

    @property
    def num_classes(self) -> int:
        """Outputs of the classification (C)."""
        return self.jet.num_classes

    @property
    def dim(self) -> int:
        """Width of the jet's latent (D)."""
        return self.jet.dim


class ContrastiveOutputs(NamedTuple):
    """Logits (B, C), projections of unit length (B, K) of jets and of their particles, and the scale of cosines."""

    logits: Tensor
    jet: Tensor
    gen: Tensor
    scale: Tensor


class GenTransformer(ParticleTransformer):
    """A Particle Transformer that reads one learned token where there is no particle."""

    def __init__(self, config: ParTConfig) -> None:
        super().__init__(config)
        self.empty_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(config.dim), std=0.02))

    def encode(self, features: Tensor, vectors: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """As the parent's; jets without particles get the learned token in their first slot."""
        x, mask = super().encode(features, vectors, mask)
        first = torch.arange(x.shape[1], device=x.device) == 0
        empty = ~mask.any(-1, keepdim=True) & first  # (B, 1, P)
        return torch.where(empty.transpose(1, 2), self.empty_token.to(x.dtype), x), mask | empty


class ContrastiveTransformer(nn.Module):
    """The jet network, the generator-level network and the scale of their cosines."""

    inputs = ParticleTransformer.inputs
    training_inputs = (*ParticleTransformer.inputs, "gen_particles")
    figures = ("total_loss", "contrastive_loss", "retrieval", "temperature")
    validation_figures = ("contrastive_loss", "retrieval")
    log_scale: Tensor

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        self.config = config
        self.jet, self.gen = ParticleTransformer(config.jet), GenTransformer(config.gen)
        scale = torch.tensor(-math.log(config.temperature))
        if config.learn_temperature:
            self.log_scale = nn.Parameter(scale)
        else:
            self.register_buffer("log_scale", scale)

    @property
    def head(self) -> nn.Module:
        """The jet network's classification head."""
        return self.jet.head

    def latent(self, features: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
        """The jet network's classification token (B, D)."""
        return self.jet.latent(features, vectors, mask)

    def latents(self, features: Tensor, vectors: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """All class tokens of the jet network by name, (B, D) each."""
        return self.jet.latents(features, vectors, mask)

    def forward(
        self, features: Tensor, vectors: Tensor, mask: Tensor, gen_particles: Tensor | None = None
    ) -> Tensor | ContrastiveOutputs:
        """The jet network's logits (B, C); with `gen_particles` (B, 10, G), see `gen_particles.py`, all outputs."""
        if gen_particles is None:
            return self.jet(features, vectors, mask)
        if gen_particles.shape[1] != len(GEN_COLUMNS):
            msg = f"gen_particles: wanted {len(GEN_COLUMNS)} channels ({', '.join(GEN_COLUMNS)}), got "
            raise InputError(msg + str(gen_particles.shape[1]))
        outputs = self.jet.outputs(features, vectors, mask)
        particles = gen_inputs(gen_particles, with_resonances=self.config.gen_tokens == "with_resonances")
        logits, jet, gen = next(iter(outputs.values())), outputs[PROJECTION], self.gen(*particles)
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(_LARGEST_SCALE))
        return ContrastiveOutputs(
            logits, F.normalize(jet.float(), dim=1), F.normalize(gen.float(), dim=1), self.log_scale.exp()
        )

    @staticmethod
    def joined(parts: Sequence[ContrastiveOutputs]) -> ContrastiveOutputs:
        """Outputs of a batch from those of its micro-batches, (B, ...)."""
        logits, jet, gen = (torch.cat(column) for column in list(zip(*parts, strict=True))[:3])
        return ContrastiveOutputs(logits, jet, gen, parts[-1].scale)

    def contrast(
        self, outputs: ContrastiveOutputs, ids: Tensor | None = None, negatives: Literal["local", "global"] = "local"
    ) -> Contrast:
        """Each jet against the particles of all others, see `contrastive_loss`."""
        config = self.config
        return contrastive_loss(
            outputs.jet, outputs.gen, outputs.scale, ids, symmetric=config.symmetric, negatives=negatives
        )

    def losses(self, outputs: ContrastiveOutputs, labels: Tensor, ids: Tensor | None = None) -> Losses:
        """Losses of each jet of a batch with `labels` (B,) and `ids`, equal for equal jets."""
        config = self.config
        each = F.cross_entropy(outputs.logits.float(), labels, reduction="none")
        contrast = self.contrast(outputs, ids, config.negatives)
        total = config.w_classification * each + config.w_contrastive * contrast.loss
        # One jet that is not finite makes the contrastive loss of all others so; its own cosine says which it was.
        own = (outputs.jet * outputs.gen).sum(1).detach()
        figures = {
            "total_loss": total.detach(),
            "contrastive_loss": contrast.loss.detach(),
            "retrieval": contrast.found.float(),
            "temperature": 1 / outputs.scale.detach(),
        }
        return Losses(total, each.detach().where(own.isfinite(), torch.nan), outputs.logits.detach(), figures)

    def validation(self, outputs: ContrastiveOutputs) -> Tensor:
        """(B, `validation_figures`) of a batch of jets that are all different, compared with each other."""
        contrast = self.contrast(outputs)
        return torch.stack((contrast.loss, contrast.found.float()), 1)
