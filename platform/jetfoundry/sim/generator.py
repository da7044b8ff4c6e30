"""One Pythia 8 for one shard, and its events as flat arrays.

A shard gets a fresh Pythia (0.5 s of some 10 s): reseeding a used one is not exact, because phase-space maxima and
MPI state carry over, and then a file would depend on what the actor had made before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

import awkward as ak
import numpy as np
import numpy.typing as npt
import pythia8mc

from jetfoundry.errors import ConfigError, JetFoundryError
from jetfoundry.events.record import Events

__all__ = ["Generator", "HardProcess"]

Array = npt.NDArray[Any]


class HardProcess(Protocol):
    """What makes Les Houches events, e.g. a PairSource."""

    @property
    def beam_energy(self) -> float:
        """Energy of each proton beam [GeV]."""

    def __next__(self) -> tuple[float, list[tuple[Any, ...]]]:
        """Scale [GeV] and the rows of one event, arguments of `addParticle` from `id` to `m`."""


class _LesHouches(pythia8mc.LHAup):
    """Hands the events of a HardProcess to Pythia."""

    def __init__(self, source: HardProcess) -> None:
        super().__init__()
        self._source = source

    def setInit(self) -> bool:
        self.setBeamA(2212, self._source.beam_energy)
        self.setBeamB(2212, self._source.beam_energy)
        self.setStrategy(3)  # unweighted
        self.addProcess(9999, 1.0, 0.0, 1.0)
        return True

    def setEvent(self, idProcess: int = 0) -> bool:
        scale, rows = next(self._source)
        self.setProcess(9999, 1.0, scale, 0.0078, 0.118)  # couplings are recorded only, showers have their own
        for row in rows:
            self.addParticle(*row, 0.0, 9.0)  # no lifetime, unknown spin
        return True


class Generator:
    """A Pythia with checked settings, reading `source` if there is one."""

    def __init__(self, settings: Sequence[str], seed: int, source: HardProcess | None = None) -> None:
        self._pythia = pythia8mc.Pythia("", False)
        frame = ["Beams:frameType = 5"] if source else []
        for line in ("Print:quiet = on", *settings, *frame, "Random:setSeed = on", f"Random:seed = {seed}"):
            _apply(self._pythia, line)
        # Pythia keeps only a C++ pointer: the Python object must live as long as it does.
        self._source = _LesHouches(source) if source else None
        if self._source:
            self._pythia.setLHAupPtr(self._source)
        if not self._pythia.init():
            msg = f"Pythia did not start with these settings: {'; '.join(settings)}"
            raise ConfigError(msg)

    def batch(self, events: int) -> Events:
        """The next `events` events; the few that Pythia gives up on are left out."""
        record = self._pythia.nextBatch(events, errorMode="skip")
        if len(record) == 0:
            msg = f"Pythia failed on {events} events in a row"
            raise JetFoundryError(msg)
        return _flatten(record.prt)


_FLAG = r"(?i:on|yes|ok|true|1|off|no|false|0)"
_INTEGER = r"[+-]?\d+"
_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
# What a value must look like, by the word behind a particle's number: `25:m0`, `25:onMode`, ...
_PARTICLE_DATA = {
    "a number": (_NUMBER, ("m0", "mWidth", "mMin", "mMax", "tau0")),
    "an integer": (_INTEGER, ("spinType", "chargeType", "colType")),
    "on or off": (_FLAG, ("isResonance", "mayDecay", "doExternalDecay", "isVisible", "doForceWidth")),
    "on, off or 0 to 3": (rf"{_FLAG}|[23]", ("onMode",)),
    "numbers": (rf"{_NUMBER}( +{_NUMBER})*", ("oneChannel", "addChannel", "onIfAny", "onIfAll", "onIfMatch")),
}


def _apply(pythia: Any, line: str) -> None:
    """Set one 'Key = value'. Pythia takes junk in silence ('MPI = maybe' is off, 'pTHatMin = 20abc' is 20), so values
    are checked here.
    """
    key, equals, text = (part.strip() for part in line.partition("="))
    if not equals or not pythia.readString(line, False):
        msg = f"Pythia setting {line!r}: unknown key or value out of range"
        raise ConfigError(msg)
    wanted, pattern = _expected(pythia.settings, key)
    if not re.fullmatch(pattern, text):
        msg = f"Pythia setting {line!r}: wanted {wanted}, got {text!r}"
        raise ConfigError(msg)


def _expected(settings: Any, key: str) -> tuple[str, str]:
    """What the value of a Pythia key must be, in words and as a pattern."""
    kinds = {
        "on or off": (settings.isFlag, _FLAG),
        "an integer": (settings.isMode, _INTEGER),
        "a number": (settings.isParm, _NUMBER),
    }
    for wanted, (is_kind, pattern) in kinds.items():
        if is_kind(key):
            return wanted, pattern
    word = key.partition(":")[2].lower()
    for wanted, (pattern, words) in _PARTICLE_DATA.items():
        if key.partition(":")[0].isdigit() and word in map(str.lower, words):
            return wanted, pattern
    if key.lower() == "enhancedsplittings:list":
        return (
            "a list like {fsr:G2BB=10,fsr:G2CC=5}",
            r"\{(fsr|isr):[A-Z]2[A-Z]{2}=[\d.]+(,(fsr|isr):[A-Z]2[A-Z]{2}=[\d.]+)*\}",
        )
    return "a value", r".+"  # other words and lists


def _flatten(record: ak.Array) -> Events:
    """Flat arrays from Pythia's jagged record; indices inside an event become positions in the batch."""
    counts = ak.to_numpy(ak.num(record.id, axis=1))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    event = np.repeat(np.arange(len(counts)), counts)
    start = offsets[event]
    flat = ak.flatten(record, axis=1)

    def column(array: ak.Array) -> Array:
        return np.asarray(ak.to_numpy(array))

    def link(name: str) -> Array:
        local = column(flat[name])
        return np.where(local > 0, local + start, -1)

    vertices = np.stack([column(ak.fill_none(flat.vProd[name], 0.0)) for name in ("px", "py", "pz", "e")], axis=1)
    return Events(
        offsets, event, column(flat.id), column(flat.status), link("mother1"), link("daughter1"), link("daughter2"),
        np.stack([column(flat.p[name]) for name in ("px", "py", "pz", "e")], axis=1), column(flat.m), vertices,
    )  # fmt: skip
