"""How often a jet is used: class balancing as an expected number of uses per pass over the data.

A data set is never balanced as it lies: QCD with two b and two c quarks is a thousand times rarer than light
QCD. Instead of loss weights (which leave the gradient of rare classes noisy) jets are accepted or repeated, as
weaver does: a jet of class c is used m_c times per pass on average, at most `max_repeat` times.

The draw is *systematic*: M points, evenly spaced with one random start, on the cumulative sum of the m_c.
Each jet is then used floor(m_c) or ceil(m_c) times, and the number of draws M is free to choose, so a window
yields whole batches only and the position in the data stays three integers (`loader.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import numpy.typing as npt

from jetfoundry import config
from jetfoundry.labels import GROUP_WEIGHTS, GROUPS, LabelScheme

__all__ = ["SamplingConfig", "class_multiplicity", "systematic_draw"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Which jets a training pass uses, and how often."""

    balance: Literal["natural", "classes", "groups"] = config.option(
        "classes", "natural = as stored; classes = equal classes; groups = class weights of the Sophon card"
    )
    max_repeat: float = config.option(10.0, "a jet is used at most this often in one pass over the data")

    def __post_init__(self) -> None:
        if self.max_repeat < 1:
            msg = f"max_repeat must be >= 1, got {self.max_repeat}"
            raise ValueError(msg)


def class_multiplicity(
    jet_counts: npt.ArrayLike, scheme: LabelScheme, sampling: SamplingConfig
) -> npt.NDArray[np.float64]:
    """Expected uses per pass of a jet of each output class, shape (number of classes,).

    `jet_counts` (188,) are the stored jets of each JetClass-II class, from the manifest. A pass is as long as
    the data set has jets of the scheme, up to the effect of `max_repeat`; absent classes get 0.
    """
    stored = np.asarray(jet_counts, dtype=np.float64)
    table = np.asarray(scheme.table)
    counts = np.bincount(table[table >= 0], weights=stored[table >= 0], minlength=scheme.num_classes)
    present = counts > 0
    if sampling.balance == "natural":
        return present.astype(np.float64)
    share = np.ones(scheme.num_classes)
    if sampling.balance == "groups":
        share = _group_shares(stored, scheme)
    share = np.where(present, share, 0.0)
    wanted = share / max(share.sum(), 1e-300) * counts.sum()
    uses = np.divide(wanted, counts, out=np.zeros_like(wanted), where=present)
    return np.asarray(np.minimum(uses, sampling.max_repeat))


def _group_shares(stored: npt.NDArray[np.float64], scheme: LabelScheme) -> npt.NDArray[np.float64]:
    """Each group's weight, shared between its classes in proportion to their stored jets (as in the card)."""
    share = np.zeros(scheme.num_classes)
    for name, indices in GROUPS.items():
        kept = [i for i in indices if scheme.table[i] >= 0]
        inside = stored[kept].sum()
        for i in kept:
            share[scheme.table[i]] += GROUP_WEIGHTS[name] * stored[i] / inside if inside else 0.0
    return share


def systematic_draw(uses: npt.NDArray[np.float64], draws: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw `draws` of B jets with expected numbers proportional to `uses` (B,), in random order.

    >>> systematic_draw(np.array([1.0, 0.0, 2.0]), 3, np.random.default_rng(1)).tolist().count(2)
    2
    """
    order = rng.permutation(len(uses))  # else the even steps could beat with a pattern in the stored order
    cumulative = np.cumsum(uses[order])
    points = (np.arange(draws) + rng.random()) * (cumulative[-1] / draws)
    chosen = order[np.minimum(np.searchsorted(cumulative, points, side="right"), len(uses) - 1)]
    return np.asarray(rng.permutation(chosen), dtype=np.int64)
