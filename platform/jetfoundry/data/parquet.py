"""Jets from Parquet files, JetClass-II's own among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jetfoundry import schema
from jetfoundry.data.reader import FlatColumn, JetReader, cast, decoding

__all__ = ["ParquetReader"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParquetReader(JetReader):
    """An open Parquet file; `handle` is a `pyarrow.parquet.ParquetFile`."""

    @property
    def names(self) -> list[str]:
        return list(self.handle.schema_arrow.names)

    @property
    def entries(self) -> int:
        return int(self.handle.metadata.num_rows)

    def clusters(self) -> npt.NDArray[np.int64]:
        metadata = self.handle.metadata
        rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        return np.unique(np.concatenate([[0], np.cumsum(rows, dtype=np.int64)]))

    def probe(self, columns: Sequence[str] | None = None, *, round_doubles: bool = False) -> pa.Table:
        # A row group may hold the whole file: take its first pages only.
        wanted = [(branch, column) for column in self.layout.select(columns) for branch in column.branches]
        with decoding(f"{self.path}, first row group"):
            batch = next(self.handle.iter_batches(16, columns=[name for name, _ in wanted], use_threads=False))
        for name, column in wanted:
            _, values = self._buffers(column, pa.chunked_array([batch.column(name)]), copy=False)
            cast(values, column, f"{self.path}, {column.name}", round_doubles)
        return pa.Table.from_batches([batch])

    def _flat(self, branches: Sequence[tuple[str, schema.Column]], start: int, stop: int) -> Iterable[FlatColumn]:
        edges = self.clusters()
        first = int(np.searchsorted(edges, start, "right")) - 1
        last = int(np.searchsorted(edges, stop, "left"))
        groups = list(range(first, max(last, first + 1)))
        # Published files hold 100,000 jets in one row group: column by column, only one is ever decoded whole.
        for name, column in branches:
            with decoding(f"{self.path}, entries {start}-{stop}, {column.name}"):
                table = self.handle.read_row_groups(groups, columns=[name], use_threads=False)
            part = table.column(0).slice(start - int(edges[first]), stop - start)
            yield self._buffers(column, part, copy=table.num_rows > stop - start)

    def _buffers(self, column: schema.Column, array: pa.ChunkedArray, *, copy: bool) -> FlatColumn:
        found, offsets = str(array.type), None
        flat = array.combine_chunks()
        if flat.null_count:
            raise self._wrong_type(column, f"{flat.null_count} nulls")
        if column.jagged:
            if not (pa.types.is_list(flat.type) or pa.types.is_large_list(flat.type)):
                raise self._wrong_type(column, found)
            offsets = flat.offsets.to_numpy()
            first, last = int(offsets[0]), int(offsets[-1])
            offsets, flat = offsets - first, flat.values.slice(first, last - first)
        is_number = pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type) or pa.types.is_boolean(flat.type)
        if not is_number or flat.null_count:
            raise self._wrong_type(column, found if not is_number else f"{flat.null_count} nulls")
        values = flat.to_numpy(zero_copy_only=False)
        return offsets, values.copy() if copy else values  # a slice would keep the whole row group alive
