"""Figures of merit on NumPy arrays, each defined once: accuracy, ROC, rejection, significance, confusion.

Decided here: a number that does not exist is NaN, never infinite and never a made-up zero; a rejection that rests on
fewer than ten background jets becomes a one-sided bound. B jets, C classes; `is_signal` is a boolean (B,) array,
`weights` (B,) are non-negative event weights (1 if left out).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from jetfoundry.errors import ConfigError, InputError

__all__ = [
    "CONFIDENCE",
    "MIN_SURVIVORS",
    "Rejection",
    "RocCurve",
    "Significance",
    "accuracy",
    "auc",
    "balanced_accuracy",
    "confusion_matrix",
    "cross_entropy",
    "log_sum_exp",
    "normalise_rows",
    "quadrature_sum",
    "rejection",
    "require_finite",
    "roc_curve",
    "significance",
]

MIN_SURVIVORS = 10
"""With fewer background jets above the threshold, a rejection is reported as a lower bound."""

CONFIDENCE = 0.95
"""Confidence level of that one-sided bound."""

_BLOCK = 65_536  # jets turned into float64 at a time: a million jets times 188 classes would be 1.5 GB

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.integer]


class RocCurve(NamedTuple):
    """Points of a ROC curve from (0, 0) to (1, 1), one per distinct score, all (N,).

    A point counts the jets with score >= `threshold`; `survivors` is their unweighted number in the background.
    """

    signal_efficiency: Floats
    background_efficiency: Floats
    threshold: Floats
    survivors: Integers


class Rejection(NamedTuple):
    """Background rejection at one signal efficiency; see `rejection`."""

    efficiency: float
    """Signal efficiency that was asked for."""
    signal_efficiency: float
    """Signal efficiency above the threshold; below `efficiency` where signal jets tie at the threshold."""
    threshold: float
    rejection: float
    """1 / background efficiency, or its lower bound at 95% CL."""
    error: float
    """Binomial standard error of `rejection`; NaN for a bound."""
    survivors: int
    """Unweighted background jets above the threshold."""
    is_lower_bound: bool


class Significance(NamedTuple):
    """Median discovery significance; `z` is NaN where `defined` is False (no expected background)."""

    z: Floats
    defined: npt.NDArray[np.bool_]


def log_sum_exp(logits: npt.ArrayLike) -> Floats:
    """ln sum exp over the classes of finite logits (B, C), in float64; neither overflows nor underflows."""
    values = np.asarray(logits)
    sums = np.empty(len(values))
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK].astype(np.float64)
        peak = block.max(axis=1)
        sums[start : start + _BLOCK] = np.log(np.exp(block - peak[:, None]).sum(axis=1)) + peak
    return sums


def accuracy(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Correct / total by the largest of (B, C) logits, unweighted (weaver's "metric"); NaN without jets."""
    scores, truth = _classified(logits, labels)
    return float((scores.argmax(axis=1) == truth).mean()) if len(truth) else math.nan


