import itertools
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from jetfoundry.data.shards import open_shards
from jetfoundry.errors import ConfigError, InputError
from jetfoundry.features.transform import load_data_config
from jetfoundry.loading.batch import Position
from jetfoundry.loading.loader import LoaderConfig, every_jet, prefetched, training_batches
from jetfoundry.loading.provenance import describe_jet
from jetfoundry.loading.sampling import SamplingConfig

NATURAL = SamplingConfig(balance="natural")
LOADER = LoaderConfig(batch_size=16, micro_batches=4, window=100, prefetch=0)

# The particle's number in the input makes every jet recognisable: jet_pt is unique.
YAML = {
    "selection": "jet_pt > 300",
    "new_variables": {"part_mask": "ak.ones_like(part_energy)", "jet_pt_again": "part_energy * 0 + jet_pt"},
    "inputs": {
        "pf_features": {"length": 12, "pad_mode": "constant", "vars": [["jet_pt_again", None], ["part_d0val", None]]},
        "pf_mask": {"length": 12, "pad_mode": "constant", "vars": [["part_mask", None]]},
    },
    "labels": {"type": "custom", "value": {"truth_label": "jet_label"}},
    "observers": ["jet_pt"],
}


@pytest.fixture
def data():
    return load_data_config(YAML, scheme="sophon188")


@pytest.fixture
def shards(tmp_path, toy_shards):
    return open_shards(toy_shards(tmp_path / "shards", train=300, val=70), "train")


def pts(batch):
    """jet_pt of every jet of a batch, which names it."""
    return np.concatenate([micro.inputs["pf_features"][:, 0, 0].numpy() for micro in batch.micro])


def take(number, shards, data, sampling=NATURAL, **place):
    return list(itertools.islice(training_batches(shards, data, LOADER, sampling, seed=3, **place), number))


def test_batches_are_padded_per_micro_batch_in_order_of_length_and_nearly_equal_in_size(shards, data):
    batches = [batch for batch, _ in take(20, shards, data)]
    assert {batch.size for batch in batches} <= set(range(12, 17))  # at most 16; a window of 50 jets gives 4
    for batch in batches:
        lengths = [len(micro.labels) for micro in batch.micro]
        assert sum(lengths) == batch.size
        assert 2 <= len(lengths) <= 4
        widths = [micro.inputs["pf_mask"].shape[2] for micro in batch.micro]
        assert widths == sorted(widths)
        for micro in batch.micro:
            assert micro.inputs["pf_features"].shape[1:] == (2, micro.inputs["pf_mask"].shape[2])
            assert micro.inputs["pf_mask"].sum(dim=(1, 2)).max() == micro.inputs["pf_mask"].shape[2]


def test_continuing_from_any_position_gives_the_same_batches(shards, data):
    whole = take(30, shards, data, SamplingConfig(balance="classes"))
    assert max(position.passes for _, position in whole) >= 1
    for start in (0, 1, 7, 15, 22):
        position = whole[start - 1][1] if start else Position()
        again = take(30 - start, shards, data, SamplingConfig(balance="classes"), start=position)
        for (one, place), (two, other) in zip(whole[start:], again, strict=True):
            assert place == other
            assert (pts(one) == pts(two)).all()
            assert all(torch.equal(a.labels, b.labels) for a, b in zip(one.micro, two.micro, strict=True))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_selected_jet_of_a_pass_is_on_one_worker_once_and_others_never(shards, data, toy_jets, world):
    stored = toy_jets(300, 0)["jet_pt"].to_numpy()
    for number in (0, 1):
        seen = [
            pts(batch)
            for rank in range(world)
            for batch, made in passes(shards, data, number, rank=rank, world=world)
            if made == number
        ]
        assert sorted(np.concatenate(seen)) == sorted(stored[stored > 300])


def passes(shards, data, last, **place):
    """Batches with the pass that each is of, to the end of pass number `last`."""
    made = 0
    for batch, after in training_batches(shards, data, LOADER, NATURAL, seed=3, **place):
        if made > last:
            return
        yield batch, made
        made = after.passes


