"""What a jet counts as in a task: a class by a label scheme, by a formula or by one condition per class, or a target.

    label: {scheme: "binary:X_bb vs QCD"}                       # classes of JetClass-II, merged
    label: {formula: np.floor(deltaR_bb / 0.1)}                 # the class number, 0, 1, ...
    label: {rules: {W+: charge > 0, W-: charge < 0, QCD: QCD}}  # one condition per class
    label: {target: m_X, relative_to: jet_sdmass}               # regression of ln(target / relative_to)

No jet is lost in silence: jets that nothing labels and jets that two conditions claim are an error unless the file says
that they are left out or belong to the class `other`. A scheme says itself which classes it drops.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from jetfoundry import config
from jetfoundry.errors import InputError
from jetfoundry.labels import CLASSES, LabelScheme, label_scheme

__all__ = ["Assigned", "Fate", "LabelRule", "by_formula", "by_rules", "by_scheme", "settled"]

Fate = Literal["", "error", "leave out", "other"]
Classes = npt.NDArray[np.int64]

NO_CLASS, SEVERAL = -1, -2


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelRule:
    """Where a jet's class or target comes from: one of `scheme`, `formula`, `rules` and `target`."""

    scheme: str = config.option("", "label scheme of the 188 classes")
    formula: str = config.option("", "class number as a formula of stored columns; NaN and negative = no class")
    rules: dict[str, str] = config.option({}, "class name -> condition")
    target: str = config.option("", "regression: the quantity to be found, above 0")
    relative_to: str = config.option("", "regression: what it is measured in, above 0; '' = its own unit")
    unlabelled: Fate = config.option(
        "", "jets without a class or target: error, leave out, or other; '' = leave out with a scheme, else error"
    )
    overlapping: Fate = config.option("", "jets that several rules claim: error, leave out, or other; '' = error")
    other: str = config.option("", "class of the jets that go to `other`")

    def __post_init__(self) -> None:
        given = [name for name in ("scheme", "formula", "rules", "target") if getattr(self, name)]
        if len(given) != 1:
            msg = f"give one of scheme, formula, rules and target, got {' and '.join(given) or 'none'}"
            raise ValueError(msg)
        to_other = "other" in (self.unlabelled, self.overlapping)
        if to_other != bool(self.other) or (self.other and self.target):
            msg = "`other` names a class if, and only if, unlabelled or overlapping jets go there: other: <class>"
            raise ValueError(msg)
        if self.relative_to and not self.target:
            msg = "relative_to belongs to a target"
            raise ValueError(msg)
        if self.overlapping and not self.rules:
            msg = f"overlapping: {self.overlapping}: only rules can overlap"
            raise ValueError(msg)

    @functools.cached_property
    def label_scheme(self) -> LabelScheme | None:
        return label_scheme(self.scheme) if self.scheme else None

    @property
    def formulas(self) -> tuple[str, ...]:
        """All formulas that the rule evaluates."""
        return tuple(text for text in (self.formula, *self.rules.values(), self.target, self.relative_to) if text)

    @property
    def fate_of_unlabelled(self) -> Fate:
        return self.unlabelled or ("leave out" if self.scheme else "error")


@dataclasses.dataclass(frozen=True)
class Assigned:
    """Class numbers (B,), -1 for jets that do not take part, and how many of the selected jets had none or several."""

    classes: Classes
    unlabelled: int
    overlapping: int


def by_scheme(scheme: LabelScheme, jet_label: npt.NDArray[Any]) -> Classes:
    """Class numbers (B,) by `jet_label` (B,); classes beyond the 188 are in no scheme."""
    known = jet_label < len(CLASSES)
    return np.where(known, scheme.apply(np.where(known, jet_label, 0)), NO_CLASS)


def by_formula(values: npt.NDArray[Any], selected: npt.NDArray[np.bool_], classes: tuple[str, ...]) -> Classes:
    """Class numbers (B,) from the formula's values (B,); InputError for what is no number of a class."""
    raw = values.astype(np.float64)
    there = np.isfinite(raw) & (raw >= 0)
    number = np.where(there, raw, NO_CLASS)
    wrong = selected & there & ((number >= len(classes)) | (number % 1 != 0))
    if wrong.any():
        msg = f"the label formula gives class {number[wrong].max():g}, but {len(classes)} classes are named; wanted "
        raise InputError(msg + f"whole numbers from 0 to {len(classes) - 1}")
    return np.where(selected, number, NO_CLASS).astype(np.int64)


def by_rules(conditions: npt.NDArray[np.bool_]) -> Classes:
    """Class numbers (B,) from one condition per class (C, B): -1 where none is true, -2 where several are."""
    number = conditions.sum(axis=0)
    return np.where(number == 1, conditions.argmax(axis=0), np.where(number == 0, NO_CLASS, SEVERAL))


def settled(
    found: Classes,
    selected: npt.NDArray[np.bool_],
    rule: LabelRule,
    classes: tuple[str, ...],
    conditions: Mapping[str, npt.NDArray[np.bool_]],
) -> Assigned:
    """Send selected jets without a class (-1) or with several (-2) where the rule says; `conditions` are its rules'.

    Raises InputError with their number and the first of them where they are not allowed.
    """
    number = np.where(selected, found, NO_CLASS)
    counts = []
    fates = ((NO_CLASS, rule.fate_of_unlabelled, "unlabelled"), (SEVERAL, rule.overlapping or "error", "overlapping"))
    for code, fate, key in fates:
        jets = np.flatnonzero(selected & (found == code))
        counts.append(len(jets))
        if fate == "error" and len(jets):
            claimed = [name for name, condition in conditions.items() if condition[jets[0]]]
            which = (
                f"are in several classes, the first (row {jets[0]}) in {' and '.join(claimed)}"
                if claimed
                else (f"have no {'target above 0' if rule.target else 'class'}, the first in row {jets[0]}")
            )
            msg = f"{len(jets)} of {int(selected.sum())} selected jets {which}; change the label or say "
            raise InputError(msg + f"`{key}: leave out`, or `{key}: other` with `other: <class>`")
        number[jets] = classes.index(rule.other) if fate == "other" else NO_CLASS
    return Assigned(number, *counts)
