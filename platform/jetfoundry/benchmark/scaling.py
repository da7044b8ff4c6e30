"""Strong and weak scaling of ingest, loading and training, and what Ray costs: each case in a fresh process, in turn.

    strong scaling      the same work by 1, 2, 4, … workers
    weak scaling        as much work for each of 1, 2, 4, … workers
    ingest              ROOT to shards on a private Ray of so many CPUs that runs already
    loading             so many readers, each with its share of the train split like a training worker; no Ray in it
    training            `pretrain` under Ray Train, workers of one thread; jets/s while it trains
    plain loop          `train/loop.py` on the same batches with the same weights, in one process without Ray

Seconds are wall time. Efficiency is jets/s of N workers over N times those of one (the median of its runs in both kinds
of scaling, whose work is the same); of training it is that of steps, and what comes before the first and after the last
step stands in a column of its own.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from jetfoundry import config, ray_session
from jetfoundry.benchmark import sample
from jetfoundry.benchmark.settings import BenchmarkConfig
from jetfoundry.benchmark.team import prepare_team
from jetfoundry.data.ingest import IngestConfig, ingest
from jetfoundry.data.shards import open_shards
from jetfoundry.features.transform import load_data_config
from jetfoundry.loading.batch import Batch, Position
from jetfoundry.loading.loader import LoaderConfig, prefetched, training_batches
from jetfoundry.loading.sampling import SamplingConfig
from jetfoundry.models.presets import build
from jetfoundry.train.loop import Validation, fit
from jetfoundry.train.network_data import training_data
from jetfoundry.train.ray_train import model_config, plan, pretrain
from jetfoundry.train.recipe import Recipe

__all__ = ["Case", "Measured", "cases", "measure", "rate"]

_WARM_UP = 2_000  # jets that each reader reads before the clock starts


@dataclasses.dataclass(frozen=True)
class Measured:
    """One run of a case: jets, seconds that they took, further seconds before and after, losses of the training."""

    jets: int
    seconds: float
    around: float = 0.0
    losses: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured: `run(workers=…, **arguments)`. `kind` is strong, weak, or empty for the plain loop; cases of
    one `name` and `kind` are compared with each other."""

    name: str
    kind: str
    workers: int
    run: Callable[..., Measured]
    arguments: dict[str, Any]


