"""What to compare, on what, how often."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from jetfoundry import files
from jetfoundry.config import option
from jetfoundry.train.compiled import Compile
from jetfoundry.train.step import Precision

__all__ = ["BenchmarkConfig", "Compression", "Theme"]

Theme = Literal["ingest", "features", "loader", "train", "infer", "probes", "scaling"]
Compression = Literal["zlib", "zstd", "lz4"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """A benchmark against weaver-core 0.5.3, which must be installed (pip install 'jetfoundry[dev]')."""

    theme: Theme = option(
        "ingest",
        "ingest = ROOT to Parquet, features = jets to tensors, loader = Parquet to batches, "
        "train, infer = batches through the network, probes = a probe on kept embeddings, and without (no weaver), "
        "scaling = 1, 2, 4, … workers, and Ray against none (no weaver)",
    )
    input: tuple[str, ...] = option((), "ROOT files of JetClass-II jets to start from; none = simulate 4,000")
    jets: int = option(40_000, "size of the measured sample; the input is repeated with jitter to get there")
    compression: Compression = option("zlib", "of the ROOT files of the measured sample")
    rounds: int = option(5, "runs of each side, in turn")
    features: str = option("datasets/jetclass2.yaml", "data YAML of the themes features and loader")
    preset: str = option("sophon", "train, infer, probes: preset of the Particle Transformer")
    epochs: int = option(10, "probes: passes over the training jets")
    batch_size: int = option(512, "train, infer: jets of one batch")
    micro_batches: int = option(16, "train, infer: parts of our batch, sorted by length")
    length_step: int = option(1, "train, infer: pad our micro-batches to multiples of so many particles")
    workers: int = option(
        1, "train, infer on the CPU: measure ours also with so many workers of one thread each; scaling: up to so many"
    )
    device: str = option("cpu", "train, infer: cpu or cuda")
    precision: Precision = option("off", "train, infer: automatic mixed precision of all sides; off: ours also in bf16")
    compile: Compile = option("off", "train, infer: also measure both networks with torch.compile: default, …")
    curves: int = option(0, "train: steps of the loss curves, 3 seeds for each side, to compare; 0 = none")
    work: Path = option(Path("data/benchmark"), "folder of the samples; kept, so that the next run starts at once")
    output: Path = option(Path("docs/benchmarks"), "folder of the report <theme>_<hardware>_<date>.md")

    def __post_init__(self) -> None:
        if files.is_remote(self.work) or files.is_remote(self.output):
            msg = f"work {self.work} and output {self.output}: wanted folders of this machine, whose speed is measured"
            raise ValueError(msg)
        if self.jets < 100 or min(self.rounds, self.epochs) < 1:
            msg = f"wanted at least 100 jets, 1 round and 1 epoch, got {self.jets}, {self.rounds} and {self.epochs}"
            raise ValueError(msg)
        if not 1 <= self.workers <= self.batch_size or (self.workers > 1 and self.device != "cpu"):
            msg = f"wanted 1 <= workers <= batch_size, 1 with device=cuda; got {self.workers}"
            raise ValueError(msg)
