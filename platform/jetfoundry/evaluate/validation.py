"""The figures of one evaluated sample, ready for `summary.json`: plain numbers, None where a number does not exist.

Cuts are made on the log-odds of a discriminant, which rank the jets as the discriminant does but do not saturate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry import config
from jetfoundry.errors import ConfigError, InputError
from jetfoundry.evaluate import metrics
from jetfoundry.evaluate.discriminants import Discriminant, group_outputs, parse

__all__ = ["EvaluationConfig", "discriminants_of", "evaluate_scores"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Which figures to compute from the scores of a sample."""

    discriminants: tuple[str, ...] = config.option(
        (), "discriminants 'A vs B'; none = 'X_bb vs QCD' where the model has these classes, first vs second of two"
    )
    efficiencies: tuple[float, ...] = config.option((0.3, 0.5), "signal efficiencies at which rejections are given")
    pt_edges: tuple[float, ...] = config.option(
        (200.0, 400.0, 600.0, 1000.0, 2500.0), "edges of the jet_pt ranges in which figures are repeated [GeV]"
    )

    def __post_init__(self) -> None:
        if not all(0 < efficiency < 1 for efficiency in self.efficiencies):
            msg = f"efficiencies {self.efficiencies}: wanted numbers between 0 and 1"
            raise ValueError(msg)
        if list(self.pt_edges) != sorted(set(self.pt_edges)):
            msg = f"pt_edges {self.pt_edges}: wanted rising numbers"
            raise ValueError(msg)


def discriminants_of(classes: Sequence[str], wanted: Sequence[str] = ()) -> list[Discriminant]:
    """The discriminants of `EvaluationConfig.discriminants` for a model's class list.

    Call it before a long job: it raises ConfigError for names that the model does not have.
    """
    if wanted:
        return [parse(text, classes) for text in wanted]
    if len(classes) == 2:
        return [Discriminant(f"{classes[0]} vs {classes[1]}", (0,), (1,), (1.0,))]
    try:
        return [parse("X_bb vs QCD", classes)]
    except ConfigError:  # a model of other classes: nothing was asked for, nothing is missing
        return []


def evaluate_scores(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    classes: Sequence[str],
    observers: Mapping[str, npt.ArrayLike] | None = None,
    options: EvaluationConfig | None = None,
) -> dict[str, Any]:
    """Accuracy, loss and the figures of each discriminant from logits (B, C) and output indices (B,).

    Jets with label -1 (classes that the label scheme drops) are counted and left out. With `jet_pt` (B,) [GeV] among
    the observers, the figures of the discriminants are repeated in ranges of pT, each with its own threshold.
    Thresholds are in log-odds. Every number is JSON-safe; figures of classes without jets are None.
    """
    options = options or EvaluationConfig()
    scores, truth = np.asarray(logits), np.asarray(labels).astype(np.int64)
    if scores.ndim != 2 or scores.shape != (len(truth), len(classes)):
        msg = f"logits: wanted shape ({len(truth)}, {len(classes)}) for {len(classes)} classes, got {scores.shape}"
        raise InputError(msg)
    kept = truth >= 0
    jet_pt = None if observers is None or "jet_pt" not in observers else np.asarray(observers["jet_pt"])
    if jet_pt is not None:
        if jet_pt.shape != truth.shape:
            msg = f"observer jet_pt: wanted {len(truth)} values, got shape {jet_pt.shape}"
            raise InputError(msg)
        jet_pt = jet_pt[kept]
    scores, truth = scores[kept], truth[kept]
    _, group = group_outputs(classes)
    figures = {
        "jets": len(truth),
        "jets_without_class": int((~kept).sum()),
        "classes": len(classes),
        "classes_with_jets": len(np.unique(truth)),
        "accuracy": metrics.accuracy(scores, truth),
        "balanced_accuracy": metrics.balanced_accuracy(scores, truth),
        "group_accuracy": float((group[scores.argmax(axis=1)] == group[truth]).mean()) if len(truth) else math.nan,
        "loss": metrics.cross_entropy(scores, truth),
        "bound_confidence": metrics.CONFIDENCE,
        "discriminants": {
            found.name: _discriminant_figures(found, scores, truth, jet_pt, options)
            for found in discriminants_of(classes, options.discriminants)
        },
    }
    safe: dict[str, Any] = _json_safe(figures)
    return safe


def _discriminant_figures(
    found: Discriminant,
    logits: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    jet_pt: npt.NDArray[Any] | None,
    options: EvaluationConfig,
) -> dict[str, Any]:
    is_signal = np.isin(labels, found.signal)
    used = is_signal | np.isin(labels, found.background)
    odds, is_signal = found.log_odds(logits[used]), is_signal[used]
    figures = _binary_figures(odds, is_signal, options.efficiencies)
    if jet_pt is not None:
        ranges = []
        for low, high in zip(options.pt_edges[:-1], options.pt_edges[1:], strict=True):
            inside = (jet_pt[used] >= low) & (jet_pt[used] < high)
            part = _binary_figures(odds[inside], is_signal[inside], options.efficiencies)
            ranges.append({"jet_pt_min": low, "jet_pt_max": high, **part})
        figures["jet_pt_ranges"] = ranges
    return figures


def _binary_figures(
    odds: npt.NDArray[Any], is_signal: npt.NDArray[np.bool_], efficiencies: Sequence[float]
) -> dict[str, Any]:
    return {
        "signal_jets": int(is_signal.sum()),
        "background_jets": int((~is_signal).sum()),
        "auc": metrics.auc(odds, is_signal),
        "rejections": [metrics.rejection(odds, is_signal, efficiency)._asdict() for efficiency in efficiencies],
    }


def _json_safe(value: Any) -> Any:
    """`value` with NaN replaced by None; JSON has neither NaN nor infinity."""
    if isinstance(value, dict):
        return {key: _json_safe(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
