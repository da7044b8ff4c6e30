"""What a data YAML leaves to the data, centers and scales (`auto`) and reweighting tables: measured once, written down.

    1. standardise   center = median, scale = 1 / (the larger distance of the 16 % and 84 % percentile to it), over all
                     particles of the selected jets in a bounded, evenly spread sample of row groups (`data_fraction`)
    2. reweight      jets by class and bin -> tables (`reweighting.py`); from the manifest's histogram if the YAML asks
                     for its binning, else from one scan of all row groups, of the few columns that it needs

The result is the YAML itself with the numbers filled in, in the format of weaver's `*.auto.yaml`: weaver reads it, and
a checkpoint that holds it can standardise jets without the data it was trained on. It is kept in the shard folder as
`auto/<hash>.auto.yaml`, under a hash of the YAML and of the shards, and read back the next time.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry import config, files
from jetfoundry.errors import ConfigError, InputError
from jetfoundry.features.block import Block
from jetfoundry.features.data_config import KNOWN_COLUMNS, Weights
from jetfoundry.features.jagged import Jagged
from jetfoundry.features.reweighting import JetBins, class_histograms, jet_weights, overall_scale, weight_tables
from jetfoundry.features.transform import DataConfig, load_data_config
from jetfoundry.loading.manifest_histogram import manifest_counts
from jetfoundry.loading.pieces import JetSet, Piece, check_scheme, is_shard_folder, read_pieces

__all__ = ["complete"]

log = logging.getLogger(__name__)

_SAMPLE = 100_000  # jets that standardisation looks at: 4 million particles fix a percentile to a part in a thousand
_KEPT = 5_000_000  # jets whose weights are kept to find their mean and percentile


@dataclasses.dataclass(eq=False)
class _Counts:
    """What one look at the data says: histograms (K, X, Y), selected jets, those of them that count in no bin, classes
    that only the label scheme has emptied (K,), and some jets themselves."""

    histograms: npt.NDArray[np.float64]
    jets: int
    outside: int
    dropped: npt.NDArray[np.bool_]
    sample: JetBins | None = None


def complete(
    source: str | Path | Mapping[str, Any],
    shards: JetSet,
    *,
    known: Collection[str] | None = KNOWN_COLUMNS,
    scheme: str = "",
    weights: bool = True,
    skip_empty: bool = False,
) -> str:
    """The text of the data YAML with all numbers that `shards` (the training split) can tell; as it is if none lacks.

    `weights=False` leaves the reweighting alone. A reweighting class without jets is an InputError that names the class
    and its formula; with `skip_empty` it is a warning. Jets outside the bins are counted in a warning.
    """
    data = load_data_config(source, known=known, scheme=scheme)
    check_scheme(shards, data.labels.scheme)
    auto = list(data.unmeasured)
    section = data.weights if weights else None
    measure = section is not None and not (section.known and section.jets)
    if not auto and not measure:
        return _text(source)
    key = json.dumps([data.hash, shards.manifest_hash, shards.split, measure, skip_empty])
    kept = files.place(shards.folder) / "auto" if is_shard_folder(str(shards.folder)) else None
    path = kept / f"{hashlib.sha256(key.encode()).hexdigest()[:12]}.auto.yaml" if kept else None
    if path and path.exists():
        return files.read_text(path)
    tree = copy.deepcopy(dict(source) if isinstance(source, Mapping) else config.load_yaml(source))
    if auto:
        tree["preprocess"] = {**(tree.get("preprocess") or {}), "params": _params(data, _measure(data, shards, auto))}
    if section and measure:
        tree["weights"] = {**tree["weights"], **_reweight(data, section, shards, skip_empty)}
    text = config.dump_yaml(tree)
    try:
        if path:
            files.write_text(path, text)
    except (OSError, InputError) as error:  # a folder of somebody else, say
        log.warning("%s: not kept for the next run: %s", path, getattr(error, "strerror", None) or error)
    return text


def _text(source: str | Path | Mapping[str, Any]) -> str:
    if isinstance(source, Mapping):
        return config.dump_yaml(dict(source))
    return files.read_text(source)


def _measure(data: DataConfig, shards: JetSet, names: list[str]) -> dict[str, tuple[float, float]]:
    """Center and scale of the variables `names`, over the selected jets of a sample of row groups."""
    columns = data.stored(names, [data.selection])
    found: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in names}
    for group in _spread(shards.row_groups, min(1.0, data.data_fraction, _SAMPLE / max(shards.rows, 1))):
        block = data.selected(read_pieces([group], columns))
        for name in names:
            column = block.column(name)
            found[name].append(column.values if isinstance(column, Jagged) else column)
    return {name: _center_scale(np.concatenate(parts), name, data.where) for name, parts in found.items()}


def _spread(groups: Sequence[Piece], fraction: float) -> list[Piece]:
    """An evenly spread part of the row groups, at least one."""
    chosen = np.linspace(0, len(groups) - 1, max(1, math.ceil(fraction * len(groups))))
    return [groups[int(i)] for i in chosen] if groups else []


def _center_scale(values: npt.NDArray[Any], name: str, where: str) -> tuple[float, float]:
    if not values.size:
        msg = f"{where}: {name}: no value to standardise with: no particle of the sample passes the selection"
        raise InputError(msg)
    values = values.astype(np.float32) if values.dtype.kind == "b" else values
    if np.isnan(values).any():
        log.warning("%s: %s is NaN for some particles; they count as 0 in its center and scale", where, name)
        values = np.nan_to_num(values)
    low, center, high = np.percentile(values, [16, 50, 84])
    width = max(high - center, center - low)
    return float(center), float(1 / width) if width else 1.0


def _params(data: DataConfig, measured: dict[str, tuple[float, float]]) -> dict[str, dict[str, Any]]:
    """weaver's `preprocess.params`: every variable, measured or not. ConfigError if one is standardised in two ways."""
    params: dict[str, dict[str, Any]] = {}
    own = {"length", "pad_mode"}  # of the input, not of the variable
    for group in data.inputs.values():
        for v in group.variables:
            center, scale = measured[v.name] if v.auto else (v.center, v.scale)
            new = {"length": group.length, "pad_mode": group.pad_mode, "center": center, "scale": scale,
                   "min": v.low, "max": v.high, "pad_value": v.pad}  # fmt: skip
            before = params.setdefault(v.name, new)
            if any(before[key] != value for key, value in new.items() if key not in own):
                msg = f"{data.where}: inputs.{group.name}: {v.name} stands in another input with other numbers; with "
                msg += "`auto` a variable has one center and scale: give it a second name in new_variables"
                raise ConfigError(msg)
    return params


