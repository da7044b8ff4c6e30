import itertools

import pytest
import torch
from torch import nn

from jetfoundry.train.optim import OptimConfig, build_optimizer, learning_rate_factor


def test_learning_rate_rises_linearly_then_falls_as_half_a_cosine():
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(101)]
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
