"""The 54 columns of accepted jets as one Arrow table, in the conventions of JetClass-II's ntuples.

Angles of constituents, also of generator-level ones, are relative to the *reconstructed* jet axis:
sign(jet_eta) * (eta - jet_eta) and phi - jet_phi. Production vertices are in mm, their times in seconds.

J jets. A jagged group is a set of flat arrays with list offsets (J + 1,).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jetfoundry.events import flow as categories
from jetfoundry.events.flow import Flow
from jetfoundry.events.jets import Jets, wrap_phi
from jetfoundry.schema import COLUMNS, arrow_schema, column_group

__all__ = ["AUX_FLAGS", "SECONDS", "aux_columns", "genpart_columns", "jet_columns", "part_columns", "table"]

Array = npt.NDArray[Any]

AUX_FLAGS = ("isResX", "isResY", "isResDecayProd", "isTauDecayProd", "isQcdParton")
"""Roles of truth particles; a role's code is its position."""

SECONDS = 1e-3 / 299_792_458.0
"""One mm/c in seconds."""

_KINDS = {
    "isElectron": categories.ELECTRON,
    "isMuon": categories.MUON,
    "isPhoton": categories.PHOTON,
    "isChargedHadron": categories.CHARGED_HADRON,
    "isNeutralHadron": categories.NEUTRAL_HADRON,
}


def table(
    scalars: Mapping[str, Array], groups: Mapping[str, Mapping[str, Array]], offsets: Mapping[str, Array]
) -> pa.Table:
    """Arrow table of the 54 columns from per-jet columns, flat group columns and the offsets of each group."""
    arrays = []
    for column in COLUMNS:
        prefix = column_group(column.name)
        values = groups[prefix][column.name] if prefix else scalars[column.name]
        flat = pa.array(np.asarray(values).astype(column.kind))
        if prefix:
            flat = pa.ListArray.from_arrays(offsets[prefix].astype(np.int32), flat, type=column.arrow_type)
        arrays.append(flat)
    return pa.table(arrays, schema=arrow_schema())


def _relative(px: Array, py: Array, pz: Array, jets: Jets, owner: Array) -> tuple[Array, Array]:
    """(deta, dphi) of particles to the axis of their jet, deta with the sign of jet_eta."""
    jet_eta = jets.eta[owner]
    eta, phi = np.arcsinh(pz / np.hypot(px, py)), np.arctan2(py, px)
    return np.where(jet_eta > 0, 1, -1) * (eta - jet_eta), wrap_phi(phi - jets.phi[owner])


def part_columns(jets: Jets, flow: Flow) -> dict[str, Array]:
    """`part_*` columns of the constituents of `jets` among the particles `flow`."""
    part = flow.take(jets.index)
    owner = np.repeat(np.arange(len(jets)), np.diff(jets.offsets))
    deta, dphi = _relative(part.px, part.py, part.pz, jets, owner)
    columns = {
        "px": part.px, "py": part.py, "pz": part.pz, "energy": part.energy, "deta": deta, "dphi": dphi,
        "d0val": part.d0, "d0err": part.d0err, "dzval": part.dz, "dzerr": part.dzerr, "charge": part.charge,
        **{name: part.kind == kind for name, kind in _KINDS.items()},
    }  # fmt: skip
    return {f"part_{name}": values for name, values in columns.items()}


def jet_columns(jets: Jets, sdmass: Array, tau: Array, label: Array) -> dict[str, Array]:
    """`jet_*` columns from jets, soft-drop masses (J,), tau_1 to tau_4 (J, 4) and labels (J,)."""
    return {
        "jet_pt": jets.pt, "jet_eta": jets.eta, "jet_phi": jets.phi, "jet_energy": jets.p4[:, 3],
        "jet_sdmass": sdmass, "jet_nparticles": np.diff(jets.offsets), "jet_label": label,
        **{f"jet_tau{n + 1}": tau[:, n] for n in range(4)},
    }  # fmt: skip


def genpart_columns(
    jets: Jets, genjets: Jets, match: Array, sdmass: Array, p4: Array, pid: Array, vertex: Array
) -> tuple[dict[str, Array], dict[str, Array], Array]:
    """`genjet_*` columns, `genpart_*` columns and their offsets.

    `match` (J,) is the position of each jet's generator-level jet in `genjets`, -1 for none: such jets get zeros
    and empty lists. `sdmass` (J,); `p4`, `pid`, `vertex` (x, y, z, t) belong to the particles clustered into
    `genjets`.
    """
    found = match >= 0
    matched = genjets.take(match[found])
    counts = np.zeros(len(jets), dtype=np.int64)
    counts[found] = np.diff(matched.offsets)

    def per_jet(values: Array) -> Array:
        column = np.zeros(len(jets))
        column[found] = values
        return column

    scalars = {
        "genjet_pt": per_jet(matched.pt), "genjet_eta": per_jet(matched.eta), "genjet_phi": per_jet(matched.phi),
        "genjet_energy": per_jet(matched.p4[:, 3]), "genjet_sdmass": sdmass, "genjet_nparticles": counts,
    }  # fmt: skip
    px, py, pz, energy = p4[matched.index].T
    x, y, z, t = vertex[matched.index].T
    deta, dphi = _relative(px, py, pz, jets, np.repeat(np.arange(len(jets)), counts))
    flat = {
        "px": px, "py": py, "pz": pz, "energy": energy, "jet_deta": deta, "jet_dphi": dphi,
        "x": x, "y": y, "z": z, "t": t * SECONDS, "pid": pid[matched.index],
    }  # fmt: skip
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return scalars, {f"genpart_{name}": values for name, values in flat.items()}, offsets


def aux_columns(
    jets: int, owner: Array, role: Array, pid: Array, p4: Array, mass: Array
) -> tuple[dict[str, Array], Array]:
    """`aux_genpart_*` columns and offsets of K truth particles, already sorted by their jet `owner` (K,).

    `role` (K,) is a position in AUX_FLAGS; `pid`, `mass` (K,), `p4` (K, 4).
    """
    pt = np.hypot(p4[:, 0], p4[:, 1])
    columns = {
        "pt": pt, "eta": np.arcsinh(p4[:, 2] / pt), "phi": np.arctan2(p4[:, 1], p4[:, 0]), "mass": mass, "pid": pid,
        **{name: role == code for code, name in enumerate(AUX_FLAGS)},
    }  # fmt: skip
    offsets = np.searchsorted(owner, np.arange(jets + 1))
    return {f"aux_genpart_{name}": values for name, values in columns.items()}, offsets
