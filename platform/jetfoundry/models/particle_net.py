"""ParticleNet (Qu, Gouskos, arXiv:1902.08570): a jet as a cloud of particles, convolved over nearest neighbours.

The way of a batch (B jets, P particles, F features, k neighbours, C channels, N real particles of the batch):

1. features (B, F, P) -> rows of real particles (N, F) -> normalise
2. for each block: the k nearest particles of the same jet, in (deta, dphi) at first, in the space of the features
   after that; for each edge i -> j a network of (x_i, x_j - x_i), (N k, C); mean over the k edges; shortcut (N, C)
3. optionally a fusion layer over the outputs of all blocks; mean over the particles of a jet -> latent (B, D)
4. head: latent -> logits (B, C)

Decided here: a particle is never its own neighbour; where a jet has too few, the missing neighbours are particles
whose features are zero, as they are in weaver for jets that are padded enough: so imported networks give weaver's
scores, and padding changes nothing. The first layer of the edge network is linear in x_i and x_j, so it runs on N rows
instead of N k. Norms see real edges only, see `normalisation.py`. Padding costs no more than its distances, so cutting
a batch into micro-batches of similar length saves nothing here, and a norm in every layer learns better without.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jetfoundry import config as cfg
from jetfoundry.models.attention import Dropout
from jetfoundry.models.normalisation import BatchRenorm, LinearRenorm

__all__ = ["EdgeConv", "ParticleNet", "ParticleNetConfig", "nearest_neighbours"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParticleNetConfig:
    """Architecture of a ParticleNet; the defaults are those of the published JetClass networks."""

    input_dim: int = cfg.option(17, "features of one particle (F)")
    num_classes: int = cfg.option(188, "outputs (C)")
    neighbours: tuple[int, ...] = cfg.option((16, 16, 16), "nearest neighbours (k), for each block")
    channels: tuple[tuple[int, ...], ...] = cfg.option(
        ((64, 64, 64), (128, 128, 128), (256, 256, 256)), "widths of the edge network, for each block"
    )
    input_norm: bool = cfg.option(True, "batch norm of the features")
    fusion: bool = cfg.option(False, "a layer over the outputs of all blocks; else the last block's output is used")
    fc_dims: tuple[int, ...] = cfg.option((256,), "hidden widths of the head")
    fc_dropout: float = cfg.option(0.1, "dropout rate of the head")

    def __post_init__(self) -> None:
        if not self.channels or len(self.channels) != len(self.neighbours) or not all(self.channels):
            msg = f"wanted channels and neighbours for every block, got {self.channels} and {self.neighbours}"
            raise ValueError(msg)
        sizes = (self.input_dim, self.num_classes, *self.neighbours, *(w for c in self.channels for w in c))
        if min(*sizes, *self.fc_dims) < 1 or not 0 <= self.fc_dropout < 1:
            msg = "all widths and numbers of a ParticleNet must be at least 1, and fc_dropout in [0, 1)"
            raise ValueError(msg)

    @property
    def dim(self) -> int:
        """D, the width of the latent."""
        last = [widths[-1] for widths in self.channels]
        return min(max(sum(last) // 128 * 128, 128), 1024) if self.fusion else last[-1]


@torch.no_grad()
def nearest_neighbours(points: Tensor, real: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` nearest other particles of each particle, in no order.

    Parameters
    ----------
    points
        (B, C, P) coordinates; the content of padded slots is ignored.
    real
        (B, P) bool, True for real particles.

    Returns
    -------
    tuple of Tensor
        Slots (B, P, k) of the neighbours, and whether there is one (B, P, k): jets of few particles run out of them.
    """
    with torch.autocast(points.device.type, enabled=False):
        points = points.to(torch.promote_types(points.dtype, torch.float32)).masked_fill(~real[:, None], 0)
        length2 = points.square().sum(1)  # (B, P)
        distance2 = length2[:, :, None] - 2 * points.transpose(1, 2) @ points + length2[:, None]  # (B, P, P)
    itself = torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
    distance2 = distance2.masked_fill(itself | ~real[:, None], torch.inf)
    if torch.compiler.is_exporting() or k > real.shape[1]:
        distance2 = F.pad(distance2, (0, k), value=torch.inf)
    found, slot = distance2.topk(k, largest=False, sorted=False)
    return slot, found < torch.inf


