"""Each test damages one thing and checks that the message says what, where, and what was wanted."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
from pathlib import Path

import awkward as ak
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jetfoundry import cli
from jetfoundry.data import shards
from jetfoundry.data.check import check_jets
from jetfoundry.data.ingest import IngestConfig, ingest
from jetfoundry.data.inventory import expand, take_inventory
from jetfoundry.data.plan import ShardConfig, make_plan
from jetfoundry.data.root import JetReader, open_jets
from jetfoundry.data.unit import convert_unit
from jetfoundry.errors import InputError
from jetfoundry.sim.store import write_shard


def _reason(path: Path) -> str:
    inventory = take_inventory([path])
    assert not inventory.sources
    return inventory.set_aside[0].reason


# --- whole files ------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_root_is_set_aside(tmp_path):
    path = tmp_path / "notes.root"
    path.write_text("not a ROOT file")
    assert _reason(path) == f"{path}: neither ROOT nor Parquet, it begins with b'not a RO'"


def test_an_empty_file_is_set_aside(tmp_path):
    path = tmp_path / "empty.root"
    path.touch()
    assert _reason(path) == f"{path}: empty file (0 bytes)"


@pytest.mark.parametrize("kind", ["ttree", "rntuple"])
def test_a_truncated_root_file_is_set_aside(kind, tmp_path, make_jets, write_root):
    path = write_root(tmp_path / "cut.root", make_jets(50), kind=kind)
    size = path.stat().st_size
    os.truncate(path, size // 2)
    assert _reason(path) == f"{path}: truncated ROOT file, its header announces {size} bytes, it has {size // 2}"


def test_a_truncated_parquet_file_is_set_aside(tmp_path, make_jets, write_root):
    path = write_root(tmp_path / "cut.parquet", make_jets(50), kind="parquet")
    os.truncate(path, path.stat().st_size // 2)
    assert f"{path}: damaged or truncated, cannot be decoded" in _reason(path)


@pytest.mark.parametrize("kind", ["ttree", "parquet"])
def test_a_file_without_jets_is_set_aside(kind, tmp_path, make_jets, write_root):
    path = write_root(tmp_path / "none", make_jets(0), kind=kind)
    assert _reason(path) == f"{path}: no entries"


@pytest.mark.parametrize("kind", ["ttree", "rntuple"])
def test_a_missing_branch_is_named_with_the_nearest_ones(kind, tmp_path, make_jets, write_root):
    jets = make_jets(2)
    extra = {"part_ptx": ak.Array(jets["part_px"].to_pylist()), "part_px": None}
    path = write_root(tmp_path / "jets.root", jets, kind=kind, **extra)
    assert f"{path}: missing branch part_px (nearest: part_p" in _reason(path)
    assert "part_ptx" in _reason(path)


def test_a_wrong_type_is_found_before_anything_is_planned(tmp_path, make_jets, write_root):
    path = write_root(tmp_path / "jets.root", make_jets(2), part_px=np.zeros(2, np.float32))
    assert _reason(path) == f"{path}, part_px: wanted a list of float32 per jet, the file has float32"


def test_of_two_inputs_with_different_schemas_the_lacking_one_is_set_aside_by_name(tmp_path, make_jets, write_root):
    good = write_root(tmp_path / "in" / "a.root", make_jets(5))
    lacking = write_root(tmp_path / "in" / "b.root", make_jets(5), part_d0val=None, jet_tau4=None)
    other = write_root(tmp_path / "in" / "c.root", make_jets(5), jet_pt=np.full(5, 0.1))
    inventory = take_inventory(expand([str(tmp_path / "in")]))
    assert [source.path for source in inventory.sources] == [str(good)]
    first, second = (file.reason for file in inventory.set_aside)
    assert first.startswith(f"{lacking}: missing branch part_d0val (nearest: part_d")
    assert "; jet_tau4 (nearest: jet_tau" in first
    assert second.startswith(f"{other}, entries 0-5, jet_pt: cannot store float64 as float32 without loss, e.g. 0.1")


def test_a_file_that_changes_while_it_is_read_is_not_committed(tmp_path, make_jets, write_root, monkeypatch):
    path = write_root(tmp_path / "jets.root", make_jets(100), cluster=25)
    plan = make_plan(take_inventory([path]), ShardConfig())
    columns = JetReader.columns

    def read_while_somebody_writes(self, *arguments, **options):
        yield from columns(self, *arguments, **options)
        os.utime(path, ns=(1, 1))

    with monkeypatch.context() as patch:
        patch.setattr(JetReader, "columns", read_while_somebody_writes)
        with pytest.raises(InputError, match=rf"{path}: changed while it was read, or since the plan was made"):
            convert_unit(plan, tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()


# --- ranges -----------------------------------------------------------------------------------------------------


def _damage_basket(path: Path, name: str, number: int) -> None:
    """Overwrite the second half of one compressed basket of one branch."""
    with open_jets(path) as reader:
        branch = reader.handle()[name]
        start, size = (int(branch.member(key)[number]) for key in ("fBasketSeek", "fBasketBytes"))
    with path.open("r+b") as stream:
        stream.seek(start + size // 2)
        stream.write(b"\xff" * (size - size // 2))


def test_a_damaged_basket_costs_its_entries_only(tmp_path, make_jets, write_root):
    path = write_root(tmp_path / "jets.root", make_jets(4000), cluster=1000)
    _damage_basket(path, "part_energy", 2)
    plan = make_plan(take_inventory(expand([str(path)])), ShardConfig())
    sidecar = convert_unit(plan, tmp_path / "out", 0)
    assert sum(shard["rows"] for shard in sidecar["shards"]) == 3000
    assert sidecar["set_aside"]["entries"] == 1000
    for message in sidecar["set_aside"]["ranges"]:
        assert f"{path}, entries 2" in message
        assert "damaged or truncated, cannot be decoded" in message
    lines = (tmp_path / "out" / "units" / "00000.set-aside.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [(r["entry"], r["stop"], r["reason"]) for r in records] == [
        (2000, 2500, "unreadable"),
        (2500, 3000, "unreadable"),
    ]


@pytest.mark.ray
def test_a_ray_data_set_reads_only_the_branches_asked_for(tmp_path, make_jets, write_root, ray_local):
    from jetfoundry.loading.datasource import read_jets

    path = write_root(tmp_path / "jets.root", make_jets(100), cluster=50)
    _damage_basket(path, "part_energy", 1)
    dataset = read_jets(str(path))
    assert dataset.select_columns(["jet_label"]).sum("jet_label") == sum(range(100))


# --- single jets ------------------------------------------------------------------------------------------------


def _with(table: pa.Table, name: str, row: int, change: object) -> pa.Table:
    """`table` with the value of `name` in `row` replaced by change(value)."""
    field = table.schema.field(name)
    values = table[name].to_pylist()
    values[row] = change(values[row])
    return table.set_column(table.column_names.index(name), field, pa.array(values, field.type))


def _checked(table: pa.Table) -> list[tuple[int, str, str, str]]:
    good, faults = check_jets(table)
    assert np.flatnonzero(~good).tolist() == [fault.row for fault in faults]
    return [(fault.row, fault.reason, fault.field, fault.value) for fault in faults]


def test_the_real_jets_pass_every_check(real_table):
    assert _checked(real_table) == []


def test_unequal_lengths_are_a_fault_of_the_jet_not_of_the_file(make_jets):
    jets = _with(make_jets(6), "part_py", 2, lambda values: [*values, 1.0])
    jets = _with(jets, "aux_genpart_pid", 4, lambda values: values[1:])
    before = len(jets["part_px"][2])
    n = len(jets["aux_genpart_pt"][4])
    assert _checked(jets) == [
        (2, "unequal_lengths", "part_py", f"{before + 1} items, part_px has {before}"),
        (4, "unequal_lengths", "aux_genpart_pid", f"{n - 1} items, aux_genpart_pt has {n}"),
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_momentum_that_is_not_finite_is_found_with_its_place(value, make_jets):
    jets = _with(make_jets(6), "part_pz", 3, lambda values: [*values[:-1], value])
    jets = _with(jets, "jet_pt", 5, lambda _: value)
    last = len(jets["part_pz"][3]) - 1
    expected = [(3, "not_finite", "part_pz", f"{value} at item {last}"), (5, "not_finite", "jet_pt", str(value))]
    assert _checked(jets) == expected
    assert _checked(jets.slice(2)) == [(row - 2, *rest) for row, *rest in expected]


def test_a_truth_particle_along_the_beam_is_no_fault(make_jets):
    assert _checked(_with(make_jets(2), "aux_genpart_eta", 0, lambda values: [np.inf] * len(values))) == []


@pytest.mark.parametrize("label", [-1, 188])
def test_a_label_outside_the_classes_is_found(label, make_jets):
    jets = _with(make_jets(3), "jet_label", 1, lambda _: label)
    assert _checked(jets) == [(1, "label_range", "jet_label", f"{label}, wanted 0-187")]


def test_a_jet_without_constituents_is_found(make_jets):
    jets = make_jets(3)
    for name in jets.column_names:
        if name.startswith("part_"):
            jets = _with(jets, name, 1, lambda _: [])
    assert _checked(jets) == [(1, "no_constituents", "part_px", "0 constituents")]


def test_a_count_that_disagrees_with_the_lists_is_found_unless_they_were_cut(make_jets):
    jets = _with(make_jets(3), "jet_nparticles", 1, lambda _: 99)
    n = len(jets["part_px"][1])
    assert _checked(jets) == [(1, "wrong_count", "jet_nparticles", f"99, the lists have {n} items")]
    long = make_jets(1)
    for name in long.column_names:
        if name.startswith("part_"):
            long = _with(long, name, 0, lambda values: [values[0]] * 128)
    assert _checked(_with(long, "jet_nparticles", 0, lambda _: 150)) == []


# --- the job ----------------------------------------------------------------------------------------------------


def _job(*arguments: str) -> int:
    path = Path(__file__).resolve().parents[2] / "jobs" / "ingest.py"
    spec = importlib.util.spec_from_file_location("ingest_job", path)
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    return cli.run(job.main, IngestConfig, arguments, file_key="features")


@pytest.mark.ray
def test_the_job_goes_on_without_what_is_bad_and_says_so(tmp_path, make_jets, write_root, ray_local, capsys):
    jets = _with(make_jets(40), "jet_label", 5, lambda _: 200)
    lengths = ak.Array(_with(jets, "part_py", 7, lambda values: [*values, 1.0])["part_py"].to_pylist())
    write_root(tmp_path / "in" / "a.root", jets, part_py=ak.values_astype(lengths, np.float32))
    write_root(tmp_path / "in" / "b.root", make_jets(40))
    (tmp_path / "in" / "c.root").write_text("not a ROOT file")
    arguments = (f"input={tmp_path}/in/*.root", f"output={tmp_path / 'out'}")
    for _ in range(2):  # the second run has nothing to do and still reports
        assert _job(*arguments) == cli.EXIT_SET_ASIDE
        out = capsys.readouterr().out
        assert "set aside: 1 jets, label_range" in out
        assert "set aside: 1 jets, unequal_lengths" in out
        assert f"set aside: {tmp_path / 'in' / 'c.root'}: neither ROOT nor Parquet" in out
    lines = (tmp_path / "out" / "units" / "00000.set-aside.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {
        "file": str(tmp_path / "in" / "a.root"),
        "entry": 5,
        "reason": "label_range",
        "field": "jet_label",
        "value": "200, wanted 0-187",
    }
    rows = sum(pq.read_metadata(path).num_rows for path in (tmp_path / "out").rglob("*.parquet"))
    assert rows == 78
    assert (tmp_path / "out" / "summary.json").exists()
    assert (tmp_path / "out" / "config.yaml").exists()


@pytest.mark.ray
def test_the_job_ends_with_one_line_if_nothing_can_be_used(tmp_path, make_jets, write_root, ray_local, capsys):
    path = tmp_path / "c.root"
    path.write_text("not a ROOT file")
    assert _job(f"input={path}", f"output={tmp_path / 'out'}") == cli.EXIT_BAD_INPUT
    assert f"error: none of the inputs can be used: {path}: neither ROOT" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    write_root(tmp_path / "d.root", make_jets(3), jet_label=np.array([-1, -2, -3], np.int32))
    assert _job(f"input={tmp_path / 'd.root'}", f"output={tmp_path / 'out'}") == cli.EXIT_BAD_INPUT
    assert "error: none of the 3 jets can be used: 3 jets label_range" in capsys.readouterr().err


# --- the disk ---------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing_half_written_and_says_which_shard(tmp_path, make_jets, write_root, monkeypatch):
    plan = make_plan(take_inventory([write_root(tmp_path / "jets.root", make_jets(200))]), ShardConfig())

    def full(path, *arguments, **options):
        path.write_bytes(b"PAR1 half a shard")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_parquet", full)
        message = r"shard train/shard-00000-00\.parquet: cannot write .*: No space left on device \(ENOSPC\)"
        with pytest.raises(InputError, match=message):
            convert_unit(plan, tmp_path / "out", 0)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
    convert_unit(plan, tmp_path / "out", 0)
    assert (tmp_path / "out" / "units" / "00000.json").exists()


@pytest.mark.ray
def test_a_shard_that_cannot_be_written_ends_the_job_and_a_rerun_continues(tmp_path, make_jets, write_root, ray_local):
    write_root(tmp_path / "in" / "jets.root", make_jets(300), cluster=50)
    layout = ShardConfig(jets_per_task=50)
    settings = IngestConfig(input=(str(tmp_path / "in"),), output=str(tmp_path / "out"), shards=layout)
    (tmp_path / "out").mkdir()
    obstacle = tmp_path / "out" / "val"
    obstacle.write_text("a file where a folder is wanted")
    with pytest.raises(InputError, match=r"shard val/shard-.*: cannot write .*what is committed is kept"):
        ingest(settings)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not list((tmp_path / "out").rglob("*.tmp.*"))
    obstacle.unlink()
    assert sum(ingest(settings).jets.values()) == 300


@pytest.mark.ray
def test_samples_made_in_different_modes_are_not_mixed_without_a_name(tmp_path, make_jets, ray_local):
    inputs = tmp_path / "in"
    inputs.mkdir()
    for name, mode in (("signal", "full"), ("background", "no_mpi")):
        write_shard(inputs / f"{name}.root", make_jets(20), {"mode": mode})
    wanted = r"made in different ways: .*\(Pythia 8, no MPI, .*background.root; .*\(Pythia 8, param.*signal.root"
    with pytest.raises(InputError, match=wanted):
        ingest(IngestConfig(input=(str(inputs),), output=str(tmp_path / "out")))
    named = ingest(IngestConfig(input=(str(inputs),), output=str(tmp_path / "out"), sample="a test of mixtures"))
    assert sum(named.jets.values()) == 40
