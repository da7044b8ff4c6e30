"""The report of a transfer: who wins where, in one minute; then every task in full.

With recipes the first table, `overview`, has a row for each task and a column for each method; a cell says whether the
way of pre-training is better, worse or no different from noise. `matrix` is the same by backbone: a row for each task
and method, a column for each backbone, at the largest size. Everything that is left out here stands in `table.csv`.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jetfoundry import files
from jetfoundry.downstream.recipes import method_name, percent
from jetfoundry.evaluate.figures import Figure
from jetfoundry.evaluate.gains import LEVEL
from jetfoundry.evaluate.report import Section, render
from jetfoundry.evaluate.tables import Rows, format_cell, format_rejection

__all__ = [
    "matrix",
    "overview",
    "recipe_table",
    "summary_rows",
    "task_table",
    "transfer_sections",
    "write_transfer_report",
]

_SIGNS = {"better": "▲", "worse": "▼", "noise": "≈", "one seed": "?"}
_NO_BACKBONE = "no backbone"
_WIDE = 3  # with more backbones a cell has room for the sign of a gain only


def write_transfer_report(folder: Path, sample: str) -> Path:
    """Write `<folder>/report.html` from its `summary.json` and plots; returns its path."""
    summary = files.read_json(folder / "summary.json")
    sections = transfer_sections(folder, summary)
    origin = {"manifest_hash": summary["manifest_hash"], **summary["provenance"]}
    files.write_text(folder / "report.html", render(f"Transfer: {folder.resolve().name}", sample, sections, origin))
    return folder / "report.html"


def main_rows(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows with each task's main figure: accuracy, AUC where it has two classes, resolution of a target."""
    return [row for row in summary["table"] if row["figure"] == summary["tasks"][row["task"]]["figure"]]


