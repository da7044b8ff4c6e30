"""Rows of the table from logits of which everything is known."""

from __future__ import annotations

import numpy as np
import pytest

from jetfoundry import config
from jetfoundry.downstream.table import baseline_rows, measure, table_rows
from jetfoundry.downstream.tasks import Task, TaskSample
from jetfoundry.downstream.trials import Outcome, Trial
from jetfoundry.evaluate.regression import response_and_resolution

CHARGE = {
    "name": "charge", "title": "t", "label": {"formula": "x"}, "classes": ["plus", "minus", "QCD"],
    "compare": ["plus vs QCD", "minus vs QCD"], "agree": [["plus vs QCD", "minus vs QCD"]],
}  # fmt: skip
MASS = {
    "name": "mass",
    "title": "t",
    "label": {"target": "m", "relative_to": "pt"},
    "metrics": {"bins": [50, 100, 200]},
}


def outcome(logits, backbone="one", seed=1):
    trial = Trial(task="t", backbone=backbone, method="probe", token="", size=1.0, seed=seed, key=f"{backbone}{seed}")
    return Outcome(trial, np.asarray(logits, np.float32), {"train_jets": 10, "seconds": 1.0, "jets_per_s": 5.0})


def sample_of(labels, reference=None):
    return TaskSample(np.arange(len(labels)), labels, np.ones(len(labels), np.float32), reference, {}, {})


def charged(rng, labels, distances, noise=0.3):
    """Logits (E, 3) in which each charge is as far from QCD as `distances` says."""
    common = rng.normal(size=(len(labels), 2))
    odds = common + noise * rng.normal(size=common.shape) + np.array(distances) * (labels[:, None] == [0, 1])
    return np.column_stack([odds, np.zeros(len(labels))])


def test_figures_that_a_symmetry_makes_equal_agree_or_differ():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], [800, 800, 2400])
    task = config.build(Task, CHARGE)

    def agreement(distances, seeds):
        trials = [outcome(charged(rng, labels, distances), seed=seed) for seed in range(seeds)]
        rows = table_rows(task, measure(task, trials, sample_of(labels), 60), sample_of(labels))
        return {row["figure"]: row for row in rows if row["kind"] == "agreement"}

    alike = agreement((1.5, 1.5), 3)
    assert list(alike) == [f"agreement {kind} plus vs QCD / minus vs QCD"
                           for kind in ("AUC", "rejection at 30%", "rejection at 50%")]  # fmt: skip
    assert {row["verdict"] for row in alike.values()} == {"agree"}
    area = alike["agreement AUC plus vs QCD / minus vs QCD"]
    assert area["value"] == pytest.approx(1, abs=3 * area["error"])
    assert 0 < area["error"] < 0.02
    unlike = agreement((1.5, 0.7), 3)
    assert {row["verdict"] for row in unlike.values()} == {"differ"}
    assert unlike["agreement AUC plus vs QCD / minus vs QCD"]["value"] > 1.05
    # One training: what its jets allow is agreement, what they do not may be the scatter of trainings.
    assert {row["verdict"] for row in agreement((1.5, 1.5), 1).values()} == {"agree"}
    assert {row["verdict"] for row in agreement((1.5, 0.7), 1).values()} == {"one seed"}
    rejections = agreement((9.0, 1.5), 3)["agreement rejection at 30% plus vs QCD / minus vs QCD"]
    assert (rejections["value"], rejections["verdict"]) == (None, "bound")


def test_a_bound_in_one_seed_is_the_verdict_of_a_rejection_and_says_so():
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1, 2], 300)
    task = config.build(Task, CHARGE)
    trials = [outcome(charged(rng, labels, (1.0, 1.0)), "one", seed) for seed in (1, 2)]
    trials += [outcome(charged(rng, labels, (distance, 1.0)), "two", seed) for seed, distance in ((1, 1.0), (2, 9.0))]
    rows = table_rows(task, measure(task, trials, sample_of(labels), 40), sample_of(labels))
    found = {row["figure"]: row for row in rows if row["backbone"] == "two"}
    row = found["rejection at 50% plus vs QCD"]
    assert (row["bound"], row["error"], row["gain"], row["p"], row["verdict"]) == (True, None, None, None, "bound")
    free = found["rejection at 50% minus vs QCD"]
    assert (free["bound"], free["verdict"]) == (False, "noise")
    assert {row["kind"] for row in rows} == {"accuracy", "AUC", "rejection", "agreement"}


def test_a_target_has_its_figures_in_ranges_of_it():
    rng = np.random.default_rng(3)
    target = np.repeat([60.0, 150.0, 300.0], [100, 200, 50])  # the last lies in no range
    reference = np.full(350, 80.0)
    sample = sample_of(np.log(target / reference), reference)
    task = config.build(Task, MASS)
    found = [np.log(target / reference * rng.normal(1.02, 0.1, 350))[:, None] for _ in range(3)]
    rows = table_rows(task, measure(task, [outcome(each, seed=i) for i, each in enumerate(found)], sample, 40), sample)
    named = {row["figure"]: row for row in rows}
    assert list(named) == [
        "resolution", "response", "resolution 50-100", "response 50-100", "resolution 100-200", "response 100-200"
    ]  # fmt: skip
    inside = target == 150
    each_seed = [
        response_and_resolution((np.exp(each[:, 0].astype(np.float32)) * reference / target)[inside]) for each in found
    ]
    row, values = named["resolution 100-200"], [each["resolution"] for each in each_seed]
    assert row["value"] == pytest.approx(np.mean(values), rel=1e-4)
    assert row["std"] == pytest.approx(np.std(values, ddof=1), rel=1e-3)
    assert row["error"] == pytest.approx(np.mean([each["resolution_error"] for each in each_seed]), rel=1e-3)
    assert (row["kind"], row["seeds"], row["train_jets"]) == ("resolution", 3, 10)
    empty = config.build(Task, MASS | {"metrics": {"bins": [1, 2]}})
    rows = table_rows(empty, measure(empty, [outcome(found[0])], sample, 40), sample)
    assert [(row["figure"], row["value"]) for row in rows[2:]] == [("resolution 1-2", None), ("response 1-2", None)]


def test_a_regression_that_diverged_has_a_row():
    target = np.linspace(60, 150, 100)
    sample, task = sample_of(np.log(target), np.ones(100)), config.build(Task, MASS)
    rows = table_rows(task, measure(task, [outcome(np.full((100, 1), 80.0))], sample, 40), sample)
    assert all(np.isfinite(row["value"]) for row in rows)


def test_baselines_have_errors_and_kinds():
    labels = np.repeat([0, 1, 2], 300)
    task = config.build(Task, CHARGE | {"baselines": {"q": {"formula": "x", "compare": ["plus vs minus"]}}})
    scores = np.random.default_rng(4).normal(size=900) + (labels == 0)
    sample = TaskSample(np.arange(900), labels, np.ones(900, np.float32), None, {"q": scores}, {})
    rows = baseline_rows(task, sample, 40)
    assert [row["kind"] for row in rows] == ["AUC", "rejection", "rejection"]
    assert all(row["error"] > 0 and not row["bound"] for row in rows)
