"""Frozen embeddings: every jet passes the backbone once; all probes read the cache.

Ray Data runs one task per shard (or per file of jets, where there are no shards) on a pool of actors that hold the
network. Each shard's embedding is committed as its own Parquet file, so an interrupted pass continues. The cache is
keyed by weights, data YAML and manifest: a second task on the same jets computes nothing again.

Columns of an embedding file, one row per scored jet: `row` (row in the shard), `latent` (D), `logits` (C).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from jetfoundry import files
from jetfoundry.data.shards import RowGroup, ShardSet
from jetfoundry.downstream.scoring import as_lists, open_network, score_table
from jetfoundry.errors import InputError
from jetfoundry.loading.pieces import JetFiles, JetSet, Piece, open_jet_set, read_pieces
from jetfoundry.ray_session import raise_own

__all__ = ["Embeddings", "embed"]

_FORMAT = "embedding-2"
_KEY = b"jetfoundry_embedding"  # in each file: what it is an embedding of


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """All scored jets of one split: latent (B, D), logits (B, C), and where they stand in the shards.

    `shards` are the paths of shards or files, `pieces` what belongs to the split in each, `rows` the scored ones of
    these. `key` names network, data and split; `computed` counts the shards that were not in the cache, `seconds` is
    the time that they took.
    """

    latent: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    shards: tuple[Path | str, ...]
    pieces: tuple[tuple[Piece, ...], ...]
    rows: tuple[npt.NDArray[np.int64], ...]
    key: str
    computed: int
    seconds: float
    split: str
    manifest: str

    @functools.cached_property
    def ids(self) -> npt.NDArray[np.int64]:
        """Numbers (B,) of the scored jets in the split, rising: the same jet has the same in every backbone's."""
        sizes = [sum(piece.rows for piece in pieces) for pieces in self.pieces]
        begins = itertools.accumulate(sizes, initial=0)
        return np.concatenate([begin + rows for begin, rows in zip(begins, self.rows, strict=False)])

    @property
    def cache_figures(self) -> dict[str, Any]:
        """What came from where, for summaries."""
        found = len(self.shards) - self.computed
        return {"shards": len(self.shards), "computed": self.computed, "from cache": found, "jets": len(self.ids),
                "seconds": round(self.seconds, 2)}  # fmt: skip

    def columns(self, names: list[str]) -> pa.Table:
        """Stored columns of the same jets, in the same order (truth for labels, say)."""
        return pa.concat_tables(
            read_pieces(pieces, names).take(pa.array(rows)) for pieces, rows in zip(self.pieces, self.rows, strict=True)
        )


def embed(
    model: Path,
    data: str | Path | JetSet,
    split: str,
    cache: Path,
    *,
    workers: int = 1,
    gpus: float = 0.0,
    tokens: Sequence[str] = (),
) -> Embeddings:
    """Embed a split of the jets in `data` with the network at `model`; what the cache holds is only read.

    `data` is a shard folder, ROOT or Parquet files as `open_jet_set` takes them, or that split of them, open. The
    latent is that of the network's first class token, or of these `tokens`. Each of the `workers` reserves a CPU and
    this share of a GPU, and computes there if it has one.
    """
    jets = data if isinstance(data, JetFiles | ShardSet) else open_jet_set(str(data), split, count=False)
    parts = [tuple(part) for _, part in itertools.groupby(map(_absolute, jets.row_groups), lambda piece: piece.path)]
    if not parts:
        msg = f"{jets.folder}: the {split} split holds no jets to embed"
        raise InputError(msg)
    key = _key(model, jets, tokens)
    folder = (cache / key / split).resolve()
    outputs = [str(folder / _name(number, part[0])) for number, part in enumerate(parts)]
    there = files.for_each(files.exists, outputs, folder)
    todo = [number for number, done in enumerate(there) if not done]
    begin = time.perf_counter()
    if todo:
        network = {"model": str(model.resolve()), "device": "cuda" if gpus else "cpu", "tokens": tuple(tokens)}
        _run([(parts[number], outputs[number]) for number in todo], network, jets, workers, gpus, key)
    seconds = time.perf_counter() - begin if todo else 0.0
    tables = files.for_each(functools.partial(_read, key=key), outputs, folder)
    return Embeddings(
        latent=np.concatenate([_matrix(table, "latent") for table in tables]),
        logits=np.concatenate([_matrix(table, "logits") for table in tables]),
        shards=tuple(part[0].path for part in parts),
        pieces=tuple(parts),
        rows=tuple(table["row"].to_numpy() for table in tables),
        key=f"{key}/{split}",
        computed=len(todo),
        seconds=seconds,
        split=split,
        manifest=jets.manifest_hash,
    )


