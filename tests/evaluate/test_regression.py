import numpy as np
import pytest

from jetfoundry.errors import InputError
from jetfoundry.evaluate.regression import regression_figures, response_and_resolution


def test_a_gaussian_response_gives_back_its_mean_and_relative_width():
    rng = np.random.default_rng(0)
    target = rng.uniform(20, 500, 100_000)
    figures = regression_figures(target * rng.normal(1.1, 0.11, 100_000), target)
    assert figures["jets"] == 100_000
    assert figures["response"] == pytest.approx(1.1, abs=0.002)
    assert figures["resolution"] == pytest.approx(0.1, abs=0.001)


def test_errors_are_the_spread_over_repeated_samples():
    rng = np.random.default_rng(1)
    found = [response_and_resolution(rng.normal(1, 0.2, 400)) for _ in range(400)]
    for name in ("response", "resolution"):
        values = np.array([figures[name] for figures in found])
        stated = np.array([figures[f"{name}_error"] for figures in found])
        assert np.median(stated) == pytest.approx(values.std(), rel=0.2)


def test_tails_do_not_move_response_and_resolution_much():
    rng = np.random.default_rng(2)
    core = rng.normal(1, 0.1, 10_000)
    with_tail = np.concatenate([core, np.full(200, 50.0)])
    assert response_and_resolution(with_tail)["resolution"] == pytest.approx(0.1, rel=0.1)


def test_figures_are_repeated_in_bins_of_the_target_lower_edge_included():
    target = np.repeat([10.0, 20.0, 30.0], [20, 20, 5])
    figures = regression_figures(target * 2, target, bins=(10, 20, 30, 40))
    assert [row["jets"] for row in figures["bins"]] == [20, 20, 5]
    assert [row["response"] for row in figures["bins"]] == [2.0, 2.0, None]  # five jets are too few
    assert figures["resolution"] == 0


def test_weights_of_zero_leave_jets_out():
    rng = np.random.default_rng(3)
    response = np.concatenate([rng.normal(1, 0.1, 500), np.full(500, 3.0)])
    weighted = response_and_resolution(response, np.repeat([1.0, 0.0], 500))
    alone = response_and_resolution(response[:500])
    assert weighted["response"] == pytest.approx(alone["response"], abs=1e-3)
    assert weighted["resolution"] == pytest.approx(alone["resolution"], rel=0.02)
    assert response_and_resolution(response, np.zeros(1000))["response"] is None


@pytest.mark.parametrize(
    ("predicted", "target", "message"),
    [
        ([1.0, 2.0], [1.0], "wanted predicted, target and weights of one length"),
        ([1.0, np.nan], [1.0, 1.0], "predicted: 1 of 2 values are NaN"),
        ([1.0, 1.0], [1.0, 0.0], r"target\[1\]: wanted more than 0, got 0"),
        ([-1.0, 1.0], [1.0, 1.0], r"predicted\[0\]: wanted more than 0, got -1"),
    ],
)
def test_what_has_no_response_is_refused(predicted, target, message):
    with pytest.raises(InputError, match=message):
        regression_figures(predicted, target)
