"""Several taggers, each trained with several seeds, on the same test jets: figures with both of their errors.

M methods, S seeds, B test jets of signal and background. Decided here:

* A rejection is 1 / mean background efficiency over the seeds. Its error `seeds` is the standard deviation of one
  training, `test` what the number of test jets leaves open: a bootstrap of signal and background, thresholds included.
  Below `metrics.MIN_SURVIVORS` background jets it is a lower bound, that of the worst seed.
* All methods see the same bootstrap samples, so the error of a ratio of two rejections knows that they share jets.
* A tagger may live on jet mass and pT alone. So every rejection is repeated with the background weighted to the
  signal's distribution in both, and the shape that a cut gives to the background's mass is measured.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry.evaluate import metrics
from jetfoundry.evaluate.metrics import Floats

__all__ = ["GRID", "TestJets", "compare", "divergence", "mean_roc", "ratio"]

GRID: Floats = np.linspace(0.01, 1.0, 100)
"""Signal efficiencies at which curves are given."""

_PT_EDGES = np.array([200, 287, 412, 590, 847, 1215, 1743, 2500.0])  # every other of Sophon's reweighting [GeV]
_MASS_EDGES = np.arange(20.0, 501.0, 40.0)  # four of its bins in one [GeV]
_SHAPE_EDGES = np.arange(20.0, 501.0, 20.0)  # of the sculpting check [GeV]


@dataclasses.dataclass(frozen=True, eq=False)
class TestJets:
    """The jets that all methods are tested on, arrays (B,); jet_pt and jet_sdmass in GeV."""

    is_signal: npt.NDArray[np.bool_]
    jet_pt: Floats
    jet_sdmass: Floats

    __test__ = False  # no test, though its name says so to pytest

    def matched_weights(self) -> Floats:
        """Weights (B,) that give the background the signal's shape in (pT, mass); 0 where there is no signal."""
        pt = np.clip(np.searchsorted(_PT_EDGES, self.jet_pt, "right") - 1, 0, len(_PT_EDGES) - 2)
        mass = np.clip(np.searchsorted(_MASS_EDGES, self.jet_sdmass, "right") - 1, 0, len(_MASS_EDGES) - 2)
        bins = pt * (len(_MASS_EDGES) - 1) + mass
        signal, background = (np.bincount(bins[side], minlength=bins.max() + 1) for side in self.sides)
        ratio = np.divide(signal, background, out=np.zeros(len(signal)), where=background > 0)
        return np.where(self.is_signal, 1.0, ratio[bins])

    @property
    def sides(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        return self.is_signal, ~self.is_signal

    def bootstrap(self, replicas: int, seed: int) -> npt.NDArray[np.float64]:
        """How often each jet is in the sample itself (row 0) and in each bootstrap sample, (1 + replicas, B)."""
        rng = np.random.default_rng(seed)
        counts = np.ones((1 + replicas, len(self.is_signal)))
        for side in self.sides:
            number = int(side.sum())
            counts[1:, side] = rng.multinomial(number, np.full(number, 1 / number), size=replicas)
        return counts


def compare(
    scores: Mapping[str, Sequence[Floats]],
    jets: TestJets,
    efficiencies: Sequence[float],
    mass_edges: Sequence[float],
    *,
    replicas: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of the methods, by name: log-odds (B,) of each seed in, JSON-safe numbers out.

    `methods`: AUC; rejections, inclusive, with matched background and in ranges of mass (each with its own threshold);
    divergence of the background's mass. `ratios`: rejection of each method over that of the next one.
    """
    counts = jets.bootstrap(replicas, seed)
    weighted = counts * np.where(jets.is_signal, 1.0, jets.matched_weights())
    bins = list(itertools.pairwise(mass_edges))
    inside = [(jets.jet_sdmass >= low) & (jets.jet_sdmass < high) for low, high in bins]
    methods: dict[str, Any] = {}
    for name, values in scores.items():
        areas = np.array([metrics.auc(score, jets.is_signal) for score in values])
        methods[name] = {
            "seeds": len(values),
            "auc": {"value": float(areas.mean()), "seeds": _spread(areas), "test": _auc_error(values, jets, counts)},
            "rejections": [_rejection(values, jets.is_signal, eff, counts) for eff in efficiencies],
            "matched": [_rejection(values, jets.is_signal, eff, weighted) for eff in efficiencies],
            "mass_ranges": [
                {"sdmass_min": low, "sdmass_max": high, "signal_jets": int((part & jets.is_signal).sum()),
                 "background_jets": int((part & ~jets.is_signal).sum()),
                 "rejections": [_rejection([v[part] for v in values], jets.is_signal[part], eff, counts[:, part])
                                for eff in efficiencies]}
                for (low, high), part in zip(bins, inside, strict=True)
            ],
            "sculpting": [_sculpting(values, jets, eff) for eff in efficiencies],
        }  # fmt: skip
    pairs = list(itertools.pairwise(scores))
    ratios = [ratio(a, b, scores, jets.is_signal, eff, counts) for eff in efficiencies for a, b in pairs]
    return {"methods": methods, "ratios": ratios, "replicas": replicas}


def background_efficiencies(
    score: Floats, is_signal: npt.NDArray[np.bool_], efficiency: float, counts: npt.NDArray[np.float64]
) -> Floats:
    """Background efficiency (R,) at signal efficiency `efficiency` of R samples, in which jets count `counts` (R, B).

    Thresholds as in `metrics.rejection`: the (1 - efficiency) quantile of the signal, which must be exceeded.
    """
    up = np.flatnonzero(is_signal)[np.argsort(score[is_signal], kind="stable")]
    below = np.cumsum(counts[:, up], axis=1)
    threshold = score[up][(below < (1 - efficiency) * below[:, -1:] * (1 - 1e-12)).sum(axis=1)]
    up = np.flatnonzero(~is_signal)[np.argsort(score[~is_signal], kind="stable")]
    above = np.cumsum(counts[:, up[::-1]], axis=1)
    number = len(up) - np.searchsorted(score[up], threshold, side="right")
    passed = np.where(number > 0, above[np.arange(len(counts)), number - 1], 0.0)
    return np.asarray(passed / above[:, -1])


def _rejection(
    values: Sequence[Floats], is_signal: npt.NDArray[np.bool_], efficiency: float, counts: npt.NDArray[np.float64]
) -> dict[str, Any]:
    """`rejection`, its two errors and whether it is a bound; None for what does not exist."""
    row: dict[str, Any] = {
        "efficiency": efficiency,
        "rejection": None,
        "seeds": None,
        "test": None,
        "is_lower_bound": False,
    }
    usable = counts[0] > 0
    if not (is_signal & usable).any() or not (~is_signal & usable).any():
        return row | {"survivors": 0.0, "each_seed": []}
    points = [metrics.rejection(score, is_signal, efficiency, counts[0]) for score in values]
    survivors = float(np.mean([point.survivors for point in points]))
    row |= {"survivors": survivors, "each_seed": [point.rejection for point in points]}
    if survivors < metrics.MIN_SURVIVORS:
        return row | {"rejection": min(point.rejection for point in points), "is_lower_bound": True}
    found = np.stack([background_efficiencies(score, is_signal, efficiency, counts) for score in values])
    mean = found.mean(axis=0)
    errors = {"seeds": _spread(found[:, 0]), "test": float(np.std(mean[1:], ddof=1)) if len(mean) > 2 else None}
    scaled = {name: None if error is None else error / mean[0] ** 2 for name, error in errors.items()}
    return row | {"rejection": float(1 / mean[0]), **scaled}


def ratio(
    first: str,
    second: str,
    scores: Mapping[str, Sequence[Floats]],
    is_signal: npt.NDArray[np.bool_],
    efficiency: float,
    counts: npt.NDArray[np.float64],
) -> dict[str, Any]:
    """Rejection of one method over that of another, with the error of the mean over seeds and that of the test jets."""
    row = {"first": first, "second": second, "efficiency": efficiency, "ratio": None, "error": None}
    found = [
        np.stack([background_efficiencies(score, is_signal, efficiency, counts) for score in scores[name]])
        for name in (first, second)
    ]
    if min(side[:, 0].mean() for side in found) * float((~is_signal).sum()) < metrics.MIN_SURVIVORS:
        return row
    logs = np.log(np.maximum(found[1].mean(axis=0), 1e-9)) - np.log(np.maximum(found[0].mean(axis=0), 1e-9))
    variance = float(np.var(logs[1:], ddof=1))
    for side in found:
        of_one = _spread(side[:, 0])
        variance += 0.0 if of_one is None else (of_one / side[:, 0].mean()) ** 2 / len(side)
    value = math.exp(logs[0])
    return row | {"ratio": value, "error": value * math.sqrt(variance)}


def _spread(values: Floats) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _auc_error(values: Sequence[Floats], jets: TestJets, counts: npt.NDArray[np.float64]) -> float | None:
    """Standard deviation over the bootstrap samples of the mean over seeds; ties, which are rare, count fully."""
    if len(counts) < 3:
        return None
    areas = []
    for score in values:
        order = np.argsort(score, kind="stable")
        signal, sample = jets.is_signal[order], counts[1:, order]
        below = np.cumsum(np.where(signal, 0.0, sample), axis=1)
        areas.append(np.where(signal, sample * below, 0.0).sum(axis=1) / below[:, -1] / float(signal.sum()))
    return float(np.std(np.mean(areas, axis=0), ddof=1))


def _sculpting(values: Sequence[Floats], jets: TestJets, efficiency: float) -> dict[str, Any]:
    mass = jets.jet_sdmass[~jets.is_signal]
    found = []
    for score in values:
        threshold = metrics.rejection(score, jets.is_signal, efficiency).threshold
        passed = score[~jets.is_signal] > threshold
        if passed.sum() >= metrics.MIN_SURVIVORS:
            found.append(divergence(mass, mass[passed], _SHAPE_EDGES))
    return {"efficiency": efficiency, "divergence": float(np.mean(found)) if found else None, "seeds": len(found)}


def divergence(first: Floats, second: Floats, edges: Floats) -> float:
    """Jensen-Shannon divergence of two samples in bins, in bits: 0 for the same shape, 1 for no overlap.

    >>> divergence(np.array([1.0, 2.0]), np.array([1.0, 2.0]), np.array([0.0, 1.5, 3.0]))
    0.0
    """
    p, q = (np.histogram(sample, bins=edges)[0] / len(sample) for sample in (first, second))
    middle = (p + q) / 2
    terms = [np.where(side > 0, side * np.log2(np.where(side > 0, side / np.where(middle > 0, middle, 1), 1)), 0.0)
             for side in (p, q)]  # fmt: skip
    return float(sum(term.sum() for term in terms) / 2)


def mean_roc(values: Sequence[Floats], is_signal: npt.NDArray[np.bool_]) -> Floats:
    """Background efficiency of each seed at the signal efficiencies of `GRID`, (S, 100)."""
    curves = [metrics.roc_curve(score, is_signal) for score in values]
    return np.stack([np.interp(GRID, curve.signal_efficiency, curve.background_efficiency) for curve in curves])
