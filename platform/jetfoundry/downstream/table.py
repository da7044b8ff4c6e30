"""The answer: for each task, backbone, method, token, size and figure one row, with its errors and its verdict.

A backbone is held against the reference, the first one, by the same method, token, size and seeds. A token that the
reference has not is held against the reference's first. Columns of a row beside these:

    kind                    of the figure (evaluate/figures.py)
    value, std, error       mean and standard deviation over seeds; error of the evaluation jets: bootstrap, of a
                            rejection binomial, of a range of the target that of quantiles
    survivors, bound        of a rejection: background jets above the threshold; whether the value is a lower bound
    gain, gain_error, p     relative to the reference, with both errors, and the chance that noise gives as much
    verdict                 better, worse, noise, one seed, or bound: no gain, a side is a lower bound
    failed                  trials that are in no mean

Rows of kind "agreement" are the ratio of two figures of one network that a symmetry makes equal (`agree` of the task),
with the error of both; verdict: agree, differ, one seed (off by more than the jets allow, scatter unknown), or bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from jetfoundry.downstream.problem import strata
from jetfoundry.downstream.tasks import Task, TaskSample
from jetfoundry.downstream.trials import Outcome
from jetfoundry.evaluate.figures import Figure
from jetfoundry.evaluate.gains import (
    LEVEL,
    Gain,
    areas,
    gain,
    mean_rejection,
    replicated,
    replicated_target,
    resampled,
    sides,
)
from jetfoundry.evaluate.regression import regression_figures
from jetfoundry.evaluate.validation import discriminants_of

__all__ = [
    "MODEL_SCORES", "REFERENCE", "Measured", "Variant", "baseline_rows", "gain_columns", "main_figure", "measure",
    "table_rows",
]  # fmt: skip

MODEL_SCORES = "model scores"
"""The method that is none: the pre-trained classifier itself, where the task's classes are its own."""


REFERENCE = "reference quantity"
"""The method that takes the quantity of the jet, to which a target is relative, for the target itself."""

_NO_VALUE: dict[str, Any] = {"value": None, "std": None, "error": None, "survivors": None, "bound": False}
_LARGEST_LOG = 50.0  # of what a regression found: one that diverged has figures, too


class Variant(NamedTuple):
    """What a row is about; its trials differ by seed."""

    backbone: str
    method: str
    token: str
    size: float


class Measured(NamedTuple):
    """Logarithms of the figures (1 + R,) by figure, by seed; the outcomes by seed; how many trials failed."""

    figures: dict[int, dict[Figure, npt.NDArray[Any]]]
    outcomes: dict[int, Outcome]
    failed: int


def main_figure(task: Task) -> Figure:
    """The figure by which a person compares: AUC of two classes, accuracy of more, resolution of a target."""
    if task.is_regression:
        return Figure("resolution")
    if len(task.class_names) > 2:
        return Figure("accuracy")
    return Figure("AUC", discriminants_of(task.class_names, task.discriminants)[0].name)


def measure(task: Task, outcomes: Sequence[Outcome], sample: TaskSample, replicas: int) -> dict[Variant, Measured]:
    """Figures of all trials of a task, on the same bootstrap samples of its evaluation jets."""
    counts = _counts(sample, replicas)
    found: dict[Variant, Measured] = {}
    for each in outcomes:
        trial = each.trial
        variant = Variant(trial.backbone, trial.method, trial.token, trial.size)
        measured = found.setdefault(variant, Measured({}, {}, 0))
        if each.logits is None:
            found[variant] = measured._replace(failed=measured.failed + 1)
            continue
        measured.outcomes[trial.seed] = each
        measured.figures[trial.seed] = _replicated(task, each.logits, sample, counts)
    return found


def _counts(sample: TaskSample, replicas: int) -> npt.NDArray[np.float64]:
    return resampled(strata(sample.labels), replicas) * sample.weights


def _replicated(
    task: Task, logits: npt.NDArray[Any], sample: TaskSample, counts: npt.NDArray[np.float64]
) -> dict[Figure, npt.NDArray[Any]]:
    if task.is_regression:
        return replicated_target(logits[:, 0], sample.labels, counts)
    discriminants = discriminants_of(task.class_names, task.discriminants)
    within = task.metrics.within_one
    return replicated(logits, sample.labels, discriminants, task.metrics.efficiencies, counts, ordered=within)


