"""Figures of a regression: response and resolution, overall and in ranges of the target.

The response of a jet is predicted / target. Its median says how far the scale is off; half the width of its central
68.27 %, over the median, is the resolution. Both are of quantiles, since tails (a prong lost by grooming, an unmatched
jet) would dominate a mean and a standard deviation; for a Gaussian they are the same. Errors are those of quantiles of
B jets (asymptotic, density from the sample itself). Numbers that do not exist are None.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry.errors import InputError
from jetfoundry.evaluate.metrics import Floats, require_finite

__all__ = ["MIN_JETS", "regression_figures", "response_and_resolution"]

MIN_JETS = 10
"""With fewer jets a range has no response and no resolution."""

_PROBABILITIES = np.array([0.5 - 0.682689492137 / 2, 0.5, 0.5 + 0.682689492137 / 2])


def regression_figures(
    predicted: npt.ArrayLike, target: npt.ArrayLike, bins: Sequence[float] = (), weights: npt.ArrayLike | None = None
) -> dict[str, Any]:
    """Response and resolution of `predicted` (B,) against `target` (B,), both above 0, ready for `summary.json`.

    `bins` are edges of the target, lower edges included, in which the figures are repeated; `weights` (B,) >= 0.
    Raises InputError for shapes that differ, and for targets or predictions that are not above 0.
    """
    found, truth = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    weight = np.ones(len(truth)) if weights is None else np.asarray(weights, np.float64)
    if found.ndim != 1 or found.shape != truth.shape or weight.shape != truth.shape:
        msg = f"regression: wanted predicted, target and weights of one length, got {found.shape}, {truth.shape}, "
        raise InputError(msg + f"{weight.shape}")
    for name, values in (("predicted", found), ("target", truth), ("weights", weight)):
        require_finite(name, values)
        if (wrong := values < 0 if name == "weights" else values <= 0).any():
            msg = f"{name}[{int(np.flatnonzero(wrong)[0])}]: wanted more than 0, got {values[wrong][0]:g}"
            raise InputError(msg)
    response = found / truth
    in_bins: list[dict[str, Any]] = []
    number = np.searchsorted(bins, truth, side="right") - 1
    for place, (low, high) in enumerate(itertools.pairwise(bins)):
        inside = number == place
        figures = response_and_resolution(response[inside], weight[inside])
        in_bins.append({"low": low, "high": high, "jets": int(inside.sum()), **figures})
    return {"jets": len(truth), **response_and_resolution(response, weight), "bins": in_bins}


def response_and_resolution(response: Floats, weights: Floats | None = None) -> dict[str, float | None]:
    """Median and relative half-width of the central 68.27 % of responses (B,), with errors; None below `MIN_JETS`."""
    keys = ("response", "response_error", "resolution", "resolution_error")
    weight = np.ones(len(response)) if weights is None else weights
    jets = float(weight.sum() ** 2 / (weight**2).sum()) if weight.any() else 0.0  # effective number
    if jets < MIN_JETS:
        return dict.fromkeys(keys)
    order = np.argsort(response, kind="stable")
    ranks = (np.cumsum(weight[order]) - weight[order] / 2) / weight.sum()

    def quantile(probability: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.interp(probability, ranks, response[order])

    low, median, high = quantile(_PROBABILITIES)
    # d quantile / d probability, from what one standard deviation of the rank moves the quantile by
    step = np.sqrt(_PROBABILITIES * (1 - _PROBABILITIES) / jets)
    slope = (quantile(_PROBABILITIES + step) - quantile(_PROBABILITIES - step)) / (2 * step)
    smaller = np.minimum.outer(_PROBABILITIES, _PROBABILITIES)
    larger = np.maximum.outer(_PROBABILITIES, _PROBABILITIES)
    covariance = np.outer(slope, slope) * smaller * (1 - larger) / jets
    width = (high - low) / 2
    by = np.array([-0.5, -width / median, 0.5]) / median  # d resolution / d quantiles
    figures = (median, math.sqrt(covariance[1, 1]), width / median, math.sqrt(max(float(by @ covariance @ by), 0.0)))
    return dict(zip(keys, map(float, figures), strict=True))
