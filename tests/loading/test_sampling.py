import numpy as np
import pytest

from jetfoundry.labels import INDEX, label_scheme
from jetfoundry.loading.sampling import SamplingConfig, class_multiplicity, systematic_draw


def stored(**counts):
    """Counts of the 188 classes with the named ones filled."""
    array = np.zeros(188, dtype=int)
    for name, number in counts.items():
        array[INDEX[name]] = number
    return array


def test_balanced_classes_are_used_equally_often_until_max_repeat():
    counts = stored(X_bb=100, X_cc=300, QCD_bb=2)
    uses = class_multiplicity(counts, label_scheme("sophon188"), SamplingConfig(balance="classes", max_repeat=10))
    # 402 jets over 3 classes = 134 each; QCD_bb would need 67 repeats and gets 10.
    assert uses[INDEX["X_bb"]] == pytest.approx(1.34)
    assert uses[INDEX["X_cc"]] == pytest.approx(134 / 300)
    assert uses[INDEX["QCD_bb"]] == 10
    assert uses.sum() == pytest.approx(1.34 + 134 / 300 + 10)


def test_natural_sampling_uses_every_stored_jet_once():
    uses = class_multiplicity(stored(X_bb=5, QCD_c=9), label_scheme("sophon188"), SamplingConfig(balance="natural"))
    assert uses[[INDEX["X_bb"], INDEX["QCD_c"], INDEX["X_cc"]]].tolist() == [1, 1, 0]


def test_groups_share_the_card_weights_in_proportion_to_their_classes():
    counts = stored(X_bb=100, X_cc=300, QCD_c=400)
    uses = class_multiplicity(counts, label_scheme("sophon188"), SamplingConfig(balance="groups", max_repeat=100))
    drawn = uses * counts
    assert drawn.sum() == pytest.approx(800)
    assert (drawn[INDEX["X_bb"]] + drawn[INDEX["X_cc"]]) / drawn[INDEX["QCD_c"]] == pytest.approx(0.4 / 0.25)
    assert uses[INDEX["X_bb"]] == pytest.approx(uses[INDEX["X_cc"]])


def test_merged_classes_are_balanced_as_one():
    counts = stored(X_bb=10, QCD_b=10, QCD_c=30)
    uses = class_multiplicity(counts, label_scheme("binary:X_bb vs QCD"), SamplingConfig(balance="classes"))
    assert uses.tolist() == [2.5, 0.625]


def test_each_jet_is_drawn_floor_or_ceil_of_its_expected_number():
    rng = np.random.default_rng(3)
    uses = np.array([0.0, 0.5, 1.0, 2.5, 4.0])
    for _ in range(50):
        times = np.bincount(systematic_draw(uses, 8, rng), minlength=5)
        assert times[0] == 0
        assert times[1] in (0, 1)
        assert times[2] == 1
        assert times[3] in (2, 3)
        assert times[4] == 4


def test_draw_gives_exactly_the_wanted_number_and_the_same_for_the_same_seed():
    uses = np.random.default_rng(0).random(1000)
    first, second = (systematic_draw(uses, 512, np.random.default_rng(7)) for _ in range(2))
    assert len(first) == 512
    assert (first == second).all()
    assert (systematic_draw(uses, 512, np.random.default_rng(8)) != first).any()
