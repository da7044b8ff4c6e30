"""What the outputs of a network cost, jet by jet.

A network that is trained to classify returns logits and needs nothing more. One with a loss of its own has
`training_inputs`, which its `forward` takes then; `losses(outputs, labels, ids)`; `figures`, the names of what is to
be logged of them; `validation_figures` and `validation(outputs)`, the same in validation. If jets are compared with
each other, so that a part of a batch has another loss than the whole, it has `joined(parts)`, the outputs of a batch
from those of its micro-batches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Losses", "losses_of"]


class Losses(NamedTuple):
    """Of b jets: `total` (b,), whose mean is minimised; `classification` (b,), the cross-entropy, NaN for a jet of
    which anything is not finite; logits (b, C); and `figures` by name, (b,) each or one number."""

    total: Tensor
    classification: Tensor
    logits: Tensor
    figures: dict[str, Tensor]


def losses_of(network: nn.Module, outputs: Any, labels: Tensor, ids: Tensor | None = None) -> Losses:
    """Losses of what `network` gave for jets with `labels` (b,) and `ids` (b,), equal for equal jets."""
    own: Any = getattr(network, "losses", None)
    if own is not None:
        found: Losses = own(outputs, labels, ids)
        return found
    each = F.cross_entropy(outputs.float(), labels, reduction="none")
    return Losses(each, each.detach(), outputs.detach(), {})
