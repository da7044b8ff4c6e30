"""The report of a run: one `report.html` without scripts or outside resources, readable in any browser and in print.

A report is a list of typed sections; `render` turns them into a page and escapes every text. `build_report` makes the
sections that any run folder can fill (result, training, figures, configuration) from the files that are there and
puts the caller's own first. The page forbids itself, by a content policy, to load anything.
"""

from __future__ import annotations

import base64
import dataclasses
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jetfoundry import files
from jetfoundry.config import load_yaml
from jetfoundry.errors import InputError
from jetfoundry.evaluate import plots
from jetfoundry.evaluate.tables import Rows, cell_texts, columns, format_cell, format_rejection, is_figure
from jetfoundry.runs import read_metrics

__all__ = ["Section", "build_report", "evaluation_sections", "render", "training_section"]

_PNG = b"\x89PNG\r\n\x1a\n"

_ORIGIN = ("manifest_hash", "model_sha256", "seed")  # keys of summary.json that belong to the provenance

_CAPTIONS = {
    "roc": "Background efficiency against signal efficiency; lower and further right is better. "
    "Dotted: fewer than 10 background jets survive.",
    "discriminant_scores": "Discriminants of signal and background jets, each normalised to one.",
    "confusion_of_class_groups": "Predicted against true group of classes; each row adds up to one. "
    "Grey: no jets of this group in the sample.",
    "class_counts": "Jets of each class in the evaluated sample.",
    "jets_in_eta_phi": "One jet of each of the most frequent classes: constituents around the jet axis; "
    "the dashed circle is the jet's R = 0.8 cone.",
}

_CSS = """
:root { --ink: #1d2733; --soft: #5c6b7a; --line: #dfe5ea; --accent: #1f5f99; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f6f8; color: var(--ink);
       font: 16px/1.55 "Source Sans 3", "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 2.5rem 3rem 3rem; background: #fff; min-height: 100vh;
       border-left: 1px solid var(--line); border-right: 1px solid var(--line); }
header { border-bottom: 3px solid var(--accent); padding-bottom: .9rem; margin-bottom: 1.2rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; }
header p { margin: .35rem 0 0; color: var(--soft); font-size: 1.05rem; }
nav { font-size: .92rem; margin-bottom: .5rem; }
nav a { color: var(--accent); text-decoration: none; margin-right: 1.3rem; white-space: nowrap; }
nav a:hover { text-decoration: underline; }
section { margin-top: 2.2rem; }
h2 { font-size: 1.3rem; margin: 0 0 .5rem; color: var(--accent); }
section > p { max-width: 46rem; margin: .4rem 0 .8rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .93rem; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; border-bottom: 2px solid var(--ink); padding: .3rem .9rem .3rem 0;
     vertical-align: bottom; }
td { border-bottom: 1px solid var(--line); padding: .28rem .9rem .28rem 0; vertical-align: top;
     overflow-wrap: break-word; }
th.n, td.n { text-align: right; padding: .28rem 0 .28rem .9rem; }
td.n { white-space: nowrap; }
th.n + th:not(.n), td.n + td:not(.n) { padding-left: 1.8rem; }
section:not(:has(h2)) { margin-top: .6rem; }
summary { cursor: pointer; color: var(--accent); }
.figures { display: flex; flex-wrap: wrap; gap: 1.2rem 2rem; align-items: flex-start; margin: 1rem 0; }
figure { margin: 0; max-width: 100%; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .9rem; line-height: 1.4; margin-top: .3rem; max-width: 40rem; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: .8rem; color: var(--soft); }
footer h2 { color: var(--soft); font-size: 1.05rem; }
footer table { font-size: .85rem; }
footer td { overflow-wrap: anywhere; }
@media (max-width: 50rem) { main { padding: 1.2rem; border: 0; } }
@media print { body { background: #fff; } main { border: 0; padding: 0; max-width: none; } nav { display: none; }
               figure, tr { break-inside: avoid; } }
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """One heading of a report: paragraphs (separated by blank lines), a table, figures as (caption, PNG bytes).

    Without a title it goes on with the section above. A table that is `folded` shows this text until it is opened."""

    title: str
    text: str = ""
    table: Rows | None = None
    figures: Sequence[tuple[str, bytes]] = ()
    folded: str = ""


def render(title: str, subtitle: str, sections: Sequence[Section], provenance: Mapping[str, Any]) -> str:
    """The whole page. All texts are escaped; `provenance` (nested mappings allowed) closes it as a table."""
    ids = [f"s{i}" for i in range(1, len(sections) + 1)]
    links = "\n".join(f'<a href="#{i}">{_text(s.title)}</a>' for i, s in zip(ids, sections, strict=True) if s.title)
    body = "\n".join(_section(section, i) for i, section in zip(ids, sections, strict=True))
    origin = [{"what": key, "value": str(_inline(value))} for key, value in _flat(provenance)]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<main>
<header><h1>{_text(title)}</h1>{f"<p>{_text(subtitle)}</p>" if subtitle else ""}</header>
{f"<nav>{links}</nav>" if len(sections) > 2 else ""}
{body}
<footer><h2>Where these figures come from</h2>
{_table(origin, header=False) if origin else "<p>No provenance was recorded.</p>"}
</footer>
</main>
</body>
</html>
"""


