"""One figure per observable: real jets as points, their simulated copies as filled histograms, the ratio below."""

from __future__ import annotations

from typing import Any

import mplhep
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jetfoundry.evaluate.plots import COLOURS, finished, styled
from jetfoundry.labels import FAMILIES
from jetfoundry.sim.validation.comparison import Comparison, Sample
from jetfoundry.sim.validation.observables import Observable

__all__ = ["comparison_figure"]

Array = npt.NDArray[Any]

_BINS = 24
_RATIO = 2.0  # upper end of the lower panel


def comparison_figure(comparison: Comparison, real: Sample, simulated: Sample, real_name: str, sample: str) -> Figure:
    """Histograms of one observable, normalised to the number of real jets; the outer bins hold what lies beyond.

    `real_name` is the legend's name of the real jets, `sample` what the simulated ones are.
    """
    observable, test = comparison.observable, comparison.tests["all"]
    edges = _edges(observable)
    qcd = np.isin(simulated.label, FAMILIES["QCD"])
    present = np.isin(real.real, simulated.real)
    points, variance = _histogram(real, observable, edges, present)
    stack = [_histogram(simulated, observable, edges, mask) for mask in (qcd, ~qcd)]
    scale = points.sum() / max(sum(counts.sum() for counts, _ in stack), 1e-12)

    figure = Figure(figsize=(5.0, 4.6), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    names = ("QCD, simulated", "resonances, simulated")
    drawn = [k for k in (0, 1) if stack[k][0].any()]
    mplhep.histplot(
        [scale * stack[k][0] for k in drawn], edges, ax=axes, stack=True, histtype="fill", flow="none",
        color=[(COLOURS[3], COLOURS[0])[k] for k in drawn], label=[names[k] for k in drawn], alpha=0.75,
    )  # fmt: skip
    centres, error = 0.5 * (edges[1:] + edges[:-1]), np.sqrt(variance)
    filled = points > 0
    axes.errorbar(centres[filled], points[filled], error[filled], fmt="o", color="black", markersize=4, label=real_name)
    expected = scale * (stack[0][0] + stack[1][0])
    _ratio(below, centres, edges, points, error, expected, scale * np.sqrt(stack[0][1] + stack[1][1]))
    axes.set_ylim(0, 1.45 * max(float((points + error).max()), float(expected.max())))
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylabel("jets" if not observable.per_particle else "jets (shared by their particles)")
    axes.legend(frameon=False, fontsize=9)
    below.set_xlabel(observable.label)
    below.set_ylabel("real / sim.")
    styled(axes, sample)
    styled(below, "")
    below.set_ylabel("real / sim.", loc="center", fontsize=10)
    axes.set_title(_test_text(comparison), loc="right", fontsize=9, color="0.25", y=1.06)
    axes.set_title(f"{sample}; {test.real_jets} real, {test.simulated_jets:,} simulated", loc="left", fontsize=8)
    return finished(figure)


def _test_text(comparison: Comparison) -> str:
    test = comparison.tests["all"]
    ks = "" if test.p is None else f"KS p = {test.p:.3f}, "
    return f"{ks}matched p = {test.p_matched:.3f}"


def _edges(observable: Observable) -> Array:
    """Bin edges; for counts they lie between integers, a whole number of which makes a bin."""
    if not observable.whole:
        return np.linspace(observable.low, observable.high, _BINS + 1)
    step = max(1, round((observable.high - observable.low) / _BINS))
    return np.arange(np.ceil(observable.low) - 0.5, observable.high + step, step)


def _histogram(sample: Sample, observable: Observable, edges: Array, chosen: Array) -> tuple[Array, Array]:
    """Sum of weights and its variance per bin (n,); a jet's entries in one bin are one, with their shares added."""
    values = sample.values[observable.name]
    keep = chosen[values.jet]
    jet, bins = values.jet[keep], len(edges) - 1
    if not len(jet):
        return np.zeros(bins), np.zeros(bins)
    middle = 0.5 * (edges[1:] + edges[:-1])
    at = np.searchsorted(edges, np.clip(values.values[keep], middle[0], middle[-1]), side="right") - 1
    share = sample.weight[jet] / np.bincount(jet)[jet]
    cell, position = np.unique(jet * bins + at, return_inverse=True)
    weight = np.bincount(position, share)
    return np.bincount(cell % bins, weight, minlength=bins), np.bincount(cell % bins, weight**2, minlength=bins)


def _ratio(
    axes: Axes, centres: Array, edges: Array, points: Array, error: Array, expected: Array, uncertainty: Array
) -> None:
    """Real over simulated, with the statistical error of the simulated jets as a band around 1."""
    used = expected > 0
    safe = np.where(used, expected, 1.0)
    band = np.where(used, uncertainty / safe, 0.0)
    axes.stairs(1 + band, edges, baseline=1 - band, fill=True, color="0.8")
    axes.axhline(1.0, color="0.4", linewidth=1)
    shown = used & (points > 0)
    axes.errorbar(centres[shown], (points / safe)[shown], (error / safe)[shown], fmt="o", color="black", markersize=4)
    axes.set_ylim(0, _RATIO)
