"""The contrastive loss between jets and their generator-level particles (CLIP, arXiv:2103.00020), on one or many ranks.

Of N jets and N sets of particles, each jet has to find its own set and each set its own jet: two cross-entropies over
the cosines of the projections, sharpened by a scale (1 / temperature). With random projections each is ln N.

Decided here: everything in float32 whatever the autocast; a jet that stands twice in a batch is no negative of itself
(sampling flat in pT and mass repeats jets up to ten times); with `global` negatives each rank compares its own rows
with the columns of all ranks, and the gather passes gradients back, so that the mean of the ranks' gradients, which
DistributedDataParallel takes, is the gradient of one rank with the whole batch. Batches of the ranks may differ by some
jets, as those of the loader do; a rank's jets then weigh as much as they do in its cross-entropy.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, distributed

__all__ = ["Contrast", "contrastive_loss"]


class Contrast(NamedTuple):
    """Of each of this rank's jets (N,): its loss, and whether it is nearest to its own particles (top-1 retrieval)."""

    loss: Tensor
    found: Tensor


def contrastive_loss(
    jet: Tensor,
    gen: Tensor,
    scale: Tensor,
    ids: Tensor | None = None,
    *,
    symmetric: Literal["sum", "mean"] = "sum",
    negatives: Literal["local", "global"] = "local",
) -> Contrast:
    """Compare N jets with the particles of all of them.

    Parameters
    ----------
    jet, gen
        Projections (N, D) of unit length; row i of both belongs to the same jet.
    scale
        Factor on the cosines, a scalar: 1 / temperature.
    ids
        (N,) or (N, K) integers that are equal for equal jets, e.g. (source_file, source_entry).
    symmetric
        The two directions are added, as in Sophon++, or averaged, as in CLIP.
    negatives
        The other jets of this rank, or of all ranks of the default process group.
    """
    with torch.autocast(jet.device.type, enabled=False):
        jet, gen, scale = jet.float(), gen.float(), scale.float()
        columns, all_ids, first = torch.stack((jet, gen), 1), ids, 0  # (M, 2, D), M = N here
        if negatives == "global" and distributed.is_initialized():
            sizes = _sizes(jet)
            first = sum(sizes[: distributed.get_rank()])
            columns = _Gather.apply(columns, sizes)
            all_ids = None if ids is None else _gathered(ids, sizes)
        own = torch.arange(len(jet), device=jet.device) + first  # column of each row's partner
        all_jet, all_gen = columns.unbind(1)
        to_gen, to_jet = scale * jet @ all_gen.T, scale * gen @ all_jet.T  # (N, M) each
        if ids is not None and all_ids is not None:
            same = (ids.view(len(ids), 1, -1) == all_ids.view(1, len(all_ids), -1)).all(-1)  # (N, M)
            same[torch.arange(len(own), device=own.device), own] = False
            to_gen, to_jet = to_gen.masked_fill(same, -torch.inf), to_jet.masked_fill(same, -torch.inf)
        loss = F.cross_entropy(to_gen, own, reduction="none") + F.cross_entropy(to_jet, own, reduction="none")
        found = to_gen.detach().argmax(1) == own
    return Contrast(loss if symmetric == "sum" else loss / 2, found)


def _sizes(x: Tensor) -> list[int]:
    """Rows of `x` on each rank; a GPU is waited for here."""
    sizes = torch.empty(distributed.get_world_size(), dtype=torch.long, device=x.device)
    distributed.all_gather_into_tensor(sizes, torch.tensor([len(x)], device=x.device))
    found: list[int] = sizes.tolist()
    return found


def _gathered(x: Tensor, sizes: list[int]) -> Tensor:
    """`x` (N, ...) of all ranks, one after the other, (M, ...); they are sent filled up to the largest."""
    padded = x.new_zeros(max(sizes), *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _Gather(torch.autograd.Function):
    """`_gathered`; a rank's gradient is the sum of what all ranks' losses want of its rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return _gathered(x, sizes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad, rank = grad.contiguous(), distributed.get_rank()
        distributed.all_reduce(grad)
        return grad.narrow(0, sum(ctx.sizes[:rank]), ctx.sizes[rank]), None