def _reweight(data: DataConfig, section: Weights, shards: JetSet, skip_empty: bool) -> dict[str, Any]:
    """What the data add to the `weights` section: weaver's `reweight_hists` and our `statistics`."""
    if section.known:
        jets, mean = _mean_of_known(data, shards)
        return {"statistics": {"jets": jets, "mean_weight": mean}}
    counts = manifest_counts(data, section, shards)
    found = _scan(data, section, shards) if counts is None else _Counts(*counts)
    if found.outside:
        log.warning(
            "%s: weights: %d of %d selected jets are outside the bins of %s or of no reweighting class: never used",
            data.where, found.outside, found.jets, " and ".join(section.vars),
        )  # fmt: skip
    kept = _kept_classes(data, section, found, skip_empty)
    own = dataclasses.replace(
        section,
        classes=tuple(np.asarray(section.classes)[kept].tolist()),
        class_weights=tuple(np.asarray(section.class_weights)[kept].tolist()),
    )
    tables = np.zeros(found.histograms.shape, np.float32)
    tables[kept] = weight_tables(found.histograms[kept], own)
    if found.sample is None:
        mean = float((found.histograms * tables).sum() / max(found.jets, 1))
    else:
        weights = jet_weights(found.sample, tables)
        if section.base_weight is not None:
            scale = overall_scale(weights, section)
            tables, weights = tables / np.float32(scale), weights / np.float32(scale)
        mean = float(np.clip(weights, 0, 1).mean())
    return {
        "reweight_hists": {name: _rows(table) for name, table in zip(section.classes, tables, strict=True)},
        "statistics": {"jets": found.jets, "mean_weight": mean},
    }


