"""The `ray` feed: windows are made by read tasks of Ray Data, wherever the cluster has free CPUs.

Each training worker runs a Ray data set of its own windows. A read task is one window and a generator: it runs the same
function as the `direct` feed and yields a block per batch, so Ray's back-pressure bounds what is made ahead. Blocks
come back in the order of the windows (`preserve_order`), whichever is finished first.

A batch travels as one row: shapes as text, labels, and all its tensors in one buffer. On arrival they are views of
Ray's object memory, without a copy, so nobody may write into them. A data set ends after some windows and the next
begins, since those of Ray are finite.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import operator
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import ray.exceptions
import torch
from ray.data import DataContext
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from jetfoundry import ray_session
from jetfoundry.loading.batch import Batch, MicroBatch
from jetfoundry.loading.window import BatchMaker, Window
from jetfoundry.memory import keep_memory

__all__ = ["decode", "encode", "made_by_ray"]

_WINDOWS = 256  # of one data set; starting one takes some tenths of a second
_BLOCK = 8 * 2**20  # bytes that a task gathers before it hands batches on
_NONE: tuple[int, Iterator[Any]] = (-1, iter(()))


def made_by_ray(maker: BatchMaker, windows: Iterator[Window], tasks: int) -> Iterator[Iterator[Batch]]:
    """The batches of each window, in order; `tasks` windows are made at the same time. Ray must be running.

    Errors of ours that end a task are raised as themselves.
    """
    while part := list(itertools.islice(windows, _WINDOWS)):
        with contextlib.closing(_made(maker, part, tasks)) as made:
            groups = itertools.groupby(made, key=operator.itemgetter(0))
            number, group = next(groups, _NONE)
            for index in range(len(part)):
                if index != number:  # a window without a batch
                    yield iter(())
                    continue
                yield (batch for _, batch in group)
                number, group = next(groups, _NONE)


def _made(maker: BatchMaker, windows: Sequence[Window], tasks: int) -> Generator[tuple[int, Batch], None, None]:
    """(number of the window, batch) one after the other."""
    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.target_max_block_size = _BLOCK
    context.memory_usage_poll_interval_s = None  # else a thread of every task adds up /proc/self/smaps each second
    with DataContext.current(context):
        source = _Windows(maker, windows)
        blocks = ray.data.read_datasource(
            source, override_num_blocks=len(windows), concurrency=min(tasks, len(windows))
        )
    try:
        for table in blocks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            for row in range(table.num_rows):
                yield table["window"][row].as_py(), decode(table, row)
    except ray.exceptions.RayError as error:
        ray_session.raise_own(getattr(error, "cause", error))  # Ray's own class is a JetFoundryError too, less clear
        raise


class _Windows(Datasource):
    def __init__(self, maker: BatchMaker, windows: Sequence[Window]) -> None:
        super().__init__()
        self._maker, self._windows = maker, windows

    def get_name(self) -> str:
        return "Windows"

    def estimate_inmemory_data_size(self) -> None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task per window; `parallelism` is only a hint and not used."""
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        tasks = (_Task(self._maker, window, number) for number, window in enumerate(self._windows))
        return [ReadTask(task, unknown, per_task_row_limit=per_task_row_limit) for task in tasks]


@dataclasses.dataclass(frozen=True)
class _Task:
    maker: BatchMaker
    window: Window
    number: int

    def __call__(self) -> Iterable[pa.Table]:
        keep_memory()
        return (encode(batch, self.number) for batch in self.maker(self.window))


def encode(batch: Batch, window: int = 0) -> pa.Table:
    """A batch as a table of one row: `window`, `views` (JSON: by micro-batch the size of its memory, and which part is
    which input), `labels`, `rows`, `ids` (none: empty), and `values`, the memory of all micro-batches, one after the
    other."""
    pieces, views = [], []
    for micro in batch.micro:
        at, begin = {}, 0
        for place, memory in micro.memory().items():
            at[place] = begin
            pieces.append(memory.numpy())
            begin += len(memory)
        views.append((begin, {
            name: (*values.shape, *values.stride(), at[values.untyped_storage().data_ptr()] + values.storage_offset())
            for name, values in micro.inputs.items()
        }))  # fmt: skip
    labels = np.concatenate([micro.labels.numpy() for micro in batch.micro])
    ids = np.empty(0, np.int64) if batch.ids is None else batch.ids
    columns = [[window], [json.dumps(views)], *map(_list, (labels, batch.rows, ids, np.concatenate(pieces)))]
    return pa.table(columns, names=["window", "views", "labels", "rows", "ids", "values"])


def _list(values: Any) -> pa.LargeListArray:
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)]), pa.array(values))


def decode(table: pa.Table, row: int = 0) -> Batch:
    """The batch in a row of tables that `encode` made."""
    values, labels = table["values"][row].values, _tensor(table["labels"][row].values)
    micro, first, start = [], 0, 0
    for size, views in json.loads(table["views"][row].as_py()):
        inputs, memory = {}, _tensor(values[start : start + size])  # memory of its own: it travels to a GPU as one
        start += size
        for name, (*view, begin) in views.items():
            half = len(view) // 2
            inputs[name] = memory.as_strided(view[:half], view[half:], begin)
        jets = len(next(iter(inputs.values())))
        micro.append(MicroBatch(inputs, labels[first : first + jets]))
        first += jets
    rows, ids = (table[name][row].values.to_numpy() for name in ("rows", "ids"))
    return Batch(tuple(micro), first, rows, ids=ids if len(ids) else None)


def _tensor(values: pa.Array) -> torch.Tensor:
    """The same memory, Ray's: it stays while the tensor lives, and nobody may write into it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(values.to_numpy())
