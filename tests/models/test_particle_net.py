"""ParticleNet: neighbours by eye, independence of padding, and weaver's network with the same weights."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from weaver.nn.model.ParticleNet import ParticleNet as Weaver

from jetfoundry import config as cfg
from jetfoundry.errors import ConfigError
from jetfoundry.models.normalisation import BatchRenorm
from jetfoundry.models.particle_net import ParticleNet, ParticleNetConfig, nearest_neighbours
from jetfoundry.models.weaver_import import config_from_weaver, from_weaver

SMALL = ParticleNetConfig(input_dim=5, num_classes=3, neighbours=(4, 3), channels=((8, 8), (6, 7)), fc_dims=(9,))


def weaver_network(config: ParticleNetConfig, seed: int = 0) -> Weaver:
    torch.manual_seed(seed)
    network = Weaver(
        input_dims=config.input_dim,
        num_classes=config.num_classes,
        conv_params=list(zip(config.neighbours, config.channels, strict=True)),
        fc_params=[(width, config.fc_dropout) for width in config.fc_dims],
        use_fusion=config.fusion,
        use_fts_bn=config.input_norm,
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape) if parameter.ndim < 2 else 0
        for layer in network.fc:
            (layer[0] if isinstance(layer, torch.nn.Sequential) else layer).weight *= 4
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return network.eval()


def ours_from(network: Weaver, config: ParticleNetConfig) -> ParticleNet:
    model = ParticleNet(config).to(next(network.parameters()).dtype)
    model.load_state_dict(from_weaver(network.state_dict(), config))
    return model.eval()


def batch_of(make_batch, lengths: list[int], features: int = 5, **kwargs) -> tuple[torch.Tensor, ...]:
    values, vectors, mask = make_batch(lengths, features=features, **kwargs)
    points = torch.stack((torch.asinh(vectors[:, 2] / 20), torch.atan2(vectors[:, 1], vectors[:, 0])), 1)
    return points, values, mask


def compare(config: ParticleNetConfig, batch: tuple[torch.Tensor, ...], atol: float, training: bool = False) -> None:
    """Scores and gradients of every weight, ours against weaver's."""
    points, features, mask = batch
    theirs = weaver_network(config).to(features.dtype)
    ours = ours_from(theirs, config)
    theirs.train(training)
    ours.train(training)
    labels = torch.arange(len(features)) % config.num_classes
    wanted, found = theirs(points, features, mask.to(features.dtype)), ours(points, features, mask)
    assert wanted.std() > 0.1  # the comparison is about something
    torch.testing.assert_close(found, wanted, atol=atol, rtol=0)
    F.cross_entropy(wanted, labels).backward()
    F.cross_entropy(found, labels).backward()
    gradients = from_weaver({**theirs.state_dict(), **{k: p.grad for k, p in theirs.named_parameters()}}, config)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=atol, rtol=0, msg=name)


def test_neighbours_are_the_nearest_others_by_eye() -> None:
    points = torch.tensor([[[0.0, 1.0, 3.0, 7.0, 50.0], [0.0] * 5]])  # on a line: 0, 1, 3, 7, and a padded slot
    real = torch.tensor([[True, True, True, True, False]])
    slots, there = nearest_neighbours(points, real, 2)
    assert there[0, :4].all()
    assert [set(row) for row in slots[0, :4].tolist()] == [{1, 2}, {0, 2}, {1, 0}, {2, 1}]
    slots, there = nearest_neighbours(points, real, 6)  # more than there are
    assert there.sum(-1).tolist() == [[3, 3, 3, 3, 4]]
    for i in range(4):
        assert set(slots[0, i][there[0, i]].tolist()) == {0, 1, 2, 3} - {i}


def test_coinciding_particles_are_neighbours_of_each_other_and_not_of_themselves() -> None:
    slots, there = nearest_neighbours(torch.full((1, 2, 3), 0.7), torch.ones(1, 3, dtype=torch.bool), 2)
    assert there.all()
    assert [set(row) for row in slots[0].tolist()] == [{1, 2}, {0, 2}, {0, 1}]


@pytest.mark.parametrize("fusion", [False, True])
def test_published_layout_equals_weaver_on_real_jets(real_jets, fusion: bool) -> None:
    features, _, mask = real_jets
    compare(ParticleNetConfig(fusion=fusion), (features[:, -2:], features, mask), 1e-5)


@pytest.mark.parametrize("pad_to", [30, 64])
def test_published_layout_equals_weaver_whatever_the_padding(make_batch, pad_to: int) -> None:
    batch = batch_of(make_batch, [30, 1, 17, 2, 16], features=17, pad_to=pad_to)
    compare(ParticleNetConfig(fusion=True), batch, 1e-5)


@pytest.mark.parametrize("changes", [{}, {"fusion": True}, {"input_norm": False}])
def test_small_network_equals_weaver_in_double_precision(make_batch, changes: dict) -> None:
    points, features, mask = batch_of(make_batch, [12, 7, 1])
    compare(dataclasses.replace(SMALL, **changes), (points.double(), features.double(), mask), 1e-11)


@pytest.mark.parametrize("fusion", [False, True])
def test_training_gradients_equal_weavers_on_full_jets(make_batch, monkeypatch, fusion: bool) -> None:
    """Without padding, which weaver's batch norms see and ours do not, and with batch renorm's corrections at (1, 0),
    where it is plain batch norm."""

    update = BatchRenorm._update

    def batch_norm(norm: BatchRenorm, rows: torch.Tensor, real: torch.Tensor | None):
        found = update(norm, rows, real)
        return found._replace(r=torch.ones_like(found.r), d=torch.zeros_like(found.d))

    monkeypatch.setattr(BatchRenorm, "_update", batch_norm)
    points, features, mask = batch_of(make_batch, [20] * 16)
    features.requires_grad_()  # else our norm of the inputs takes the running statistics, by design
    config = dataclasses.replace(SMALL, fusion=fusion, fc_dropout=0.0)
    compare(config, (points, features, mask), 1e-5, training=True)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("garbage", [7.0, -1e30, math.nan, math.inf])