def test_the_order_of_a_pass_follows_from_seed_and_pass(shards, data):
    one, again, other = (
        np.concatenate([pts(batch) for batch, _ in itertools.islice(stream, 18)])
        for stream in (training_batches(shards, data, LOADER, NATURAL, seed=seed) for seed in (3, 3, 4))
    )
    assert (one == again).all()
    assert not np.array_equal(one[:100], other[:100])


def test_balanced_sampling_evens_out_the_classes(tmp_path, toy_shards, data):
    # Label 187 stands for 9 of 10 jets.
    folder = toy_shards(tmp_path / "uneven", labels=(0, *[187] * 9), train=1000, val=10)
    batches = take(60, open_shards(folder, "train"), data, SamplingConfig(balance="classes"))
    labels = torch.cat([micro.labels for batch, _ in batches for micro in batch.micro])
    assert (labels == 0).float().mean().item() == pytest.approx(0.5, abs=0.04)


def test_validation_gives_each_selected_jet_once(tmp_path, toy_shards, data, toy_jets):
    shards = open_shards(toy_shards(tmp_path / "shards", train=10, val=70), "val")
    batches = list(every_jet(shards, data, LOADER))
    found = np.concatenate([pts(batch) for batch in batches])
    stored = toy_jets(70, 1)["jet_pt"].to_numpy()
    assert sorted(found) == sorted(stored[stored > 300])


def test_validation_is_split_between_workers_without_overlap(tmp_path, toy_shards, data):
    shards = open_shards(toy_shards(tmp_path / "shards", train=10, val=170), "val")
    parts = [np.concatenate([pts(b) for b in every_jet(shards, data, LOADER, rank=r, world=2)]) for r in (0, 1)]
    whole = np.concatenate([pts(batch) for batch in every_jet(shards, data, LOADER)])
    assert sorted(np.concatenate(parts)) == sorted(whole)


def test_no_jet_after_the_selection_is_an_error_that_names_it(shards):
    nothing = load_data_config({**YAML, "selection": "jet_pt > 1e6"}, scheme="sophon188")
    with pytest.raises(InputError, match=r"no jet of the train split passes the selection"):
        take(1, shards, nothing)


def test_a_data_yaml_without_a_label_scheme_cannot_be_sampled(shards):
    regression = {**YAML, "labels": {"type": "custom", "value": {"target": "jet_sdmass"}}}
    with pytest.raises(ConfigError, match=r"name a label scheme in the recipe, e.g. labels=sophon188"):
        take(1, shards, load_data_config(regression))


@pytest.mark.parametrize("depth", [0, 3])
def test_prefetching_keeps_the_order_and_hands_errors_on(depth):
    def items():
        yield from range(10)
        msg = "broken shard"
        raise InputError(msg)

    found = []
    with pytest.raises(InputError, match="broken shard"):
        found.extend(prefetched(items, depth))
    assert list(itertools.islice(prefetched(lambda: iter(range(100)), depth), 5)) == [0, 1, 2, 3, 4]


def test_a_jet_of_a_batch_is_found_again_in_its_shard(shards, data):
    batch, _ = next(training_batches(shards, data, LOADER, NATURAL, seed=1))
    place = r"(\S+), row (\d+) of row group (\d+) \(entry (\d+) of input file 0\); its largest input is (.*)"
    for index in (0, 9):
        path, row, group, entry, largest = re.fullmatch(place, describe_jet(batch, index, data)).groups()
        with pq.ParquetFile(path) as shard:
            jet = shard.read_row_group(int(group)).slice(int(row), 1)
        assert jet["source_entry"].to_pylist() == [int(entry)]
        assert jet["jet_pt"].to_pylist() == [pytest.approx(pts(batch)[index])]
        assert largest == f"|pf_features.jet_pt_again| = {pts(batch)[index]:.4g}"
