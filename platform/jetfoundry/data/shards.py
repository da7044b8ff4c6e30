"""The shard folder: what a finished ingest looks like, how a unit is committed, and how training opens it.

    plan.json                       inputs, settings, units                                   (plan.py)
    train/shard-00012-03.parquet    unit 12, piece 3: zstd, row groups of some 1000 jets, no nulls
    val/…  test/…                   the same for the other splits
    units/00012.json                sidecar of unit 12: its shards (rows, bytes, sha256, class counts), histogram,
                                    what was set aside, seconds. It is written last: the unit exists from then on.
    units/00012.set-aside.jsonl     one line per jet or range set aside: file, entry, reason, field, value
    manifest.json                   all sidecars in one, written when all units are there; `hash` names the content

Shards keep the 54 JetClass-II columns and two of provenance. Floats are byte-stream-split before zstd: 23 % smaller
than plain zstd at the same reading speed (mantissas are noise, exponents are not). Pages carry checksums.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from jetfoundry import files, schema
from jetfoundry.errors import InputError, nearest
from jetfoundry.labels import CLASSES

__all__ = [
    "FORMAT",
    "MASS_EDGES",
    "PT_EDGES",
    "SPLITS",
    "RowGroup",
    "ShardSet",
    "content_hash",
    "gather",
    "histogram",
    "open_shards",
    "pack_counts",
    "read_row_group",
    "shard_path",
    "sidecar_path",
    "unpack_counts",
    "verify",
    "write_shard",
    "writing",
]

FORMAT = 1
"""Version of the folder's layout, stored in the manifest; readers refuse a newer one."""

SPLITS: tuple[str, ...] = ("train", "val", "test")
"""Names of the splits and of their folders."""

PT_EDGES: tuple[float, ...] = (200, 240, 287, 344, 412, 493, 590, 707, 847, 1014, 1215, 1455, 1743, 2087, 2500)
"""Edges of jet_pt [GeV] of the histogram that reweighting uses (JetClass-II card, arXiv:2405.12972)."""

MASS_EDGES: tuple[float, ...] = (20, *range(30, 501, 10))
"""Edges of jet_sdmass [GeV] of the same histogram."""

_SHAPE = (len(CLASSES), len(PT_EDGES) - 1, len(MASS_EDGES) - 1)
_LEVEL = 3  # of zstd; 6 saves one per cent and doubles the time


def shard_path(split: str, unit: int, piece: int) -> str:
    """Path of a shard relative to the folder."""
    return f"{split}/shard-{unit:05d}-{piece:02d}.parquet"


def sidecar_path(folder: Path, unit: int) -> Path:
    """Path of the file that commits a unit."""
    return folder / "units" / f"{unit:05d}.json"


def histogram(label: npt.NDArray[Any], pt: npt.NDArray[Any], sdmass: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Jets (B,) counted by class, jet_pt [GeV] and jet_sdmass [GeV]: (188, 14, 48).

    Bins include their lower edge; a jet outside the edges is not counted.
    """
    i = np.searchsorted(PT_EDGES, pt, "right") - 1
    j = np.searchsorted(MASS_EDGES, sdmass, "right") - 1
    inside = (i >= 0) & (i < _SHAPE[1]) & (j >= 0) & (j < _SHAPE[2])
    flat = np.ravel_multi_index((label[inside], i[inside], j[inside]), _SHAPE)
    return np.bincount(flat, minlength=np.prod(_SHAPE)).reshape(_SHAPE)


def pack_counts(counts: npt.NDArray[np.int64]) -> str:
    """A histogram as text for JSON: base64 of zlib of little-endian int64 in C order. Mostly zeros, so it is short."""
    return base64.b64encode(zlib.compress(counts.astype("<i8").tobytes())).decode()


def unpack_counts(text: str) -> npt.NDArray[np.int64]:
    """The histogram (188, 14, 48) from the text that `pack_counts` made."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i8").reshape(_SHAPE).astype(np.int64)


@functools.cache
def _float_leaves() -> tuple[str, ...]:
    return tuple(c.name + (".list.element" if c.jagged else "") for c in schema.COLUMNS if c.kind == "float32")


@contextlib.contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
    """Turn a refusal of the operating system (no space left, say) into an InputError that names file and reason."""
    try:
        yield
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "OSError")
        msg = f"{what}: cannot write {path}: {error.strerror or error} ({code})"
        raise InputError(msg) from error


def write_shard(folder: Path, relative: str, table: pa.Table, row_group: int) -> dict[str, Any]:
    """Write one shard atomically; return what the sidecar says of it.

    Raises InputError with the operating system's reason if it cannot be written (no space left, say).
    """
    path = folder / relative
    with writing(f"shard {relative}", path), files.committed(path) as temporary:
        pq.write_table(
            table,
            temporary,
            row_group_size=row_group,
            compression="zstd",
            compression_level=_LEVEL,
            use_dictionary=False,
            use_byte_stream_split=list(_float_leaves()),
            write_page_checksum=True,
        )
        size, digest = temporary.stat().st_size, files.sha256_file(temporary)
    label = table.column("jet_label").to_numpy()
    return {
        "path": relative,
        "split": relative.partition("/")[0],
        "rows": table.num_rows,
        "bytes": size,
        "sha256": digest,
        "class_counts": np.bincount(label, minlength=len(CLASSES)).tolist(),
    }