def table_rows(task: Task, measured: Mapping[Variant, Measured], sample: TaskSample) -> list[dict[str, Any]]:
    """All rows of a task, JSON-safe. The reference is the backbone of the first variant that has one."""
    reference = next((variant.backbone for variant in measured if variant.backbone), "")
    rows: list[dict[str, Any]] = []
    for variant, own in measured.items():
        head = {"task": task.name, **variant._asdict()}
        other = _counterpart(variant, reference, measured)
        for figure, row in _figures(task, own, sample):
            compared = {}
            if other is not None and figure.sign:
                compared = {"reference": reference, **_gain(own, measured[other], figure)}
            rows.append({**head, **_named(figure), **row, **compared, **_cost(own), "failed": own.failed})
        more = (*_in_ranges(task, own, sample), *_agreements(task, own))
        rows += [{**head, **row, "failed": own.failed} for row in more]
        if not own.outcomes:
            rows.append({**head, **_named(main_figure(task)), **_NO_VALUE, "seeds": 0, "failed": own.failed})
    return rows


def _named(figure: Figure) -> dict[str, str]:
    return {"figure": figure.name, "kind": figure.kind}


def _figures(task: Task, own: Measured, sample: TaskSample) -> list[tuple[Figure, dict[str, Any]]]:
    """Value, standard deviation over seeds and error of every figure; of rejections survivors, and whether a bound."""
    rows = []
    logits = [outcome.logits for outcome in own.outcomes.values() if outcome.logits is not None]
    for figure in dict.fromkeys(figure for seed in own.figures.values() for figure in seed):
        if figure.kind != "rejection":
            values = np.exp([figures[figure] for figures in own.figures.values()])  # (S, 1 + R)
            std = float(values[:, 0].std(ddof=1)) if len(values) > 1 else None
            error = float(values.mean(axis=0)[1:].std(ddof=1))
            row = _NO_VALUE | {"value": float(values[:, 0].mean()), "std": std, "error": error}
            rows.append((figure, row | {"seeds": len(logits)}))
    for each in discriminants_of(task.class_names, task.discriminants) if logits and task.class_names else ():
        found = [sides(each, outputs, sample.labels) for outputs in logits]
        _, is_signal, used = found[0]
        for efficiency in task.metrics.efficiencies:
            row = mean_rejection([odds for odds, _, _ in found], is_signal, efficiency, sample.weights[used])
            rows.append((Figure("rejection", each.name, efficiency), row | {"seeds": len(logits)}))
    return rows


def _in_ranges(task: Task, own: Measured, sample: TaskSample) -> list[dict[str, Any]]:
    """Resolution and response of a target in the ranges `metrics.bins`; errors are those of one training's jets."""
    if not task.is_regression or not task.metrics.bins or not own.outcomes:
        return []
    assert sample.reference is not None
    target = sample.reference * np.exp(sample.labels)
    each_seed = []
    for outcome in own.outcomes.values():
        assert outcome.logits is not None
        found = np.clip(outcome.logits[:, 0].astype(np.float64), -_LARGEST_LOG, _LARGEST_LOG)
        predicted = sample.reference * np.exp(found)
        each_seed.append(regression_figures(predicted, target, task.metrics.bins, sample.weights)["bins"])
    rows = []
    for place, span in enumerate(each_seed[0]):
        for kind in ("resolution", "response"):
            figure = Figure(kind, f"{span['low']:g}-{span['high']:g}")
            row = _NO_VALUE
            if span[kind] is not None:  # the same jets, so the same of all seeds
                values = np.array([seed[place][kind] for seed in each_seed])
                errors = [seed[place][f"{kind}_error"] for seed in each_seed]
                std = float(values.std(ddof=1)) if len(values) > 1 else None
                row = row | {"value": float(values.mean()), "std": std, "error": float(np.mean(errors))}
            rows.append({**_named(figure), **row, "seeds": len(each_seed), **_cost(own)})
    return rows


