"""Plots in the style of the field, as Matplotlib figures that share no state and can be drawn in threads.

Decided here: no pyplot and no rcParams (both are global), so the style is set on every figure as it is finished; all
axes carry a unit; what the jets are (e.g. "simulated (Pythia 8, embedded detector)") stands above each plot.
Colours are the ten of M. Petroff (arXiv:2107.02270), made for colour-vision deficiency.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import mplhep
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.text import Text
from PIL import Image

from jetfoundry.errors import InputError
from jetfoundry.evaluate.metrics import MIN_SURVIVORS, RocCurve, normalise_rows

__all__ = [
    "COLOURS",
    "Constituents",
    "class_counts",
    "confusion",
    "constituents",
    "finished",
    "jets_eta_phi",
    "learning_curves",
    "png",
    "roc",
    "score_distribution",
    "styled",
]

COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip

_LEGEND_INSIDE = 6  # curves
_FONT = ["TeX Gyre Heros", "DejaVu Sans"]  # the first is what the experiments print in; mplhep brings it

_PANELS: dict[str, dict[str, str]] = {
    "cross-entropy loss [nats]": {"loss": "training", "val_loss": "validation"},
    "accuracy": {"val_accuracy": "validation"},
    "contrastive loss [nats]": {"contrastive_loss": "training", "val_contrastive_loss": "validation"},
    "jets that find their particles": {"retrieval": "training", "val_retrieval": "validation"},
}

_PARTICLES = {
    "charged hadron": ("part_isChargedHadron", "o", COLOURS[0]),
    "neutral hadron": ("part_isNeutralHadron", "s", COLOURS[3]),
    "photon": ("part_isPhoton", "o", COLOURS[1]),
    "electron": ("part_isElectron", "^", COLOURS[4]),
    "muon": ("part_isMuon", "v", COLOURS[2]),
}


class Constituents(NamedTuple):
    """The constituents of one jet for display: arrays (P,), pt in GeV, dphi in rad; kind = the particle's type."""

    title: str
    pt: npt.NDArray[Any]
    deta: npt.NDArray[Any]
    dphi: npt.NDArray[Any]
    kind: npt.NDArray[np.str_]


def constituents(jet: Mapping[str, Any], title: str) -> Constituents:
    """Read one row of JetClass-II columns (`part_px`, `part_deta`, `part_isMuon`, …) for `jets_eta_phi`."""
    column = {name: np.asarray(values) for name, values in jet.items() if name.startswith("part_")}
    kind = np.full(len(column["part_px"]), "neutral hadron", dtype="<U14")
    for name, (flag, _, _) in _PARTICLES.items():
        kind[column[flag].astype(bool)] = name
    return Constituents(
        title, np.hypot(column["part_px"], column["part_py"]), column["part_deta"], column["part_dphi"], kind
    )


def learning_curves(rows: Sequence[Mapping[str, Any]], sample: str = "", x: str = "epoch") -> Figure:
    """Loss and accuracy against `x` from the rows of a run's metrics; a row need not hold every key."""
    found = {
        label: {name: _points(rows, x, key) for key, name in series.items() if len(_points(rows, x, key)[0])}
        for label, series in _PANELS.items()
    }
    panels = {label: series for label, series in found.items() if series}
    figure = _figure(4.6 * max(1, len(panels)), 3.6)
    for i, (label, series) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for name, (at, values) in series.items():
            is_validation = name == "validation"
            marker = "o" if is_validation and len(at) <= 100 else ""
            colour = COLOURS[2] if is_validation else COLOURS[0]
            axes.plot(at, values, color=colour, marker=marker, markersize=4, linewidth=1.5, label=name)
        axes.set_xlabel(x)
        axes.set_ylabel(label)
        _legend(axes)
        styled(axes, sample if i == 0 else "")
    return finished(figure)


