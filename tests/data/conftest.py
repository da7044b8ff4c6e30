"""Delphes trees made by hand: what ROOT would write for TRefArray and TLorentzVector, byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot

Event = dict[str, dict[str, list[Any]]]

_TOBJECT = bytes.fromhex("0001 00000000 03000000")
_DTYPES = {
    **dict.fromkeys(("fUniqueID",), np.uint32),
    **dict.fromkeys(("PID", "Charge", "Status", "M1", "D1", "D2"), np.int32),
    **dict.fromkeys(("Constituents", "SoftDroppedP4"), np.uint8),
}


def reference_bytes(numbers: Sequence[int]) -> bytes:
    """One TRefArray: byte count, version, TObject, empty name, size, lower bound, process, numbers."""
    body = struct.pack(">h", 1) + _TOBJECT + struct.pack(">biih", 0, len(numbers), 0, 0)
    body += struct.pack(f">{len(numbers)}I", *numbers)
    return struct.pack(">I", len(body) | 1 << 30) + body


def vector_bytes(px: float, py: float, pz: float, energy: float) -> bytes:
    """One TLorentzVector, which holds a TVector3."""
    inner = bytes.fromhex("40000024 0003") + _TOBJECT + struct.pack(">3d", px, py, pz)
    return bytes.fromhex("4000003c 0004") + _TOBJECT + inner + struct.pack(">d", energy)


def _jet(name: str, pt: float, eta: float, phi: float, mass: float, members: Sequence[int]) -> dict[str, Any]:
    groomed = vector_bytes(3.0, 0.0, 0.0, 5.0) + 4 * vector_bytes(0.0, 0.0, 0.0, 0.0)  # soft-drop mass 4
    jet = {"PT": pt, "Eta": eta, "Phi": phi, "Mass": mass, "Constituents": members, "SoftDroppedP4": groomed}
    return jet | ({"Tau": [0.4, 0.3, 0.2, 0.1, 0.05]} if name == "jets" else {})


def _event(pt: float = 400.0, products: tuple[int, int] = (5, -5), resonance: int = 25, vertex: float = 50.0) -> Event:
    """X at phi 0 decays to two partons 0.2 to both sides in phi; each gives one particle of half the jet's pT.

    `pt` is that of the jet and the resonance. pT 0 and far-away particles are there too; the primary vertex lies at
    z = `vertex` and the surface eta of particles is 0.05 more than that of their momentum.
    """

    def record(pid: int, status: int, share: float, phi: float, first: int = -1, last: int = -1) -> dict[str, Any]:
        px, py = share * pt * np.cos(phi), share * pt * np.sin(phi)
        z = vertex if status == 1 else 0.0
        own = {"PID": pid, "Status": status, "M1": -1, "D1": first, "D2": last, "X": 1e-7, "Y": 0.0, "Z": z, "T": 1e-9}
        return {**own, "Px": px, "Py": py, "Pz": 0.0, "E": share * pt, "Mass": 0.0}

    quarks = [(pid, 0.5, 0.2 * sign) for pid, sign in zip(products, (1, -1), strict=True)]
    truth = [
        record(resonance, 22, 1.0, 0.0, 1, 1),
        record(resonance, 62, 1.0, 0.0, 2, 3),
        *(record(pid, 23, share, phi, 4 + i, 4 + i) for i, (pid, share, phi) in enumerate(quarks)),
        *(record(pid, 71, share, phi, 6 + i, 6 + i) for i, (pid, share, phi) in enumerate(quarks)),
        *(record(sign * 211, 1, 0.5, phi) for sign, (_, _, phi) in zip((1, -1), quarks, strict=True)),
    ]
    for position, mother in ((1, 0), (2, 1), (3, 1), (4, 2), (5, 3), (6, 4), (7, 5)):
        truth[position]["M1"] = mother
    px = pt * np.cos(0.2)
    candidates = [
        {"PID": 211, "Charge": 1, "PT": pt / 2, "Phi": 0.2, "D0": 0.1, "ErrorD0": 0.01, "DZ": vertex + 1.0},
        {"PID": 22, "Charge": 0, "PT": pt / 2, "Phi": -0.2, "D0": 0.0, "ErrorD0": 0.0, "DZ": 0.0},
        {"PID": -211, "Charge": -1, "PT": 0.0, "Phi": 0.0, "D0": 0.0, "ErrorD0": 0.01, "DZ": vertex},
    ]
    for candidate in candidates:
        candidate |= {"Eta": 0.05, "CtgTheta": 0.0, "Mass": 0.0, "ErrorDZ": candidate["ErrorD0"]}
    mass = float(np.sqrt(max(pt**2 - px**2, 0.0)))
    event = {
        "jets": [_jet("jets", px, 0.0, 0.0, mass, [101, 102, 103])],
        "particles": candidates,
        "genjets": [_jet("genjets", px, 0.0, 0.0, mass, [7, 8])],
        "genparticles": truth,
        "vertices": [{"Z": vertex, "T": 1e-10}, {"Z": -3.0, "T": 0.0}],
    }
    for name, first in (("particles", 101), ("genparticles", 1)):
        for number, item in enumerate(event[name]):
            item["fUniqueID"] = first + number
    return {name: _columns(items) for name, items in event.items()}


def _columns(items: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {member: [item[member] for item in items] for member in items[0]}


_COLLECTIONS = {"jets": "JetPUPPIAK8", "particles": "ParticleFlowCandidate", "genjets": "GenJetAK8",
                "genparticles": "Particle", "vertices": "Vertex"}  # fmt: skip


def _flat(member: str, values: list[Any]) -> np.ndarray:
    """The values of one event as they lie in the tree."""
    if member == "Constituents":
        values = [byte for numbers in values for byte in reference_bytes(numbers)]
    elif member == "SoftDroppedP4":
        values = [byte for vectors in values for byte in vectors]
    elif member == "Tau":
        values = [tau for taus in values for tau in taus]
    return np.asarray(values, _DTYPES.get(member, np.float32))


def _write(path: Path, events: Sequence[Event], cluster: int | None = None, leave_out: Sequence[str] = ()) -> Path:
    """Write events as a tree `Delphes`, `cluster` events a basket, without the branches in `leave_out`."""
    arrays = {}
    for name, collection in _COLLECTIONS.items():
        for member in events[0][name]:
            branch = f"{collection}.{member}"
            if branch in leave_out or collection in leave_out:
                continue
            flat = [_flat(member, event[name][member]) for event in events]
            offsets = np.concatenate([[0], np.cumsum([len(values) for values in flat])])
            content = ak.contents.NumpyArray(np.concatenate(flat))
            arrays[branch] = ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(offsets), content))
    step = cluster or len(events)
    with uproot.recreate(path) as file:
        file.mktree("Delphes", {name: array.type for name, array in arrays.items()})
        for start in range(0, len(events), step):
            file["Delphes"].extend({name: array[start : start + step] for name, array in arrays.items()})
    return path


@pytest.fixture(scope="session")
def delphes_event() -> Callable[..., Event]:
    """`delphes_event(pt=400, products=(5, -5), resonance=25, vertex=50)`: one event with one jet, see `_event`."""
    return _event


@pytest.fixture(scope="session")
def write_delphes() -> Callable[..., Path]:
    """`write_delphes(path, events, cluster=None, leave_out=())`: a Delphes tree of them."""
    return _write
