"""A recipe: the complete configuration of one pre-training run."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from typing import Any, Literal

from jetfoundry import config
from jetfoundry.loading.loader import LoaderConfig
from jetfoundry.loading.sampling import SamplingConfig
from jetfoundry.ray_session import RayConfig
from jetfoundry.train.loop import TrainConfig

__all__ = ["MAY_CHANGE", "CheckpointsConfig", "ModelConfig", "PrepareConfig", "Recipe", "WorkersConfig"]

MAY_CHANGE = (
    "ray.address", "ray.num_cpus", "ray.object_store_gb", "train.log_steps", "train.checkpoint_steps",
    "train.sync_timing", "loader.prefetch", "loader.feed", "loader.ray_tasks", "loader.inputs", "workers.num_workers",
    "workers.min_workers", "workers.max_failures", "workers.wait_minutes", "workers.cpus_per_worker",
    "workers.gpus_per_worker", "workers.threads", "checkpoints.keep", "checkpoints.metric", "checkpoints.order",
    "mlflow", "find_lr", "sample", "discriminants", "prepare.simulate", "prepare.root", "prepare.jets",
)  # fmt: skip
"""Keys that may differ when a run continues. They do not change the training, but for the number of workers: the rest
of the pass is then dealt to fewer or more of them, in steps of fewer or more jets. Another `checkpoints.metric` chooses
among the checkpoints that were kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network."""

    preset: str = config.option("demo", "named configuration: demo, sophon, sophon_pp, particle_net, …")
    name: str = config.option("", "architecture that the preset must be of, '' = any: particle_transformer, …")
    change: dict[str, Any] = config.option({}, "single fields of the preset to change, e.g. {num_layers: 4}")
    init: str = config.option("", "begin with the weights of this model.pt, or of weaver's .pt; '' = random ones")
    freeze: tuple[str, ...] = config.option((), "parameters to leave as they are: regular expressions on their names")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """How many processes train, and on what."""

    num_workers: int = config.option(1, "training processes; each takes its own part of the data")
    min_workers: int = config.option(0, "go on with so many while nodes are missing, 0 = only with num_workers")
    use_gpu: bool = config.option(False, "train on GPUs, NCCL instead of gloo")
    cpus_per_worker: float = config.option(1.0, "CPUs that Ray reserves for each worker")
    gpus_per_worker: float = config.option(1.0, "share of a GPU that each worker has, with use_gpu: 0.5 = two on one")
    threads: int = config.option(0, "torch threads per worker on the CPU, 0 = cores of the machine / workers")
    max_failures: int = config.option(2, "restarts from the last checkpoint after a lost worker")
    wait_minutes: float = config.option(30.0, "how long to be without workers, for want of machines, before the end")

    def __post_init__(self) -> None:
        if self.num_workers < 1 or self.cpus_per_worker <= 0:
            msg = f"wanted num_workers >= 1 and cpus_per_worker > 0, got {self.num_workers}, {self.cpus_per_worker}"
            raise ValueError(msg)
        if not 0 <= self.min_workers <= self.num_workers or self.wait_minutes <= 0:
            msg = f"wanted 0 <= min_workers <= num_workers and wait_minutes > 0, got {self.min_workers}, "
            raise ValueError(msg + f"{self.num_workers}, {self.wait_minutes}")
        share = self.gpus_per_worker
        if share != 1 and not 0 < share < 1:
            msg = f"wanted 0 < gpus_per_worker <= 1, a worker computes on one GPU; got {share}"
            raise ValueError(msg)

    @property
    def backend(self) -> str:
        """torch's way for gradients between workers; NCCL refuses two of them on one GPU."""
        return "nccl" if self.use_gpu and self.gpus_per_worker == 1 else "gloo"

    @property
    def resources(self) -> dict[str, float]:
        """What Ray reserves for one worker."""
        return {"CPU": self.cpus_per_worker} | ({"GPU": self.gpus_per_worker} if self.use_gpu else {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointsConfig:
    """Where checkpoints lie and which are kept: the latest, and the best by a figure of the validation."""

    storage: str = config.option("", "folder or URL for them, e.g. s3://bucket/run; '' = <run>/checkpoints")
    keep: int = config.option(2, "how many of the best to keep beside the latest")
    metric: str = config.option(
        "val_accuracy", "what is best: val_accuracy, val_loss, 'val_auc/X_bb vs QCD', …; step = the last"
    )
    order: Literal["max", "min"] = config.option("max", "whether the largest or the smallest value is best")

    def __post_init__(self) -> None:
        if self.keep < 1:
            msg = f"wanted keep >= 1, got {self.keep}"
            raise ValueError(msg)
        if "loss" in self.metric and self.order == "max":
            msg = f"the largest {self.metric} is the worst model; set checkpoints.order=min"
            raise ValueError(msg)

    def score(self, metrics: Mapping[str, Any]) -> float:
        """The figure of a checkpoint by which it is ranked; the worst number that there is if it has none, since Ray
        keeps figures as JSON, which knows neither NaN nor infinity."""
        value = metrics.get(self.metric)
        if value is not None and math.isfinite(value):
            return float(value)
        return -sys.float_info.max if self.order == "max" else sys.float_info.max


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How to make the shards if they are not there: simulate, then ingest. Only for recipes that try things out."""

    simulate: str = config.option("", "simulation YAML, '' = never make data")
    root: str = config.option("", "folder for the simulated ROOT files")
    jets: int = config.option(0, "number of simulated jets")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a pre-training run."""

    data: str = config.option(
        "data/sim/shards", "folder of shards made by jobs/ingest.py; or ROOT and Parquet files: paths, patterns, URLs"
    )
    schema: str = config.option("", "schema YAML of files that were not ingested; '' = JetClass-II")
    features: str = config.option("datasets/jetclass2.yaml", "data YAML (weaver's schema)")
    labels: str = config.option("sophon188", "sophon188, sophon42, binary:<A> vs <B>; '' = what the data YAML says")
    run: str = config.option("runs/pretrain", "run folder")
    sample: str = config.option("", "what plots call the data, e.g. 'simulated'; '' = taken from the manifest")
    model: ModelConfig = config.option(ModelConfig(), "")
    loader: LoaderConfig = config.option(LoaderConfig(), "")
    sampling: SamplingConfig = config.option(SamplingConfig(), "")
    train: TrainConfig = config.option(TrainConfig(), "")
    workers: WorkersConfig = config.option(WorkersConfig(), "")
    checkpoints: CheckpointsConfig = config.option(CheckpointsConfig(), "")
    ray: RayConfig = config.option(RayConfig(), "")
    prepare: PrepareConfig = config.option(PrepareConfig(), "")
    discriminants: tuple[str, ...] = config.option(
        (), "A vs B, evaluated after training; none = X_bb vs QCD if it can be"
    )
    mlflow: str = config.option("", "tracking URI of an MLflow that gets the metrics, too; '' = none")
    find_lr: bool = config.option(False, "do not train, but look for a good learning rate: <run>/find_lr")
