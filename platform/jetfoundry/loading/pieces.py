"""What the loader reads: pieces of some thousand jets, row groups of shards or entry ranges of the files themselves.

`open_jet_set` gives one split of a shard folder (`shards.ShardSet`), or of ROOT and Parquet files that were never
ingested (`JetFiles`). Both have pieces, counts of the classes and a hash that names the content, and the same jets are
in the same split, since that follows from file name and entry. Straight from ROOT costs more at every pass (a cluster
is decoded for few of its 54 branches, and mixing is that of the window only); it is for a first look at new files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jetfoundry import config, files, remote
from jetfoundry.data.inventory import Source, expand, take_inventory
from jetfoundry.data.layouts import JETCLASS2, Layout
from jetfoundry.data.pages import read_columns
from jetfoundry.data.plan import ShardConfig, split_of
from jetfoundry.data.root import open_jets
from jetfoundry.data.shards import SPLITS, RowGroup, ShardSet, open_shards, read_row_group
from jetfoundry.errors import ConfigError, InputError, nearest
from jetfoundry.features.block import Jets
from jetfoundry.labels import CLASSES, LabelScheme

__all__ = [
    "EntryRange",
    "JetFiles",
    "JetSet",
    "Piece",
    "check_scheme",
    "is_shard_folder",
    "open_jet_set",
    "read_flat",
    "read_pieces",
]

_COUNT_BY_RAY = 32  # files from which on labels are counted by Ray tasks
_PROVENANCE = ("source_file", "source_entry")  # columns that no file has
_PIECE = (1000, 8000)  # entries of a range, at least and at most: one cluster, which is decoded as a whole


@dataclasses.dataclass(frozen=True, slots=True)
class EntryRange:
    """Those of the entries `start <= entry < stop` of a file that belong to `split`, by the fractions of `shards`."""

    path: str
    tree: str
    file: int
    start: int
    stop: int
    split: str
    fractions: tuple[float, float]
    layout: Layout = JETCLASS2

    @property
    def rows(self) -> int:
        """Entries of all splits."""
        return self.stop - self.start


Piece: TypeAlias = RowGroup | EntryRange


@dataclasses.dataclass(frozen=True)
class JetFiles:
    """One split of files as they are: the same facts as of a `ShardSet`, but no histogram, and `class_counts` are zeros
    where nobody asked for them."""

    folder: str
    split: str
    sample: str
    row_groups: list[EntryRange]
    class_counts: npt.NDArray[np.int64]
    manifest_hash: str
    classes: tuple[str, ...] = CLASSES

    @property
    def rows(self) -> int:
        """Number of jets, where they were not counted as the split's fraction has it."""
        counted = int(self.class_counts.sum())
        val, test = self.row_groups[0].fractions
        share = {"train": 1 - val - test, "val": val, "test": test}[self.split]
        return counted or round(share * sum(piece.rows for piece in self.row_groups))


JetSet: TypeAlias = ShardSet | JetFiles


def is_shard_folder(data: str) -> bool:
    """Whether `data` is, or should be, a folder made by an ingest rather than files of jets."""
    if remote.is_url(data) and _is_pattern(data):
        return False  # of which no place can be made
    path = files.place(data)
    if any((path / name).exists() for name in ("manifest.json", "plan.json")):
        return True
    return not (path.is_file() or _is_pattern(data) or any(path.glob("*.root")) or any(path.glob("*.parquet")))


def _is_pattern(data: str) -> bool:
    """Whether it has signs of a pattern, a list or a group; the colon of a URL's protocol is none."""
    return any(sign in data.replace("://", "", 1) for sign in "*?[ ,:")