def _of_largest(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows at the largest share of the training jets, and those of what was not trained."""
    largest = max((row["size"] for row in rows), default=0.0)
    return [row for row in rows if row["size"] in (largest, 0.0)]


def _by_method(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of a task together, in it those of a method, in these those of a class token, then of a size."""
    names = ("task", "method", "token", "size")
    orders = [list(dict.fromkeys(row[name] for row in rows)) for name in names]
    return sorted(rows, key=lambda row: [order.index(row[name]) for order, name in zip(orders, names, strict=True)])


def overview(compared: Sequence[Mapping[str, Any]]) -> Rows:
    """Figure against method: the gain of each recipe over the first in per cent, at the largest size. The figure of a
    task comes first, under the name of its kind, then rejections, then the others."""
    rows = _by_method(_of_largest(compared))
    methods = dict.fromkeys(method_name(row) for row in rows)
    several = len({row["recipe"] for row in rows}) > 1
    lines: dict[tuple[str, ...], dict[str, Any]] = {}
    order = {"rejection": 1, "AUC": 2}
    for row in sorted(rows, key=lambda row: 0 if row["main"] else order.get(row["kind"], 3)):
        head = {"task": row["task"], **({"recipe": row["recipe"]} if several else {})}
        head["figure"] = row["kind"] if row["main"] else row["figure"]
        line = lines.setdefault((row["task"], row["recipe"], row["figure"]), head | dict.fromkeys(methods))
        line[method_name(row)] = _gain_text(row).removesuffix(" %")
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    return _once(sorted(lines.values(), key=lambda line: tasks.index(line["task"])), "task")


def _once(lines: Sequence[dict[str, Any]], *names: str) -> Rows:
    """Lines in which these columns are blank where the first of them is that of the line above."""
    above = ["", *(line[names[0]] for line in lines)]
    return [line | (dict.fromkeys(names, "") if line[names[0]] == shown else {})
            for line, shown in zip(lines, above, strict=False)]  # fmt: skip


def matrix(summary: Mapping[str, Any]) -> Rows:
    """Task and method against backbone, at the largest size; ★ marks the best mean of a task. The task stands in its
    first row only."""
    rows = _by_method(_of_largest(main_rows(summary)))
    best = {}
    for task in summary["tasks"]:
        found = [row for row in rows if row["task"] == task and row["value"] is not None]
        best[task] = max(found, key=lambda row: Figure(row["kind"]).sign * row["value"], default=None)
    names = dict.fromkeys(row["backbone"] for row in rows if row["backbone"])
    columns = [*names, *([_NO_BACKBONE] if any(not row["backbone"] for row in rows) else [])]
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = (row["task"], method_name(row))
        line = lines.setdefault(key, {"task": key[0], "figure": row["kind"], "method": key[1]} | dict.fromkeys(columns))
        verdict = row.get("verdict") or ""
        judged = _gain_text(row) if len(names) <= _WIDE else _SIGNS.get(verdict, "") * (verdict != "one seed")
        text = _value_text(row) + _after(judged)
        line[row["backbone"] or _NO_BACKBONE] = text + (" ★" if row is best[row["task"]] else "")
    return _once(list(lines.values()), "task", "figure")


def _after(text: str) -> str:
    return f"  {text}" if text else ""


def _value_text(row: Mapping[str, Any]) -> str:
    """`0.8123 ± 0.0021`, over seeds."""
    if row["value"] is None:
        return "–" if row["seeds"] else "failed"
    return f"{row['value']:.4f}" + (f" ± {row['std']:.4f}" if row["std"] is not None else "")


def _gain_text(row: Mapping[str, Any]) -> str:
    """`▲ +1.2 ± 0.4 %`; `bound` where there is no gain because a rejection is a lower bound."""
    if row.get("gain") is None:
        return "bound" if row.get("verdict") == "bound" else ""
    return f"{_SIGNS[row['verdict']]} {percent(row)}"


def _numbers(row: Mapping[str, Any], *names: str) -> dict[str, str]:
    """These columns of a row as text, with one number of decimals: four, of a rejection two digits of its error."""
    decimals = 4
    if row["kind"] == "rejection":
        error = row.get("error") or row["std"] or row["value"] or 1.0
        decimals = max(0, 1 - math.floor(math.log10(error)))
    found = {name: row[name] for name in names}
    return {name: "–" if value is None else f"{value:,.{decimals}f}" for name, value in found.items()}


def task_table(rows: Sequence[Mapping[str, Any]], *, named: bool = True) -> Rows:
    """Rows of the table as a person reads them: one for each figure, `named` by it, backbone, method, token and size;
    rows of one figure stand together."""
    order = list(dict.fromkeys(row["figure"] for row in rows))
    lines = []
    for row in sorted(rows, key=lambda row: order.index(row["figure"])):
        line: dict[str, Any] = {"figure": row["figure"]} if named else {}
        line |= {"backbone": row["backbone"] or "–", "method": method_name(row), "training jets": row.get("train_jets")}
        numbers = _numbers(row, "value", "std", "error")
        if row.get("bound"):
            numbers["value"] = format_rejection({"rejection": row["value"], "error": None, "is_lower_bound": True})
        elif not row["seeds"]:
            numbers["value"] = "failed"
        line |= {"value": numbers["value"], "± seeds": numbers["std"], "± jets": numbers["error"]}
        if any(each["kind"] == "rejection" for each in rows):
            line["survivors"] = row.get("survivors")
        line |= {"seeds": row["seeds"]}
        if any(each.get("verdict") for each in rows):
            line |= _judged(row)
        if any(each.get("seconds") for each in rows):
            line |= {"s / trial": row.get("seconds"), "jets/s": row.get("jets_per_s")}
        lines.append(line)
    return lines


def _judged(row: Mapping[str, Any]) -> dict[str, Any]:
    """Gain, chance of noise and verdict of a row."""
    verdict = row.get("verdict")
    gain = None if row.get("gain") is None else percent(row)
    p = None if row.get("p") is None else f"{row['p']:.2g}"
    return {"gain": gain, "p": p, "verdict": f"{_SIGNS.get(verdict, '')} {verdict}".strip() if verdict else None}


def recipe_table(rows: Sequence[Mapping[str, Any]]) -> Rows:
    """Rows of recipes as a person reads them; a rejection that is a bound has no value."""
    lines = []
    for row in _by_method(rows):
        line = {"task": row["task"], "figure": row["kind"] if row["main"] else row["figure"]}
        line |= {"method": method_name(row), "training jets": row["train_jets"], "recipe": row["recipe"]}
        for name, part in (("reference's value", "reference_"), ("recipe's value", "")):
            numbers = _numbers({**row, "error": row[f"{part}std"]}, f"{part}value", f"{part}std")
            line[name] = " ± ".join(text for text in numbers.values() if text != "–") or "–"
        lines.append(line | {"backbones": f"{row['backbones']}, {row['reference_backbones']}"} | _judged(row))
    return lines


def transfer_sections(folder: Path, summary: Mapping[str, Any]) -> list[Section]:
    """All sections of the report."""
    compared = [row for row in main_rows(summary) if row.get("verdict") in ("better", "worse", "noise")]
    text = (
        "The main figure of each task, mean and standard deviation over seeds; ★ is the best of a task. Against the "
        "first backbone, method by method: ▲ better, ▼ worse, ≈ no more than noise, ? one seed, from which the scatter "
        "of trainings cannot be told. A gain is relative, above 0 is better; its error joins the scatter over seeds, "
        "paired, and the bootstrap of the evaluation jets, of which all networks see the same.\n\n"
    )
    if compared:
        text += (
            f"{len(compared)} comparisons are made here, each at {LEVEL:.0%}: chance alone would call "
            f"{format_cell(LEVEL * len(compared))} of them a difference. They are about these backbones; a way of "
            "pre-training is compared by several backbones each, see recipes."
        )
    sections = [*_recipe_sections(summary)]
    sections.insert(1 if sections else 0, Section("Who wins", text, matrix(summary)))
    if ratios := [row for row in summary["table"] if row["kind"] == "agreement"]:
        sections.append(_agreement_section(ratios))
    if failed := [row for row in summary["trials"] if "error" in row]:
        names = ("task", "backbone", "method", "token", "size", "seed", "error")
        text = "These trials failed and are in no mean; the same command tries them again."
        sections.append(Section("Failed trials", text, [{name: row[name] for name in names} for row in failed]))
    for name in summary["tasks"]:
        sections += _task_sections(folder, summary, name)
    return [*sections, *_cost_sections(summary)]


def _recipe_sections(summary: Mapping[str, Any]) -> list[Section]:
    """Which way to pre-train is better: in short, and in full."""
    rows = summary["recipes"]
    if not rows:
        return []
    reference = rows[0]["reference"]
    text = (
        f"{summary['recipes_verdict']}\n\nGains over {reference} [%] in each task's main figure, at the largest "
        "training share: ▲ better, ▼ worse, ≈ no more than noise, ? one backbone a side. Above 0 is better."
    )
    full = (
        f"The same with the other figures: gains over {reference} [%] of backbones that repeat one pre-training, taken "
        "together; the scatter between them, and the bootstrap of the evaluation jets, are in the error. There is no "
        "gain (bound) where a rejection is a lower bound in one of the trainings."
    )
    values = [row for row in rows if row["main"]] + _of_largest([row for row in rows if not row["main"]])
    folded = f"Values, mean and standard deviation over backbones, main figures at all sizes: {len(values)} rows"
    return [
        Section("Which pre-training", text, overview([row for row in rows if row["main"]])),
        Section("Recipes", full, overview(rows)),
        Section("", "", recipe_table(values), folded=folded),
    ]


def _agreement_section(rows: Sequence[Mapping[str, Any]]) -> Section:
    """Of the largest size: a row for each backbone and method, a column for each ratio."""
    shown = _of_largest(rows)
    number = collections.Counter(row["verdict"] for row in shown)
    text = (
        "Figures that a symmetry makes equal (CP: W⁺ and W⁻ against QCD), one over the other, of the same trainings "
        f"and bootstrap samples. Of {len(shown)} ratios {number['agree']} agree within errors, {number['differ']} "
        f"differ at the {LEVEL:.0%} level, {number['one seed']} are of one training and off by more than its jets "
        f"allow, and {number['bound']} have a rejection that is a lower bound. If all were equal, chance alone would "
        f"call about {format_cell(LEVEL * (len(shown) - number['bound']))} different."
    )
    lines: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in _by_method(shown):
        key = (row["task"], row["backbone"] or _NO_BACKBONE, method_name(row))
        line = lines.setdefault(key, dict(zip(("task", "backbone", "method"), key, strict=True)))
        ratio = "" if row["value"] is None else f"{row['value']:.3f} ± {row['error']:.3f} "
        line[row["figure"].removeprefix("agreement ")] = ratio + row["verdict"]
    return Section("Agreement", text, list(lines.values()))


def _task_sections(folder: Path, summary: Mapping[str, Any], name: str) -> list[Section]:
    """A task in full: its main figure at all sizes, the others at the largest."""
    task = summary["tasks"][name]
    pictures = [*sorted(folder.glob(f"plots/jets_{name}.png")), *sorted(folder.glob(f"plots/roc_{name}_[0-9]*.png"))]
    figures = [(_caption(path), path.read_bytes()) for path in pictures]
    rows = _by_method([row for row in summary["table"] if row["task"] == name and row["kind"] != "agreement"])
    main = [row for row in rows if row["figure"] == task["figure"]]
    others = [row for row in _of_largest(rows) if row["figure"] != task["figure"]]
    jets = "; ".join(f"{split}: {_counted(counts)}" for split, counts in summary["jets"][name].items())
    what = f"Classes: {', '.join(task['classes'])}." if task["classes"] else "A target, no classes."
    text = (
        f"{task['title']}. Jets of {jets}. {what}\n\nMain figure: {task['figure']}. Standard deviation over seeds; "
        "error of the evaluation jets by bootstrap, of a rejection the binomial one. Where fewer than 10 background "
        "jets survive in one of the trainings, a rejection is a lower bound and has no gain."
    )
    sections = [Section(name, text, task_table(main, named=False), figures)]
    if others:
        folded = f"{name}: rejections and other figures, {len(others)} rows"
        sections.append(Section("", "", task_table(others), folded=folded))
    return sections


def _counted(counts: Mapping[str, int]) -> str:
    """`1,000 jets, 400 selected, 400 taken`."""
    return ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in counts.items())


