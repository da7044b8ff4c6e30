"""The measured sample: given or simulated jets, repeated with jitter until there are enough, as ROOT files and shards.

Jitter changes every float by a relative 1e-4, so that compressors do not find the repetitions; counts, flags and
labels stay, so that all rules still hold.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import uproot

from jetfoundry import config, files
from jetfoundry.benchmark.settings import BenchmarkConfig
from jetfoundry.data.ingest import IngestConfig, ingest
from jetfoundry.data.inventory import expand
from jetfoundry.data.root import open_jets
from jetfoundry.schema import COLUMNS
from jetfoundry.sim.run import simulate
from jetfoundry.sim.settings import SimulateConfig
from jetfoundry.sim.store import write_shard

__all__ = ["root_files", "shard_folder"]

_SIMULATED = 4000
_PER_FILE = 20_000
_CLUSTER = 5000  # jets, some 20 MB; ROOT ends a cluster at 30 MB unless told otherwise
_JITTER = 1e-4
_COMPRESSIONS = {"zlib": uproot.ZLIB(1), "zstd": uproot.ZSTD(3), "lz4": uproot.LZ4(4)}


def root_files(cfg: BenchmarkConfig) -> list[Path]:
    """TTree files with `cfg.jets` jets, compressed as `cfg.compression` says."""
    source = [file.path for file in expand(cfg.input)] if cfg.input else _simulated(cfg.work / "simulated")
    made_of = {"jets": cfg.jets, "source": source, "compression": cfg.compression, "cluster": _CLUSTER}
    name = config.fingerprint(made_of)
    folder = cfg.work / f"root-{name}"
    if not (folder / "done.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        jets = _read(source, cfg.jets)
        rng = np.random.default_rng(1)
        for number, begin in enumerate(range(0, cfg.jets, _PER_FILE)):
            rows = np.arange(begin, min(begin + _PER_FILE, cfg.jets)) % jets.num_rows
            part = _jittered(jets.take(rows), rng)
            how: dict[str, Any] = {"compression": _COMPRESSIONS[cfg.compression], "cluster": _CLUSTER}
            write_shard(folder / f"jets-{number:04d}.root", part, {"mode": "full"}, **how)
        files.write_json(folder / "done.json", made_of)
    return sorted(folder.glob("*.root"))


def shard_folder(cfg: BenchmarkConfig) -> Path:
    """The same jets as shards."""
    inputs = root_files(cfg)
    folder = cfg.work / inputs[0].parent.name.replace("root-", "shards-")
    ingest(IngestConfig(input=tuple(map(str, inputs)), output=str(folder)))
    return folder


def _simulated(folder: Path) -> list[str]:
    overrides = [f"output={folder}", f"jets={_SIMULATED}"]
    simulate(config.read(SimulateConfig, "datasets/jetclass2_sim.yaml", overrides))
    return sorted(map(str, folder.glob("*.root")))


def _read(paths: Sequence[str], most: int) -> pa.Table:
    tables, rows = [], 0
    for path in paths:
        with open_jets(path) as reader:
            tables.append(reader.read(0, min(reader.entries, most - rows)))
        rows += tables[-1].num_rows
        if rows == most:
            break
    mixed = pa.concat_tables(tables).combine_chunks()
    return mixed.take(np.random.default_rng(0).permutation(mixed.num_rows))


def _jittered(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    columns = []
    for column in COLUMNS:
        values = table[column.name].combine_chunks()
        if column.kind == "float32":
            flat = pc.list_flatten(values) if column.jagged else values
            noise = (1 + _JITTER * rng.standard_normal(len(flat))).astype(np.float32)
            changed = pa.array(flat.to_numpy() * noise)
            offsets = _offsets(values) if column.jagged else None
            values = changed if offsets is None else pa.ListArray.from_arrays(offsets, changed, type=column.arrow_type)
        columns.append(values)
    return pa.table(columns, names=[column.name for column in COLUMNS])


def _offsets(lists: pa.ListArray) -> pa.Array:
    offsets = np.asarray(lists.offsets)
    return pa.array((offsets - offsets[0]).astype(np.int32))
