"""Shards to length-bucketed batches for one worker (the `direct` feed): exact, seeded, resumable anywhere.

1. `pass_pieces`    all row groups of the split in an order drawn from (seed, pass); this worker's part of it
2. window           some row groups at once: only the columns that the data YAML needs are read
3. `DataConfig.apply`   formulas, selection, standardisation on flat buffers      -> features (F, N) + offsets
4. `systematic_draw`    jets accepted or repeated by class, a whole number of batches
5. batch            B jets, sorted by length, cut into micro-batches, each padded to its own longest jet
                                                                                  -> (b, F, P), labels (b,)

Training runs through endless passes; an epoch is a fixed number of steps, the same on every worker, so no worker
ever waits for another that has no data left. Every random choice derives from (seed, pass, worker, window), so the
position in the data is three integers. It travels with each batch, goes into the checkpoint, and a resumed
run sees exactly the jets that an uninterrupted one would have seen.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from jetfoundry import config
from jetfoundry.data.batch import Batch, MicroBatch, Position
from jetfoundry.data.features import DataConfig, Features
from jetfoundry.data.sampling import SamplingConfig, class_multiplicity, systematic_draw
from jetfoundry.data.shards import RowGroup, ShardSet, read_row_group
from jetfoundry.errors import ConfigError, InputError
from jetfoundry.labels import LabelScheme

__all__ = ["LoaderConfig", "every_jet", "label_scheme_of", "prefetched", "training_batches"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How shards become batches."""

    batch_size: int = config.option(512, "jets of one optimiser step on one worker")
    micro_batches: int = config.option(4, "parts of a batch, sorted by length, each padded to its longest jet")
    window: int = config.option(8, "row groups read and mixed at once")
    prefetch: int = config.option(4, "batches prepared ahead in a thread, 0 = none")

    def __post_init__(self) -> None:
        if not 1 <= self.micro_batches <= self.batch_size:
            msg = f"wanted 1 <= micro_batches <= batch_size, got {self.micro_batches} and {self.batch_size}"
            raise ValueError(msg)
        if self.window < 1 or self.prefetch < 0:
            msg = f"window {self.window} must be >= 1 and prefetch {self.prefetch} >= 0"
            raise ValueError(msg)


def pass_pieces(row_groups: Sequence[RowGroup], seed: int, passes: int, rank: int, world: int) -> list[Any]:
    """This worker's (row group, rows) of one pass, in order; `rows` is a slice.

    With fewer row groups than workers every worker takes every `world`-th jet of each row group instead.
    Over all ranks each jet appears exactly once.
    """
    order = np.random.default_rng([seed, passes]).permutation(len(row_groups))
    if len(row_groups) >= world:
        return [(row_groups[i], slice(None)) for i in order[rank::world]]
    return [(row_groups[i], slice(rank, None, world)) for i in order]


def training_batches(
    shards: ShardSet,
    data: DataConfig,
    loader: LoaderConfig,
    sampling: SamplingConfig,
    *,
    seed: int,
    rank: int = 0,
    world: int = 1,
    start: Position = Position(),  # noqa: B008 - immutable
) -> Iterator[tuple[Batch, Position]]:
    """Endless batches for worker `rank` of `world`, each with the position of the batch after it.

    Raises InputError if a whole pass holds no jet that the selection and the label scheme keep.
    """
    uses_of_class = class_multiplicity(shards.class_counts, label_scheme_of(data), sampling)
    passes, window, first = start
    while True:
        pieces = pass_pieces(shards.row_groups, seed, passes, rank, world)
        windows = -(-len(pieces) // loader.window)
        found = window > 0 or first > 0
        while window < windows:
            part = pieces[window * loader.window : (window + 1) * loader.window]
            features = _read(part, data, training=True)
            uses = uses_of_class[features.labels]
            if uses.sum() > 0:
                found = True
                rng = np.random.default_rng([seed, passes, rank, window])
                count = max(1, round(uses.sum() / loader.batch_size))
                drawn = systematic_draw(uses, count * loader.batch_size, rng)
                for i in range(first, count):
                    jets = drawn[i * loader.batch_size : (i + 1) * loader.batch_size]
                    after = Position(passes, window, i + 1) if i + 1 < count else Position(passes, window + 1, 0)
                    yield _batch(features, jets, loader.micro_batches), after
            window, first = window + 1, 0
        if not found:
            msg = (
                f"{shards.folder}: no jet of the {shards.split} split passes the selection of {data.where} and the "
                f"label scheme {label_scheme_of(data).name}"
            )
            raise InputError(msg)
        passes, window = passes + 1, 0


def every_jet(
    shards: ShardSet,
    data: DataConfig,
    loader: LoaderConfig,
    *,
    rank: int = 0,
    world: int = 1,
    observers: bool = False,
) -> Iterator[Batch]:
    """Each kept jet of the split exactly once (validation): same order every time, last batches shorter."""
    pieces = [(group, slice(None)) for group in shards.row_groups[rank::world]]
    for piece in pieces:
        features = _read([piece], data, training=False)
        for begin in range(0, len(features), loader.batch_size):
            jets = np.arange(begin, min(begin + loader.batch_size, len(features)))
            micro = min(loader.micro_batches, len(jets))
            yield _batch(features, jets, micro, with_observers=observers)


def label_scheme_of(data: DataConfig) -> LabelScheme:
    """The label scheme that a classification needs; ConfigError if the data YAML was read without one."""
    if data.labels.scheme is None:
        msg = f"{data.where}: no label scheme is named; give one in the recipe, e.g. labels=sophon188"
        raise ConfigError(msg)
    return data.labels.scheme


def _read(pieces: Sequence[Any], data: DataConfig, *, training: bool) -> Features:
    """Read pieces and run the data YAML; jets without a class are left out."""
    tables = [read_row_group(group, data.columns) for group, _ in pieces]
    rows = [table.take(np.arange(table.num_rows)[cut]) if cut != slice(None) else table
            for table, (_, cut) in zip(tables, pieces, strict=True)]  # fmt: skip
    features = data.apply(pa.concat_tables(rows), training=training)
    return features if (features.labels >= 0).all() else features.take(np.flatnonzero(features.labels >= 0))


def _batch(
    features: Features,
    jets: npt.NDArray[np.int64],
    micro_batches: int,
    *,
    with_observers: bool = False,
) -> Batch:
    """Sort the jets by length and pad each part to its own longest jet."""
    lengths = np.diff(features.offsets)[jets]
    jets = jets[np.argsort(lengths, kind="stable")]
    micro = []
    for part in np.array_split(jets, micro_batches):
        inputs = {name: torch.from_numpy(values) for name, values in features.pad_all(part).items()}
        micro.append(MicroBatch(inputs, torch.from_numpy(features.labels[part])))
    observers = {name: values[jets] for name, values in features.observers.items()} if with_observers else {}
    return Batch(tuple(micro), len(jets), observers)


def prefetched(items: Callable[[], Iterator[Any]], depth: int) -> Generator[Any, None, None]:
    """Run an iterator in a thread, `depth` items ahead; its errors are raised here.

    Reading and padding are NumPy and Arrow calls that release the GIL, so the thread overlaps with the step.
    """
    if depth == 0:
        yield from items()
        return
    ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stop, end = threading.Event(), object()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def fill() -> None:
        try:
            for item in items():
                if not put((item, None)):
                    return
        except BaseException as error:
            put((end, error))
            return
        put((end, None))

    thread = threading.Thread(target=fill, name="jetfoundry-loader", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stop.set()
        thread.join()