def open_jet_set(
    data: str,
    split: str,
    *,
    columns: Sequence[str] | None = None,
    count: bool = True,
    tree: str = "",
    layout: Layout = JETCLASS2,
) -> JetSet:
    """One split of a shard folder, or of files given as paths, patterns and URLs, as `inventory.expand` takes them.

    Of files, every one is opened, must have `columns` of `layout`, and with `count` has its labels read. Raises
    InputError.
    """
    if is_shard_folder(data):
        return open_shards(data, split)
    if split not in SPLITS:
        msg = f"{data}: no split {split!r}; {nearest(split, SPLITS)}"
        raise InputError(msg)
    from jetfoundry.loading.datasource import cut  # needs Ray Data

    stored = None if columns is None else [name for name in columns if name not in _PROVENANCE]
    inventory = take_inventory(expand([data]), tree=tree, columns=stored, layout=layout)
    if inventory.set_aside:
        raise InputError(inventory.set_aside[0].reason)
    sources = inventory.sources
    usual = ShardConfig()
    pieces = [
        EntryRange(source.path, source.tree, index, start, stop, split, (usual.val, usual.test), layout)
        for index, source in enumerate(sources)
        for start, stop in cut(source.clusters, _aim(source))
    ]
    stamps = config.fingerprint({source.path: [source.size, source.mtime_ns, source.tree] for source in sources})
    samples = " + ".join(sorted({source.sample for source in sources if source.sample}))
    counts = _count(sources, split, usual, layout) if count else np.zeros(len(layout.classes), np.int64)
    return JetFiles(data, split, samples, pieces, counts, stamps, layout.classes)


def check_scheme(jets: JetSet, scheme: LabelScheme | None) -> None:
    """ConfigError if a label scheme, which maps the 188 classes of JetClass-II, meets jets of other classes."""
    if scheme is not None and tuple(jets.classes) != CLASSES:
        shown = ", ".join(jets.classes[:3]) + (", …" if len(jets.classes) > 3 else "")
        msg = f"{jets.folder}: its jets are of {len(jets.classes)} classes ({shown}), the label scheme {scheme.name} "
        msg += f"maps the {len(CLASSES)} of JetClass-II; set labels='' and name them in the data YAML, labels: {{type: "
        msg += "simple, value: […]}, each a formula like jet_label == 0"
        raise ConfigError(msg)


def read_flat(pieces: Sequence[Piece], columns: Sequence[str]) -> Jets:
    """What `read_pieces` reads, in flat arrays at once if all of it lies in shards of ours (data/pages.py)."""
    groups = [piece for piece in pieces if isinstance(piece, RowGroup)]
    flat = read_columns(groups, columns) if len(groups) == len(pieces) else None
    return read_pieces(pieces, columns) if flat is None else flat


def read_pieces(pieces: Sequence[Piece], columns: Sequence[str]) -> pa.Table:
    """The jets of all pieces, in their order. Raises InputError if one is missing or damaged."""
    return pa.concat_tables([_read(piece, columns) for piece in pieces])


def _read(piece: Piece, columns: Sequence[str]) -> pa.Table:
    if isinstance(piece, RowGroup):
        return read_row_group(piece, columns)
    stored = [name for name in columns if name not in _PROVENANCE]
    with open_jets(piece.path, tree=piece.tree, file_index=piece.file, layout=piece.layout) as reader:
        table = reader.read(piece.start, piece.stop, stored)
    splits = split_of(piece.path, np.arange(piece.start, piece.stop), *piece.fractions)
    return table.select(list(columns)).filter(pa.array(splits == SPLITS.index(piece.split)))


def _aim(source: Source) -> int:
    cluster = source.entries // (len(source.clusters) - 1)
    return min(max(cluster, _PIECE[0]), _PIECE[1])


def _count(sources: Sequence[Source], split: str, usual: ShardConfig, layout: Layout) -> npt.NDArray[np.int64]:
    """Jets of each class (C,) of a split: one pass over the labels of all files."""
    number = len(layout.classes)

    def count(source: Source) -> npt.NDArray[np.int64]:
        with open_jets(source.path, tree=source.tree, layout=layout) as reader:
            labels = reader.read(0, source.entries, ["jet_label"]).column("jet_label").to_numpy()
        wrong = np.flatnonzero((labels < 0) | (labels >= number))
        if len(wrong):
            msg = (
                f"{source.path}, entry {wrong[0]}: jet_label {labels[wrong[0]]}, wanted 0-{number - 1}; an ingest sets "
            )
            msg += "such jets aside"
            raise InputError(msg)
        chosen = split_of(source.path, np.arange(source.entries), usual.val, usual.test) == SPLITS.index(split)
        return np.bincount(labels[chosen], minlength=number)

    counts = np.zeros(number, np.int64)
    if len(sources) < _COUNT_BY_RAY:
        return sum(map(count, sources), counts)
    import ray.data

    rows = ray.data.from_items([{"number": index} for index in range(len(sources))], override_num_blocks=len(sources))
    found = rows.map(lambda row: {"counts": count(sources[row["number"]])})
    return sum((row["counts"] for row in found.iter_rows()), counts)
