"""Sophon++: the loss by hand, one rank against two, and toy jets that only the hard process tells apart."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jetfoundry import config as cfg
from jetfoundry.errors import ConfigError, InputError
from jetfoundry.models.contrastive import ContrastiveConfig, ContrastiveTransformer
from jetfoundry.models.contrastive_loss import contrastive_loss
from jetfoundry.models.gen_particles import GEN_COLUMNS, GEN_FEATURES
from jetfoundry.models.particle_transformer import ParTConfig
from jetfoundry.models.tasks import TaskConfig

SMALL = ContrastiveConfig(
    jet=ParTConfig(
        input_dim=5, num_classes=3, embed_dims=(32,), pair_embed_dims=(8,), num_heads=4, num_layers=1,
        num_class_layers=1, ffn_ratio=2, dropout=0, attention_dropout=0, activation_dropout=0, fc_dims=(), fc_dropout=0,
        tasks=(TaskConfig(), TaskConfig(name="contrastive", head=(32,), outputs=16)),
    ),
    gen=ParTConfig(
        input_dim=len(GEN_FEATURES), num_classes=16, embed_dims=(32,), pair_embed_dims=(8,), num_heads=4, num_layers=1,
        num_class_layers=1, ffn_ratio=2, dropout=0, attention_dropout=0, activation_dropout=0, fc_dims=(), fc_dropout=0,
    ),
)  # fmt: skip


def toy(number: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two or three partons of a hard process, and a jet: each parton split into four smeared particles.

    Features (B, 5, 12), vectors (B, 4, 12), mask, gen_particles (B, 10, 4).
    """
    draw = torch.Generator().manual_seed(seed)
    real = torch.arange(3) < torch.randint(2, 4, (number, 1), generator=draw)
    pt = (50 + 250 * torch.rand(number, 3, generator=draw)) * real
    eta, phi = torch.randn(2, number, 3, generator=draw) * 0.4
    gen = torch.zeros(number, len(GEN_COLUMNS), 4)
    gen[:, :3, :3] = torch.stack((pt, eta, phi), 1)
    gen[:, 4, :3] = torch.randint(1, 6, (number, 3), generator=draw) * real
    gen[:, 7, :3] = real
    share = torch.rand(number, 3, 4, generator=draw) + 0.5
    part_pt = (pt[..., None] * share / share.sum(-1, keepdim=True)).flatten(1)
    smear = torch.randn(2, number, 12, generator=draw) * 0.01
    part_eta, part_phi = eta.repeat_interleave(4, 1) + smear[0], phi.repeat_interleave(4, 1) + smear[1]
    mask = real.repeat_interleave(4, 1)[:, None]
    momentum = torch.stack((part_phi.cos(), part_phi.sin(), part_eta.sinh(), part_eta.cosh()), 1) * part_pt[:, None]
    axis = momentum.sum(2, keepdim=True)
    jet_pt = torch.hypot(axis[:, 0], axis[:, 1])
    deta = part_eta - torch.asinh(axis[:, 2] / jet_pt)
    dphi = part_phi - torch.atan2(axis[:, 1], axis[:, 0])
    share = (part_pt / jet_pt).clamp(min=1e-6)
    features = torch.stack((share.log() + 2, share * 5, torch.hypot(deta, dphi) * 4, deta * 3, dphi * 3), 1) * mask
    return features, momentum * mask * (500 / jet_pt)[..., None], mask, gen


