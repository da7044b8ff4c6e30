"""How often a jet is used in one pass over the data: by its class, or by the `weights` section of the data YAML.

A data set is never balanced as it lies: QCD with two b and two c quarks is a thousand times rarer than light
QCD. Instead of loss weights (which leave the gradient of rare jets noisy) jets are accepted or repeated, as
weaver does.

    yaml      weaver's acceptance with up-sampling: a jet of weight w is tried n times and accepted with probability
              min(w / weight_scale, 1), so it is used n * min(w / weight_scale, 1) times on average. n is the whole
              number that makes a pass about as long as the data, at most `max_repeat` (weaver: max_resample).
    classes, groups, natural    m_c uses of each jet of class c, at most `max_repeat`

The draw is *systematic*: M points, evenly spaced with one random start, on the cumulative sum of the uses. Each jet
is then used the expected number of times rounded down or up (weaver's independent trials scatter more), and the number
of draws M is free to choose, so a window yields whole batches only and the position in the data stays a few integers
(`loader.py`). A draw depends on its random generator and the jets alone.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jetfoundry import config
from jetfoundry.errors import ConfigError
from jetfoundry.features.block import Block
from jetfoundry.features.padding import Features
from jetfoundry.features.transform import DataConfig
from jetfoundry.labels import CLASSES, GROUP_WEIGHTS, GROUPS, LabelScheme
from jetfoundry.loading.pieces import JetSet, check_scheme

__all__ = ["JetUses", "SamplingConfig", "balance_of", "class_multiplicity", "plan_uses", "systematic_draw"]


Balance: TypeAlias = Literal["auto", "natural", "classes", "groups", "yaml"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Which jets a training pass uses, and how often."""

    balance: Balance = config.option(
        "auto",
        "natural = as stored; classes = equal classes; groups = class weights of the Sophon card; yaml = weights of "
        "the data YAML; auto = yaml if it has some, else classes if the labels are JetClass-II's, else natural",
    )
    max_repeat: float = config.option(10.0, "a jet is used at most this often in one pass over the data")
    up_sample: bool = config.option(True, "yaml: repeat jets so that a pass is about as long as the data")
    weight_scale: float = config.option(1.0, "yaml: a jet of this weight or more is always accepted")
    empty_classes: Literal["error", "skip"] = config.option("error", "yaml: what a reweighting class without jets is")

    def __post_init__(self) -> None:
        if self.max_repeat < 1:
            msg = f"max_repeat must be >= 1, got {self.max_repeat}"
            raise ValueError(msg)
        if self.weight_scale <= 0:
            msg = f"weight_scale must be above 0, got {self.weight_scale}"
            raise ValueError(msg)


@dataclasses.dataclass(frozen=True, eq=False)
class JetUses:
    """Expected uses of a jet per pass: `of_class` (C,) by class number; else `trials` of its weight, or 1 for each jet
    where `trials` is 0. `per_pass` is the expected number of draws of one pass over the whole split."""

    per_pass: float
    of_class: npt.NDArray[np.float64] | None = None
    trials: int = 0
    weight_scale: float = 1.0

    def of(self, features: Features) -> npt.NDArray[np.float64]:
        """Expected uses of these jets, (B',); 0 for a jet without a class where classes decide."""
        if self.of_class is not None:
            return np.where(features.labels >= 0, self.of_class[features.labels], 0.0)
        if not self.trials:
            return np.ones(len(features))
        assert features.weights is not None
        return self.trials * np.clip(features.weights.astype(np.float64) / self.weight_scale, 0, 1)


def balance_of(sampling: SamplingConfig, data: DataConfig) -> Balance:
    """What `balance: auto` means for this data YAML."""
    if sampling.balance != "auto":
        return sampling.balance
    if data.weights is not None:
        return "yaml"
    return "natural" if data.labels.scheme is None else "classes"


