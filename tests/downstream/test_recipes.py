"""Ways to pre-train are compared by their repetitions; what these share is no repetition."""

from __future__ import annotations

import types

import numpy as np
import pytest

from jetfoundry.downstream.recipes import recipe_rows, verdict_sentence
from jetfoundry.downstream.table import MODEL_SCORES, Measured, Variant
from jetfoundry.downstream.trials import Outcome, Trial
from jetfoundry.evaluate.figures import Figure

TASK = types.SimpleNamespace(name="toy", is_regression=False, class_names=("a", "b", "c"))
RECIPES = {"plain": ["p1", "p2"], "pair": ["q1", "q2"]}


ALL = ("p1", "p2", "q1", "q2")


def measured(method: str, values: dict[str, float], keys: dict[str, str]) -> dict[Variant, Measured]:
    """A trial for each backbone, whose accuracy and bootstrap samples scatter by a thousandth."""
    noise = np.random.default_rng(0).normal(scale=1e-3, size=50)
    found = {}
    for backbone, value in values.items():
        trial = Trial(task="toy", backbone=backbone, method=method, token="", size=1.0, seed=1, key=keys[backbone])
        figures = {1: {Figure("accuracy"): np.log(value) + np.append(0, noise)}}
        found[Variant(backbone, method, "", 1.0)] = Measured(figures, {1: Outcome(trial, np.zeros((1, 3)), {})}, 0)
    return found


def test_a_gain_of_ways_to_pre_train_has_the_scatter_of_their_backbones():
    values = {"p1": 0.50, "p2": 0.52, "q1": 0.60, "q2": 0.63}
    (row,) = recipe_rows(TASK, measured("probe", values, {name: name for name in values}), RECIPES)
    assert row["backbones"] == 2
    assert row["gain"] == pytest.approx(np.sqrt(0.60 * 0.63 / 0.50 / 0.52) - 1)
    assert row["gain_error"] > 0.02


def test_networks_from_random_weights_count_once_for_all_backbones_of_one_architecture():
    values, keys = {"p1": 0.50, "p2": 0.50, "q1": 0.60, "q2": 0.60}, {"p1": "a", "p2": "a", "q1": "b", "q2": "b"}
    (row,) = recipe_rows(TASK, measured("scratch", values, keys), RECIPES)
    assert (row["backbones"], row["verdict"]) == (1, "one seed")


def test_the_same_trainings_on_both_sides_are_no_comparison():
    values, keys = dict.fromkeys(("p1", "p2", "q1", "q2"), 0.5), dict.fromkeys(("p1", "p2", "q1", "q2"), "a")
    assert recipe_rows(TASK, measured("scratch", values, keys), RECIPES) == []


def test_scores_of_classifiers_that_were_not_trained_again_are_each_their_own():
    values = {"p1": 0.50, "p2": 0.52, "q1": 0.60, "q2": 0.63}
    (row,) = recipe_rows(TASK, measured(MODEL_SCORES, values, dict.fromkeys(values, "")), RECIPES)
    assert (row["backbones"], row["reference_backbones"]) == (2, 2)


def test_all_figures_are_compared_the_main_one_first_and_the_smaller_resolution_is_the_better():
    auc, bound, free = Figure("AUC", "a vs b"), *(Figure("rejection", "a vs b", at) for at in (0.3, 0.5))
    found = measured("probe", {"p1": 0.50, "p2": 0.52, "q1": 0.60, "q2": 0.63}, {name: name for name in ALL})
    for variant, own in found.items():
        figures = own.figures[1]
        accuracy = figures.pop(Figure("accuracy"))
        figures |= {auc: accuracy, Figure("accuracy"): accuracy, free: accuracy + 3}
        figures[bound] = accuracy * (np.nan if variant.backbone == "q2" else 1)
        figures[Figure("resolution")] = -accuracy
        figures[Figure("response")] = accuracy
    rows = recipe_rows(TASK, found, RECIPES)
    assert [row["figure"] for row in rows] == [
        "accuracy", "AUC a vs b", "rejection at 50% a vs b", "rejection at 30% a vs b", "resolution"
    ]  # fmt: skip
    assert [row["main"] for row in rows] == [True, False, False, False, False]
    assert [row["gain"] for row in rows[:3]] == pytest.approx([rows[0]["gain"]] * 3)
    assert rows[0]["gain"] > 0
    assert [rows[3][name] for name in ("value", "gain", "verdict")] == [None, None, "bound"]
    assert rows[4]["value"] < rows[4]["reference_value"]
    assert rows[4]["gain"] > 0


def row_of(**changed):
    return {
        "task": "toy", "recipe": "pair", "reference": "plain", "method": "probe", "token": "", "size": 1.0,
        "main": True, "verdict": "noise", "p": 0.8, "gain": 0.001, "gain_error": 0.004,
        "backbones": 3, "reference_backbones": 3,
    } | changed  # fmt: skip


def test_the_sentence_counts_the_main_figures_and_names_where():
    rows = [
        row_of(token="both", verdict="better", gain=0.031, gain_error=0.009, p=0.04),
        row_of(method="mlp", size=0.1, verdict="better", gain=0.2, gain_error=0.05, p=0.01),
        row_of(task="mass", verdict="worse", gain=-0.02, gain_error=0.006, p=0.03),
        row_of(), row_of(main=False, verdict="worse"), row_of(method="scratch", verdict="one seed", gain=0.5),
    ]  # fmt: skip
    assert verdict_sentence(rows) == (
        "By the tasks' main figures, pair is better than plain in 2 of 4 comparisons (tasks: 2; each method, class "
        "token and training share by itself; 3 against 3 backbones), worse in 1, and no different from noise in 1. "
        "Better: toy by mlp on 10 % of the jets (+20.0 ± 5.0 %), by probe (both) on 100 % of the jets "
        "(+3.10 ± 0.90 %). Worse: mass by probe on 100 % of the jets (-2.00 ± 0.60 %). "
        "Each verdict is at the 5% level: if the recipes were alike, chance alone would call about 0.2 of 4 better or "
        "worse. Corrected for their number (Holm), what remains: 1 better. pair against plain: of 1 more comparison "
        "nothing can be said, a side is one training or one backbone."
    )
    assert "what remains: no difference." in verdict_sentence([row_of(verdict="better", p=0.03), row_of()])
    assert verdict_sentence([]) == verdict_sentence([row_of(main=False)]) == ""
    assert verdict_sentence([row_of()]).startswith("By the tasks' main figures, pair is better than plain in none of 1")
    assert "nothing can be said" in verdict_sentence([row_of(verdict="one seed")])


def test_of_many_comparisons_the_sentence_says_the_shares_of_each_method():
    sizes, methods = (0.01, 0.1, 1.0), ("probe", "mlp", "finetune")
    rows = [row_of(method=method, size=size, verdict="better") for method in methods for size in sizes]
    sentence = verdict_sentence(rows)
    assert "Better: toy by probe on 1, 10, 100 %, by mlp on 1, 10, 100 %, by finetune on 1, 10, 100 %. " in sentence
    assert "±" not in sentence
