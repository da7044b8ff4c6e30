from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jetfoundry.data.ingest import IngestConfig, ingest
from jetfoundry.data.inventory import Inventory, Source, expand, take_inventory
from jetfoundry.data.plan import Plan, ShardConfig, make_plan, split_of
from jetfoundry.data.shards import open_shards
from jetfoundry.data.unit import convert_unit
from jetfoundry.errors import InputError
from jetfoundry.loading.datasource import cut

JOB = Path(__file__).resolve().parents[2] / "jobs" / "ingest.py"


def _source(name: str, entries: int, cluster: int) -> Source:
    edges = (*range(0, entries, cluster), entries)
    return Source(
        path=name, kind="ttree", tree="tree", entries=entries, clusters=edges, bytes_per_jet=1, sample="", size=1,
        mtime_ns=1,
    )  # fmt: skip


def _digests(folder: Path) -> dict[str, str]:
    paths = sorted(folder.rglob("*.parquet"))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _all_jets(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.rglob("*.parquet")))


# --- the plan ---------------------------------------------------------------------------------------------------


def test_cuts_fall_on_cluster_boundaries_and_cover_the_file():
    assert cut([0, 10, 20, 30, 40, 45], 20) == [(0, 20), (20, 40), (40, 45)]
    assert cut([0, 100], 30) == [(0, 33), (33, 66), (66, 100)]
    assert cut([0, 3], 100) == [(0, 3)]


def test_a_plan_survives_its_file():
    plan = make_plan(Inventory((_source("a.root", 1000, 100),), ()), ShardConfig(jets_per_task=300))
    assert Plan.from_dict(plan.to_dict()) == plan
    assert Plan.from_dict(plan.to_dict()).hash == plan.hash


def test_splits_depend_on_file_name_and_entry_only_and_have_their_fractions():
    entries = np.arange(100_000)
    splits = split_of("/here/Res2P_0001.root", entries, 0.1, 0.2)
    assert np.array_equal(splits, split_of("elsewhere/Res2P_0001.parquet", entries, 0.1, 0.2))
    assert np.array_equal(splits[500:600], split_of("Res2P_0001.root", entries[500:600], 0.1, 0.2))
    fractions = np.bincount(splits, minlength=3) / len(entries)
    sigma = math.sqrt(0.25 / len(entries))
    assert np.abs(fractions - [0.7, 0.1, 0.2]).max() < 5 * sigma
    other = split_of("Res2P_0002.root", entries, 0.1, 0.2)
    assert abs(np.mean(other[splits == 1] == 1) - 0.1) < 5 * 0.3 / math.sqrt(10_000)


# --- units ------------------------------------------------------------------------------------------------------


def _plan(path: Path, **settings: object) -> Plan:
    return make_plan(take_inventory(expand([str(path)])), ShardConfig(**settings))


def test_a_unit_comes_out_bit_identical_again(tmp_path, make_jets, write_root):
    write_root(tmp_path / "in" / "jets.root", make_jets(300), cluster=50)
    plan = _plan(tmp_path / "in", jets_per_task=150)
    for out in ("one", "two"):
        convert_unit(plan, tmp_path / out, 1)
    assert _digests(tmp_path / "one") == _digests(tmp_path / "two")


def test_the_seed_changes_the_order_but_not_train_val_test(tmp_path, make_jets, write_root):
    write_root(tmp_path / "in" / "jets.root", make_jets(300))
    members = []
    for seed in (0, 1):
        convert_unit(_plan(tmp_path / "in", seed=seed), tmp_path / str(seed), 0)
        paths = sorted((tmp_path / str(seed) / "train").glob("*.parquet"))
        members.append([entry for path in paths for entry in pq.read_table(path)["source_entry"].to_pylist()])
    assert members[0] != members[1]
    assert sorted(members[0]) == sorted(members[1])


def test_class_pure_files_give_every_shard_its_share_of_every_class(tmp_path, make_jets, write_root):
    for label in range(4):
        write_root(tmp_path / "in" / f"{label}.root", make_jets(4000, seed=label, label=label), cluster=500)
    plan = _plan(tmp_path / "in", jets_per_task=4000, jets_per_shard=800)
    for unit in range(len(plan.units)):
        sidecar = convert_unit(plan, tmp_path / "out", unit)
        for shard in sidecar["shards"]:
            expected = shard["rows"] / 4
            assert np.abs(np.array(shard["class_counts"][:4]) - expected).max() < 5 * math.sqrt(expected)


