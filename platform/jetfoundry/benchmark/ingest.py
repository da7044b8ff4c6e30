"""ROOT -> Parquet: our units, one after the other in one process, against weaver's converter with its defaults.

Ours also checks every jet, mixes all files, splits, counts histograms and writes checksums; the converter does not.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from jetfoundry.benchmark import peer
from jetfoundry.benchmark.measure import Side
from jetfoundry.data import root
from jetfoundry.data.inventory import expand, take_inventory
from jetfoundry.data.plan import Plan, ShardConfig, make_plan
from jetfoundry.data.unit import convert_unit

__all__ = ["sides"]


def sides(inputs: list[Path], work: Path) -> list[Side]:
    """Both sides on the same files; they write below `work`."""
    return [
        Side("jetfoundry", _prepare, _run, {"inputs": inputs, "output": work / "ours"}),
        Side("weaver", _prepare_weaver, peer.convert, {"inputs": inputs, "output": work / "weaver"}),
    ]


def _prepare(inputs: list[Path], output: Path) -> tuple[Plan, Path]:
    shutil.rmtree(output, ignore_errors=True)
    plan = make_plan(take_inventory(expand([str(path) for path in inputs])), ShardConfig())
    root.forget()  # the planning process is not the one that converts
    return plan, output


def _run(state: tuple[Plan, Path]) -> int:
    plan, output = state
    sidecars = [convert_unit(plan, output, unit) for unit in range(len(plan.units))]
    return sum(shard["rows"] for sidecar in sidecars for shard in sidecar["shards"])


def _prepare_weaver(inputs: list[Path], output: Path) -> peer.Conversion:
    shutil.rmtree(output, ignore_errors=True)
    return peer.prepare_conversion(inputs, output)
