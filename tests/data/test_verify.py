from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jetfoundry import cli, files
from jetfoundry.data import shards
from jetfoundry.data.ingest import IngestConfig, write_manifest
from jetfoundry.data.inventory import expand, take_inventory
from jetfoundry.data.plan import ShardConfig, make_plan
from jetfoundry.data.unit import convert_unit
from jetfoundry.data.verify import verify
from jetfoundry.errors import InputError

JOB = Path(__file__).resolve().parents[2] / "jobs" / "ingest.py"


@pytest.fixture
def folder(tmp_path, make_jets, write_root):
    """400 jets of classes 0-187 in two units, 24 or so shards."""
    write_root(tmp_path / "in" / "jets.root", make_jets(400), cluster=50)
    plan = make_plan(take_inventory(expand([str(tmp_path / "in")])), ShardConfig(jets_per_task=200, jets_per_shard=60))
    for unit in range(len(plan.units)):
        convert_unit(plan, tmp_path / "out", unit)
    write_manifest(plan, tmp_path / "out", "made up")
    return tmp_path / "out"


def _first(folder: Path, split: str = "train") -> Path:
    return min(folder.glob(f"{split}/*.parquet"))


def _edit(folder: Path, change) -> None:
    manifest = files.read_json(folder / "manifest.json")
    change(manifest)
    files.write_json(folder / "manifest.json", manifest)


def _replace(folder: Path, table: pa.Table, **how) -> str:
    """Put `table` in place of the first train shard and bend the manifest to its size and checksum."""
    path = _first(folder)
    pq.write_table(table, path, **{"row_group_size": 1000, **how})

    def bend(manifest):
        record = next(r for r in manifest["splits"]["train"]["shards"] if r["path"].endswith(path.name))
        record |= {"bytes": path.stat().st_size, "xxh128": files.xxh128_file(path)}
        every = [r["xxh128"] for part in manifest["splits"].values() for r in part["shards"]]
        manifest["hash"] = shards.content_hash(every)

    _edit(folder, bend)
    return f"train/{path.name}"


def test_a_sound_folder_has_no_faults_and_is_counted(folder):
    found = verify(folder)
    assert found.faults == ()
    assert found.rows == 400
    assert found.shards == len(list(folder.glob("*/*.parquet")))
    assert found.bytes == sum(path.stat().st_size for path in folder.glob("*/*.parquet"))


