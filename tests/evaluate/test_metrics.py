import math

import numpy as np
import pytest
from scipy.stats import beta
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score

from jetfoundry.errors import ConfigError, InputError
from jetfoundry.evaluate import metrics

# Ten signal jets at 1..10 and forty background jets at 0.25, 0.5, ..., 10.
SIGNAL = np.arange(1.0, 11.0)
BACKGROUND = np.arange(1, 41) / 4
SCORE = np.concatenate([SIGNAL, BACKGROUND])
IS_SIGNAL = np.arange(50) < 10


def test_accuracy_counts_the_largest_logit():
    logits = [[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [5.0, 1.0]]
    assert metrics.accuracy(logits, [0, 1, 1, 0]) == 0.75


def test_balanced_accuracy_weighs_classes_with_jets_equally():
    # Class 0: 3 of 3 right, class 1: 0 of 1, class 2 has no jets: (1 + 0) / 2.
    logits = np.eye(3)[[0, 0, 0, 2]]
    assert metrics.balanced_accuracy(logits, [0, 0, 0, 1]) == 0.5


def test_balanced_accuracy_agrees_with_sklearn():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(300, 5)), rng.integers(0, 5, 300)
    assert metrics.balanced_accuracy(logits, labels) == pytest.approx(
        balanced_accuracy_score(labels, logits.argmax(axis=1))
    )


def test_cross_entropy_of_equal_logits_is_ln_c():
    assert metrics.cross_entropy(np.zeros((3, 188)), [0, 5, 187]) == pytest.approx(math.log(188))


def test_cross_entropy_agrees_with_sklearn_and_survives_huge_logits():
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert metrics.cross_entropy(logits, labels) == pytest.approx(log_loss(labels, softmax, labels=range(4)))
    # ln(e^1000 + e^0) - 0 = 1000
    assert metrics.cross_entropy(np.array([[1000.0, 0.0]], np.float32), [1]) == pytest.approx(1000.0)


def test_log_sum_exp_is_the_same_across_its_blocks(monkeypatch):
    logits = np.random.default_rng(3).normal(size=(10, 4)).astype(np.float32)
    whole = metrics.log_sum_exp(logits)
    monkeypatch.setattr(metrics, "_BLOCK", 3)
    np.testing.assert_array_equal(metrics.log_sum_exp(logits), whole)


def test_figures_of_no_jets_are_nan():
    empty = np.empty((0, 3))
    for figure in (metrics.accuracy, metrics.balanced_accuracy, metrics.cross_entropy):
        assert math.isnan(figure(empty, []))
    assert math.isnan(metrics.auc([], []))


def test_roc_points_of_a_tiny_sample():
    # Falling scores: 3 (s), 2 (s and b tie), 1 (b).
    curve = metrics.roc_curve([1.0, 2.0, 2.0, 3.0], [False, True, False, True])
    assert curve.signal_efficiency.tolist() == [0, 0.5, 1, 1]
    assert curve.background_efficiency.tolist() == [0, 0, 0.5, 1]
    assert curve.survivors.tolist() == [0, 0, 1, 2]
    assert curve.threshold[1:].tolist() == [3, 2, 1]
    assert 3 < curve.threshold[0] < 3.0001


def test_auc_counts_a_tie_as_one_half():
    # Pairs (s, b): (2, 1) and (3, 1) won, (3, 2) won, (2, 2) tied: 3.5 / 4.
    assert metrics.auc([1.0, 2.0, 2.0, 3.0], [False, True, False, True]) == 3.5 / 4


def test_auc_weighs_pairs_by_the_product_of_weights():
    # Background 1 (w 3) lost to signal 2 (w 1), background 3 (w 1) won: 3 / 4.
    assert metrics.auc([2.0, 1.0, 3.0], [True, False, False], [1.0, 3.0, 1.0]) == 0.75


