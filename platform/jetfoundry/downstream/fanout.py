"""Ray Tune fans the trials out: one thin module, the only one that knows Tune, because its API changes often.

What trials read is in the object store (`shelf.py`); a trial gets references. Its result is a file of its own
(`trials.py`): a failing trial ends no other, and an interrupted fan-out does the missing trials only. A method with a
grid is one Tune trial for each point; points of one trial, and no others, are compared by successive halving (ASHA,
arXiv:1810.05934), and the best on the jets held out is the trial's result as soon as its last point has ended.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from jetfoundry import config, files, ray_session
from jetfoundry.downstream.methods import METHODS, MethodsConfig, Setting, grid_of
from jetfoundry.downstream.problem import Particles, Problem, Report
from jetfoundry.downstream.tasks import Task
from jetfoundry.downstream.trials import Outcome, Trial, read_logits, read_outcome, subset, write_outcome
from jetfoundry.errors import ClusterError, ConfigError
from jetfoundry.evaluate.metrics import require_finite
from jetfoundry.ray_session import RayConfig, own_error

__all__ = ["ResourcesConfig", "Work", "check_resources", "fan_out", "run_point"]

log = logging.getLogger("jetfoundry")

_HELD_OUT = "loss_of_held_out_jets"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """What Tune reserves for a trial, and how many run at once."""

    cpus: float = config.option(1.0, "CPUs of a trial with a frozen backbone or of boosting; 0.5 = two on one core")
    network_cpus: float = config.option(1.0, "CPUs, and threads, of a trial that trains a whole network")
    network_gpus: float = config.option(0.0, "share of a GPU of such a trial: 0.25 = four on one")
    embed_gpus: float = config.option(0.0, "share of a GPU of each actor that embeds jets, 0 = on the CPU")
    concurrent: int = config.option(0, "trials at once at most, 0 = as many as the resources allow")

    def __post_init__(self) -> None:
        gpus = (self.network_gpus, self.embed_gpus)
        if min(self.cpus, self.network_cpus) <= 0 or not 0 <= min(gpus) <= max(gpus) <= 1 or self.concurrent < 0:
            msg = f"wanted cpus and network_cpus > 0, shares of a GPU from 0 to 1, concurrent >= 0, got {self}"
            raise ValueError(msg)

    def of(self, method: str) -> dict[str, float]:
        """Ray's resources for a trial."""
        if METHODS[method].reads != "particles":
            return {"CPU": self.cpus}
        return {"CPU": self.network_cpus} | ({"GPU": self.network_gpus} if self.network_gpus else {})


def check_resources(resources: ResourcesConfig, where: RayConfig, methods: Sequence[str]) -> None:
    """ConfigError if a trial, or an embedding actor, wants more than this machine has where it is all that there is: it
    would be waited for. A cluster may start nodes that have it."""
    if where.address or ray_session.in_job():
        return
    cpus, gpus = ray_session.available_cpus(), ray_session.available_gpus()
    asked = {f"a trial of {method}": resources.of(method) for method in methods}
    asked["an actor that embeds"] = {"CPU": 1.0} | ({"GPU": resources.embed_gpus} if resources.embed_gpus else {})
    for who, wanted in asked.items():
        if wanted["CPU"] > cpus or wanted.get("GPU", 0) > gpus:
            shown = " and ".join(f"{number:g} {name}" for name, number in wanted.items())
            msg = f"resources: {who} wants {shown}, this Ray has {cpus} CPU and {gpus:g} GPU; lower "
            raise ConfigError(msg + "resources.* or take a cluster with ray.address")


@dataclasses.dataclass(frozen=True)
class Work:
    """A trial and where its jets are: references to what it reads of the training and evaluation split, the columns of
    the latents, the jets of the task in either (indices) with labels and weights of the training, the model file."""

    trial: Trial
    task: Task
    model: Path
    train: Any
    evaluate: Any
    columns: slice
    train_jets: Any
    labels: Any
    weights: Any
    evaluate_jets: Any

    def problem(self, get: Any) -> Problem:
        """The training problem, with `get` fetching a reference."""
        reads = METHODS[self.trial.method].reads
        jets, labels, weights = get(self.train_jets), get(self.labels), get(self.weights)
        chosen = subset(labels, self.trial.size, self.trial.seed)

        def taken(source: Any, which: Any) -> Any:
            if reads == "particles":
                return Particles(source, which)
            return source[which][:, self.columns] if reads == "latents" else source[which]

        train, evaluate = taken(get(self.train), jets[chosen]), taken(get(self.evaluate), get(self.evaluate_jets))
        classes = len(self.task.class_names)
        return Problem(train, labels[chosen], weights[chosen], evaluate, classes, self.trial.seed)


