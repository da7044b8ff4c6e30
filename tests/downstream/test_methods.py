import dataclasses
import re
import types

import numpy as np
import pytest
import torch

from jetfoundry.downstream.baselines import boosted
from jetfoundry.downstream.finetune import NetworkConfig, jet_config, jet_network, layer_rates, train_network
from jetfoundry.downstream.methods import METHODS, MethodsConfig, Setting, check_methods, grid_of
from jetfoundry.downstream.mlp import MlpConfig, mlp
from jetfoundry.downstream.problem import Particles, Problem, held_out
from jetfoundry.downstream.scoring import open_network
from jetfoundry.downstream.task_weights import class_weights
from jetfoundry.downstream.tasks import ProbeBudget
from jetfoundry.downstream.trials import subset
from jetfoundry.errors import ConfigError, InputError
from jetfoundry.evaluate.metrics import auc
from jetfoundry.models.checkpoints import load_model
from jetfoundry.models.presets import PRESETS
from jetfoundry.models.start import trained_weights


def rings(number, seed):
    """Two classes that no line separates: points inside and outside a circle."""
    latent = np.random.default_rng(seed).normal(size=(number, 2)).astype(np.float32)
    return latent, (np.hypot(*latent.T) > 1.18).astype(np.int64)


def setting(**given):
    usual = {"task": None, "model": None, "point": {}, "options": MethodsConfig(), "device": "cpu"}
    return Setting(**{**usual, "report": lambda *_: None, **given})


def test_mlp_separates_what_no_linear_probe_can():
    train, labels = rings(2000, 1)
    test, truth = rings(1000, 2)
    told = []
    problem = Problem(train, labels, class_weights(labels, 2), test, 2, 1)
    point, options = {"width": 32, "depth": 2, "lr": 1e-2}, MlpConfig(epochs=15, batch_size=128)
    logits = mlp(problem, point, options, lambda *each: told.append(each))
    assert auc(logits[:, 1] - logits[:, 0], truth == 1) > 0.99
    epochs, losses = zip(*told, strict=True)
    assert epochs == tuple(range(1, 16))
    assert list(losses) == sorted(losses, reverse=True)  # the best so far


def test_mlp_with_a_nan_in_its_input_says_so():
    train, labels = rings(100, 1)
    train[3, 1] = np.nan
    with pytest.raises(InputError, match="the loss is not finite in epoch 1"):
        mlp(
            Problem(train, labels, np.ones(100, np.float32), train, 2, 1),
            MlpConfig().grid[0],
            MlpConfig(epochs=2),
            lambda *_: None,
        )


def test_held_out_jets_are_a_share_of_every_class_and_leave_one_to_train_on():
    labels = np.repeat([0, 1, 2], [50, 10, 1])
    out = held_out(labels, 0.2, seed=3)
    assert np.bincount(labels[out], minlength=3).tolist() == [10, 2, 0]


def test_a_smaller_training_set_is_part_of_a_larger_one_and_has_every_class():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [500, 100, 3]))
    small, large = (subset(labels, size, seed=5) for size in (0.01, 0.1))
    assert set(small) < set(large)
    assert np.bincount(labels[small]).tolist() == [5, 1, 1]
    assert np.bincount(labels[large]).tolist() == [50, 10, 1]
    assert subset(labels, 1.0, seed=5).tolist() == list(range(603))
    assert set(subset(labels, 0.1, seed=6)) != set(large)


@pytest.fixture(scope="module")
def particles(small_model, toy_jets):
    """Features of 120 toy jets for the small network, and their classes."""
    table = toy_jets(120, 7)
    features = open_network(small_model).data.apply(table, training=False, labels=False)
    assert len(features) == 120
    return features, (table["jet_label"].to_numpy() > 0).astype(np.int64)


def problem_of(particles, train=80, seed=1):
    features, labels = particles
    chosen = np.arange(120)
    given, rest = Particles(features, chosen[:train]), Particles(features, chosen[train:])
    return Problem(given, labels[:train], class_weights(labels[:train], 2), rest, 2, seed)


QUICK = NetworkConfig(epochs=1, min_steps=3, batch_size=32, micro_batches=2)


