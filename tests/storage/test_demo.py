"""The jobs with all that they read and write behind S3 URLs, as a user calls them; the server is a local one (moto's).

`python -m pytest -s tests/storage/test_demo.py -k whole` also says how long the same jobs take without a server.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from jetfoundry import files, runs

ROOT = Path(__file__).resolve().parents[2]
JOBS = ("simulate", "ingest", "pretrain", "transfer", "export")


def commands(place, jets=4000):
    """The demo, small, with everything in `place`, a folder or URL."""
    return {
        "simulate": ["datasets/jetclass2_sim.yaml", f"output={place}/root", f"jets={jets}", "mode=fast"],
        "ingest": ["datasets/jetclass2.yaml", f"input={place}/root/*.root", f"output={place}/shards"],
        "pretrain": ["jobs/recipes/demo.yaml", f"data={place}/shards", f"run={place}/run", "train.epochs=1",
                     "model.change={num_layers: 1}"],
        "transfer": ["datasets/tasks/demo.yaml", f"backbone={place}/run", "seeds=1", f"page={place}/pages/transfer"],
        "export": [f"{place}/run"],
    }  # fmt: skip


@pytest.fixture
def workplace(tmp_path):
    """A folder that looks like the checkout to a job, in which it may write."""
    work = tmp_path / "work"
    work.mkdir()
    for name in ("jobs", "datasets"):
        (work / name).symlink_to(ROOT / name)
    return work


@pytest.fixture
def ray_folder():
    """Ray's logs of the jobs; short, because a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def started(workplace, ray_folder, name, arguments):
    return subprocess.Popen(
        [sys.executable, f"jobs/{name}.py", *arguments],
        cwd=workplace,
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(ray_folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def whole_demo(workplace, ray_folder, place):
    """What each job said, and how long all took together [s]."""
    said, begin = {}, time.monotonic()
    for name, arguments in commands(place).items():
        process = started(workplace, ray_folder, name, arguments)
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, f"{name}: {out[-2000:]}{err[-4000:]}"
        said[name] = out + err
    return said, time.monotonic() - begin


def everything_in(place):
    """Name -> time of change of all that is behind a URL."""
    found = files.place(place)
    info = found.fs.find(found.path, detail=True)
    return {name.removeprefix(f"{found.path}/"): entry["LastModified"] for name, entry in info.items()}


def logs_in(folder):
    """Content of all files of Ray's sessions."""
    logs = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(logs) > 20
    return logs


def leaks(secrets, written):
    """Where one of the secrets stands, with what is before it."""
    found = []
    for name, content in written.items():
        for secret in map(str.encode, secrets):
            if (at := content.find(secret)) >= 0:
                found.append((name, content[max(0, at - 300) : at]))
    return found


@pytest.mark.ray
@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_demo_with_everything_on_s3(workplace, ray_folder, bucket, secrets):
    said, seconds = whole_demo(workplace, ray_folder, f"{bucket}/demo")
    there = everything_in(f"{bucket}/demo")
    for name in (
        "root/QCD_0000.root", "root/summary.json", "shards/manifest.json", "shards/report.html",
        "shards/log.txt", "run/model.pt", "run/metrics.jsonl", "run/report.html", "run/log.txt", "run/model.onnx",
        "run/transfer/demo/table.csv", "run/transfer/demo/report.html", "pages/transfer.md",
    ):  # fmt: skip
        assert name in there, sorted(there)
    for part in (
        "run/checkpoints/step_",
        "run/embeddings/",
        "run/tensorboard/",
        "run/plots/",
        "run/transfer/demo/trials/",
    ):
        assert any(name.startswith(part) for name in there), part

    again, _ = whole_demo(workplace, ray_folder, f"{bucket}/demo")
    assert "0 files made, 4 kept" in again["simulate"]
    assert "nothing was left to do" in again["ingest"]
    assert "it was before this call" in again["pretrain"]
    assert "0 trials run" in again["transfer"]
    now = everything_in(f"{bucket}/demo")
    kept = [name for name in there if name.endswith((".root", ".parquet", ".pt", ".npy")) or "/units/" in name]
    assert len(kept) >= 15
    assert {name: now[name] for name in kept} == {name: there[name] for name in kept}

    arguments = [f"{bucket}/demo/run/model.onnx", f"input={bucket}/demo/root/*.root", f"output={bucket}/demo/s.parquet"]
    for kept_or_written in ("files_written", "files_kept"):
        out, err = started(workplace, ray_folder, "evaluate", arguments).communicate(timeout=600)
        assert files.read_json(f"{bucket}/demo/s.summary.json")[kept_or_written] == 1, out + err
    said["evaluate"] = out + err

    assert sorted(path.name for path in workplace.iterdir()) == ["datasets", "jobs"]  # no folder of the name `s3:`
    written = {name: files.place(f"{bucket}/demo/{name}").read_bytes() for name in now}
    written |= logs_in(ray_folder)
    written |= {f"output of {job}": text.encode() for said_by in (said, again) for job, text in said_by.items()}
    assert leaks(secrets, written) == []

    _, local = whole_demo(workplace, ray_folder, workplace / "local")
    print(f"\nthe demo of 4000 jets on a local S3 server {seconds:.0f} s, on this machine's disk {local:.0f} s")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_pre_training_on_s3_that_was_killed_continues_from_its_checkpoint(
    workplace, ray_folder, bucket, toy_shards, secrets, killed
):
    toy_shards(files.place(f"{bucket}/shards"), train=400, val=100)
    arguments = [
        "jobs/recipes/demo.yaml", f"data={bucket}/shards", f"run={bucket}/run", "train.epochs=40", "train.log_steps=5",
        "train.steps_per_epoch=10", "loader.batch_size=32", "model.change={num_layers: 1}", "workers.num_workers=1",
        "sampling.balance=natural", "prepare.simulate=",
    ]  # fmt: skip
    process = started(workplace, ray_folder, "pretrain", arguments)
    run_folder = files.place(f"{bucket}/run")
    deadline = time.monotonic() + 300
    while len(list(run_folder.glob("checkpoints/step_*/state.pt"))) < 2:
        assert process.poll() is None, process.communicate()[1][-4000:]
        assert time.monotonic() < deadline, sorted(everything_in(f"{bucket}/run"))
        time.sleep(0.2)
    killed(process, signal.SIGKILL)
    process.communicate()
    reached = max(row["step"] for row in runs.read_metrics(run_folder / "metrics.jsonl"))
    assert 0 < reached < 400
    assert files.read_text(run_folder / "log.txt").count("$ pretrain.py") == 1
    with contextlib.ExitStack() as stack:
        again = started(workplace, ray_folder, "pretrain", arguments)
        stack.callback(again.kill)
        out, err = again.communicate(timeout=600)
    assert again.returncode == 0, out[-1000:] + err[-4000:]
    steps = [row["step"] for row in runs.read_metrics(run_folder / "metrics.jsonl") if "loss" in row]
    assert steps == list(range(5, 401, 5))
    assert len(list((run_folder / "tensorboard").iterdir())) > 1
    assert files.read_text(run_folder / "log.txt").count("$ pretrain.py") == 2
    assert leaks(secrets, logs_in(ray_folder)) == []
