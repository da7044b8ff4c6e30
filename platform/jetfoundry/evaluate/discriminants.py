"""From class names to model outputs, and from logits to binary discriminants.

Names are resolved against the model's own class list, never as fixed positions: a name is an output of the model,
or a JetClass-II group or family (`labels.py`) all of whose classes are outputs. A group of which the model lacks a
class is an error, because a sum over the rest would be another discriminant under the same name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from jetfoundry.errors import ConfigError, InputError, nearest
from jetfoundry.evaluate.metrics import Floats, log_sum_exp, require_finite
from jetfoundry.labels import CLASSES, FAMILIES, GROUPS, INDEX, select_classes

__all__ = ["SIGNALS", "Discriminant", "combine", "discriminant", "group_outputs", "outputs", "parse", "resolve"]

SIGNALS: dict[str, dict[str, float]] = {
    "W bump": {"X_cs": 1.0},
    "top bump": {"X_YY_ccb+X_YY_ssb+X_YY_qqb+X_YY_bcs+X_YY_bcq+X_YY_bsq": 1.0},
    "triboson": {
        "X_cs+X_qq": 0.3,
        "X_YY_ccss+X_YY_qqcs+X_YY_qqqq": 0.1,
        "X_YY_ccs+X_YY_ccq+X_YY_ssc+X_YY_ssq+X_YY_qqc+X_YY_qqs+X_YY_qqq": 0.6,
    },
}
"""Signals that stand for several classes, with the weight of each (Sophon, BOOST 2024)."""


@dataclasses.dataclass(frozen=True)
class Discriminant:
    """D(A vs B) = g_A / (g_A + g_B), g_A = sum of w_i softmax_i over the outputs i of A; g_B without weights.

    `signal` and `background` are output indices of one model, `weights` belong to `signal`.
    """

    name: str
    signal: tuple[int, ...]
    background: tuple[int, ...]
    weights: tuple[float, ...]

    def log_odds(self, logits: npt.ArrayLike) -> Floats:
        """ln(g_A / g_B) (B,) from logits (B, C): the discriminant without saturation, the one to cut on."""
        scores = np.asarray(logits)
        if scores.ndim != 2 or scores.shape[1] <= max(*self.signal, *self.background):
            msg = f"discriminant {self.name!r}: wanted logits (B, C) of the model it was made for, got {scores.shape}"
            raise InputError(msg)
        signal, background = scores[:, list(self.signal)], scores[:, list(self.background)]
        require_finite(f"discriminant {self.name!r}: signal logits", signal)
        require_finite(f"discriminant {self.name!r}: background logits", background)
        return log_sum_exp(signal + np.log(self.weights)) - log_sum_exp(background)

    def __call__(self, logits: npt.ArrayLike) -> Floats:
        """D in [0, 1] (B,); rounds to exactly 1 beyond log-odds of 37, use `log_odds` for tight cuts."""
        return np.exp(-np.logaddexp(0.0, -self.log_odds(logits)))


def discriminant(
    logits: npt.ArrayLike,
    classes: Sequence[str],
    signal: str = "X_bb",
    background: str = "QCD",
    weights: Mapping[str, float] | None = None,
) -> Floats:
    """D(signal vs background) (B,) from logits (B, C) of a model with output names `classes`.

    `signal` and `background` are `+`-separated class, group or family names, or (signal) a key of `SIGNALS`;
    `weights` gives classes or groups of the signal a factor other than 1.
    """
    return resolve(signal, background, classes, weights)(logits)


def parse(text: str, classes: Sequence[str]) -> Discriminant:
    """The discriminant written as `A vs B`, e.g. `X_bb vs QCD` or `triboson vs QCD`, for this class list."""
    sides = text.split(" vs ")
    if len(sides) != 2:
        msg = f"discriminant {text!r}: wanted 'A vs B', e.g. 'X_bb vs QCD'"
        raise ConfigError(msg)
    return resolve(sides[0].strip(), sides[1].strip(), classes)


def resolve(
    signal: str, background: str, classes: Sequence[str], weights: Mapping[str, float] | None = None
) -> Discriminant:
    """Look all names up in `classes`; ConfigError for unknown names, overlapping sides or unusable weights."""
    name = f"{signal} vs {background}"
    terms = SIGNALS.get(signal) if signal not in classes else None
    found = combine(name, terms or {signal: 1.0}, (background,), classes)
    factors = dict(zip(found.signal, found.weights, strict=True))
    for names, weight in (weights or {}).items():
        weighted = outputs(names, classes)
        if not set(weighted) <= set(factors) or not 0 < weight < math.inf:
            msg = f"discriminant {name!r}: weight {names}: {weight}: wanted a number > 0 for a part of {signal}"
            raise ConfigError(msg)
        factors |= dict.fromkeys(weighted, weight)
    return dataclasses.replace(found, weights=tuple(factors.values()))


def combine(name: str, terms: Mapping[str, float], background: Sequence[str], classes: Sequence[str]) -> Discriminant:
    """The discriminant with g_A = sum of the `terms` (class, group or family names -> weight), looked up in `classes`.

    ConfigError, with the discriminant's name in it, for unknown names, a weight that is not > 0, a class in two terms
    or on both sides.
    """
    factors: dict[int, float] = {}
    try:
        for names, weight in terms.items():
            found = outputs(names, classes)
            if not 0 < weight < math.inf:
                msg = f"weight {weight} of {names}: wanted a number > 0"
                raise ConfigError(msg)
            if twice := [classes[i] for i in found if i in factors]:
                msg = f"{', '.join(twice)} stands in two terms of the signal"
                raise ConfigError(msg)
            factors |= dict.fromkeys(found, weight)
        against = tuple(i for names in background for i in outputs(names, classes))
        if twice := sorted({classes[i] for i in against if against.count(i) > 1}):
            msg = f"{', '.join(twice)} stands twice in the background"
            raise ConfigError(msg)
        if both := sorted(set(factors) & set(against)):
            msg = f"{', '.join(classes[i] for i in both)} stands on both sides"
            raise ConfigError(msg)
    except ConfigError as error:
        msg = f"discriminant {name!r}: {error}"
        raise ConfigError(msg) from error
    return Discriminant(name, tuple(factors), against, tuple(factors.values()))


def outputs(names: str, classes: Sequence[str]) -> tuple[int, ...]:
    """Positions in `classes` of `+`-separated class, group or family names.

    >>> outputs("X_bb+QCD", ["QCD", "X_cc", "X_bb"])
    (2, 0)
    """
    position = {name: i for i, name in enumerate(classes)}
    if names in position:  # merged outputs carry a '+' in their own name
        return (position[names],)
    found: list[int] = []
    for name in (part.strip() for part in names.split("+")):
        if name in position:
            found.append(position[name])
            continue
        members = [CLASSES[i] for i in GROUPS.get(name) or FAMILIES.get(name, ())]
        lacking = [member for member in members if member not in position] or ([] if members else [name])
        if lacking:
            which = f"all of group {name!r}" if members else f"output {name!r}"
            shown = f" (lacks {', '.join(lacking[:3])}{', …' if len(lacking) > 3 else ''})" if members else ""
            msg = f"the model has not {which}{shown}, it has {len(classes)} outputs; {nearest(name, _known(classes))}"
            raise ConfigError(msg)
        found.extend(position[member] for member in members)
    if len(set(found)) != len(found):
        msg = f"{names!r} names these classes twice: {', '.join(classes[i] for i in found if found.count(i) > 1)}"
        raise ConfigError(msg)
    return tuple(found)


def _known(classes: Sequence[str]) -> list[str]:
    """What a name may be: an output, or a group or family of which the model has all."""
    whole = [name for name, members in (GROUPS | FAMILIES).items() if {CLASSES[i] for i in members} <= set(classes)]
    return [*classes, *whole]


def group_outputs(
    classes: Sequence[str], groups: Mapping[str, tuple[int, ...]] = GROUPS
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Names (G,) of the groups that the outputs fall into, and the group index (C,) of every output.

    `groups` is `labels.GROUPS` (30) or `labels.FAMILIES` (3); groups without an output are left out. An output that
    merges classes of several groups, or is no JetClass-II class, stands for itself.
    """
    group_of = {index: name for name, indices in groups.items() for index in indices}
    home: list[str] = []
    for output in classes:
        parts = [part.strip() for part in output.split("+")]
        known = all(part in INDEX or part in GROUPS or part in FAMILIES for part in parts)
        homes = {group_of[i] for i in select_classes(output)} if known else set()
        home.append(homes.pop() if len(homes) == 1 else output)
    order = [*(name for name in groups if name in home), *dict.fromkeys(h for h in home if h not in groups)]
    return tuple(order), np.array([order.index(name) for name in home], dtype=np.int64)
