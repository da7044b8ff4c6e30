"""Back-pressure: as many units at once as memory allows, and the job still ends."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from jetfoundry.data import conversion
from jetfoundry.data.inventory import Inventory, Source
from jetfoundry.data.plan import Plan, ShardConfig, make_plan

MB = 2**20


def _plan(units: int, jets_mb: int) -> Plan:
    """`units` units with `jets_mb` MB of jets each."""
    source = Source(
        path="a.root", kind="ttree", tree="tree", entries=1000 * units, clusters=tuple(range(0, 1000 * units + 1, 100)),
        bytes_per_jet=jets_mb * MB // 1000, sample="", size=1, mtime_ns=1,
    )  # fmt: skip
    return make_plan(Inventory((source,), ()), ShardConfig(jets_per_task=1000))


def test_a_unit_is_as_large_as_256_mb_of_jets_whatever_their_size():
    for bytes_per_jet, entries in ((5_400, 1_000_000), (20_000, 300_000), (100, 1_000_000)):
        edges = tuple(range(0, entries + 1, 1000))
        source = Source(
            path="a.root", kind="ttree", tree="tree", entries=entries, clusters=edges, bytes_per_jet=bytes_per_jet,
            sample="", size=1, mtime_ns=1,
        )  # fmt: skip
        plan = make_plan(Inventory((source,), ()), ShardConfig())
        sizes = [sum(r.stop - r.start for r in unit) * bytes_per_jet for unit in plan.units]
        assert sum(sizes) == entries * bytes_per_jet
        assert max(sizes) <= 256 * MB + 2 * bytes_per_jet
        assert len(plan.units) == -(-entries * bytes_per_jet // (256 * MB))


def _most_at_once(intervals: list[tuple[float, float]]) -> int:
    """Most of the intervals that hold one moment."""
    return max(sum(begin <= moment < end for begin, end in intervals) for moment, _ in intervals)


@pytest.mark.ray
def test_with_little_memory_fewer_units_run_at_once_and_all_are_done(tmp_path, ray_local, monkeypatch):
    def slow(row: dict[str, Any], plan: Plan, folder: Path, patience: float) -> dict[str, Any]:
        began = time.time()
        time.sleep(0.5)
        (folder / f"{row['unit']}").write_text(f"{began} {time.time()}")
        return {"unit": row["unit"], "jets": 1000, "entries": 1000, "set_aside": 0, "error": ""}

    monkeypatch.setattr(conversion, "_task", slow)
    plan = _plan(units=6, jets_mb=256)  # 448 MB a task
    most = {}
    for memory_gb in (0.6, 1.0):
        folder = tmp_path / str(memory_gb)
        folder.mkdir()
        assert conversion.convert_units(plan, folder, [*range(6)], memory_gb=memory_gb, patience=1) == 6000
        read = [path.read_text().split() for path in folder.iterdir()]
        assert len(read) == 6
        most[memory_gb] = _most_at_once([(float(begin), float(end)) for begin, end in read])
    assert most == {0.6: 1, 1.0: 2}
