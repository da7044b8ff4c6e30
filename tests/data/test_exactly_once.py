"""Every good jet in exactly one shard, whatever was killed when; the same jets in the same split, always."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from jetfoundry import cli, files
from jetfoundry.data import conversion
from jetfoundry.data.ingest import IngestConfig, ingest
from jetfoundry.data.inventory import expand, take_inventory
from jetfoundry.data.plan import ShardConfig, make_plan
from jetfoundry.data.unit import convert_unit
from jetfoundry.data.verify import verify
from jetfoundry.errors import InputError

JOB = Path(__file__).resolve().parents[2] / "jobs" / "ingest.py"


def _digests(folder: Path) -> dict[str, str]:
    paths = sorted(folder.rglob("*.parquet"))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _where(folder: Path) -> collections.Counter[tuple[str, int]]:
    """How often each (file name, entry) stands in the shards."""
    names = [Path(source["path"]).name for source in files.read_json(folder / "plan.json")["inputs"]]
    found: collections.Counter[tuple[str, int]] = collections.Counter()
    for path in folder.glob("*/*.parquet"):
        table = pq.read_table(path, columns=["source_file", "source_entry"])
        found.update(zip((names[i] for i in table[0].to_pylist()), table[1].to_pylist(), strict=True))
    return found


class _Job:
    """`jobs/ingest.py` as a child process whose Ray is its own; nothing else is ever killed."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.command, self.folder, self.runs = command, folder, 0
        self.process: subprocess.Popen[bytes] | None = None
        self.kept: dict[Path, int] = {}  # sidecars at the start of the last run, with their times

    def committed(self) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in self.folder.glob("units/*.json")}

    def start(self) -> None:
        if self.process is None or self.process.poll() is not None:
            self.kept |= self.committed()
            # A driver waits a minute for a lost GCS by default.
            environment = {**os.environ, "RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
            self.process = subprocess.Popen(self.command, env=environment, stdout=subprocess.DEVNULL)
            self.runs += 1

    def kill(self, what: str) -> None:
        """SIGKILL the driver, or the child of it whose command line holds `what`; as soon as there is one."""
        for _ in range(6000):
            self.start()
            for process in [psutil.Process(self.process.pid)] if what == "driver" else self._children():
                with contextlib.suppress(psutil.Error):
                    if what == "driver" or what in " ".join(process.cmdline()):
                        process.kill()
                        return
            time.sleep(0.02)
        pytest.fail(f"no {what} among the job's children")

    def _children(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def finish(self) -> None:
        for _ in range(4):
            self.start()
            if self.process.wait(timeout=200) == cli.EXIT_SET_ASIDE:  # the bad jets
                return
        pytest.fail("the job does not come to its end")


@pytest.fixture
def job(tmp_path, make_jets, write_root) -> Iterator[_Job]:
    """40 units of 3000 jets in three files, 30 of them bad."""
    for seed, (name, jets) in enumerate({"a": 1500, "b": 1000, "c": 500}.items()):
        table = make_jets(jets, seed=seed)
        energy = table["jet_energy"].to_numpy().copy()
        energy[::100] = np.nan
        write_root(tmp_path / "in" / f"{name}.root", table, cluster=50, jet_energy=energy)
    out = tmp_path / "out"
    command = [sys.executable, str(JOB), f"input={tmp_path / 'in'}", f"output={out}", "ray.num_cpus=2"]
    command += ["shards.jets_per_task=75", "shards.jets_per_shard=30", "shards.row_group=20", "shards.chunk=15"]
    job = _Job(command, out)
    yield job
    if job.process and job.process.poll() is None:
        job.process.kill()
        job.process.wait()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_good_jet_is_in_one_shard_whatever_was_killed_when(job, tmp_path):
    settings = ShardConfig(jets_per_task=75, jets_per_shard=30, row_group=20, chunk=15)
    plan = make_plan(take_inventory(expand([str(tmp_path / "in")])), settings)
    for unit in range(len(plan.units)):
        convert_unit(plan, tmp_path / "whole", unit)

    rng = np.random.default_rng(20)
    victims = rng.permutation(["driver", "driver", "ray::", "raylet/raylet", "gcs_server"]).tolist()
    moments = np.sort(rng.uniform(0.02, 0.85, len(victims))) * len(plan.units)
    for victim, moment in zip(victims, moments, strict=True):
        while len(job.committed()) < moment:
            job.start()  # unless it still runs
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.2))
        assert len(job.committed()) < len(plan.units), "too late to kill anything"
        job.kill(victim)
    assert len(job.committed()) < len(plan.units)
    job.finish()

    assert job.runs >= 3
    now = job.committed()
    assert job.kept
    assert {path: now[path] for path in job.kept} == job.kept, "a rerun did units again"
    good = {(f"{n}.root", entry) for n, jets in (("a", 1500), ("b", 1000), ("c", 500)) for entry in range(jets)}
    good -= {(name, entry) for name, entry in good if entry % 100 == 0}
    found = _where(job.folder)
    assert set(found) == good
    assert set(found.values()) == {1}
    assert _digests(job.folder) == _digests(tmp_path / "whole")
    assert not list(job.folder.rglob("*.tmp.*"))
    assert verify(job.folder).faults == ()


@pytest.fixture
def settings(tmp_path, make_jets, write_root) -> IngestConfig:
    for name, jets in (("a", 300), ("b", 200)):
        write_root(tmp_path / "in" / f"{name}.root", make_jets(jets), cluster=50)
    shards = ShardConfig(jets_per_task=100, jets_per_shard=40, row_group=20, chunk=25)
    return IngestConfig(input=(str(tmp_path / "in"),), output=str(tmp_path / "out"), shards=shards)


def _splits(folder: Path) -> dict[str, set[tuple[str, int]]]:
    names = [Path(source["path"]).name for source in files.read_json(folder / "plan.json")["inputs"]]
    found = {}
    for split in ("train", "val", "test"):
        tables = [pq.read_table(path) for path in sorted((folder / split).glob("*.parquet"))]
        found[split] = {
            (names[i], entry)
            for table in tables
            for i, entry in zip(table["source_file"].to_pylist(), table["source_entry"].to_pylist(), strict=True)
        }
    return found


@pytest.mark.ray
def test_two_runs_agree_and_more_files_move_no_jet_to_another_split(
    settings, tmp_path, make_jets, write_root, ray_local
):
    ingest(settings)
    ingest(dataclasses.replace(settings, output=str(tmp_path / "again")))
    assert _digests(tmp_path / "again") == _digests(tmp_path / "out")
    write_root(tmp_path / "in" / "0.root", make_jets(250), cluster=50)  # sorts before the others
    ingest(dataclasses.replace(settings, output=str(tmp_path / "more")))
    few, many = _splits(tmp_path / "out"), _splits(tmp_path / "more")
    assert sum(map(len, many.values())) == 750
    for split, jets in few.items():
        assert jets
        assert jets == {(name, entry) for name, entry in many[split] if name != "0.root"}


@pytest.mark.ray
def test_a_folder_that_another_run_writes_into_is_refused(settings, ray_local, monkeypatch):
    folder = Path(settings.output)
    folder.mkdir()
    with files.locked(folder / ".lock") as free:
        assert free
        with pytest.raises(InputError, match="another ingest is writing into it"):
            ingest(settings)
    monkeypatch.setattr(conversion, "LEFT_BEHIND", 0.1)
    with (
        files.locked(folder / ".tasks.lock", shared=True),
        pytest.raises(InputError, match="tasks of an ingest that was killed are still writing"),
    ):
        ingest(settings)
    assert ingest(settings).new_jets == 500
