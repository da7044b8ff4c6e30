from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from jetfoundry import config
from jetfoundry.errors import ConfigError
from jetfoundry.models import particle_transformer
from jetfoundry.models.attention import Dropout
from jetfoundry.models.particle_transformer import ParTConfig, ParticleTransformer
from jetfoundry.models.presets import PRESETS


def seeded(model_config: ParTConfig, training: bool = False) -> ParticleTransformer:
    torch.manual_seed(0)
    return ParticleTransformer(model_config).train(training)


@pytest.fixture
def no_dropout(small_config: ParTConfig) -> ParTConfig:
    return dataclasses.replace(small_config, dropout=0, attention_dropout=0, activation_dropout=0, fc_dropout=0)


def test_sophon_has_its_published_number_of_parameters() -> None:
    assert sum(p.numel() for p in ParticleTransformer(PRESETS["sophon"]).parameters()) == 2_304_688


def test_defaults_are_sophon() -> None:
    assert PRESETS["sophon"] == ParTConfig()


def test_logits_are_the_head_of_the_latent(small_config: ParTConfig, make_batch) -> None:
    model, batch = seeded(small_config), make_batch([3, 1], features=5)
    latent = model.latent(*batch)
    assert latent.shape == (2, 16)
    assert model(*batch).shape == (2, 3)
    assert torch.equal(model.head(latent), model(*batch))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("garbage", [7.0, -1e30, math.nan, math.inf])
def test_padding_content_does_not_change_scores(
    small_config: ParTConfig, make_batch, garbage: float, training: bool
) -> None:
    features, vectors, mask = make_batch([5, 2, 3], features=5)
    results = []
    for fill in (0.0, garbage):
        model = seeded(small_config, training)  # the same weights and the same dropout both times
        scores = model(features.masked_fill(~mask, fill), vectors.masked_fill(~mask, fill), mask)
        results.append((scores, *model.buffers()))
    assert results[0][0].isfinite().all()
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)


@pytest.mark.parametrize("training", [False, True])
def test_more_padding_does_not_change_scores(no_dropout: ParTConfig, make_batch, training: bool) -> None:
    features, vectors, mask = make_batch([5, 2, 3], features=5, pad_to=5)
    wide = [F.pad(x, (0, 7)) for x in (features, vectors, mask)]
    tight, padded = seeded(no_dropout, training), seeded(no_dropout, training)
    torch.testing.assert_close(tight(features, vectors, mask), padded(*wide))
    for ours, theirs in zip(tight.buffers(), padded.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_scores_do_not_depend_on_the_order_of_particles_or_jets(small_config: ParTConfig, make_batch) -> None:
    model, batch = seeded(small_config), make_batch([6, 6, 4], features=5)
    scores = model(*batch)
    torch.testing.assert_close(model(*(x.flip(2) for x in batch)), scores)
    torch.testing.assert_close(model(*(x.flip(0) for x in batch)).flip(0), scores)
    torch.testing.assert_close(model(*(x[1:2] for x in batch)), scores[1:2])


@pytest.mark.parametrize("lengths", [[5, 2, 3], [1, 1], [4, 0], [0, 1]])
def test_packed_rows_and_padded_rows_give_the_same_scores_gradients_and_statistics(
    no_dropout: ParTConfig, make_batch, monkeypatch, lengths: list[int]
) -> None:
    found = []
    for padded in (False, True):
        monkeypatch.setattr(particle_transformer, "padded_shapes", lambda values, padded=padded: padded)
        model, (features, vectors, mask) = seeded(no_dropout, training=True).double(), make_batch(lengths, features=5)
        for _ in range(2):  # the second time the running statistics differ from the batch's
            model.zero_grad()
            scores = model(features.double().masked_fill(~mask, math.nan), vectors.double(), mask)
            scores.square().sum().backward()
        found.append(
            {"scores": scores} | {name: p.grad for name, p in model.named_parameters()} | dict(model.named_buffers())
        )
    packed, padded = found
    for name, value in packed.items():
        torch.testing.assert_close(padded[name], value, rtol=1e-6, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def test_pairs_matter(small_config: ParTConfig, make_batch) -> None:
    features, vectors, mask = make_batch([6, 4], features=5)
    model = seeded(small_config)
    assert (model(features, vectors, mask) - model(features, vectors.roll(1, dims=2), mask)).abs().max() > 1e-4


def test_a_jet_without_particles_is_finite(small_config: ParTConfig, make_batch) -> None:
    features, vectors, mask = make_batch([4, 4], features=5)
    mask[1] = False
    for training in (False, True):
        model = seeded(small_config, training)
        model(features, vectors, mask).sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
    assert seeded(small_config)(features, vectors, mask).isfinite().all()


def test_every_parameter_gets_a_gradient(small_config: ParTConfig, make_batch) -> None:
    model = seeded(small_config, training=True)
    model(*make_batch([6, 4, 5, 3], features=5)).square().sum().backward()
    for name, parameter in model.named_parameters():
        # A batch norm behind a linear layer takes the layer's bias away: its gradient is rounding.
        if not (name.startswith("pair_embed.layers") and name.endswith(".bias") and "norm" not in name):
            assert parameter.grad.abs().max() > 1e-7, name


@pytest.mark.parametrize("padded", [False, True])
def test_bfloat16_autocast_stays_close_to_float32(
    no_dropout: ParTConfig, make_batch, monkeypatch, padded: bool
) -> None:
    monkeypatch.setattr(particle_transformer, "padded_shapes", lambda values: padded)
    batch = make_batch([6, 4, 5, 3], features=5)
    for training in (False, True):
        plain, mixed = seeded(no_dropout, training), seeded(no_dropout, training)
        with torch.autocast("cpu", torch.bfloat16):
            scores = mixed(*batch)
            scores.float().square().sum().backward()
        torch.testing.assert_close(scores.float(), plain(*batch), atol=0.1, rtol=0.1)
        assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in mixed.parameters())


def test_it_learns_two_prongs_from_the_pairs_alone(no_dropout: ParTConfig, make_batch) -> None:
    features, vectors, mask = make_batch([8] * 32, features=5)
    labels = torch.arange(32) % 2
    features[:] = features[:1].clone()  # all jets look alike, particle by particle
    vectors[labels == 1, :2, ::2] *= -1  # in half of them, every second particle flies the other way
    model = seeded(no_dropout, training=True)
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(model(features, vectors, mask), labels).backward()
        optimiser.step()
    with torch.no_grad():
        found = model.eval()(features, vectors, mask).argmax(1)
    assert (found == labels).float().mean() > 0.95


def test_dropout_keeps_the_expectation_and_drops_at_its_rate() -> None:
    torch.manual_seed(0)
    dropout = Dropout(0.25).train()
    x = torch.ones(999, 101, requires_grad=True)
    y = dropout(x)
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(y[y != 0].unique(), torch.tensor([4 / 3]))
    y.sum().backward()
    assert torch.equal(x.grad, y)  # dropped elements get no gradient
    assert not torch.equal(dropout(x), y)
    assert dropout.eval()(x) is x


def test_dropout_follows_the_seed() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(Dropout(0.1)(torch.ones(7, 5)))
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_heads": 3}, r"num_heads=3 must divide .* embed_dims\[-1\]=128"),
        ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
        ({"embed_dims": []}, "embed_dims not empty"),
        ({"num_layers": 0}, "at least 1"),
        ({"num_head": 4}, "unknown key 'num_head'; nearest: num_heads"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        config.build(ParTConfig, changes)
