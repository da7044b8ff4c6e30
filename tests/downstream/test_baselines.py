from pathlib import Path

import numpy as np
import pytest

from jetfoundry.downstream.baselines import BASELINES, JetNumbers, fit_and_score, numbers_of
from jetfoundry.errors import ConfigError, InputError
from jetfoundry.evaluate import metrics
from jetfoundry.features.transform import load_data_config

ROOT = Path(__file__).resolve().parents[2]
YAML = ROOT / "datasets" / "substructure.yaml"


def made_up(jets, seed=0):
    """Two numbers of which the first tells signal from background, the second is always the same."""
    rng = np.random.default_rng(seed)
    is_signal = rng.random(jets) < 0.3
    x = np.stack([rng.normal(size=jets) + 2.0 * is_signal, np.full(jets, 5.0)], axis=1)
    return JetNumbers(x, is_signal, np.ones(jets))


@pytest.mark.parametrize("method", BASELINES)
def test_baselines_learn_what_there_is_to_learn_and_repeat_it(method):
    train, test = made_up(2000), made_up(2000, seed=1)
    score = fit_and_score(method, train, test.x, 1)
    assert metrics.auc(score, test.is_signal) > 0.9  # 0.921 is the best there is
    np.testing.assert_array_equal(score, fit_and_score(method, train, test.x, 1))
    assert not np.array_equal(score, fit_and_score(method, train, test.x, 2))


@pytest.mark.parametrize("method", BASELINES)
def test_jets_that_sampling_never_uses_do_not_count(method):
    train, test = made_up(1000), made_up(500, seed=1)
    wrong = JetNumbers(train.x, ~train.is_signal, np.zeros(1000))
    both = JetNumbers(*(np.concatenate(pair) for pair in zip(train, wrong, strict=True)))
    alone = fit_and_score(method, train, test.x, 1)
    assert metrics.auc(fit_and_score(method, both, test.x, 1), test.is_signal) == pytest.approx(
        metrics.auc(alone, test.is_signal), abs=0.02
    )


def test_one_class_and_unknown_methods_are_refused():
    train = made_up(100)
    with pytest.raises(InputError, match="all 100 training jets are of one class"):
        fit_and_score("MLP", train._replace(is_signal=np.ones(100, bool)), train.x, 1)
    with pytest.raises(ConfigError, match="gradient boosting"):
        fit_and_score("gradient bosting", train, train.x, 1)


def test_substructure_of_real_jets(real_table):
    """By hand, from the stored columns of each jet."""
    data = load_data_config(YAML)
    table = real_table.take(data.apply(real_table, training=False, labels=False).rows)
    assert table.num_rows == 52
    found = dict(zip(data.inputs["substructure"].vars, numbers_of(data, table).T, strict=True))
    for i, jet in enumerate(table.to_pylist()):
        pt = np.hypot(jet["part_px"], jet["part_py"])
        charged = np.array(jet["part_charge"]) != 0
        assert found["tau21"][i] == pytest.approx(jet["jet_tau2"] / jet["jet_tau1"], rel=1e-5)
        assert found["charged_number"][i] == charged.sum()
        assert found["charged_share"][i] == pytest.approx(pt[charged].sum() / jet["jet_pt"], rel=1e-4)
        significance = np.abs(jet["part_d0val"])[charged] / np.array(jet["part_d0err"])[charged]
        assert found["displaced_number"][i] == (significance > 3).sum()
        leptons = pt[np.array(jet["part_isElectron"]) | np.array(jet["part_isMuon"])]
        assert found["lepton_share"][i] == pytest.approx(leptons.max(initial=0.0) / jet["jet_pt"], rel=1e-4)
    assert all(np.isfinite(values).all() for values in found.values())


def test_a_jet_that_the_substructure_yaml_refuses_is_an_error(make_jets):
    data = load_data_config({**YAML_TREE, "selection": "jet_pt > 1e9"})
    with pytest.raises(InputError, match="keeps 0 of 4 jets"):
        numbers_of(data, make_jets(4))


def test_a_data_yaml_of_particles_is_none_for_baselines(make_jets):
    data = load_data_config(ROOT / "datasets" / "jetclass2.yaml", scheme="binary:X_bb vs QCD")
    with pytest.raises(ConfigError, match="one input, of jet quantities"):
        numbers_of(data, make_jets(0))


YAML_TREE = {
    "inputs": {"numbers": {"length": None, "vars": ["jet_pt"]}},
    "labels": {"type": "custom", "value": {"truth": "jet_label"}, "scheme": "binary:X_bb vs QCD"},
}
