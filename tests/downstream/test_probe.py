import numpy as np
import pytest

from jetfoundry.downstream.probe import linear_probe
from jetfoundry.downstream.problem import Problem
from jetfoundry.downstream.task_weights import class_weights
from jetfoundry.downstream.tasks import ProbeBudget
from jetfoundry.errors import InputError
from jetfoundry.evaluate.metrics import auc


def blobs(number, distance=2.0, seed=0):
    """Two unit Gaussians in 4 dimensions, `distance` apart along the first; the latent has an offset and a scale."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, number)
    latent = rng.normal(size=(number, 4))
    latent[:, 0] += distance * labels
    return (50 + 10 * latent).astype(np.float32), labels


def test_probe_reaches_the_best_possible_auc_of_two_gaussians():
    train, labels = blobs(4000, seed=1)
    test, truth = blobs(4000, seed=2)
    logits = linear_probe(Problem(train, labels, class_weights(labels, 2), test, 2, 1), ProbeBudget(epochs=30))
    # Two unit Gaussians two sigma apart: AUC = Phi(2 / sqrt(2)) = 0.921.
    assert auc(logits[:, 1] - logits[:, 0], truth == 1) == pytest.approx(0.921, abs=0.012)


def test_probe_is_the_same_for_the_same_seed_and_differs_between_seeds():
    train, labels = blobs(500)
    budget = ProbeBudget(epochs=2)
    one, two, other = (
        linear_probe(Problem(train, labels, class_weights(labels, 2), train, 2, seed), budget) for seed in (1, 1, 2)
    )
    assert (one == two).all()
    assert (one != other).any()


def test_without_balance_a_rare_class_keeps_its_low_prior():
    train, labels = blobs(2000, distance=0.0)
    labels[:] = 0
    labels[:100] = 1
    logits = linear_probe(Problem(train, labels, np.ones(2000, np.float32), train, 2, 1), ProbeBudget(epochs=20))
    share = np.exp(logits[:, 1]) / np.exp(logits).sum(axis=1)
    assert share.mean() == pytest.approx(0.05, abs=0.01)


def test_a_single_class_cannot_be_probed():
    train, _ = blobs(10)
    with pytest.raises(InputError, match=r"at least two classes, got class counts \[0, 0, 10\]"):
        Problem(train, np.full(10, 2), np.ones(10, np.float32), train, 3, 1)
