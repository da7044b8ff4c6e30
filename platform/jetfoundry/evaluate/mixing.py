"""Is a shard a fair draw from the whole input? Tests of the class mix of shards and of the order of labels in them.

What is compared with: N jets are shuffled and dealt out; a shard of n jets is then a draw without replacement. ingest
draws more evenly than that (each unit gets its share of each file, plan.py), so p-values near 1 are normal and those
near 0 say that something is unmixed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special  # scipy.stats takes a second and 60 MB to import

__all__ = ["class_mix", "expected_longest_run", "longest_run", "longest_run_p"]

_LEAST = 5.0
"""Expected jets of a class below which the chi-square distribution is no longer a good approximation."""


def class_mix(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """p-value (S,) of the class mix of each shard against that of all S shards, from `counts` (S, C).

    Pearson's chi-square of the C counts, divided by 1 - n/N because shards are drawn without replacement. Classes of
    which fewer than 5 jets are expected are taken together; NaN if less than two classes are left.
    """
    total = counts.sum(axis=0)
    jets = int(total.sum())
    return np.array([_p_value(shard, total, jets) for shard in counts])


def _p_value(shard: npt.NDArray[np.int64], total: npt.NDArray[np.int64], jets: int) -> float:
    drawn = int(shard.sum())
    expected = total * (drawn / jets)
    enough = expected >= _LEAST
    seen, wanted = [*shard[enough], shard[~enough].sum()], [*expected[enough], expected[~enough].sum()]
    if wanted[-1] < _LEAST:  # too few even together: they join the rarest of the others
        rest_seen, rest_wanted = seen.pop(), wanted.pop()
        if wanted:
            rarest = int(np.argmin(wanted))
            seen[rarest] += rest_seen
            wanted[rarest] += rest_wanted
    if len(wanted) < 2 or drawn == jets:
        return float("nan")
    o, e = np.asarray(seen, np.float64), np.asarray(wanted, np.float64)
    return float(special.chdtrc(len(e) - 1, ((o - e) ** 2 / e).sum() / (1 - drawn / jets)))


def longest_run(labels: npt.NDArray[Any]) -> int:
    """Length of the longest run of equal labels (B,), 0 without jets.

    >>> longest_run(np.array([1, 2, 2, 2, 1]))
    3
    """
    if not len(labels):
        return 0
    ends = np.flatnonzero(np.append(labels[1:] != labels[:-1], True))
    return int(np.diff(ends, prepend=-1).max())


def longest_run_p(length: int, fractions: npt.NDArray[np.float64], jets: int) -> float:
    """Probability that the longest run of equal labels among `jets` fair draws is `length` or longer.

    Runs of class c with that length or more start in about jets * (1 - f) * f^length places, a Poisson number
    (M. F. Schilling, The longest run of heads, Coll. Math. J. 21 (1990) 196); `fractions` (C,) add up to 1.
    """
    f = np.asarray(fractions, np.float64)
    if (f == 1).any():
        return 1.0
    return float(-np.expm1(-jets * ((1 - f) * f**length).sum()))


def expected_longest_run(fractions: npt.NDArray[np.float64], jets: int) -> float:
    """Mean longest run of equal labels among `jets` fair draws: the sum of P(longest >= l) over l = 1, 2, …"""
    f = np.asarray(fractions, np.float64)
    if (f == 1).any():
        return float(jets)
    expected, length = 0.0, 1
    while length <= jets and (p := longest_run_p(length, f, jets)) > 1e-6:
        expected += p
        length += 1
    return expected