def run_point(
    work: Work,
    point: Mapping[str, Any],
    options: MethodsConfig,
    path: Path,
    *,
    get: Callable[[Any], Any],
    report: Report,
    device: str = "cpu",
) -> tuple[float, int]:
    """Train one trial, or one point of its grid, on `device` and commit its result to `path`; returns the loss of the
    jets held out, 0 without, and how many jets the training took. `get` fetches a reference. InputError for a result
    that is not finite."""
    begin = time.perf_counter()
    problem = work.problem(get)
    losses: list[float] = []

    def heard(epoch: int, loss: float) -> None:
        losses.append(loss)
        if epoch < options.mlp.epochs:  # the last one is reported after the result is there
            report(epoch, loss)

    setting = Setting(task=work.task, model=work.model, point=point, options=options, device=device, report=heard)
    fit = METHODS[work.trial.method].run(problem, setting)
    require_finite(f"{work.trial.method}: logits", fit.logits)
    seconds = time.perf_counter() - begin
    record: dict[str, Any] = {
        "train_jets": len(problem.labels),
        "evaluated_jets": len(fit.logits),
        "seconds": round(seconds, 3),
        "jets_per_s": round(fit.seen / seconds, 1),
    }
    if losses:
        record |= {"point": dict(point), _HELD_OUT: losses[-1]}
    write_outcome(path, fit.logits, record)
    return (losses[-1] if losses else 0.0), fit.seen


def fan_out(
    work: Sequence[Work], folder: Path, options: MethodsConfig, resources: ResourcesConfig
) -> tuple[list[Outcome], dict[str, int]]:
    """Run what is missing of these trials; returns all outcomes, in order, and counts of trials `found` and `run`."""
    folder = folder.resolve()
    keys = {each.trial.key for each in work}
    there = files.for_each(lambda each: each.trial.path(folder).exists(), work, folder)
    missing = {each.trial.key: each for each, done in zip(work, there, strict=True) if not done}
    errors, left = {}, missing
    while left:
        try:
            errors = _run(left, folder, options, resources)
            break
        except _MemoryFull:
            resources = _fewer_at_once(resources, left)
            left = {key: each for key, each in left.items() if not each.trial.path(folder).exists()}
    outcomes = files.for_each(
        lambda each: read_outcome(each.trial, folder, errors.get(each.trial.key, "")), work, folder
    )
    return outcomes, {"found": len(keys) - len(missing), "run": len(missing)}


class _MemoryFull(Exception):
    """Ray ended a trial's process because the memory was full: Tune takes that for a fault of its own, and ends."""


