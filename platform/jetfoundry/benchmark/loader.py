"""Parquet shards -> batches: the ladder of our steps, both feeds, and weaver's data set, on the same shards and YAML.

    read              the needed columns of row groups in the order of training, nothing else
    + features        and formulas, selection, standardisation
    + batches         and draw, sort, pad: 512 jets in 4 micro-batches
    direct            the same through the thread that runs beside the training: batches as a training worker gets them
    ray               the same batches, made by tasks of Ray Data; CPU time of all its processes
    weaver            SimpleIterDataset and torch's DataLoader in one process, 512 jets padded to 128

Every side has gone through the first 80,000 jets before it is measured: imports, Ray's start, that of its workers, and
the first touch of memory are not what an epoch costs. The `weights` section is left out on both sides: what is drawn
would otherwise differ. Weaver fetches by files, one at a time: the mode that costs it least, since then it decodes no
row group twice.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from jetfoundry import config, files, ray_session
from jetfoundry.benchmark import peer
from jetfoundry.benchmark.measure import Side
from jetfoundry.data.shards import ShardSet, open_shards
from jetfoundry.features.transform import DataConfig, load_data_config
from jetfoundry.loading.loader import LoaderConfig, order_of, prefetched, training_batches
from jetfoundry.loading.pieces import Piece, read_flat
from jetfoundry.loading.sampling import SamplingConfig

__all__ = ["sides"]

_BATCH = 512
_WARM_UP = 80_000

Sizes = Generator[int, None, None]
"""Numbers of jets, as they become ready; without end."""


def sides(shards: Path, features: str, work: Path, jets: int) -> list[Side]:
    """All rungs on the train split of a shard folder, about `jets` jets each; `work` gets the YAML without weights."""
    plain = work / "loader.yaml"
    files.write_text(plain, config.dump_yaml({**config.load_yaml(features), "weights": None}))
    where = {"shards": str(shards), "features": str(plain), "jets": jets}
    return [Side(rung, _prepare, _run, {"rung": rung, **where}) for rung in _RUNGS]


_State = tuple[Sizes, int, contextlib.ExitStack]


def _prepare(rung: str, shards: str, features: str, jets: int) -> _State:
    import pyarrow as pa

    pa.set_cpu_count(1)
    stack = contextlib.ExitStack()  # Ray lives as long as it is held
    if rung == "ray":
        stack.enter_context(ray_session.session(num_cpus=2))
    sizes = _RUNGS[rung](shards, features)
    _count(sizes, _WARM_UP)
    return sizes, jets, stack


def _run(state: _State) -> int:
    sizes, jets, _ = state
    with contextlib.closing(sizes):
        return _count(sizes, jets)


def _count(sizes: Iterator[int], jets: int) -> int:
    return next(total for total in itertools.accumulate(sizes) if total >= jets)


def _open(shards: str, features: str) -> tuple[ShardSet, DataConfig]:
    return open_shards(shards, "train"), load_data_config(features, scheme="sophon188")


def _windows(train: ShardSet) -> Iterator[tuple[Piece, ...]]:
    order = order_of(train, LoaderConfig(), seed=1)
    for at in order.walk(order.start(1), 0, 1):
        yield tuple(train.row_groups[i] for i in order.pieces_of(at))


def _read(shards: str, features: str) -> Sizes:
    train, data = _open(shards, features)
    for pieces in _windows(train):
        yield read_flat(pieces, data.columns).num_rows


def _features(shards: str, features: str) -> Sizes:
    train, data = _open(shards, features)
    for pieces in _windows(train):
        yield len(data.apply(read_flat(pieces, data.columns), training=True))


def _batches(shards: str, features: str, feed: Any = "direct") -> Sizes:
    loader = LoaderConfig(feed=feed, batch_size=_BATCH)
    train, data = _open(shards, features)
    for batch, _ in training_batches(train, data, loader, SamplingConfig(balance="natural"), seed=1):
        yield batch.size


def _prefetch(shards: str, features: str) -> Sizes:
    yield from prefetched(lambda: _batches(shards, features), LoaderConfig().prefetch)


def _ray(shards: str, features: str) -> Sizes:
    yield from _batches(shards, features, "ray")


def _weaver(shards: str, features: str) -> Sizes:
    import torch.utils.data

    paths = [str(path) for path in sorted(Path(shards, "train").glob("*.parquet"))]
    module = peer.weaver("utils.dataset")
    while True:
        data = module.SimpleIterDataset({"": paths}, features, for_training=True, fetch_by_files=True, fetch_step=1)
        for inputs, _, _ in torch.utils.data.DataLoader(data, batch_size=_BATCH, num_workers=0):
            yield len(inputs["pf_features"])


_RUNGS = {
    "read": _read,
    "read + features": _features,
    "read + features + batches": _batches,
    "direct": _prefetch,
    "ray": _ray,
    "weaver": _weaver,
}
