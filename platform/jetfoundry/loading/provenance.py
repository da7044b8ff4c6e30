"""Where a jet of a batch comes from: shard and row, file and entry before that, and what is largest about it."""

from __future__ import annotations

import numpy as np

from jetfoundry.data.shards import RowGroup
from jetfoundry.features.transform import DataConfig
from jetfoundry.loading.batch import Batch
from jetfoundry.loading.pieces import read_pieces

__all__ = ["describe_jet"]


def describe_jet(batch: Batch, index: int, data: DataConfig) -> str:
    """One line on jet number `index` of a training batch: its place, and its input of the largest magnitude.

    Reads what the place needs from the shards; meant for messages about single jets.
    """
    return f"{_place(batch, index)}; its largest input is {_largest(batch, index, data)}"


def _place(batch: Batch, index: int) -> str:
    if batch.rows is None or not batch.pieces:
        return f"jet {index} of {batch.size} in the batch"
    row = int(batch.rows[index])
    for piece in batch.pieces:
        jets = read_pieces([piece], ["source_file", "source_entry"])
        if row < jets.num_rows:
            file, entry = (jets[name][row].as_py() for name in ("source_file", "source_entry"))
            within = f"row {row} of row group {piece.index}" if isinstance(piece, RowGroup) else f"tree {piece.tree}"
            return f"{piece.path}, {within} (entry {entry} of input file {file})"
        row -= jets.num_rows
    raise AssertionError(batch.rows[index])


def _largest(batch: Batch, index: int, data: DataConfig) -> str:
    for micro in batch.micro:
        if index < len(micro.labels):
            break
        index -= len(micro.labels)
    found = []
    for name, values in micro.inputs.items():
        size = np.abs(values[index].numpy())
        variable, *_ = np.unravel_index(int(np.nanargmax(size)), size.shape)
        found.append((float(size.max()), f"{name}.{data.inputs[name].vars[int(variable)]}"))
    value, name = max(found)
    return f"|{name}| = {value:.4g}"
