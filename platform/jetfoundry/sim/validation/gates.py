"""Physics gates: figures a simulated sample must get right whatever its settings, each with its limits.

- what X decays to has the mass of X: no shower, hadronisation or bookkeeping lost or added energy
- charged multiplicity of X -> bb at the Z mass, where LEP measured it (23.1; 21.3 for cc, 20.2 for uds)
- a jet is the sum of its stored constituents
- X -> bb is told from QCD by displaced tracks (AUC > 0.95) and much less without them (AUC < 0.93)

The functions take what they measure and return figures or gates; `checks.py` makes the samples.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jetfoundry.errors import InputError
from jetfoundry.events.record import Events
from jetfoundry.sim.response import charges
from jetfoundry.sim.validation.comparison import Comparison
from jetfoundry.sim.validation.observables import OBSERVABLES, particle_columns
from jetfoundry.sim.validation.tagging import Auc

__all__ = [
    "AT_Z",
    "Gate",
    "Multiplicity",
    "Sizes",
    "charged_multiplicity",
    "comparison_gates",
    "mass_gates",
    "mass_of_descendants",
    "multiplicity_gates",
    "sum_gate",
    "sum_of_constituents",
    "tagging_gates",
]

Array = npt.NDArray[Any]

AT_Z = 91.19
"""Mass of X for the multiplicities [GeV]: that of the Z, where LEP counted."""

MASS_LIMIT = 1.0  # GeV
SUM_LIMIT = 1e-4  # of the jet's energy: single precision leaves some 1e-6
MULTIPLICITY_LIMITS = {"bb": (21.0, 25.0)}
AUC_WITH, AUC_WITHOUT = 0.95, 0.93

_RESONANCES = (25, 35, 37)
_DOUBLINGS = 14  # of the distance to an ancestor; records are some 100 generations deep


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is made for the check: some four minutes on two cores in mode full."""

    mass_events: int = 200  # per family
    multiplicity_events: int = 300  # per channel, two X each
    tagging_jets: int = 3000  # per class
    jets_per_task: int = 500
    copies: int = 60  # simulated per real jet
    copy_events: int = 1500  # after which a real jet has to do with fewer copies
    reference_jets: int = 200  # real jets that are used, the first of their file
    pseudo_experiments: int = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """A figure with the open interval it has to lie in; NaN never does."""

    name: str
    value: float
    low: float = -math.inf
    high: float = math.inf
    error: float | None = None
    unit: str = ""

    @property
    def passed(self) -> bool:
        return self.low < self.value < self.high

    @property
    def limit(self) -> str:
        """The interval in words: `> 0.95`, `< 1 GeV`, `21 to 25`."""
        unit = f" {self.unit}" if self.unit else ""
        if math.isinf(self.low):
            return f"< {self.high:g}{unit}"
        return f"> {self.low:g}{unit}" if math.isinf(self.high) else f"{self.low:g} to {self.high:g}{unit}"


@dataclasses.dataclass(frozen=True)
class Multiplicity:
    """Mean number of charged stable particles from one X, with its statistical error."""

    channel: str
    mean: float
    error: float
    resonances: int


def _origin(events: Events) -> tuple[Array, Array]:
    """Positions of the final copies of all X (C,), and for every record entry the index of its X, -1 for none.

    A charged X may radiate a photon before it decays; that photon does not come from the decay.
    """
    known = np.isin(np.abs(events.pid), _RESONANCES)
    mother, daughter = events.mother, events.daughter1
    x = np.flatnonzero(known & ~(known[mother] & (mother >= 0)))  # first copies; Y has a known mother
    while (again := events.pid[daughter[x]] == events.pid[x]).any():
        x = np.where(again, daughter[x], x)
    index = np.full(len(mother), -1)
    index[x] = np.arange(len(x))
    ancestor = np.where((index >= 0) | (mother < 0), np.arange(len(mother)), mother)
    for _ in range(_DOUBLINGS):
        ancestor = ancestor[ancestor]
    return x, index[ancestor]


