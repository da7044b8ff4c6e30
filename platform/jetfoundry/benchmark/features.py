"""Jets in memory -> padded network inputs: our features against weaver's, on the same Arrow table and YAML.

    to 128          all jets padded to the length of the YAML, as weaver does
    sorted          batches of 512 jets sorted by length, in 4 micro-batches padded to their own longest jet
    weaver          `_preprocess` of the data set: formulas, standardisation, padding to 128

The `weights` section is left out on both sides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jetfoundry import config, files
from jetfoundry.benchmark import peer
from jetfoundry.benchmark.measure import Side
from jetfoundry.data.shards import open_shards, read_row_group
from jetfoundry.features.transform import DataConfig, load_data_config
from jetfoundry.loading.window import length_sorted

__all__ = ["sides"]

_BATCH, _MICRO, _PADDED = 512, 4, 128

State = tuple[list[pa.Table], DataConfig]


def sides(shards: Path, features: str, work: Path, jets: int) -> list[Side]:
    """Both sides on the same `jets` jets of the train split; the YAML without weights goes to `work`."""
    plain = work / "features.yaml"
    files.write_text(plain, config.dump_yaml({**config.load_yaml(features), "weights": None}))
    where = {"shards": str(shards), "features": str(plain), "jets": jets}
    return [
        Side("jetfoundry, to 128", _prepare, _padded, where),
        Side("jetfoundry, sorted", _prepare, _sorted, where),
        Side("weaver", _prepare_weaver, _weaver, where),
    ]


def _tables(shards: str, columns: tuple[str, ...], jets: int) -> list[pa.Table]:
    tables: list[pa.Table] = []
    for group in open_shards(shards, "train").row_groups:
        tables.append(read_row_group(group, columns))
        if sum(table.num_rows for table in tables) >= jets:
            break
    return tables


def _prepare(shards: str, features: str, jets: int) -> State:
    data = load_data_config(features, scheme="sophon188")
    return _tables(shards, data.columns, jets), data


def _padded(state: State) -> int:
    tables, data = state
    jets = 0
    for table in tables:
        found = data.apply(table, training=True)
        found.pad_all(np.arange(len(found)), _PADDED)
        jets += len(found)
    return jets


def _sorted(state: State) -> int:
    tables, data = state
    jets = 0
    for table in tables:
        found = data.apply(table, training=True)
        for begin in range(0, len(found), _BATCH):
            length_sorted(found, np.arange(begin, min(begin + _BATCH, len(found))), _MICRO)
        jets += len(found)
    return jets


def _prepare_weaver(shards: str, features: str, jets: int) -> Any:
    module, settings = peer.weaver("utils.dataset"), peer.weaver("utils.data.config")
    awkward = peer.weaver("utils.dataset").ak
    cfg = settings.DataConfig.load(features, load_observers=False)
    tables = _tables(shards, tuple(sorted(cfg.train_load_branches)), jets)
    options = {"training": True, "shuffle": False, "reweight": False, "up_sample": False, "weight_scale": 1,
               "max_resample": 10, "batch_size": None, "mode": "train"}  # fmt: skip
    return module, cfg, options, [awkward.from_arrow(table) for table in tables]


def _weaver(state: Any) -> int:
    module, cfg, options, tables = state
    return sum(len(module._preprocess(table, cfg, options)[1]) for table in tables)
