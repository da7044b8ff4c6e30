"""The result of a comparison as a page for the repository: Markdown, one JSON with every figure, small images.

The page says on which machine, jets, seeds and commit its figures rest, and what they cannot say. Its verdicts are made
from the figures: two methods differ where the logarithm of their rejections' ratio is two standard errors from zero.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jetfoundry import files, runs
from jetfoundry.downstream.comparison import Compared, ComparisonConfig, Training
from jetfoundry.evaluate import comparison_plots, plots
from jetfoundry.evaluate.comparison import mean_roc
from jetfoundry.evaluate.tables import Rows, cell_texts, columns, format_rejection
from jetfoundry.train.recipe import Recipe

__all__ = ["markdown_table", "result_rows", "write_results"]

_STANDARD_ERRORS = 2.0  # from here on two methods are called different
_DPI = 110
_PUBLISHED_JETS = 80 * 10_240_000  # epochs x jets of Sophon (arXiv:2405.12972)


def write_results(
    options: ComparisonConfig, trainings: Sequence[Training], compared: Compared, hardware: Mapping[str, Any]
) -> Path:
    """Write `<output>.md`, `<output>.json` and `<output>_….png`; returns the page."""
    page = files.place(f"{options.output}.md")
    provenance = runs.provenance()
    record = compared.figures | {"hardware": dict(hardware), "provenance": provenance}
    files.write_json(page.with_suffix(".json"), record)
    sample = compared.figures["jets"]["sample"]
    for name, figure in _figures(options, compared, sample).items():
        with files.committed(page.with_name(f"{page.stem}_{name}.png")) as temporary:
            temporary.write_bytes(plots.png(figure, dpi=_DPI))
    origin = _origin(compared.figures, hardware, provenance)
    files.write_text(page, _page(options, trainings[0].recipe, compared.figures, origin, page.stem))
    return page


def _figures(options: ComparisonConfig, compared: Compared, sample: str) -> dict[str, Any]:
    curves = {name: mean_roc(values, compared.jets.is_signal) for name, values in compared.scores.items()}
    background = int((~compared.jets.is_signal).sum())
    expected = (options.expected_signal, options.expected_background)
    present = np.flatnonzero(compared.confusion.sum(axis=0) + compared.confusion.sum(axis=1))
    signal, against = options.compare.split(" vs ")
    return {
        "rejection": comparison_plots.rejections(curves, background, sample, signal, against),
        "significance": comparison_plots.significances(curves, background, expected, sample),
        "learning": comparison_plots.learning_bands(compared.metrics, options.compare, sample),
        "confusion": plots.confusion(
            compared.confusion[np.ix_(present, present)], [compared.groups[int(i)] for i in present], sample
        ),
    }


def result_rows(figures: Mapping[str, Any]) -> Rows:
    """One row per method: AUC, rejections with the error of one training and of the test jets, mass dependence."""
    rows = []
    for name, method in figures["methods"].items():
        runs_of = figures["networks"].get(name, [])
        row: dict[str, Any] = {"method": name, "AUC": _pair(method["auc"]["value"], method["auc"], 4)}
        for point in method["rejections"]:
            row[f"rejection at {point['efficiency']:.0%}"] = _rejection(point)
        point = method["matched"][-1]
        row[f"at {point['efficiency']:.0%}, same mass and pT"] = _rejection(point)
        last = method["sculpting"][-1]
        row[f"mass shape at {last['efficiency']:.0%} [bits]"] = last["divergence"]
        row["parameters"] = f"{runs_of[0]['parameters']:,}" if runs_of else None
        row["accuracy, own classes"] = float(np.mean([run["test_accuracy"] for run in runs_of])) if runs_of else None
        row["training [jets/s]"] = float(np.mean([run["jets_per_s"] for run in runs_of])) if runs_of else None
        rows.append(row)
    return rows


def _rejection(point: Mapping[str, Any]) -> str:
    if point["rejection"] is None or point["is_lower_bound"]:
        return format_rejection(point)
    smallest = min(error for error in (point["seeds"], point["test"], point["rejection"]) if error)
    return _pair(point["rejection"], point, 0 if smallest >= 1 else 1)


def _pair(value: float, errors: Mapping[str, float | None], digits: int) -> str:
    """`value ± seeds ± test`; a dash for the seeds' error where there is one seed."""
    shown = ["–" if errors[key] is None else f"{errors[key]:.{digits}f}" for key in ("seeds", "test")]
    return f"{value:.{digits}f} ± {shown[0]} ± {shown[1]}"


def _ratio_rows(figures: Mapping[str, Any]) -> Rows:
    return [
        {"rejection of": row["first"], "over that of": row["second"], "at": f"{row['efficiency']:.0%}",
         "ratio": "–" if row["ratio"] is None else f"{row['ratio']:.2f} ± {row['error']:.2f}", "verdict": _verdict(row)}
        for row in figures["ratios"]
    ]  # fmt: skip


def _verdict(row: Mapping[str, Any]) -> str:
    if row["ratio"] is None:
        return "too few background jets left"
    away = math.log(row["ratio"]) * row["ratio"] / row["error"]
    if abs(away) < _STANDARD_ERRORS:
        return "no difference seen"
    return "first is better" if away > 0 else "second is better"


