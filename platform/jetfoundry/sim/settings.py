"""The run configuration of a simulation: families, spectra, decay channels, jets, selection, seeds.

Every number comes from `datasets/jetclass2_sim.yaml`; detector numbers come from the card it names
(`detector.py`). Nothing here needs the [sim] extra, so a job can check its configuration without it.

A *family* is one kind of file, made by one Pythia: either resonance pairs drawn by `source.py` and handed to
Pythia as Les Houches events, or one of Pythia's own processes (QCD). A *mode* switches parts of the event off;
it belongs to the identity of a sample, since a classifier would learn a difference between signal and background. It
is therefore one for all families, and no family's own settings may touch what a mode sets.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from pathlib import Path
from typing import Literal

import numpy as np

from jetfoundry.config import option
from jetfoundry.ray_session import RayConfig
from jetfoundry.sim.detector import DetectorCard

__all__ = [
    "Balance",
    "FamilyConfig",
    "JetConfig",
    "Mode",
    "ResonanceConfig",
    "SecondaryMassConfig",
    "SelectionConfig",
    "SimulateConfig",
    "plan",
    "seeds",
]

Mode = Literal["full", "no_mpi", "fast"]
Balance = Literal["natural", "classes"]

_MOST_FILES = 1_000_000  # of one sample
_LARGEST_PYTHIA_SEED = 900_000_000  # a larger one is refused by Pythia, which then keeps its default

# What a family may set by itself: its process. All the rest of an event is the same for all families.
_OF_A_PROCESS = re.compile(
    r"(hardqcd|softqcd|promptphoton|weak\w*|top|higgs\w*|charmonium|bottomonium|newgaugeboson|phasespace|enhancements"
    r"|enhancedsplittings|\d+):"
)
_X_IDS = (25, 35, 37)  # resonances that the truth rules look for


def _range(name: str, limits: tuple[float, ...], lowest: float = 0.0) -> None:
    """Raise ValueError unless `limits` are two rising numbers from `lowest` on."""
    if len(limits) != 2 or not lowest <= limits[0] <= limits[1]:
        msg = f"{name}: wanted two rising numbers from {lowest:g} on, got {list(limits)}"
        raise ValueError(msg)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecondaryMassConfig:
    """Mass of Y in X -> Y1 Y2, as a ratio r to the mass of X, uniform in `ratio`.

    Up to r = 1/2 both Y have it; above, one Y has it and the other lies uniformly in
    (`off_shell_min`, `off_shell_max` - r), as real samples with an off-shell Y do.
    """

    ratio: tuple[float, ...] = option((0.1, 0.8), "range of m_Y / m_X")
    smear: float = option(0.03, "relative width of an on-shell Y")
    off_shell_min: float = option(0.02, "lower end of the off-shell Y's mass ratio")
    off_shell_max: float = option(0.95, "upper end of the sum of both mass ratios")
    floor: float = option(2.0, "smallest mass of a Y [GeV]; a lighter colour singlet does not hadronise")

    def __post_init__(self) -> None:
        _range("ratio", self.ratio)
        if not (0 <= self.smear < 1 and 0 < self.off_shell_min < self.off_shell_max < 1 and self.floor >= 0):
            msg = "wanted 0 <= smear < 1, 0 < off_shell_min < off_shell_max < 1 and floor >= 0, got "
            msg += f"{self.smear}, {self.off_shell_min}, {self.off_shell_max}, {self.floor}"
            raise ValueError(msg)
        if self.ratio[0] <= 0 or self.ratio[1] >= self.off_shell_max - self.off_shell_min:
            msg = f"ratio {list(self.ratio)}: wanted more than 0 and less than off_shell_max - off_shell_min"
            raise ValueError(msg)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResonanceConfig:
    """Spectrum and decays of a resonance pair. PDG ids; a negative parent decays to the antiparticles."""

    ids: tuple[int, ...] = option(dataclasses.MISSING, "PDG ids of the pair, e.g. [25, 25] or [37, -37]")
    mass: tuple[float, ...] = option(dataclasses.MISSING, "uniform range of the mass of X [GeV]")
    pt: tuple[float, ...] = option(dataclasses.MISSING, "range of pT of X, uniform in its logarithm [GeV]")
    min_boost: float = option(dataclasses.MISSING, "pt is at least this times the mass; 0 = off")
    rapidity: float = option(dataclasses.MISSING, "rapidities of both X are uniform in +- this")
    x_max: float = option(dataclasses.MISSING, "largest momentum fraction of an incoming parton")
    masses: dict[str, float] = option(dataclasses.MISSING, "|PDG id| -> mass of a decay product [GeV]; others have 0")
    decays: dict[str, dict[str, float]] = option(dataclasses.MISSING, "parent id -> {'id1 id2': branching fraction}")
    secondary: SecondaryMassConfig = option(SecondaryMassConfig(), "mass of Y where X decays to two resonances")

    def __post_init__(self) -> None:
        if len(self.ids) != 2 or abs(self.ids[0]) != abs(self.ids[1]) or abs(self.ids[0]) not in _X_IDS:
            msg = f"ids {list(self.ids)}: wanted a pair of one particle or its antiparticle, of {_X_IDS}"
            raise ValueError(msg)
        for pid, mass in self.masses.items():
            if not pid.isdigit() or not 0 <= mass < math.inf:
                msg = f"masses.{pid}: wanted a |PDG id| with a mass >= 0, got {mass}"
                raise ValueError(msg)
        _range("mass", self.mass)
        _range("pt", self.pt)
        if min(self.mass[0], self.pt[0], self.x_max) <= 0 or self.x_max > 1 or min(self.rapidity, self.min_boost) < 0:
            msg = "wanted mass, pt and x_max above 0, x_max up to 1, rapidity and min_boost from 0 on"
            raise ValueError(msg)
        if 2 * self.secondary.floor >= 0.98 * self.mass[0]:
            msg = f"secondary.floor {self.secondary.floor}: two of it exceed the smallest mass of X, {self.mass[0]}"
            raise ValueError(msg)
        if self.min_boost * self.mass[1] > self.pt[1]:
            msg = f"min_boost {self.min_boost} times the largest mass {self.mass[1]} exceeds pt {self.pt[1]}"
            raise ValueError(msg)
        for resonance in self.ids:
            if str(abs(resonance)) not in self.decays:
                msg = f"decays has no channels for {abs(resonance)}, only for {', '.join(self.decays)}"
                raise ValueError(msg)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FamilyConfig:
    """One family of files: its share of the jets and the Pythia process that makes it."""

    weight: float = option(dataclasses.MISSING, "share of the jets; 0 = known but not made")
    settings: tuple[str, ...] = option((), "Pythia settings, 'Key:name = value'")
    balanced_settings: tuple[str, ...] = option((), "more of them with balance=classes")
    resonance: ResonanceConfig | None = option(None, "resonance pair; without it jets get QCD labels")

    def __post_init__(self) -> None:
        if self.weight < 0:
            msg = f"weight {self.weight} must be >= 0"
            raise ValueError(msg)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JetConfig:
    """Jet definition of JetClass-II: anti-kT, soft drop, matching."""

    radius: float = option(0.8, "radius R of anti-kT, of soft drop, N-subjettiness and of truth matching")
    pt_min: float = option(200.0, "smallest jet_pt and genjet_pt [GeV]")
    eta_max: float = option(2.5, "largest |jet_eta|")
    softdrop_zcut: float = option(0.1, "soft-drop momentum fraction (beta = 0)")
    qcd_parton_pt_min: float = option(10.0, "smallest pt of a quark that counts for a QCD label [GeV]")

    def __post_init__(self) -> None:
        if not (0 < self.radius < math.pi and 0 <= self.softdrop_zcut <= 0.5 and self.eta_max > 0):
            msg = f"wanted 0 < radius < pi, 0 <= softdrop_zcut <= 0.5, eta_max > 0, got {self.radius}, "
            msg += f"{self.softdrop_zcut}, {self.eta_max}"
            raise ValueError(msg)
        if self.pt_min <= 0 or self.qcd_parton_pt_min < 0:
            msg = f"wanted pt_min > 0 and qcd_parton_pt_min >= 0, got {self.pt_min}, {self.qcd_parton_pt_min}"
            raise ValueError(msg)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """Jets that are kept; the training selection of JetClass-II by default."""

    pt: tuple[float, ...] = option((200.0, 2500.0), "jet_pt range [GeV]")
    sdmass: tuple[float, ...] = option((20.0, 500.0), "jet_sdmass range [GeV]")

    def __post_init__(self) -> None:
        _range("pt", self.pt)
        _range("sdmass", self.sdmass, lowest=-1.0)  # -1 keeps jets of mass 0, too


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """A simulated sample. `jets` counts accepted jets of all families together."""

    output: Path = option(Path("data/sim/root"), "folder of the ROOT files")
    jets: int = option(24_000, "accepted jets in total, a multiple of jets_per_shard")
    jets_per_shard: int = option(1000, "jets in every file")
    seed: int = option(1, "1 to 900000000; file contents depend on it, the family and the shard number only")
    mode: Mode = option("full", "full = with MPI and ISR, no_mpi, fast = neither MPI nor ISR")
    balance: Balance = option("natural", "natural = decays by branching fraction, classes = rare classes filled up")
    check: bool = option(False, "no sample, but the physics gates and their page, in output/check")
    reference: str = option("", "real JetClass-II jets (ROOT or Parquet) that check=true compares with")
    workers: int = option(0, "Ray actors, 0 = one per CPU")
    ray: RayConfig = option(RayConfig(), "")
    batch_events: int = option(200, "events generated and analysed at a time")
    card: Path = option(Path("datasets/cards/cms.yaml"), "detector card")
    detector: DetectorCard | None = option(None, "the card itself, instead of the file named by `card`")
    jet: JetConfig = option(JetConfig(), "jet definition")
    selection: SelectionConfig = option(SelectionConfig(), "jets that are kept")
    beam_energy: float = option(dataclasses.MISSING, "energy of each proton beam [GeV]")
    pythia: tuple[str, ...] = option(dataclasses.MISSING, "Pythia settings of all families")
    modes: dict[str, tuple[str, ...]] = option(dataclasses.MISSING, "Pythia settings of each mode")
    families: dict[str, FamilyConfig] = option(dataclasses.MISSING, "families by name")

    def __post_init__(self) -> None:
        if self.jets_per_shard < 1 or self.batch_events < 1 or self.workers < 0:
            msg = "jets_per_shard and batch_events must be >= 1, workers >= 0"
            raise ValueError(msg)
        if self.jets < 1 or self.jets % self.jets_per_shard:
            msg = f"jets {self.jets} is not a multiple of jets_per_shard {self.jets_per_shard}"
            raise ValueError(msg)
        if self.beam_energy <= 0:
            msg = f"beam_energy {self.beam_energy}: wanted more than 0"
            raise ValueError(msg)
        if not 1 <= self.seed <= _LARGEST_PYTHIA_SEED:
            msg = f"seed {self.seed}: wanted 1 to {_LARGEST_PYTHIA_SEED}, as Pythia does"
            raise ValueError(msg)
        if self.mode not in self.modes:
            msg = f"modes has no settings for mode {self.mode!r}, only for {', '.join(self.modes)}"
            raise ValueError(msg)
        if sum(family.weight for family in self.families.values()) <= 0:
            msg = "at least one family needs a weight above 0"
            raise ValueError(msg)
        for line in self.pythia:
            self._check_setting("pythia", line)
        for name, family in self.families.items():
            for line in (*family.settings, *family.balanced_settings):
                self._check_setting(f"families.{name}", line)
                if not _OF_A_PROCESS.match(_key(line)):
                    msg = f"families.{name}: {line!r} is no setting of the process; write it under `pythia`, "
                    msg += "all families of a sample are made in one way"
                    raise ValueError(msg)
        plan(self)

    def _check_setting(self, where: str, line: str) -> None:
        """Raise ValueError for a Pythia setting that another key of the configuration decides."""
        key = _key(line)
        decides = {"partonlevel:": "`mode`", "random:": "`seed`", "beams:": "`beam_energy` (two protons)"}
        owner = next((name for prefix, name in decides.items() if key.startswith(prefix)), "")
        if key in {_key(setting) for settings in self.modes.values() for setting in settings}:
            owner = "`mode`"
        if owner:
            msg = f"{where}: {line!r} is decided by {owner}"
            raise ValueError(msg)

    @property
    def common_settings(self) -> tuple[str, ...]:
        """Pythia settings that all families share."""
        beams = ("Beams:idA = 2212", "Beams:idB = 2212", f"Beams:eCM = {2 * self.beam_energy}")
        return (*beams, *self.pythia, *self.modes[self.mode])

    def pythia_settings(self, family: str) -> tuple[str, ...]:
        """All Pythia settings of a family."""
        own = self.families[family]
        more = own.balanced_settings if self.balance == "classes" else ()
        return (*self.common_settings, *own.settings, *more)


def _key(setting: str) -> str:
    """Name of a Pythia setting as Pythia compares it."""
    return setting.partition("=")[0].strip().lower()


def plan(cfg: SimulateConfig) -> list[tuple[str, int]]:
    """(family, shard) of every file in the order of making: one for each family, then by weight.

    A sample that is not finished has all families already, and a larger one begins with the files of a smaller.
    """
    files = cfg.jets // cfg.jets_per_shard
    if files > _MOST_FILES:
        msg = f"jets {cfg.jets} makes {files} files, more than {_MOST_FILES}; raise jets_per_shard"
        raise ValueError(msg)
    weights = {name: family.weight for name, family in cfg.families.items() if family.weight > 0}
    if files < len(weights):
        msg = f"jets {cfg.jets} makes {files} files, but there are {len(weights)} families; lower jets_per_shard"
        raise ValueError(msg)
    shards = [(name, 0) for name in weights]
    counts = dict.fromkeys(weights, 1)
    while len(shards) < files:  # Sainte-Lague: the next file goes where it is missing most
        name = max(weights, key=lambda name: weights[name] / (2 * counts[name] + 1))
        shards.append((name, counts[name]))
        counts[name] += 1
    return shards


def seeds(run_seed: int, family: str, shard: int) -> tuple[int, np.random.Generator, np.random.Generator]:
    """Seed of Pythia (1 to 9e8) and the random streams of the hard process and of the detector, for one shard."""
    digest = hashlib.sha256(f"{run_seed}/{family}/{shard}".encode()).digest()
    words = np.frombuffer(digest, dtype="<u4").tolist()
    return words[0] % _LARGEST_PYTHIA_SEED + 1, np.random.default_rng(words[1:4]), np.random.default_rng(words[4:])