def balanced_accuracy(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean over the classes that have jets of the fraction of their jets classified right; NaN without jets."""
    scores, truth = _classified(logits, labels)
    jets = np.bincount(truth, minlength=scores.shape[1])
    right = np.bincount(truth[scores.argmax(axis=1) == truth], minlength=scores.shape[1])
    return float((right[jets > 0] / jets[jets > 0]).mean()) if len(truth) else math.nan


def cross_entropy(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean of -ln softmax(logits)[label] over the jets, in nats; NaN without jets."""
    scores, truth = _classified(logits, labels)
    if not len(truth):
        return math.nan
    return float((log_sum_exp(scores) - scores[np.arange(len(truth)), truth]).mean())


def roc_curve(score: npt.ArrayLike, is_signal: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> RocCurve:
    """Signal and background efficiency at every distinct score of (B,); jets that tie enter together.

    Efficiencies of a side without weight are NaN.
    """
    scores, signal, weight = _scored(score, is_signal, weights)
    order = np.argsort(-scores, kind="stable")
    scores, signal, weight = scores[order], signal[order], weight[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1) if len(scores) else np.empty(0, np.int64)
    above_all = np.nextafter(scores[:1], np.inf, dtype=scores.dtype)

    def fraction(values: Floats) -> Floats:
        total = values.sum()
        passed = np.concatenate([np.zeros(min(1, len(last))), np.cumsum(values)[last]])
        return passed / total if total > 0 else np.full(len(passed), np.nan)

    survivors = np.concatenate([np.zeros(min(1, len(last)), np.int64), np.cumsum(~signal)[last]])
    threshold = np.concatenate([above_all, scores[last]])
    return RocCurve(fraction(weight * signal), fraction(weight * ~signal), threshold, survivors)


def auc(score: npt.ArrayLike, is_signal: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Area under the ROC curve = P(signal above background) + P(tie) / 2; NaN if a side is empty."""
    curve = roc_curve(score, is_signal, weights)
    if not len(curve.threshold):
        return math.nan
    return float(np.trapezoid(curve.signal_efficiency, curve.background_efficiency))


def rejection(
    score: npt.ArrayLike, is_signal: npt.ArrayLike, efficiency: float, weights: npt.ArrayLike | None = None
) -> Rejection:
    """Background rejection at signal efficiency `efficiency` (0 to 1, both excluded) from scores (B,).

    The threshold t is the (1 - efficiency) quantile of the signal's scores (a score of the sample, no
    interpolation), the rejection is sum(w) / sum(w of score > t) over the background. Below `MIN_SURVIVORS`
    background jets the Clopper-Pearson upper limit on the background efficiency is inverted into a lower bound;
    with weights the limit on the number of jets is scaled by their effective weight. All NaN if a side is empty.
    """
    if not 0 < efficiency < 1:
        msg = f"signal efficiency: wanted a number between 0 and 1, got {efficiency}"
        raise ConfigError(msg)
    scores, signal, weight = _scored(score, is_signal, weights)
    used = ~signal & (weight > 0)
    background, background_weight = scores[used], weight[used]
    total = float(background_weight.sum())
    if not (total > 0 and weight[signal].sum() > 0):
        return Rejection(efficiency, math.nan, math.nan, math.nan, math.nan, 0, False)

    threshold = _quantile(scores[signal], weight[signal], 1 - efficiency)
    reached = float(weight[signal & (scores > threshold)].sum() / weight[signal].sum())
    passed = background > threshold
    survivors = int(passed.sum())
    fraction = float(background_weight[passed].sum()) / total
    if survivors < MIN_SURVIVORS:
        weighed = background_weight[passed] if survivors else background_weight
        per_jet = float((weighed**2).sum() / weighed.sum())
        limit = _upper_limit(survivors, len(background)) * len(background) * per_jet / total
        return Rejection(efficiency, reached, threshold, 1 / min(limit, 1.0), math.nan, survivors, True)
    # Var(fraction) = sum w^2 (passed - fraction)^2 / (sum w)^2, the binomial e(1 - e)/n for equal weights.
    spread = math.sqrt(float((background_weight**2 * (passed - fraction) ** 2).sum())) / total
    return Rejection(efficiency, reached, threshold, 1 / fraction, spread / fraction**2, survivors, False)


def _quantile(values: Floats, weights: Floats, fraction: float) -> float:
    """Smallest of `values` at or below which at least `fraction` of the weight lies."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order])
    # The tolerance keeps 0.7 * 10 jets at 7, not at 7.000000000000001.
    position = np.searchsorted(below, fraction * below[-1] * (1 - 1e-12))
    return float(values[order][position])


def _upper_limit(passed: int, total: int) -> float:
    """Clopper-Pearson one-sided upper limit on an efficiency: P(at most `passed` of `total`) = 1 - CONFIDENCE."""
    if passed >= total:
        return 1.0
    counts = np.arange(passed + 1)
    log_choose = np.array([-math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in counts]) + math.lgamma(total + 1)
    low, high = passed / total, 1.0
    for _ in range(60):  # bisection to machine precision
        middle = (low + high) / 2
        log_terms = log_choose + counts * math.log(middle) + (total - counts) * math.log1p(-middle)
        low, high = (middle, high) if np.exp(log_terms).sum() > 1 - CONFIDENCE else (low, middle)
    return high


def significance(signal: npt.ArrayLike, background: npt.ArrayLike) -> Significance:
    """Z = sqrt(2 [(s + b) ln(1 + s/b) - s]) for expected counts s, b (any shape, broadcast).

    The median discovery significance of a counting experiment with known background (Cowan, Cranmer, Gross, Vitells,
    arXiv:1007.1727, eq. 97). Below s/b = 1e-4 it is s/sqrt(b), where the difference above cancels. Undefined (NaN and
    `defined` False) for b <= 0 or s < 0.
    """
    s, b = np.broadcast_arrays(np.asarray(signal, np.float64), np.asarray(background, np.float64))
    defined = np.asarray((b > 0) & (s >= 0))
    s, b = np.where(defined, s, 0.0), np.where(defined, b, 1.0)
    full = np.sqrt(2 * np.maximum((s + b) * np.log1p(s / b) - s, 0.0))
    z = np.where(s / b < 1e-4, s / np.sqrt(b), full)
    return Significance(np.where(defined, z, np.nan), defined)


def quadrature_sum(z: npt.ArrayLike, axis: int = -1) -> Floats:
    """Combined significance sqrt(sum z^2) of independent bins along `axis`; NaN if any bin is undefined."""
    return np.asarray(np.sqrt(np.square(np.asarray(z, np.float64)).sum(axis=axis)))


def confusion_matrix(truth: npt.ArrayLike, predicted: npt.ArrayLike, num_classes: int) -> npt.NDArray[np.int64]:
    """Counts (C, C) of jets by true class (row) and predicted class (column) from index arrays (B,).

    For the matrix of groups, map both arrays with the index of `discriminants.group_outputs` first.
    """
    rows, columns = np.asarray(truth, np.int64), np.asarray(predicted, np.int64)
    if rows.shape != columns.shape or rows.ndim != 1:
        msg = f"truth and predicted: wanted two arrays of the same length, got shapes {rows.shape} and {columns.shape}"
        raise InputError(msg)
    _in_range("truth", rows, num_classes)
    _in_range("predicted", columns, num_classes)
    return np.bincount(rows * num_classes + columns, minlength=num_classes**2).reshape(num_classes, num_classes)


def normalise_rows(matrix: npt.ArrayLike) -> Floats:
    """Each row of (C, C) divided by its sum; rows of classes without jets become NaN."""
    counts = np.asarray(matrix, np.float64)
    total = counts.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0))


