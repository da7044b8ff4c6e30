"""Do simulated jets look like real ones? Kolmogorov-Smirnov tests of real jets against their simulated copies.

Every real jet counts 1, each of its K copies 1/K. Two p-values per observable:

- `p`: the two-sample KS test for weighted samples, with effective numbers (sum w)^2 / sum w^2. It holds for
  independent samples and one value per jet, so observables of particles have none.
- `p_matched`: how often samples made of one copy of each real jet lie as far from all copies as the real sample does.
  Real jets and copies share their truth, and the particles of a jet belong together; this test knows both. It is the
  stricter one: sharing the truth makes samples more alike than independent ones are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.stats import kstwo

from jetfoundry.errors import InputError
from jetfoundry.labels import FAMILIES
from jetfoundry.sim.validation.observables import OBSERVABLES, Observable, Values, observables

__all__ = ["GROUPS", "Comparison", "KsTest", "Sample", "compare", "copy_weights", "weighted_ks"]

Array = npt.NDArray[Any]

GROUPS = ("all", "resonance", "QCD")

_GRID = 400  # points of the cumulative distributions


@dataclasses.dataclass(frozen=True)
class KsTest:
    """Largest distance D of two cumulative distributions and its p-values; numbers of jets with a value.

    In the means, values beyond the observable's plotted range count as its ends: single outliers would rule them.
    """

    distance: float
    p: float | None
    p_matched: float
    real_jets: int
    simulated_jets: int
    real_mean: float
    simulated_mean: float


@dataclasses.dataclass(frozen=True)
class Sample:
    """All observables of B jets; `real` (B,), rising, is the real jet that each belongs to (itself, or the one that it
    is a copy of), `label` (B,) its class, `weight` (B,) what it counts.
    """

    values: Mapping[str, Values]
    real: Array
    label: Array
    weight: Array

    @classmethod
    def of(cls, table: pa.Table, real: Array) -> Sample:
        """The jets of a table with the 54 columns; the copies of one real jet share weight 1."""
        label = np.asarray(table["jet_label"].to_numpy())
        return cls(observables(table), real, label, copy_weights(real))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One observable: the tests by group of jets (`all` is always there), groups without any value left out."""

    observable: Observable
    tests: dict[str, KsTest]

    @property
    def p(self) -> float | None:
        """KS p-value of all jets together; None for an observable of particles."""
        return self.tests["all"].p


def weighted_ks(first: Array, second: Array, first_weight: Array, second_weight: Array) -> tuple[float, float]:
    """Two-sample KS test of weighted values: distance D and asymptotic p-value.

    Without weights it is `scipy.stats.ks_2samp(method="asymp")`; n and m are the effective numbers of entries.
    """
    points = np.concatenate([first, second])
    cumulative = []
    for values, weight in ((first, first_weight), (second, second_weight)):
        order = np.argsort(values)
        sums = np.concatenate([[0.0], np.cumsum(weight[order])])
        cumulative.append(sums[np.searchsorted(values[order], points, side="right")] / sums[-1])
    distance = float(np.abs(cumulative[0] - cumulative[1]).max())
    n, m = (weight.sum() ** 2 / (weight**2).sum() for weight in (first_weight, second_weight))
    return distance, float(np.clip(kstwo.sf(distance, np.round(n * m / (n + m))), 0.0, 1.0))


def copy_weights(real: Array) -> Array:
    """1/K for each of the K copies of a real jet: `real` (B,) names it."""
    weights: Array = 1.0 / np.bincount(real)[real]
    return weights


