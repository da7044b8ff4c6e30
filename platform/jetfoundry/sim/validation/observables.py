"""What is compared between real and simulated jets: quantities of whole jets and of their charged constituents.

An observable is a flat array of values, each with the jet it belongs to. A jet shares its weight evenly among its
values, and a jet without a value (no generator-level jet, no track) takes no part.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jetfoundry.features import jagged

__all__ = ["OBSERVABLES", "Observable", "Values", "observables", "particle_columns"]

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Observable:
    """Name, axis label and plotted range; `limit` is the smallest KS p-value a simulated sample may have, if any."""

    name: str
    label: str
    low: float
    high: float
    limit: float | None = None
    per_particle: bool = False
    whole: bool = False  # counts: bins are centred on integers


OBSERVABLES = (
    Observable("n_constituents", "constituents", 0, 120, 0.01, whole=True),
    Observable("n_charged_hadrons", "charged hadrons", 0, 60, 0.01, whole=True),
    Observable("response", "jet $p_T$ / generator-level jet $p_T$", 0.3, 1.3, 0.01),
    Observable("sdmass", "soft-drop mass [GeV]", 0, 300, 0.01),
    Observable("sdmass_response", "soft-drop mass / generator-level soft-drop mass", 0, 2),
    Observable("tau21", r"$\tau_{21}$", 0, 1),
    Observable("tau32", r"$\tau_{32}$", 0, 1),
    Observable("n_photons", "photons", 0, 60, whole=True),
    Observable("n_neutral_hadrons", "neutral hadrons", 0, 24, whole=True),
    Observable("n_electrons", "electrons", -0.5, 5.5, whole=True),
    Observable("n_muons", "muons", -0.5, 5.5, whole=True),
    Observable("fraction_charged", "$p_T$ fraction of charged particles", 0, 1),
    Observable("fraction_photons", "$p_T$ fraction of photons", 0, 1),
    Observable("fraction_neutral_hadrons", "$p_T$ fraction of neutral hadrons", 0, 1),
    Observable("genjet_n_constituents", "generator-level constituents", 0, 160, whole=True),
    Observable("d0", "$d_0$ of charged particles [mm]", -0.2, 0.2, per_particle=True),
    Observable("d0_significance", r"$d_0 / \sigma(d_0)$ of charged particles", -5, 5, per_particle=True),
    Observable("dz", "$d_z$ of charged particles [mm]", -0.4, 0.4, per_particle=True),
    Observable("charged_log_pt", r"$\log_{10}(p_T/\mathrm{GeV})$ of charged particles", -1, 3, per_particle=True),
    Observable("photon_log_pt", r"$\log_{10}(p_T/\mathrm{GeV})$ of photons", -1, 3, per_particle=True),
    Observable("neutral_log_pt", r"$\log_{10}(p_T/\mathrm{GeV})$ of neutral hadrons", -1, 3, per_particle=True),
)


@dataclasses.dataclass(frozen=True)
class Values:
    """One observable of a sample: `values` and the rising `jet` index of each, both (V,)."""

    values: Array
    jet: Array


def particle_columns(table: pa.Table, prefix: str) -> tuple[dict[str, Array], Array]:
    """The columns of a group by their short names, flat (N,), and the list offsets (B + 1,) that all of them share."""
    columns = {}
    offsets = np.zeros(1, np.int64)
    for name in table.column_names:
        if name.startswith(f"{prefix}_"):
            column = jagged.from_arrow(table[name], name)
            assert isinstance(column, jagged.Jagged)
            columns[name.removeprefix(f"{prefix}_")], offsets = column.values, column.offsets
    return columns, offsets


def observables(table: pa.Table) -> dict[str, Values]:
    """All OBSERVABLES of the B jets of a table with the 54 columns."""
    per_jet = ("pt", "sdmass", "nparticles", "tau1", "tau2", "tau3")
    jet = {name: np.asarray(table[f"jet_{name}"].to_numpy(), np.float64) for name in per_jet}
    gen = {name: np.asarray(table[f"genjet_{name}"].to_numpy(), np.float64) for name in ("pt", "sdmass", "nparticles")}
    flat, offsets = particle_columns(table, "part")
    owner = np.repeat(np.arange(len(table)), np.diff(offsets))
    pt = np.hypot(flat["px"], flat["py"]).astype(np.float64)
    total = np.bincount(owner, pt, minlength=len(table))
    matched = gen["pt"] > 0

    def count(kind: str) -> Values:
        return _of_jets(np.bincount(owner[flat[kind]], minlength=len(table)).astype(np.float64))

    def fraction(selected: Array) -> Values:
        return _of_jets(np.bincount(owner, pt * selected, minlength=len(table)) / total)

    def of_particles(values: Array, selected: Array) -> Values:
        return Values(values[selected].astype(np.float64), owner[selected])

    charged = flat["charge"] != 0
    error = np.where(flat["d0err"] > 0, flat["d0err"], np.inf)
    return {
        "n_constituents": _of_jets(jet["nparticles"]),
        "n_charged_hadrons": count("isChargedHadron"),
        "response": _quotient(jet["pt"], gen["pt"], matched),
        "sdmass": _of_jets(jet["sdmass"]),
        "sdmass_response": _quotient(jet["sdmass"], gen["sdmass"], matched & (gen["sdmass"] > 0)),
        "tau21": _quotient(jet["tau2"], jet["tau1"], jet["tau1"] > 0),
        "tau32": _quotient(jet["tau3"], jet["tau2"], jet["tau2"] > 0),
        "n_photons": count("isPhoton"),
        "n_neutral_hadrons": count("isNeutralHadron"),
        "n_electrons": count("isElectron"),
        "n_muons": count("isMuon"),
        "fraction_charged": fraction(charged),
        "fraction_photons": fraction(flat["isPhoton"]),
        "fraction_neutral_hadrons": fraction(flat["isNeutralHadron"]),
        "genjet_n_constituents": Values(gen["nparticles"][matched], np.flatnonzero(matched)),
        "d0": of_particles(flat["d0val"], charged),
        "d0_significance": of_particles(flat["d0val"] / error, charged),
        "dz": of_particles(flat["dzval"], charged),
        "charged_log_pt": of_particles(np.log10(pt), charged),
        "photon_log_pt": of_particles(np.log10(pt), flat["isPhoton"]),
        "neutral_log_pt": of_particles(np.log10(pt), flat["isNeutralHadron"]),
    }


def _of_jets(values: Array) -> Values:
    return Values(values, np.arange(len(values)))


def _quotient(above: Array, below: Array, defined: Array) -> Values:
    jets = np.flatnonzero(defined)
    return Values(above[jets] / below[jets], jets)
