"""One window: micro-batches change nothing but the padding, and batches carry what the data YAML says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from jetfoundry.data.shards import open_shards
from jetfoundry.errors import ConfigError
from jetfoundry.features.transform import load_data_config
from jetfoundry.loading.sampling import JetUses
from jetfoundry.loading.window import BatchMaker, Window, choose_inputs, length_sorted, padding_share
from jetfoundry.models.particle_transformer import ParTConfig, ParticleTransformer

JETCLASS2 = Path(__file__).resolve().parents[2] / "datasets" / "jetclass2.yaml"


@pytest.fixture
def features(toy_jets):
    data = load_data_config(JETCLASS2, scheme="sophon188")
    return data.apply(toy_jets(64).slice(0, 64), training=True)


@pytest.fixture
def model():
    """In evaluation mode: BatchRenorm in the embeddings then uses its running statistics, as its forward pass does in
    training too (there only the statistics themselves are updated once per micro-batch)."""
    torch.manual_seed(1)
    small = {"embed_dims": (16, 16), "pair_embed_dims": (8,), "num_layers": 2, "num_heads": 2, "fc_dims": (16,)}
    return ParticleTransformer(ParTConfig(num_classes=188, **small)).double().eval()


def loss_and_gradients(model, batch):
    """As the training loop has it: summed over micro-batches, divided by the jets of the batch."""
    model.zero_grad()
    total = 0.0
    for inputs, labels in batch.micro:
        features, vectors, mask = (inputs[name].double() for name in ("pf_features", "pf_vectors", "pf_mask"))
        loss = functional.cross_entropy(model(features, vectors, mask > 0), labels, reduction="sum") / batch.size
        loss.backward()
        total += loss.item()
    return total, [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("micro_batches", [2, 4, 64])
def test_sorted_micro_batches_have_the_loss_and_gradients_of_the_whole_batch(features, model, micro_batches):
    jets = np.random.default_rng(0).permutation(len(features))
    whole, whole_gradients = loss_and_gradients(model, length_sorted(features, jets, 1))
    parts, gradients = loss_and_gradients(model, length_sorted(features, jets, micro_batches))
    assert parts == pytest.approx(whole, rel=1e-12)
    assert len(gradients) > 20
    for one, two in zip(gradients, whole_gradients, strict=True):
        assert torch.allclose(one, two, rtol=1e-9, atol=1e-12)


def test_the_order_of_jets_in_a_batch_does_not_matter_either(features, model):
    jets = np.random.default_rng(0).permutation(len(features))
    one, two = (loss_and_gradients(model, length_sorted(features, order, 4))[0] for order in (jets, np.sort(jets)))
    assert one == pytest.approx(two, rel=1e-12)


def test_the_padding_share_counts_empty_slots(features):
    before, after = padding_share(features, batch_size=32, micro_batches=8)
    jets = np.arange(64).reshape(2, 32)
    for share, micro in ((before, 1), (after, 8)):
        masks = [m.inputs["pf_mask"] for part in jets for m in length_sorted(features, part, micro).micro]
        assert share == pytest.approx(1 - sum(m.sum().item() for m in masks) / sum(m.numel() for m in masks))
    assert after < before / 2


def test_a_length_step_rounds_up_the_padding_and_nothing_else(features):
    """And gives parts of equal numbers of jets: few different shapes."""
    jets = np.arange(32)
    tight, stepped = length_sorted(features, jets, 1), length_sorted(features, jets, 4, 8)
    assert [len(micro.labels) for micro in stepped.micro] == [8, 8, 8, 8]
    longest = np.sort(np.diff(features.offsets)[jets])[7::8]
    assert [micro.inputs["pf_mask"].shape[-1] for micro in stepped.micro] == [-(-n // 8) * 8 for n in longest]
    whole = tight.micro[0].inputs["pf_features"]
    for begin, b in zip(range(0, 32, 8), stepped.micro, strict=True):
        length = min(b.inputs["pf_mask"].shape[-1], whole.shape[-1])
        assert torch.equal(b.inputs["pf_features"][..., :length], whole[begin : begin + 8, :, :length])
        for mask in (tight.micro[0].inputs["pf_mask"][begin : begin + 8], b.inputs["pf_mask"]):
            assert not mask[..., length:].any()


YAML = {
    "new_variables": {"part_mask": "ak.ones_like(part_energy)", "gen_pt": "np.hypot(genpart_px, genpart_py)"},
    "inputs": {
        "pf_mask": {"length": 16, "vars": [["part_mask", None]]},
        "gen_features": {"length": 8, "vars": [["gen_pt", None], ["genpart_pid", None]]},
        "gen_mask": {"length": 8, "vars": [["gen_mask", None]]},
    },
    "labels": {"type": "custom", "value": {"truth_label": "jet_label"}},
}
YAML["new_variables"]["gen_mask"] = "ak.ones_like(genpart_px)"


@pytest.fixture
def generated(tmp_path, make_jets, toy_shards):
    """A shard of jets with generator particles, and the jets."""
    import pyarrow as pa

    from jetfoundry.data import shards

    folder = toy_shards(tmp_path / "shards", train=40)
    table, at = make_jets(40), {"source_file": np.zeros(40, np.int32), "source_entry": np.arange(40)}
    stored = pa.table({**{name: table[name] for name in table.column_names}, **at})
    (folder / "train" / "shard-00000-00.parquet").unlink()
    shards.write_shard(folder, "train/shard-00000-00.parquet", stored, 50)
    return open_shards(folder, "train"), table


def test_batches_carry_generator_tokens_if_the_yaml_has_them(generated):
    train, table = generated
    data = load_data_config(YAML, scheme="sophon188")
    (batch,) = BatchMaker(data, 64, 2)(Window(tuple(train.row_groups)))
    found = torch.cat([micro.inputs["gen_mask"].sum(dim=(1, 2)) for micro in batch.micro])
    assert sorted(found.tolist()) == sorted(len(jet) for jet in table["genpart_px"].to_pylist())
    for micro in batch.micro:
        assert set(micro.inputs) == {"pf_mask", "gen_features", "gen_mask"}
        assert micro.inputs["gen_features"].shape[1] == 2
        assert micro.inputs["gen_features"].shape[2] == micro.inputs["gen_mask"].shape[2]  # not that of pf_mask


def test_inputs_that_are_not_asked_for_are_not_read():
    data = load_data_config(YAML, scheme="sophon188")
    fewer = choose_inputs(data, ["pf_mask"])
    assert set(fewer.inputs) == {"pf_mask"}
    assert "genpart_px" in data.columns
    assert "genpart_px" not in fewer.columns
    with pytest.raises(ConfigError, match=r"loader.inputs: no input 'pf_masks'; nearest: pf_mask"):
        choose_inputs(data, ["pf_masks"])


def test_a_windows_batches_follow_from_its_key_and_are_resumed_at_any_of_them(generated):
    train, _ = generated
    maker = BatchMaker(load_data_config(YAML, scheme="sophon188"), 8, 2, JetUses(40, of_class=np.full(188, 1.5)))
    pieces = tuple(train.row_groups)
    whole = list(maker(Window(pieces, (1, 0, 0))))
    assert sum(batch.size for batch in whole) == 60
    again, other = list(maker(Window(pieces, (1, 0, 0), first=3))), list(maker(Window(pieces, (1, 1, 0))))
    labels, rest, others = (
        [micro.labels.tolist() for batch in batches for micro in batch.micro] for batches in (whole, again, other)
    )
    assert labels[6:] == rest
    assert labels != others
