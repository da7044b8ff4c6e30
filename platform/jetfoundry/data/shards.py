"""The shard folder: what a finished ingest looks like, how a unit is committed, and how training opens it.

    plan.json                       inputs, settings, units                                   (plan.py)
    train/shard-00012-03.parquet    unit 12, piece 3: row groups of 1,000 to 4,000 jets, no nulls
    val/…  test/…                   the same for the other splits
    units/00012.json                sidecar of unit 12: its shards (rows, bytes, xxh128, class counts), histogram,
                                    what was set aside, seconds. It is written last: the unit exists from then on.
    units/00012.set-aside.jsonl     one line per jet or range set aside: file, entry, reason, field, value
    manifest.json                   all sidecars in one, written when all units are there; `hash` names the content

Shards keep the columns of the layout (54 for JetClass-II) and two of provenance. Pages carry checksums. LZ4 is the
default since it takes least CPU time in writing and reading; zstd after byte-stream split (mantissas are noise,
exponents are not) is a sixth smaller: `shards.compression`, and the table in docs/benchmarks.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import errno
import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from jetfoundry import files
from jetfoundry.data.parquet_writer import Rows, write_parquet
from jetfoundry.errors import InputError, nearest
from jetfoundry.labels import CLASSES

__all__ = [
    "FORMAT",
    "MANIFEST_KEYS",
    "MASS_EDGES",
    "PT_EDGES",
    "SPLITS",
    "RowGroup",
    "ShardSet",
    "content_hash",
    "digest",
    "gather",
    "histogram",
    "open_shards",
    "pack_counts",
    "read_manifest",
    "read_row_group",
    "row_group_sizes",
    "shard_path",
    "sidecar_path",
    "unpack_counts",
    "write_shard",
    "writing",
]

FORMAT = 2
"""Version of the folder's layout, stored in the manifest; readers refuse a newer one."""

_RECORD = ("path", "rows", "row_group", "bytes", "xxh128", "sha256")

MANIFEST_KEYS: tuple[str, ...] = ("sample", "hash", "row_group", "splits")
"""What every manifest holds besides its format; the rest is for `verify` and for people."""

SPLITS: tuple[str, ...] = ("train", "val", "test")
"""Names of the splits and of their folders."""

PT_EDGES: tuple[float, ...] = (200, 240, 287, 344, 412, 493, 590, 707, 847, 1014, 1215, 1455, 1743, 2087, 2500)
"""Edges of jet_pt [GeV] of the histogram that reweighting uses (JetClass-II card, arXiv:2405.12972)."""

MASS_EDGES: tuple[float, ...] = (20, *range(30, 501, 10))
"""Edges of jet_sdmass [GeV] of the same histogram."""

_BINS = (len(PT_EDGES) - 1, len(MASS_EDGES) - 1)


def shard_path(split: str, unit: int, piece: int) -> str:
    """Path of a shard relative to the folder."""
    return f"{split}/shard-{unit:05d}-{piece:02d}.parquet"


def sidecar_path(folder: Path, unit: int) -> Path:
    """Path of the file that commits a unit."""
    return folder / "units" / f"{unit:05d}.json"


def histogram(
    label: npt.NDArray[Any], pt: npt.NDArray[Any], sdmass: npt.NDArray[Any], classes: int = len(CLASSES)
) -> npt.NDArray[np.int64]:
    """Jets (B,) counted by class, jet_pt [GeV] and jet_sdmass [GeV]: (`classes`, 14, 48).

    Bins include their lower edge; a jet outside the edges is not counted.
    """
    i = np.searchsorted(PT_EDGES, pt, "right") - 1
    j = np.searchsorted(MASS_EDGES, sdmass, "right") - 1
    inside = (i >= 0) & (i < _BINS[0]) & (j >= 0) & (j < _BINS[1])
    flat = np.ravel_multi_index((label[inside], i[inside], j[inside]), (classes, *_BINS))
    return np.bincount(flat, minlength=classes * _BINS[0] * _BINS[1]).reshape(classes, *_BINS)


def pack_counts(counts: npt.NDArray[np.int64]) -> str:
    """A histogram as text for JSON: base64 of zlib of little-endian int64 in C order. Mostly zeros, so it is short."""
    return base64.b64encode(zlib.compress(counts.astype("<i8").tobytes(), 1)).decode()


