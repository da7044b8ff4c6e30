from __future__ import annotations

import pytest
import torch

from jetfoundry.errors import ConfigError
from jetfoundry.models.particle_net import ParticleNetConfig
from jetfoundry.models.presets import MODELS, PRESETS, build, configure, model_name


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_built_and_says_what_it_reads(name: str) -> None:
    with torch.device("meta"):
        network = build(PRESETS[name])
    assert type(network) is MODELS[model_name(PRESETS[name])][1]
    assert "pf_features" in network.inputs
    assert "pf_mask" in network.inputs


@pytest.mark.parametrize(("name", "parameters"), [("sophon", 2_304_688), ("sophon_pp", 32_092_720)])
def test_numbers_of_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build(PRESETS[name]).parameters()) == parameters


def test_particle_net_has_the_370_000_parameters_of_its_paper() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build(ParticleNetConfig(num_classes=10)).parameters()) == 370_156


def test_sizes_follow_the_data_and_single_fields_the_recipe() -> None:
    assert configure("particle_net", {"fusion": True}, input_dim=7, num_classes=2) == ParticleNetConfig(
        input_dim=7, num_classes=2, fusion=True
    )
    contrastive = configure(
        "demo_contrastive", {"w_contrastive": 0.5, "jet": {"num_layers": 1}}, input_dim=7, num_classes=2
    )
    assert (contrastive.input_dim, contrastive.num_classes, contrastive.jet.num_layers) == (7, 2, 1)
    assert contrastive.jet.embed_dims == (64, 64)
    assert contrastive.gen == PRESETS["demo_contrastive"].gen


def test_what_does_not_exist_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'sofon'; nearest: sophon"):
        configure("sofon", {}, input_dim=7, num_classes=2)
    with pytest.raises(
        ConfigError, match="'demo' is a particle_transformer, not a 'particle_net'; its presets: partic"
    ):
        configure("demo", {}, input_dim=7, num_classes=2, name="particle_net")
    with pytest.raises(ConfigError, match="not a 'particlenet'; nearest: particle_net"):
        configure("demo", {}, input_dim=7, num_classes=2, name="particlenet")
    with pytest.raises(ConfigError, match=r"model.change: unknown key 'num_layer'; nearest: num_layers"):
        configure("demo", {"num_layer": 2}, input_dim=7, num_classes=2)
    with pytest.raises(ConfigError, match="dict configures none of the models particle_transformer"):
        build({})
