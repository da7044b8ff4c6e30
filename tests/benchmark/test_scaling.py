"""Scaling: the table's arithmetic by hand, the model on paper by hand, and its table in the docs."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest

from jetfoundry.benchmark import cluster_model
from jetfoundry.benchmark.cluster_model import AWS_A10G, estimate, ring, table
from jetfoundry.benchmark.scaling import Case, Measured
from jetfoundry.benchmark.scaling_report import overhead, rows_of

ROOT = Path(__file__).resolve().parents[2]


def case(name, kind, workers):
    return Case(name, kind, workers, run=lambda: None, arguments={})


def test_efficiency_is_over_all_runs_with_one_worker_whose_work_is_the_same_in_both_kinds():
    cases = [case("ingest", "weak", 2), case("ingest", "weak", 1), case("ingest", "strong", 1)]
    found = {0: [Measured(200, 1.0), Measured(150, 1.0), Measured(180, 1.0)], 1: [Measured(100, 1.0)]}
    found[2] = [Measured(110, 1.0), Measured(90, 1.0)]
    rows = {(row["kind"], row["workers"]): row for row in rows_of(cases, found)}
    assert rows["weak", 2]["jets_per_s"] == 180
    assert (rows["weak", 2]["slowest"], rows["weak", 2]["fastest"]) == (150, 200)
    assert rows["weak", 2]["efficiency"] == pytest.approx(0.9)
    assert rows["strong", 1]["efficiency"] == 1
    assert rows["strong", 1]["baseline"] == rows["weak", 2]["baseline"] == 100


def test_overhead_is_by_round_and_compares_the_losses():
    cases = [case("plain loop", "", 1), case("training", "weak", 1)]
    found = {0: [Measured(100, 1.0, 2.0, (5.0, 4.0))], 1: [Measured(100, 1.25, 9.0, (5.0, 4.5))]}
    ray = overhead(cases, found)
    assert (ray["ratio"], ray["seconds"], ray["largest_difference"], ray["steps"]) == (0.8, 7.0, 0.5, 2)


def test_an_exchange_of_gradients_over_a_ring():
    assert ring(1, 1e9, 1e9) == 0
    assert ring(2, 1e9, 1e9, latency=0) == 1  # each sends two halves
    assert ring(4, 1e9, 1e9, latency=0) == 1.5
    assert ring(4, 0, 1e9, latency=1e-3) == pytest.approx(6e-3)


def test_one_node_by_hand(monkeypatch):
    for name, value in {"FLOP_PER_JET": 1e9, "READ_BYTES": 2000, "LOADED_PER_CORE": 1000}.items():
        monkeypatch.setattr(cluster_model, name, value)
    node = dataclasses.replace(
        AWS_A10G, peak=10e12, utilisation=0.1, gpus=4, cores=8, storage=16e6, price=2.0, object_store=1e12
    )
    got = estimate(node, 4)
    assert got.jets_per_s == pytest.approx(4 * 1000)
    assert got.step == pytest.approx(0.512)
    assert got.exchange == 0
    assert got.storage == pytest.approx(8e6)
    assert got.cores == pytest.approx(4)
    assert got.used["storage"] == got.used["cores"] == pytest.approx(0.5)
    assert got.hours == pytest.approx(819_200_000 / 4000 / 3600)
    assert got.dollars == pytest.approx(got.hours * 4 * 2)


def test_a_storage_that_is_too_slow_makes_hours_and_price_grow():
    fast = estimate(AWS_A10G, 256)
    slow = estimate(dataclasses.replace(AWS_A10G, storage=fast.storage / 2), 256)
    assert slow.used["storage"] == pytest.approx(2)
    assert (slow.hours, slow.dollars) == pytest.approx((2 * fast.hours, 2 * fast.dollars))
    assert slow.jets_per_s == fast.jets_per_s


def test_the_docs_hold_the_table_as_it_is():
    assert table() in (ROOT / "docs" / "scaling.md").read_text()


@pytest.mark.ray
@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_case_is_measured_and_ray_trains_what_the_plain_loop_trains(tmp_path, monkeypatch):
    from jetfoundry import files
    from jetfoundry.benchmark.settings import BenchmarkConfig
    from jetfoundry.benchmark.themes import run

    monkeypatch.chdir(ROOT)
    cfg = BenchmarkConfig(
        theme="scaling", jets=2000, rounds=1, preset="demo", batch_size=32, micro_batches=2, work=tmp_path / "work",
        output=tmp_path / "out",
    )  # fmt: skip
    path, _ = run(cfg)
    assert "Ray Train with one worker makes" in path.read_text()
    record = files.read_json(path.with_suffix(".json"))
    counted = {(row["what"], row["kind"], row["workers"]) for row in record["rows"]}
    asked = itertools.product(("ingest", "loading", "training"), ("strong", "weak"), (1, 2))
    assert counted == {("plain loop", "", 1), *asked}
    assert all(row["jets_per_s"] > 0 for row in record["rows"])
    assert record["ray"]["largest_difference"] < 1e-5
    assert record["ray"]["steps"] == 31
