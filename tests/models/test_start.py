from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from jetfoundry.errors import CheckpointError
from jetfoundry.models.checkpoints import save_model
from jetfoundry.models.contrastive import ContrastiveConfig
from jetfoundry.models.gen_particles import GEN_FEATURES
from jetfoundry.models.particle_transformer import ParTConfig
from jetfoundry.models.presets import build, model_name
from jetfoundry.models.start import begin_from
from jetfoundry.models.tasks import TaskConfig


def saved(path: Path, config, seed: int = 1):
    torch.manual_seed(seed)
    network = build(config)
    save_model(
        path, model_name=model_name(config), model_config=config, weights=network.state_dict(),
        classes=[f"class {number}" for number in range(config.num_classes)], data_yaml="", meta={},
    )  # fmt: skip
    return network


def test_another_number_of_classes_changes_the_head_alone(small_config: ParTConfig, tmp_path: Path) -> None:
    trained = saved(tmp_path / "model.pt", small_config).state_dict()
    network = build(dataclasses.replace(small_config, num_classes=7))
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    left = begin_from(network, tmp_path / "model.pt")
    assert left
    assert all(name.startswith("head.") for name in left)
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, before[name] if name in left else trained[name]), name


def test_the_same_classes_leave_nothing_as_it_was(small_config: ParTConfig, tmp_path: Path) -> None:
    saved(tmp_path / "model.pt", small_config)
    assert begin_from(build(small_config), tmp_path / "model.pt") == []


def test_the_jet_network_of_a_contrastive_pair_is_taken(small_config: ParTConfig, tmp_path: Path) -> None:
    tasks = (TaskConfig(), TaskConfig(name="contrastive", head=(8,), outputs=4))
    gen = ParTConfig(
        input_dim=len(GEN_FEATURES), num_classes=4, embed_dims=(8,), pair_embed_dims=(4,), num_heads=2, num_layers=1,
        fc_dims=(),
    )  # fmt: skip
    pair = ContrastiveConfig(jet=dataclasses.replace(small_config, tasks=tasks), gen=gen)
    trained = saved(tmp_path / "model.pt", pair).jet.state_dict()
    network = build(small_config)
    assert begin_from(network, tmp_path / "model.pt") == []
    assert all(torch.equal(weight, trained[name]) for name, weight in network.state_dict().items())


def test_another_architecture_is_refused_with_its_first_difference(small_config: ParTConfig, tmp_path: Path) -> None:
    saved(tmp_path / "model.pt", small_config)
    deeper = build(dataclasses.replace(small_config, num_layers=small_config.num_layers + 1))
    with pytest.raises(CheckpointError, match=r"another architecture: \d+ weights .* blocks\.\d\.\S+ is not there"):
        begin_from(deeper, tmp_path / "model.pt")
    wider = build(dataclasses.replace(small_config, input_dim=small_config.input_dim + 1))
    with pytest.raises(CheckpointError, match=r"embed.norm.weight is \(5,\), wanted \(6,\)"):
        begin_from(wider, tmp_path / "model.pt")


def test_weavers_weights_are_a_beginning_too(small_config: ParTConfig, tmp_path: Path) -> None:
    theirs = pytest.importorskip("weaver.nn.model.ParticleTransformer").ParticleTransformer(
        input_dim=small_config.input_dim, num_classes=9, pair_input_dim=4, use_pre_activation_pair=False,
        embed_dims=list(small_config.embed_dims), pair_embed_dims=list(small_config.pair_embed_dims),
        num_heads=small_config.num_heads, num_layers=small_config.num_layers,
        num_cls_layers=small_config.num_class_layers, block_params={"ffn_ratio": small_config.ffn_ratio},
        cls_block_params={"ffn_ratio": small_config.ffn_ratio}, fc_params=[(w, 0.1) for w in small_config.fc_dims],
    )  # fmt: skip
    torch.save({f"mod.{name}": weight for name, weight in theirs.state_dict().items()}, tmp_path / "theirs.pt")
    network = build(small_config)
    left = begin_from(network, tmp_path / "theirs.pt")
    assert all(name.startswith("head.") for name in left)
    assert torch.equal(network.blocks[0].fc1.weight, theirs.blocks[0].fc1.weight)
