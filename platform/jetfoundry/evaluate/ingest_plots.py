"""Figures of ingested data: planes of transverse momentum and mass, histograms of network inputs or stored columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from jetfoundry import schema
from jetfoundry.evaluate.plots import COLOURS, finished, styled
from jetfoundry.features.transform import load_data_config
from jetfoundry.labels import CLASSES, FAMILIES

__all__ = ["ColumnGroup", "Families", "columns_of", "families_of", "histograms", "inputs_of", "main_columns", "planes"]

Array = npt.NDArray[Any]

_MAIN = (
    "jet_pt", "jet_eta", "jet_sdmass", "jet_nparticles", "jet_tau1", "jet_tau2", "jet_tau3", "jet_tau4",
    "part_energy", "part_deta", "part_dphi", "part_charge", "part_d0val", "part_d0err", "part_dzval", "part_dzerr",
)  # fmt: skip
_TAIL = 0.002  # of the values lie beyond the range on each side
_BINS = 40
_FEW = 12  # values; up to as many whole numbers get a bar each
_COLOURS = (COLOURS[0], COLOURS[2], COLOURS[3], COLOURS[1], *COLOURS[4:])  # the first three stand apart best
_ACROSS = 5  # panels in a row
_MAPS = 3  # the same of planes
_PEAK, _DECADES = 0.25, 30  # a bin with that share, that much above the lowest: the others need a log scale

Families = Mapping[str, tuple[int, ...]]
"""Name of each kind of jets that is drawn in a colour of its own -> its values of jet_label."""


def families_of(classes: Sequence[str]) -> Families:
    """The families of JetClass-II; of other data the classes, or all as one if there are more than colours."""
    if tuple(classes) == CLASSES:
        return FAMILIES
    if len(classes) <= len(COLOURS):
        return {name: (index,) for index, name in enumerate(classes)}
    return {"all": tuple(range(len(classes)))}


@dataclasses.dataclass(frozen=True)
class ColumnGroup:
    """Values to draw: name -> (values (N,), jet of each (N,)); of each jet (B,) its number among the families."""

    caption: str
    columns: dict[str, tuple[Array, Array]]
    family: Array
    families: Families


def main_columns(names: Sequence[str]) -> list[str]:
    """Stored columns worth a look, of those that are there."""
    return [name for name in _MAIN if name in names]


def columns_of(table: pa.Table, names: Sequence[str], families: Families) -> ColumnGroup:
    """Stored columns of `table` (B rows, with jet_label), lists flattened; energies and momenta in GeV, d0 in mm."""
    units = {column.name: column.unit for column in schema.COLUMNS}
    found = {}
    for name in names:
        column = table.column(name).combine_chunks()
        jet = np.arange(table.num_rows)
        if pa.types.is_list(column.type):
            jet = np.repeat(jet, np.diff(column.offsets.to_numpy()))
            column = column.flatten()
        unit = f" [{units[name]}]" if units.get(name) else ""
        found[name + unit] = (column.to_numpy(zero_copy_only=False).astype(np.float64), jet)
    return ColumnGroup("Stored columns.", found, _numbers(table, families), families)


def inputs_of(
    features: str, families: Families, read: Callable[[list[str]], Iterable[pa.Table]]
) -> tuple[list[ColumnGroup], int]:
    """The inputs of the data YAML `features`, one group each, and the number of selected jets.

    `read` gives tables with the columns it is asked for; they are gone through one by one, and only what is drawn is
    kept. Raises ConfigError or InputError.
    """
    data = load_data_config(features)
    shown: set[Any] = set()
    new: dict[str, list[int]] = {}
    for name, group in data.inputs.items():
        new[name] = [i for i, variable in enumerate(group.variables) if variable not in shown]
        shown.update(group.variables)  # what two inputs share is drawn once
    values: dict[str, list[Array]] = {name: [] for name in new}
    jets: dict[str, list[Array]] = {name: [] for name in new}
    family: list[Array] = []
    number = 0
    for table in read(sorted({*data.input_columns, "jet_label"})):
        found = data.apply(table, training=False, labels=False)
        family.append(_numbers(table, families)[found.rows])
        for name, flat in found.inputs.items():
            values[name].append(flat.values[new[name]])
            jets[name].append(np.repeat(np.arange(number, number + len(found), dtype=np.int32), np.diff(flat.offsets)))
        number += len(found)
    groups = []
    for name, group in data.inputs.items():
        drawn, jet = np.concatenate(values.pop(name), axis=1), np.concatenate(jets.pop(name))
        columns = {group.variables[i].name: (row, jet) for i, row in zip(new[name], drawn, strict=True)}
        groups.append(ColumnGroup(f"Input {name}.", columns, np.concatenate(family), families))
    return groups, number


def _numbers(table: pa.Table, families: Families) -> Array:
    of_label: Array = np.zeros(1 + max(map(max, families.values())), np.int64)
    for number, members in enumerate(families.values()):
        of_label[list(members)] = number
    label: Array = table.column("jet_label").to_numpy()
    return of_label[label]


def planes(
    counts: Mapping[str, Array], pt_edges: Sequence[float], mass_edges: Sequence[float], sample: str = ""
) -> Figure:
    """Jets per bin of jet pT and soft-drop mass [GeV], one map (pT bins, mass bins) per name, on one log scale."""
    rows = -(-len(counts) // _MAPS)
    figure = Figure(figsize=(3.4 * min(len(counts), _MAPS) + 1.0, 3.4 * rows + 0.4), layout="constrained")
    top = max(2, *(int(plane.max()) for plane in counts.values()))
    for i, (name, plane) in enumerate(counts.items()):
        axes = figure.add_subplot(rows, min(len(counts), _MAPS), i + 1)
        shown = np.ma.masked_equal(plane.T, 0)
        image = axes.pcolormesh(pt_edges, mass_edges, shown, norm=LogNorm(1, top), cmap="viridis")
        axes.set_xscale("log")
        axes.set_xticks([200, 500, 1000, 2000], ["200", "500", "1000", "2000"])
        axes.set_xlim(pt_edges[0], pt_edges[-1])
        axes.set_xlabel("jet pT [GeV]" if i + _MAPS >= len(counts) else "")
        axes.set_ylabel("soft-drop mass [GeV]" if i % _MAPS == 0 else "")
        styled(axes, "")
        axes.xaxis.set_minor_formatter(lambda _value, _position: "")
        axes.set_title(f"{name}: {int(plane.sum()):,} jets", loc="left", fontsize=10)
    figure.suptitle(sample, fontsize=9, color="0.25", x=0.05, ha="left")
    figure.colorbar(image, ax=figure.axes, fraction=0.03, pad=0.01).set_label("jets", fontsize=11)
    return finished(figure)


def histograms(group: ColumnGroup, sample: str = "") -> Figure:
    """One panel per column, one normalised histogram per kind of jets; log scale where one bin has nearly all.

    Panels stand at fixed places and have no minor ticks: with dozens of them, fitting and drawing these takes a minute.
    """
    across = min(_ACROSS, len(group.columns))
    rows = -(-len(group.columns) // across)
    height = 2.0 * rows + 0.6
    figure = Figure(figsize=(2.7 * across, height))
    figure.subplots_adjust(0.05, 0.5 / height, 0.99, 1 - 0.5 / height, wspace=0.28, hspace=0.5)
    for i, (name, (values, jet)) in enumerate(group.columns.items()):
        axes = figure.add_subplot(rows, across, i + 1)
        finite = np.isfinite(values)
        edges = _edges(values[finite])
        middle = 0.5 * (edges[1:] + edges[:-1])
        at = np.searchsorted(edges, np.clip(values[finite], middle[0], middle[-1]), side="right") - 1
        cells = group.family[jet[finite]] * len(middle) + at
        counts = np.bincount(cells, minlength=len(group.families) * len(middle)).reshape(-1, len(middle))
        for number, (label, row) in enumerate(zip(group.families, counts, strict=True)):
            if row.any():
                axes.stairs(row / row.sum(), edges, color=_COLOURS[number], linewidth=1.2, label=label)
        filled = counts.sum(axis=0)[counts.any(axis=0)]
        if filled.max(initial=0) > _PEAK * filled.sum() and filled.max() > _DECADES * filled.min():
            axes.set_yscale("log")
            axes.minorticks_off()
        axes.set_title(name, loc="right", fontsize=9)
        axes.tick_params(direction="in", top=True, right=True, labelsize=7)
    legends = [axes.get_legend_handles_labels() for axes in figure.axes]
    longest = max(legends, key=lambda legend: len(legend[0]))
    figure.legend(*longest, loc="lower center", ncols=min(5, len(group.families)), frameon=False, fontsize=9)
    figure.suptitle(sample, fontsize=9, color="0.25", x=0.05, y=1.0, ha="left", va="top")
    return finished(figure)


def _edges(values: Array) -> Array:
    """Bin edges over the bulk of the values; around each where they are a few whole numbers."""
    if not len(values):
        return np.linspace(0, 1, 2)
    whole = np.unique(values[:10_000])
    if len(whole) <= _FEW and np.array_equal(whole, np.rint(whole)):
        return np.arange(values.min() - 0.5, min(values.max(), values.min() + 2 * _FEW) + 1.5)
    low, high = np.quantile(values, (_TAIL, 1 - _TAIL))
    return np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
