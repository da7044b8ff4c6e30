"""The `ray` feed: windows are made by read tasks of Ray Data, wherever the cluster has free CPUs.

Each training worker runs a Ray data set of its own windows. A read task is one window and a generator: it runs the same
function as the `direct` feed and yields a block per batch, so Ray's back-pressure bounds what is made ahead. Blocks
come back in the order of the windows (`preserve_order`), whichever is finished first.

A batch travels as one row: shapes as text, labels, and all its tensors in one buffer, which is copied once on arrival
(Arrow's memory is read-only). A data set ends after some windows and the next begins, since those of Ray are finite.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import operator
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
    with DataContext.current(context):
        source = _Windows(maker, windows)
        blocks = ray.data.read_datasource(source, override_num_blocks=len(windows), concurrency=tasks)
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
        return (encode(batch, self.number) for batch in self.maker(self.window))


def encode(batch: Batch, window: int = 0) -> pa.Table:
    """A batch as a table of one row: `window`, `shapes` (JSON, by micro-batch and input), `labels`, `values`."""
    inputs = [values.numpy() for micro in batch.micro for values in micro.inputs.values()]
    values = np.concatenate([array.ravel() for array in inputs], dtype=np.float32)
    labels = np.concatenate([micro.labels.numpy() for micro in batch.micro])
    shapes = json.dumps([{name: list(array.shape) for name, array in micro.inputs.items()} for micro in batch.micro])
    return pa.table([[window], [shapes], _list(labels), _list(values)], names=["window", "shapes", "labels", "values"])


def _list(values: Any) -> pa.LargeListArray:
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)]), pa.array(values))


def decode(table: pa.Table, row: int = 0) -> Batch:
    """The batch in a row of tables that `encode` made."""
    values, labels = (torch.from_numpy(np.array(table[name][row].values.to_numpy())) for name in ("values", "labels"))
    micro, begin, first = [], 0, 0
    for shapes in json.loads(table["shapes"][row].as_py()):
        inputs = {}
        for name, shape in shapes.items():
            size = int(np.prod(shape))
            inputs[name] = values[begin : begin + size].view(shape)
            begin += size
        jets = next(iter(shapes.values()))[0]
        micro.append(MicroBatch(inputs, labels[first : first + jets]))
        first += jets
    return Batch(tuple(micro), first)
