"""Which way to pre-train is better: backbones that repeat one pre-training, taken together, against those of another.

A row compares one figure of one task by one method, token and size; the first recipe is the reference. Values are means
of logarithms over backbones, each the mean over its own trials. Trainings that both sides share, those of one
architecture from random weights, are no comparison and have no row.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry.downstream.table import Measured, Variant, gain_columns, main_figure
from jetfoundry.downstream.tasks import Task
from jetfoundry.evaluate.gains import LEVEL, gain_of_recipes
from jetfoundry.evaluate.tables import format_cell

__all__ = ["method_name", "percent", "recipe_rows", "verdict_sentence"]

_FEW = 8  # comparisons that a sentence names with their gains


def recipe_rows(
    task: Task, measured: Mapping[Variant, Measured], recipes: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Gains over the first recipe in every figure that both have, that of the task (`main`) first. `recipes` says which
    backbones are repetitions of which; a token that the first has not is held against its first."""
    if len(recipes) < 2:
        return []
    first, *others = recipes
    groups: dict[tuple[str, str, float], dict[str, list[Measured]]] = collections.defaultdict(dict)
    for name, backbones in recipes.items():
        for variant, own in measured.items():
            if variant.backbone in backbones and own.figures:
                side = groups[variant.method, variant.token, variant.size].setdefault(name, [])
                if all(_trainings(own) != _trainings(each) for each in side):  # those from random weights are shared
                    side.append(own)
    rows = []
    for (method, token, size), of_recipe in groups.items():
        tokens = [t for (m, t, s), each in groups.items() if (m, s) == (method, size) and first in each]
        if not tokens:
            continue
        against = token if token in tokens else tokens[0]
        base = groups[method, against, size][first]
        for name in others:
            mine = of_recipe.get(name, [])
            if not mine or _all_trainings(mine) == _all_trainings(base):
                continue
            head = {"task": task.name, "recipe": name, "method": method, "token": token, "size": size}
            head |= {"reference": first, "reference_token": against, "train_jets": _jets(mine)}
            rows += [{**head, **row} for row in _compared(task, mine, base)]
    return rows


def _compared(task: Task, mine: Sequence[Measured], theirs: Sequence[Measured]) -> Iterable[dict[str, Any]]:
    main = main_figure(task)
    known = [set.intersection(*(set(seed) for own in side for seed in own.figures.values())) for side in (mine, theirs)]
    every = next(iter(mine[0].figures.values()))
    for figure in sorted((each for each in every if each in known[0] & known[1]), key=lambda each: each != main):
        if not figure.sign:
            continue
        sides = [np.stack([np.mean([seed[figure] for seed in own.figures.values()], axis=0) for own in side])
                 for side in (mine, theirs)]  # fmt: skip
        found = gain_of_recipes(*(figure.sign * side for side in sides))
        value, std, backbones = zip(*(_summed(side[:, 0]) for side in sides), strict=True)
        yield {"figure": figure.name, "kind": figure.kind, "main": figure == main,
               "value": value[0], "std": std[0], "backbones": backbones[0],
               "reference_value": value[1], "reference_std": std[1], "reference_backbones": backbones[1],
               **gain_columns(found)}  # fmt: skip


def _summed(logs: npt.NDArray[Any]) -> tuple[float | None, float | None, int]:
    """Mean, standard deviation and number of backbones from logarithms (N,); no mean of bounds."""
    if np.isnan(logs).any():
        return None, None, len(logs)
    std = float(np.exp(logs).std(ddof=1)) if len(logs) > 1 else None
    return math.exp(float(logs.mean())), std, len(logs)


def _trainings(own: Measured) -> set[str]:
    """What tells trainings apart: the same network from random weights is one training, whatever backbone it is of.
    What was not trained is the backbone's own."""
    return {outcome.trial.key or outcome.trial.backbone for outcome in own.outcomes.values()}


def _all_trainings(side: Sequence[Measured]) -> set[str]:
    return set().union(*(_trainings(own) for own in side))


def _jets(side: Sequence[Measured]) -> int | None:
    """Mean number of training jets."""
    records = [outcome.record for own in side for outcome in own.outcomes.values()]
    found = [record["train_jets"] for record in records if "train_jets" in record]
    return round(float(np.mean(found))) if found else None


