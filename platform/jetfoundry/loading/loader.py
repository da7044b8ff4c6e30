"""The two feeds of a training worker: exact, seeded, resumable anywhere, also with another number of workers.

    order.py     which worker makes which windows of which pass         (seed, rank, world)
    pieces.py    what a window holds: row groups, or entry ranges       jets as Arrow
    window.py    a window -> batches, a pure function of (seed, pass, window)

`direct`: the worker makes its windows itself, in a thread beside the training; the default for shards on storage that
all nodes see. `ray`: tasks of Ray Data make them, on CPU nodes for workers on GPU nodes (`ray_feed.py`). The batches
are the same, since both only call the function of window.py.

Training runs through endless passes; an epoch is a fixed number of steps, the same on every worker. Within a pass each
jet is on exactly one worker. The position in the data is a few integers: it travels with each batch and goes into the
checkpoint, and a resumed run sees exactly the jets that an uninterrupted one would have seen.
"""

from __future__ import annotations

import dataclasses
import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Literal

from jetfoundry import config
from jetfoundry.errors import ConfigError, InputError
from jetfoundry.features.transform import DataConfig
from jetfoundry.loading.batch import Batch, Position
from jetfoundry.loading.order import Order
from jetfoundry.loading.pieces import JetSet, Piece
from jetfoundry.loading.sampling import JetUses, SamplingConfig, plan_uses
from jetfoundry.loading.window import BatchMaker, Window, choose_inputs

__all__ = [
    "LoaderConfig",
    "every_jet",
    "order_of",
    "prefetched",
    "resumed",
    "training_batches",
    "uses_per_pass",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How stored jets become batches."""

    feed: Literal["direct", "ray"] = config.option(
        "direct", "who makes the batches: direct = the worker itself; ray = tasks on any node with free CPUs"
    )
    batch_size: int = config.option(512, "jets of one optimiser step on one worker, at most")
    micro_batches: int = config.option(4, "parts at most of a batch sorted by length, each padded to its longest jet")
    length_step: int = config.option(1, "pad micro-batches to multiples of so many particles: few shapes to compile")
    window: int = config.option(16_000, "jets read and mixed at once, in whole row groups")
    prefetch: int = config.option(4, "batches prepared ahead in a thread, 0 = none")
    ray_tasks: int = config.option(2, "feed=ray: windows made at the same time for one worker, one CPU each")
    inputs: tuple[str, ...] = config.option((), "inputs of the data YAML that batches carry, none = all")

    def __post_init__(self) -> None:
        if not 1 <= self.micro_batches <= self.batch_size:
            msg = f"wanted 1 <= micro_batches <= batch_size, got {self.micro_batches} and {self.batch_size}"
            raise ValueError(msg)
        if min(self.window, self.ray_tasks, self.length_step) < 1 or self.prefetch < 0:
            msg = f"window {self.window}, ray_tasks {self.ray_tasks} and length_step {self.length_step} must be >= 1, "
            raise ValueError(msg + f"prefetch {self.prefetch} >= 0")


def training_batches(
    jets: JetSet,
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

    `start` is where this worker of an earlier run stopped, or what `resumed` says of one with other workers.
    Raises InputError if a whole pass holds no jet that the selection and the label scheme keep.
    """
    maker = _maker(data, loader, uses_per_pass(jets, data, sampling))
    order = order_of(jets, loader, seed)
    if not start.deal:
        start = start._replace(deal=order.start(world).deal)
    positions, ahead = itertools.tee(order.walk(start, rank, world))
    windows = (
        Window(tuple(jets.row_groups[i] for i in order.pieces_of(at)), (seed, at.passes, at.window), at.batch)
        for at in ahead
    )
    empty = 0
    for (here, following), batches in zip(itertools.pairwise(positions), _feed(maker, windows, loader), strict=False):
        ready, pieces = None, tuple(jets.row_groups[i] for i in order.pieces_of(here))
        for number, batch in enumerate(batches, here.batch):
            if ready is not None:
                yield ready, here._replace(batch=number)
            ready = dataclasses.replace(batch, pieces=pieces)
        if ready is not None:
            yield ready, following
        empty = 0 if ready else empty + 1
        if empty >= order.windows(here):
            msg = (
                f"{jets.folder}: no jet of the {jets.split} split passes the selection of {data.where} and is "
                f"of one of its {data.num_classes} classes"
            )
            raise InputError(msg)


def resumed(jets: JetSet, loader: LoaderConfig, seed: int, positions: Sequence[Position]) -> Position:
    """Where workers of any number go on after as many as there are `positions`, with exactly the jets that are left."""
    return order_of(jets, loader, seed).resume(positions)


def order_of(jets: JetSet, loader: LoaderConfig, seed: int) -> Order:
    """The order of the pieces of `jets`, in windows of about `loader.window` jets."""
    largest = max(piece.rows for piece in jets.row_groups)
    return Order(len(jets.row_groups), max(1, round(loader.window / largest)), seed)


def every_jet(
    jets: JetSet,
    data: DataConfig,
    loader: LoaderConfig,
    *,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """Each jet that training would select exactly once (validation): same order every time, the last batch of a window
    shorter."""
    windows = (Window(pieces) for pieces in _in_order(jets.row_groups[rank::world], loader.window))
    return itertools.chain.from_iterable(_feed(_maker(data, loader), windows, loader))


def _in_order(pieces: Sequence[Piece], jets: int) -> Iterator[tuple[Piece, ...]]:
    """Neighbouring pieces of together about so many `jets`."""
    begins = itertools.accumulate((piece.rows for piece in pieces), initial=0)
    for _, window in itertools.groupby(zip(begins, pieces, strict=False), key=lambda item: item[0] // jets):
        yield tuple(piece for _, piece in window)


def uses_per_pass(jets: JetSet, data: DataConfig, sampling: SamplingConfig) -> JetUses:
    """How often training uses the jets; ConfigError if the data YAML has no classes or not what the sampling needs."""
    if not data.num_classes:
        msg = f"{data.where}: labels: no classes to train on; name a label scheme in the recipe, e.g. labels=sophon188"
        raise ConfigError(msg)
    return plan_uses(jets, data, sampling)


def _maker(data: DataConfig, loader: LoaderConfig, uses: JetUses | None = None) -> BatchMaker:
    return BatchMaker(
        choose_inputs(data, loader.inputs), loader.batch_size, loader.micro_batches, uses, loader.length_step
    )


def _feed(maker: BatchMaker, windows: Iterator[Window], loader: LoaderConfig) -> Iterator[Iterator[Batch]]:
    """The batches of each window, in order; Ray is imported only if it is wanted."""
    if loader.feed == "direct":
        return map(maker, windows)
    from jetfoundry.loading.ray_feed import made_by_ray

    return made_by_ray(maker, windows, loader.ray_tasks)


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
