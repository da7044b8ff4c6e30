"""The batch scripts run for real, on this machine: `srun` and `scontrol` are imitated, Ray is not."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"

SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
case $1 in
  show) printf '%s\\n' node-a node-b ;;
  requeue) echo "$2" >>"$REQUEUED" ;;
esac
"""
# Runs one task on each node; waits for SIGUSR1 if told so, as a training that a batch system ends does.
JOB = """
import json, os, signal, sys, time
told = []
signal.signal(signal.SIGUSR1, lambda *_: told.append("told"))
import ray
options = dict(option.split("=", 1) for option in sys.argv[1:])
ray.init(options["ray.address"], logging_level="ERROR", log_to_driver=False)
while len(ray.nodes()) < 2:
    time.sleep(0.2)

@ray.remote(num_cpus=1)
def mode():
    time.sleep(0.2)
    return os.environ["RAY_AUTH_MODE"]

by_node = [mode.options(label_selector={"ray.io/node-id": node["NodeID"]}).remote() for node in ray.nodes()]
result = {"address": options["ray.address"], "modes": ray.get(by_node)}
with open(options["result"], "w") as file:
    json.dump(result, file)
while options["wait"] == "yes" and not told:
    time.sleep(0.1)
sys.exit(130 if told else 0)
"""


def processes_of(folder: Path) -> list[psutil.Process]:
    """Processes that have `folder` on their command line, but for this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(folder) in word for word in process.cmdline()) and process.pid != os.getpid():
                found.append(process)
    return found


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path (Ray's sockets); processes that name it are ended after the test."""
    folder = Path(tempfile.mkdtemp(prefix="j", dir="/tmp"))
    yield folder
    for process in processes_of(folder):
        with contextlib.suppress(psutil.Error):
            process.kill()