def test_auc_with_ties_and_weights_agrees_with_sklearn():
    rng = np.random.default_rng(4)
    score, signal, weight = rng.integers(0, 20, 500) / 4, rng.random(500) < 0.3, rng.random(500)
    expected = roc_auc_score(signal, score, sample_weight=weight)
    assert metrics.auc(score, signal, weight) == pytest.approx(expected, rel=1e-12)


def test_auc_without_background_is_nan():
    assert math.isnan(metrics.auc([1.0, 2.0], [True, True]))


def test_rejection_by_hand():
    # 70% quantile of 1..10 is 7; above it: signal 8, 9, 10; background 7.25, ..., 10: 12 of 40.
    point = metrics.rejection(SCORE, IS_SIGNAL, 0.3)
    assert (point.threshold, point.signal_efficiency, point.survivors) == (7.0, 0.3, 12)
    assert point.rejection == pytest.approx(40 / 12)
    assert not point.is_lower_bound
    # e = 0.3: sigma(e) = sqrt(0.3 * 0.7 / 40), sigma(1/e) = sigma(e) / e^2
    assert point.error == pytest.approx(math.sqrt(0.3 * 0.7 / 40) / 0.09)


@pytest.mark.parametrize("efficiency", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_the_signal_efficiency_asked_for_is_reached_exactly(efficiency):
    point = metrics.rejection(SCORE, IS_SIGNAL, efficiency)
    assert point.signal_efficiency == pytest.approx(efficiency)


def test_equal_weights_change_nothing():
    plain = metrics.rejection(SCORE, IS_SIGNAL, 0.5)
    weighted = metrics.rejection(SCORE, IS_SIGNAL, 0.5, np.full(50, 0.25))
    assert weighted == pytest.approx(plain)
    bound = metrics.rejection(SCORE, IS_SIGNAL, 0.1)
    assert metrics.rejection(SCORE, IS_SIGNAL, 0.1, np.full(50, 0.25)) == pytest.approx(bound, nan_ok=True)


def test_weighted_rejection_by_hand():
    # Background up to 7 weighs 1 (28 jets), above 2 (12 jets): 52 / 24.
    weights = np.concatenate([np.ones(10), np.where(BACKGROUND > 7, 2.0, 1.0)])
    point = metrics.rejection(SCORE, IS_SIGNAL, 0.3, weights)
    assert point.rejection == pytest.approx(52 / 24)
    assert point.survivors == 12


@pytest.mark.parametrize(("efficiency", "survivors"), [(0.1, 4), (0.2, 8)])
def test_few_survivors_give_the_clopper_pearson_bound(efficiency, survivors):
    point = metrics.rejection(SCORE, IS_SIGNAL, efficiency)
    assert (point.is_lower_bound, point.survivors) == (True, survivors)
    assert math.isnan(point.error)
    assert point.rejection == pytest.approx(1 / beta.ppf(0.95, survivors + 1, 40 - survivors), rel=1e-9)


def test_no_survivor_gives_a_bound_and_never_infinity():
    # P(0 of 100 | e) = (1 - e)^100 = 0.05: e = 1 - 0.05^(1/100) = 0.02951, 1/e = 33.9
    score = np.concatenate([np.full(100, 5.0), np.zeros(100)]) + np.tile(np.arange(100) / 1000, 2)
    point = metrics.rejection(score, np.arange(200) < 100, 0.5)
    assert point.survivors == 0
    assert point.rejection == pytest.approx(1 / (1 - 0.05**0.01))
    assert point.is_lower_bound


def test_the_bound_covers_in_95_percent_of_experiments():
    # 500 background jets with a true efficiency of 1%; 95% of the bounds must lie below 100.
    rng = np.random.default_rng(5)
    bounds = []
    for _ in range(400):
        score = np.concatenate([[0.0, 0.99], rng.random(500)])
        point = metrics.rejection(score, np.arange(502) < 2, 0.01)  # threshold at 0.99
        bounds += [point.rejection] if point.is_lower_bound else []
    assert np.mean(np.array(bounds) <= 100) > 0.93


def test_a_bound_from_fewer_than_ten_jets_is_never_below_one():
    point = metrics.rejection([1.0, 2.0, 3.0, 4.0], [True, False, False, False], 0.5)
    assert point.rejection == 1.0  # all three survive


def test_saturated_scores_show_in_the_reached_efficiency():
    # Half of the signal ties at 1.0 with its 50% quantile: nothing lies above it.
    score = np.array([1.0] * 6 + [0.5] * 4 + [0.0] * 10)
    point = metrics.rejection(score, np.arange(20) < 10, 0.5)
    assert point.signal_efficiency == 0.0
    assert point.is_lower_bound


def test_jets_without_weight_do_not_count_as_survivors():
    weights = np.where(SCORE == 9.5, 0.0, 1.0)  # one of the twelve background jets above 7
    assert metrics.rejection(SCORE, IS_SIGNAL, 0.3, weights).survivors == 11


def test_background_without_weight_has_no_rejection():
    weights = np.concatenate([np.ones(10), np.zeros(40)])
    point = metrics.rejection(SCORE, IS_SIGNAL, 0.5, weights)
    assert math.isnan(point.rejection)
    assert point.survivors == 0


@pytest.mark.parametrize("efficiency", [0.0, 1.0, 30.0])
def test_an_efficiency_outside_0_to_1_is_refused(efficiency):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        metrics.rejection(SCORE, IS_SIGNAL, efficiency)


def test_nan_scores_and_negative_weights_are_refused():
    with pytest.raises(InputError, match=r"score: 1 of 3 values are NaN or infinite, the first at \[1\]"):
        metrics.auc([1.0, math.nan, 2.0], [True, False, True])
    with pytest.raises(InputError, match=r"weights: wanted finite numbers >= 0, got -1\.0"):
        metrics.auc([1.0, 2.0], [True, False], [1.0, -1.0])


def test_significance_by_hand():
    # s = b = 1: sqrt(2 (2 ln 2 - 1)) = 0.87897; s = 0: 0; b = 0: undefined; s = 1, b = 1e10: 1e-5
    z, defined = metrics.significance([1.0, 0.0, 5.0, 1.0, -1.0], [1.0, 3.0, 0.0, 1e10, 2.0])
    assert defined.tolist() == [True, True, False, True, False]
    assert z[0] == pytest.approx(math.sqrt(2 * (2 * math.log(2) - 1)))
    assert z[1] == 0.0
    assert np.isnan(z[[2, 4]]).all()
    assert z[3] == pytest.approx(1e-5, rel=1e-12, abs=0)


def test_significance_is_continuous_where_the_formula_changes():
    below, above = metrics.significance([0.99999e-4, 1.00001e-4], 1.0).z
    assert above == pytest.approx(below, rel=1e-4)
    assert above > below


def test_significances_add_in_quadrature_and_keep_undefined_bins():
    assert metrics.quadrature_sum([3.0, 4.0]) == 5.0
    assert metrics.quadrature_sum([[3.0, 4.0], [5.0, math.nan]])[0] == 5.0
    assert np.isnan(metrics.quadrature_sum([5.0, math.nan]))


def test_confusion_matrix_counts_true_rows_and_predicted_columns():
    matrix = metrics.confusion_matrix([0, 0, 0, 2], [0, 0, 1, 0], 3)
    assert matrix.tolist() == [[2, 1, 0], [0, 0, 0], [1, 0, 0]]
    rows = metrics.normalise_rows(matrix)
    assert rows[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert np.isnan(rows[1]).all()


def test_labels_outside_the_class_list_are_named():
    with pytest.raises(InputError, match=r"labels\[1\]: wanted a class index from 0 to 2, got 3"):
        metrics.accuracy(np.zeros((2, 3)), [0, 3])
    with pytest.raises(InputError, match=r"predicted\[0\].*got -1"):
        metrics.confusion_matrix([0], [-1], 3)
