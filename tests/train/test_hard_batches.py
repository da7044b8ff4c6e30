"""Batches at the edge of what there can be: jets of one particle, of none, single jets, more workers than shards."""

import contextlib
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from jetfoundry import files, schema
from jetfoundry.data import shards as stored
from jetfoundry.data.shards import open_shards
from jetfoundry.features.transform import load_data_config
from jetfoundry.loading.loader import LoaderConfig, every_jet, training_batches
from jetfoundry.loading.sampling import SamplingConfig
from jetfoundry.models.presets import build, configure
from jetfoundry.train.loop import TrainConfig, Validation, fit, predict

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data():
    return load_data_config(ROOT / "datasets" / "jetclass2.yaml", scheme="sophon188")


def cut(table, lengths):
    """The jets with only so many particles each."""
    lengths, columns = np.asarray(lengths), []
    for column in schema.COLUMNS:
        array = table[column.name].combine_chunks()
        if column.jagged and schema.column_group(column.name) == "part":
            starts = array.offsets.to_numpy()[:-1]
            kept = np.concatenate([np.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)])
            at = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            array = pa.ListArray.from_arrays(pa.array(at), array.values.take(pa.array(kept)), type=column.arrow_type)
        elif column.name == "jet_nparticles":
            array = pa.array(lengths.astype(np.int32))
        columns.append(array)
    return pa.table(columns, schema=schema.arrow_schema())


@pytest.fixture
def folder(tmp_path, toy_jets, monkeypatch):
    """`folder(lengths)`: shards whose jets, of training and validation, have so many particles."""

    def make(lengths, row_group=50):
        parts, digests = {}, []
        for number, split in enumerate(("train", "val")):
            table = cut(toy_jets(len(lengths), number), lengths)
            at = {"source_file": np.full(len(lengths), number, np.int32), "source_entry": np.arange(len(lengths))}
            for name, values in at.items():
                table = table.append_column(name, pa.array(values))
            record = stored.write_shard(tmp_path, stored.shard_path(split, 0, 0), table, row_group)
            bins = stored.histogram(*(table[name].to_numpy() for name in ("jet_label", "jet_pt", "jet_sdmass")))
            parts[split] = stored.gather(split, [{"shards": [record], "histograms": {split: stored.pack_counts(bins)}}])
            digests.append(record["xxh128"])
        how = {"format": stored.FORMAT, "sample": "toy", "row_group": row_group, "splits": parts}
        files.write_json(tmp_path / "manifest.json", {**how, "hash": stored.content_hash(digests)})
        return tmp_path

    return make


def train(shards, data, preset, batch_size, steps):
    """Losses of some steps and of the validation."""
    loader = LoaderConfig(batch_size=batch_size, micro_batches=min(2, batch_size))
    jets = {split: open_shards(shards, split) for split in ("train", "val")}

    @contextlib.contextmanager
    def stream(start):
        yield training_batches(jets["train"], data, loader, SamplingConfig(balance="natural"), seed=1, start=start)

    def validate(model):
        logits = [part for _, part, _ in predict(model, every_jet(jets["val"], data, loader), CPU)]
        assert torch.isfinite(torch.cat(logits)).all()
        return Validation(0.0, 0.0, len(torch.cat(logits)))

    torch.manual_seed(1)
    sizes = {"input_dim": len(data.inputs["pf_features"].vars), "num_classes": data.num_classes}
    rows = []
    how = {"steps_per_epoch": steps, "device": CPU, "save": lambda state, metrics: None, "log": rows.append}
    fit(build(configure(preset, {}, **sizes)), stream, validate, TrainConfig(epochs=1, log_steps=1), **how)
    return [row["loss"] for row in rows if "loss" in row], rows[-1]["val_jets"]


@pytest.mark.parametrize("preset", ["demo", "particle_net"])
@pytest.mark.parametrize("particles", [0, 1])
def test_a_batch_whose_jets_all_have_one_particle_or_none_trains(folder, data, preset, particles):
    losses, val_jets = train(folder([particles] * 16), data, preset, 8, 3)
    assert np.isfinite(losses).all()
    assert len(losses) == 3
    assert val_jets == 16


@pytest.mark.parametrize("preset", ["demo", "particle_net"])
def test_a_jet_without_particles_among_others_changes_nothing_but_itself(folder, data, preset):
    losses, val_jets = train(folder([0, 1, 5, 3] * 4), data, preset, 8, 3)
    assert np.isfinite(losses).all()
    assert val_jets == 16


@pytest.mark.parametrize("preset", ["demo", "particle_net"])
def test_the_last_batch_may_be_one_jet(folder, data, preset):
    losses, val_jets = train(folder([3] * 17), data, preset, 8, 3)  # batches of 8, 8 and 1
    assert np.isfinite(losses).all()
    assert val_jets == 17


def test_more_workers_than_pieces_share_the_passes(folder, data):
    shards = folder([3] * 16)
    train, val = (open_shards(shards, split) for split in ("train", "val"))
    assert len(train.row_groups) == 1
    loader = LoaderConfig(batch_size=8, micro_batches=1)
    seen = []
    for rank in range(3):
        place = {"seed": 1, "rank": rank, "world": 3}
        batches = training_batches(train, data, loader, SamplingConfig(balance="natural"), **place)
        seen.append([place.passes for _, place in itertools.islice(batches, 2)])
        assert sum(batch.size for batch in every_jet(val, data, loader, rank=rank, world=3)) == (0 if rank else 16)
    assert [passes[0] for passes in seen] == [0, 1, 2]  # each worker has a pass of its own
