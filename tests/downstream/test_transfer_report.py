"""The report from a summary: what a person reads, and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from jetfoundry.downstream.transfer_plots import efficiency_curves
from jetfoundry.downstream.transfer_report import matrix, overview, summary_rows, task_table, transfer_sections


def row_of(backbone, method="probe", figure="accuracy", kind="accuracy", **changed):
    row = {"task": "toy", "backbone": backbone, "method": method, "token": "", "size": 1.0, "figure": figure,
           "kind": kind, "value": 0.8, "std": 0.01, "error": 0.02, "survivors": None, "bound": False, "seeds": 3,
           "train_jets": 100, "seconds": 1.5, "jets_per_s": 1000.0, "failed": 0}  # fmt: skip
    if backbone not in ("", "a"):
        row |= {"reference": "a", "gain": 0.05, "gain_error": 0.01, "p": 0.001, "verdict": "better"}
    return row | changed


NOWHERE = Path("nowhere")  # without plots
REJECTION = {"figure": "rejection at 50% x vs y", "kind": "rejection", "value": 123.4, "std": 3.21, "error": 9.876,
             "survivors": 12.5}  # fmt: skip


def recipe_row(**changed):
    return {
        "task": "toy", "recipe": "pair", "reference": "plain", "method": "probe", "token": "", "reference_token": "",
        "size": 1.0, "train_jets": 100, "figure": "accuracy", "kind": "accuracy", "main": True, "value": 0.82,
        "std": 0.01, "backbones": 3, "reference_value": 0.8, "reference_std": 0.02, "reference_backbones": 3,
        "gain": 0.025, "gain_error": 0.011, "p": 0.04, "verdict": "better",
    } | changed  # fmt: skip


def summary_of(rows, recipes=()):
    tasks = {row["task"]: {"title": "t", "classes": ["x", "y", "z"], "figure": "accuracy"} for row in rows}
    return {
        "table": rows, "recipes": list(recipes), "recipes_verdict": "pair is better.", "tasks": tasks, "trials": [],
        "jets": {name: {"train": {"jets": 5, "in_small_classes": 2}} for name in tasks}, "seconds": {"embed": 1.0},
        "seconds_of_trials": {}, "trials_run": 1, "trials_found": 0, "embeddings": [],
    }  # fmt: skip


def test_what_knows_no_backbone_has_a_column_of_its_own():
    rows = [row_of("a"), row_of("b", value=0.84), row_of("", "boosting", value=0.7), row_of("", "baseline: q")]
    lines = matrix(summary_of(rows))
    assert list(lines[0]) == ["task", "figure", "method", "a", "b", "no backbone"]
    assert (lines[0]["a"], lines[0]["b"]) == ("0.8000 ± 0.0100", "0.8400 ± 0.0100  ▲ +5.0 ± 1.0 % ★")
    assert (lines[1]["a"], lines[1]["no backbone"]) == (None, "0.7000 ± 0.0100")
    assert [line["task"] for line in lines] == ["toy", "", ""]
    assert "no backbone" not in matrix(summary_of(rows[:2]))[0]
    many = [row_of(name) for name in "abcd"]  # six backbones have room for signs only
    assert matrix(summary_of(many))[0]["b"] == "0.8000 ± 0.0100  ▲"


def test_the_best_resolution_is_the_smallest():
    figure = {"figure": "resolution", "kind": "resolution"}
    rows = [row_of("a", value=0.1, **figure), row_of("b", value=0.2, **figure)]
    summary = summary_of(rows)
    summary["tasks"]["toy"]["figure"] = "resolution"
    assert matrix(summary)[0]["a"].endswith("★")


def test_a_table_of_a_task_has_both_errors_survivors_p_and_verdict():
    rows = [row_of("a", **REJECTION), row_of("a"), row_of("b"), row_of("b", **REJECTION)]
    rows.append(row_of("c", **REJECTION | {"bound": True, "std": None, "error": None, "gain": None, "p": None,
                                           "verdict": "bound"}))  # fmt: skip
    lines = task_table(rows)
    assert [line["figure"] for line in lines] == ["rejection at 50% x vs y"] * 3 + ["accuracy"] * 2
    own, other, bound = lines[:3]
    assert [own[name] for name in ("value", "± seeds", "± jets", "gain")] == ["123.4", "3.2", "9.9", None]
    assert own["survivors"] == 12.5
    assert [other[name] for name in ("gain", "p", "verdict")] == ["+5.0 ± 1.0 %", "0.001", "▲ better"]
    assert [bound[name] for name in ("value", "± jets", "gain", "verdict")] == ["> 123 (95% CL)", "–", None, "bound"]
    assert [lines[3][name] for name in ("value", "± seeds", "± jets", "seeds")] == ["0.8000", "0.0100", "0.0200", 3]


def test_with_recipes_the_first_section_says_which_pre_training_is_better_where():
    compared = [
        recipe_row(), recipe_row(size=0.1, gain=-0.5, verdict="worse"), recipe_row(method="mlp", verdict="noise"),
        recipe_row(main=False, figure="rejection at 50% x vs y", kind="rejection", gain=None, gain_error=None, p=None,
                   verdict="bound", value=None, std=None),
        recipe_row(main=False, figure="AUC x vs y", kind="AUC"),
    ]  # fmt: skip
    rows = [row_of("a"), row_of("b"), row_of("b", **REJECTION)]
    first, wins, recipes, values, task, others, *_ = transfer_sections(NOWHERE, summary_of(rows, compared))
    assert (first.title, wins.title, recipes.title, task.title) == ("Which pre-training", "Who wins", "Recipes", "toy")
    assert first.text.startswith("pair is better.")
    assert first.table == [{"task": "toy", "figure": "accuracy", "probe": "▲ +2.5 ± 1.1", "mlp": "≈ +2.5 ± 1.1"}]
    assert [(line["figure"], line["probe"]) for line in recipes.table] == [
        ("accuracy", "▲ +2.5 ± 1.1"), ("rejection at 50% x vs y", "bound"), ("AUC x vs y", "▲ +2.5 ± 1.1")
    ]  # fmt: skip
    assert len(values.table) == len(compared)
    assert values.folded
    assert values.table[0]["recipe's value"] == "0.8200 ± 0.0100"
    assert [len(section.table) for section in (task, others)] == [2, 1]
    assert "5 jets, 2 in small classes" in task.text
    assert transfer_sections(NOWHERE, summary_of(rows))[0].title == "Who wins"


def test_agreement_is_a_table_and_a_count_of_its_verdicts():
    ratio = {"figure": "agreement AUC p / q", "kind": "agreement", "value": 1.01, "error": 0.02, "p": 0.6}
    rows = [row_of("a"), row_of("a", **ratio, verdict="agree"), row_of("b", **ratio | {"value": None}, verdict="bound")]
    (section,) = (each for each in transfer_sections(NOWHERE, summary_of(rows)) if each.title == "Agreement")
    assert "Of 2 ratios 1 agree within errors, 0 differ" in section.text
    assert [line["AUC p / q"] for line in section.table] == ["1.010 ± 0.020 agree", "bound"]


def test_recipes_of_three_kinds_have_a_line_each():
    lines = overview([recipe_row(), recipe_row(recipe="triple", verdict="worse", gain=-0.025)])
    assert [(line["recipe"], line["probe"]) for line in lines] == [("pair", "▲ +2.5 ± 1.1"), ("triple", "▼ -2.5 ± 1.1")]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (row_of("a", "probe"), {"what": "toy, a probe: accuracy", "value": "0.8000 ± 0.0100"}),
        (row_of("", "boosting", size=0.1), {"what": "toy boosting 10%: accuracy", "value": "0.8000 ± 0.0100"}),
        (row_of("a", value=None, seeds=0), {"what": "toy, a probe: accuracy", "value": "failed"}),
    ],
)
def test_lines_for_the_terminal(row, line):
    assert summary_rows(summary_of([row])) == [line]


def test_curves_against_training_jets_are_those_of_recipes_where_there_are_some():
    rows = [row_of(name, method, train_jets=jets, value=value) for name in "ab"
            for method in ("probe", "scratch") for jets, value in ((10, 0.6), (100, 0.8))]  # fmt: skip
    assert list(efficiency_curves(rows, "accuracy")) == ["a probe", "a scratch", "b probe", "b scratch"]
    compared = [recipe_row(token="both", train_jets=jets) for jets in (10, 100)]
    found = efficiency_curves(rows, "accuracy", compared)
    assert found == {
        "plain probe": [(10, 0.8, 0.02), (100, 0.8, 0.02)],
        "pair probe (both)": [(10, 0.82, 0.01), (100, 0.82, 0.01)],
        "scratch": [(10, 0.6, 0.01), (100, 0.8, 0.01)],
    }
