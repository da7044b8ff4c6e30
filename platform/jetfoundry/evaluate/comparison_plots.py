"""Plots of a comparison of taggers: a line per method, the mean over its seeds, in a band from the worst to the best.

Lines are dotted where fewer than ten background jets survive a cut, on average over the seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jetfoundry.evaluate.comparison import GRID
from jetfoundry.evaluate.metrics import MIN_SURVIVORS, Floats, significance
from jetfoundry.evaluate.plots import COLOURS, finished, styled

__all__ = ["learning_bands", "rejections", "significances"]

Rows = Sequence[Mapping[str, Any]]


def rejections(
    curves: Mapping[str, Floats], background_jets: int, sample: str = "", signal: str = "", background: str = ""
) -> Figure:
    """1 / background efficiency (log) against signal efficiency, from (S, 100) each on `comparison.GRID`."""
    figure = Figure(figsize=(5.6, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, curve) in enumerate(curves.items()):
        seen = np.maximum(curve, 0.5 / background_jets)
        _band(axes, 1 / seen, 1 / seen.mean(axis=0), _enough(curve, background_jets), COLOURS[i], name)
    axes.set_yscale("log")
    axes.set_ylim(1, 4 * background_jets / MIN_SURVIVORS)
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"{signal} efficiency")
    axes.set_ylabel(f"{background} rejection")
    axes.legend(frameon=False, fontsize=9)
    styled(axes, sample)
    return finished(figure)


def significances(
    curves: Mapping[str, Floats], background_jets: int, expected: tuple[float, float], sample: str = ""
) -> Figure:
    """Median discovery significance against signal efficiency for `expected` jets of signal and background in all."""
    figure = Figure(figsize=(5.6, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, curve) in enumerate(curves.items()):
        seen = np.maximum(curve, 0.5 / background_jets)
        z, mean = (significance(expected[0] * GRID, expected[1] * eff).z for eff in (seen, seen.mean(axis=0)))
        _band(axes, z, mean, _enough(curve, background_jets), COLOURS[i], name)
    before = significance(*expected).z
    axes.axhline(float(before), color="0.5", linestyle="--", linewidth=1, label="no tagger")
    axes.set_xlim(0, 1)
    axes.set_ylim(0)
    axes.set_xlabel("signal efficiency")
    axes.set_ylabel("Z")
    axes.legend(frameon=False, fontsize=9)
    styled(axes, sample)
    return finished(figure)


def learning_bands(runs: Mapping[str, Sequence[Rows]], comparison: str, sample: str = "") -> Figure:
    """Validation loss and accuracy of the first network by epoch, and the AUC of `comparison` of all networks.

    `runs` holds the rows of `metrics.jsonl` of every seed.
    """
    figure = Figure(figsize=(13.2, 3.8), layout="constrained")
    first = next(iter(runs))
    panels = {
        "cross-entropy loss [nats]": {("val_loss", f"{first}, validation"): first, ("loss", "training"): first},
        "validation accuracy": {("val_accuracy", first): first},
        f"validation AUC, {comparison}": {(f"val_auc/{comparison}", name): name for name in runs},
    }
    for i, (label, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for number, ((key, title), name) in enumerate(lines.items()):
            epochs, values = _by_epoch(runs[name], key)
            _band(axes, values, values.mean(axis=0), np.ones(len(epochs), bool), COLOURS[number], title, epochs)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.legend(frameon=False, fontsize=9)
        styled(axes, sample if i == 0 else "")
    return finished(figure)


def _by_epoch(seeds: Sequence[Rows], key: str) -> tuple[Floats, Floats]:
    """Epochs (E,) that all seeds have, and the mean of `key` in each of them (S, E): one value for
    validation, those of its steps for training."""
    tables = []
    for rows in seeds:
        found: dict[int, list[float]] = {}
        for row in rows:
            if row.get(key) is not None:
                found.setdefault(int(np.ceil(row["epoch"] - 1e-9)), []).append(row[key])
        tables.append({epoch: float(np.mean(values)) for epoch, values in found.items()})
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    return np.array(shared, np.float64), np.array([[table[epoch] for epoch in shared] for table in tables])


def _enough(curve: Floats, background_jets: int) -> npt.NDArray[np.bool_]:
    return np.asarray(curve.mean(axis=0) * background_jets >= MIN_SURVIVORS)


def _band(
    axes: Axes,
    values: Floats,
    mean: Floats,
    solid: npt.NDArray[np.bool_],
    colour: str,
    name: str,
    x: Floats = GRID,
) -> None:
    """The mean of (S, N) values with the range of the seeds; dotted and without range where not `solid`."""
    low, high = values.min(axis=0), values.max(axis=0)
    axes.fill_between(x, low, high, where=solid.tolist(), color=colour, alpha=0.25, linewidth=0)
    axes.plot(x, np.where(solid, mean, np.nan), color=colour, linewidth=1.6, label=name)
    axes.plot(x, np.where(solid, np.nan, mean), color=colour, linewidth=1.1, linestyle=":")