def _absolute(piece: Piece) -> Piece:
    """Tasks may run in another folder; paths of files are absolute already."""
    return dataclasses.replace(piece, path=piece.path.resolve()) if isinstance(piece, RowGroup) else piece


def _name(number: int, piece: Piece) -> str:
    return piece.path.name if isinstance(piece, RowGroup) else f"file-{number:05d}.parquet"


def _key(model: Path, jets: JetSet, tokens: Sequence[str]) -> str:
    network = open_network(model, tokens=tokens)
    text = " ".join((_FORMAT, network.hash, network.data.hash, jets.manifest_hash, *tokens))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _read(path: str, key: str) -> pa.Table:
    """A file of the cache; InputError if another network, or another pass over other jets, has written it."""
    with files.opened(path) as source:
        table = pq.read_table(source)
    written = (table.schema.metadata or {}).get(_KEY, b"nobody knows what").decode()
    if written != key:
        msg = f"{path}: an embedding of {written}, wanted one of {key}: files were moved between caches; delete it"
        raise InputError(msg)
    return table


def _run(
    todo: Sequence[tuple[tuple[Piece, ...], str]],
    network: Mapping[str, Any],
    jets: JetSet,
    workers: int,
    gpus: float,
    key: str,
) -> None:
    import ray.data
    import ray.exceptions

    items = [{"number": number} for number in range(len(todo))]
    dataset = ray.data.from_items(items, override_num_blocks=len(todo)).map(
        EmbedShard,
        fn_constructor_kwargs={"todo": todo, "key": key, **network},
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(todo))),
        num_cpus=1,
        num_gpus=gpus,
    )
    with tqdm(total=jets.rows, unit=" jets", unit_scale=True, desc=f"embed {jets.split}", mininterval=1.0) as bar:
        try:
            for row in dataset.iter_rows():
                bar.update(row["jets"])
        except ray.exceptions.RayError as error:
            raise_own(error)
            raise


class EmbedShard:
    """The actor: opens the network once, embeds shard after shard of `todo` (pieces, path of the embedding)."""

    def __init__(
        self, todo: Sequence[tuple[tuple[Piece, ...], str]], key: str, model: str, device: str, tokens: Sequence[str]
    ) -> None:
        self._todo, self._key, self._network = todo, key, open_network(model, device, tokens)

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        pieces, path = self._todo[job["number"]]
        table = read_pieces(pieces, self._network.data.input_columns)
        scored = score_table(self._network, table)
        finite = np.isfinite(np.concatenate([scored.latent, scored.logits], axis=1)).all(axis=1)
        if not finite.all():
            first, number = scored.rows[~finite][0], np.count_nonzero(~finite)
            msg = (
                f"{pieces[0].path}: the network gives NaN or infinity for {number} of {len(finite)} jets, the first is "
            )
            raise InputError(msg + f"row {first}; is its input finite?")
        out = pa.table({"row": scored.rows, "latent": as_lists(scored.latent), "logits": as_lists(scored.logits)})
        out = out.replace_schema_metadata({_KEY: self._key})
        with files.committed(path) as temporary:
            pq.write_table(out, temporary, compression="zstd")
        return {"jets": table.num_rows}


def _matrix(table: pa.Table, name: str) -> npt.NDArray[np.float32]:
    column = table[name].combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    width = column.type.list_size
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float32).reshape(-1, width)