@pytest.mark.parametrize("kind", ["rntuple", "parquet"])
def test_the_same_jets_give_the_same_shards_from_every_format(kind, tmp_path, real_table, write_root):
    for name in ("ttree", kind):
        suffix = "parquet" if name == "parquet" else "root"
        write_root(tmp_path / name / f"jets.{suffix}", real_table, kind=name)
        convert_unit(_plan(tmp_path / name), tmp_path / f"{name}-out", 0)
    assert _digests(tmp_path / "ttree-out") == _digests(tmp_path / f"{kind}-out")


# --- the pipeline -----------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path, make_jets, write_root):
    """Six units from two files."""
    for name, jets in (("a", 400), ("b", 200)):
        write_root(tmp_path / "in" / f"{name}.root", make_jets(jets), cluster=50)
    shards = ShardConfig(jets_per_task=100, jets_per_shard=40, row_group=20, chunk=25)
    return IngestConfig(input=(str(tmp_path / "in"),), output=str(tmp_path / "out"), shards=shards)


@pytest.mark.ray
def test_the_real_jets_are_ingested_unchanged_each_exactly_once(tmp_path, real_table, write_root, ray_local):
    write_root(tmp_path / "in" / "real.root", real_table)
    report = ingest(IngestConfig(input=(str(tmp_path / "in"),), output=str(tmp_path / "out")))
    assert report.complete
    assert sum(report.jets.values()) == report.new_jets == 60
    stored = _all_jets(tmp_path / "out").sort_by("source_entry")
    assert stored["source_entry"].to_pylist() == list(range(60))
    assert stored.drop_columns(["source_file", "source_entry"]).equals(real_table)
    counts = sum(open_shards(tmp_path / "out", split).class_counts for split in ("train", "val", "test"))
    assert counts.tolist() == np.bincount(real_table["jet_label"].to_numpy(), minlength=188).tolist()


@pytest.mark.ray
def test_every_jet_is_in_exactly_one_shard(settings, ray_local):
    report = ingest(settings)
    assert report.complete
    jets = _all_jets(Path(settings.output))
    where = list(zip(jets["source_file"].to_pylist(), jets["source_entry"].to_pylist(), strict=True))
    assert sorted(where) == [(0, entry) for entry in range(400)] + [(1, entry) for entry in range(200)]


@pytest.mark.ray
def test_a_rerun_does_only_what_is_missing_and_is_bit_identical(settings, ray_local):
    folder = Path(settings.output)
    first = ingest(settings)
    before = _digests(folder)
    (folder / "units" / "00002.json").unlink()  # killed between its shards and its sidecar
    (folder / "train" / "shard-00004-00.parquet").unlink()
    (folder / "manifest.json").unlink()
    half = folder / "train" / "shard-00002-00.parquet.tmp.123"
    half.write_bytes(b"half")
    untouched = (folder / "units" / "00000.json").stat().st_mtime_ns
    second = ingest(settings)
    assert _digests(folder) == before
    assert second.manifest_hash == first.manifest_hash
    assert 0 < second.new_jets < first.new_jets
    assert (folder / "units" / "00000.json").stat().st_mtime_ns == untouched
    assert not half.exists()
    assert ingest(settings).new_jets == 0


@pytest.mark.ray
def test_a_changed_input_or_setting_is_refused_with_the_difference(
    settings, tmp_path, make_jets, write_root, ray_local
):
    ingest(settings)
    other = dataclasses.replace(settings, shards=dataclasses.replace(settings.shards, seed=1))
    with pytest.raises(InputError, match=r"holds shards of another ingest: seed was 0, now 1; choose another folder"):
        ingest(other)
    write_root(tmp_path / "in" / "c.root", make_jets(10))
    with pytest.raises(InputError, match=r"c\.root is new"):
        ingest(settings)
    (tmp_path / "in" / "c.root").unlink()
    write_root(tmp_path / "in" / "b.root", make_jets(10))
    with pytest.raises(InputError, match=r"b\.root had \d+ bytes, now \d+"):
        ingest(settings)


@pytest.mark.ray
@pytest.mark.slow
def test_the_job_killed_midway_continues_to_the_same_shards(settings, tmp_path):
    plan = _plan(tmp_path / "in", **dataclasses.asdict(settings.shards))
    for unit in range(len(plan.units)):
        convert_unit(plan, tmp_path / "whole", unit)
    command = [sys.executable, str(JOB), f"input={tmp_path / 'in'}", f"output={settings.output}", "ray.num_cpus=1"]
    command += [f"shards.{key}={value}" for key, value in dataclasses.asdict(settings.shards).items()]
    job = subprocess.Popen(command, start_new_session=True)
    folder = Path(settings.output)
    while job.poll() is None and not list(folder.glob("units/*.json")):
        time.sleep(0.02)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    assert 0 < len(list(folder.glob("units/*.json"))) < len(plan.units)
    assert subprocess.run(command, check=False).returncode == 0
    assert _digests(folder) == _digests(tmp_path / "whole")
