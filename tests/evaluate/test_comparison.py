import numpy as np
import pytest

from jetfoundry.evaluate import comparison, metrics
from jetfoundry.evaluate.comparison import TestJets, background_efficiencies, compare, divergence, mean_roc


def jets(signal=400, background=4000, seed=0):
    """Made-up jets: signal at high mass, background at low mass."""
    rng = np.random.default_rng(seed)
    is_signal = np.arange(signal + background) < signal
    mass = np.where(is_signal, rng.uniform(20, 500, len(is_signal)), 20 + rng.exponential(60, len(is_signal)))
    return TestJets(is_signal, rng.uniform(200, 2000, len(is_signal)), np.minimum(mass, 499.0))


def scores(test, power, seeds=3):
    """A tagger of the given separation in standard deviations, a little different for every seed."""
    rng = np.random.default_rng(7)
    common = rng.normal(size=len(test.is_signal))
    return [common + 0.2 * rng.normal(size=len(common)) + power * test.is_signal for _ in range(seeds)]


def test_without_resampling_the_background_efficiency_is_that_of_metrics():
    test = jets()
    score = np.round(scores(test, 1.5)[0], 1)  # with ties
    for efficiency in (0.1, 0.3, 0.5, 0.9):
        (found,) = background_efficiencies(score, test.is_signal, efficiency, np.ones((1, len(score))))
        assert 1 / found == pytest.approx(metrics.rejection(score, test.is_signal, efficiency).rejection)


def test_a_jet_that_counts_twice_is_two_jets():
    score = np.array([3.0, 2.0, 1.0, 2.5, 0.5, 1.5])
    is_signal = np.array([True, True, True, False, False, False])
    counts = np.array([[1.0, 2.0, 1.0, 2.0, 1.0, 0.0]])
    # Signal 1, 2, 2, 3: the cut at one half is 2. Background 0.5, 2.5, 2.5: two of three are above.
    assert background_efficiencies(score, is_signal, 0.5, counts) == pytest.approx(2 / 3)


def test_the_bootstrap_error_of_one_seed_is_about_binomial():
    test = jets(signal=10_000, background=4000)
    score = scores(test, 1.0, seeds=1)
    figures = compare({"a": score}, test, (0.5,), (20.0, 500.0))
    (point,) = figures["methods"]["a"]["rejections"]
    binomial = metrics.rejection(score[0], test.is_signal, 0.5)
    assert point["rejection"] == pytest.approx(binomial.rejection)
    assert point["test"] == pytest.approx(binomial.error, rel=0.3)
    assert point["seeds"] is None


def test_two_taggers_that_share_their_jets_are_told_apart_better_than_their_errors_say():
    test = jets()
    found = {"better": scores(test, 2.2), "worse": scores(test, 1.9)}
    figures = compare(found, test, (0.5,), (20.0, 500.0))
    (row,) = figures["ratios"]
    better, worse = (figures["methods"][name]["rejections"][0] for name in found)
    assert row["ratio"] == pytest.approx(better["rejection"] / worse["rejection"])
    apart = row["ratio"] * np.hypot(better["test"] / better["rejection"], worse["test"] / worse["rejection"])
    assert 0 < row["error"] < apart
    assert row["ratio"] > 1


def test_few_surviving_jets_give_a_bound_and_no_ratio():
    test = jets(background=200)
    figures = compare({"a": scores(test, 6.0), "b": scores(test, 6.0)}, test, (0.5,), (20.0, 500.0))
    (point,) = figures["methods"]["a"]["rejections"]
    assert point["is_lower_bound"]
    assert point["rejection"] == min(point["each_seed"])
    assert figures["ratios"][0]["ratio"] is None


def test_a_tagger_that_reads_only_mass_is_found_out():
    test = jets(background=20_000)
    figures = compare({"mass": [test.jet_sdmass]}, test, (0.5,), (20.0, 80.0, 500.0))["methods"]["mass"]
    assert figures["rejections"][0]["rejection"] > 20
    assert figures["matched"][0]["rejection"] < 4
    assert figures["sculpting"][0]["divergence"] > 0.5
    blind = np.random.default_rng(3).normal(size=len(test.is_signal))
    figures = compare({"blind": [blind]}, test, (0.5,), (20.0, 80.0, 500.0))["methods"]["blind"]
    assert figures["sculpting"][0]["divergence"] < 0.01
    assert figures["matched"][0]["rejection"] == pytest.approx(2, rel=0.4)


def test_a_mass_range_without_signal_has_no_rejection():
    test = jets()
    test = TestJets(test.is_signal, test.jet_pt, np.where(test.is_signal, 300.0, test.jet_sdmass))
    ranges = compare({"a": scores(test, 1.0)}, test, (0.5,), (20.0, 80.0, 500.0))["methods"]["a"]["mass_ranges"]
    assert ranges[0]["signal_jets"] == 0
    assert ranges[0]["rejections"][0]["rejection"] is None
    assert ranges[1]["rejections"][0]["rejection"] > 1


def test_divergence_is_a_distance_in_bits():
    edges = np.array([0.0, 1.0, 2.0])
    first, second = np.array([0.5, 0.5]), np.array([1.5, 1.5])
    assert divergence(first, second, edges) == 1.0
    assert divergence(first, first, edges) == 0.0


def test_mean_roc_ends_with_everything_accepted():
    test = jets()
    curves = mean_roc(scores(test, 1.0), test.is_signal)
    assert curves.shape == (3, len(comparison.GRID))
    assert (curves[:, -1] == 1).all()
    assert (np.diff(curves, axis=1) >= 0).all()
