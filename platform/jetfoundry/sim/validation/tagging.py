"""How well 27 jet-level features tell X -> bb from QCD, with and without what displaced tracks say.

The classes are re-weighted to the same (pT, soft-drop mass) histogram, so that neither spectrum helps. Scores are
out of fold (5 folds), so no jet is scored by trees that have seen it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits

from jetfoundry.errors import InputError
from jetfoundry.sim.validation.observables import particle_columns

__all__ = ["DISPLACEMENT", "FEATURES", "Auc", "auc", "features", "kinematic_weights"]

Array = npt.NDArray[Any]

_KINDS = ("ChargedHadron", "Photon", "NeutralHadron", "Electron", "Muon")

FEATURES = (
    "nparticles", *(f"n{kind}" for kind in _KINDS), *(f"fraction{kind}" for kind in _KINDS[:3]),
    "sdmass_over_pt", "tau21", "tau32", "tau43", "z1", "z2", "z3", "mean_dr", "width", "ptd",
)  # fmt: skip
"""Counts and pT fractions by kind, substructure, pT fractions of the leading constituents, radial moments."""

DISPLACEMENT = (
    "tracks_above_2", "tracks_above_4", "tracks_above_10", "fraction_above_4",
    "significance1", "significance2", "significance3", "d0_of_second",
)  # fmt: skip
"""Of |d0|/d0err of the charged constituents: counts, pT fraction, the largest three, second largest |d0| [mm]."""

_PT_EDGES = np.geomspace(200.0, 2500.0, 13)
_MASS_EDGES = np.concatenate([np.arange(20.0, 200.0, 15.0), np.arange(200.0, 501.0, 50.0)])
_FOLDS = 5


@dataclasses.dataclass(frozen=True)
class Auc:
    """Area under the ROC curve and its statistical error."""

    value: float
    error: float


def features(table: pa.Table) -> tuple[Array, Array]:
    """FEATURES (B, 19) and DISPLACEMENT (B, 8) of B jets with the 54 columns."""
    values, offsets = particle_columns(table, "part")
    counts = np.diff(offsets)
    owner, jets = np.repeat(np.arange(len(counts)), counts), len(counts)
    pt = np.hypot(values["px"], values["py"]).astype(np.float64)
    total = np.bincount(owner, pt, minlength=jets)

    def summed(weight: Array) -> Array:
        return np.bincount(owner, weight, minlength=jets)

    dr = np.hypot(values["deta"], values["dphi"])
    kind = {name: values[f"is{name}"].astype(np.float64) for name in _KINDS}
    jet = {name: np.asarray(table[f"jet_{name}"].to_numpy(), np.float64) for name in ("pt", "sdmass")}
    tau = [np.asarray(table[f"jet_tau{n}"].to_numpy(), np.float64) for n in range(1, 5)]
    mean_dr = summed(pt * dr) / total
    plain = [
        counts, *(summed(kind[name]) for name in _KINDS), *(summed(pt * kind[name]) / total for name in _KINDS[:3]),
        jet["sdmass"] / jet["pt"], *(_ratio(tau[n], tau[n - 1]) for n in (1, 2, 3)),
        *(_ranked(pt, owner, offsets, rank) / total for rank in range(3)),
        mean_dr, np.sqrt(np.maximum(summed(pt * dr**2) / total - mean_dr**2, 0.0)), np.sqrt(summed(pt**2)) / total,
    ]  # fmt: skip
    track = values["charge"] != 0
    d0 = np.abs(np.where(track, values["d0val"], 0.0)).astype(np.float64)
    significance = d0 / np.where(track, values["d0err"], 1.0)
    displaced = [
        *(summed((significance > cut).astype(np.float64)) for cut in (2, 4, 10)),
        summed(pt * (significance > 4)) / total,
        *(_ranked(significance, owner, offsets, rank) for rank in range(3)),
        _ranked(d0, owner, offsets, 1),
    ]
    return np.stack(plain, axis=1), np.stack(displaced, axis=1)


def _ratio(above: Array, below: Array) -> Array:
    ratio: Array = above / np.where(below > 0, below, np.inf)
    return ratio


def _ranked(values: Array, owner: Array, offsets: Array, rank: int) -> Array:
    """The largest (rank 0), second largest (1), ... value of each jet (B,); 0 where there are not so many."""
    order = np.lexsort((-values, owner))
    position = np.minimum(offsets[:-1] + rank, len(values) - 1)
    return np.where(np.diff(offsets) > rank, values[order[position]], 0.0)


def kinematic_weights(table: pa.Table, is_signal: Array) -> Array:
    """Weights (B,) in [0, 1] that give both classes the same (pT, soft-drop mass) histogram: in every bin the richer
    class comes down to the poorer one; a bin without jets of both classes has weight 0.
    """
    pt, mass = (table[name].to_numpy() for name in ("jet_pt", "jet_sdmass"))
    shape = len(_PT_EDGES) - 1, len(_MASS_EDGES) - 1
    at = [np.digitize(x, edges[1:-1]) for x, edges in ((pt, _PT_EDGES), (mass, _MASS_EDGES))]
    cell = np.ravel_multi_index((at[0], at[1]), shape)
    count = np.stack([np.bincount(cell[is_signal == side], minlength=math.prod(shape)) for side in (False, True)])
    weights: Array = count.min(axis=0)[cell] / count[is_signal.astype(int), cell]
    return weights


def auc(inputs: Array, is_signal: Array, weights: Array, seed: int) -> Auc:
    """AUC of gradient-boosted trees on `inputs` (B, F), with the error of Hanley and McNeil (Radiology 143, 29) for
    effective numbers of jets. Raises InputError if the weights leave a class without jets.
    """
    used = weights > 0
    inputs, truth, weights = inputs[used], is_signal[used].astype(int), weights[used]
    if min(truth.sum(), len(truth) - truth.sum()) < _FOLDS:
        msg = f"AUC: wanted at least {_FOLDS} jets of each class with the same pT and mass, got "
        msg += f"{truth.sum()} of signal and {len(truth) - truth.sum()} of background; make more jets"
        raise InputError(msg)
    score = np.zeros(len(truth))
    for train, test in StratifiedKFold(_FOLDS, shuffle=True, random_state=seed).split(inputs, truth):
        trees = HistGradientBoostingClassifier(
            max_iter=80, learning_rate=0.1, max_leaf_nodes=15, early_stopping=False, random_state=seed
        )
        with threadpool_limits(1):  # a few thousand jets: threads would only wait for each other
            trees.fit(inputs[train], truth[train], sample_weight=weights[train])
            score[test] = trees.predict_proba(inputs[test])[:, 1]
    value = float(roc_auc_score(truth, score, sample_weight=weights))
    signal, background = (weights[truth == side].sum() ** 2 / (weights[truth == side] ** 2).sum() for side in (1, 0))
    both = value / (2 - value) - value**2, 2 * value**2 / (1 + value) - value**2
    variance = value * (1 - value) + (signal - 1) * both[0] + (background - 1) * both[1]
    return Auc(value, math.sqrt(max(variance, 0.0) / (signal * background)))
