"""Compare a shard folder with its manifest: are the jets that training will read those that ingest wrote?

Every shard is read again. Found are, one line per fault: shards that are missing, changed (size, XXH128), unreadable,
of another schema, number of rows or row groups; class counts and (class, pT, mass) histograms that are not those of
the manifest; jets that stand in two shards or in the wrong split, or come from no input; jets of the input that are
neither in a shard nor set aside; files that the manifest does not know.

Memory: one byte per entry of the inputs, and labels and provenance (20 bytes a jet) of the shards that were read before
their turn.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from jetfoundry import files, ray_session
from jetfoundry.data import shards
from jetfoundry.data.plan import Plan, split_of
from jetfoundry.data.reader import jet_schema
from jetfoundry.labels import CLASSES
from jetfoundry.progress import Progress, progress

__all__ = ["Verification", "verify"]

_NEEDED = ("columns", "inputs", "shards", "set_aside")
_READ = ("jet_label", "jet_pt", "jet_sdmass", "source_file", "source_entry")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verification:
    """What was compared, and one line per fault; none if the folder is what its manifest says."""

    folder: Path
    shards: int
    rows: int
    bytes: int
    faults: tuple[str, ...]


_NONE = np.empty(0, np.int64)
_NONE.flags.writeable = False


class _Shard(NamedTuple):
    """One shard as it was found: its fault, or its class counts (C,), histogram (C, 14, 48) and provenance (B,)."""

    path: str
    fault: str = ""
    classes: npt.NDArray[np.int64] = _NONE
    bins: npt.NDArray[np.int64] = _NONE
    file: npt.NDArray[np.int64] = _NONE
    entry: npt.NDArray[np.int64] = _NONE


def verify(folder: str | Path) -> Verification:
    """Read all shards of a folder again and compare them with its manifest.

    Raises InputError if there is no manifest, or none that this version can read.
    """
    root = files.place(folder)
    manifest = shards.read_manifest(root, (*shards.MANIFEST_KEYS, *_NEEDED))
    manifest.setdefault("classes", CLASSES)  # not there in manifests of older versions
    types = _types(root, manifest)
    records = [record for part in manifest["splits"].values() for record in part["shards"]]
    faults: list[str] = []
    ledger = _Ledger(manifest)
    threads = concurrent.futures.ThreadPoolExecutor(ray_session.usable_cores())
    with threads as pool, progress("verify", "shard", len(records)) as bar:
        for split, part in manifest["splits"].items():
            found = pool.map(lambda record: _read_shard(root, record, manifest, types), part["shards"])
            faults += _split_faults(split, part, manifest["classes"], found, ledger, bar)
    faults += [f"{path}: not in the manifest" for path in _strangers(root, {record["path"] for record in records})]
    if shards.content_hash(map(shards.digest, records)) != manifest["hash"]:
        faults.append("manifest.json: its hash does not belong to its list of shards")
    if not faults:
        faults += ledger.missing()
    return Verification(
        folder=root,
        shards=len(records),
        rows=sum(record["rows"] for record in records),
        bytes=sum(record["bytes"] for record in records),
        faults=tuple(faults),
    )


def _types(root: Path, manifest: dict[str, Any]) -> pa.Schema:
    """Schema of the shards; of columns other than JetClass-II's the plan knows the types."""
    if manifest["columns"] == jet_schema().names:
        return jet_schema()
    return jet_schema(layout=Plan.from_dict(files.read_json(root / "plan.json")).layout)


def _strangers(root: Path, known: set[str]) -> list[str]:
    present = {path.relative_to(root).as_posix() for split in shards.SPLITS for path in (root / split).glob("*")}
    return sorted(present - known)


def _read_shard(root: Path, record: dict[str, Any], manifest: dict[str, Any], types: pa.Schema) -> _Shard:
    name, number = record["path"], len(manifest["classes"])
    path = root / name
    if not path.exists():
        return _Shard(name, "missing")
    if path.stat().st_size != record["bytes"]:
        return _Shard(name, f"{path.stat().st_size} bytes, the manifest says {record['bytes']}")
    if (files.sha256_file(path) if "sha256" in record else files.xxh128_file(path)) != shards.digest(record):
        return _Shard(name, "its checksum is not that of the manifest")
    try:
        with files.opened(path) as source, pq.ParquetFile(source, page_checksum_verification=True) as shard:
            fault = _layout_fault(shard, record, manifest, types)
            if fault:
                return _Shard(name, fault)
            table = shard.read(columns=list(_READ), use_threads=False)
    except (OSError, pa.ArrowException) as error:
        return _Shard(name, f"cannot read: {' '.join(str(error).split())[:160]}")
    label, pt, sdmass, file, entry = (table.column(column).to_numpy() for column in _READ)
    if table.num_rows and not 0 <= label.min() <= label.max() < number:
        return _Shard(name, f"jet_label runs from {label.min()} to {label.max()}, wanted 0 to {number - 1}")
    classes = np.bincount(label, minlength=number)
    return _Shard(name, "", classes, shards.histogram(label, pt, sdmass, number), file.astype(np.int64), entry)