def projections(number: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    jet, gen = (F.normalize(torch.randn(number, 256, generator=draw), dim=1) for _ in range(2))
    return jet, gen


def test_loss_of_two_jets_is_that_of_a_hand_calculation() -> None:
    jet, gen = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    found = contrastive_loss(jet, gen, torch.tensor(2.0))
    to_gen = (math.log(1 + math.exp(1.2 - 2)) + math.log(1 + math.exp(0 - 1.6))) / 2  # cosines (1, .6), (0, .8)
    to_jet = (math.log(1 + math.exp(0 - 2)) + math.log(1 + math.exp(1.2 - 1.6))) / 2
    assert found.loss.mean().item() == pytest.approx(to_gen + to_jet, rel=1e-6)
    assert contrastive_loss(jet, gen, torch.tensor(2.0), symmetric="mean").loss.mean().item() == pytest.approx(
        (to_gen + to_jet) / 2, rel=1e-6
    )
    assert found.found.all()


@pytest.mark.parametrize(("number", "wanted"), [(512, 12.48), (2048, 15.25)])
def test_random_projections_cost_twice_the_logarithm_of_their_number(number: int, wanted: float) -> None:
    jet, gen = projections(number)
    found = contrastive_loss(jet, gen, torch.tensor(1.0))
    assert found.loss.mean().item() == pytest.approx(wanted, abs=0.02)
    assert found.loss.mean().item() == pytest.approx(2 * math.log(number), abs=0.02)
    assert found.found.sum() < 5


def test_a_jet_that_is_drawn_twice_is_no_negative_of_itself() -> None:
    jet, gen = projections(6)
    twice = torch.tensor([0, 1, 2, 3, 4, 5, 2])
    ids = torch.stack((torch.zeros(7), twice), 1).long()
    found = contrastive_loss(jet[twice], gen[twice], torch.tensor(5.0), ids)
    cosines = 5 * jet @ gen.T
    rows = lambda c: (c.logsumexp(1) - c.diagonal())[twice].mean()  # noqa: E731
    once = [c.clone() for c in (cosines, cosines.T)]
    extra = [torch.cat((c, c[:, 2:3]), 1) for c in once]  # the others meet the jet twice
    for c in extra:
        c[2, 6] = -torch.inf
    assert found.loss.mean().item() == pytest.approx(sum(rows(c).item() for c in extra), rel=1e-5)
    assert found.loss.mean() < contrastive_loss(jet[twice], gen[twice], torch.tensor(5.0)).loss.mean()


def test_retrieval_counts_the_jets_that_find_their_own_particles() -> None:
    jet, gen = projections(8)
    assert contrastive_loss(jet, jet, torch.tensor(1.0)).found.all()
    assert not contrastive_loss(jet, jet.roll(1, 0), torch.tensor(1.0)).found.any()
    half = torch.cat((jet[:4], -jet[4:]))
    assert contrastive_loss(jet, half, torch.tensor(1.0)).found.tolist() == [True] * 4 + [False] * 4
    assert contrastive_loss(jet[:1], gen[:1], torch.tensor(1.0)).loss == 0  # one jet has nothing to be confused with


def test_loss_is_computed_in_float32_under_autocast() -> None:
    jet, gen = projections(32)
    wanted = contrastive_loss(jet, gen, torch.tensor(14.3)).loss
    with torch.autocast("cpu", torch.bfloat16):
        assert contrastive_loss(jet, gen, torch.tensor(14.3)).loss.equal(wanted)


def seeded(config: ContrastiveConfig = SMALL) -> ContrastiveTransformer:
    torch.manual_seed(0)
    return ContrastiveTransformer(config)


def test_without_particles_of_the_generator_it_is_the_jet_network() -> None:
    model, (*jets, gen) = seeded().eval(), toy(4, 0)
    assert torch.equal(model(*jets), model.jet(*jets))
    assert torch.equal(model.head(model.latent(*jets)), model(*jets))
    outputs = model(*jets, gen)
    torch.testing.assert_close(outputs.logits, model(*jets))
    for projection in (outputs.jet, outputs.gen):
        torch.testing.assert_close(projection.norm(dim=1), torch.ones(4))
    assert outputs.scale.item() == pytest.approx(1 / 0.07, rel=1e-5)


def test_losses_are_weighted_and_every_parameter_gets_a_gradient() -> None:
    model, batch, labels = seeded().train(), toy(8, 0), torch.arange(8) % 3
    batch[3][0] = 0  # a jet without particles of the hard process: the learned token stands in
    losses = model.losses(model(*batch), labels)
    torch.testing.assert_close(losses.total, 0.1 * losses.figures["contrastive_loss"] + losses.classification)
    losses.total.mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert model.gen.empty_token.grad.abs().max() > 0


def test_jets_without_a_hard_process_have_one_learned_embedding() -> None:
    model, (*jets, gen) = seeded().eval(), toy(4, 0)
    gen[1:3] = 0
    first, second, third, _ = model(*jets, gen).gen
    torch.testing.assert_close(second, third)
    assert (first - second).abs().max() > 1e-3


def test_a_learned_temperature_is_trained_and_bounded_a_fixed_one_is_not() -> None:
    batch, labels = toy(8, 0), torch.arange(8) % 3
    for learn in (False, True):
        model = seeded(dataclasses.replace(SMALL, learn_temperature=learn)).train()
        assert ("log_scale" in dict(model.named_parameters())) is learn
        assert "log_scale" in model.state_dict()
        model.losses(model(*batch), labels).total.mean().backward()
        if learn:
            assert model.log_scale.grad.abs() > 0
            with torch.no_grad():
                model.log_scale.fill_(50.0)
        assert model(*batch).scale <= 100.001


def test_projections_of_different_width_and_impossible_weights_are_refused() -> None:
    tree = cfg.to_dict(SMALL)
    for change, match in (
        ({"gen": tree["gen"] | {"num_classes": 8}}, "'contrastive' has 16 outputs, the gen network 8"),
        ({"jet": tree["jet"] | {"tasks": []}}, "'contrastive' has 0 outputs"),
        ({"gen": tree["gen"] | {"input_dim": 7}}, f"have {len(GEN_FEATURES)} features, got 7"),
        ({"w_contrastive": 0}, "wanted w_contrastive > 0"),
        ({"temperature": 0.001}, "temperature >= 0.01"),
        ({"negatives": "all"}, "one of local, global"),
    ):
        with pytest.raises(ConfigError, match=match):
            cfg.build(ContrastiveConfig, tree | change)
    *jets, gen = toy(4, 0)
    with pytest.raises(InputError, match=r"gen_particles: wanted 10 channels \(aux_genpart_pt, .* got 3"):
        seeded()(*jets, gen[:, :3])


DRAWN = torch.tensor([0, 1, 2, 3, 4, 5, 1, 6])  # jet 1 was drawn twice, and lies on both of two ranks


def backward(mine: slice, negatives: str, wrap: Callable[[nn.Module], nn.Module]) -> dict[str, Any]:
    """Losses of the part `mine` of eight jets, and the gradients; batch norms in eval mode, for theirs differ."""
    model = seeded(dataclasses.replace(SMALL, negatives=negatives, learn_temperature=True)).eval()
    batch = [x[DRAWN][mine] for x in toy(8, 0)]
    wrapped = wrap(model)  # it has to live until the backward pass
    losses = model.losses(wrapped(*batch), (DRAWN % 3)[mine], DRAWN[mine])
    losses.total.mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"gradients": gradients, "figures": {name: values.mean() for name, values in losses.figures.items()}}


