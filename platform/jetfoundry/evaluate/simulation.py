"""The physics check of a simulated sample as a page: gates, multiplicities, tagging, and real jets beside their copies.

`check` makes and measures everything (`sim.validation.checks`) and writes `<output>/check/`: `report.html`,
`summary.json` with every figure, limit and verdict, and the plots. Simulated jets are called simulated everywhere.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from jetfoundry import files, runs
from jetfoundry.evaluate import plots
from jetfoundry.evaluate.report import Section, render
from jetfoundry.evaluate.simulation_plots import comparison_figure
from jetfoundry.sim.settings import SimulateConfig
from jetfoundry.sim.store import sample_text
from jetfoundry.sim.validation.checks import Measured, Replay, measure
from jetfoundry.sim.validation.comparison import GROUPS, Comparison
from jetfoundry.sim.validation.gates import AT_Z, Sizes

__all__ = ["FLAG", "check", "write_check"]

FLAG = 0.01
"""p-values below are marked."""

_LEP = {"bb": 23.1, "cc": 21.3, "ss": 20.2, "uu": 20.2}
"""Mean charged multiplicity of Z decays at LEP, about; 20.2 is that of u, d and s together."""

_REPLAY_TEXT = """Each real resonance jet is simulated again from the decay that it stores: same X, same decay \
products, new shower, hadrons and detector. Copies have the class of the real jet and share its weight. Copies of a \
real QCD jet are simulated QCD jets of about the same generator-level pT and the same heaviest quark.