def mass_of_descendants(events: Events) -> float:
    """Largest |m(stable descendants of X) - m_X| [GeV] of all X in the events."""
    x, owner = _origin(events)
    if not len(x):
        msg = "mass of descendants: no resonance in these events"
        raise InputError(msg)
    stable = np.flatnonzero((events.status > 0) & (owner >= 0))
    p = np.stack([np.bincount(owner[stable], events.p4[stable, k], minlength=len(x)) for k in range(4)], axis=1)
    mass = np.sqrt(np.maximum(p[:, 3] ** 2 - (p[:, :3] ** 2).sum(axis=1), 0.0))
    return float(np.abs(mass - events.mass[x]).max())


def charged_multiplicity(events: Events, channel: str) -> Multiplicity:
    """Charged stable particles per X. As at LEP, decay products of K_S and of hyperons count."""
    x, owner = _origin(events)
    counted = (events.status > 0) & (owner >= 0) & (charges(events.pid) != 0)
    counts = np.bincount(owner[counted], minlength=len(x))
    return Multiplicity(channel, float(counts.mean()), float(counts.std(ddof=1) / math.sqrt(len(x))), len(x))


def sum_of_constituents(table: pa.Table) -> float:
    """Largest |sum of constituents - jet| of the four momentum components, in units of the jet's energy."""
    part, offsets = particle_columns(table, "part")
    columns = ("jet_pt", "jet_eta", "jet_phi", "jet_energy")
    pt, eta, phi, energy = (np.asarray(table[name].to_numpy(), dtype=np.float64) for name in columns)
    owner = np.repeat(np.arange(len(pt)), np.diff(offsets))
    momenta = [part[name].astype(np.float64) for name in ("px", "py", "pz", "energy")]
    sums = np.stack([np.bincount(owner, p, minlength=len(pt)) for p in momenta])
    jet = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), energy])
    return float((np.abs(sums - jet) / energy).max(initial=0.0))


def mass_gates(deviations: dict[str, float]) -> list[Gate]:
    """Gates of the largest deviation of each family."""
    return [
        Gate(name=f"{family}: mass of what X decays to, largest deviation", value=value, high=MASS_LIMIT, unit="GeV")
        for family, value in deviations.items()
    ]


def sum_gate(table: pa.Table) -> Gate:
    """Gate of the jets of a table."""
    name = "jet minus sum of its constituents, largest component over jet energy"
    return Gate(name=name, value=sum_of_constituents(table), high=SUM_LIMIT)


def multiplicity_gates(found: list[Multiplicity]) -> list[Gate]:
    """Gates of the channels that have limits."""
    return [
        Gate(name=f"charged multiplicity of X→{m.channel} at {AT_Z:g} GeV", value=m.mean, error=m.error,
             low=MULTIPLICITY_LIMITS[m.channel][0], high=MULTIPLICITY_LIMITS[m.channel][1])
        for m in found
        if m.channel in MULTIPLICITY_LIMITS
    ]  # fmt: skip


def tagging_gates(with_displacement: Auc, without: Auc) -> list[Gate]:
    """Gates of X -> bb against QCD."""
    name, a, b = "AUC of X→bb vs QCD", with_displacement, without
    return [
        Gate(name=f"{name} with displacement", value=a.value, error=a.error, low=AUC_WITH),
        Gate(name=f"{name} without displacement", value=b.value, error=b.error, high=AUC_WITHOUT),
    ]


def comparison_gates(comparisons: list[Comparison]) -> list[Gate]:
    """Gates of the observables that have a limit, all jets together; one that could not be compared fails."""
    p = {c.observable.name: c.p for c in comparisons if c.p is not None}
    return [
        Gate(name=f"{o.name} of real and simulated jets, KS p-value", value=p.get(o.name, math.nan), low=o.limit)
        for o in OBSERVABLES
        if o.limit is not None
    ]