def _section(section: Section, anchor: str) -> str:
    parts = [f'<section id="{anchor}">', f"<h2>{_text(section.title)}</h2>" if section.title else ""]
    parts += [f"<p>{_text(paragraph)}</p>" for paragraph in section.text.split("\n\n") if paragraph.strip()]
    if section.table:
        table = _table(section.table)
        folded = f"<details><summary>{_text(section.folded)}</summary>\n{table}</details>"
        parts.append(folded if section.folded else table)
    if section.figures:
        parts += ['<div class="figures">', *(_figure(caption, data) for caption, data in section.figures), "</div>"]
    return "\n".join([*parts, "</section>"])


def _figure(caption: str, data: bytes) -> str:
    if not data.startswith(_PNG):
        msg = f"figure {caption!r}: wanted PNG bytes, got {data[:8]!r}"
        raise InputError(msg)
    source = base64.b64encode(data).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{source}" width="{_screen_width(data)}" alt="{_text(caption)}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _screen_width(data: bytes) -> int:
    """Width of a PNG in CSS pixels (96 an inch) from its pixels and its `pHYs` chunk (pixels per metre), if any."""
    pixels, chunk = int.from_bytes(data[16:20], "big"), data.find(b"pHYs", 0, 4096)
    per_metre = int.from_bytes(data[chunk + 4 : chunk + 8], "big") if chunk > 0 else 0
    return round(pixels * 96 / (per_metre * 0.0254)) if per_metre else pixels


