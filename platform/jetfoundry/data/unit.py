"""One unit of an ingest: read its ranges, check the jets, mix them, write the shards, commit with a sidecar.

A pure function of (plan, unit): the same bytes come out whenever and wherever it runs, so a unit that was cut
short is simply done again. Memory: all jets of the unit once, plus one cluster of a file or one row group.
"""

from __future__ import annotations

import collections
import dataclasses
import gc
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jetfoundry import files, remote
from jetfoundry.data import mixing, shards
from jetfoundry.data.check import check_jets
from jetfoundry.data.delphes import DelphesReader, open_source
from jetfoundry.data.delphes_jets import LEFT_OUT
from jetfoundry.data.inventory import stamp
from jetfoundry.data.layouts import Layout
from jetfoundry.data.plan import Plan, Range, split_of
from jetfoundry.data.reader import DamagedFile, JetReader
from jetfoundry.errors import InputError
from jetfoundry.memory import keep_memory

__all__ = ["convert_unit"]

_AT_ONCE = 2000  # entries read at once, at least, where clusters are smaller
_SALVAGE = 500  # entries: a damaged range is halved down to this size to save what is well

_MEMORY: dict[Layout, Sequence[npt.NDArray[Any]]] = {}  # of the last unit of this process, for its next one

_Ranges = list[tuple[int, int]]  # start, stop; rising, apart


