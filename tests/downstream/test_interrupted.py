"""A fan-out that is killed, or stopped by Ctrl-C, and started again by the same command."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jetfoundry import files
from jetfoundry.downstream import shelf

ROOT = Path(__file__).resolve().parents[2]
TASK = """
name: toy
title: toy jets
label: {scheme: "binary:X_bb vs QCD"}
budget: {epochs: 5, batch_size: 64}
"""
OPTIONS = [
    "methods=probe,mlp",
    "seeds=4",
    "sizes=0.5,1",
    "replicas=30",
    "embed_workers=1",
    "ray.num_cpus=2",
    "method.mlp.widths=[4,8]",
    "method.mlp.depths=[1]",
    "method.mlp.epochs=9",
]


@pytest.fixture
def command(tmp_path, small_model, toy_shards):
    """The command, and the folder of its results."""
    toy_shards(tmp_path / "shards", train=300, val=100)
    shutil.copytree(small_model, tmp_path / "backbone")
    (tmp_path / "toy.yaml").write_text(TASK)
    out = tmp_path / "out"
    where = [
        str(tmp_path / "toy.yaml"),
        f"backbone={tmp_path / 'backbone'}",
        f"data={tmp_path / 'shards'}",
        f"output={out}",
    ]
    return [sys.executable, "jobs/transfer.py", *where, *OPTIONS], out


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def results(out: Path) -> dict[str, int]:
    """Committed results by name, with the time of their writing."""
    return {path.name: path.stat().st_mtime_ns for path in (out / "trials").glob("toy-*.json")}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_an_interrupted_fan_out_keeps_what_was_committed_and_does_the_rest(command, kill, killed):
    arguments, out = command
    job = start(arguments)
    deadline = time.monotonic() + 120
    while len(results(out)) < 3:
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed(job, kill)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == (-signal.SIGKILL if kill == signal.SIGKILL else 130), errors
    assert not (out / "summary.json").exists()
    before = results(out)
    again = start(arguments)
    printed, errors = again.communicate(timeout=200)
    assert again.returncode == 0, errors
    after = results(out)
    assert all(after[name] == when for name, when in before.items() if "point" not in name)
    summary = files.read_json(out / "summary.json")
    whole = len([name for name in before if "point" not in name])
    assert (summary["trials_found"], summary["trials_run"]) == (whole, 16 - whole)
    assert whole >= 1
    assert f"{16 - whole} trials run, {whole} found, 0 failed" in printed
    assert len(after) == 16, "grid points are cleared away"
    assert sum(each["computed"] for each in summary["embeddings"]) == 0


def test_a_label_that_leaves_a_class_empty_is_found_before_anything_is_embedded(tmp_path, toy_shards, small_model):
    from jetfoundry.downstream.tasks import load_tasks
    from jetfoundry.errors import InputError

    toy_shards(tmp_path / "shards", train=30, val=10)
    (tmp_path / "toy.yaml").write_text(TASK.replace("X_bb vs QCD", "X_cc vs QCD"))
    backbones = shelf.open_backbones([str(small_model)])
    with pytest.raises(
        InputError, match=r"task toy, train jets of .*shards: classes with less than 1 jets: X_cc \(0\)"
    ):
        shelf.check_jets(load_tasks(tmp_path / "toy.yaml"), backbones, str(tmp_path / "shards"), ["train", "val"])