def _agreements(task: Task, own: Measured) -> list[dict[str, Any]]:
    """Ratios of the figures of two discriminants that have to agree, of the same trainings and bootstrap samples."""
    rows: list[dict[str, Any]] = []
    kinds = [Figure("AUC"), *(Figure("rejection", "", efficiency) for efficiency in task.metrics.efficiencies)]
    for one, other in task.agree:
        for kind in kinds:
            pair = kind._replace(of=one), kind._replace(of=other)
            if not own.figures or any(figure not in seed for seed in own.figures.values() for figure in pair):
                continue
            found = gain(*(np.stack([seed[figure] for seed in own.figures.values()]) for figure in pair))
            row = {"figure": f"agreement {kind.short} {one} / {other}", "kind": "agreement", **_NO_VALUE}
            row["seeds"] = len(own.figures)
            if found is None:
                row["verdict"] = "bound"
            else:
                verdict = "agree" if found.p >= LEVEL else "one seed" if found.verdict == "one seed" else "differ"
                row |= {"value": 1 + found.value, "error": found.error, "p": found.p, "verdict": verdict}
            rows.append(row)
    return rows


def baseline_rows(task: Task, sample: TaskSample, replicas: int) -> list[dict[str, Any]]:
    """What single quantities of the jet reach, in the discriminants that they stand for."""
    rows: list[dict[str, Any]] = []
    for name, scores in sample.baselines.items():
        for each in discriminants_of(task.class_names, task.baselines[name].compare):
            used = np.isin(sample.labels, [*each.signal, *each.background])
            is_signal, values = np.isin(sample.labels[used], each.signal), scores[used]
            head = {"task": task.name, "backbone": "", "method": f"baseline: {name}", "token": "", "size": 0.0}
            curve = areas(values, is_signal, _counts(sample, replicas)[:, used])
            area = {"value": float(curve[0]), "error": float(curve[1:].std(ddof=1)), "seeds": 1}
            rows.append({**head, **_named(Figure("AUC", each.name)), **_NO_VALUE, **area})
            for efficiency in task.metrics.efficiencies:
                row = mean_rejection([values], is_signal, efficiency, sample.weights[used])
                rows.append({**head, **_named(Figure("rejection", each.name, efficiency)), **row, "seeds": 1})
    return rows


def _cost(own: Measured) -> dict[str, Any]:
    """Training jets, and mean time and speed of a trial."""
    records = [outcome.record for outcome in own.outcomes.values()]
    mean = {
        name: float(np.mean(values)) if (values := [each[name] for each in records if name in each]) else None
        for name in ("train_jets", "seconds", "jets_per_s")
    }
    return mean | {"train_jets": None if mean["train_jets"] is None else round(mean["train_jets"])}


def _counterpart(variant: Variant, reference: str, measured: Mapping[Variant, Measured]) -> Variant | None:
    """What a variant is held against: the reference's with the same method and size."""
    if not variant.backbone or variant.backbone == reference:
        return None
    same = variant._replace(backbone=reference)
    if same in measured:
        return same
    others = [each for each in measured if each._replace(token=variant.token) == same]
    return others[0] if others else None


def _gain(own: Measured, other: Measured, figure: Figure) -> dict[str, Any]:
    """Columns of the gain in a figure over the seeds that both have; empty ones without such seeds, and where they
    are the same trainings, those of one architecture from random weights."""
    seeds = [seed for seed in own.figures if figure in own.figures[seed] and figure in other.figures.get(seed, {})]
    if not seeds or any(own.outcomes[seed].trial.key == other.outcomes[seed].trial.key != "" for seed in seeds):
        return dict.fromkeys(("gain", "gain_error", "p", "verdict"))
    mine, theirs = (np.stack([side.figures[seed][figure] for seed in seeds]) for side in (own, other))
    methods = {outcome.trial.method for outcome in own.outcomes.values()}
    return gain_columns(gain(figure.sign * mine, figure.sign * theirs, repeatable=methods == {MODEL_SCORES}))


def gain_columns(found: Gain | None) -> dict[str, Any]:
    """A gain as columns of a row; None is one that a bound takes away."""
    if found is None:
        return {"gain": None, "gain_error": None, "p": None, "verdict": "bound"}
    return {"gain": found.value, "gain_error": found.error, "p": found.p, "verdict": found.verdict}
