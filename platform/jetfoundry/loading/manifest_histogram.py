"""Reweighting counts from the manifest: no shard is read where the YAML asks for the histogram that ingest has filled.

That histogram counts jets by class, jet_pt and jet_sdmass in the bins of the JetClass-II card. It serves a YAML with
the same two variables and edges, whose reweighting classes are formulas of `jet_label` alone and exclude each other,
and whose selection is the rectangle of the bins itself, or none. Jets exactly on the rectangle's lower edge are counted
and may fail the selection.
"""

from __future__ import annotations

import ast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jetfoundry.data.shards import MASS_EDGES, PT_EDGES
from jetfoundry.features.block import Block
from jetfoundry.features.data_config import Weights
from jetfoundry.features.expressions import Formula
from jetfoundry.features.transform import DataConfig
from jetfoundry.loading.pieces import JetSet

__all__ = ["manifest_counts"]

_EDGES = {"jet_pt": tuple(map(float, PT_EDGES)), "jet_sdmass": tuple(map(float, MASS_EDGES))}
_BELOW = (ast.Lt, ast.LtE)
_ABOVE = (ast.Gt, ast.GtE)


def manifest_counts(
    data: DataConfig, section: Weights, shards: JetSet
) -> tuple[npt.NDArray[np.float64], int, int, npt.NDArray[np.bool_]] | None:
    """Histograms (K, 14, 48), selected jets, those of them outside, and classes (K,) that the label scheme has emptied;
    None if the manifest cannot tell."""
    if list(section.vars.items()) != list(_EDGES.items()) or not section.discard_under_overflow or section.base_weight:
        return None
    histogram = getattr(shards, "histogram", None)  # files that were never ingested have none
    if histogram is None or data.stored(section.classes, data.labels.formulas.values()) != ("jet_label",):
        return None
    if data.selection is not None and _rectangle(data.selection) != {n: (e[0], e[-1]) for n, e in _EDGES.items()}:
        return None
    every_class = Block(data, pa.table({"jet_label": pa.array(range(len(shards.classes)), pa.int32())}))
    members = data.members(every_class).astype(np.float64)  # (K, C)
    if (members.sum(axis=0) > 1).any():
        return None  # the weight of a jet of several classes is that of the last: counts alone do not tell
    kept = np.zeros(len(shards.classes))
    kept[data.kept(every_class)] = 1
    bins = histogram.astype(np.float64)
    histograms = np.tensordot(members * kept, bins, axes=1)
    counted = int(np.tensordot(members.any(axis=0) * kept, bins, axes=1).sum())
    jets = int((shards.class_counts * kept).sum() if data.selection is None else (bins.sum(axis=(1, 2)) * kept).sum())
    seen = (members @ bins.sum(axis=(1, 2))) > 0
    return histograms, jets, jets - counted, seen & (histograms.sum(axis=(1, 2)) == 0)


def _rectangle(formula: Formula) -> dict[str, tuple[float, float]] | None:
    """Bounds by variable of a formula like (x > 1) & (x < 2) & (y > 0); None if it is anything else."""
    bounds: dict[str, tuple[float, float]] = {}
    parts: list[ast.expr] = [formula.tree]
    while parts:
        match parts.pop():
            case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
                parts += [left, right]
            case ast.Compare(
                left=ast.Name(id=name), ops=[op], comparators=[ast.Constant(value=int() | float() as value)]
            ):
                low, high = bounds.get(name, (-np.inf, np.inf))
                if isinstance(op, _ABOVE):
                    bounds[name] = (max(low, float(value)), high)
                elif isinstance(op, _BELOW):
                    bounds[name] = (low, min(high, float(value)))
                else:
                    return None
            case _:
                return None
    return bounds
