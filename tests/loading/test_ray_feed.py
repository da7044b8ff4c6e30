import dataclasses
import itertools

import numpy as np
import pytest
import torch

from jetfoundry.data.shards import open_shards
from jetfoundry.errors import InputError
from jetfoundry.features.transform import load_data_config
from jetfoundry.loading.batch import Position
from jetfoundry.loading.loader import LoaderConfig, every_jet, resumed, training_batches
from jetfoundry.loading.pieces import is_shard_folder, open_jet_set
from jetfoundry.loading.sampling import SamplingConfig

pytestmark = pytest.mark.ray

DIRECT = LoaderConfig(batch_size=16, micro_batches=4, window=100, prefetch=0)
RAY = dataclasses.replace(DIRECT, feed="ray")
YAML = {
    "selection": "jet_pt > 300",
    "new_variables": {"part_mask": "ak.ones_like(part_energy)", "jet_pt_again": "part_energy * 0 + jet_pt"},
    "inputs": {
        "pf_features": {"length": 12, "pad_mode": "constant", "vars": [["jet_pt_again", None], ["part_d0val", None]]},
        "pf_mask": {"length": 12, "pad_mode": "constant", "vars": [["part_mask", None]]},
        "jet": {"length": None, "vars": [["jet_sdmass", None]]},
    },
    "labels": {"type": "custom", "value": {"truth_label": "jet_label"}},
}


@pytest.fixture
def data():
    return load_data_config(YAML, scheme="sophon188")


@pytest.fixture
def folder(tmp_path, toy_shards):
    return toy_shards(tmp_path / "shards", train=300, val=70)


def same(one, two):
    assert one.size == two.size
    assert len(one.micro) == len(two.micro)
    for a, b in zip(one.micro, two.micro, strict=True):
        assert torch.equal(a.labels, b.labels)
        assert a.inputs.keys() == b.inputs.keys()
        assert all(torch.equal(a.inputs[name], b.inputs[name]) for name in a.inputs)
    return True


def two_passes(jets, data, loader, rank, world):
    stream = training_batches(jets, data, loader, SamplingConfig(), seed=3, rank=rank, world=world)
    return list(itertools.takewhile(lambda item: item[1].passes < 2, stream))


def pts(batches):
    return np.concatenate([micro.inputs["pf_features"][:, 0, 0].numpy() for batch in batches for micro in batch.micro])


def test_both_feeds_give_the_same_batches_in_two_passes_on_two_workers(ray_local, folder, data):
    train = open_shards(folder, "train")
    for rank in (0, 1):
        direct, by_ray = (two_passes(train, data, loader, rank, 2) for loader in (DIRECT, RAY))
        assert len(direct) > 10
        assert [at for _, at in direct] == [at for _, at in by_ray]
        assert all(same(one, two) for (one, _), (two, _) in zip(direct, by_ray, strict=True))


def test_both_feeds_continue_alike_also_with_another_number_of_workers(ray_local, folder, data):
    train = open_shards(folder, "train")
    stopped = [two_passes(train, data, DIRECT, rank, 2)[3][1] for rank in (0, 1)]
    start = resumed(train, DIRECT, 3, stopped)
    for rank in range(3):
        place = {"seed": 3, "rank": rank, "world": 3, "start": start}
        direct, by_ray = (
            list(itertools.islice(training_batches(train, data, loader, SamplingConfig(), **place), 9))
            for loader in (DIRECT, RAY)
        )
        assert all(at == other and same(one, two) for (one, at), (two, other) in zip(direct, by_ray, strict=True))


def test_both_feeds_validate_on_the_same_batches(ray_local, folder, data):
    val = open_shards(folder, "val")
    direct, by_ray = (list(every_jet(val, data, loader)) for loader in (DIRECT, RAY))
    assert len(direct) == len(by_ray)
    assert all(same(one, two) for one, two in zip(direct, by_ray, strict=True))


