"""Score any ROOT or Parquet files of jets, in input order, into one Parquet file.

Ray Data reads entry ranges, a pool of actors holds the network, results come back in order and are written as they
come. Columns of the result, one row per jet that the model's selection keeps: `source_file` (index into the inputs),
`source_entry`, the data YAML's jet-level observers as far as the input has them, `scores` (C, softmax), `latent` (D).
Input files, class names in order and model hash stand in the file's metadata. The input needs no truth.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from jetfoundry import config, files
from jetfoundry.downstream.scoring import as_lists, open_network, score_table
from jetfoundry.ray_session import RayConfig, raise_own

__all__ = ["ScoreConfig", "score_files"]

_PROVENANCE = ["source_file", "source_entry"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """What to score with what."""

    model: str = config.option("runs/demo", "run folder, model.pt, or an exported .onnx file")
    input: tuple[str, ...] = config.option(
        (), "ROOT or Parquet files with JetClass-II columns: paths, patterns, folders"
    )
    output: str = config.option("scores.parquet", "result file")
    all_jets: bool = config.option(False, "score jets outside the selection of the model's data YAML, too")
    workers: int = config.option(1, "actors that hold the network")
    device: str = config.option("cpu", "cpu or cuda (PyTorch models)")
    ray: RayConfig = config.option(RayConfig(), "")


def score_files(options: ScoreConfig) -> dict[str, Any]:
    """Score all jets of the inputs; returns the counts of jets read and scored.

    Raises InputError for inputs that cannot be read. The result file appears whole at the end, or not at all.
    """
    import ray.data
    import ray.exceptions

    from jetfoundry.data.inventory import expand
    from jetfoundry.data.root import open_jets
    from jetfoundry.loading.datasource import read_jets

    network = open_network(options.model)
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    paths = [file.path for file in expand(options.input)]
    with open_jets(paths[0]) as first:
        observers = [name for name in network.data.observers if name in first.names]
    columns = {*network.data.input_columns, *observers} - {*_PROVENANCE}
    jets = read_jets(paths, columns=sorted(columns))
    scored = jets.map_batches(
        ScoreBlock,
        fn_constructor_kwargs={
            "model": str(Path(options.model).resolve()),
            "device": options.device,
            "all_jets": options.all_jets,
        },
        batch_format="pyarrow",
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=options.workers),
        num_cpus=1,
        num_gpus=1 if options.device == "cuda" else 0,
    )
    inputs = [str(path) for path in paths]
    meta = {"classes": json.dumps(network.classes), "inputs": json.dumps(inputs), "model_hash": network.hash}
    read, rows, writer = 0, 0, None
    with files.committed(options.output) as temporary, tqdm(unit=" jets", unit_scale=True, desc="score") as bar:
        try:
            for block in scored.iter_batches(batch_format="pyarrow", batch_size=None):
                kept = block.filter(block["selected"]).drop_columns(["selected"])
                writer = writer or pq.ParquetWriter(temporary, kept.schema.with_metadata(meta), compression="zstd")
                writer.write_table(kept)
                read, rows = read + block.num_rows, rows + kept.num_rows
                bar.update(block.num_rows)
        except ray.exceptions.RayError as error:
            raise_own(error)
            raise
        if writer:
            writer.close()
    return {
        "jets": read,
        "scored": rows,
        "not_selected": read - rows,
        "model_hash": network.hash,
        "inputs": inputs,
        "output": options.output,
    }


class ScoreBlock:
    """The actor: opens the network once; every jet of a block comes back, `selected` or not."""

    def __init__(self, model: str, device: str, all_jets: bool) -> None:
        network = open_network(model, device)
        everything = dataclasses.replace(network.data, selection=None, test_time_selection=None)
        self._network = dataclasses.replace(network, data=everything) if all_jets else network

    def __call__(self, block: pa.Table) -> pa.Table:
        scored = score_table(self._network, block)
        probability = np.exp(scored.logits - scored.logits.max(axis=1, keepdims=True, initial=-np.inf))
        probability /= probability.sum(axis=1, keepdims=True)
        out = pa.table({name: block[name] for name in self._carried(block)})
        selected = np.zeros(block.num_rows, bool)
        selected[scored.rows] = True
        for name, values, width in (
            ("scores", probability, len(self._network.classes)),
            ("latent", scored.latent, self._network.latent_dim),
        ):
            full = np.zeros((block.num_rows, width), np.float32)
            full[scored.rows] = values
            out = out.append_column(name, as_lists(full))
        return out.append_column("selected", pa.array(selected))

    def _carried(self, block: pa.Table) -> list[str]:
        observers = [name for name in self._network.data.observers if name in block.column_names]
        return [*_PROVENANCE, *(name for name in observers if not pa.types.is_list(block.schema.field(name).type))]