class EdgeConv(nn.Module):
    """One block: a network of every edge, its mean over the edges of a particle, and a shortcut around both."""

    def __init__(self, in_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.edge = nn.Linear(2 * in_channels, widths[0], bias=False)
        self.norm = BatchRenorm(widths[0])
        self.layers = nn.ModuleList(LinearRenorm(inner, outer, bias=False) for inner, outer in pairwise(widths))
        self.shortcut = (
            nn.Identity() if in_channels == widths[-1] else LinearRenorm(in_channels, widths[-1], bias=False)
        )

    def forward(self, rows: Tensor, neighbours: Tensor) -> Tensor:
        """Particles (N, C) and the row numbers of their neighbours (N, k) -> particles (N, C'); row N is a zero."""
        weight, shift = self.edge.weight, None
        if not self.training:  # the norm as a part of the layer
            scale, shift = self.norm.inference_affine()
            weight = weight * scale[:, None]
        of_centre, of_neighbour = weight.chunk(2, dim=1)  # (C', C): W (x_i, x_j - x_i) = (A - B) x_i + B x_j
        centre = F.linear(rows, of_centre - of_neighbour, shift)
        near = F.pad(F.linear(rows, of_neighbour), (0, 0, 0, 1))
        edges = F.embedding(neighbours, near).add_(centre[:, None]).flatten(0, 1)  # (N k, C')
        edges = F.relu(self.norm(edges) if self.training else edges, inplace=True)  # no norm needs its output again
        for layer in self.layers:
            edges = F.relu(layer(edges), inplace=True)
        return F.relu(edges.unflatten(0, neighbours.shape).mean(1) + self.shortcut(rows))


class ParticleNet(nn.Module):
    """Jets to logits; see the module docstring for the steps."""

    inputs = ("pf_points", "pf_features", "pf_mask")

    def __init__(self, config: ParticleNetConfig) -> None:
        super().__init__()
        self.config = config
        last = [config.input_dim, *(widths[-1] for widths in config.channels)]
        self.norm = BatchRenorm(config.input_dim) if config.input_norm else nn.Identity()
        self.blocks = nn.ModuleList(EdgeConv(*shape) for shape in zip(last, config.channels, strict=False))
        self.fusion = LinearRenorm(sum(last[1:]), config.dim, bias=False) if config.fusion else None
        self.head = nn.Sequential()
        for inner, outer in pairwise((config.dim, *config.fc_dims)):
            self.head.extend((nn.Linear(inner, outer), nn.ReLU(), Dropout(config.fc_dropout)))
        self.head.append(nn.Linear((config.dim, *config.fc_dims)[-1], config.num_classes))

    def forward(self, points: Tensor, features: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, C) of points (B, 2, P) in (deta, dphi), features (B, F, P) and mask (B, 1, P), True for real."""
        return self.head(self.latent(points, features, mask))

    def latent(self, points: Tensor, features: Tensor, mask: Tensor) -> Tensor:
        """Mean over the particles of a jet of what the blocks made of them, (B, D)."""
        real = mask.squeeze(1).bool()  # (B, P)
        rows, places = self._rows(features, real)
        rows = self.norm(rows)
        outputs = []
        for block, k in zip(self.blocks, self.config.neighbours, strict=True):
            rows = block(rows, self._neighbours(points, real, places, k))
            points = _dense(rows, real, places).transpose(1, 2)  # (B, C, P)
            outputs.append(rows)
        if self.fusion is not None:
            rows = F.relu(self.fusion(torch.cat(outputs, dim=1)))
        return _dense(rows, real, places).sum(1) / real.sum(1, keepdim=True).clamp(min=1)

    def _rows(self, features: Tensor, real: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows (N, F) of the real particles and their places in the flattened batch (N,), None: all are."""
        flat = features.transpose(1, 2).flatten(0, 1)  # (B P, F)
        if torch.compiler.is_exporting():  # data-dependent shapes do not export: padding stays, as zeros
            return flat.masked_fill(~real.flatten()[:, None], 0), None
        places = real.flatten().nonzero().squeeze(1)
        return flat.index_select(0, places), places

    def _neighbours(self, points: Tensor, real: Tensor, places: Tensor | None, k: int) -> Tensor:
        """Row numbers of the neighbours (N, k), N where there is none."""
        slot, there = nearest_neighbours(points, real, k)  # (B, P, k)
        jets, length = real.shape
        slot = slot + (torch.arange(jets, device=slot.device) * length)[:, None, None]
        if places is None:
            return slot.where(there, jets * length).flatten(0, 1)
        row = torch.arange(len(places), device=slot.device)
        row = row.new_full((jets * length,), len(places)).index_copy(0, places, row)  # row number of each slot
        return row[slot.where(there, 0)].where(there, len(places)).flatten(0, 1).index_select(0, places)


def _dense(rows: Tensor, real: Tensor, places: Tensor | None) -> Tensor:
    """Rows (N, C) at their places in the batch, (B, P, C), zero for padding."""
    if places is None:
        return rows.view(*real.shape, -1).masked_fill(~real[..., None], 0)
    return rows.new_zeros(real.numel(), rows.shape[1]).index_copy(0, places, rows).view(*real.shape, -1)