def _caption(path: Path) -> str:
    if path.stem.startswith("jets_"):
        return "The main figure against the number of training jets; bars: standard deviation over seeds or backbones."
    return "ROC curves, first seed. Dotted: fewer than 10 background jets survive."


def _cost_sections(summary: Mapping[str, Any]) -> list[Section]:
    rows = [{"part": part, "wall time [s]": seconds} for part, seconds in summary["seconds"].items()]
    rows += [{"part": f"trials: {m}, sum of their own times", "wall time [s]": s}
             for m, s in summary["seconds_of_trials"].items()]  # fmt: skip
    text = f"{summary['trials_run']} trials were run, {summary['trials_found']} were there from an earlier command."
    return [Section("Time", text, rows), Section("Frozen embeddings", "", summary["embeddings"])]


def summary_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The main figures as lines for the terminal and for a run's short table."""
    lines = []
    for row in main_rows(summary):
        about = ", ".join(filter(None, (row["task"], row["backbone"])))
        share = f" {row['size']:.0%}" if row["size"] not in (0.0, 1.0) else ""
        what = f"{about} {row['method']}{' ' * bool(row['token'])}{row['token']}{share}: {row['kind']}"
        lines.append({"what": what, "value": _value_text(row) + _after(_gain_text(row))})
    return lines
