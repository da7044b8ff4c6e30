"""A real head that has never seen the package; jobs reach it as `ray job submit` sends them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from jetfoundry.models.checkpoints import load_model

ROOT = Path(__file__).resolve().parents[2]
SMALL = 'model.change="{embed_dims: [8, 8], pair_embed_dims: [4], num_layers: 1, num_heads: 2, fc_dims: [8]}"'


def free_ports(number):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def processes_of(folder):
    """Ids of the processes that have the head's own temporary folder on their command line."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if str(folder).encode() in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                yield int(entry.name)


@pytest.fixture(scope="module")
def head():
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short: a socket's path has at most 107 bytes
    gcs, dashboard, agent, agent_grpc = free_ports(4)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={gcs}"]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--dashboard-agent-grpc-port={agent_grpc}", f"--temp-dir={folder}", "--num-cpus=3"]
    command += ["--object-store-memory=200000000", "--disable-usage-stats"]
    log = (Path(folder) / "head.log").open("w")
    process = subprocess.Popen(command, env={**os.environ, "PATH": path}, stdout=log, stderr=log, cwd=folder)
    yield f"http://127.0.0.1:{dashboard}", process, Path(folder) / "head.log"
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    for pid in processes_of(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    log.close()


def client_of(head, seconds=60):
    from ray.job_submission import JobSubmissionClient

    address, process, log = head
    deadline = time.monotonic() + seconds
    while True:
        try:
            return JobSubmissionClient(address)
        except ConnectionError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)


def run_job(head, entrypoint, seconds):
    """Submit as `ray job submit --runtime-env cluster/runtime_env.yaml` does; returns (status, log)."""
    client = client_of(head)
    env = yaml.safe_load((ROOT / "cluster" / "runtime_env.yaml").read_text())
    job = client.submit_job(entrypoint=entrypoint, runtime_env=env)
    deadline = time.monotonic() + seconds
    while not (status := client.get_job_status(job)).is_terminal():
        assert time.monotonic() < deadline, f"still {status} after {seconds} s:\n{client.get_job_logs(job)}"
        time.sleep(0.5)
    return status, client.get_job_logs(job)


@pytest.fixture
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # the paths in runtime_env.yaml are relative to the checkout


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_submitted_job_runs_the_submitted_code_and_pretrains_on_the_cluster(head, at_root, tmp_path, toy_shards):
    status, log = run_job(head, 'python -c "import jetfoundry; print(jetfoundry.__file__)"', 120)
    assert status == "SUCCEEDED", log
    assert "py_modules_files" in log.strip().splitlines()[-1]  # not an editable install of this machine

    data, run = toy_shards(tmp_path / "shards", train=200, val=40), tmp_path / "run"
    options = f"data={data} run={run} {SMALL} train.epochs=1 loader.batch_size=32 workers.threads=1 'discriminants=[]'"
    status, log = run_job(head, f"python jobs/pretrain.py jobs/recipes/demo.yaml {options}", 240)
    assert status == "SUCCEEDED", log
    assert len(load_model(run / "model.pt").classes) == 188
    assert f"report: {run / 'report.html'}" in log