def _mass_rows(figures: Mapping[str, Any], efficiency: float) -> Rows:
    rows = []
    for name, method in figures["methods"].items():
        row: dict[str, Any] = {"method": name}
        for part in method["mass_ranges"]:
            point = next(point for point in part["rejections"] if point["efficiency"] == efficiency)
            row[f"{part['sdmass_min']:g}–{part['sdmass_max']:g} GeV"] = _rejection(point)
        rows.append(row)
    return rows


def markdown_table(rows: Rows) -> str:
    """Rows as a Markdown table.

    >>> print(markdown_table([{"a": 1, "b": None}]))
    | a | b |
    | --- | --- |
    | 1 | – |
    """
    names = columns(rows)
    lines = [names, ["---"] * len(names), *cell_texts(rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _origin(figures: Mapping[str, Any], hardware: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    commits = sorted({runs.short_commit(run["git_commit"]) for seeds in figures["networks"].values() for run in seeds})
    versions = ", ".join(f"{name} {provenance['versions'][name]}" for name in ("torch", "scikit-learn", "pythia8mc")
                         if name in provenance["versions"])  # fmt: skip
    seeds = ", ".join(map(str, figures["seeds"]))
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"{today}, {hardware['processor']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB, no GPU. "
        f"{versions}. Trained at commit {', '.join(commits)}, compared at "
        f"{runs.short_commit(provenance['git_commit'])}. "
        f"Seeds {seeds}. Jets: {figures['jets']['sample']}, content {figures['jets']['manifest_hash'][:12]}."
    )


def _page(options: ComparisonConfig, recipe: Recipe, figures: Mapping[str, Any], origin: str, stem: str) -> str:
    jets, train = figures["jets"], recipe.train
    steps = figures["networks"][next(iter(figures["networks"]))][0]["jets_per_epoch"]
    efficiency = options.efficiencies[-1]
    batch, optim = recipe.loader.batch_size * recipe.workers.num_workers, train.optim
    learning = f"batches of {batch}, {optim.name}, {optim.schedule}, learning rate {optim.lr:g}"
    share = train.epochs * steps / _PUBLISHED_JETS
    signal, background = options.compare.split(" vs ")
    bits = next(iter(figures["methods"].values()))["sculpting"][-1]["efficiency"]
    return f"""# {options.compare} on simulated jets: networks and baselines with one budget

{origin}

All jets are simulated (Pythia 8 and a parametrised detector); none is of JetClass-II or of an experiment. All
figures, of every seed: [{stem}.json]({stem}.json). To repeat: `python jobs/compare.py jobs/recipes/comparison.yaml`.

## What was done

{jets["train"]["all"]:,} jets to train on ({jets["train"]["signal"]:,} {signal}, {jets["train"]["background"]:,}
{background}), {jets["val"]:,} to choose the epoch, {jets["test"]["all"]:,} to test, of which
{jets["test"]["signal"]:,} {signal} and {jets["test"]["background"]:,} {background} give the figures. Every network had
{train.epochs} epochs of {steps:,} jets, drawn from the classes that it knows ({learning}), and
was taken at its best epoch by `{recipe.checkpoints.metric}`. Classes are drawn by `sampling.balance:
{recipe.sampling.balance}`; the baselines have the same as weights. Two numbers follow each ±: the standard deviation of
one training over the seeds, and what the number of test jets leaves open (bootstrap, {options.replicas} samples).

## Result

{markdown_table(result_rows(figures))}

"Same mass and pT": the background is weighted to the signal's distribution of both, so that knowing them does not help.
"Mass shape": Jensen-Shannon divergence between the background's soft-drop mass before and after the cut at {bits:.0%}
signal efficiency, in bins of 20 GeV; 0 = unchanged.

{markdown_table(_ratio_rows(figures))}

The published order is ParT with 188 classes ≥ with 42 ≥ two classes > ParticleNet with two. A ratio's error is that of
the means over the seeds and of the test jets, which both methods share. The spread of so few seeds
({len(options.seeds)}) is itself known to a factor of two at best.

![Rejection]({stem}_rejection.png)

Background rejection against signal efficiency: mean of the seeds, band from the worst to the best; dotted with fewer
than ten background jets.

Rejection at {efficiency:.0%} in ranges of the soft-drop mass, each with its own threshold:

{markdown_table(_mass_rows(figures, efficiency))}

![Significance]({stem}_significance.png)

Median discovery significance of a counting experiment with {options.expected_signal:,.0f} signal jets on
{options.expected_background:,.0f} background jets before the cut, background known exactly.

## Learning

![Learning curves]({stem}_learning.png)

The training loss is that of the jets as they are drawn, the validation loss that of the jets as they lie, so the two
differ from the beginning. Group accuracy of the first network on the test jets: {figures["group_accuracy"]:.3f}.

![Confusion of groups]({stem}_confusion.png)

## What this does not show

* The jets are simulated by this project, with fewer kinds of background than an analysis has: {background} alone, no
  W, Z, top or Higgs. The signal is {signal} of all masses from 20 to 500 GeV, not one resonance.
* Drawing flat in (pT, mass), as Sophon is trained, would leave this sample too few jets; all methods were trained on
  the spectra as simulated and know mass and pT. The column with the same mass and pT says what is left without them.
* The budget is minutes on two cores, {share:.1g} of the published {_PUBLISHED_JETS:,} jets, and the networks are
  small. An order found here says nothing about that of long trainings of large networks.
* One split into training and test jets, one set of hyper-parameters, none tuned for a method.
"""
