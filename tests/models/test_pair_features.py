from __future__ import annotations

import math

import pytest
import torch
import weaver.nn.model.ParticleTransformer as weaver

from jetfoundry.models.pair_features import kinematics, pair_features, rapidity

REAL = torch.ones(1, 1, 2, dtype=torch.bool)


def two_particles(*vectors: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor(vectors, dtype=torch.float32).T[None]  # (1, 4, 2)


def first_pair(vectors: torch.Tensor, mask: torch.Tensor = REAL) -> torch.Tensor:
    particles = kinematics(vectors, mask)
    return pair_features(particles[:, 0, 0], particles[:, 0, 1])


def test_back_to_back_pair_has_the_values_of_a_hand_calculation() -> None:
    # pT 3 and 4 GeV, at y = 0 and a right angle in phi; both massless: m² = 2 E E (1 - cos 90°) = 24 GeV².
    kt, z, delta_r, m2 = first_pair(two_particles((3, 0, 0, 3), (0, 4, 0, 4))).exp().tolist()
    assert delta_r == pytest.approx(math.pi / 2, rel=1e-6)
    assert kt == pytest.approx(3 * math.pi / 2, rel=1e-6)
    assert z == pytest.approx(3 / 7, rel=1e-6)
    assert m2 == pytest.approx(24, rel=1e-6)


def test_phi_difference_is_wrapped() -> None:
    a, b = math.pi - 0.1, -math.pi + 0.1
    vectors = two_particles((math.cos(a), math.sin(a), 0, 1), (math.cos(b), math.sin(b), 0, 1))
    assert first_pair(vectors)[2].exp().item() == pytest.approx(0.2, rel=1e-5)


def test_pairs_do_not_depend_on_a_boost_along_the_beam() -> None:
    rest = two_particles((3, 0, 1, 4), (0, 4, -2, 5))
    beta, gamma = 0.6, 1.25
    boosted = rest.clone()
    boosted[:, 2] = gamma * (rest[:, 2] + beta * rest[:, 3])
    boosted[:, 3] = gamma * (rest[:, 3] + beta * rest[:, 2])
    torch.testing.assert_close(first_pair(rest), first_pair(boosted), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pz", [1e-3, 1.0, 45.5, 1000.0, 6500.0])
def test_rapidity_is_finite_and_antisymmetric_along_the_beam(pz: float) -> None:
    z = torch.tensor([pz, -pz])
    forward, backward = rapidity(z, z.abs()).tolist()
    assert math.isfinite(forward)
    assert forward > 10
    assert backward == -forward


def test_rapidity_of_forward_particles_follows_the_definition() -> None:
    z = torch.tensor([1000.0, -1000.0])
    energy = z.abs() + 1 / 64  # exact in float32
    want = 0.5 * math.log((2000 + 1 / 64) * 64)
    assert rapidity(z, energy).tolist() == pytest.approx([want, -want], rel=1e-6)


def test_rapidity_equals_weavers_where_that_is_finite(make_batch) -> None:
    _, vectors, _ = make_batch([40, 40])
    want = weaver.to_ptrapphim(vectors.double(), return_mass=False)[:, 1]
    torch.testing.assert_close(rapidity(vectors[:, 2].double(), vectors[:, 3].double()), want, rtol=1e-9, atol=1e-12)
    positive = vectors[:, 2] > 0  # the same operations there: equal to the last bit
    single = weaver.to_ptrapphim(vectors, return_mass=False)[:, 1]
    assert torch.equal(rapidity(vectors[:, 2], vectors[:, 3])[positive], single[positive])


def test_rapidity_is_finite_where_weavers_is_not() -> None:
    at_rest_backward = two_particles((0, 0, -5, 5), (0, 0, 0, 0))
    assert not weaver.to_ptrapphim(at_rest_backward, return_mass=False)[0, 1, 0].isfinite()
    assert kinematics(at_rest_backward, REAL).isfinite().all()


def test_all_pairs_equal_weavers(make_batch) -> None:
    _, vectors, mask = make_batch([30, 30, 30])
    vectors = vectors.double()
    particles = kinematics(vectors, mask)
    ours = pair_features(particles[..., :, None], particles[..., None, :]).movedim(-1, 1)
    theirs = weaver.pairwise_lv_fts_pp(vectors[..., :, None], vectors[..., None, :], num_outputs=4)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_padding_is_zeroed_before_any_logarithm() -> None:
    vectors = torch.full((1, 4, 2), math.nan)
    vectors[0, :, 0] = torch.tensor([3.0, 0.0, 0.0, 3.0])
    mask = torch.tensor([[[True, False]]])
    assert kinematics(vectors, mask).isfinite().all()
    assert first_pair(vectors, mask).isfinite().all()
    assert first_pair(torch.zeros(1, 4, 2)).isfinite().all()  # E = 0 marked as real


def test_half_precision_input_is_computed_in_single_precision() -> None:
    vectors = two_particles((300, 0, 1000, 1048), (0, 400, -900, 988)).half()  # squares exceed float16's 65504
    found = first_pair(vectors)
    assert found.dtype == torch.float32
    assert torch.equal(found, first_pair(vectors.float()))
    assert found.isfinite().all()