RANK = """
import datetime, sys
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
tests, folder, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.path.insert(0, tests)
from test_contrastive import backward
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
                               timeout=datetime.timedelta(seconds=200))
torch.save(backward(slice(4 * rank, 4 * rank + 4), "global", DistributedDataParallel), f"{folder}/{rank}.pt")
distributed.destroy_process_group()
"""


def test_two_ranks_have_the_gradients_of_one_with_all_their_jets(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RANK, str(Path(__file__).parent), str(tmp_path)]
    running = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE) for rank in range(2)]
    for process in running:
        _, errors = process.communicate(timeout=250)
        assert process.returncode == 0, errors.decode()
    two = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    one = backward(slice(8), "global", lambda model: model)
    assert max(gradient.abs().max() for gradient in one["gradients"].values()) > 1e-3
    for rank in two:
        for name, wanted in one["gradients"].items():
            torch.testing.assert_close(rank["gradients"][name], wanted, atol=1e-6, rtol=1e-4, msg=name)
    for name, wanted in one["figures"].items():
        assert sum(rank["figures"][name].item() for rank in two) / 2 == pytest.approx(wanted.item(), rel=1e-5)
    halves = [backward(slice(4 * half, 4 * half + 4), "local", lambda model: model) for half in range(2)]
    local = {name: (halves[0]["gradients"][name] + halves[1]["gradients"][name]) / 2 for name in one["gradients"]}
    assert max((local[name] - wanted).abs().max() for name, wanted in one["gradients"].items()) > 1e-3


def retrieval(model: ContrastiveTransformer, seed: int, shuffle: bool) -> float:
    *jets, gen = toy(64, seed)
    with torch.no_grad():
        outputs = model.eval()(*jets, gen.roll(1, 0) if shuffle else gen)
    return model.contrast(outputs).found.float().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", [False, True])
def test_jets_are_found_by_their_hard_process_and_by_nothing_else(shuffle: bool) -> None:
    """Trained on toy jets with their own particles, retrieval is far above chance; with those of another jet, the whole
    generator input being nothing but those particles, it stays at chance: 1 / 64, 16 expected of 1024."""
    model = seeded(dataclasses.replace(SMALL, w_contrastive=1.0, w_classification=0.0)).train()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(150):
        *jets, gen = toy(64, 1000 + step)
        optimiser.zero_grad()
        outputs = model.train()(*jets, gen.roll(1, 0) if shuffle else gen)
        model.losses(outputs, torch.zeros(64, dtype=torch.long)).total.mean().backward()
        optimiser.step()
    found = sum(retrieval(model, seed, shuffle) for seed in range(16)) / 16
    if shuffle:
        assert found < 32 / 1024  # four standard deviations
    else:
        assert found > 0.25