def gather(split: str, sidecars: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The manifest's record of one split: rows, class_counts (188), histogram (packed), shards."""
    records = [shard for sidecar in sidecars for shard in sidecar["shards"] if shard["split"] == split]
    counts, bins = np.zeros(len(CLASSES), np.int64), np.zeros(_SHAPE, np.int64)
    for record in records:
        counts += np.asarray(record["class_counts"])
    for sidecar in sidecars:
        bins += unpack_counts(sidecar["histograms"][split])
    return {
        "rows": sum(record["rows"] for record in records),
        "class_counts": counts.tolist(),
        "histogram": pack_counts(bins),
        "shards": [{key: record[key] for key in ("path", "rows", "bytes", "sha256")} for record in records],
    }


def content_hash(digests: Iterable[str]) -> str:
    """Name of the content of a set of shards: SHA-256 over their sorted SHA-256s."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, slots=True)
class RowGroup:
    """Row group number `index` of the shard at `path`."""

    path: Path
    index: int
    rows: int


@dataclasses.dataclass(frozen=True)
class ShardSet:
    """One split of a shard folder.

    `class_counts` (188,) and `histogram` (188, 14, 48), see `histogram`, count its jets; `manifest_hash` names the
    content of the whole folder; `sample` says what the jets are and stands on plots.
    """

    folder: Path
    split: str
    sample: str
    row_groups: list[RowGroup]
    class_counts: npt.NDArray[np.int64]
    histogram: npt.NDArray[np.int64]
    manifest_hash: str

    @property
    def rows(self) -> int:
        """Number of jets."""
        return sum(group.rows for group in self.row_groups)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.exists():
        state = "its ingest is not finished, run it again" if (folder / "plan.json").exists() else "no shard folder"
        msg = f"{path}: no manifest: {state}"
        raise InputError(msg)
    manifest: dict[str, Any] = files.read_json(path)
    if manifest.get("format", 0) > FORMAT:
        msg = f"{path}: format {manifest['format']}, this version reads up to {FORMAT}"
        raise InputError(msg)
    return manifest


def open_shards(folder: str | Path, split: str) -> ShardSet:
    """Open `train`, `val` or `test` of a shard folder. Reads the manifest only, not a single shard."""
    root = Path(folder)
    manifest = _manifest(root)
    if split not in manifest["splits"]:
        msg = f"{root}: no split {split!r}; {nearest(split, manifest['splits'])}"
        raise InputError(msg)
    part, size = manifest["splits"][split], manifest["row_group"]
    groups = [
        RowGroup(root / shard["path"], index, min(size, shard["rows"] - index * size))
        for shard in part["shards"]
        for index in range(-(-shard["rows"] // size))
    ]
    counts = np.asarray(part["class_counts"], np.int64)
    return ShardSet(root, split, manifest["sample"], groups, counts, unpack_counts(part["histogram"]), manifest["hash"])


def read_row_group(group: RowGroup, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one row group (None = all columns). InputError if the shard is missing or its pages are damaged."""
    try:
        with pq.ParquetFile(group.path, page_checksum_verification=True) as shard:
            table = shard.read_row_group(group.index, columns=columns, use_threads=False)
            names = shard.schema_arrow.names
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
        msg = f"{group.path}, row group {group.index}: cannot read: {reason}"
        raise InputError(msg) from error
    for name in columns or ():
        if name not in names:
            msg = f"{group.path}: no column {name!r}; {nearest(name, names)}"
            raise InputError(msg)
    return table


def verify(folder: str | Path) -> list[str]:
    """Compare every shard with the manifest; one line per fault, none if all is well.

    Found: a missing shard, another size, checksum or number of rows, and shards that the manifest does not know.
    """
    root = Path(folder)
    manifest = _manifest(root)
    shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        faults = [fault for fault in pool.map(lambda shard: _shard_fault(root, shard), shards) if fault]
    known = {shard["path"] for shard in shards}
    present = {path.relative_to(root).as_posix() for split in SPLITS for path in (root / split).glob("*.parquet")}
    faults += [f"{path}: not in the manifest" for path in sorted(present - known)]
    if content_hash(shard["sha256"] for shard in shards) != manifest["hash"]:
        faults.append("manifest.json: its hash does not belong to its list of shards")
    return faults


def _shard_fault(root: Path, shard: dict[str, Any]) -> str:
    path, name = root / shard["path"], shard["path"]
    if not path.exists():
        return f"{name}: missing"
    if path.stat().st_size != shard["bytes"]:
        return f"{name}: {path.stat().st_size} bytes, the manifest says {shard['bytes']}"
    if files.sha256_file(path) != shard["sha256"]:
        return f"{name}: its SHA-256 is not that of the manifest"
    rows = pq.read_metadata(path).num_rows
    return "" if rows == shard["rows"] else f"{name}: {rows} rows, the manifest says {shard['rows']}"
