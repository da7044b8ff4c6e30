"""Jets behind URLs are those of this machine: shards, batches, scores, ROOT files of simulated jets."""

from __future__ import annotations

import numpy as np
import pytest

from jetfoundry import files
from jetfoundry.data import pages, shards
from jetfoundry.data.ingest import _alone, missing_units, write_manifest
from jetfoundry.data.inventory import expand, take_inventory
from jetfoundry.data.plan import ShardConfig, make_plan, matching_plan
from jetfoundry.data.unit import convert_unit
from jetfoundry.data.verify import verify
from jetfoundry.loading.data_statistics import complete
from jetfoundry.loading.loader import LoaderConfig, training_batches
from jetfoundry.loading.pieces import is_shard_folder, open_jet_set, read_pieces
from jetfoundry.loading.sampling import SamplingConfig
from jetfoundry.models.checkpoints import load_state, save_state

COLUMNS = ["jet_pt", "jet_label", "part_px", "part_d0val", "genpart_px"]


def ingest_here(folder, inputs, units=None):
    """An ingest without Ray: the same steps, one unit after the other."""
    settings = ShardConfig(jets_per_task=100)
    plan = make_plan(take_inventory(expand([str(inputs)])), settings)
    with _alone(files.place(folder)):
        files.write_json(files.place(folder) / "plan.json", plan.to_dict())
        for unit in missing_units(plan, files.place(folder))[:units]:
            convert_unit(plan, files.place(folder), unit)
        if units is None:
            write_manifest(plan, files.place(folder), "toy")
    return plan


@pytest.fixture
def both(bucket, tmp_path, make_jets, write_root):
    """The same jets as shards on this machine and in the bucket."""
    for number in range(2):
        write_root(tmp_path / "in" / f"jets_{number}.root", make_jets(300, seed=number), cluster=50)
    for folder in (tmp_path / "shards", f"{bucket}/shards"):
        ingest_here(folder, tmp_path / "in")
    return tmp_path / "shards", files.place(f"{bucket}/shards")


def test_an_ingest_to_s3_gives_the_same_shards_bit_for_bit(both):
    here, there = both
    assert shards.read_manifest(here)["hash"] == shards.read_manifest(there)["hash"]
    names = {path.relative_to(here).as_posix() for path in here.rglob("*.parquet")}
    assert names == {path.relative_to(there).as_posix() for path in there.glob("*/*.parquet")}
    for name in names:
        assert (here / name).read_bytes() == (there / name).read_bytes()
    assert verify(there).faults == verify(here).faults == ()
    assert not [path for path in here.parent.iterdir() if ":" in path.name]


def test_an_interrupted_ingest_to_s3_does_only_what_is_missing(bucket, tmp_path, make_jets, write_root):
    write_root(tmp_path / "jets.root", make_jets(300), cluster=50)
    folder = files.place(f"{bucket}/shards")
    plan = ingest_here(folder, tmp_path / "jets.root", units=1)
    before = {path: path.stat().st_mtime for path in folder.glob("units/*.json")}
    assert missing_units(plan, folder) == list(range(1, len(plan.units)))
    ingest_here(folder, tmp_path / "jets.root")
    assert (
        missing_units(matching_plan(folder / "plan.json", expand([str(tmp_path / "jets.root")]), plan.config), folder)
        == []
    )
    assert {path: path.stat().st_mtime for path in before} == before
    (shard, *_) = folder.glob("train/*.parquet")
    shard.unlink()
    assert len(missing_units(plan, folder)) == 1


def test_row_groups_behind_a_url_hold_the_same_jets(both):
    here, there = (shards.open_shards(folder, "train").row_groups for folder in both)
    assert [(group.index, group.rows) for group in here] == [(group.index, group.rows) for group in there]
    assert read_pieces(there, COLUMNS).equals(read_pieces(here, COLUMNS))
    flat = [pages.read_columns(groups, COLUMNS) for groups in (here, there)]
    for name in COLUMNS:
        a, b = (getattr(columns[name], "values", columns[name]) for columns in flat)
        assert np.array_equal(a, b)


def test_training_batches_are_the_same_to_the_last_bit(bucket, tmp_path, toy_shards):
    from jetfoundry.features.transform import load_data_config

    here, there = tmp_path / "toy", files.place(f"{bucket}/toy")
    toy_shards(here, train=200, val=50)
    toy_shards(there, train=200, val=50)
    found = []
    for folder in (here, there):
        jets = open_jet_set(str(folder), "train")
        data = load_data_config("datasets/jetclass2.yaml", scheme="sophon188")
        batches = training_batches(jets, data, LoaderConfig(batch_size=32), SamplingConfig(balance="none"), seed=1)
        found.append([next(batches)[0] for _ in range(3)])
    for a, b in zip(*found, strict=True):
        assert a.rows.tolist() == b.rows.tolist()
        for one, other in zip(a.micro, b.micro, strict=True):
            assert all(one.inputs[name].equal(other.inputs[name]) for name in one.inputs)


def test_patterns_and_lists_behind_urls_are_files_and_folders_of_shards_are_not(both, bucket):
    assert is_shard_folder(str(both[1]))
    assert is_shard_folder(f"{bucket}/not_yet")
    for files_of_jets in (f"{bucket}/in/*.root", f"QCD:{bucket}/a.root", f"{bucket}/a.root,{bucket}/b.root"):
        assert not is_shard_folder(files_of_jets)
    files.write_text(f"{bucket}/root/a.root", "")
    assert not is_shard_folder(f"{bucket}/root")


def test_numbers_that_the_data_yaml_leaves_open_are_kept_beside_the_shards(both):
    yaml = {
        "preprocess": {"method": "auto", "data_fraction": 1.0},
        "inputs": {"pf_features": {"length": 4, "vars": ["part_px"]}},
        "labels": {"type": "simple", "value": ["jet_label==0", "jet_label!=0"]},
    }
    texts = [complete(yaml, open_jet_set(str(folder), "train", count=False)) for folder in both]
    assert texts[0] == texts[1]
    assert len(list((both[1] / "auto").glob("*.auto.yaml"))) == len(list((both[0] / "auto").iterdir()))


def test_states_and_checkpoints_are_written_and_read(bucket):
    import torch

    save_state(f"{bucket}/state.pt", {"weights": {"a": torch.arange(3)}, "step": 1})
    assert load_state(f"{bucket}/state.pt")["weights"]["a"].tolist() == [0, 1, 2]
