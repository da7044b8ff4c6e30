"""One unit of an ingest: read its ranges, check the jets, mix them, write the shards, commit with a sidecar.

A pure function of (plan, unit): the same bytes come out whenever and wherever it runs, so a unit that was cut
short is simply done again. Memory: all jets of the unit once, plus one range or one shard.
"""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import functools
import gc
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jetfoundry import files
from jetfoundry.data import mixing, remote, shards
from jetfoundry.data.check import check_jets
from jetfoundry.data.delphes import DelphesReader, open_source
from jetfoundry.data.delphes_jets import LEFT_OUT
from jetfoundry.data.inventory import stamp
from jetfoundry.data.layouts import Layout
from jetfoundry.data.plan import Plan, Range, split_of
from jetfoundry.data.reader import DamagedFile, JetReader
from jetfoundry.errors import InputError

__all__ = ["convert_unit"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_SALVAGE = 500  # entries: a damaged range is halved down to this size to save what is well


def convert_unit(plan: Plan, folder: Path, unit: int, patience: float = remote.PATIENCE) -> dict[str, Any]:
    """Convert unit number `unit` and return its sidecar; `patience` [s] is for servers that do not answer.

    Sidecar: `shards` (path, split, rows, bytes, sha256, class_counts (188)), `histograms` by split
    (`shards.pack_counts`), `set_aside` (`jets` by reason, `left_out` likewise for reasons that are part of the
    rules, see delphes_jets.py, `entries` in ranges that could not be decoded, their `ranges`), `entries` of the plan,
    `seconds` and `cpu_seconds`. Raises InputError if a file cannot be read or has changed, or a shard cannot be
    written: nothing is committed then.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    _keep_memory()
    gc.freeze()  # what was there before is not looked through again and again while uproot makes its many objects
    try:
        return _convert(plan, folder, unit, patience, wall, cpu)
    finally:
        gc.collect()  # uproot's models refer to each other in circles; a worker lives for many units
        gc.unfreeze()


@functools.cache
def _keep_memory() -> None:
    """Let the C library keep freed memory for the next unit: clearing new pages took an eighth of the CPU time.

    By default glibc gives each array of 128 kB or more back at once. Other C libraries have no `mallopt`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            mallopt(parameter, 1 << 30)


def _convert(plan: Plan, folder: Path, unit: int, patience: float, wall: float, cpu: float) -> dict[str, Any]:
    faults: list[dict[str, Any]] = []
    jets = mixing.join(list(_read(plan, unit, faults, patience)), plan.layout)
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
    return sidecar


def _read(plan: Plan, unit: int, faults: list[dict[str, Any]], patience: float) -> Iterator[pa.Table]:
    """Tables of good jets, range by range; what is set aside is appended to `faults`.

    InputError if a file is not, after reading, the one that was planned: its ranges may be a mixture of two.
    """
    ranges_of_file: dict[int, list[Range]] = {}
    for part in plan.units[unit]:
        ranges_of_file.setdefault(part.file, []).append(part)
    for index, ranges in ranges_of_file.items():
        source = plan.inventory.sources[index]
        how: dict[str, Any] = {"tree": source.tree, "file_index": index, "layout": plan.layout, "patience": patience}
        with open_source(source.path, delphes=plan.delphes, **how) as reader:
            for start, stop in _neighbours(ranges, source.clusters):
                for table in _salvage(reader, start, stop, plan.config.round_doubles, faults):
                    yield _good_jets(table, source.path, plan.layout, faults)
        if stamp(source.path, patience) != (source.size, source.mtime_ns):
            msg = f"{source.path}: changed while it was read, or since the plan was made; ingest into a new folder "
            msg += "when nobody writes it any more"
            raise InputError(msg)


def _neighbours(ranges: Sequence[Range], clusters: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges of one file, in their order; neighbours in one cluster become one, since it is decoded whole."""
    inside = set(clusters)
    start = ranges[0].start
    for part, following in itertools.zip_longest(ranges, ranges[1:]):
        if following is None or following.start != part.stop or part.stop in inside:
            yield start, part.stop
            start = following.start if following else part.stop


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


def _good_jets(table: pa.Table, path: str, layout: Layout, faults: list[dict[str, Any]]) -> pa.Table:
    good, bad = check_jets(table, layout)
    if not bad:
        return table
    entries = table.column("source_entry").to_numpy()
    for fault in bad:
        where = {"file": path, "entry": int(entries[fault.row])}
        faults.append({**where, "reason": fault.reason, "field": fault.field, "value": fault.value})
    return table.filter(pa.array(good))


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
                how = settings.row_group, classes, settings.compression
                written.append(shards.write_shard(folder, path, jets.take(chosen), *how))
    return written, histograms
