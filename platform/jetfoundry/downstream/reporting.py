"""What a person looks at: plots of a run, its report with the transfer table and the export, and the short table.

Everything is read back from the run folder, so any job can rebuild the report after adding its part:
`summary.json` (pre-training), `transfer/<task list>/summary.json`, `export.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry import files
from jetfoundry.downstream.embeddings import Embeddings
from jetfoundry.downstream.transfer_report import matrix, summary_rows
from jetfoundry.errors import InputError
from jetfoundry.evaluate import plots
from jetfoundry.evaluate.discriminants import group_outputs
from jetfoundry.evaluate.metrics import RocCurve, confusion_matrix, roc_curve
from jetfoundry.evaluate.report import Section, build_report
from jetfoundry.evaluate.tables import Rows, format_rejection
from jetfoundry.evaluate.validation import discriminants_of

__all__ = ["evaluation_plots", "result_table", "write_report"]

_SHOWN_JETS = 8


def evaluation_plots(
    run: Path,
    scored: Embeddings,
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
    wanted: Sequence[str],
    sample: str,
) -> None:
    """Write ROC, scores, group confusion, class counts and a few jets in (eta, phi) to `<run>/plots/`."""
    kept = labels >= 0
    logits, truth = scored.logits[kept], labels[kept]
    curves: dict[str, RocCurve] = {}
    scores: dict[str, npt.NDArray[Any]] = {}
    for found in discriminants_of(classes, wanted):
        used = np.isin(truth, [*found.signal, *found.background])
        is_signal = np.isin(truth[used], found.signal)
        curves[found.name] = roc_curve(found.log_odds(logits[used]), is_signal)
        value = found(logits[used])
        scores |= {f"{found.name}: signal": value[is_signal], f"{found.name}: background": value[~is_signal]}
    groups, group_of = group_outputs(classes)
    matrix = confusion_matrix(group_of[truth], group_of[logits.argmax(axis=1)], len(groups))
    present = np.flatnonzero(matrix.sum(axis=0) + matrix.sum(axis=1))
    counts = np.bincount(truth, minlength=len(classes))
    figures = {
        "roc": plots.roc(curves, sample),
        "discriminant_scores": plots.score_distribution(scores, sample, "discriminant"),
        "confusion_of_class_groups": plots.confusion(
            matrix[np.ix_(present, present)], [groups[int(i)] for i in present], sample
        ),
        "class_counts": plots.class_counts({classes[int(i)]: int(counts[i]) for i in np.flatnonzero(counts)}, sample),
    }
    jets = _some_jets(scored, kept, truth, classes)
    if jets:
        figures["jets_in_eta_phi"] = plots.jets_eta_phi(jets, sample)
    for name, figure in figures.items():
        with files.committed(run / "plots" / f"{name}.png") as temporary:
            temporary.write_bytes(plots.png(figure, dpi=144))


def _some_jets(
    scored: Embeddings, kept: npt.NDArray[np.bool_], truth: npt.NDArray[np.int64], classes: Sequence[str]
) -> list[plots.Constituents]:
    """The first jet of each of the most frequent classes; none if the jets have not the columns to draw them."""
    frequent = np.argsort(-np.bincount(truth, minlength=len(classes)), kind="stable")[:_SHOWN_JETS]
    names = ["part_px", "part_py", "part_deta", "part_dphi", "jet_pt"]
    names += [f"part_is{kind}" for kind in ("Electron", "Muon", "Photon", "ChargedHadron", "NeutralHadron")]
    try:
        table = scored.columns(names)
    except InputError:  # flat ntuples with other names
        return []
    rows = [int(np.flatnonzero(kept)[np.flatnonzero(truth == i)[0]]) for i in frequent if (truth == i).any()]
    jets = table.take(rows).to_pylist()
    titles = [classes[int(i)] for i in frequent if (truth == i).any()]
    return [
        plots.constituents(jet, f"{title}, pT {jet['jet_pt']:.0f} GeV") for jet, title in zip(jets, titles, strict=True)
    ]


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _transfers(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    found = [(path.parent, files.read_json(path)) for path in sorted(run.glob("transfer/*/summary.json"))]
    return [each for each in found if "tasks" in each[1]]  # not those of a version with another table


def result_table(run: Path) -> Rows:
    """The short table at the end of a job: what came out, in one line each."""
    rows: list[dict[str, Any]] = []
    if (run / "summary.json").exists():
        summary = files.read_json(run / "summary.json")
        evaluation = summary["evaluation"]
        rows.append({"what": "validation accuracy, all classes", "value": _figure(evaluation["accuracy"])})
        for name, figures in evaluation["discriminants"].items():
            rows.append({"what": f"AUC {name}, from the model's scores", "value": _figure(figures["auc"])})
            rows += [
                {"what": f"rejection at {point['efficiency']:.0%}, {name}", "value": format_rejection(point)}
                for point in figures["rejections"]
            ]
        timing = dict(summary["training"]["timing"])
        rows.append({"what": "training speed [jets/s]", "value": f"{timing.pop('jets_per_s'):,.0f}"})
        rows += [{"what": f"  time in {phase}", "value": f"{share:.1%}"} for phase, share in timing.items()]
    for _, summary in _transfers(run):
        rows += summary_rows(summary)
    if (run / "export.json").exists():
        export = files.read_json(run / "export.json")
        rows.append({"what": "ONNX against PyTorch, largest difference", "value": f"{export['max_difference']:.1e}"})
    return rows


def write_report(run: Path, sample: str) -> Path:
    """Rebuild `<run>/report.html` from everything the run folder holds; returns its path."""
    text = "What came out. " + (f"Sample: {sample}. " if sample else "")
    sections = [Section("In short", text, result_table(run))]
    for folder, summary in _transfers(run):
        text = (
            "The row 'model scores' is the pre-trained classifier itself on the same jets, without any new training. "
        )
        text += f"Mean and spread over seeds; everything else is in transfer/{folder.name}/report.html."
        figures = [(path.stem.replace("_", " "), path.read_bytes()) for path in sorted(folder.glob("plots/*.png"))]
        sections.append(Section(f"Transfer: {folder.name}", text, matrix(summary), figures))
    if (run / "export.json").exists():
        export = files.read_json(run / "export.json")
        rows = [{"figure": key, "value": value} for key, value in export.items() if key != "provenance"]
        sections.append(Section("Export", "The ONNX file, checked against PyTorch on jets of this sample.", rows))
    return build_report(run, sections, sample)