def convert_unit(plan: Plan, folder: Path, unit: int, patience: float = remote.PATIENCE) -> dict[str, Any]:
    """Convert unit number `unit` and return its sidecar; `patience` [s] is for servers that do not answer.

    Sidecar: `shards` (path, split, rows, bytes, xxh128, class_counts (188)), `histograms` by split
    (`shards.pack_counts`), `set_aside` (`jets` by reason, `left_out` likewise for reasons that are part of the
    rules, see delphes_jets.py, `entries` in ranges that could not be decoded, their `ranges`), `entries` of the plan,
    `seconds` and `cpu_seconds`. Raises InputError if a file cannot be read or has changed, or a shard cannot be
    written: nothing is committed then.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    keep_memory()
    gc.freeze()  # what was there before is not looked through again and again while uproot makes its many objects
    try:
        return _convert(plan, folder, unit, patience, wall, cpu)
    finally:
        gc.collect()  # uproot's models refer to each other in circles; a worker lives for many units
        gc.unfreeze()


def _convert(plan: Plan, folder: Path, unit: int, patience: float, wall: float, cpu: float) -> dict[str, Any]:
    faults: list[dict[str, Any]] = []
    jets = mixing.MixedJets(plan.layout, sum(r.stop - r.start for r in plan.units[unit]), _MEMORY.pop(plan.layout, ()))
    _read(plan, unit, jets, faults, patience)
    written, histograms = _write(plan, folder, unit, jets)
    _MEMORY[plan.layout] = jets.memory
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
    return sidecar


def _read(plan: Plan, unit: int, jets: mixing.MixedJets, faults: list[dict[str, Any]], patience: float) -> None:
    """Add the good jets to `jets`, in the order of files and entries; what is set aside is appended to `faults`.

    InputError if a file is not, after reading, the one that was planned: its ranges may be a mixture of two.
    """
    ranges_of_file: dict[int, list[Range]] = {}
    for part in plan.units[unit]:
        ranges_of_file.setdefault(part.file, []).append(part)
    for index, ranges in ranges_of_file.items():
        source = plan.inventory.sources[index]
        how: dict[str, Any] = {"tree": source.tree, "file_index": index, "layout": plan.layout, "patience": patience}
        with open_source(source.path, delphes=plan.delphes, **how) as reader:
            for together in _by_cluster(ranges, source.clusters):
                _salvage(reader, together, plan.config.round_doubles, jets, faults)
        if stamp(source.path, patience) != (source.size, source.mtime_ns):
            msg = f"{source.path}: changed while it was read, or since the plan was made; ingest into a new folder "
            msg += "when nobody writes it any more"
            raise InputError(msg)


def _by_cluster(ranges: Sequence[Range], clusters: Sequence[int]) -> Iterator[_Ranges]:
    """The ranges of one file, cut at its clusters; all of one cluster together, so that it is decoded once.

    Small clusters that follow each other stay together: reading has a cost of its own.
    """
    edges = np.asarray(clusters, np.int64)
    together: _Ranges = []
    latest = -1
    for part in ranges:
        first, last = np.searchsorted(edges, part.start, "right") - 1, np.searchsorted(edges, part.stop, "left")
        for cluster in range(int(first), int(last)):
            start, stop = max(part.start, int(edges[cluster])), min(part.stop, int(edges[cluster + 1]))
            enough = bool(together) and together[-1][1] - together[0][0] >= _AT_ONCE
            if together and (cluster > latest + 1 or (cluster > latest and enough)):
                yield together
                together = []
            if together and together[-1][1] == start:
                start = together.pop()[0]
            together.append((start, stop))
            latest = cluster
    yield together


def _salvage(
    reader: JetReader | DelphesReader,
    ranges: _Ranges,
    round_doubles: bool,
    jets: mixing.MixedJets,
    faults: list[dict[str, Any]],
) -> None:
    """Read ranges of one cluster; where that fails, their halves, until the damage is confined to few entries."""
    try:
        if isinstance(reader, DelphesReader):
            _convert_events(reader, ranges, jets, faults)
        else:
            _read_jets(reader, ranges, round_doubles, jets, faults)
    except DamagedFile as error:
        start, stop = ranges[0]
        if len(ranges) == 1 and stop - start <= _SALVAGE:
            fault = {"file": reader.path, "entry": start, "stop": stop, "reason": "unreadable", "field": ""}
            faults.append({**fault, "value": str(error)})
            return
        for half in _halves(ranges):
            _salvage(reader, half, round_doubles, jets, faults)


def _read_jets(
    reader: JetReader, ranges: _Ranges, round_doubles: bool, jets: mixing.MixedJets, faults: list[dict[str, Any]]
) -> None:
    start, stop = ranges[0][0], ranges[-1][1]
    only = ranges if len(ranges) > 1 else ()
    if jets.add(reader.columns(start, stop, round_doubles=round_doubles, only=only)):
        table = jets.latest()
        good = _good(table, jets.layout, reader.path, faults)
        if not good.all():
            jets.keep(good)
        return
    tables = [reader.read(*part, round_doubles=round_doubles) for part in ranges]  # lists of a jet differ in length
    for table in tables:
        jets.append(table.filter(pa.array(_good(table, jets.layout, reader.path, faults))))


def _convert_events(
    reader: DelphesReader, ranges: _Ranges, jets: mixing.MixedJets, faults: list[dict[str, Any]]
) -> None:
    converted = [reader.convert(*part) for part in ranges]  # all, or none if one fails
    for table, losses in converted:
        faults += [{"file": reader.path, **dataclasses.asdict(loss)} for loss in losses]
        jets.append(table.filter(pa.array(_good(table, jets.layout, reader.path, faults))))


def _halves(ranges: _Ranges) -> tuple[_Ranges, _Ranges]:
    """Both halves of the entries of one range, or of a row of ranges."""
    middle = len(ranges) // 2
    if middle:
        return ranges[:middle], ranges[middle:]
    ((start, stop),) = ranges
    return [(start, (start + stop) // 2)], [((start + stop) // 2, stop)]


def _good(table: pa.Table, layout: Layout, path: str, faults: list[dict[str, Any]]) -> npt.NDArray[np.bool_]:
    """Which jets (R,) pass the checks; the others are appended to `faults`."""
    good, bad = check_jets(table, layout)
    entries = table.column("source_entry").to_numpy()
    for fault in bad:
        where = {"file": path, "entry": int(entries[fault.row])}
        faults.append({**where, "reason": fault.reason, "field": fault.field, "value": fault.value})
    return good


def _splits(plan: Plan, jets: mixing.MixedJets) -> npt.NDArray[np.int8]:
    """Index into `shards.SPLITS` (B,) of each jet."""
    file, entry = jets.column("source_file"), jets.column("source_entry")
    splits = np.zeros(len(jets), np.int8)
    for index in np.unique(file).tolist():
        here = file == index
        path = plan.inventory.sources[index].path
        splits[here] = split_of(path, entry[here], plan.config.val, plan.config.test)
    return splits


def _write(plan: Plan, folder: Path, unit: int, jets: mixing.MixedJets) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Write the shards of all splits in an order drawn from (seed, unit); returns their records and histograms."""
    settings, classes = plan.config, len(plan.layout.classes)
    splits = _splits(plan, jets)
    order = np.random.default_rng([settings.seed, unit]).permutation(len(jets))
    label, pt, sdmass = (jets.column(name) for name in ("jet_label", "jet_pt", "jet_sdmass"))
    written, histograms = [], {}
    for number, split in enumerate(shards.SPLITS):
        rows = order[splits[order] == number]
        histograms[split] = shards.pack_counts(shards.histogram(label[rows], pt[rows], sdmass[rows], classes))
        pieces = max(1, round(len(rows) / settings.jets_per_shard))
        for piece, chosen in enumerate(np.array_split(rows, pieces)):
            if len(chosen):
                path = shards.shard_path(split, unit, piece)
                how = plan.row_group, classes, settings.compression
                written.append(shards.write_shard(folder, path, mixing.Draw(jets, chosen), *how))
    return written, histograms
