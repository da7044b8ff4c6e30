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

__all__ = ["LoaderConfig", "every_jet", "jets_per_pass", "prefetched", "training_batches", "uses_per_pass"]


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
    uses_of_class = uses_per_pass(shards, data, sampling)
    passes, window, first = start
    while True:
        pieces = pass_pieces(shards.row_groups, seed, passes, rank, world)
        windows = max(1, len(pieces) // loader.window)  # the last one takes the rest: no window is short
        found = window > 0 or first > 0
        while window < windows:
            end = None if window + 1 == windows else (window + 1) * loader.window
            features = _read(pieces[window * loader.window : end], data)
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
                f"{shards.folder}: no jet of the {shards.split} split passes the selection of {data.where} and is "
                f"of one of its {data.num_classes} classes"
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
) -> Iterator[Batch]:
    """Each jet that training would select exactly once (validation): same order every time, last batches shorter."""
    pieces = [(group, slice(None)) for group in shards.row_groups[rank::world]]
    for piece in pieces:
        features = _read([piece], data)
        for begin in range(0, len(features), loader.batch_size):
            jets = np.arange(begin, min(begin + loader.batch_size, len(features)))
            micro = min(loader.micro_batches, len(jets))
            yield _batch(features, jets, micro)


def uses_per_pass(shards: ShardSet, data: DataConfig, sampling: SamplingConfig) -> npt.NDArray[np.float64]:
    """Expected uses per pass of a jet of each class (C,). Without a label scheme only natural sampling is possible:
    the manifest counts JetClass-II classes, not those of the data YAML."""
    if not data.num_classes:
        msg = f"{data.where}: labels: no classes to train on; name a label scheme in the recipe, e.g. labels=sophon188"
        raise ConfigError(msg)
    if data.labels.scheme is not None:
        return class_multiplicity(shards.class_counts, data.labels.scheme, sampling)
    if sampling.balance != "natural":
        msg = f"{data.where}: sampling.balance={sampling.balance} needs a label scheme; use sampling.balance=natural"
        raise ConfigError(msg)
    return np.ones(data.num_classes)


def jets_per_pass(shards: ShardSet, data: DataConfig, sampling: SamplingConfig) -> float:
    """How many jets one pass over the split is expected to draw, before the selection."""
    scheme = data.labels.scheme
    if scheme is None:
        return float(shards.rows)
    table, counts = np.asarray(scheme.table), np.asarray(shards.class_counts)
    return float(np.dot(uses_per_pass(shards, data, sampling)[table[table >= 0]], counts[table >= 0]))


def _read(pieces: Sequence[Any], data: DataConfig) -> Features:
    """Read pieces and run the data YAML; jets without a class are left out."""
    tables = [read_row_group(group, data.columns) for group, _ in pieces]
    rows = [table.take(np.arange(table.num_rows)[cut]) if cut != slice(None) else table
            for table, (_, cut) in zip(tables, pieces, strict=True)]  # fmt: skip
    features = data.apply(pa.concat_tables(rows), training=True)
    return features if (features.labels >= 0).all() else features.take(np.flatnonzero(features.labels >= 0))


def _batch(features: Features, jets: npt.NDArray[np.int64], micro_batches: int) -> Batch:
    """Sort the jets by length and pad each part to its own longest jet."""
    jets = jets[np.argsort(np.diff(features.offsets)[jets], kind="stable")]
    micro = []
    for part in np.array_split(jets, micro_batches):
        inputs = {name: torch.from_numpy(values) for name, values in features.pad_all(part).items()}
        micro.append(MicroBatch(inputs, torch.from_numpy(features.labels[part])))
    return Batch(tuple(micro), len(jets))


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
