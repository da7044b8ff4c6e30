"""Machines that go, with and without notice: a training on a real cluster of several nodes on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from jetfoundry import runs
from jetfoundry.models.checkpoints import load_model, load_state

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "model.change={embed_dims: [8, 8], pair_embed_dims: [4], num_layers: 1, num_heads: 2, fc_dims: [8]}",
    "loader.batch_size=32",
    "loader.micro_batches=2",
    "loader.prefetch=0",
    "train.epochs=3",
    "train.steps_per_epoch=40",
    "train.checkpoint_steps=10",
    "train.log_steps=5",
    "workers.num_workers=2",
    "workers.threads=1",
    "workers.cpus_per_worker=1",
    "discriminants=[]",
]
QUICK = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",  # conftest.py switches it off
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "500",
    "RAY_health_check_failure_threshold": "3",
}

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(500)]

Tell = Callable[[str], None]


@contextlib.contextmanager
def cluster(nodes: int) -> Iterator[tuple[str, Tell]]:
    """Address of a new cluster of so many one-CPU nodes (and a head without CPUs), and what gives it orders."""
    command = [sys.executable, str(Path(__file__).with_name("local_cluster.py")), str(nodes)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **QUICK},
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        address = next(line.strip() for line in process.stdout if ":" in line and " " not in line.strip())

        def tell(order: str) -> None:
            process.stdin.write(order + "\n")
            process.stdin.flush()
            assert next(line for line in process.stdout if line.strip() == "done")

        try:
            yield address, tell
        finally:
            process.stdin.close()
            process.wait(60)


def start(data: Path, run: Path, *options: str) -> subprocess.Popen[str]:
    arguments = [f"data={data}", f"run={run}", *SMALL, *options]
    command = [sys.executable, "tests/train/pretrain_only.py", "jobs/recipes/demo.yaml", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **QUICK}, stderr=subprocess.PIPE, text=True)


def ended(job: subprocess.Popen[str], seconds: float = 240) -> tuple[int, str]:
    _, errors = job.communicate(timeout=seconds)
    return job.returncode, errors


def steps(run: Path) -> list[int]:
    return sorted(int(path.parent.name[5:]) for path in (run / "checkpoints").glob("step_*/state.pt"))


def until(job: subprocess.Popen[str], condition: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def history(run: Path) -> list[tuple[int, float | None, float | None]]:
    return [(row["step"], row.get("loss"), row.get("val_loss")) for row in runs.read_metrics(run / "metrics.jsonl")]


def starts(run: Path) -> int:
    """How often worker 0 began."""
    return len(list((run / "tensorboard").glob("events*")))


def assert_same(one: Path, two: Path) -> None:
    assert history(one) == history(two)
    first, second = (load_model(run / "model.pt").weights for run in (one, two))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def data(tmp_path_factory, toy_shards):
    return toy_shards(tmp_path_factory.mktemp("faults") / "shards", train=1500, val=60)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory, data):
    """A run of two workers to which nothing happens."""
    run = tmp_path_factory.mktemp("quiet") / "run"
    code, errors = ended(start(data, run))
    assert code == 0, errors
    return run


def test_a_killed_node_costs_time_and_changes_nothing(tmp_path, data, quiet):
    run = tmp_path / "run"
    with cluster(2) as (address, tell):
        job = start(data, run, f"ray.address={address}")
        until(job, lambda: [step for step in steps(run) if step > 10])
        tell("kill 1")
        tell("add")
        code, errors = ended(job)
    assert code == 0, errors
    assert starts(run) == 2
    assert_same(run, quiet)


def test_a_run_whose_node_never_comes_back_says_so_and_ends(tmp_path, data):
    run = tmp_path / "run"
    with cluster(2) as (address, tell):
        job = start(data, run, f"ray.address={address}", "workers.wait_minutes=0.1")
        until(job, lambda: steps(run))
        tell("kill 1")
        code, errors = ended(job)
    assert code == 2
    wanted = "waited 0.1 minutes (workers.wait_minutes) for 2 worker(s) of 1 CPU; the cluster has 2 node(s) with 1 CPUs"
    assert wanted in errors


def test_an_elastic_run_goes_on_with_the_nodes_that_are_left(tmp_path, data, quiet):
    run = tmp_path / "run"
    with cluster(2) as (address, tell):
        job = start(data, run, f"ray.address={address}", "workers.min_workers=1", "workers.wait_minutes=2")
        until(job, lambda: [step for step in steps(run) if step > 10])
        tell("kill 1")
        code, errors = ended(job)
    assert code == 0, errors
    assert steps(run)[-1] == 120
    last = load_state(run / "checkpoints" / "step_00000120" / "state.pt")
    assert len(last["positions"]) == 1
    assert [step for step, _, val_loss in history(run) if val_loss] == [40, 80, 120]
    assert history(run)[-1][2] == pytest.approx(history(quiet)[-1][2], rel=0.1)


def test_a_notice_that_a_node_will_go_makes_a_checkpoint_at_once(tmp_path, data):
    run = tmp_path / "run"
    endless = ["train.checkpoint_steps=0", "train.steps_per_epoch=100000", "train.epochs=1"]
    with cluster(2) as (address, tell):
        job = start(data, run, f"ray.address={address}", *endless)
        until(job, lambda: history(run))
        assert not steps(run)
        tell("notice 1 6")
        until(job, lambda: steps(run))  # while both nodes are there
        (noticed,) = steps(run)
        assert starts(run) == 1
        tell("add")
        until(job, lambda: starts(run) == 2)
        until(job, lambda: history(run)[-1][0] > noticed)
        (run / "stop").touch()
        assert ended(job)[0] == 130
    assert noticed % 5 == 0
    assert steps(run)[0] == noticed
    assert [step for step, _, _ in history(run)] == list(range(5, steps(run)[-1] + 1, 5))


@pytest.mark.parametrize("way", ["SIGTERM", "SIGUSR1", "file"])
def test_a_run_that_is_asked_to_end_writes_a_checkpoint_and_the_same_command_continues(tmp_path, data, quiet, way):
    run, seldom = tmp_path / "run", "train.checkpoint_steps=0"
    job = start(data, run, seldom)
    until(job, lambda: history(run))
    if way == "file":
        (run / "stop").touch()
    else:
        job.send_signal(getattr(signal, way))
    code, errors = ended(job)
    assert code == 130, errors
    assert "the same command continues" in errors
    assert not (run / "model.pt").exists()
    (stopped,) = steps(run)
    assert stopped < 120
    assert stopped % 5 == 0
    code, errors = ended(start(data, run, seldom))
    assert code == 0, errors
    assert_same(run, quiet)


def test_a_worker_killed_by_signal_9_is_replaced_and_changes_nothing(tmp_path, data, quiet):
    run = tmp_path / "run"
    job = start(data, run)
    until(job, lambda: [step for step in steps(run) if step > 10])
    ours = psutil.Process(job.pid).children(recursive=True)
    workers = [process for process in ours if "RayTrainWorker" in " ".join(process.cmdline())]
    assert len(workers) == 2
    workers[1].kill()
    code, errors = ended(job)
    assert code == 0, errors
    assert starts(run) == 2
    assert_same(run, quiet)