def _fewer_at_once(resources: ResourcesConfig, left: Mapping[str, Work]) -> ResourcesConfig:
    """Half as many trials at once as there were; ClusterError if that was one."""
    cpus = min(resources.of(each.trial.method)["CPU"] for each in left.values())
    were = resources.concurrent or max(1, int(ray_session.available_cpus() / cpus))
    if were == 1:
        msg = "the memory is full with one trial at once: take fewer jets (train_jets, evaluate_jets), a smaller "
        raise ClusterError(msg + "ray.object_store_gb or a larger machine; what is committed is kept")
    log.warning("the memory was full with %d trials at once: the missing ones again, %d at once", were, were // 2)
    return dataclasses.replace(resources, concurrent=were // 2)


def _run(
    missing: Mapping[str, Work], folder: Path, options: MethodsConfig, resources: ResourcesConfig
) -> dict[str, str]:
    """Run these trials; returns the errors of those that failed, by key. Raises _MemoryFull."""
    import ray
    from ray import tune

    from jetfoundry.downstream.halving import GridEnds, GroupedHalving, keys_unlogged

    trials = {key: work.trial for key, work in missing.items()}
    grids = {key: grid_of(trial.method, options) for key, trial in trials.items()}
    points = [(key, number) for key, grid in grids.items() for number in range(len(grid))]
    several = [key for key, grid in grids.items() if len(grid) > 1]
    reserve = {key: resources.of(trial.method) for key, trial in trials.items()}
    stored = {key: ray.put(work) for key, work in missing.items()}

    def train(settings: dict[str, Any]) -> None:
        key, number = settings["point"]["key"], settings["point"]["number"]
        torch.set_num_threads(max(1, int(reserve[key]["CPU"])))

        def report(epoch: int, loss: float, jets: int = 0) -> None:
            tune.report({"epoch": epoch, _HELD_OUT: loss, "jets": jets})

        path = _point_path(trials[key], folder, number if key in several else None)
        if path.exists():  # a grid point of an interrupted fan-out
            loss, jets = float(files.read_json(path)[_HELD_OUT]), 0
        else:
            device = "cuda" if "GPU" in reserve[key] else "cpu"
            work: Work = ray.get(stored[key])
            loss, jets = run_point(work, grids[key][number], options, path, get=ray.get, report=report, device=device)
        report(options.mlp.epochs, loss, jets)

    def ended(key: str, last: list[dict[str, Any]]) -> None:
        if key in several:
            _choose(trials[key], folder, grids[key], last)

    bar = tqdm(total=len(points), unit=" trials", desc="fan out", mininterval=1.0)
    tuner = tune.Tuner(
        tune.with_resources(train, lambda settings: tune.PlacementGroupFactory([reserve[settings["point"]["key"]]])),
        param_space={"point": tune.grid_search([{"key": key, "number": number} for key, number in points])},
        tune_config=tune.TuneConfig(
            scheduler=GroupedHalving(several, _HELD_OUT, options.mlp.epochs),
            max_concurrent_trials=resources.concurrent or None,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune", **ray_session.storage(str(folder)), verbose=0, callbacks=[GridEnds(points, ended, bar)]
        ),
    )
    with keys_unlogged(), bar:
        try:
            results = tuner.fit()
        except RuntimeError as error:
            if isinstance(error.__cause__, ray.exceptions.OutOfMemoryError):
                raise _MemoryFull from error
            raise
    failed = {result.config["point"]["key"]: _text(result.error) for result in results if result.error is not None}
    ended_points = collections.Counter(
        result.config["point"]["key"]
        for result in results
        if result.error is not None or (result.metrics or {}).get("done")
    )
    for key, trial in trials.items():
        if ended_points[key] < len(grids[key]) and not trial.path(folder).exists():
            raise KeyboardInterrupt  # Tune itself, stopped by Ctrl-C, returns what it has
    return failed


def _point_path(trial: Trial, folder: Path, number: int | None) -> Path:
    """Where a result goes: that of a grid point beside its trial's."""
    path = trial.path(folder)
    return path if number is None else path.with_name(f"{path.stem}-point{number}.json")


def _choose(trial: Trial, folder: Path, grid: Sequence[Mapping[str, Any]], last: Sequence[Mapping[str, Any]]) -> None:
    """Commit the best of a trial's grid points that trained to their end; none if all failed. Seconds and jets/s are
    that point's, `seconds_of_grid` those of all points together, in earlier commands, too, as far as they ended."""
    ended = {number: path for number in range(len(grid)) if (path := _point_path(trial, folder, number)).exists()}
    records = {number: files.read_json(path) for number, path in ended.items()}
    if not records:
        return
    best = min(records, key=lambda number: records[number][_HELD_OUT])
    reports = {each["number"]: each for each in last}
    tried = [
        {**point, "epochs": reports.get(number, {}).get("epoch", 0),
         _HELD_OUT: reports.get(number, {}).get(_HELD_OUT), "ended": number in records}
        for number, point in enumerate(grid)
    ]  # fmt: skip
    stopped = sum(float(each.get("time_total_s", 0.0)) for number, each in reports.items() if number not in records)
    seconds = stopped + sum(float(record["seconds"]) for record in records.values())
    logits = read_logits(ended[best])
    write_outcome(trial.path(folder), logits, {**records[best], "seconds_of_grid": round(seconds, 3), "grid": tried})
    for path in ended.values():
        path.unlink()
        path.with_suffix(".npy").unlink()


def _text(error: BaseException) -> str:
    """What went wrong, in a line."""
    lines = str(own_error(error) or error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