def _table(rows: Rows, *, header: bool = True) -> str:
    names = columns(rows)
    kinds = [' class="n"' if header and is_figure([row.get(name) for row in rows]) else "" for name in names]

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}{k}>{_text(c)}</{tag}>" for c, k in zip(cells, kinds, strict=True)) + "</tr>"

    head = f"<thead>{line(names, 'th')}</thead>" if header else ""
    body = "\n".join(line(texts, "td") for texts in cell_texts(rows))
    return f'<div class="scroll"><table>{head}<tbody>\n{body}\n</tbody></table></div>'


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Rows (dotted key, value) of a nested mapping."""
    rows: list[tuple[str, Any]] = []
    for key, value in tree.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return rows


def _inline(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value


def build_report(run_folder: str | Path, sections: Sequence[Section] = (), sample: str = "", title: str = "") -> Path:
    """Write `report.html` into a run folder from `sections` and from what the folder holds; returns its path.

    Read where present: `summary.json` (its `evaluation`, if it is that of `evaluate_scores`, and its `provenance`),
    `metrics.jsonl`, `plots/*.png`, `config.yaml`. `sample` says what the jets are and stands on the plots and below
    the title. Raises InputError for a folder that does not exist or a damaged `summary.json`.
    """
    folder = files.place(run_folder)
    if not folder.is_dir():
        msg = f"{folder}: wanted a run folder, there is none"
        raise InputError(msg)
    summary = files.read_json(folder / "summary.json") if (folder / "summary.json").exists() else {}
    origin = {key: summary.pop(key) for key in _ORIGIN if key in summary} | summary.pop("provenance", {})
    evaluation = summary.pop("evaluation", None)
    found = list(sections)
    if summary:
        rows = [{"figure": key, "value": _inline(value)} for key, value in _flat(summary)]
        found.append(Section("Result", "The figures of this run as its summary.json records them.", rows))
    if evaluation:
        found += evaluation_sections(evaluation)
    if steps := read_metrics(folder / "metrics.jsonl"):
        found.append(training_section(steps, sample))
    if stored := sorted((folder / "plots").glob("*.png")):
        figures = [(_CAPTIONS.get(path.stem, path.stem.replace("_", " ")), path.read_bytes()) for path in stored]
        found.append(Section("Figures", "", None, figures))
    if (folder / "config.yaml").exists():
        options = [
            {"key": key, "value": str(_inline(value))} for key, value in _flat(load_yaml(folder / "config.yaml"))
        ]
        found.append(Section("Configuration", "Every option of this run, defaults included.", options))
    page = render(title or f"Run {folder.resolve().name}", sample, found, origin)
    files.write_text(folder / "report.html", page)
    return folder / "report.html"


def training_section(rows: Sequence[Mapping[str, Any]], sample: str = "") -> Section:
    """Learning curves and the last validations from the rows of `metrics.jsonl`."""
    validations = [
        {
            "epoch": row["epoch"],
            "step": row["step"],
            "validation loss": row["val_loss"],
            "validation accuracy": row.get("val_accuracy"),
            "validation jets": row.get("val_jets"),
        }
        for row in rows
        if row.get("val_loss") is not None
    ]
    text = "Cross-entropy of the training batches and of the validation sample, which the network never trains on. "
    text += "A validation curve that turns up while the training curve still falls means overtraining."
    figure = plots.png(plots.learning_curves(rows, sample))
    return Section("Training", text, validations[-10:] or None, [("Learning curves.", figure)])


def evaluation_sections(evaluation: Mapping[str, Any]) -> list[Section]:
    """Sections for the result of `validation.evaluate_scores`: the classifier, its discriminants, their pT ranges."""
    classes, present = evaluation["classes"], evaluation["classes_with_jets"]
    text = (
        f"Scores of {evaluation['jets']:,} jets over {classes} classes, of which {present} have jets in this sample. "
    )
    text += f"Guessing would give an accuracy of {format_cell(1 / max(classes, 1))} and a loss of ln {classes}. "
    text += "Balanced accuracy weighs each class with jets equally; group accuracy asks only for the right group."
    names = ("accuracy", "balanced_accuracy", "group_accuracy", "loss")
    table = [{"figure": name.replace("_", " "), "value": evaluation[name]} for name in names]
    sections = [Section("Classification", text, table)]
    results = evaluation["discriminants"]
    if results:
        text = "A discriminant D(A vs B) is the summed score of A over that of A and B together. Rejection is the "
        text += "inverse of the background efficiency at a given signal efficiency, with its binomial error; where "
        text += "fewer than 10 background jets survive the cut, a one-sided lower bound stands in its place."
        rows = [{"discriminant": name, **_discriminant_row(figures)} for name, figures in results.items()]
        sections.append(Section("Discriminants", text, rows))
    ranges = [
        {"discriminant": name, "jet pT [GeV]": f"{part['jet_pt_min']:g} to {part['jet_pt_max']:g}"}
        | _discriminant_row(part)
        for name, figures in results.items()
        for part in figures.get("jet_pt_ranges", [])
        if part["signal_jets"] + part["background_jets"]
    ]
    if ranges:
        text = "The same figures in ranges of the jet's transverse momentum, each with its own threshold."
        sections.append(Section("Discriminants by transverse momentum", text, ranges))
    return sections


def _discriminant_row(figures: Mapping[str, Any]) -> dict[str, Any]:
    row = {
        "signal jets": figures["signal_jets"],
        "background jets": figures["background_jets"],
        "AUC": figures["auc"],
    }
    return row | {f"rejection at {p['efficiency']:.0%}": format_rejection(p) for p in figures["rejections"]}