def test_padding_content_does_not_change_scores(make_batch, garbage: float, training: bool) -> None:
    points, features, mask = batch_of(make_batch, [9, 2, 1, 5])
    results = []
    for fill in (0.0, garbage):
        torch.manual_seed(0)
        model = ParticleNet(SMALL).train(training)
        scores = model(points.masked_fill(~mask, fill), features.masked_fill(~mask, fill), mask)
        results.append((scores, *model.buffers()))
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)


@pytest.mark.parametrize("training", [False, True])
def test_more_padding_does_not_change_scores(make_batch, training: bool) -> None:
    batch = batch_of(make_batch, [3, 2, 1])  # fewer particles than neighbours, and slots
    results = []
    for pad in (0, 7):
        torch.manual_seed(0)
        model = ParticleNet(dataclasses.replace(SMALL, fc_dropout=0.0)).train(training)
        results.append((model(*(F.pad(x, (0, pad)) for x in batch)), *model.buffers()))
    for tight, padded in zip(*results, strict=True):
        torch.testing.assert_close(tight, padded)


def test_scores_do_not_depend_on_the_order_of_particles_or_jets(make_batch) -> None:
    torch.manual_seed(0)
    model, batch = ParticleNet(SMALL).eval(), batch_of(make_batch, [9, 9, 4])
    scores = model(*batch)
    torch.testing.assert_close(model(*(x.flip(2) for x in batch)), scores)
    torch.testing.assert_close(model(*(x.flip(0) for x in batch)).flip(0), scores)
    torch.testing.assert_close(model(*(x[1:2] for x in batch)), scores[1:2])
    torch.testing.assert_close(model(batch[0] + 5, *batch[1:]), scores, atol=1e-4, rtol=1e-4)  # only differences count


@pytest.mark.parametrize("lengths", [[4, 0], [0, 0], [1], [1, 1]])
def test_jets_without_particles_or_pairs_are_finite(make_batch, lengths: list[int]) -> None:
    batch = batch_of(make_batch, [4] * len(lengths))
    mask = (torch.arange(4) < torch.tensor(lengths)[:, None])[:, None]
    for training in (False, True):
        model = ParticleNet(SMALL).train(training)
        model(*batch[:2], mask).sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        assert all(b.isfinite().all() for b in model.buffers())


def test_bfloat16_autocast_stays_close_to_float32(make_batch) -> None:
    batch = batch_of(make_batch, [9, 4, 5, 3])
    for training in (False, True):
        torch.manual_seed(0)
        model = ParticleNet(dataclasses.replace(SMALL, fc_dropout=0.0)).train(training)
        plain = model(*batch)
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(*batch)
            scores.float().square().sum().backward()
        torch.testing.assert_close(scores.float(), plain, atol=0.1, rtol=0.1)
        assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in model.parameters())


def test_it_learns_from_the_neighbours_alone(make_batch) -> None:
    _, features, mask = batch_of(make_batch, [8] * 32)
    labels = torch.arange(32) % 2
    features[:] = features[:1].clone()  # all jets look alike, particle by particle
    side = torch.where(labels[:, None] == 1, torch.arange(8) % 2, torch.arange(8) // 4)  # but half of them mix
    draw = torch.Generator().manual_seed(0)
    points = torch.stack((side.float(), torch.zeros(32, 8)), 1) + torch.randn(32, 2, 8, generator=draw) * 0.1
    torch.manual_seed(0)
    model = ParticleNet(dataclasses.replace(SMALL, neighbours=(3, 3), fc_dropout=0.0)).train()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(model(points, features, mask), labels).backward()
        optimiser.step()
    with torch.no_grad():
        assert (model.eval()(points, features, mask).argmax(1) == labels).float().mean() > 0.95


def test_wrappers_prefixes_are_understood(make_batch) -> None:
    network, batch = weaver_network(SMALL), batch_of(make_batch, [9, 4])
    wrapped = {"module.mod." + name: value for name, value in network.state_dict().items()}
    assert dataclasses.replace(config_from_weaver(wrapped), neighbours=(4, 3)) == SMALL
    model = ParticleNet(SMALL).eval()
    model.load_state_dict(from_weaver(wrapped, SMALL))
    torch.testing.assert_close(model(*batch), network(*batch[:2], batch[2].float()), atol=1e-5, rtol=0)


def test_sizes_are_read_from_weavers_weights() -> None:
    for config in (ParticleNetConfig(), ParticleNetConfig(fusion=True, input_norm=False, fc_dims=(64, 32))):
        assert config_from_weaver(weaver_network(config).state_dict()) == config
    lite = ParticleNetConfig(neighbours=(7, 7), channels=((32, 32, 32), (64, 64, 64)), fc_dims=(128,))
    assert config_from_weaver(weaver_network(lite).state_dict(), neighbours=7) == lite


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"neighbours": [16]}, "wanted channels and neighbours for every block"),
        ({"channels": [[], [8], [8]]}, "wanted channels and neighbours for every block"),
        ({"neighbours": [0, 1, 1]}, "at least 1"),
        ({"fc_dropout": 1}, r"fc_dropout in \[0, 1\)"),
        ({"num_layers": 4}, "unknown key 'num_layers'"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        cfg.build(ParticleNetConfig, changes)
