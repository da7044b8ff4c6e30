import numpy as np
import pytest

from jetfoundry.evaluate.discriminants import Discriminant
from jetfoundry.evaluate.figures import Figure
from jetfoundry.evaluate.gains import (
    areas,
    gain,
    gain_of_recipes,
    mean_rejection,
    replicated,
    replicated_target,
    resampled,
)
from jetfoundry.evaluate.metrics import auc, rejection
from jetfoundry.evaluate.regression import response_and_resolution

REJECTION = Figure("rejection", "A vs B", 0.5)
BINARY = Discriminant("A vs B", (0,), (1,), (1.0,))


def scored(rng, labels, distance):
    """Logits (E, 2) of two unit Gaussians `distance` apart."""
    odds = rng.normal(size=len(labels)) + np.where(labels == 0, distance, 0.0)
    return np.stack([odds, np.zeros(len(labels))], axis=1).astype(np.float32)


def test_row_zero_is_the_sample_and_figures_are_those_of_metrics():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 600)
    logits = np.round(scored(rng, labels, 1.0), 1)  # with ties
    counts = resampled(labels, 50)
    assert (counts[0] == 1).all()
    assert (counts[:, labels == 0].sum(axis=1) == (labels == 0).sum()).all()
    odds = logits[:, 0] - logits[:, 1]
    assert areas(odds, labels == 0, counts)[0] == pytest.approx(auc(odds, labels == 0))
    found = replicated(logits, labels, [BINARY], (0.5,), counts)
    assert np.exp(found[REJECTION][0]) == pytest.approx(rejection(odds, labels == 0, 0.5).rejection)
    assert np.exp(found[Figure("accuracy")][0]) == pytest.approx(((odds < 0) == labels).mean(), abs=0.02)


def test_bootstrap_error_of_the_auc_is_that_of_repeated_experiments():
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 200)
    samples = [scored(rng, labels, 1.0)[:, 0] for _ in range(300)]
    repeated = np.std([auc(odds, labels == 0) for odds in samples])
    bootstrap = areas(samples[0], labels == 0, resampled(labels, 300))[1:].std()
    assert bootstrap == pytest.approx(repeated, rel=0.2)


def trials(rng, labels, distances, counts, noise=0.5):
    """ln AUC (S, 1 + R) of networks that see the same jets, each with its own noise."""
    base = rng.normal(size=len(labels))
    odds = [base + np.where(labels == 0, d, 0.0) + noise * rng.normal(size=len(labels)) for d in distances]
    return np.log(np.stack([areas(each, labels == 0, counts) for each in odds]))


def test_noise_is_called_a_difference_in_one_of_twenty_cases():
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1], 150)
    verdicts = []
    for case in range(200):
        counts = resampled(labels, 40, seed=case)
        # Distances scatter from seed to seed, for both networks alike.
        both = trials(rng, labels, 1.0 + 0.1 * rng.normal(size=6), counts)
        verdicts.append(gain(both[:3], both[3:]).verdict)
    assert 0 <= np.mean([verdict != "noise" for verdict in verdicts]) < 0.08


def test_a_real_gain_is_found_and_has_its_sign():
    rng = np.random.default_rng(4)
    labels = np.repeat([0, 1], 2000)
    both = trials(rng, labels, [2.0] * 3 + [1.5] * 3, resampled(labels, 60))
    better, worse = gain(both[:3], both[3:]), gain(both[3:], both[:3])
    assert (better.verdict, worse.verdict) == ("better", "worse")
    assert better.value > 0 > worse.value
    assert (1 + better.value) * (1 + worse.value) == pytest.approx(1)
    assert gain(both[:1], both[3:4]).verdict == "one seed"
    assert gain(both[:1], both[3:4], repeatable=True).verdict == "better"
    same = gain(both[:3], both[:3])
    assert (same.value, same.p, same.verdict) == (0.0, 1.0, "noise")


