"""The comparison with the peer: how sides are timed, and one theme from a file to its report."""

from __future__ import annotations

import json
import time

import pytest
import torch

from jetfoundry.benchmark import probes
from jetfoundry.benchmark.measure import Side, compare
from jetfoundry.benchmark.settings import BenchmarkConfig
from jetfoundry.benchmark.themes import run
from jetfoundry.errors import JetFoundryError


def _prepare(seconds: float) -> float:
    time.sleep(0.05)  # not measured
    return seconds


def _busy(seconds: float) -> int:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return 100


def _broken(seconds: float) -> int:
    msg = f"cannot work for {seconds} s"
    raise ValueError(msg)


def test_sides_run_in_turn_and_are_rated_by_their_cpu_time():
    fast, slow = compare(
        [Side("fast", _prepare, _busy, {"seconds": 0.1}), Side("slow", _prepare, _busy, {"seconds": 0.4})], 2
    )
    assert (fast.name, len(fast.runs), len(slow.runs)) == ("fast", 2, 2)
    assert fast.rate / slow.rate == pytest.approx(4, rel=0.4)
    assert 10 < fast.peak < 2000


def test_a_side_that_fails_ends_the_comparison_with_its_traceback():
    with pytest.raises(JetFoundryError, match=r"(?s)broken: Traceback.*cannot work for 0.1 s"):
        compare([Side("broken", _prepare, _broken, {"seconds": 0.1})], 1)


@pytest.mark.slow
def test_the_ingest_theme_writes_a_report_with_both_sides_and_their_ratio(tmp_path, make_jets, write_root):
    source = write_root(tmp_path / "jets.root", make_jets(300))
    cfg = BenchmarkConfig(input=(str(source),), jets=400, rounds=1, work=tmp_path / "work", output=tmp_path / "out")
    report, timings = run(cfg)
    assert [timing.name for timing in timings] == ["jetfoundry", "weaver"]
    text = report.read_text()
    assert "| weaver |" in text
    assert "400 jets, 1 runs" in text
    sides = json.loads(report.with_suffix(".json").read_text())["sides"]
    assert sides["jetfoundry"]["ratio"] == pytest.approx(sides["jetfoundry"]["rate"] / sides["weaver"]["rate"])


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["train", "infer"])
def test_the_themes_of_the_network_compare_wall_times_and_say_whether_both_learn_alike(
    tmp_path, make_jets, write_root, theme
):
    source = write_root(tmp_path / "jets.root", make_jets(300))
    small = {"preset": "demo", "jets": 100, "batch_size": 50, "micro_batches": 2, "rounds": 1, "curves": 3}
    folders = {"work": tmp_path / "work", "output": tmp_path / "out", "workers": 2}
    report, timings = run(BenchmarkConfig(theme=theme, input=(str(source),), **small, **folders))
    names = ["jetfoundry", "jetfoundry, 2 workers", "weaver", "weaver, sorted", "jetfoundry, bf16"]
    assert [timing.name for timing in timings] == names
    assert {run.jets for timing in timings for run in timing.runs} == {100}
    record = json.loads(report.with_suffix(".json").read_text())
    sides = record["sides"]
    assert sides["jetfoundry"]["ratio"] == pytest.approx(sides["jetfoundry"]["wall"] / sides["weaver"]["wall"])
    assert record["options"]["micro_batches"] == 2
    assert ("the spread of the seeds" in report.read_text()) == (theme == "train")


@pytest.mark.slow
@pytest.mark.ray
def test_a_probe_on_kept_embeddings_does_the_same_work_in_less_time(tmp_path, make_jets, write_root):
    source = write_root(tmp_path / "jets.root", make_jets(300))
    cfg = BenchmarkConfig(
        theme="probes", preset="demo", input=(str(source),), jets=400, rounds=1, epochs=3, work=tmp_path / "work",
        output=tmp_path / "out",
    )  # fmt: skip
    report, (embedded, forward) = run(cfg)
    assert embedded.wall_rate > forward.wall_rate
    text = report.read_text()
    assert "Largest difference between the logits of both heads" in text
    assert "| 20 | 512 |" in text


def test_probes_in_one_batched_problem_are_those_that_train_alone():
    torch.manual_seed(0)
    latent, labels = torch.randn(50, 4), torch.randint(0, 2, (3, 50))
    whole, alone = probes.batched(latent, labels, 2), probes.one_by_one(latent, labels, 2)
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-6)
