"""Baselines on substructure: what some twenty numbers of a jet tell that no network has read particle by particle.

A data YAML with one input of jet quantities (`length: null`) says which numbers, a label scheme of two classes what is
signal; jets, selection and sampling are those of the networks. Uses of a jet become weights of the fit. Both
methods stop early, on a part of the training jets that the seed chooses.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from jetfoundry.errors import ConfigError, InputError, nearest
from jetfoundry.features.block import Jets
from jetfoundry.features.transform import DataConfig
from jetfoundry.loading.pieces import JetSet, read_flat
from jetfoundry.loading.sampling import SamplingConfig, plan_uses

__all__ = ["BASELINES", "JetNumbers", "boosted", "boosted_target", "fit_and_score", "numbers_of", "training_numbers"]

_AT_ONCE = 20  # pieces that are in memory together
_FEW, _FEW_OF_A_CLASS = 200, 10  # training jets
_LARGEST = 1e-12  # probabilities nearer to 0 or 1 than this count as so near


class JetNumbers(NamedTuple):
    """Quantities (B, F) float64 of jets, whether each is signal (B,), and how often training uses it (B,)."""

    x: npt.NDArray[np.float64]
    is_signal: npt.NDArray[np.bool_]
    uses: npt.NDArray[np.float64]


def training_numbers(data: DataConfig, jets: JetSet, sampling: SamplingConfig) -> JetNumbers:
    """The selected jets of both classes of a split. ConfigError if the YAML is not one for baselines."""
    name = _input_name(data)
    if data.num_classes != 2:
        msg = f"{data.where}: baselines are signal against background, two classes; got {data.num_classes}"
        raise ConfigError(msg)
    uses = plan_uses(jets, data, sampling)
    parts = []
    for pieces in _parts(jets):
        features = data.apply(read_flat(pieces, data.columns), training=True)
        x = features.pad(name, np.arange(len(features))).astype(np.float64)
        parts.append(JetNumbers(x, features.labels == 0, uses.of(features)))
    return JetNumbers(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _parts(jets: JetSet) -> Iterator[tuple[Any, ...]]:
    pieces = iter(jets.row_groups)
    return iter(lambda: tuple(itertools.islice(pieces, _AT_ONCE)), ())


def numbers_of(data: DataConfig, table: Jets) -> npt.NDArray[np.float64]:
    """Quantities (B, F) of all jets of a table; InputError if the YAML's selection refuses one."""
    features = data.apply(table, training=False, labels=False)
    if len(features) != table.num_rows:
        msg = f"{data.where}: its selection keeps {len(features)} of {table.num_rows} jets that the networks have "
        raise InputError(msg + "scored; take the same selection for both")
    return features.pad(_input_name(data), np.arange(len(features))).astype(np.float64)


def _input_name(data: DataConfig) -> str:
    (name, *more), of_jets = data.inputs, [group.length is None for group in data.inputs.values()]
    if more or not all(of_jets):
        msg = f"{data.where}: baselines take one input, of jet quantities (length: null); got "
        raise ConfigError(msg + ", ".join(data.inputs))
    return name


def fit_and_score(method: str, train: JetNumbers, x: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
    """Fit a method of `BASELINES` and return the log-odds (E,), signal against background, of jets `x` (E, F)."""
    if method not in BASELINES:
        msg = f"baselines: no method {method!r}; {nearest(method, BASELINES)}"
        raise ConfigError(msg)
    if train.is_signal.all() or not train.is_signal.any():
        msg = f"baselines: all {len(train.is_signal)} training jets are of one class"
        raise InputError(msg)
    mean, spread = train.x.mean(axis=0), train.x.std(axis=0)
    spread[spread == 0] = 1.0
    model = BASELINES[method](seed)
    used = train.uses > 0
    weights = train.uses[used] / train.uses[used].mean()
    model.fit((train.x[used] - mean) / spread, train.is_signal[used], sample_weight=weights)
    probability = model.predict_proba((x - mean) / spread)[:, 1].clip(_LARGEST, 1 - _LARGEST)
    return np.asarray(np.log(probability) - np.log1p(-probability))


def boosted(
    x: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    weights: npt.NDArray[Any],
    evaluate: Any,
    seed: int,
) -> tuple[npt.NDArray[np.float32], int]:
    """Gradient boosting for any number of classes C: fit on quantities (B, F), ln p (E, C') of `evaluate` (E, F).

    C' counts the classes from 0 to the largest label; those without jets have the smallest probability there is.
    Few jets (under 200, or 10 of a class) are not cut into a part that ends the training early.
    """
    model = _boosting(seed)
    if len(labels) < _FEW or np.unique(labels, return_counts=True)[1].min() < _FEW_OF_A_CLASS:
        model.set_params(early_stopping=False, max_iter=100)
    model.fit(x, labels, sample_weight=weights)
    scores = np.full((len(evaluate), int(labels.max()) + 1), _LARGEST)
    scores[:, model.classes_] = model.predict_proba(evaluate).clip(_LARGEST, 1.0)
    return np.log(scores).astype(np.float32), int(model.n_iter_)


def boosted_target(
    x: npt.NDArray[np.float64], target: npt.NDArray[Any], weights: npt.NDArray[Any], evaluate: Any, seed: int
) -> tuple[npt.NDArray[np.float32], int]:
    """The same for a target (B,) instead of classes: predictions (E, 1) of its median, and the number of rounds."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    model = HistGradientBoostingRegressor(
        loss="absolute_error", learning_rate=0.05, max_iter=1000 if len(target) >= _FEW else 100,
        early_stopping=len(target) >= _FEW, n_iter_no_change=30, random_state=seed,
    )  # fmt: skip
    model.fit(x, target, sample_weight=weights)
    return model.predict(evaluate).astype(np.float32)[:, None], int(model.n_iter_)


def _boosting(seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        learning_rate=0.05, max_iter=1000, l2_regularization=1.0, early_stopping=True, n_iter_no_change=30,
        random_state=seed,
    )  # fmt: skip


def _mlp(seed: int) -> Any:
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier(
        (128, 128), alpha=1e-3, max_iter=500, early_stopping=True, n_iter_no_change=15,
        random_state=seed,
    )  # fmt: skip


BASELINES: dict[str, Callable[[int], Any]] = {"gradient boosting": _boosting, "MLP": _mlp}
"""Methods by name: an unfitted classifier of scikit-learn for a seed."""
