from __future__ import annotations

import copy

import pytest
import torch

from jetfoundry.errors import ConfigError
from jetfoundry.models.freezing import freeze
from jetfoundry.models.particle_transformer import ParTConfig, ParticleTransformer


@pytest.fixture
def model(small_config: ParTConfig) -> ParticleTransformer:
    torch.manual_seed(0)
    return ParticleTransformer(small_config)


def test_only_what_is_not_frozen_is_trained(model: ParticleTransformer, make_batch) -> None:
    frozen = freeze(model, [r"embed", r"pair_embed\.", r"blocks\.0\."])
    before = copy.deepcopy(model.state_dict())
    model.train()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model(*make_batch([6, 4, 5, 3], features=5)).square().sum().backward()
    optimiser.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not [name for name in changed if name.startswith(("embed.", "pair_embed.", "blocks.0."))]  # norms included
    assert any(name.startswith("blocks.1.") for name in changed)
    assert all(name.startswith(("embed.", "pair_embed.", "blocks.0.")) for name in frozen)


def test_a_frozen_part_stays_in_eval_mode_and_the_rest_does_not(model: ParticleTransformer) -> None:
    freeze(model, [r"(embed|pair_embed|blocks|readout)\."])
    model.train()
    assert model.training
    assert model.head.training
    parts = (model.embed, model.pair_embed, model.blocks[0].dropout, model.readout)
    assert not any(module.training for part in parts for module in part.modules())
    assert not copy.deepcopy(model).train().embed.training


def test_a_frozen_backbone_gives_one_latent_in_training_and_eval(model: ParticleTransformer, make_batch) -> None:
    batch = make_batch([6, 4], features=5)
    freeze(model, [r"(?!head)"])
    assert torch.equal(model.train().latent(*batch), model.eval().latent(*batch))


def test_a_module_with_something_left_to_train_is_not_put_to_sleep(model: ParticleTransformer) -> None:
    freeze(model, [r".*bias$"])
    model.train()
    assert model.embed.norm.training
    assert model.blocks[0].training


def test_a_pattern_that_matches_nothing_is_an_error_with_the_nearest_names(model: ParticleTransformer) -> None:
    with pytest.raises(ConfigError, match=r"'readout\.tokens' matches no parameter; nearest: readout.token"):
        freeze(model, ["embed", r"readout.tokens"])
    with pytest.raises(ConfigError, match="'embed\\(' is no regular expression: missing"):
        freeze(model, ["embed("])
    assert all(p.requires_grad for p in model.parameters())
