from __future__ import annotations

import pytest
import torch
from torch import nn

from jetfoundry.models.normalisation import BatchRenorm, LinearRenorm


def rows(count: int, channels: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def test_first_batch_is_plain_batch_norm_with_its_gradient() -> None:
    ours, theirs = BatchRenorm(3).train(), nn.BatchNorm1d(3, momentum=1.0)
    x = rows(50, 3).requires_grad_()
    y = x.detach().clone().requires_grad_()
    weight = rows(50, 3, seed=1)
    (ours(x) * weight).sum().backward()
    (theirs(y) * weight).sum().backward()
    # The running variance is unbiased, the batch's is not: r = sqrt(49 / 50).
    torch.testing.assert_close(x.grad, y.grad * (49 / 50) ** 0.5, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_eval_is_plain_batch_norm() -> None:
    ours, theirs = BatchRenorm(3), nn.BatchNorm1d(3)
    with torch.no_grad():
        for tensor in (*ours.parameters(), ours.running_mean, ours.running_var):
            tensor.copy_(torch.rand(3) + 0.5)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.eval()(rows(20, 3)), theirs.eval()(rows(20, 3)))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_training_and_eval_agree_for_batches_that_are_not_alike(requires_grad: bool) -> None:
    norm = BatchRenorm(2).train()
    short, long = rows(500, 2), rows(500, 2, seed=1) + 1.5  # "short jets" and "long jets"
    for _ in range(200):
        norm(short), norm(long)
    batch = short.clone().requires_grad_(requires_grad)
    in_training = norm(batch)
    torch.testing.assert_close(in_training, norm.eval()(batch), rtol=1e-3, atol=1e-3)
    assert in_training.mean() < -0.2  # plain batch norm would have taken the difference away


def test_no_gradient_along_the_mean_and_the_scale_of_the_batch() -> None:
    norm = BatchRenorm(2).train()
    x = rows(30, 2).requires_grad_()
    norm(x).pow(3).sum().backward()
    torch.testing.assert_close(x.grad.sum(0), torch.zeros(2), atol=1e-3, rtol=0)


def test_running_statistics_forget_at_the_momentum() -> None:
    norm = BatchRenorm(1, momentum=0.25).train()
    for value in (0.0, 1.0, 2.0, 3.0, 7.0):
        norm(torch.tensor([[value - 1], [value + 1]]))
    # Equal weights up to the fourth batch: mean of 0, 1, 2, 3; then 1.5 + (7 - 1.5) / 4.
    assert norm.running_mean.item() == pytest.approx(2.875)
    assert norm.num_batches_tracked.item() == 5


def test_a_batch_of_one_row_is_harmless() -> None:
    norm = BatchRenorm(2).train()
    assert norm(torch.ones(1, 2)).isfinite().all()
    assert norm.num_batches_tracked == 0


def test_linear_layer_and_norm_are_merged_in_eval() -> None:
    layer = LinearRenorm(3, 4)
    for _ in range(3):
        layer.train()(rows(40, 3))
    x = rows(10, 3, seed=2)
    separate = layer.norm.eval()(nn.functional.linear(x, layer.weight, layer.bias))
    torch.testing.assert_close(layer.eval()(x), separate)