"KS p" is the two-sample Kolmogorov-Smirnov test with weights, n = (sum w)² / sum w². It assumes independent samples \
and one value per jet; particles of one jet are not independent, so their observables have none. "matched p" \
is the fraction of pseudo-experiments, one copy drawn for each real jet, that lie as far from all copies as the real \
jets do: it knows that both share their truth and that particles belong to jets, and is the stricter one. With some \
twenty observables, a p-value of 0.05 is expected by chance. In the means, values beyond the range that is plotted \
count as its ends."""


def check(cfg: SimulateConfig) -> dict[str, Any]:
    """Run all gates and, with `cfg.reference`, the comparison with real jets; returns the summary (`passed`, `gates`).

    Raises ConfigError if Pythia or FastJet are missing or a setting is wrong, InputError for a bad reference.
    """
    folder = files.place(cfg.output) / "check"
    return write_check(folder, cfg, measure(cfg, cfg.reference, Sizes()))


def write_check(folder: str | Path, cfg: SimulateConfig, measured: Measured) -> dict[str, Any]:
    """Write page, plots and summary of what was measured into `folder`; returns the summary."""
    folder = files.place(folder)
    sample = sample_text(cfg.mode)
    sections = [_gates_section(measured), _multiplicity_section(measured), _tagging_section(measured)]
    if measured.replay is not None:
        figures = _figures(folder / "plots", measured.replay, sample)
        sections += _replay_sections(measured.replay, figures)
    summary = _summary(cfg, measured)
    runs.write_summary(folder, **summary)
    title = f"Physics check: {'passed' if measured.passed else 'FAILED'}"
    subtitle = f"{sample}, mode {cfg.mode}, seed {cfg.seed}"
    files.write_text(folder / "report.html", render(title, subtitle, sections, runs.provenance()))
    return summary


def _gates_section(measured: Measured) -> Section:
    failed = sum(not gate.passed for gate in measured.gates)
    text = f"{len(measured.gates) - failed} of {len(measured.gates)} gates passed. All figures are of simulated jets."
    rows = [
        {"gate": g.name, "value": _with_error(g.value, g.error), "limit": g.limit,
         "verdict": "passed" if g.passed else "FAILED"}
        for g in measured.gates
    ]  # fmt: skip
    return Section("Gates", text, rows)


def _with_error(value: float, error: float | None) -> str:
    if error is None:
        return f"{value:.3g}"
    digits = 4 if error < 0.01 else 1
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _multiplicity_section(measured: Measured) -> Section:
    text = (
        f"Charged stable particles of X → two partons at {AT_Z:g} GeV (simulated, generator level, decays of K_S and "
    )
    text += "hyperons count), beside what LEP measured at the Z."
    rows = [
        {"X →": m.channel, "charged particles": _with_error(m.mean, m.error), "LEP": _LEP.get(m.channel),
         "decays": m.resonances}
        for m in measured.multiplicities
    ]  # fmt: skip
    return Section("Charged multiplicity", text, rows)


def _tagging_section(measured: Measured) -> Section:
    text = f"Simulated X → bb against simulated QCD, {measured.tagging_jets:,} jets of each, gradient-boosted trees on "
    text += "jet-level features, out of fold; both classes re-weighted to the same jet pT and soft-drop mass."
    rows = [{"features": name, "AUC": _with_error(a.value, a.error)} for name, a in measured.aucs.items()]
    return Section("Tagging", text, rows)


def _replay_sections(replay: Replay, figures: list[tuple[str, bytes]]) -> list[Section]:
    rows = [_comparison_row(comparison) for comparison in replay.comparisons]
    text = _REPLAY_TEXT
    if replay.without_copies:
        text += f"\n\n{replay.without_copies} real jets have no copy and are left out."
    flagged = [c.observable.name for c in replay.comparisons if _flagged(c)]
    text += f"\n\nBelow {FLAG}: {', '.join(flagged) or 'none'}."
    plain = "Points: real jets. Filled: simulated copies, scaled to the number of real jets. Outer bins hold what lies "
    plain += "beyond. The band in the ratio is the statistical error of the copies."
    return [Section("Real and simulated jets", text, rows), Section("Observables", plain, None, figures)]


def _flagged(comparison: Comparison) -> bool:
    test = comparison.tests["all"]
    return min(test.p_matched, 1.0 if test.p is None else test.p) < FLAG


def _comparison_row(comparison: Comparison) -> dict[str, Any]:
    test = comparison.tests["all"]
    row: dict[str, Any] = {
        "observable": comparison.observable.name,
        "real mean": test.real_mean,
        "simulated mean": test.simulated_mean,
    }
    row = {key: value if isinstance(value, str) else f"{value:.3g}" for key, value in row.items()}
    for group in GROUPS:
        found = comparison.tests.get(group)
        name = "" if group == "all" else f", {group}"
        row[f"KS p{name}"] = None if found is None or found.p is None else f"{found.p:.3f}"
    row["matched p"] = f"{test.p_matched:.3f}"
    limit = comparison.observable.limit
    row["limit"] = None if limit is None else f"> {limit}"
    return row


def _figures(folder: Path, replay: Replay, sample: str) -> list[tuple[str, bytes]]:
    """Draw and store one figure per observable."""
    used = replay.comparisons[0].tests["all"].real_jets
    name = f"JetClass-II ({used} jets)"
    figures = []
    for comparison in replay.comparisons:
        figure = comparison_figure(comparison, replay.real, replay.simulated, name, sample)
        data = plots.png(figure, dpi=120)
        with files.committed(folder / f"{comparison.observable.name}.png") as path:
            path.write_bytes(data)
        caption = f"{comparison.observable.name}: {name} and simulated copies."
        figures.append((caption, data))
    return figures


def _summary(cfg: SimulateConfig, measured: Measured) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "sample": "simulated",
        "source": "embedded",
        "mode": cfg.mode,
        "seed": cfg.seed,
        "passed": measured.passed,
        "gates": [
            {
                "name": g.name,
                "value": None if math.isnan(g.value) else g.value,
                "error": g.error,
                "limit": g.limit,
                "passed": g.passed,
            }
            for g in measured.gates
        ],
        "charged_multiplicity": {m.channel: {"mean": m.mean, "error": m.error} for m in measured.multiplicities},
        "auc": {name: dataclasses.asdict(a) for name, a in measured.aucs.items()},
    }
    if measured.replay is not None:
        summary["reference"] = {
            "real_jets": len(measured.replay.real.real),
            "without_copies": measured.replay.without_copies,
            "simulated_jets": len(measured.replay.simulated.real),
            "observables": {
                c.observable.name: {group: dataclasses.asdict(t) for group, t in c.tests.items()}
                for c in measured.replay.comparisons
            },
        }
    return summary
