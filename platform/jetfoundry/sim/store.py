"""ROOT files of simulated jets: TTree `tree` with the 54 columns, and a JSON `metadata` string beside it.

uproot's plain assignment writes an RNTuple nowadays; a TTree comes from mktree and extend. Jagged columns of one
group share a counter branch (`npart`, `ngenpart`, `naux_genpart`), as C++ arrays with a length do. Table and metadata
are one file, committed atomically: what a file says about itself cannot drift from what it holds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pyarrow as pa
import uproot

from jetfoundry import files
from jetfoundry.errors import InputError
from jetfoundry.schema import COLUMNS, LISTS, column_group

__all__ = ["TREE", "read_metadata", "sample_text", "write_shard"]

TREE = "tree"

_ZLIB = uproot.ZLIB(1)

_MODES = {"full": "", "no_mpi": ", no MPI", "fast": ", no MPI, no ISR"}


def sample_text(mode: str) -> str:
    """What plots and reports call these jets. It goes into each file, so that samples of two modes are told apart."""
    return f"simulated jets (Pythia 8{_MODES[mode]}, parametrised detector)"


def write_shard(
    path: str | Path,
    table: pa.Table,
    metadata: dict[str, Any],
    *,
    compression: uproot.compression.Compression | None = _ZLIB,
    cluster: int = 0,
) -> None:
    """Write a table of the 54 columns with its metadata (`mode` in it), atomically.

    `compression` is uproot's; `cluster`: jets of one cluster, 0 = all in one.
    """
    branches: dict[str, Any] = {}
    types: dict[str, str] = {}
    for column in COLUMNS:
        if not column.jagged:
            types[column.name] = column.kind
            branches[column.name] = table[column.name].to_numpy()
    for prefix in LISTS:
        group = [column for column in COLUMNS if column_group(column.name) == prefix]
        short = {column.name: column.name.removeprefix(f"{prefix}_") for column in group}
        types[prefix] = "var * {" + ", ".join(f"{short[c.name]}: {c.kind}" for c in group) + "}"
        branches[prefix] = ak.zip({short[c.name]: _jagged(table[c.name]) for c in group})
    with files.committed(path) as temporary, uproot.recreate(temporary, compression=compression) as root:
        tree = root.mktree(TREE, types, title="simulated jets, JetClass-II columns")
        step = cluster or max(1, table.num_rows)
        for start in range(0, max(1, table.num_rows), step):
            tree.extend({name: values[start : start + step] for name, values in branches.items()})
        root["metadata"] = json.dumps(metadata)
        root["sample"] = sample_text(metadata["mode"])


def _jagged(column: pa.ChunkedArray) -> ak.Array:
    lists = column.combine_chunks()
    offsets = ak.index.Index64(np.asarray(lists.offsets, dtype=np.int64))
    values = lists.values.to_numpy(zero_copy_only=False)
    return ak.Array(ak.contents.ListOffsetArray(offsets, ak.contents.NumpyArray(values)))


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What a file says about itself; InputError if it is damaged or was not written by `write_shard`."""
    try:
        with files.opened(path) as source, uproot.open(source) as root:
            metadata = json.loads(str(root["metadata"]))
    except (OSError, ValueError, KeyError, uproot.DeserializationError) as error:
        msg = f"{path}: cannot read it as a file of simulated jets: {error}"
        raise InputError(msg) from error
    return dict(metadata)
