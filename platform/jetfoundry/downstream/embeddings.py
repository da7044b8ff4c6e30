"""Frozen embeddings: every jet passes the backbone once; all probes read the cache.

Ray Data runs one task per shard on a pool of actors that hold the network. Each shard's embedding is committed as its
own Parquet file, so an interrupted pass continues. The cache is keyed by weights, data YAML and manifest: a second
task on the same jets computes nothing again.

Columns of an embedding file, one row per scored jet: `row` (row in the shard), `latent` (D), `logits` (C).
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from jetfoundry import files
from jetfoundry.data.shards import ShardSet, open_shards
from jetfoundry.downstream.scoring import as_lists, open_network, score_table
from jetfoundry.errors import InputError
from jetfoundry.ray_session import raise_own

__all__ = ["Embeddings", "embed"]


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """All scored jets of one split: latent (B, D), logits (B, C), and where they stand in the shards.

    `key` names network, data and split; `computed` counts the shards that were not in the cache.
    """

    latent: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    shards: tuple[Path, ...]
    rows: tuple[npt.NDArray[np.int64], ...]
    key: str
    computed: int

    def columns(self, names: list[str]) -> pa.Table:
        """Stored columns of the same jets, in the same order (truth for labels, say)."""
        return pa.concat_tables(
            pq.read_table(shard, columns=names).take(pa.array(rows))
            for shard, rows in zip(self.shards, self.rows, strict=True)
        )


def embed(
    model: Path, data: str | Path, split: str, cache: Path, *, workers: int = 1, device: str = "cpu"
) -> Embeddings:
    """Embed a split of the shards in `data` with the network at `model`; what the cache holds is only read."""
    shards = open_shards(data, split)
    paths = sorted({group.path for group in shards.row_groups})
    if not paths:
        msg = f"{data}: the {split} split holds no jets to embed"
        raise InputError(msg)
    key = _key(model, shards)
    folder = cache / key / split
    jobs = [{"shard": str(Path(path).resolve()), "out": str((folder / Path(path).name).resolve())} for path in paths]
    todo = [job for job in jobs if not Path(job["out"]).exists()]
    if todo:
        _run(todo, model, shards, workers, device)
    tables = [pq.read_table(job["out"]) for job in jobs]
    return Embeddings(
        latent=np.concatenate([_matrix(table, "latent") for table in tables]),
        logits=np.concatenate([_matrix(table, "logits") for table in tables]),
        shards=tuple(Path(job["shard"]) for job in jobs),
        rows=tuple(table["row"].to_numpy() for table in tables),
        key=f"{key}/{split}",
        computed=len(todo),
    )


def _key(model: Path, shards: ShardSet) -> str:
    network = open_network(model)
    text = f"{network.hash} {network.data.hash} {shards.manifest_hash}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _run(todo: list[dict[str, str]], model: Path, shards: ShardSet, workers: int, device: str) -> None:
    import ray.data
    import ray.exceptions

    dataset = ray.data.from_items(todo, override_num_blocks=len(todo)).map(
        EmbedShard,
        fn_constructor_kwargs={"model": str(model.resolve()), "device": device},
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(todo))),
        num_cpus=1,
        num_gpus=1 if device == "cuda" else 0,
    )
    with tqdm(total=shards.rows, unit=" jets", unit_scale=True, desc=f"embed {shards.split}", mininterval=1.0) as bar:
        try:
            for row in dataset.iter_rows():
                bar.update(row["jets"])
        except ray.exceptions.RayError as error:
            raise_own(error)
            raise


class EmbedShard:
    """The actor: opens the network once, embeds shard after shard."""

    def __init__(self, model: str, device: str) -> None:
        self._network = open_network(model, device)

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        table = pq.read_table(job["shard"], columns=list(self._network.data.input_columns))
        scored = score_table(self._network, table)
        out = pa.table({"row": scored.rows, "latent": as_lists(scored.latent), "logits": as_lists(scored.logits)})
        with files.committed(job["out"]) as temporary:
            pq.write_table(out, temporary, compression="zstd")
        return {"jets": table.num_rows}


def _matrix(table: pa.Table, name: str) -> npt.NDArray[np.float32]:
    column = table[name].combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    width = column.type.list_size
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float32).reshape(-1, width)