def _classified(logits: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Checked logits (B, C) and labels (B,)."""
    scores, truth = np.asarray(logits), np.asarray(labels)
    if scores.ndim != 2 or truth.shape != scores.shape[:1]:
        msg = f"wanted logits (B, C) and labels (B,), got shapes {scores.shape} and {truth.shape}"
        raise InputError(msg)
    require_finite("logits", scores)
    truth = truth.astype(np.int64)
    _in_range("labels", truth, scores.shape[1])
    return scores, truth


def _scored(
    score: npt.ArrayLike, is_signal: npt.ArrayLike, weights: npt.ArrayLike | None
) -> tuple[Floats, npt.NDArray[np.bool_], Floats]:
    """Checked scores, signal flags and weights, all (B,)."""
    scores, signal = np.asarray(score), np.asarray(is_signal, dtype=bool)
    weight = np.ones(scores.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if scores.ndim != 1 or scores.shape != signal.shape or scores.shape != weight.shape:
        msg = "wanted score, is_signal and weights of one length, "
        msg += f"got shapes {scores.shape}, {signal.shape} and {weight.shape}"
        raise InputError(msg)
    scores = scores if np.issubdtype(scores.dtype, np.floating) else scores.astype(np.float64)
    require_finite("score", scores)
    if not (np.isfinite(weight) & (weight >= 0)).all():
        msg = f"weights: wanted finite numbers >= 0, got {weight[~(np.isfinite(weight) & (weight >= 0))][0]}"
        raise InputError(msg)
    return scores, signal, weight


def require_finite(name: str, values: Floats) -> None:
    """Raise InputError if any of `values` (any shape) is NaN or infinite; says how many and where the first is."""
    bad = ~np.isfinite(values)
    if bad.any():
        first = np.argwhere(bad)[0].tolist()
        msg = f"{name}: {int(bad.sum())} of {values.size} values are NaN or infinite, the first at {first}"
        raise InputError(msg)


def _in_range(name: str, indices: Integers, num_classes: int) -> None:
    bad = (indices < 0) | (indices >= num_classes)
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        msg = f"{name}[{at}]: wanted a class index from 0 to {num_classes - 1}, got {int(indices[at])}"
        raise InputError(msg)