def _layout_fault(shard: pq.ParquetFile, record: dict[str, Any], manifest: dict[str, Any], types: pa.Schema) -> str:
    """What is wrong with columns, types, rows or row groups of an open shard; '' if nothing."""
    wanted, names = manifest["columns"], shard.schema_arrow.names
    lacking, more = [c for c in wanted if c not in names], [c for c in names if c not in wanted]
    if lacking or more:
        what = [f"no column {', '.join(lacking)}"] * bool(lacking) + [f"unknown column {', '.join(more)}"] * bool(more)
        return " and ".join(what)
    for field in shard.schema_arrow:
        if field.name in types.names and not field.equals(types.field(field.name)):
            return f"column {field.name} is {field}, wanted {types.field(field.name)}"
    if shard.metadata.num_rows != record["rows"]:
        return f"{shard.metadata.num_rows} rows, the manifest says {record['rows']}"
    wanted_groups = shards.row_group_sizes(record, manifest)
    groups = [shard.metadata.row_group(i).num_rows for i in range(shard.metadata.num_row_groups)]
    if groups != wanted_groups:
        return f"row groups of {groups[:5]} … rows, the manifest says {wanted_groups[:5]} …"
    return ""


def _split_faults(
    split: str, part: dict[str, Any], names: Sequence[str], found: Iterator[_Shard], ledger: _Ledger, bar: Progress
) -> list[str]:
    """Faults of one split's shards, then of their sums if every shard could be read."""
    classes, bins = np.zeros(len(names), np.int64), np.zeros_like(shards.unpack_counts(part["histogram"]))
    faults, whole = [], True
    for _, unit in itertools.groupby(found, key=lambda shard: shard.path.rpartition("-")[0]):
        members = []
        for shard in unit:
            bar.update()
            if shard.fault:
                faults.append(f"{shard.path}: {shard.fault}")
                whole = False
                continue
            classes += shard.classes
            bins += shard.bins
            members.append(shard)
        faults += ledger.enter(split, members)
    if whole:
        differing = np.flatnonzero(classes != np.asarray(part["class_counts"], np.int64))
        for index in differing.tolist():
            says = f"the manifest says {part['class_counts'][index]}"
            faults.append(f"{split}: {classes[index]} jets of {names[index]}, {says}")
        if not np.array_equal(bins, shards.unpack_counts(part["histogram"])):
            faults.append(f"{split}: the histogram in (class, jet_pt, jet_sdmass) is not that of the manifest")
        if classes.sum() != part["rows"]:
            faults.append(f"{split}: {classes.sum()} jets, the manifest says {part['rows']}")
    return faults


class _Ledger:
    """Which entries of the inputs have been met: each may stand in one shard only, that of its split.

    Of a Delphes event, one entry, there may be several jets; all are in one unit.
    """

    def __init__(self, manifest: dict[str, Any]) -> None:
        self.inputs, self.settings, self.set_aside = manifest["inputs"], manifest["shards"], manifest["set_aside"]
        self.events = any(source["kind"] == "delphes" for source in self.inputs)
        self.first = np.concatenate([[0], np.cumsum([source["entries"] for source in self.inputs], dtype=np.int64)])
        self.met = np.zeros(int(self.first[-1]), np.bool_)

    def enter(self, split: str, unit: list[_Shard]) -> list[str]:
        """Enter the shards of one unit and split; returns their faults."""
        faults, entered = [], []
        for shard in unit:
            if not len(shard.file):
                continue
            known = (shard.file >= 0) & (shard.file < len(self.inputs))
            limit = np.diff(self.first)[np.where(known, shard.file, 0)]
            known &= (shard.entry >= 0) & (shard.entry < limit)
            if not known.all():
                faults.append(f"{shard.path}: {np.count_nonzero(~known)} jets come from no entry of the inputs")
                continue
            keys = np.sort(self.first[shard.file] + shard.entry)
            again = self.met[keys]
            if not self.events:
                again[1:] |= keys[1:] == keys[:-1]
            if again.any():
                faults.append(f"{shard.path}: {self._named(keys[again], 'met before')}")
            wrong = self._misplaced(split, shard.file, shard.entry)
            if len(wrong):
                faults.append(f"{shard.path}: {self._named(wrong, f'not of the {split} split')}")
            if self.events:
                entered.append(keys)
            else:
                self.met[keys] = True
        for keys in entered:
            self.met[keys] = True
        return faults

    def missing(self) -> list[str]:
        """One line if jets of the inputs are neither in a shard nor set aside. Cannot be told of Delphes events."""
        if self.events:
            return []
        lost = len(self.met) - int(np.count_nonzero(self.met)) - self.set_aside["entries"]
        lost -= sum(self.set_aside["jets"].values()) + sum(self.set_aside["left_out"].values())
        return [f"{lost} jets of the inputs are neither in a shard nor set aside"] if lost else []

    def _misplaced(
        self, split: str, file: npt.NDArray[np.int64], entry: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        wrong = []
        for index in np.unique(file).tolist():
            own = entry[file == index]
            found = split_of(self.inputs[index]["path"], own, self.settings["val"], self.settings["test"])
            wrong.append(self.first[index] + own[found != shards.SPLITS.index(split)])
        return np.concatenate(wrong)

    def _named(self, keys: npt.NDArray[np.int64], what: str) -> str:
        file = int(np.searchsorted(self.first, keys[0], "right")) - 1
        number = f"{len(keys)} jets are {what}, e.g." if len(keys) > 1 else f"a jet is {what}:"
        return f"{number} entry {keys[0] - self.first[file]} of {self.inputs[file]['path']}"