def test_missing_changed_cut_and_stray_files_are_one_line_each(folder):
    first, second, third = sorted(folder.glob("train/*.parquet"))[:3]
    first.unlink()
    data = bytearray(second.read_bytes())
    data[len(data) // 2] ^= 1  # one bit
    second.write_bytes(data)
    third.write_bytes(third.read_bytes()[:-1])
    (folder / "val" / "stray.parquet").write_bytes(b"")
    assert verify(folder).faults == (
        f"train/{first.name}: missing",
        f"train/{second.name}: its checksum is not that of the manifest",
        f"train/{third.name}: {third.stat().st_size} bytes, the manifest says {third.stat().st_size + 1}",
        "val/stray.parquet: not in the manifest",
    )


def test_another_schema_is_named_by_its_column(folder):
    table = pq.read_table(_first(folder))
    name = _replace(folder, table.drop_columns(["jet_tau1"]))
    assert verify(folder).faults == (f"{name}: no column jet_tau1",)
    at = table.schema.get_field_index("jet_pt")
    field = pa.field("jet_pt", pa.float64(), nullable=False)
    _replace(folder, table.set_column(at, field, table["jet_pt"].cast(pa.float64())))
    (fault,) = verify(folder).faults
    assert fault.startswith(f"{name}: column jet_pt is")
    assert "wanted" in fault


def test_rows_and_row_groups_are_those_of_the_manifest(folder):
    table = pq.read_table(_first(folder))
    name = _replace(folder, table, row_group_size=10)
    assert verify(folder).faults == (f"{name}: row groups of [10, 10, 10, 10, 10] … rows, the manifest says [53] …",)
    _replace(folder, table.slice(1))
    assert verify(folder).faults == (f"{name}: {table.num_rows - 1} rows, the manifest says {table.num_rows}",)


def test_counts_and_histogram_are_computed_again(folder):
    table = pq.read_table(_first(folder))
    label = table["jet_label"].to_numpy().copy()
    old, label[0] = int(label[0]), (int(label[0]) + 1) % 188
    at = table.schema.get_field_index("jet_label")
    _replace(folder, table.set_column(at, table.schema.field(at), pa.array(label)))
    faults = verify(folder).faults
    assert len(faults) == 3
    assert sum("jets of X_" in fault or "jets of QCD_" in fault for fault in faults) == 2
    assert faults[2] == "train: the histogram in (class, jet_pt, jet_sdmass) is not that of the manifest"
    assert old != label[0]


def test_a_jet_in_two_shards_or_from_nowhere_is_found(folder):
    table = pq.read_table(_first(folder))
    entry = table["source_entry"].to_numpy().copy()
    missing = int(entry[0])
    entry[0] = entry[1]
    at = table.schema.get_field_index("source_entry")
    name = _replace(folder, table.set_column(at, table.schema.field(at), pa.array(entry)))
    source = files.read_json(folder / "manifest.json")["inputs"][0]["path"]
    assert verify(folder).faults == (f"{name}: a jet is met before: entry {entry[1]} of {source}",)
    entry[0] = 10_000
    _replace(folder, table.set_column(at, table.schema.field(at), pa.array(entry)))
    assert verify(folder).faults == (f"{name}: 1 jets come from no entry of the inputs",)
    assert missing != entry[1]


def test_a_jet_in_the_wrong_split_is_found(folder):
    train, val = _first(folder), _first(folder, "val")
    stolen = pq.read_table(val)["source_entry"][0].as_py()
    table = pq.read_table(train)
    entry = table["source_entry"].to_numpy().copy()
    entry[0] = stolen
    at = table.schema.get_field_index("source_entry")
    name = _replace(folder, table.set_column(at, table.schema.field(at), pa.array(entry)))
    faults = verify(folder).faults
    assert any(fault.startswith(f"{name}: a jet is not of the train split: entry {stolen} of") for fault in faults)
    assert any("met before" in fault for fault in faults)


def test_jets_that_went_missing_on_the_way_are_counted(folder):
    _edit(folder, lambda manifest: manifest["inputs"][0].update(entries=405))
    assert verify(folder).faults == ("5 jets of the inputs are neither in a shard nor set aside",)


def test_a_manifest_that_does_not_fit_its_own_list_is_found(folder):
    _edit(folder, lambda manifest: manifest.update(hash="0" * 64))
    assert verify(folder).faults == ("manifest.json: its hash does not belong to its list of shards",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not JSON", "cannot read as JSON"),
        ("[1, 2]", "wanted a format number, got None"),
        ('{"format": "new"}', "wanted a format number, got new"),
        ('{"format": 99}', "format 99, this version reads up to 2"),
        ('{"format": 0}', "format 0, this version reads up to 2"),
        ('{"format": 1, "sample": "", "hash": ""}', "format 1, but without row_group, splits, columns"),
    ],
)
def test_a_manifest_of_another_version_or_garbage_is_refused(folder, text, message):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=message):
        verify(folder)
    with pytest.raises(InputError, match=message.partition(", columns")[0]):
        shards.open_shards(folder, "train")


def _job(*arguments: str) -> int:
    spec = importlib.util.spec_from_file_location("ingest_job", JOB)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cli.run(module.main, IngestConfig, list(arguments), folder=lambda c: c.verify or c.output)


def test_the_job_prints_one_line_per_fault_and_exits_with_1(folder, capsys):
    assert _job(f"verify={folder}") == cli.EXIT_OK
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 1
    assert "400 jets" in shown[0]
    name = _first(folder).name
    _first(folder).unlink()
    assert _job(f"verify={folder}") == cli.EXIT_FAILED
    assert capsys.readouterr().out == f"train/{name}: missing\n"
    (folder / "manifest.json").write_text(json.dumps({"format": 99}))
    assert _job(f"verify={folder}") == cli.EXIT_BAD_INPUT
    log = (folder / "log.txt").read_text().splitlines()
    assert sum(" $ " in line for line in log) == 3
    assert any(line.endswith(f"train/{name}: missing") for line in log)
    assert "error: " in log[-2]
