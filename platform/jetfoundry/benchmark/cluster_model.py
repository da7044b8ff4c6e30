"""A training of the Sophon card on many GPUs, on paper: what each resource is asked for, and which is full first.

`table()` gives what stands in docs/scaling.md. Measured are the bytes of a jet, the jets that a core loads in a second,
and the operations of the network. Assumed are what a GPU makes of its peak, and the machines' own figures from their
data sheets; nothing of this ran on a GPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

__all__ = ["AWS_A10G", "AWS_H100", "CLUSTERS", "Cluster", "Estimate", "estimate", "table"]

JETS = 134_000_000  # training jets of JetClass-II (arXiv:2405.12972)
PUBLISHED = 80 * 10_240_000  # jets that the published training takes: 80 epochs (same)
FLOP_PER_JET = 0.846e9  # forward and backward with 64 particles, counted by torch.utils.flop_counter
GRADIENT_BYTES = 4 * 2_304_688  # float32
READ_BYTES = 1_654  # of a jet, in the 27 of 56 columns that datasets/jetclass2.yaml reads: 119,981 simulated jets, LZ4
LOADED_PER_CORE = 158_000  # jets per CPU-second: `direct` of docs/benchmarks/loader_2x-amd-epyc_2026-11-22.md
BATCH_BYTES = 64 * (17 + 4 + 1) * 4  # of a jet padded to 64 particles: features, vectors, mask in float32
RAY_WINDOWS = 2 * 16_000  # jets that lie in the object store for one worker with loader.feed=ray: ray_tasks x window
LATENCY = 20e-6  # of one message between nodes [s], assumed


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Nodes of one kind, by their data sheets: peak of a GPU in dense bf16 [FLOP/s], what share of it a network as
    narrow as this one reaches (assumed), GPUs, cores and object store [bytes] of a node, its network card [bytes/s],
    what the shared storage gives to all nodes together [bytes/s], rounded list price of 2024 of a GPU with its part of
    the node [$/h]."""

    name: str
    peak: float
    utilisation: float
    gpus: int
    cores: int
    object_store: float
    network: float
    storage: float
    price: float
    batch: int = 512


# g5.12xlarge: 4 A10G of 70 TFLOP/s, 48 cores, 192 GB, 40 Gbit/s, 7.1 $/h. Storage: EFS, 10 GB/s at most for reading.
AWS_A10G = Cluster("A10G (4 a node, 40 Gbit/s)", 70e12, 0.10, 4, 48, 16e9, 5e9, 10e9, 7.1 / 4)
# p5.48xlarge: 8 H100 of 989 TFLOP/s, 192 cores, 2 TB, 3,200 Gbit/s, 98 $/h. The same storage.
AWS_H100 = Cluster("H100 (8 a node, 3,200 Gbit/s)", 989e12, 0.03, 8, 192, 200e9, 400e9, 10e9, 98 / 8)
CLUSTERS = (AWS_A10G, AWS_H100)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """For a number of GPUs: jets/s that all could take, seconds of a step and of its exchange of gradients, bytes/s
    that the storage is asked for, cores of a node that load, bytes of a node's object store (only with
    loader.feed=ray), hours of a pass over all jets and of the published training and its price [$], with no more than
    the storage gives, and by resource how much of it is asked for."""

    gpus: int
    jets_per_s: float
    step: float
    exchange: float
    storage: float
    cores: float
    object_store: float
    hours_of_pass: float
    hours: float
    dollars: float
    used: dict[str, float]

    @property
    def fullest(self) -> str:
        """The resource that is the first to be full."""
        return max(self.used, key=lambda name: self.used[name])


def ring(nodes: int, size: float, bandwidth: float, latency: float = LATENCY) -> float:
    """Seconds of an all-reduce of `size` bytes over a ring: each node sends and receives 2 (n - 1) parts of size / n
    (Patarasuk and Yuan 2009, 10.1016/j.jpdc.2008.09.002)."""
    return 2 * (nodes - 1) * (size / nodes / bandwidth + latency)


def estimate(cluster: Cluster, gpus: int) -> Estimate:
    """The training on so many GPUs, in nodes of that kind. The exchange of gradients is taken as if it began after the
    backward pass; DistributedDataParallel hides a part of it behind that. Inside a node it is neglected."""
    nodes = max(1, gpus // cluster.gpus)
    alone = cluster.utilisation * cluster.peak / FLOP_PER_JET  # jets/s of a GPU
    step, exchange = cluster.batch / alone, ring(nodes, GRADIENT_BYTES, cluster.network)
    rate = gpus * cluster.batch / (step + exchange)
    storage, cores = rate * READ_BYTES, rate / nodes / LOADED_PER_CORE
    object_store = min(gpus, cluster.gpus) * RAY_WINDOWS * BATCH_BYTES
    fed = rate / max(1.0, storage / cluster.storage)  # the jets/s that the storage gives at most
    hours = PUBLISHED / fed / 3600
    used = {
        "network": exchange / (step + exchange),
        "storage": storage / cluster.storage,
        "cores": cores / cluster.cores,
        "object store": object_store / cluster.object_store,
    }
    sizes = {"gpus": gpus, "jets_per_s": rate, "step": step, "exchange": exchange, "storage": storage, "cores": cores}
    return Estimate(
        **sizes,  # type: ignore[arg-type]
        object_store=object_store,
        hours_of_pass=JETS / fed / 3600,
        hours=hours,
        dollars=hours * gpus * cluster.price,
        used=used,
    )


def table(clusters: Sequence[Cluster] = CLUSTERS, gpus: Sequence[int] = (8, 64, 256)) -> str:
    """Markdown: a row for each cluster and number of GPUs."""
    head = [
        "GPUs", "jets/s", "exchange of a step", "storage [GB/s]", "cores of a node that load", "object store of a node",
        "a pass over 134 M jets", "the published training", "its price", "fullest",
    ]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for cluster in clusters:
        for each in (estimate(cluster, number) for number in gpus):
            share = f"{1e3 * each.exchange:.1f} of {1e3 * (each.step + each.exchange):.1f} ms"
            lines.append(
                f"| {each.gpus} {cluster.name} | {each.jets_per_s:,.0f} | {share} | {each.storage / 1e9:.2f} "
                f"| {each.cores:.1f} of {cluster.cores} | {each.object_store / 1e9:.1f} GB | "
                f"{60 * each.hours_of_pass:,.1f} min | {each.hours:.2f} h | {each.dollars:,.0f} $ | "
                f"{each.fullest}: {each.used[each.fullest]:.0%} |"
            )
    return "\n".join(lines)