def test_a_window_without_jets_is_passed_over(ray_local, tmp_path, toy_shards, data):
    train = open_shards(toy_shards(tmp_path / "shards", row_group=2, train=40), "train")  # some pairs are below 300 GeV
    one_by_one = [dataclasses.replace(loader, window=2) for loader in (DIRECT, RAY)]
    direct, by_ray = (two_passes(train, data, loader, 0, 1) for loader in one_by_one)
    assert len({(at.passes, at.window) for _, at in direct}) < 40
    assert [at for _, at in direct] == [at for _, at in by_ray]


def test_what_is_wrong_in_a_task_is_raised_as_itself(ray_local, folder, data):
    train = open_shards(folder, "train")
    train.row_groups[0].path.unlink()
    with pytest.raises(InputError, match=r"shard-00000-00.parquet, row group \d+: cannot read: .*No such file"):
        next(training_batches(train, data, RAY, SamplingConfig(), seed=1))
    nothing = load_data_config({**YAML, "selection": "jet_pt > 1e6"}, scheme="sophon188")
    with pytest.raises(InputError, match="no jet of the val split passes the selection"):
        next(training_batches(open_shards(folder, "val"), nothing, RAY, SamplingConfig(), seed=1))


@pytest.fixture
def files(tmp_path, toy_jets, write_root):
    for number in range(3):
        write_root(tmp_path / "root" / f"jets_{number}.root", toy_jets(200, number), cluster=50)
    return f"{tmp_path}/root/*.root"


@pytest.mark.parametrize("loader", [DIRECT, RAY], ids=["direct", "ray"])
def test_straight_from_root_every_jet_of_the_split_is_seen_once_in_a_pass(ray_local, files, data, toy_jets, loader):
    splits = [open_jet_set(files, split) for split in ("train", "val", "test")]
    stored = np.concatenate([toy_jets(200, number)["jet_pt"].to_numpy() for number in range(3)])
    assert sum(jets.rows for jets in splits) == 600
    assert splits[0].rows > 400
    found = []
    for jets in splits:
        assert jets.class_counts[[0, 187]].sum() == jets.rows
        natural = training_batches(jets, data, loader, SamplingConfig(balance="natural"), seed=3)
        batches, made = [], 0
        for batch, after in natural:
            if made:
                break
            batches.append(batch)
            made = after.passes
        found.append(pts(batches))
    assert sorted(np.concatenate(found)) == sorted(stored[stored > 300])


def test_both_feeds_give_the_same_batches_straight_from_root(ray_local, files, data):
    train = open_jet_set(files, "train")
    direct, by_ray = (two_passes(train, data, loader, 0, 2) for loader in (DIRECT, RAY))
    assert all(at == other and same(one, two) for (one, at), (two, other) in zip(direct, by_ray, strict=True))


def test_shards_and_their_root_files_have_the_same_splits(tmp_path, ray_local, files, data):
    from jetfoundry.data.ingest import IngestConfig, ingest
    from jetfoundry.data.plan import ShardConfig

    ingest(IngestConfig(input=(files,), output=tmp_path / "ingested", shards=ShardConfig(row_group=50)))
    for split in ("train", "val", "test"):
        ingested, straight = open_jet_set(str(tmp_path / "ingested"), split), open_jet_set(files, split)
        assert (ingested.class_counts == straight.class_counts).all()


def test_a_folder_is_one_of_shards_or_of_files(tmp_path, folder, files):
    assert is_shard_folder(str(folder))
    assert is_shard_folder(str(tmp_path / "typo"))
    assert not is_shard_folder(files)
    assert not is_shard_folder(str(tmp_path / "root"))
    with pytest.raises(InputError, match="no split 'vall'; nearest: val"):
        open_jet_set(files, "vall")


def test_a_worker_that_stops_early_leaves_no_task_behind(ray_local, folder, data):
    stream = training_batches(open_shards(folder, "train"), data, RAY, SamplingConfig(), seed=3, start=Position(2))
    next(stream)
    stream.close()
