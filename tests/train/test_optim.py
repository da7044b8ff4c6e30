import itertools

import pytest
import torch
from torch import nn

from jetfoundry.errors import ConfigError
from jetfoundry.train.optim import OptimConfig, build_optimizer, set_learning_rate
from jetfoundry.train.schedule import Schedule


def test_learning_rate_rises_linearly_then_falls_as_half_a_cosine():
    schedule = Schedule("cosine", 0.1, 10, 10)
    factors = [schedule(step) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))


def test_norms_biases_and_class_tokens_are_not_decayed():
    model = nn.Module()
    model.linear, model.norm = nn.Linear(2, 3), nn.LayerNorm(3)
    model.class_token = nn.Parameter(torch.zeros(1, 1, 3))
    decayed, free = build_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(3, 2)]
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    assert len(free["params"]) == 4


def test_bad_limits_are_refused():
    with pytest.raises(ValueError, match="wanted lr > 0"):
        OptimConfig(lr=0)


@pytest.mark.parametrize(("shape", "epochs"), [("flat_decay", 10), ("flat_decay", 4), ("steps", 9), ("one_cycle", 5)])
def test_schedules_are_those_of_torch_as_weaver_sets_them(shape, epochs):
    steps = 7
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    decaying, third = max(1, int(epochs * 0.3)), round(epochs / 3)
    scheduler = {
        "flat_decay": lambda: torch.optim.lr_scheduler.MultiStepLR(
            optimizer, list(range(epochs - decaying, epochs)), 0.01 ** (1 / decaying)
        ),
        "steps": lambda: torch.optim.lr_scheduler.MultiStepLR(optimizer, [third, 2 * third], 0.1),
        "one_cycle": lambda: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 1.0, epochs=epochs, steps_per_epoch=steps, cycle_momentum=False
        ),
    }[shape]()
    wanted = []
    for step in range(epochs * steps):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (shape == "one_cycle" or (step + 1) % steps == 0) and step + 1 < epochs * steps:
            scheduler.step()
    ours = Schedule(shape, 0.05, epochs, steps)
    assert [ours(step) for step in range(epochs * steps)] == pytest.approx(wanted)


def _train(optimizer, model, steps):
    torch.manual_seed(3)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(torch.randn(8, 4)) - 1).square().mean().backward()
        optimizer.step()


def test_ranger_is_weavers():
    ours, theirs = nn.Linear(4, 2), nn.Linear(4, 2)
    theirs.load_state_dict(ours.state_dict())
    peer = pytest.importorskip("weaver.utils.nn.optimizer.ranger")
    _train(build_optimizer(ours, OptimConfig(name="ranger", lr=0.02, weight_decay=0.0)), ours, 20)
    _train(peer.Ranger(theirs.parameters(), lr=0.02), theirs, 20)
    torch.testing.assert_close(ours.weight, theirs.weight, atol=1e-6, rtol=1e-6)


def test_a_continued_ranger_has_its_slow_weights_again():
    through, halves = nn.Linear(4, 2), nn.Linear(4, 2)
    halves.load_state_dict(through.state_dict())
    options = OptimConfig(name="ranger", lr=0.02)
    first, begun = build_optimizer(through, options), build_optimizer(halves, options)
    _train(first, through, 4)
    _train(begun, halves, 4)
    again = build_optimizer(halves, options)
    again.load_state_dict(begun.state_dict())
    _train(first, through, 5)
    _train(again, halves, 5)
    assert torch.equal(through.weight, halves.weight)


def test_learning_rates_are_multiplied_by_name():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = build_optimizer(model, OptimConfig(lr_mult={r"0\..*": 0.1}))
    set_learning_rate(optimizer, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rates[id(p)] for p in model.parameters()] == [0.05, 0.05, 0.5, 0.5]


def test_a_pattern_that_matches_nothing_is_an_error_with_the_nearest_names():
    with pytest.raises(ConfigError, match=r"lr_mult: '0.wieght' matches no parameter; nearest: 0.weight"):
        build_optimizer(nn.Sequential(nn.Linear(2, 2)), OptimConfig(lr_mult={"0.wieght": 0.1}))
