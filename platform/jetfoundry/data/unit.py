"""One unit of an ingest: read its ranges, check the jets, mix them, write the shards, commit with a sidecar.

A pure function of (plan, unit): the same bytes come out whenever and wherever it runs, so a unit that was cut
short is simply done again. Memory: all jets of the unit once, plus one range or one shard.
"""

from __future__ import annotations

import collections
import dataclasses
import gc
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jetfoundry import files
from jetfoundry.data import shards
from jetfoundry.data.check import check_jets
from jetfoundry.data.delphes import DelphesReader, open_source
from jetfoundry.data.delphes_jets import LEFT_OUT
from jetfoundry.data.plan import Plan, Range, split_of
from jetfoundry.data.root import DamagedFile, JetReader, jet_schema

__all__ = ["convert_unit"]

_SALVAGE = 500  # entries: a damaged range is halved down to this size to save what is well


def convert_unit(plan: Plan, folder: Path, unit: int) -> dict[str, Any]:
    """Convert unit number `unit` and return its sidecar.

    Sidecar: `shards` (path, split, rows, bytes, sha256, class_counts (188)), `histograms` by split
    (`shards.pack_counts`), `set_aside` (`jets` by reason, `left_out` likewise for reasons that are part of the
    rules, see delphes_jets.py, `entries` in ranges that could not be decoded, their `ranges`), `entries` of the plan,
    `seconds` and `cpu_seconds`. Raises InputError if a file cannot be read or a shard cannot be written.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    faults: list[dict[str, Any]] = []
    jets = _concatenate(list(_read(plan, unit, faults)))
    written, histograms = _write(plan, folder, unit, jets)
    unreadable = [fault for fault in faults if fault["reason"] == "unreadable"]
    reasons = collections.Counter(fault["reason"] for fault in faults if fault["reason"] != "unreadable")
    sidecar = {
        "unit": unit,
        "shards": written,
        "histograms": histograms,
        "set_aside": {
            "jets": {reason: count for reason, count in sorted(reasons.items()) if reason not in LEFT_OUT},
            "left_out": {reason: reasons[reason] for reason in LEFT_OUT if reasons[reason]},
            "entries": sum(fault["stop"] - fault["entry"] for fault in unreadable),
            "ranges": [fault["value"] for fault in unreadable],
        },
        "entries": sum(r.stop - r.start for r in plan.units[unit]),
        "seconds": round(time.perf_counter() - wall, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
    }
    path = shards.sidecar_path(folder, unit)
    with shards.writing(f"unit {unit}", path):
        if faults:
            lines = "".join(json.dumps(fault) + "\n" for fault in faults)
            files.write_text(path.with_suffix(".set-aside.jsonl"), lines)
        files.write_json(path, sidecar)
    del jets
    gc.collect()  # uproot's models refer to each other in circles; a worker lives for many units
    return sidecar


def _read(plan: Plan, unit: int, faults: list[dict[str, Any]]) -> Iterator[pa.Table]:
    """Tables of good jets, range by range; what is set aside is appended to `faults`."""
    ranges_of_file: dict[int, list[Range]] = {}
    for part in plan.units[unit]:
        ranges_of_file.setdefault(part.file, []).append(part)
    for index, ranges in ranges_of_file.items():
        source = plan.inventory.sources[index]
        with open_source(source.path, tree=source.tree, file_index=index, delphes=plan.delphes) as reader:
            for part in ranges:
                for table in _salvage(reader, part.start, part.stop, plan.config.round_doubles, faults):
                    yield _good_jets(table, source.path, faults)


def _salvage(
    reader: JetReader | DelphesReader, start: int, stop: int, round_doubles: bool, faults: list[dict[str, Any]]
) -> Iterator[pa.Table]:
    """Read a range; where that fails, its halves, until a damaged basket is confined to few entries."""
    try:
        if isinstance(reader, DelphesReader):
            table, losses = reader.convert(start, stop)
            faults += [{"file": reader.path, **dataclasses.asdict(loss)} for loss in losses]
            yield table
        else:
            yield reader.read(start, stop, round_doubles=round_doubles)
    except DamagedFile as error:
        if stop - start <= _SALVAGE:
            fault = {"file": reader.path, "entry": start, "stop": stop, "reason": "unreadable", "field": ""}
            faults.append({**fault, "value": str(error)})
            return
        middle = (start + stop) // 2
        yield from _salvage(reader, start, middle, round_doubles, faults)
        yield from _salvage(reader, middle, stop, round_doubles, faults)


def _good_jets(table: pa.Table, path: str, faults: list[dict[str, Any]]) -> pa.Table:
    good, bad = check_jets(table)
    if not bad:
        return table
    entries = table.column("source_entry").to_numpy()
    for fault in bad:
        where = {"file": path, "entry": int(entries[fault.row])}
        faults.append({**where, "reason": fault.reason, "field": fault.field, "value": fault.value})
    return table.filter(pa.array(good))


def _concatenate(tables: list[pa.Table]) -> pa.Table:
    """One table in one chunk; column by column, so that only one column is ever held twice."""
    schema = jet_schema()
    parts = [table.columns for table in tables]
    tables.clear()
    columns = []
    for i, field in enumerate(schema):
        chunks = [chunk for part in parts for chunk in part[i].chunks]
        columns.append(pa.concat_arrays(chunks) if chunks else pa.array([], field.type))
        for part in parts:
            part[i] = None
    return pa.table(columns, schema=schema)


def _splits(plan: Plan, jets: pa.Table) -> npt.NDArray[np.int8]:
    """Index into `shards.SPLITS` (B,) of each jet."""
    file, entry = jets.column("source_file").to_numpy(), jets.column("source_entry").to_numpy()
    splits = np.zeros(jets.num_rows, np.int8)
    for index in np.unique(file).tolist():
        here = file == index
        path = plan.inventory.sources[index].path
        splits[here] = split_of(path, entry[here], plan.config.val, plan.config.test)
    return splits


def _write(plan: Plan, folder: Path, unit: int, jets: pa.Table) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Write the shards of all splits in an order drawn from (seed, unit); returns their records and histograms."""
    settings = plan.config
    splits = _splits(plan, jets)
    order = np.random.default_rng([settings.seed, unit]).permutation(jets.num_rows)
    label, pt, sdmass = (jets.column(name).to_numpy() for name in ("jet_label", "jet_pt", "jet_sdmass"))
    written, histograms = [], {}
    for number, split in enumerate(shards.SPLITS):
        rows = order[splits[order] == number]
        histograms[split] = shards.pack_counts(shards.histogram(label[rows], pt[rows], sdmass[rows]))
        pieces = max(1, round(len(rows) / settings.jets_per_shard))
        for piece, chosen in enumerate(np.array_split(rows, pieces)):
            if len(chosen):
                path = shards.shard_path(split, unit, piece)
                table = jets.take(pa.array(chosen))
                written.append(shards.write_shard(folder, path, table, settings.row_group))
    return written, histograms
