"""A clean clone is submitted, by the commands of the README, to a real head that has never seen the package."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import ray
import yaml

from jetfoundry.models.checkpoints import load_model

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
SMALL = "model.change={embed_dims: [8, 8], pair_embed_dims: [4], num_layers: 1, num_heads: 2, fc_dims: [8]}"

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(500)]


class Head(NamedTuple):
    """A running head, and how to talk to it."""

    environment: dict[str, str]
    clone: Path

    def start(self, *words: str, **more: str) -> subprocess.Popen[str]:
        """`ray <words>` from the clone."""
        environment = {**self.environment, **more}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            ["ray", *words], cwd=self.clone, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True
        )

    def ray(self, *words: str, seconds: float = 240, **more: str) -> tuple[int, str]:
        """Exit code and output of `ray <words>`."""
        with self.start(*words, **more) as process:
            output, _ = process.communicate(timeout=seconds)
            return process.returncode, output


def without_the_package(folder: Path) -> dict[str, str]:
    """An environment with our dependencies and without us: an editable install hangs on a .pth file, which PYTHONPATH
    leaves unread."""
    venv.create(folder, with_pip=False)
    packages = Path(ray.__file__).parents[1]
    (folder / "bin" / "ray").write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m ray.scripts.scripts "$@"\n')
    (folder / "bin" / "ray").chmod(0o755)
    return {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "PYTHONPATH": str(packages)}


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # short: a socket's path has at most 107 bytes
    environment = without_the_package(folder / "venv")
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    environment["RAY_NODE_DIR"] = str(folder / "ray")
    node = ["bash", str(CLUSTER / "ray_node.sh")]
    port = subprocess.run([*node, "port"], env=environment, check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run([*node, "token"], env=environment, check=True)
    subprocess.run(["git", "clone", "--quiet", ROOT, folder / "clone"], check=True)
    command = [*node, "restart", "head", f"--dashboard-port={port}", "--num-cpus=3", "--object-store-memory=200000000"]
    try:
        subprocess.run(command, env=environment, check=True)
        yield Head({**environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}, folder / "clone")
    finally:
        subprocess.run([*node, "stop"], env=environment, check=True)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(str(folder) in word for word in process.cmdline()):
                    process.send_signal(signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_who_has_no_token_is_refused_and_the_head_does_not_have_the_package(head):
    code, output = head.ray("job", "submit", "--", "python", "--version", RAY_AUTH_MODE="disabled")
    assert code != 0
    assert "token" in output.lower(), output
    code, output = head.ray("job", "submit", "--", "python", "-c", "import jetfoundry")
    assert code == 1
    assert "No module named 'jetfoundry'" in output


def test_a_clean_clone_brings_its_own_code(head):
    words = ["job", "submit", "--runtime-env", "cluster/runtime_env.yaml", "--", "python", "-c"]
    code, output = head.ray(*words, "import jetfoundry; print(jetfoundry.__file__)")
    assert code == 0, output
    assert "py_modules_files" in output


def test_the_kubernetes_job_finds_its_code_on_the_shared_disk(head, tmp_path):
    """What cluster/kuberay/rayjob.yaml says, with this disk for /shared."""
    code = tmp_path / "abc1234"
    subprocess.run(["git", "clone", "--quiet", head.clone, code], check=True)
    file = CLUSTER / "kuberay" / "rayjob.yaml"
    submit = re.search(r"#   (sed .*rayjob.yaml) \| kubectl apply", file.read_text())[1].replace("COMMIT", "abc1234")
    filled = subprocess.run(
        ["bash", "-c", submit], cwd=CLUSTER.parent, check=True, capture_output=True, text=True
    ).stdout
    job, _ = yaml.safe_load_all(filled)
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"] == {"JETFOUNDRY_COMMIT": "abc1234"}
    text = job["spec"]["runtimeEnvYAML"].replace("/shared/code", str(tmp_path))
    words = ["job", "submit", "--runtime-env-json", json.dumps(yaml.safe_load(text)), "--"]
    script = "import os, ray, jetfoundry; ray.init(logging_level='ERROR'); "
    script += "where = ray.get(ray.remote(lambda: __import__('jetfoundry').__file__).remote()); "
    script += "print(os.path.exists('jobs/pretrain.py'), where == jetfoundry.__file__, where)"
    exit_code, output = head.ray(*words, "python", "-c", script)
    assert exit_code == 0, output
    assert f"True True {code / 'platform'}" in output


def test_a_submitted_training_streams_its_log_is_stopped_and_continues(head, tmp_path, toy_shards):
    data, run = toy_shards(tmp_path / "shards", train=200, val=40), tmp_path / "run"
    options = f"data={data} run={run} train.epochs=1 train.steps_per_epoch=300 train.checkpoint_steps=10 "
    options += "train.log_steps=5 loader.batch_size=8 loader.micro_batches=1 workers.num_workers=1 workers.threads=1"
    job = ["python", "jobs/pretrain.py", "jobs/recipes/demo.yaml", *options.split(), SMALL, "discriminants=[]"]
    words = ["job", "submit", "--runtime-env", "cluster/runtime_env.yaml", "--submission-id"]

    with head.start(*words, "first", "--", *job) as submit:
        assert submit.stdout
        assert any("pre-train" in line for line in submit.stdout)  # its log streams while the job runs:
        assert "RUNNING" in head.ray("job", "status", "first")[1]
        deadline = time.monotonic() + 120
        while not (saved := list(run.glob("checkpoints/step_*/state.pt"))):
            assert submit.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        code, output = head.ray("job", "stop", "first")
        assert code == 0, output
        submit.communicate(timeout=60)
    assert "was stopped" in head.ray("job", "status", "first")[1]
    assert not (run / "model.pt").exists(), "it was not stopped on its way"
    step = int(saved[0].parent.name.removeprefix("step_"))
    before = [row for row in rows(run) if row["step"] <= step]

    code, output = head.ray(*words, "second", "--", *job)
    assert code == 0, output
    assert f"report: {run / 'report.html'}" in output
    assert len(load_model(run / "model.pt").classes) == 188
    after = rows(run)
    assert before
    assert after[: len(before)] == before  # with their times: written by the first job, kept by the second
    steps = [row["step"] for row in after if "loss" in row]
    assert steps == sorted(set(steps))
    assert steps[-1] == 300
