"""Discriminants by name, from a YAML file (datasets/discriminants/*.yaml): what becomes a column of scored jets.

    store: log_odds                # or minus_log_one_minus, or probability, which saturates: D = 1 for many jets
    event: [event_number]          # columns of the input that name an event, for sums over its jets
    discriminants:
      Xbb: {signal: {X_bb: 1}, background: [QCD]}
      triboson: {signal: {X_cs+X_qq: 0.3, X_YY_QQQ: 0.6}, background: [QCD]}
      triboson_event: {sum_of: triboson, jets: 2}

Signals and backgrounds are classes, groups and families by name, looked up in the class list of the network; never
numbers. D = g_A / (g_A + g_B), g_A = sum of weight times softmax over the classes of the signal, g_B without weights.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry import config
from jetfoundry.errors import ConfigError, nearest
from jetfoundry.evaluate.discriminants import Discriminant, combine
from jetfoundry.evaluate.event_sums import Stored, leading_sum, stored
from jetfoundry.evaluate.metrics import Floats

__all__ = ["DiscriminantFile", "DiscriminantRule", "NamedDiscriminants", "load_discriminants"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminantRule:
    """One column: a discriminant of a jet (`signal`, `background`), or a sum of one over jets (`sum_of`, `jets`)."""

    signal: dict[str, float] = config.option({}, "class, group or family names (joined by +) and the weight of each")
    background: tuple[str, ...] = config.option((), "class, group or family names")
    sum_of: str = config.option("", "the discriminant that is summed over the leading jets of an event")
    jets: int = config.option(2, "how many leading jets, by jet_pt; an event with fewer has no sum")

    def __post_init__(self) -> None:
        if bool(self.sum_of) == bool(self.signal) or bool(self.signal) != bool(self.background):
            msg = "give either signal and background, or sum_of"
            raise ValueError(msg)
        if self.jets < 1:
            msg = f"jets {self.jets} must be >= 1"
            raise ValueError(msg)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminantFile:
    """The YAML file; see the module docstring."""

    discriminants: dict[str, DiscriminantRule]
    store: Stored = config.option("log_odds", "what is written of D")
    event: tuple[str, ...] = config.option((), "columns of the input that together name an event")

    def __post_init__(self) -> None:
        jets = [name for name, rule in self.discriminants.items() if not rule.sum_of]
        for name, rule in self.discriminants.items():
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                msg = f"discriminants: {name!r} cannot be the name of a column: wanted letters, digits and _"
                raise ValueError(msg)
            if rule.sum_of and rule.sum_of not in jets:
                msg = f"{name}: sum_of {rule.sum_of!r} is no discriminant of a jet; {nearest(rule.sum_of, jets)}"
                raise ValueError(msg)
            if rule.sum_of and not self.event:
                msg = f"{name} sums over the jets of an event: event must name the columns that tell them apart"
                raise ValueError(msg)


@dataclasses.dataclass(frozen=True)
class NamedDiscriminants:
    """The discriminants of a file for one network: of a jet, and (name, jets) summed over leading jets, by column."""

    store: Stored = "log_odds"
    event: tuple[str, ...] = ()
    of_jet: Mapping[str, Discriminant] = dataclasses.field(default_factory=dict)
    of_event: Mapping[str, tuple[str, int]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        return (*self.of_jet, *self.of_event)

    def definitions(self, classes: Sequence[str]) -> dict[str, Any]:
        """What each column is, with all class names written out, to go beside the figures."""
        jets = {
            name: {
                "signal": {classes[i]: weight for i, weight in zip(found.signal, found.weights, strict=True)},
                "background": [classes[i] for i in found.background],
            }
            for name, found in self.of_jet.items()
        }
        sums = {name: {"sum_of": of, "jets": n, "event": self.event} for name, (of, n) in self.of_event.items()}
        return {"store": self.store, **jets, **sums}

    def log_odds(self, logits: npt.ArrayLike) -> dict[str, Floats]:
        """ln(D / (1 - D)) (B,) of each discriminant of a jet, from finite logits (B, C)."""
        return {name: found.log_odds(logits) for name, found in self.of_jet.items()}

    def columns(
        self, log_odds: Mapping[str, Floats], pt: npt.ArrayLike, first: npt.NDArray[np.bool_] | None
    ) -> dict[str, Floats]:
        """All columns (B,) as stored, NaN for NaN; `first` (B,) marks the first jet of each event, if that matters."""
        columns = {name: stored(values, self.store) for name, values in log_odds.items()}
        for name, (of, jets) in self.of_event.items():
            assert first is not None
            columns[name] = leading_sum(log_odds[of], pt, first, jets, self.store)
        return columns


def load_discriminants(path: str | Path, classes: Sequence[str]) -> NamedDiscriminants:
    """Read a YAML file for a network with these class names; '' is none.

    ConfigError names the file, the discriminant, and for an unknown name the nearest ones of the network.
    """
    if not str(path):
        return NamedDiscriminants()
    read = config.read(DiscriminantFile, path)
    try:
        of_jet = {
            name: combine(name, rule.signal, rule.background, classes)
            for name, rule in read.discriminants.items()
            if not rule.sum_of
        }
    except ConfigError as error:
        msg = f"{path}: {error}"
        raise ConfigError(msg) from error
    of_event = {name: (rule.sum_of, rule.jets) for name, rule in read.discriminants.items() if rule.sum_of}
    return NamedDiscriminants(read.store, read.event if of_event else (), of_jet, of_event)
