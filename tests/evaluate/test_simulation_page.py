"""The page of the physics check: verdicts, tables, one labelled figure per observable, and the figures as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jetfoundry import config
from jetfoundry.evaluate import simulation
from jetfoundry.evaluate.simulation_plots import comparison_figure
from jetfoundry.sim.settings import SimulateConfig
from jetfoundry.sim.validation.checks import Measured, Replay
from jetfoundry.sim.validation.comparison import Sample, compare
from jetfoundry.sim.validation.gates import Gate, Multiplicity, comparison_gates
from jetfoundry.sim.validation.observables import OBSERVABLES
from jetfoundry.sim.validation.tagging import Auc

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cfg() -> SimulateConfig:
    return config.read(SimulateConfig, ROOT / "datasets" / "jetclass2_sim.yaml")


@pytest.fixture(scope="module")
def replay(toy_jets: Callable[..., pa.Table]) -> Replay:
    real, copies = toy_jets(12, seed=1), toy_jets(60, seed=2)
    generator_level = pa.array(np.full(60, 400, np.float32))
    at = copies.column_names.index("genjet_pt")
    copies = copies.set_column(at, copies.schema.field(at), generator_level)
    real = real.set_column(at, real.schema.field(at), generator_level.slice(0, 12))
    samples = Sample.of(real, np.arange(12)), Sample.of(copies, np.repeat(np.arange(12), 5))
    return Replay(*samples, compare(*samples, 20, 1), 3)


def measured(replay: Replay | None, auc: float = 0.97) -> Measured:
    gates = [Gate(name="AUC with displacement", value=auc, error=0.004, low=0.95)]
    gates += comparison_gates(replay.comparisons) if replay else []
    multiplicities = [Multiplicity("bb", 22.81, 0.31, 600), Multiplicity("gg", 32.0, 0.4, 600)]
    return Measured(gates, multiplicities, {"all features": Auc(auc, 0.004)}, 3000, replay)


def test_a_failed_gate_fails_the_check_and_is_named_on_top(tmp_path: Path, cfg: SimulateConfig) -> None:
    summary = simulation.write_check(tmp_path, cfg, measured(None, auc=0.91))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert summary["passed"] is False
    assert json.loads((tmp_path / "summary.json").read_text())["gates"][0]["passed"] is False
    assert "<h1>Physics check: FAILED</h1>" in page
    assert "0 of 1 gates passed" in page
    assert "simulated jets (Pythia 8, parametrised detector)" in page
    assert "JetClass-II" not in page  # nothing was compared


def test_the_page_compares_every_observable_with_real_jets(tmp_path: Path, cfg: SimulateConfig, replay: Replay) -> None:
    summary = simulation.write_check(tmp_path, cfg, measured(replay))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert stored["gates"] == summary["gates"]
    compared = {c.observable.name for c in replay.comparisons}  # toy jets have neither tau21 nor neutral hadrons
    assert set(stored["reference"]["observables"]) == compared
    assert len(compared) > len(OBSERVABLES) / 2
    assert stored["reference"]["without_copies"] == 3
    assert stored["provenance"]
    assert page.count("<img") == len(compared)
    assert len(list((tmp_path / "plots").glob("*.png"))) == len(compared)
    assert "JetClass-II (12 jets)" in page
    assert "3 real jets have no copy" in page


def test_a_figure_names_both_samples_and_its_axes(replay: Replay) -> None:
    sample = "simulated jets (Pythia 8, parametrised detector)"
    for comparison in replay.comparisons:
        figure = comparison_figure(comparison, replay.real, replay.simulated, "JetClass-II (12 jets)", sample)
        shown = [text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text"))]
        assert any(sample in text for text in shown)
        assert "JetClass-II (12 jets)" in shown
        assert comparison.observable.label in shown
        assert any("matched p" in text for text in shown)


def test_figures_of_the_histograms_are_those_of_the_jets(replay: Replay) -> None:
    (constituents,) = (c for c in replay.comparisons if c.observable.name == "n_constituents")
    figure = comparison_figure(constituents, replay.real, replay.simulated, "real", "simulated")
    upper = figure.axes[0]
    points = np.concatenate([c.lines[0].get_ydata() for c in upper.containers if hasattr(c, "lines")])
    assert points.sum() == pytest.approx(12)


def test_particles_have_no_ordinary_p_value_and_small_ones_are_flagged(
    tmp_path: Path, cfg: SimulateConfig, replay: Replay
) -> None:
    comparisons = [
        dataclasses.replace(c, tests={g: dataclasses.replace(t, p_matched=0.002) for g, t in c.tests.items()})
        if c.observable.name == "dz"
        else dataclasses.replace(c, tests={g: dataclasses.replace(t, p_matched=0.5) for g, t in c.tests.items()})
        for c in replay.comparisons
    ]
    assert all((c.p is None) == c.observable.per_particle for c in comparisons)
    comparisons = [c for c in comparisons if c.observable.name in ("dz", "d0")]
    simulation.write_check(tmp_path, cfg, measured(dataclasses.replace(replay, comparisons=comparisons)))
    assert "Below 0.01: dz." in (tmp_path / "report.html").read_text(encoding="utf-8")
