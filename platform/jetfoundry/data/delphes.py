"""Read the trees of Delphes (arXiv:1307.6346): events in, jets with the 54 columns of JetClass-II out.

An event gives as many jets as it has candidates, most often one or two. All jets of an event carry its number as
`source_entry`, so they come into the same split and nothing leaks from train to test. Only the branches named here
are read, some hundred events at a time: memory does not grow with the range or the file.

The branches are found by name, `Tau` for `Tau[5]`. A missing one sets the file aside with the names that come
nearest; events and jets without use are counted with a reason (delphes_jets.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import uproot

from jetfoundry import remote
from jetfoundry.data import references
from jetfoundry.data.delphes_jets import Collection, DelphesConfig, Loss, jets_of, no_jets
from jetfoundry.data.layouts import JETCLASS2, Layout
from jetfoundry.data.root import DamagedFile, JetReader, decoding, jet_schema, open_jets
from jetfoundry.errors import nearest

__all__ = ["DelphesReader", "open_source"]

_TREE = "Delphes"
_BATCH = 250  # events read at once, some 250 kB each with all generator particles
_PROBED = 16  # events

_RAW = uproot.AsJagged(uproot.AsDtype("u1"))
_REFERENCES, _FOUR_VECTORS = "Constituents", "SoftDroppedP4"  # branches of objects, decoded from their bytes
_TAUS = "Tau"
_JET = ("PT", "Eta", "Phi", "Mass", _FOUR_VECTORS, _REFERENCES)
_PARTICLE = ("fUniqueID", "PT", "Eta", "Phi", "Mass", "PID", "Charge", "D0", "ErrorD0", "DZ", "ErrorDZ")
_GENPARTICLE = ("fUniqueID", "PID", "Status", "M1", "D1", "D2", "Px", "Py", "Pz", "E", "Mass", "X", "Y", "Z", "T")
_VERTEX = ("Z", "T")
_TLORENTZVECTOR = np.dtype([("header", "V32"), ("p4", ">f8", (4,))])


def _members(settings: DelphesConfig) -> dict[str, tuple[str, ...]]:
    """Collection (its name in DelphesConfig) -> members that are read. The optional vertices are not among them."""
    particle = (*_PARTICLE, "CtgTheta") if settings.direction == "momentum" else _PARTICLE
    genjets = {"genjets": _JET} if settings.genjets else {}
    return {"jets": (*_JET, _TAUS), "particles": particle, "genparticles": _GENPARTICLE, **genjets}


@contextlib.contextmanager
def open_source(
    path: str | Path,
    *,
    tree: str = "",
    file_index: int = 0,
    delphes: DelphesConfig | None = None,
    layout: Layout = JETCLASS2,
    patience: float = remote.PATIENCE,
) -> Iterator[JetReader | DelphesReader]:
    """Open a file of jets, or with `delphes` a file of Delphes events. Raises as `root.open_jets` does."""
    how: dict[str, Any] = {"file_index": file_index, "layout": layout, "patience": patience}
    with open_jets(path, tree=tree or (_TREE if delphes else ""), **how) as reader:
        yield reader if delphes is None else DelphesReader(reader, delphes)


class DelphesReader:
    """An open Delphes tree; has the facts and verbs of a JetReader that ingest uses."""

    def __init__(self, reader: JetReader, settings: DelphesConfig) -> None:
        if reader.kind != "ttree":
            msg = f"{reader.path}: wanted a TTree of Delphes, got {reader.kind}"
            raise DamagedFile(msg)
        self.settings, self.handle = settings, reader.handle()
        self.path, self.tree, self.sample, self.file_index = reader.path, reader.tree, reader.sample, reader.file_index
        self.kind, self.entries = "delphes", reader.entries
        with decoding(f"{self.path}, tree {self.tree}"):
            self.branches = {branch.name.partition("[")[0]: branch for branch in self.handle.itervalues()}
        self.wanted = {
            f"{getattr(settings, option)}.{m}" for option, names in _members(settings).items() for m in names
        }
        vertex = {f"{settings.vertices}.{member}" for member in _VERTEX}
        self.has_vertices = vertex <= self.branches.keys()
        self.wanted |= vertex if self.has_vertices else set()

    def require(self, columns: Sequence[str] | None = None) -> None:
        """Raise DamagedFile if a collection or a member of it is missing. `columns` is not used: all come out."""
        collections = {name.partition(".")[0] for name in self.branches if "." in name}
        for option, members in _members(self.settings).items():
            collection = getattr(self.settings, option)
            if collection not in collections:
                there = ", ".join(sorted(collections)) or "no collections"
                msg = f"{self.path}: no collection {collection!r} (delphes.{option}); "
                msg += f"{nearest(collection, collections)}; the file has {there}"
                raise DamagedFile(msg)
            names = {name.partition(".")[2] for name in self.branches if name.startswith(f"{collection}.")}
            for member in members:
                if member not in names:
                    msg = f"{self.path}: missing branch {collection}.{member}; {nearest(member, names)}"
                    raise DamagedFile(msg)

    def clusters(self) -> npt.NDArray[np.int64]:
        """Entry numbers between which all branches that are read can be decoded on their own."""
        wanted = [self.branches[name].name for name in self.wanted]
        with decoding(f"{self.path}, tree {self.tree}"):
            ends = self.handle.common_entry_offsets(filter_branch=lambda branch: branch.name in wanted)
        return np.unique(np.array([0, *ends, self.entries], np.int64))

    def bytes_per_entry(self, columns: Sequence[str] | None = None, *, round_doubles: bool = False) -> int:
        """Memory that the jets of an event take, from the first events."""
        probed = min(_PROBED, self.entries)
        return max(1, int(self.convert(0, probed)[0].nbytes) // probed)

    def convert(self, start: int, stop: int, *, round_doubles: bool = False) -> tuple[pa.Table, list[Loss]]:
        """Jets of the events `start <= entry < stop` with `jet_schema()`, and what of these events did not come out.

        Floats are computed in double precision and stored in single, whatever `round_doubles` says. Raises
        DamagedFile if the bytes cannot be decoded.
        """
        tables, losses = [jet_schema().empty_table()], []
        for first in range(start, stop, _BATCH):
            last = min(first + _BATCH, stop)
            with decoding(f"{self.path}, entries {first}-{last}"):
                found = self._read(first, last)
            table, event, lost = jets_of(found, last - first, self.settings)
            provenance = (np.full(len(event), self.file_index, np.int32), (event + first).astype(np.int64))
            tables.append(pa.table([*table.columns, *map(pa.array, provenance)], schema=jet_schema()))
            losses += [dataclasses.replace(loss, entry=loss.entry + first) for loss in lost]
        return pa.concat_tables(tables).combine_chunks(), losses

    def _read(self, start: int, stop: int) -> dict[str, Collection]:
        # Branch by branch: asking the tree for all of them costs 0.3 s in a file with 700 branches.
        arrays = {}
        for name in self.wanted:
            branch, is_object = self.branches[name], name.partition(".")[2] in (_REFERENCES, _FOUR_VECTORS)
            interpretation = _RAW if is_object else branch.interpretation
            arrays[name] = branch.array(interpretation, entry_start=start, entry_stop=stop, library="ak")
        members = _members(self.settings) | ({"vertices": _VERTEX} if self.has_vertices else {})
        found = {"genjets": no_jets()}
        for option, names in members.items():
            found[option] = _collect(getattr(self.settings, option), names, arrays, stop - start)
        return found


def _collect(collection: str, members: tuple[str, ...], arrays: dict[str, ak.Array], events: int) -> Collection:
    """One collection of `events` events; ValueError if its branches disagree on the number of objects."""
    flat = {member: _flat(arrays[f"{collection}.{member}"]) for member in members}
    offsets = flat[members[0]][0]
    columns, referenced = {}, None
    for member, (at, values) in flat.items():
        if member == _REFERENCES:
            referenced = references.decode(values, at, np.diff(offsets))
        elif member == _FOUR_VECTORS:  # the groomed jet, then its subjets
            columns[member] = _per_object(values.view(_TLORENTZVECTOR)["p4"], offsets[-1], 1)[:, 0].astype(np.float64)
        elif member == _TAUS:
            columns[member] = _per_object(values.reshape(-1), offsets[-1], 4)
        elif np.array_equal(at, offsets):
            columns[member] = values
        else:
            msg = f"{collection}.{member} has another number of objects than {collection}.{members[0]}"
            raise ValueError(msg)
    return Collection(np.repeat(np.arange(events), np.diff(offsets)), columns, referenced)


def _per_object(values: npt.NDArray[Any], objects: int, least: int) -> npt.NDArray[Any]:
    """The values (objects, n, ...) with n at least `least`, or ValueError."""
    width = len(values) // objects if objects else least
    if len(values) != width * objects or width < least:
        msg = f"{len(values)} values for {objects} objects, wanted {least} or more each"
        raise ValueError(msg)
    return values.reshape(objects, width, *values.shape[1:])


def _flat(array: ak.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Offsets (E + 1,) and values of a jagged array; ValueError if it is not jagged."""
    layout = array.layout
    if not layout.is_list:
        msg = f"wanted a list per event, the file has {layout.form.type}"
        raise ValueError(msg)
    layout = layout.to_ListOffsetArray64(True)
    offsets = np.asarray(layout.offsets.data)
    return offsets, np.asarray(ak.to_numpy(layout.content[: offsets[-1]], allow_missing=False))