@pytest.fixture
def surroundings(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """The environment of a batch script, with our imitations of Slurm on PATH and the job as `job.py`."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("job.py", JOB)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def make(**more: object) -> dict[str, str]:
        known = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "JETFOUNDRY_ENV": sys.prefix,
            "OBJECT_STORE_BYTES": "100000000",
            "REQUEUED": str(tmp_path / "requeued"),
        }
        return {**os.environ, **known, **{name: str(value) for name, value in more.items()}}

    return make


def wait_for(condition: Callable[[], object], seconds: float, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def finished(path: Path) -> bool:
    return path.exists() and path.read_text().endswith("}")


@pytest.mark.ray
@pytest.mark.slow
def test_two_slurm_jobs_share_a_node_and_each_ends_its_own_ray_alone(tmp_path, short, surroundings):
    def submit(job: str, wait: str) -> tuple[subprocess.Popen[bytes], Path, Path]:
        environment = surroundings(
            SLURM_SUBMIT_DIR=ROOT,
            SLURM_JOB_ID=job,
            SLURM_JOB_NODELIST="node-[a-b]",
            SLURM_CPUS_PER_TASK=1,
            RAY_NODE_DIR=short / job,
        )
        log, result = tmp_path / f"{job}.log", tmp_path / f"{job}.json"
        command = ["bash", CLUSTER / "slurm.sh", tmp_path / "job.py", f"result={result}", f"wait={wait}"]
        with log.open("wb") as file:
            return subprocess.Popen(command, env=environment, stdout=file, stderr=file, cwd=tmp_path), result, log

    one, one_result, one_log = submit("one", "no")
    two, two_result, two_log = submit("two", "yes")
    wait_for(lambda: finished(two_result), 90, two, two_log)
    assert one.wait(60) == 0, one_log.read_text()
    assert json.loads(one_result.read_text())["modes"] == ["token", "token"]
    assert not processes_of(short / "one")
    assert not (short / "one").exists()
    assert not (tmp_path / ".jetfoundry" / "slurm-one.token").exists()
    assert "ssh -L 8265:127.0.0.1:" in one_log.read_text()

    # The other job's Ray goes on; what it shows to people listens on this machine's loopback and asks for the secret.
    assert len([p for p in processes_of(short / "two") if "raylet" in p.name()]) == 2
    dashboard = next(
        p for p in processes_of(short / "two") if any("dashboard/dashboard.py" in word for word in p.cmdline())
    )
    listens = {c.laddr.port: c.laddr.ip for c in dashboard.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert listens.pop(int(dashboard.environ()["DASHBOARD_METRIC_PORT"])) in ("0.0.0.0", "::")  # of Prometheus
    ((port, ip),) = listens.items()
    assert ip == "127.0.0.1"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/jobs/", timeout=10)
    assert (tmp_path / ".jetfoundry" / "slurm-two.token").stat().st_mode & 0o077 == 0

    two.send_signal(signal.SIGUSR1)  # as `#SBATCH --signal=B:USR1` does before the time limit
    assert two.wait(60) == 130, two_log.read_text()
    assert (tmp_path / "requeued").read_text().split() == ["two"]
    assert not processes_of(short)


@pytest.mark.ray
@pytest.mark.slow
def test_htcondor_nodes_meet_and_part(tmp_path, short, surroundings):
    def start(rank: int) -> tuple[subprocess.Popen[bytes], Path]:
        here = short / str(rank)  # HTCondor unpacks the code into each job's own folder
        here.mkdir()
        for name in ("platform", "cluster/ray_node.sh"):
            (here / Path(name).name).symlink_to(ROOT / name)
        log = tmp_path / f"{rank}.log"
        command = ["bash", CLUSTER / "htcondor" / "glidein.sh", str(rank), tmp_path / "meet", "1", "300"]
        command += [tmp_path / "job.py", f"result={tmp_path / 'result.json'}", "wait=no"]
        with log.open("wb") as file:
            environment = surroundings(_CONDOR_SCRATCH_DIR=here)
            return subprocess.Popen(command, env=environment, stdout=file, stderr=file, cwd=here), log

    worker, worker_log = start(1)
    head, head_log = start(0)
    wait_for(lambda: finished(tmp_path / "result.json"), 90, worker, head_log)
    assert head.wait(60) == 0, head_log.read_text()
    assert worker.wait(60) == 0, worker_log.read_text()
    assert json.loads((tmp_path / "result.json").read_text())["modes"] == ["token", "token"]
    assert not processes_of(short)


def test_a_htcondor_job_is_asked_to_end_before_its_time_is_over_and_tells_so(tmp_path, surroundings):
    (tmp_path / "ray_node.sh").symlink_to(CLUSTER / "ray_node.sh")
    code = "import os, signal, sys, time; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(130)); "
    code += "print(os.environ['RAY_AUTH_MODE'], os.environ['PYTHONPATH'], flush=True); time.sleep(30)"
    command = ["bash", CLUSTER / "htcondor" / "jetfoundry.sh", "10", "-c", code]
    environment = surroundings(_CONDOR_SCRATCH_DIR=tmp_path)
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 130
    assert result.stdout.split() == ["token", f"{tmp_path}/platform"]
    assert (tmp_path / "token").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("asked_by", "then", "status"),
    [
        ("a file `stop`", "sys.exit(130)", 0),
        ("the farm", "print(1, flush=True); time.sleep(30)", 130),
        ("nobody", "sys.exit(3)", 3),
    ],
)
def test_only_a_job_that_the_farm_ended_is_queued_again(tmp_path, surroundings, asked_by, then, status):
    code = f"import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(130)); {then}"
    command = ["bash", CLUSTER / "ray_node.sh", "job", "100", sys.executable, "-c", code]
    environment = surroundings(RAY_NODE_DIR="/tmp/unused", RAY_AUTH_TOKEN_PATH=tmp_path / "token")
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        if asked_by == "the farm":
            assert process.stdout
            assert process.stdout.readline()
            process.terminate()
        assert process.wait(20) == status


@pytest.mark.ray
@pytest.mark.slow
def test_an_on_premises_node_is_started_again_and_ended_by_its_own_id(tmp_path, short, surroundings):
    def node(name: str, *words: str) -> str:
        environment = surroundings(RAY_NODE_DIR=short / name, RAY_AUTH_TOKEN_PATH=tmp_path / "token")
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        command = ["bash", CLUSTER / "ray_node.sh", *words]
        return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    small = ["--num-cpus=1", "--object-store-memory=100000000"]
    node("head", "token")
    node("head", "restart", "head", *small)
    first = (short / "head" / "pid").read_text()
    node("worker", "restart", "worker", node("head", "address", "10"), *small)
    node("head", "nodes", node("head", "address", "10"), "2", "60")
    node("worker", "stop")
    assert not processes_of(short / "worker")
    assert processes_of(short / "head")

    node("head", "restart", "head", *small)
    assert (short / "head" / "pid").read_text() != first
    assert len([p for p in processes_of(short / "head") if "gcs_server" in p.name()]) == 1

    # An id that another process has by now: nothing is ended.
    with subprocess.Popen(["sleep", "60"]) as stranger:
        mine = (short / "head" / "pid").read_text()
        (short / "head" / "pid").write_text(str(stranger.pid))
        node("head", "stop")
        assert stranger.poll() is None
        stranger.kill()
    (short / "head" / "pid").write_text(mine)
    node("head", "stop")
    assert not processes_of(short)