def learning_rates(rows: Sequence[Mapping[str, float]], suggestion: float, sample: str = "") -> Figure:
    """Loss and its running average against the learning rate of a range test, with the suggested rate."""
    figure = _figure(4.6, 3.6)
    axes = figure.add_subplot()
    for key, name, colour in (("loss", "loss", "0.75"), ("smoothed", "running average", COLOURS[0])):
        axes.plot(*_points(rows, "lr", key), color=colour, linewidth=1.5, label=name)
    axes.axvline(suggestion, color=COLOURS[2], linestyle="--", linewidth=1, label=f"suggested: {suggestion:.1e}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    _legend(axes)
    styled(axes, sample)
    return finished(figure)


def _points(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    pairs = [(row[x], row[y]) for row in rows if row.get(x) is not None and row.get(y) is not None]
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def roc(curves: Mapping[str, RocCurve], sample: str = "", signal: str = "signal", background: str = "") -> Figure:
    """Background efficiency (log) against signal efficiency; dotted where fewer than 10 background jets survive."""
    figure = _figure(5.2, 4.6)
    axes = figure.add_subplot()
    lowest = 1.0
    for i, (name, curve) in enumerate(curves.items()):
        eff_s, eff_b, survivors = _thinned(curve)
        colour, solid = COLOURS[i % len(COLOURS)], survivors >= MIN_SURVIVORS
        drawn = eff_b > 0
        axes.plot(eff_s[solid & drawn], eff_b[solid & drawn], color=colour, linewidth=1.8, label=name)
        axes.plot(eff_s[~solid & drawn], eff_b[~solid & drawn], color=colour, linewidth=1.2, linestyle=":")
        lowest = min([lowest, *eff_b[drawn]])
    axes.set_yscale("log")
    axes.set_xlim(0, 1)
    axes.set_ylim(min(0.5 * lowest, 0.1), 1.5)
    axes.set_xlabel(f"{signal} efficiency")
    axes.set_ylabel(f"{background or 'background'} efficiency")
    _legend(axes)
    styled(axes, sample)
    return finished(figure)


def data_efficiency(
    curves: Mapping[str, Sequence[tuple[float, float, float | None]]], figure_name: str, sample: str = ""
) -> Figure:
    """A figure against the number of training jets (log), from points (jets, value, error or None) by curve."""
    many = len(curves) > _LEGEND_INSIDE
    figure = _figure(8.0 if many else 5.2, 4.6)
    axes = figure.add_subplot()
    for i, (name, points) in enumerate(curves.items()):
        jets, values = (np.array(column, np.float64) for column in list(zip(*points, strict=True))[:2])
        errors = np.array([0.0 if error is None else error for _, _, error in points])
        style = "-" if i < len(COLOURS) else "--"
        colour = COLOURS[i % len(COLOURS)]
        axes.errorbar(
            jets, values, errors, color=colour, linestyle=style, marker="o", markersize=4, capsize=2, label=name
        )
    axes.set_xscale("log")
    axes.set_xlabel("training jets")
    axes.set_ylabel(figure_name)
    _legend(axes, beside=many)
    styled(axes, sample)
    return finished(figure)


def _thinned(curve: RocCurve, points: int = 500) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """At most `points` steps of the curve, even in signal efficiency: a million would only make drawing slow."""
    at = np.searchsorted(curve.signal_efficiency, np.linspace(0, 1, points), side="right") - 1
    at = np.unique(np.clip(at, 0, None)) if len(curve.threshold) else np.empty(0, np.int64)
    return curve.signal_efficiency[at], curve.background_efficiency[at], curve.survivors[at]


def confusion(matrix: npt.ArrayLike, names: Sequence[str], sample: str = "") -> Figure:
    """Row-normalised confusion matrix of counts (G, G); rows of classes without jets stay blank (grey)."""
    fractions, size = normalise_rows(matrix), len(names)
    if fractions.shape != (size, size):
        msg = f"confusion matrix: wanted shape ({size}, {size}) for {size} names, got {fractions.shape}"
        raise InputError(msg)
    side = 3.2 + 0.2 * size
    figure = _figure(side + 0.8, side)
    axes = figure.add_subplot()
    axes.set_facecolor("0.88")
    image = axes.imshow(np.ma.masked_invalid(fractions), cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label("fraction of the true class", fontsize=11)
    if size <= 12:
        for row, column in np.argwhere(np.isfinite(fractions)):
            value = fractions[row, column]
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=_on_blue(value))
    small = 10 if size <= 12 else 7
    axes.set_xticks(range(size), names, rotation=90 if size > 5 else 0, fontsize=small)
    axes.set_yticks(range(size), names, fontsize=small)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted", loc="right", fontsize=12)
    axes.set_ylabel("true", loc="top", fontsize=12)
    axes.set_title(sample, loc="left", fontsize=9, color="0.25")
    return finished(figure)


def _on_blue(value: float) -> str:
    return "white" if value > 0.55 else "black"


def score_distribution(
    scores: Mapping[str, npt.ArrayLike], sample: str = "", xlabel: str = "D(X_bb vs QCD)", bins: int = 40
) -> Figure:
    """Normalised distributions of a discriminant in [0, 1], one step histogram per name, log y."""
    figure = _figure(5.2, 4.2)
    axes = figure.add_subplot()
    edges = np.linspace(0, 1, bins + 1)
    for i, (name, values) in enumerate(scores.items()):
        counts, _ = np.histogram(np.asarray(values, np.float64), bins=edges)
        label = f"{name} ({int(counts.sum()):,} jets)"
        if counts.sum() == 0:  # nothing to normalise, but the legend should say so
            axes.plot([], [], color=COLOURS[i % len(COLOURS)], label=label)
            continue
        fractions = counts / counts.sum()
        mplhep.histplot(fractions, edges, ax=axes, color=COLOURS[i % len(COLOURS)], label=label, flow="none")
    axes.set_yscale("log")
    axes.set_xlim(0, 1)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(f"fraction of jets / {1 / bins:g}")
    _legend(axes)
    styled(axes, sample)
    return finished(figure)


def jets_eta_phi(jets: Sequence[Constituents], sample: str = "", radius: float = 0.8) -> Figure:
    """Jets in (eta, phi) around their axis: a marker per particle, its area proportional to pT, with the jet cone."""
    columns = min(4, max(1, len(jets)))
    rows = max(1, -(-len(jets) // columns))
    figure = _figure(2.25 * columns + 0.3, 2.35 * rows + 0.7)
    for i, jet in enumerate(jets):
        axes = figure.add_subplot(rows, columns, i + 1, aspect="equal")
        axes.add_patch(Circle((0, 0), radius, fill=False, color="0.6", linewidth=1, linestyle="--"))
        for name, (_, marker, colour) in _PARTICLES.items():
            one = jet.kind == name
            # 500 points^2 for a particle that carries the whole jet, at least 4 so that soft ones stay visible.
            area = 4 + 500 * jet.pt[one] / jet.pt.sum()
            axes.scatter(jet.deta[one], jet.dphi[one], s=area, marker=marker, color=colour, alpha=0.65, linewidths=0)
        axes.set_xlim(-1.15 * radius, 1.15 * radius)
        axes.set_ylim(-1.15 * radius, 1.15 * radius)
        axes.set_xticks([-0.5, 0, 0.5])
        axes.set_yticks([-0.5, 0, 0.5])
        axes.set_xlabel(r"$\Delta\eta$" if i + columns >= len(jets) else "")
        axes.set_ylabel(r"$\Delta\phi$ [rad]" if i % columns == 0 else "")
        styled(axes, "")
        axes.set_title(jet.title, fontsize=9)
    handles = [
        Line2D([], [], marker=marker, color=colour, linestyle="", markersize=7, alpha=0.8, label=name)
        for name, (_, marker, colour) in _PARTICLES.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    note = "marker area grows with the particle's pT"
    figure.suptitle(f"{sample}; {note}" if sample else note, fontsize=9, color="0.25")
    return finished(figure)


def class_counts(counts: Mapping[str, int], sample: str = "", per_panel: int = 48) -> Figure:
    """Horizontal bars of the number of jets per class or group, logarithmic; long lists go into several panels."""
    names, values = list(counts), np.array(list(counts.values()), dtype=np.float64)
    panels = max(1, -(-len(names) // per_panel))
    length = -(-len(names) // panels)
    small = 8 if panels == 1 else 6
    figure = _figure(5.6 if panels == 1 else 2.3 * panels, 1.0 + 0.024 * small * length)
    for panel in range(panels):
        part = slice(panel * length, (panel + 1) * length)
        axes = figure.add_subplot(1, panels, panel + 1)
        rows = np.arange(len(values[part]))
        axes.barh(rows, np.maximum(values[part] - 0.5, 0), left=0.5, color=COLOURS[0], height=0.75)
        for row, value in enumerate(values[part]):
            axes.text(max(value, 0.5) * 1.15, row, f"{int(value):,}", va="center", fontsize=small)
        axes.set_xscale("log")
        axes.set_xlim(0.5, 12 * max([1.0, *values]))
        axes.set_yticks(rows, names[part])
        axes.set_ylim(length - 0.4, -0.6)
        axes.set_xlabel("number of jets")
        styled(axes, sample if panel == 0 else "")
        axes.yaxis.minorticks_off()
        axes.tick_params(axis="y", length=0, labelsize=small)
    return finished(figure)


def png(figure: Figure, dpi: int = 192) -> bytes:
    """The figure as PNG bytes with 128 colours (a quarter of the size), by default for screens of double density."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.06)
    image = Image.open(drawn).convert("RGB")
    palette = image.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette.save(small, format="png", optimize=True, dpi=(dpi, dpi))
    return small.getvalue()


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _legend(axes: Axes, *, beside: bool = False) -> None:
    if axes.get_legend_handles_labels()[1]:
        where: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if beside else {}
        axes.legend(frameon=False, fontsize=10, **where)


def styled(axes: Axes, sample: str) -> None:
    """Ticks on all sides pointing inwards, axis labels at the ends, the sample above the frame."""
    axes.minorticks_on()
    axes.tick_params(which="both", direction="in", top=True, right=True, labelsize=10)
    axes.set_xlabel(axes.get_xlabel(), loc="right", fontsize=12)
    axes.set_ylabel(axes.get_ylabel(), loc="top", fontsize=12)
    axes.set_title(sample, loc="left", fontsize=9, color="0.25")


def finished(figure: Figure) -> Figure:
    """The figure with all its text in the fonts of the page."""
    texts = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        axes.tick_params(which="both", labelfontfamily=_FONT)  # findobj would make every tick, drawn or not
        legend = axes.get_legend()
        texts += [child for child in axes.get_children() if isinstance(child, Text)]
        texts += [text for axis in (axes.xaxis, axes.yaxis) for text in (axis.label, axis.offsetText)]
        texts += legend.get_texts() if legend else []
    for text in texts:
        text.set_fontfamily(_FONT)
    return figure