def test_scatter_between_backbones_of_a_recipe_is_in_the_error():
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1], 2000)
    counts = resampled(labels, 60)
    steady = trials(rng, labels, [2.0, 2.0, 2.0, 1.5, 1.5, 1.5], counts)
    scattered = trials(rng, labels, [1.0, 2.0, 3.0, 1.5, 1.5, 1.5], counts)
    assert gain_of_recipes(steady[:3], steady[3:]).verdict == "better"
    assert gain_of_recipes(scattered[:3], scattered[3:]).verdict == "noise"
    assert gain_of_recipes(steady[:1], steady[3:]).verdict == "one seed"


def with_survivors(*numbers):
    """Log-odds (B,) for each number: of 200 signal jets half are above 0, of 1000 background jets this many."""
    signal = np.r_[np.linspace(-2, -1, 100), np.linspace(1, 2, 100)]
    return [np.r_[signal, np.full(number, 0.5), np.linspace(-4, -3, 1000 - number)] for number in numbers]


IS_SIGNAL = np.arange(1200) < 200


def test_no_survivor_gives_a_bound_and_no_gain():
    (odds,) = with_survivors(0)
    row = mean_rejection([odds] * 2, IS_SIGNAL, 0.5)
    assert (row["survivors"], row["bound"], row["error"]) == (0.0, True, None)
    assert row["value"] == pytest.approx(1000 / 3, rel=0.01)  # 95 % limit on 0 of 1000: 3 jets
    logits, labels = np.stack([odds, np.zeros(1200)], axis=1), np.where(IS_SIGNAL, 0, 1)
    assert np.isnan(replicated(logits, labels, [BINARY], (0.5,), resampled(labels, 30))[REJECTION]).all()


@pytest.mark.parametrize("survivors", [(40, 9), (9, 40), (40, 50, 2)])
def test_one_bound_makes_the_mean_a_bound_below_what_the_others_say(survivors):
    points = [rejection(odds, IS_SIGNAL, 0.5) for odds in with_survivors(*survivors)]
    assert sum(point.is_lower_bound for point in points) == 1
    row = mean_rejection(with_survivors(*survivors), IS_SIGNAL, 0.5)
    assert row["value"] == pytest.approx(len(points) / sum(1 / point.rejection for point in points))
    assert row["value"] < 1000 / np.mean(survivors)  # what counting would give
    assert (row["bound"], row["error"], row["std"]) == (True, None, None)
    assert row["survivors"] == np.mean(survivors)


def test_there_is_no_gain_where_one_seed_of_either_side_is_a_bound():
    labels = np.where(IS_SIGNAL, 0, 1)
    counts = resampled(labels, 30)

    def logs(*survivors):
        logits = [np.stack([odds, np.zeros(1200)], axis=1) for odds in with_survivors(*survivors)]
        return np.stack([replicated(each, labels, [BINARY], (0.5,), counts)[REJECTION] for each in logits])

    assert gain(logs(40, 44), logs(20, 22)).value == pytest.approx(-0.5)
    assert gain(logs(40, 9), logs(20, 22)) is None
    assert gain(logs(40, 44), logs(20, 9)) is None
    assert gain_of_recipes(logs(40, 9), logs(20, 22)) is None


def test_binomial_error_of_a_mean_rejection():
    rng = np.random.default_rng(6)
    labels = np.repeat([0, 1], 1000)
    logits = scored(rng, labels, 1.0)
    row, point = mean_rejection([logits[:, 0]], labels == 0, 0.5), rejection(logits[:, 0], labels == 0, 0.5)
    assert row["value"] == pytest.approx(point.rejection)
    assert row["error"] == pytest.approx(point.error)
    assert (row["survivors"], row["std"]) == (point.survivors, None)


def test_figures_of_a_target_are_those_of_regression():
    rng = np.random.default_rng(7)
    truth = rng.normal(size=400)
    found = truth + rng.normal(0.05, 0.1, size=400)
    row = {f.name: np.exp(values[0]) for f, values in replicated_target(found, truth, np.ones((31, 400))).items()}
    expected = response_and_resolution(np.exp(found - truth))
    assert row == pytest.approx({name: expected[name] for name in row})
