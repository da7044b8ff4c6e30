"""Plots of a task: ROC curves of all backbones and methods over each other, and figures against training jets."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jetfoundry import files
from jetfoundry.downstream.table import MODEL_SCORES, main_figure
from jetfoundry.downstream.tasks import Task, TaskSample
from jetfoundry.downstream.trials import Outcome
from jetfoundry.evaluate import plots
from jetfoundry.evaluate.discriminants import Discriminant
from jetfoundry.evaluate.metrics import RocCurve, roc_curve
from jetfoundry.evaluate.plots import data_efficiency
from jetfoundry.evaluate.validation import discriminants_of

__all__ = ["curve_name", "efficiency_curves", "plot_task"]

_MOST_CURVES = 8  # in a picture


def plot_task(
    task: Task,
    outcomes: Sequence[Outcome],
    rows: Sequence[Mapping[str, Any]],
    jets: TaskSample,
    folder: Path,
    sample: str,
    *,
    compared: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write `plots/roc_<task>_<n>.png`, of the first seeds at the largest size, and `plots/jets_<task>.png`, in which
    the backbones of a recipe are one curve if `compared` has the rows of recipes."""
    figures = {}
    for number, found in enumerate(_discriminants(task), 1):
        used = np.isin(jets.labels, [*found.signal, *found.background])
        is_signal = np.isin(jets.labels[used], found.signal)
        if is_signal.any() and not is_signal.all():
            curves: dict[str, RocCurve] = {}
            for each in _shown(outcomes):
                assert each.logits is not None
                name = curve_name(each.trial.method, each.trial.backbone, each.trial.token)
                curves[name] = roc_curve(found.log_odds(each.logits[used]), is_signal, jets.weights[used])
            if curves:
                figures[f"roc_{task.name}_{number}"] = plots.roc(curves, sample, *found.name.split(" vs "))
    main = main_figure(task).name
    own, of_recipes = ([row for row in part if row["task"] == task.name] for part in (rows, compared))
    if curves_of_size := efficiency_curves(own, main, of_recipes):
        figures[f"jets_{task.name}"] = data_efficiency(curves_of_size, main, sample)
    for name, figure in figures.items():
        with files.committed(folder / "plots" / f"{name}.png") as temporary:
            temporary.write_bytes(plots.png(figure, dpi=144))


def _discriminants(task: Task) -> list[Discriminant]:
    return [] if task.is_regression else discriminants_of(task.class_names, task.discriminants)


def curve_name(method: str, backbone: str, token: str) -> str:
    """A curve's name in a legend."""
    return " ".join(part for part in (backbone, method, f"({token})" if token else "") if part)


def _shown(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """One outcome for each curve: largest size, first seed that there is; of too many the first of each method, then
    the second of each, and so on."""
    done = [each for each in outcomes if each.logits is not None]
    largest = max((each.trial.size for each in done), default=0.0)
    by_method: dict[str, dict[tuple[str, str], Outcome]] = {}
    for each in done:
        if each.trial.size in (largest, 0.0) or each.trial.method == MODEL_SCORES:
            by_method.setdefault(each.trial.method, {}).setdefault((each.trial.backbone, each.trial.token), each)
    in_turn = itertools.zip_longest(*(curves.values() for curves in by_method.values()))
    return [each for turn in in_turn for each in turn if each is not None][:_MOST_CURVES]


def efficiency_curves(
    rows: Sequence[Mapping[str, Any]], figure: str, of_recipes: Sequence[Mapping[str, Any]] = ()
) -> dict[str, list[tuple[float, float, float | None]]]:
    """(training jets, value, standard deviation) by curve, where there are several sizes.

    A method that `of_recipes` compares has a curve for each recipe, with the scatter of its backbones; any other one
    for each backbone, or with recipes that of the first alone."""
    curves: dict[str, dict[float, tuple[float, float, float | None]]] = {}

    def point(name: str, jets: float | None, value: float | None, std: float | None) -> None:
        if value is not None and jets:
            curves.setdefault(name, {}).setdefault(jets, (jets, value, std))

    compared = [row for row in of_recipes if row["figure"] == figure]
    for row in compared:
        for side, part in (("reference", "reference_"), ("recipe", "")):
            name = curve_name(row["method"], row[side], row[f"{part}token"])
            point(name, row["train_jets"], row[f"{part}value"], row[f"{part}std"])
    methods = {row["method"] for row in compared}
    first = next((row["backbone"] for row in rows if row["backbone"]), "")
    for row in rows:
        shown = row["method"] not in methods and (not compared or row["backbone"] in (first, ""))
        if row["figure"] == figure and shown:
            name = curve_name(row["method"], "" if compared else row["backbone"], row["token"])
            point(name, row.get("train_jets"), row["value"], row.get("std"))
    return {name: sorted(points.values()) for name, points in curves.items() if len(points) > 1}
