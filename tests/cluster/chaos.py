"""Kill processes and nodes at random moments while jobs run, and see that the results are those of a quiet run.

    python tests/cluster/chaos.py 24 docs/benchmarks/chaos_2x-cpu_2026-11-23.md

On a cluster of several raylets on this machine, an ingest, a pre-training and a fan-out of trials run in peace, three
times each. Then each kill has a run of its own: at a random moment a worker process, a data actor, a whole node
(another one comes) or the driver is killed with signal 9. A job that ends is started again by the same command, until
it is done. The shards must have the same content (every jet once), the training the same metrics, the fan-out the
same table. Recovery is the time from the kill to the first unit of ingest, metrics row or trial that was not there at
the kill; in brackets where nothing was left to write but the end of the job.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
QUICK = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "500",
    "RAY_health_check_failure_threshold": "3",
}
SMALL = [
    "model.change={embed_dims: [8, 8], pair_embed_dims: [4], num_layers: 1, num_heads: 2, fc_dims: [8]}",
    "loader.batch_size=32", "loader.micro_batches=2", "loader.prefetch=0", "train.epochs=2", "train.steps_per_epoch=30",
    "train.checkpoint_steps=10", "train.log_steps=5", "workers.num_workers=2", "workers.threads=1",
    "workers.cpus_per_worker=0.5", "discriminants=[]",
]  # fmt: skip
TASK = """
name: toy
title: toy jets
label: {scheme: "binary:X_bb vs QCD"}
budget: {epochs: 5, batch_size: 64}
"""
# In turn. An ingest has no actors of its own; of a fan-out they are those that embed the jets.
PAIRS = (
    ("ingest", "worker"), ("pre-training", "driver"), ("fan-out", "data actor"), ("ingest", "node"),
    ("pre-training", "node"), ("fan-out", "node"), ("ingest", "driver"), ("pre-training", "worker"),
    ("fan-out", "driver"), ("fan-out", "worker"),
)  # fmt: skip
Tell = Callable[[str], None]


class NobodyToKill(Exception):
    """The job was over, or had no process of the wanted kind any more."""


@dataclasses.dataclass
class Kill:
    """One kill and what became of it; `starts` of the command, times in seconds, `quiet` the median of quiet runs."""

    job: str
    victim: str
    at: float
    starts: int
    recovery: float
    at_the_end: bool
    quiet: float
    took: float
    same: bool


@dataclasses.dataclass(frozen=True)
class Job:
    """A command, what must be the same after it, and a number that grows with what it has written."""

    name: str
    command: list[str]
    folder: Path
    result: Callable[[Path], Any]
    progress: Callable[[Path], int]


@contextlib.contextmanager
def cluster(nodes: int) -> Iterator[tuple[str, Tell, int]]:
    """Address of a new cluster of one-CPU nodes, what gives it orders, and the id of its process."""
    script = [sys.executable, str(ROOT / "tests" / "train" / "local_cluster.py"), str(nodes)]
    with subprocess.Popen(
        script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, **QUICK}, text=True,
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        lines = iter(process.stdout)
        address = next(line.strip() for line in lines if ":" in line and " " not in line.strip())

        def tell(order: str) -> None:
            process.stdin.write(order + "\n")
            process.stdin.flush()
            assert next(line for line in lines if line.strip() == "done")

        try:
            yield address, tell, process.pid
        finally:
            process.stdin.close()
            process.wait(60)


def jobs(work: Path) -> list[Job]:
    """The three jobs on toy jets in `work`."""
    from jetfoundry import files, runs
    from jetfoundry.labels import label_scheme
    from jetfoundry.models.checkpoints import save_model
    from jetfoundry.models.particle_transformer import ParTConfig, ParticleTransformer

    toys = _toys()
    for number in range(6):
        toys._write_root(work / "root" / f"jets-{number}.root", toys._toy_jets(1500, number), cluster=250)
    network = ParTConfig(
        embed_dims=(16, 8), pair_embed_dims=(4,), num_heads=2, num_layers=1, num_class_layers=1, fc_dims=(8,)
    )
    save_model(
        work / "backbone" / "model.pt", model_name="particle_transformer", model_config=network,
        weights=ParticleTransformer(network).state_dict(), classes=label_scheme("sophon188").classes,
        data_yaml=(ROOT / "datasets" / "jetclass2.yaml").read_text(), meta={},
    )  # fmt: skip
    (work / "toy.yaml").write_text(TASK)

    def shards(folder: Path) -> Any:
        return files.read_json(folder / "manifest.json")["hash"]

    def metrics(folder: Path) -> Any:
        rows = runs.read_metrics(folder / "metrics.jsonl")
        return [(row["step"], row.get("loss"), row.get("val_loss")) for row in rows]

    def figures(folder: Path) -> Any:
        rows = files.read_json(folder / "summary.json")["table"]
        return [(row["method"], row["size"], row["figure"], row["value"]) for row in rows]

    def units(folder: Path) -> int:
        return len(list(folder.glob("units/*.json")))

    def step(folder: Path) -> int:
        return max((row["step"] for row in runs.read_metrics(folder / "metrics.jsonl")), default=0)

    def trials(folder: Path) -> int:
        return len(list(folder.glob("trials/*.json")))

    data = work / "shards"
    fan_out = ["methods=probe,mlp", "seeds=2", "sizes=0.5,1", "replicas=30", "embed_workers=1", "method.mlp.epochs=5"]
    fan_out += ["method.mlp.widths=[4,8]", "method.mlp.depths=[1]", "backbone={backbone}", f"data={data}"]
    training = ["tests/train/pretrain_only.py", "jobs/recipes/demo.yaml"]
    return [
        Job(
            "ingest",
            ["jobs/ingest.py", f"input={work / 'root'}/*.root", "output={out}", "shards.jets_per_task=1000"],
            data,
            shards,
            units,
        ),
        Job("pre-training", [*training, f"data={data}", "run={out}", *SMALL], work / "run", metrics, step),
        Job(
            "fan-out",
            ["jobs/transfer.py", str(work / "toy.yaml"), "output={out}", *fan_out],
            work / "out",
            figures,
            trials,
        ),
    ]


def _toys() -> Any:
    spec = importlib.util.spec_from_file_location("toys", ROOT / "tests" / "conftest.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(job: Job, out: Path, address: str) -> subprocess.Popen[bytes]:
    """Its backbone is its own, in which no embeddings are kept yet when it is started for the first time; its messages
    are in the file `<out>.log`."""
    backbone = out.with_name(f"{out.name}-backbone")
    if not backbone.exists():
        shutil.copytree(job.folder.parent / "backbone", backbone)
    command = [part.replace("{out}", str(out)).replace("{backbone}", str(backbone)) for part in job.command]
    with log_of(out).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, *command, f"ray.address={address}"], cwd=ROOT, env={**os.environ, **QUICK},
            stdout=subprocess.DEVNULL, stderr=log,
        )  # fmt: skip


def log_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.log")


def quiet(job: Job, address: str, times: int) -> tuple[float, Any]:
    """Seconds, the median, and result of runs to which nothing happens; what the first writes is kept."""
    seconds, results = [], []
    for number in range(times):
        out = job.folder if number == 0 else job.folder.with_name(f"{job.folder.name}-quiet-{number}")
        begin = time.monotonic()
        assert start(job, out, address).wait(300) == 0, log_of(out).read_text()
        seconds.append(time.monotonic() - begin)
        results.append(job.result(out))
    assert all(result == results[0] for result in results), f"quiet runs of {job.name} differ: {results}"
    return statistics.median(seconds), results[0]


def disturbed(job: Job, victim: str, wanted: tuple[float, Any], address: str, tell: Tell, pid: int, rng: Any) -> Kill:
    """A run in a new folder with one kill at a random moment of it."""
    out = Path(tempfile.mkdtemp(prefix="out", dir=job.folder.parent)) / "out"
    seconds, result = wanted
    moment = rng.uniform(0.1, 0.9) * seconds
    begin, starts = time.monotonic(), 1
    process = start(job, out, address)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(moment)
    there, at = job.progress(out), time.monotonic()
    try:
        while not _kill(process, victim, tell, pid, rng):  # none works at this moment: the next that does
            if process.poll() is not None:
                raise NobodyToKill
            time.sleep(0.05)
            there, at = job.progress(out), time.monotonic()
        recovered = None
        while process.poll() != 0:
            if process.poll() is not None:
                starts += 1
                assert starts < 6, log_of(out).read_text()
                process = start(job, out, address)
            assert time.monotonic() < at + 300, log_of(out).read_text()
            time.sleep(0.05)
            if recovered is None and job.progress(out) > there:
                recovered = time.monotonic() - at
        took = time.monotonic() - begin
        same = job.result(out) == result
    finally:
        shutil.rmtree(out.parent)
    recovery = recovered or begin + took - at
    return Kill(job.name, victim, at - begin, starts, recovery, recovered is None, seconds, took, same)


def _kill(process: subprocess.Popen[bytes], victim: str, tell: Tell, cluster_pid: int, rng: Any) -> bool:
    """Whether there was somebody to kill."""
    if process.poll() is not None:
        return False
    if victim == "driver":
        process.send_signal(signal.SIGKILL)
    elif victim == "node":
        tell("kill oldest")
        tell("add")
    else:
        return _kill_worker(cluster_pid, victim, rng)
    return True


def _kill_worker(cluster_pid: int, victim: str, rng: Any) -> bool:
    """Kill a random process that works: for a data actor one of those, else any. Whether there was one."""
    found = []
    for child in psutil.Process(cluster_pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = " ".join(child.cmdline())
            idle = title.startswith(("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent"))
            if title.startswith("ray::") and not idle and (victim == "worker" or "MapWorker" in title):
                found.append(child)
    with contextlib.suppress(IndexError, psutil.Error):
        rng.choice(found).kill()
        return True
    return False


def run(kills: int, work: Path, seed: int = 1, quiet_runs: int = 3) -> list[Kill]:
    """So many kills, over all jobs and victims in turn."""
    rng = random.Random(seed)
    found: list[Kill] = []
    with cluster(2) as (address, tell, pid):
        every = jobs(work)
        peace = {job.name: quiet(job, address, quiet_runs) for job in every}
        for number in range(kills):
            name, victim = PAIRS[number % len(PAIRS)]
            job = next(each for each in every if each.name == name)
            while len(found) == number:  # at another moment, if none was there at this one
                with contextlib.suppress(NobodyToKill):
                    found.append(disturbed(job, victim, peace[job.name], address, tell, pid, rng))
            print(found[-1], flush=True)
    return found


def table(found: list[Kill]) -> str:
    """The kills as Markdown."""
    lines = [
        "| job | killed | at [s] | starts of the command | recovery [s] | quiet run [s] | this run [s] | result |",
        "| --- " * 8 + "|",
    ]
    lines += [
        f"| {each.job} | {each.victim} | {each.at:.1f} | {each.starts} "
        f"| {f'({each.recovery:.1f})' if each.at_the_end else f'{each.recovery:.1f}'} "
        f"| {each.quiet:.1f} | {each.took:.1f} | {'the same' if each.same else 'ANOTHER'} |"
        for each in found
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    import datetime

    from jetfoundry.benchmark.report import hardware

    work = Path(tempfile.mkdtemp(prefix="chaos"))
    kills = run(int(sys.argv[1]), work)
    machine, wrong = hardware(), sum(not kill.same for kill in kills)
    head = (
        f"# Chaos: {len(kills)} kills at random moments\n\n{datetime.date.today()}, {machine['processor']}, "
        f"{machine['cores']} cores, a Ray cluster of a head and two one-CPU nodes on this machine. Toy jets. "
        f"{wrong} results differ from the quiet run's.\n\n{__doc__.strip().split(chr(10) * 2, 2)[2]}\n\n"
    )
    Path(sys.argv[2]).write_text(head + table(kills) + "\n")
    record = {"hardware": machine, "kills": [dataclasses.asdict(kill) for kill in kills]}
    Path(sys.argv[2]).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    shutil.rmtree(work)
    sys.exit(1 if wrong else 0)
