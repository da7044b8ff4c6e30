"""Is one network better than another, or is the difference noise? Figures of trials on the same jets, with both errors.

E evaluation jets, R bootstrap samples, S seeds. Decided here:

* All trials of a task see the same bootstrap samples, which keep the number of jets of each class; the sample itself is
  row 0. So a difference knows that both networks were tested on the same jets.
* Trainings of one seed have the same training jets: differences are taken seed by seed.
* A gain is the ratio of two figures less 1; ratios are averaged as logarithms. Its variance is that of the mean over
  seeds, from their scatter, plus that of the bootstrap. The scatter of three seeds is not well known: the gain over its
  error is held against Student's t with the degrees of freedom of Welch and Satterthwaite (Biometrics Bull. 2 (1946)
  110), and is better or worse than noise if chance gives as much in less than `LEVEL` of all cases.
* A rejection with fewer than `metrics.MIN_SURVIVORS` background jets is a bound, NaN here. One bound makes a mean a
  bound, and there is no gain over it or of it: to leave out the trainings that reject best would be no comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from jetfoundry.evaluate import metrics
from jetfoundry.evaluate.comparison import background_efficiencies
from jetfoundry.evaluate.discriminants import Discriminant
from jetfoundry.evaluate.figures import Figure
from jetfoundry.evaluate.metrics import Floats

__all__ = [
    "LEVEL", "Gain", "areas", "gain", "gain_of_recipes", "mean_rejection", "replicated", "replicated_target",
    "resampled", "sides",
]  # fmt: skip

LEVEL = 0.05
"""Share of cases in which noise alone may be called a gain or a loss."""

Verdict = Literal["better", "worse", "noise", "one seed"]

_QUANTILES = np.array([0.5 - 0.682689492137 / 2, 0.5, 0.5 + 0.682689492137 / 2])
_LARGEST_SAMPLES = 4e7  # numbers: 320 MB


class Gain(NamedTuple):
    """`value` is the ratio less 1; `error` joins `seeds` (None for one seed) and `jets`; `p` the chance of noise."""

    value: float
    error: float
    seeds: float | None
    jets: float
    p: float
    verdict: Verdict


def resampled(labels: npt.NDArray[np.int64], replicas: int, seed: int = 0) -> npt.NDArray[np.float64]:
    """How often each jet is in the sample itself (row 0) and in each bootstrap sample, (1 + R, E).

    R is `replicas`, fewer for so many jets that the counts would not fit into memory, but at least 30.
    """
    number = max(30, min(replicas, int(_LARGEST_SAMPLES / max(1, len(labels)))))
    rng = np.random.default_rng(seed)
    counts = np.ones((1 + number, len(labels)))
    for label in np.unique(labels):
        jets = np.flatnonzero(labels == label)
        counts[1:, jets] = rng.multinomial(len(jets), np.full(len(jets), 1 / len(jets)), size=number)
    return counts


def replicated(
    logits: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    discriminants: Sequence[Discriminant],
    efficiencies: Sequence[float],
    counts: npt.NDArray[np.float64],
    *,
    ordered: bool = False,
) -> dict[Figure, Floats]:
    """Logarithms of the figures in each sample, (1 + R,) by figure; NaN for a rejection that is a bound, nothing for a
    discriminant of which one side has no jets. `counts` (1 + R, E) are those of `resampled`, times the jets' weights.

    With `ordered` classes (bins), the share of jets that are right to within one class is a figure, too.
    """
    away = np.abs(logits.argmax(axis=1) - labels)
    total = counts.sum(axis=1)
    found = {Figure("accuracy"): counts @ (away == 0) / total}
    if ordered:
        found[Figure("accuracy within one class")] = counts @ (away <= 1) / total
    for each in discriminants:
        odds, is_signal, used = sides(each, logits, labels)
        if is_signal.all() or not is_signal.any():
            continue
        sample = counts[:, used]
        found[Figure("AUC", each.name)] = areas(odds, is_signal, sample)
        for efficiency in efficiencies:
            figure = Figure("rejection", each.name, efficiency)
            if metrics.rejection(odds, is_signal, efficiency, sample[0]).is_lower_bound:
                found[figure] = np.full(len(sample), np.nan)
                continue
            passed = background_efficiencies(odds, is_signal, efficiency, sample)
            found[figure] = 1 / np.maximum(passed, 1 / (1 + (~is_signal).sum()))
    return {figure: np.log(np.maximum(values, 1e-12)) for figure, values in found.items()}


def sides(
    discriminant: Discriminant, logits: npt.NDArray[Any], labels: npt.NDArray[np.int64]
) -> tuple[Floats, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Log-odds and sides of the jets that a discriminant concerns, and which these are."""
    used = np.isin(labels, [*discriminant.signal, *discriminant.background])
    return discriminant.log_odds(logits[used]), np.isin(labels[used], discriminant.signal), used