def unpack_counts(text: str) -> npt.NDArray[np.int64]:
    """The histogram (classes, 14, 48) from the text that `pack_counts` made."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i8").reshape(-1, *_BINS).astype(np.int64)


@contextlib.contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
    """Turn a refusal of the operating system (no space left, say) into an InputError that names file and reason."""
    try:
        yield
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "OSError")
        msg = f"{what}: cannot write {path}: {error.strerror or error} ({code})"
        raise InputError(msg) from error


def write_shard(
    folder: Path, relative: str, table: Rows | pa.Table, row_group: int, classes: int = len(CLASSES), codec: str = "lz4"
) -> dict[str, Any]:
    """Write one shard atomically, in equal row groups of about `row_group` jets; return what the sidecar says of it.
    `classes`: length of its class_counts.

    Raises InputError with the operating system's reason if it cannot be written (no space left, say).
    """
    path = folder / relative
    row_group = max(1, -(-table.num_rows // max(1, round(table.num_rows / row_group))))
    with writing(f"shard {relative}", path), files.committed(path) as temporary:
        size, checksum = write_parquet(temporary, table, row_group, codec, split_floats=codec == "zstd")
    label = np.asarray(table.column("jet_label"))
    return {
        "path": relative,
        "split": relative.partition("/")[0],
        "rows": table.num_rows,
        "row_group": row_group,
        "bytes": size,
        "xxh128": checksum,
        "class_counts": np.bincount(label, minlength=classes).tolist(),
    }


def gather(split: str, sidecars: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The manifest's record of one split: rows, class_counts (classes), histogram (packed), shards."""
    records = [shard for sidecar in sidecars for shard in sidecar["shards"] if shard["split"] == split]
    bins = np.sum([unpack_counts(sidecar["histograms"][split]) for sidecar in sidecars], axis=0)
    counts = np.zeros(len(bins), np.int64)
    for record in records:
        counts += np.asarray(record["class_counts"])
    return {
        "rows": sum(record["rows"] for record in records),
        "class_counts": counts.tolist(),
        "histogram": pack_counts(bins),
        "shards": [{key: record[key] for key in _RECORD if key in record} for record in records],
    }


def digest(record: dict[str, Any]) -> str:
    """Checksum of a shard, by its record: XXH128, which costs a tenth of the SHA-256 of older folders."""
    return str(record.get("xxh128") or record["sha256"])


def content_hash(digests: Iterable[str]) -> str:
    """Name of the content of a set of shards: SHA-256 over their sorted checksums."""
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

    `class_counts` (classes,) and `histogram` (classes, 14, 48), see `histogram`, count its jets; `manifest_hash` names
    the content of the whole folder; `sample` says what the jets are and stands on plots. `classes` are the names that
    jet_label counts, `columns` those of the shards.
    """

    folder: Path
    split: str
    sample: str
    row_groups: list[RowGroup]
    class_counts: npt.NDArray[np.int64]
    histogram: npt.NDArray[np.int64]
    manifest_hash: str
    classes: tuple[str, ...] = CLASSES
    columns: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Number of jets."""
        return sum(group.rows for group in self.row_groups)


def read_manifest(folder: Path, needed: Sequence[str] = MANIFEST_KEYS) -> dict[str, Any]:
    """The manifest of a finished ingest; InputError if there is none, or none that this version can read.

    `needed` are the keys that must be there.
    """
    path = folder / "manifest.json"
    if not path.exists():
        state = "its ingest is not finished, run it again" if (folder / "plan.json").exists() else "no shard folder"
        msg = f"{path}: no manifest: {state}"
        raise InputError(msg)
    manifest = files.read_json(path)
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        msg = f"{path}: not the manifest of a shard folder: wanted a format number, got {str(version)[:40]}"
        raise InputError(msg)
    if not 1 <= version <= FORMAT:
        msg = f"{path}: format {version}, this version reads up to {FORMAT}"
        raise InputError(msg)
    lacking = [key for key in needed if key not in manifest]
    if lacking:
        msg = f"{path}: format {version}, but without {', '.join(lacking)}; damaged, or written by another version"
        raise InputError(msg)
    return dict(manifest)


def open_shards(folder: str | Path, split: str) -> ShardSet:
    """Open `train`, `val` or `test` of a shard folder. Reads the manifest only, not a single shard."""
    root = files.place(folder)
    manifest = read_manifest(root)
    if split not in manifest["splits"]:
        msg = f"{root}: no split {split!r}; {nearest(split, manifest['splits'])}"
        raise InputError(msg)
    part = manifest["splits"][split]
    groups = [
        RowGroup(path, index, rows)
        for path, shard in ((root / shard["path"], shard) for shard in part["shards"])
        for index, rows in enumerate(row_group_sizes(shard, manifest))
    ]
    counts = np.asarray(part["class_counts"], np.int64)
    return ShardSet(
        folder=root,
        split=split,
        sample=manifest["sample"],
        row_groups=groups,
        class_counts=counts,
        histogram=unpack_counts(part["histogram"]),
        manifest_hash=manifest["hash"],
        classes=tuple(manifest.get("classes", CLASSES)),  # not there in manifests of older versions
        columns=tuple(manifest.get("columns", ())),
    )


def row_group_sizes(shard: dict[str, Any], manifest: dict[str, Any]) -> list[int]:
    """Rows of each row group of a shard, by its record in the manifest."""
    size = shard.get("row_group", manifest["row_group"])  # one for all shards in manifests of older versions
    return [min(size, shard["rows"] - first) for first in range(0, shard["rows"], size)]


def read_row_group(group: RowGroup, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one row group (None = all columns). InputError if the shard is missing or its pages are damaged."""
    try:
        # Behind a URL all that is wanted of a row group is asked for at once.
        how = {"page_checksum_verification": True, "pre_buffer": files.is_remote(group.path)}
        with files.opened(group.path) as source, pq.ParquetFile(source, **how) as shard:
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
