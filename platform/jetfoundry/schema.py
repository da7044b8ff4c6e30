"""The 54 columns of JetClass-II: name, Arrow type, unit, meaning.

Every jet is one row. `part_*` lists run over the P reconstructed constituents (at most 128 are used, sorted
by falling pT), `genpart_*` over the constituents of the matched generator-level jet, `aux_genpart_*` over
the truth record (X, Y1, Y2, decay products, tau daughters, QCD quarks). All columns are non-null.
Energies and momenta in GeV, lengths in mm, angles in rad. Source: JetClass-II's public example file
(arXiv:2405.12972), against which the tests compare this table.
"""

from __future__ import annotations

import dataclasses
import functools

import pyarrow as pa

__all__ = ["COLUMNS", "LISTS", "Column", "arrow_schema", "column_group"]

LISTS: tuple[str, ...] = ("aux_genpart", "genpart", "part")
"""Prefixes of the jagged column groups: within one jet, all lists of a group have the same length."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One stored quantity. `kind` is the element type: float32, int32 or bool (int64: an event number)."""

    name: str
    kind: str
    jagged: bool
    unit: str
    meaning: str

    @property
    def arrow_type(self) -> pa.DataType:
        scalar = {"float32": pa.float32(), "int32": pa.int32(), "int64": pa.int64(), "bool": pa.bool_()}[self.kind]
        return pa.list_(pa.field("element", scalar, nullable=False)) if self.jagged else scalar

    @property
    def field(self) -> pa.Field:
        return pa.field(self.name, self.arrow_type, nullable=False)


_F, _I, _B = "float32", "int32", "bool"

# name | element type | unit | meaning ; blocks of one prefix
_PART = (
    ("part_px", _F, "GeV", "x momentum of the constituent"),
    ("part_py", _F, "GeV", "y momentum"),
    ("part_pz", _F, "GeV", "z momentum"),
    ("part_energy", _F, "GeV", "energy"),
    ("part_deta", _F, "", "sign(jet_eta) * (eta - jet_eta)"),
    ("part_dphi", _F, "rad", "phi - jet_phi, wrapped to (-pi, pi]"),
    ("part_d0val", _F, "mm", "transverse impact parameter, 0 for neutrals"),
    ("part_d0err", _F, "mm", "its uncertainty, 0 for neutrals"),
    ("part_dzval", _F, "mm", "longitudinal impact parameter, 0 for neutrals"),
    ("part_dzerr", _F, "mm", "its uncertainty, 0 for neutrals"),
    ("part_charge", _I, "e", "electric charge"),
    ("part_isElectron", _B, "", "reconstructed as electron"),
    ("part_isMuon", _B, "", "reconstructed as muon"),
    ("part_isPhoton", _B, "", "reconstructed as photon"),
    ("part_isChargedHadron", _B, "", "reconstructed as charged hadron"),
    ("part_isNeutralHadron", _B, "", "reconstructed as neutral hadron"),
)
_JET = (
    ("jet_pt", _F, "GeV", "transverse momentum of the anti-kT R=0.8 jet"),
    ("jet_eta", _F, "", "pseudorapidity"),
    ("jet_phi", _F, "rad", "azimuth"),
    ("jet_energy", _F, "GeV", "energy"),
    ("jet_sdmass", _F, "GeV", "soft-drop mass (beta = 0, zcut = 0.1)"),
    ("jet_nparticles", _I, "", "number of constituents"),
    ("jet_tau1", _F, "", "N-subjettiness tau_1"),
    ("jet_tau2", _F, "", "N-subjettiness tau_2"),
    ("jet_tau3", _F, "", "N-subjettiness tau_3"),
    ("jet_tau4", _F, "", "N-subjettiness tau_4"),
    ("jet_label", _I, "", "class index 0-187, see labels.py"),
)
_GENPART = (
    ("genpart_px", _F, "GeV", "x momentum of the generator-level constituent"),
    ("genpart_py", _F, "GeV", "y momentum"),
    ("genpart_pz", _F, "GeV", "z momentum"),
    ("genpart_energy", _F, "GeV", "energy"),
    ("genpart_jet_deta", _F, "", "sign(jet_eta) * (eta - jet_eta), relative to the reconstructed jet"),
    ("genpart_jet_dphi", _F, "rad", "phi - jet_phi, wrapped, relative to the reconstructed jet"),
    ("genpart_x", _F, "mm", "x of the production vertex"),
    ("genpart_y", _F, "mm", "y of the production vertex"),
    ("genpart_z", _F, "mm", "z of the production vertex"),
    ("genpart_t", _F, "s", "time of the production vertex"),
    ("genpart_pid", _I, "", "PDG id"),
)
_GENJET = (
    ("genjet_pt", _F, "GeV", "transverse momentum of the matched generator-level jet, 0 if none"),
    ("genjet_eta", _F, "", "pseudorapidity"),
    ("genjet_phi", _F, "rad", "azimuth"),
    ("genjet_energy", _F, "GeV", "energy"),
    ("genjet_sdmass", _F, "GeV", "soft-drop mass"),
    ("genjet_nparticles", _I, "", "number of constituents"),
)
_AUX = (
    ("aux_genpart_pt", _F, "GeV", "transverse momentum of the truth particle"),
    ("aux_genpart_eta", _F, "", "pseudorapidity"),
    ("aux_genpart_phi", _F, "rad", "azimuth"),
    ("aux_genpart_mass", _F, "GeV", "mass"),
    ("aux_genpart_pid", _I, "", "PDG id"),
    ("aux_genpart_isResX", _B, "", "is the resonance X"),
    ("aux_genpart_isResY", _B, "", "is a secondary resonance Y"),
    ("aux_genpart_isResDecayProd", _B, "", "is a decay product of X or Y"),
    ("aux_genpart_isTauDecayProd", _B, "", "is a decay product of a tau"),
    ("aux_genpart_isQcdParton", _B, "", "is a quark that decided the QCD label"),
)

COLUMNS: tuple[Column, ...] = tuple(
    Column(name, kind, jagged, unit, meaning)
    for block, jagged in ((_PART, True), (_JET, False), (_GENPART, True), (_GENJET, False), (_AUX, True))
    for name, kind, unit, meaning in block
)
"""All 54 columns in stored order."""


@functools.cache
def arrow_schema() -> pa.Schema:
    """The Arrow schema of a JetClass-II file: 54 non-null fields in stored order."""
    return pa.schema([column.field for column in COLUMNS])


def column_group(name: str) -> str:
    """Prefix of the jagged group that `name` belongs to (`part`, `genpart`, `aux_genpart`), or ''.

    >>> column_group("aux_genpart_pid"), column_group("jet_pt")
    ('aux_genpart', '')
    """
    return next((prefix for prefix in LISTS if name.startswith(prefix + "_")), "")