def method_name(row: Mapping[str, Any]) -> str:
    """`probe (both)`: method and class token of a row."""
    return row["method"] + (f" ({row['token']})" if row["token"] else "")


def verdict_sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the rows of `recipe_rows` say by the tasks' main figures: how often, and where, a recipe is better, worse,
    or no different from noise; '' without comparisons."""
    rows = [row for row in rows if row["main"]]
    pairs = dict.fromkeys((row["recipe"], row["reference"]) for row in rows)
    return " ".join(_verdict_of([row for row in rows if (row["recipe"], row["reference"]) == pair]) for pair in pairs)


def _verdict_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The sentences for one recipe."""
    recipe, reference = rows[0]["recipe"], rows[0]["reference"]
    tasks, several_sizes = {row["task"] for row in rows}, len({row["size"] for row in rows} - {0.0}) > 1
    by_verdict = {name: [row for row in rows if row["verdict"] == name] for name in ("better", "worse", "noise")}
    judged = sum(len(found) for found in by_verdict.values())
    number = {name: str(len(found)) if found else "none" for name, found in by_verdict.items()}
    backbones = " against ".join(str(max(row[name] for row in rows)) for name in ("backbones", "reference_backbones"))
    text = ""
    if judged:
        text = (
            f"By the tasks' main figures, {recipe} is better than {reference} in {number['better']} of {judged} "
            f"comparison{'s' * (judged > 1)} (tasks: {len(tasks)}; each method, class token and training share by "
            f"itself; {backbones} backbones), worse in {number['worse']}, and no different from noise in "
            f"{number['noise']}."
        )
        for name in ("better", "worse"):
            if by_verdict[name]:
                text += f" {name.capitalize()}: {_listed(by_verdict[name], several_sizes)}."
        text += (
            f" Each verdict is at the {LEVEL:.0%} level: if the recipes were alike, chance alone would call about "
            f"{format_cell(LEVEL * judged)} of {judged} better or worse. {_beyond_chance(rows)}"
        )
    if rest := len(rows) - judged:
        text += f"{' ' if text else ''}{recipe} against {reference}: of {rest} {'more ' if text else ''}comparison"
        text += f"{'s' * (rest > 1)} nothing can be said, a side is one training or one backbone."
    return text


def _beyond_chance(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many verdicts stay if the chance that any of them is wrong shall be no more than that of one (Holm, Scand. J.
    Stat. 6 (1979) 65)."""
    judged = sorted((row for row in rows if row["verdict"] in ("better", "worse", "noise")), key=lambda row: row["p"])
    steps = itertools.takewhile(lambda at: at[1]["p"] <= LEVEL / (len(judged) - at[0]), enumerate(judged))
    verdicts = [row["verdict"] for _, row in steps]
    found = " and ".join(f"{n} {name}" for name in ("better", "worse") if (n := verdicts.count(name)))
    return f"Corrected for their number (Holm), what remains: {found or 'no difference'}."


def _listed(rows: Sequence[Mapping[str, Any]], several_sizes: bool) -> str:
    """`toy by probe (both) on 10 % of the jets (+3.1 ± 1.2 %), by mlp …; other by …`; of many without the gains, with
    the shares of one method together."""
    by_task: dict[str, dict[str, list[str]]] = {}
    for row in sorted(rows, key=lambda row: row["size"]):
        share, what = f"{100 * row['size']:g}", f"by {method_name(row)}"
        if len(rows) <= _FEW:
            what += f" on {share} % of the jets" * several_sizes + f" ({percent(row)})"
        by_task.setdefault(row["task"], {}).setdefault(what, []).append(share)
    shared = several_sizes and len(rows) > _FEW
    return "; ".join(
        f"{task} " + ", ".join(what + f" on {', '.join(found)} %" * shared for what, found in methods.items())
        for task, methods in by_task.items()
    )


def percent(row: Mapping[str, Any]) -> str:
    """`+3.12 ± 0.94 %`: the gain of a row, with two digits of its error."""
    error = 100 * row["gain_error"]
    decimals = max(0, 1 - math.floor(math.log10(error))) if error else 2
    return f"{100 * row['gain']:+.{decimals}f} ± {error:.{decimals}f} %"