def areas(score: Floats, is_signal: npt.NDArray[np.bool_], counts: npt.NDArray[np.float64]) -> Floats:
    """Area under the ROC curve (R,) of R samples in which jets count `counts` (R, B); ties count half."""
    order = np.argsort(score, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])  # of the jets of each distinct score
    signal, background = (
        np.add.reduceat(counts[:, order] * side[order], first, axis=1) for side in (is_signal, ~is_signal)
    )
    below = np.cumsum(background, axis=1) - background / 2
    return np.asarray((signal * below).sum(axis=1) / signal.sum(axis=1) / background.sum(axis=1))


def replicated_target(
    found: npt.NDArray[Any], truth: npt.NDArray[Any], counts: npt.NDArray[np.float64]
) -> dict[Figure, Floats]:
    """The same of a target: logarithms of the resolution and of the response (`regression.py`), from logarithms of what
    was found and of the truth (E,)."""
    response = np.exp(found.astype(np.float64) - truth)
    order = np.argsort(response, kind="stable")
    sample = counts[:, order]
    ranks = (np.cumsum(sample, axis=1) - sample / 2) / sample.sum(axis=1, keepdims=True)
    low, median, high = np.transpose([np.interp(_QUANTILES, each, response[order]) for each in ranks])
    width = np.maximum((high - low) / 2 / median, 1e-12)
    return {Figure("resolution"): np.log(width), Figure("response"): np.log(median)}


def mean_rejection(
    odds: Sequence[Floats], is_signal: npt.NDArray[np.bool_], efficiency: float, weights: Floats | None = None
) -> dict[str, Any]:
    """Rejection of several trainings with log-odds (B,): 1 / mean background efficiency, its binomial `error`, its
    standard deviation `std` over the trainings, mean number of `survivors`. A `bound`, without errors, if that of one
    training is: bounds below all of them give one below their mean. With `weights` (B,) the error is that of weighted
    jets."""
    points = [metrics.rejection(each, is_signal, efficiency, weights) for each in odds]
    survivors = float(np.mean([point.survivors for point in points]))
    row: dict[str, Any] = {"value": None, "std": None, "error": None, "survivors": survivors, "bound": False}
    if math.isnan(points[0].rejection):
        return row
    values = np.array([point.rejection for point in points])
    mean = float(1 / np.mean(1 / values))
    if any(point.is_lower_bound for point in points):
        return row | {"value": mean, "bound": True}
    spread = float(values.std(ddof=1)) if len(points) > 1 else None
    return row | {"value": mean, "std": spread, "error": mean * float(np.mean([p.error / p.rejection for p in points]))}


def gain(mine: npt.NDArray[Any], theirs: npt.NDArray[Any], *, repeatable: bool = False) -> Gain | None:
    """Compare logarithms of a figure (S, 1 + R), seed by seed; None if one of them is a bound. `repeatable`: a training
    has no other outcome, so one seed is all."""
    change = mine - theirs
    if np.isnan(change).any():
        return None
    seeds = None if len(change) < 2 else float(np.std(change[:, 0], ddof=1) / math.sqrt(len(change)))
    jets = float(np.std(change[:, 1:].mean(axis=0), ddof=1))
    parts = [(seeds or 0.0, len(change) - 1), (jets, change.shape[1] - 2)]
    return _judged(float(change[:, 0].mean()), parts, seeds, jets, one=seeds is None and not repeatable)


def gain_of_recipes(mine: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> Gain | None:
    """Compare two ways of pre-training by logarithms of a figure (N, 1 + R) and (M, 1 + R) of N and M backbones, each
    the mean over its trials; None if one of them is a bound. Pre-trainings are not paired."""
    if np.isnan(mine).any() or np.isnan(theirs).any():
        return None
    sides = [float(np.std(side[:, 0], ddof=1) / math.sqrt(len(side))) if len(side) > 1 else 0.0
             for side in (mine, theirs)]  # fmt: skip
    change = mine.mean(axis=0) - theirs.mean(axis=0)
    jets = float(np.std(change[1:], ddof=1))
    parts = [(sides[0], len(mine) - 1), (sides[1], len(theirs) - 1), (jets, len(change) - 2)]
    return _judged(float(change[0]), parts, math.hypot(*sides), jets, one=min(len(mine), len(theirs)) < 2)


def _judged(change: float, parts: Sequence[tuple[float, int]], seeds: float | None, jets: float, *, one: bool) -> Gain:
    """A gain from the change of a logarithm and its errors with their degrees of freedom."""
    error = math.sqrt(sum(part**2 for part, _ in parts))
    p = 1.0 if change == 0 else 0.0
    if error > 0:
        freedom = error**4 / sum(part**4 / number for part, number in parts if part > 0)
        p = float(2 * stats.t.sf(abs(change) / error, freedom))
    verdict: Verdict = "noise" if p >= LEVEL else "better" if change > 0 else "worse"
    ratio = math.exp(change)
    scaled = None if seeds is None else ratio * seeds
    return Gain(ratio - 1, ratio * error, scaled, ratio * jets, p, "one seed" if one else verdict)
