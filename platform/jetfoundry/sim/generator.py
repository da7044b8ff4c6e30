"""One Pythia 8 for one shard, and its events as flat arrays.

A shard gets a fresh Pythia (0.5 s of some 10 s): reseeding a used one is not exact, because phase-space maxima and
MPI state carry over, and then a file would depend on what the actor had made before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import pythia8mc

from jetfoundry.errors import ConfigError, JetFoundryError
from jetfoundry.events.record import Events
from jetfoundry.sim.source import PairSource

__all__ = ["Generator"]

Array = npt.NDArray[Any]


class _LesHouches(pythia8mc.LHAup):
    """Hands the events of a PairSource to Pythia."""

    def __init__(self, source: PairSource) -> None:
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
        self.setProcess(9999, 1.0, scale, 0.0078, 0.118)
        for row in rows:
            self.addParticle(*row, 0.0, 9.0)  # no lifetime, unknown spin
        return True


class Generator:
    """A Pythia with checked settings, reading `source` if there is one."""

    def __init__(self, settings: Sequence[str], seed: int, source: PairSource | None = None) -> None:
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


_FLAG_WORDS = ("on", "yes", "true", "1", "off", "no", "false", "0")
_PARTICLE_NUMBER = re.compile(r"\d+:(m0|mWidth|mMin|mMax|tau0)")


def _apply(pythia: Any, line: str) -> None:
    """Set one 'Key = value'. Pythia takes some junk in silence ('MPI = maybe' is off), so values are checked here."""
    key, equals, text = (part.strip() for part in line.partition("="))
    if not equals or not pythia.readString(line, False):
        msg = f"Pythia setting {line!r}: unknown key or value out of range"
        raise ConfigError(msg)
    wanted = ""
    if pythia.settings.isFlag(key) and text.lower() not in _FLAG_WORDS:
        wanted = "on or off"
    elif pythia.settings.isMode(key) and not re.fullmatch(r"[+-]?\d+", text):
        wanted = "an integer"
    elif _PARTICLE_NUMBER.fullmatch(key) and not re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", text, re.IGNORECASE):
        wanted = "a number"
    if wanted:
        msg = f"Pythia setting {line!r}: wanted {wanted}, got {text!r}"
        raise ConfigError(msg)


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