def cases(cfg: BenchmarkConfig) -> list[Case]:
    """All cases, with 1, 2, 4, … up to `cfg.workers` workers, 2 at least; makes the samples."""
    most = max(2, cfg.workers)
    counts = [1 << power for power in range(most.bit_length()) if 1 << power <= most]
    roots = {each: sample.root_files(dataclasses.replace(cfg, jets=cfg.jets * each)) for each in counts}
    shards = str(sample.shard_folder(dataclasses.replace(cfg, jets=cfg.jets * most)))
    steps = max(4, cfg.jets // cfg.batch_size // 2)
    work = {"shards": shards, "cfg": cfg, "steps": steps}
    found = [Case("plain loop", "", 1, _train_plainly, {**work, "batch_size": cfg.batch_size})]
    for kind in ("strong", "weak"):
        for each in counts:
            inputs = roots[each if kind == "weak" else 1]
            jets, share = (cfg.jets, cfg.batch_size) if kind == "weak" else (cfg.jets // each, cfg.batch_size // each)
            found += [
                Case("ingest", kind, each, _ingest, {"inputs": tuple(map(str, inputs)), "work": str(cfg.work)}),
                Case("loading", kind, each, _load, {"shards": shards, "features": cfg.features, "jets": 4 * jets}),
                Case("training", kind, each, _train, {**work, "batch_size": share}),
            ]
    return found


def measure(todo: list[Case], rounds: int) -> dict[int, list[Measured]]:
    """Runs of each case by its index: all cases in turn, forwards and backwards."""
    found: dict[int, list[Measured]] = {index: [] for index in range(len(todo))}
    order = list(enumerate(todo))
    with tqdm(total=rounds * len(todo), unit="run", desc="scaling") as bar:
        for turn in range(rounds):
            for index, case in order if turn % 2 == 0 else reversed(order):
                bar.set_postfix_str(f"{case.name} {case.kind} {case.workers}")
                found[index].append(_in_a_process(case))
                bar.update()
    return found


def rate(runs: list[Measured]) -> float:
    """Median of jets/s."""
    return statistics.median(run.jets / run.seconds for run in runs)


def _in_a_process(case: Case) -> Measured:
    context = multiprocessing.get_context("spawn")
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        with concurrent.futures.ProcessPoolExecutor(1, context) as process:
            return process.submit(case.run, workers=case.workers, **case.arguments).result()
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        os.environ.update({"OMP_NUM_THREADS": before} if before is not None else {})


def _ingest(workers: int, inputs: tuple[str, ...], work: str) -> Measured:
    folder = Path(work) / "scaling-ingest"
    shutil.rmtree(folder, ignore_errors=True)
    with ray_session.session(num_cpus=workers):
        _first_workers(workers)
        begin = time.perf_counter()
        report = ingest(IngestConfig(input=inputs, output=str(folder)))
        return Measured(sum(report.jets.values()), time.perf_counter() - begin)


def _first_workers(number: int) -> None:
    """Have Ray start its worker processes before the clock does."""
    import ray

    nap = ray.remote(lambda: time.sleep(1.0))
    ray.get([nap.remote() for _ in range(number)])


def _load(workers: int, shards: str, features: str, jets: int) -> Measured:
    state = prepare_team(workers, _open_share, _read_share, shards=shards, features=features, jets=jets)
    begin = time.perf_counter()
    read = _read_share(state)
    return Measured(read * workers, time.perf_counter() - begin)


def _open_share(shards: str, features: str, jets: int, rank: int, world: int) -> tuple[Iterator[int], int]:
    def sizes() -> Iterator[int]:
        data = load_data_config(features, scheme="sophon188")
        options = LoaderConfig(batch_size=512)
        natural, train = SamplingConfig(balance="natural"), open_shards(shards, "train")
        for batch, _ in training_batches(train, data, options, natural, seed=1, rank=rank, world=world):
            yield batch.size

    opened = sizes()
    _count(opened, _WARM_UP)
    return opened, jets


def _read_share(state: tuple[Iterator[int], int]) -> int:
    read = _count(*state)
    torch.distributed.barrier()  # all are done
    return read


def _count(sizes: Iterator[int], jets: int) -> int:
    total = 0
    while total < jets:
        total += next(sizes)
    return total


def _recipe(cfg: BenchmarkConfig, shards: str, steps: int, batch_size: int, workers: int) -> Recipe:
    micro = max(1, min(cfg.micro_batches, batch_size))
    return config.build(
        Recipe,
        {
            "data": shards,
            "features": cfg.features,
            "model": {"preset": cfg.preset},
            "loader": {"batch_size": batch_size, "micro_batches": micro},
            "sampling": {"balance": "natural"},
            "train": {"epochs": 1, "steps_per_epoch": steps, "log_steps": 1},
            "workers": {"num_workers": workers, "threads": 1},
            "checkpoints": {"metric": "step"},
        },
    )


def _train(workers: int, cfg: BenchmarkConfig, shards: str, steps: int, batch_size: int) -> Measured:
    recipe = _recipe(cfg, shards, steps, batch_size, workers)
    run = Path(cfg.work) / "scaling-run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    with ray_session.session(num_cpus=workers):
        begin = time.perf_counter()
        with contextlib.redirect_stderr(None):  # the progress bar of the training, in that of the benchmark
            figures = pretrain(recipe, run)
        seconds = time.perf_counter() - begin
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = tuple(float(row["loss"]) for row in rows if "loss" in row)
    return _timed(figures["timing"], steps * batch_size * workers, seconds, losses)


def _train_plainly(workers: int, cfg: BenchmarkConfig, shards: str, steps: int, batch_size: int) -> Measured:
    recipe = _recipe(cfg, shards, steps, batch_size, workers)
    begin = time.perf_counter()
    torch.set_num_threads(1)
    torch.manual_seed(recipe.train.seed)
    spec, losses = plan(recipe), []
    data = load_data_config(config.parse_yaml(spec["data_yaml"], cfg.features), scheme=recipe.labels)
    network, train = build(model_config(recipe, data)), open_shards(shards, "train")
    data = training_data(data, type(network), recipe.loader)

    @contextlib.contextmanager
    def stream(start: Position) -> Iterator[Iterator[tuple[Batch, Position]]]:
        place: dict[str, Any] = {"seed": recipe.train.seed, "start": start}
        batches = prefetched(
            lambda: training_batches(train, data, recipe.loader, recipe.sampling, **place), recipe.loader.prefetch
        )
        with contextlib.closing(batches):
            yield batches

    timing = fit(
        network, stream, lambda _: Validation(0.0, 0.0, 0), recipe.train, steps_per_epoch=steps,
        device=torch.device("cpu"), save=lambda *_: None,
        log=lambda row: losses.append(float(row["loss"])) if "loss" in row else None,
    )  # fmt: skip
    return _timed(timing, steps * batch_size, time.perf_counter() - begin, tuple(losses))


def _timed(timing: dict[str, float], jets: int, seconds: float, losses: tuple[float, ...]) -> Measured:
    steps = jets / timing["jets_per_s"]
    return Measured(jets, steps, seconds - steps, losses)