def plan_uses(shards: JetSet, data: DataConfig, sampling: SamplingConfig) -> JetUses:
    """Expected uses of the jets of a split. For `yaml` the data YAML must be complete (`data_statistics.complete`).

    Raises ConfigError if the YAML has not what `balance` asks for.
    """
    balance = balance_of(sampling, data)
    check_scheme(shards, data.labels.scheme)
    if balance == "yaml":
        return _weighted(data, sampling)
    scheme = data.labels.scheme or (None if balance == "natural" else _own_classes(shards, data))
    if scheme is not None:
        if balance == "groups" and tuple(shards.classes) != CLASSES:
            msg = f"{shards.folder}: sampling.balance=groups: the groups are those of JetClass-II; take classes"
            raise ConfigError(msg)
        uses = class_multiplicity(shards.class_counts, scheme, dataclasses.replace(sampling, balance=balance))
        table, counts = np.asarray(scheme.table), np.asarray(shards.class_counts)
        return JetUses(float(np.dot(uses[table[table >= 0]], counts[table >= 0])), of_class=uses)
    if balance != "natural":
        msg = (
            f"{data.where}: sampling.balance={balance} needs a label scheme, or labels that are formulas of jet_label "
        )
        msg += "alone; use sampling.balance=natural"
        raise ConfigError(msg)
    return JetUses(float(shards.rows))


def _own_classes(shards: JetSet, data: DataConfig) -> LabelScheme | None:
    """Which output each stored class is, where labels of type simple are formulas of jet_label alone; else None."""
    if data.labels.kind != "simple" or data.label_columns != ("jet_label",):
        return None
    stored = pa.table({"jet_label": pa.array(range(len(shards.classes)), pa.int32())})
    member = np.stack([Block(data, stored).per_jet(formula) == 1 for formula in data.labels.formulas.values()])
    table = np.where(member.sum(axis=0) == 1, member.argmax(axis=0), -1)
    return LabelScheme("labels", data.classes, tuple(table.tolist()))


def _weighted(data: DataConfig, sampling: SamplingConfig) -> JetUses:
    section = data.weights
    if section is None:
        msg = f"{data.where}: sampling.balance=yaml, but it has no weights section; use natural, classes or groups"
        raise ConfigError(msg)
    if not section.known or not section.jets or section.mean <= 0:
        msg = f"{data.where}: weights: not measured yet, or no jet weighs anything (data_statistics.complete)"
        raise ConfigError(msg)
    accepted = min(section.mean / sampling.weight_scale, 1.0)
    trials = max(1, min(int(1 / accepted), int(sampling.max_repeat))) if sampling.up_sample else 1
    return JetUses(section.jets * accepted * trials, trials=trials, weight_scale=sampling.weight_scale)


def class_multiplicity(
    jet_counts: npt.ArrayLike, scheme: LabelScheme, sampling: SamplingConfig
) -> npt.NDArray[np.float64]:
    """Expected uses per pass of a jet of each output class, shape (number of classes,).

    `jet_counts` (C,) are the stored jets of each class that the scheme maps, from the manifest. A pass is as long as
    the data set has jets of the scheme, up to the effect of `max_repeat`; absent classes get 0.
    """
    stored = np.asarray(jet_counts, dtype=np.float64)
    table = np.asarray(scheme.table)
    counts = np.bincount(table[table >= 0], weights=stored[table >= 0], minlength=scheme.num_classes)
    present = counts > 0
    if sampling.balance == "natural":
        return present.astype(np.float64)
    share = np.ones(scheme.num_classes)
    if sampling.balance == "groups":
        share = _group_shares(stored, scheme)
    share = np.where(present, share, 0.0)
    wanted = share / max(share.sum(), 1e-300) * counts.sum()
    uses = np.divide(wanted, counts, out=np.zeros_like(wanted), where=present)
    return np.asarray(np.minimum(uses, sampling.max_repeat))


def _group_shares(stored: npt.NDArray[np.float64], scheme: LabelScheme) -> npt.NDArray[np.float64]:
    """Each group's weight, shared between its classes in proportion to their stored jets (as in the card)."""
    share = np.zeros(scheme.num_classes)
    for name, indices in GROUPS.items():
        kept = [i for i in indices if scheme.table[i] >= 0]
        inside = stored[kept].sum()
        for i in kept:
            share[scheme.table[i]] += GROUP_WEIGHTS[name] * stored[i] / inside if inside else 0.0
    return share


def systematic_draw(uses: npt.NDArray[np.float64], draws: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw `draws` of B jets with expected numbers proportional to `uses` (B,), in random order.

    >>> systematic_draw(np.array([1.0, 0.0, 2.0]), 3, np.random.default_rng(1)).tolist().count(2)
    2
    """
    order = rng.permutation(len(uses))  # else the even steps could beat with a pattern in the stored order
    cumulative = np.cumsum(uses[order])
    points = (np.arange(draws) + rng.random()) * (cumulative[-1] / draws)
    chosen = order[np.minimum(np.searchsorted(cumulative, points, side="right"), len(uses) - 1)]
    return np.asarray(rng.permutation(chosen), dtype=np.int64)