def compare(real: Sample, simulated: Sample, experiments: int, seed: int) -> list[Comparison]:
    """All observables that both samples have, in all groups; real jets without copies take no part.

    Raises InputError if no real jet has a copy.
    """
    found = np.isin(real.real, simulated.real)
    if not found.any():
        msg = "comparison with real jets: none of them has a simulated copy"
        raise InputError(msg)
    rng = np.random.default_rng(seed)
    comparisons = []
    for observable in OBSERVABLES:
        tests = {}
        for group in GROUPS:
            chosen = _group(real.label, group) & found, _group(simulated.label, group)
            both = (real, chosen[0]), (simulated, chosen[1])
            entries = [_entries(sample.values[observable.name], mask) for sample, mask in both]
            if all(len(e.jet) for e in entries):
                tests[group] = _test(observable, (real, simulated), entries, experiments, rng)
        if tests:
            comparisons.append(Comparison(observable, tests))
    return comparisons


def _group(label: Array, group: str) -> Array:
    qcd = np.isin(label, FAMILIES["QCD"])
    return {"all": np.ones(len(label), bool), "resonance": ~qcd, "QCD": qcd}[group]


def _test(
    observable: Observable,
    samples: tuple[Sample, Sample],
    entries: list[Values],
    experiments: int,
    rng: np.random.Generator,
) -> KsTest:
    weights = [_entry_weights(e, sample.weight) for e, sample in zip(entries, samples, strict=True)]
    clipped = [np.clip(e.values, observable.low, observable.high) for e in entries]
    means = [float(np.average(v, weights=w)) for v, w in zip(clipped, weights, strict=True)]
    distance, p = weighted_ks(entries[0].values, entries[1].values, *weights)
    jets = [np.unique(e.jet) for e in entries]
    matched = _matched_p(entries, jets, samples, experiments, rng)
    return KsTest(distance, None if observable.per_particle else p, matched, len(jets[0]), len(jets[1]), *means)


def _entries(values: Values, chosen: Array) -> Values:
    keep = chosen[values.jet]
    return Values(values.values[keep], values.jet[keep])


def _entry_weights(entries: Values, weight: Array) -> Array:
    """A jet's weight, evenly shared by its entries."""
    shared: Array = weight[entries.jet] / np.bincount(entries.jet)[entries.jet]
    return shared


def _matched_p(
    entries: list[Values], jets: list[Array], samples: tuple[Sample, Sample], experiments: int, rng: np.random.Generator
) -> float:
    """p-value of D from pseudo-experiments: one copy of each real jet, set against the mean of its other copies."""
    grid = np.unique(np.quantile(np.concatenate([e.values for e in entries]), np.linspace(0, 1, _GRID)))
    real, simulated = (_cumulative(e, j, grid) for e, j in zip(entries, jets, strict=True))
    owner = samples[1].real[jets[1]]  # rising
    has_copies = np.isin(samples[0].real[jets[0]], owner)
    has_real = np.isin(owner, samples[0].real[jets[0]])
    simulated, owner = simulated[has_real], owner[has_real]
    if not len(owner):
        return 1.0
    _, start, count = np.unique(owner, return_index=True, return_counts=True)
    mean = np.add.reduceat(simulated, start, axis=0) / count[:, None]
    # a copy minus the mean of the others is K / (K - 1) times the copy minus the mean of all K
    factor = np.where(count > 1, count / np.maximum(count - 1, 1), 0.0)
    apart = (simulated - np.repeat(mean, count, axis=0)) * np.repeat(factor, count)[:, None]
    observed = np.abs((real[has_copies] - mean).mean(axis=0)).max()
    as_far = 0
    for _ in range(experiments):
        picked = start + (rng.uniform(size=len(start)) * count).astype(np.int64)
        as_far += int(np.abs(apart[picked].mean(axis=0)).max() >= observed)
    return (1 + as_far) / (1 + experiments)


def _cumulative(entries: Values, jets: Array, grid: Array) -> Array:
    """Cumulative distribution of the entries of each of J jets at G rising points: (J, G)."""
    row = np.searchsorted(jets, entries.jet)
    share = 1.0 / np.bincount(row)[row]
    at = np.minimum(np.searchsorted(grid, entries.values), len(grid) - 1)
    cells = np.bincount(row * len(grid) + at, share, minlength=len(jets) * len(grid))
    return np.cumsum(cells.reshape(len(jets), len(grid)), axis=1)