def _rows(table: npt.NDArray[np.float32]) -> list[list[float]]:
    """A table as nested lists with as many digits as float32 has."""
    return [[float(str(value)) for value in row] for row in table]


def _kept_classes(data: DataConfig, section: Weights, found: _Counts, skip_empty: bool) -> npt.NDArray[np.bool_]:
    """Classes with jets (K,). InputError for those without, except where the label scheme drops all their jets."""
    filled = np.asarray((found.histograms > 0).any(axis=(1, 2)))
    empty = [name for name, full, gone in zip(section.classes, filled, found.dropped, strict=True) if not full | gone]
    if empty or not filled.any():
        shown = "; ".join(f"{name} = {data.formulas[name]}" if name in data.formulas else name for name in empty[:3])
        what = f"{data.where}: weights.reweight_classes: {len(empty)} of {len(section.classes)} have no jets in "
        what += f"the bins of {' and '.join(section.vars)}: {shown}" + ("; …" if len(empty) > 3 else "")
        if not skip_empty or not filled.any():
            msg = f"{what}. Take them out of the YAML, or set sampling.empty_classes=skip"
            raise InputError(msg)
        log.warning("%s; they are left out", what)
    return np.asarray(filled, np.bool_)


def _blocks(data: DataConfig, shards: JetSet) -> Iterator[tuple[int, Block]]:
    """(row-group number, its selected jets) of the whole split."""
    pieces: Sequence[Piece] = shards.row_groups
    for number, piece in enumerate(pieces):
        yield number, data.selected(read_pieces([piece], data.weight_columns))


def _scan(data: DataConfig, section: Weights, shards: JetSet) -> _Counts:
    """Count all selected jets of the split."""
    shape = (len(section.classes), *section.shape)
    found = _Counts(np.zeros(shape), 0, 0, np.zeros(len(section.classes), bool))
    seen = np.zeros(len(section.classes), bool)
    step, sample = max(1, -(-shards.rows // _KEPT)), []
    for number, block in _blocks(data, shards):
        before = data.jet_bins(block)
        seen |= before.members.any(axis=1)
        jets = before.take(data.kept(block))
        found.histograms += class_histograms(jets, section.shape)
        found.jets += len(jets)
        found.outside += len(jets) - int(jets.inside.sum())
        if number % step == 0:
            sample.append(jets)
    filled = (found.histograms > 0).any(axis=(1, 2))
    found.dropped = seen & ~filled & (data.labels.scheme is not None)
    if not found.jets:
        msg = f"{shards.folder}: no jet of the {shards.split} split passes the selection of {data.where}"
        raise InputError(msg)
    bases = [jets.base for jets in sample if jets.base is not None]
    base = np.concatenate(bases) if bases else None
    members = np.concatenate([jets.members for jets in sample], axis=1)
    found.sample = JetBins(np.concatenate([jets.bins for jets in sample]), members, base)
    return found


def _mean_of_known(data: DataConfig, shards: JetSet) -> tuple[int, float]:
    """Number of selected jets and mean of min(weight, 1), where the weights themselves are known."""
    jets, total = 0, 0.0
    for _, block in _blocks(data, shards):
        weights = data.jet_weights(block)[data.kept(block)]
        jets, total = jets + len(weights), total + float(np.clip(weights, 0, 1).sum(dtype=np.float64))
    return jets, total / max(jets, 1)
