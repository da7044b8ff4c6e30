from __future__ import annotations

import math

import pyarrow.parquet as pq
import pytest
import torch

from jetfoundry.models.gen_particles import GEN_COLUMNS, GEN_FEATURES, MAX_PARTICLES, gen_inputs

X, Y, DECAY, FROM_TAU, PARTON = ([float(i == j) for j in range(5)] for i in range(5))


def jets(*lists: list[tuple], slots: int = 12) -> torch.Tensor:
    """Jets of (pt, eta, phi, mass, pid, flags) as the network input gen_particles."""
    out = torch.zeros(len(lists), len(GEN_COLUMNS), slots)
    for jet, particles in enumerate(lists):
        for slot, (*numbers, flags) in enumerate(particles):
            out[jet, :, slot] = torch.tensor([*numbers, *flags])
    return out


def kinds(features: torch.Tensor) -> list[list[str]]:
    """Names of the flags of each real particle of the first jet."""
    flags = [(i, name) for i, name in enumerate(GEN_FEATURES) if name.startswith("is_")]
    return [[name for i, name in flags if features[0, i, t] == 1] for t in range(features.shape[2])]


def test_two_quarks_have_the_values_of_a_hand_calculation() -> None:
    # pT 300 and 100 GeV along phi = 0, at eta = 0 and 0: their sum has 400 GeV, the scale is 500 / 400.
    features, vectors, mask = gen_inputs(jets([(300, 0, 0, 0, 5, DECAY), (100, 0, 0, 0, -5, DECAY)]))
    assert mask[0, 0].tolist() == [True, True] + [False] * (MAX_PARTICLES - 2)
    assert features.shape == (1, len(GEN_FEATURES), MAX_PARTICLES)
    first = dict(zip(GEN_FEATURES, features[0, :, 0].tolist(), strict=True))
    assert first["ln_pt_scaled"] == pytest.approx((math.log(375) - 1.7) * 0.7, abs=1e-5)
    assert first["ln_energy_share"] == pytest.approx((math.log(0.75) + 4.7) * 0.7, abs=1e-5)
    assert first["deltaR"] == pytest.approx(-0.2 * 4, abs=1e-5)
    assert (first["sign_pid"], first["is_b"], first["is_c"]) == (1, 1, 0)
    assert features[0, GEN_FEATURES.index("sign_pid"), 1] == -1
    torch.testing.assert_close(vectors[0, :, 0], torch.tensor([375.0, 0, 0, 375]))
    assert not features[:, :, 2:].any()
    assert not vectors[:, :, 2:].any()


def test_taus_give_way_to_their_decay_products_and_neutrinos_are_flagged() -> None:
    tau, products = (80, 0, 0, 1.8, 15, DECAY), [(50, 0, 0, 0, -211, FROM_TAU), (20, 0, 0, 0, 16, FROM_TAU)]
    assert kinds(gen_inputs(jets([tau, *products]))[0])[:3] == [["is_hadron"], ["is_neutrino"], []]
    assert kinds(gen_inputs(jets([tau]))[0])[:2] == [["is_tau"], []]


def test_resonances_are_taken_on_request_only() -> None:
    jet = [(500, 0, 0, 125, 25, X), (300, 0, 0, 80, 35, Y), (200, 0, 0, 0, 21, DECAY), (100, 0, 0, 0, 1, PARTON)]
    assert kinds(gen_inputs(jets(jet))[0])[:3] == [["is_g"], ["is_d"], []]
    with_them = kinds(gen_inputs(jets(jet), with_resonances=True)[0])
    assert with_them[:5] == [["is_X"], ["is_Y"], ["is_g"], ["is_d"], []]


def test_the_ten_of_highest_pt_are_kept_in_order() -> None:
    jet = [(10.0 + i, 0, 0, 0, 2, DECAY) for i in range(12)]
    _, vectors, mask = gen_inputs(jets(jet))
    assert mask.all()
    assert vectors[0, 0].diff().lt(0).all()
    assert (vectors[0, 0] / vectors[0, 0, 0] * 21).round().tolist() == [21.0 - i for i in range(10)]


@pytest.mark.parametrize("slots", [1, 5, 40])
def test_number_of_slots_does_not_matter_and_jets_may_be_empty(slots: int) -> None:
    features, vectors, mask = gen_inputs(jets([], [(100, 1, 2, 0, 21, PARTON)], slots=slots))
    assert mask.sum((1, 2)).tolist() == [0, 1]
    for values in (features, vectors):
        assert values.shape[2] == MAX_PARTICLES
        assert values.isfinite().all()
        torch.testing.assert_close(values, gen_inputs(jets([], [(100, 1, 2, 0, 21, PARTON)]))[values is vectors])


def test_nothing_depends_on_where_the_jet_points_in_phi_or_on_its_scale() -> None:
    jet = [(300, 0.5, 3.1, 0, 5, DECAY), (100, 0.9, -3.1, 0, -5, DECAY)]
    turned = [(3 * pt, eta, phi - 1, mass, pid, flags) for pt, eta, phi, mass, pid, flags in jet]
    mirrored = [(pt, -eta, phi, mass, pid, flags) for pt, eta, phi, mass, pid, flags in jet]
    wanted = gen_inputs(jets(jet))[0]
    for other in (turned, mirrored):
        torch.testing.assert_close(gen_inputs(jets(other))[0], wanted, atol=1e-4, rtol=0)


def test_real_jets_have_the_particles_of_their_label(shared) -> None:
    table = pq.read_table(shared / "data" / "jetclass2" / "jetclass2_real_60.parquet")
    lists = [
        [(*numbers, flags) for *numbers, flags in zip(*row[:5], zip(*row[5:], strict=True), strict=True)]
        for row in zip(*(table[name].to_pylist() for name in GEN_COLUMNS), strict=True)
    ]
    particles = jets(*lists, slots=max(map(len, lists)))
    features, vectors, mask = gen_inputs(particles)
    assert features.isfinite().all()
    assert vectors.isfinite().all()
    labels = table["jet_label"].to_pylist()
    of_two_quarks = [i for i, label in enumerate(labels) if label in (0, 1, 2, 3, 9)]
    assert of_two_quarks
    assert all(mask[i].sum() == 2 for i in of_two_quarks)
    assert (mask.sum((1, 2)) <= 9).float().mean() > 0.9
    for i in of_two_quarks:
        name = {0: "is_b", 1: "is_c", 2: "is_s", 9: "is_g"}.get(labels[i])
        if name:
            assert features[i, GEN_FEATURES.index(name), :2].tolist() == [1, 1]
