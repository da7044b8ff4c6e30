"""Jets as a Ray Data set, straight from ROOT or Parquet: for jobs that work without shards.

Each read task is a range of whole clusters of one file and a generator: it yields one small block at a time, so
Ray's back-pressure bounds the memory. A column selection (`ds.select_columns`) reaches the branches that are read.
A damaged range ends the data set with an error; to set such ranges aside, ingest first.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from jetfoundry.data.inventory import Inventory, Source, expand, take_inventory
from jetfoundry.data.layouts import JETCLASS2, Layout
from jetfoundry.data.root import PROVENANCE, jet_schema, open_jets
from jetfoundry.errors import InputError

__all__ = ["JetDatasource", "cut", "read_jets"]

_PROVENANCE_NAMES = tuple(field.name for field in PROVENANCE)


class JetDatasource(Datasource):
    """Read tasks over entry ranges of the files of an inventory.

    `columns`: those of `layout` to read (None = all); `entries`: aim for the jets of one read task, `block`: jets of
    one yielded table. Blocks have `jet_schema(columns, layout)`; `source_file` is an index into `inventory.sources`.
    """

    def __init__(
        self,
        inventory: Inventory,
        columns: Sequence[str] | None,
        *,
        entries: int = 5000,
        block: int = 1000,
        layout: Layout = JETCLASS2,
    ) -> None:
        super().__init__()
        self._projection_map = None  # read by Ray's projection push-down, which does not set it
        self._schema = jet_schema(columns, layout)
        self._block, self._layout = block, layout
        self._ranges = [
            (index, source, start, stop)
            for index, source in enumerate(inventory.sources)
            for start, stop in cut(source.clusters, entries)
        ]

    def get_name(self) -> str:
        return "Jets"

    def supports_projection_pushdown(self) -> bool:
        return True

    def estimate_inmemory_data_size(self) -> int:
        return sum(_size(source, stop - start) for _, source, start, stop in self._ranges)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task per range; `parallelism` is only a hint and not used."""
        names = self._get_data_columns()
        wanted = self._schema.names if names is None else [name for name in self._schema.names if name in names]
        return [
            ReadTask(
                _Read(source, index, start, stop, tuple(wanted), self._block, self._layout),
                BlockMetadata(
                    num_rows=stop - start,
                    size_bytes=_size(source, stop - start),
                    input_files=[source.path],
                    exec_stats=None,
                ),
                schema=pa.schema([self._schema.field(name) for name in wanted]),
                per_task_row_limit=per_task_row_limit,
            )
            for index, source, start, stop in self._ranges
        ]


def cut(clusters: Sequence[int], aim: int) -> list[tuple[int, int]]:
    """Cut a file into ranges of about `aim` entries (at most 2.5 times as many), at cluster boundaries if possible.

    A cluster much longer than `aim` is divided evenly.

    >>> cut([0, 10, 20, 30], 20), cut([0, 10], 4)
    ([(0, 20), (20, 30)], [(0, 5), (5, 10)])
    """
    edges = np.asarray(clusters, np.int64)
    parts = np.maximum(np.rint(np.diff(edges) / aim), 1).astype(np.int64)
    within = np.concatenate([np.arange(p) / p for p in parts]) if parts.size else np.empty(0)
    fine = np.repeat(edges[:-1], parts) + (within * np.repeat(np.diff(edges), parts)).astype(np.int64)
    _, first = np.unique(fine // aim, return_index=True)
    bounds = [*fine[first].tolist(), int(edges[-1])]
    return list(itertools.pairwise(bounds))


def _size(source: Source, jets: int) -> int:
    return source.bytes_per_jet * jets


@dataclasses.dataclass(frozen=True)
class _Read:
    source: Source
    index: int
    start: int
    stop: int
    names: tuple[str, ...]
    block: int
    layout: Layout

    def __call__(self) -> Iterable[pa.Table]:
        return self._tables()

    def _tables(self) -> Iterator[pa.Table]:
        columns = [name for name in self.names if name not in _PROVENANCE_NAMES]
        how: dict[str, Any] = {"tree": self.source.tree, "file_index": self.index, "layout": self.layout}
        with open_jets(self.source.path, **how) as reader:
            # Read a whole range of clusters at once, hand it out in small blocks: a basket is decoded once.
            table = reader.read(self.start, self.stop, columns).select(list(self.names))
        for offset in range(0, table.num_rows, self.block):
            yield table.slice(offset, self.block)


def read_jets(
    paths: str | Sequence[str],
    columns: Sequence[str] | None = None,
    *,
    tree: str = "",
    entries: int = 5000,
    block: int = 1000,
) -> ray.data.Dataset:
    """A Ray data set of jets from ROOT or Parquet files, in Arrow blocks of `jet_schema(columns)`.

    `paths` as in `inventory.expand`. Raises InputError if any file cannot be used, with the reason.
    """
    inventory = take_inventory(expand([paths] if isinstance(paths, str) else paths), tree=tree, columns=columns)
    if inventory.set_aside:
        raise InputError(inventory.set_aside[0].reason)
    source = JetDatasource(inventory, columns, entries=entries, block=block)
    tasks = len(source.get_read_tasks(1))
    return ray.data.read_datasource(source, override_num_blocks=tasks)