@pytest.mark.parametrize("trained", [True, False])
def test_whole_network_gives_logits_in_the_order_of_the_jets(particles, small_model, trained):
    problem = problem_of(particles)
    logits, seen = train_network(problem, small_model / "model.pt", QUICK, trained=trained)
    again, _ = train_network(problem, small_model / "model.pt", QUICK, trained=trained)
    assert (logits.shape, seen) == ((40, 2), 80)
    assert (logits == again).all()  # the same seed
    back = dataclasses.replace(problem.evaluate, jets=problem.evaluate.jets[::-1])
    turned, _ = train_network(
        dataclasses.replace(problem, evaluate=back), small_model / "model.pt", QUICK, trained=trained
    )
    assert np.abs(turned[::-1] - logits).max() < 1e-4


def test_fine_tuning_begins_with_the_backbone_and_a_new_head(particles, small_model, monkeypatch):
    begun = []
    step = "jetfoundry.downstream.finetune.Stepper"
    monkeypatch.setattr(step, lambda model, *_: begun.append(model) or (_ for _ in ()).throw(InputError("seen")))
    with pytest.raises(InputError, match="seen"):
        train_network(problem_of(particles), small_model / "model.pt", QUICK, trained=True)
    weights, stored = begun[0].state_dict(), trained_weights(small_model / "model.pt")
    assert all(torch.equal(weights[name], stored[name]) for name in weights if not name.startswith("head."))
    assert weights["head.2.weight" if "head.2.weight" in weights else list(weights)[-1]].shape[0] == 2


def test_learning_rates_fall_from_the_head_to_the_input(small_model):
    network = jet_network(load_model(small_model / "model.pt").model_config, 3)
    rates = layer_rates(network, 0.5)
    assert list(rates.values()) == [0.5 ** (len(rates) - i) for i in range(len(rates))]
    assert not any(pattern.startswith("head") for pattern in rates)
    assert list(rates)[-1].startswith("readout")


def test_of_a_contrastive_pair_the_jet_network_is_trained():
    network = jet_network(PRESETS["demo_contrastive"], 5)
    assert network.config.num_classes == 5
    assert not hasattr(network, "gen")
    assert all(
        re.search(pattern, " ".join(name for name, _ in network.named_parameters()))
        for pattern in layer_rates(network, 0.9)
    )


def test_a_pair_and_its_classification_alone_are_one_architecture_downstream():
    assert jet_config(PRESETS["demo_contrastive"], 5) == jet_config(PRESETS["demo"], 5)


def test_boosting_knows_classes_without_jets():
    x, labels = rings(300, 1)
    labels = 2 * labels  # class 1 has no jet
    weights = METHODS["boosting"]
    problem = Problem(x.astype(np.float64), labels, class_weights(labels, 4), x.astype(np.float64), 4, 1)
    logits, seen = weights.run(problem, setting())
    assert logits.shape == (300, 4)
    assert seen > 0
    assert set(logits.argmax(axis=1)) == {0, 2}
    assert (logits.argmax(axis=1) == labels).mean() > 0.9


def test_few_jets_are_boosted_without_a_part_that_ends_the_training():
    x, labels = rings(40, 1)
    scores, rounds = boosted(x, labels, np.ones(40), x, seed=1)
    assert (scores.shape, rounds) == ((40, 2), 100)


def test_unknown_methods_and_grids_of_one_point():
    with pytest.raises(ConfigError, match="no method 'finetun'; nearest: finetune"):
        check_methods(["probe", "finetun"])
    assert grid_of("probe", MethodsConfig()) == [{}]
    assert len(grid_of("mlp", MethodsConfig())) == 8


@pytest.mark.parametrize("method", ["probe", "mlp", "boosting"])
def test_a_target_is_learnt_from_latents_or_numbers(method):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1500, 3)).astype(np.float32)
    target = x @ [0.3, -0.2, 0.0] + 1.0
    problem = Problem(x[:1000], target[:1000], np.ones(1000, np.float32), x[1000:], 0, 1)
    task = types.SimpleNamespace(budget=ProbeBudget(epochs=30, batch_size=64))
    options = MethodsConfig(mlp=MlpConfig(epochs=15, batch_size=64))
    fit = METHODS[method].run(problem, setting(task=task, point=options.mlp.grid[1], options=options))
    assert fit.logits.shape == (500, 1)
    assert np.median(np.abs(fit.logits[:, 0] - target[1000:])) < 0.05


def test_whole_network_learns_a_target(particles, small_model):
    problem = problem_of(particles)
    target = dataclasses.replace(problem, labels=problem.labels + 0.5, num_classes=0)
    logits, _ = train_network(target, small_model / "model.pt", QUICK, trained=True)
    assert logits.shape == (40, 1)
    assert np.isfinite(logits).all()
