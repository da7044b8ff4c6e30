"""Nodes come when an ingest and a training ask for them, and go when nobody does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jetfoundry import files
from jetfoundry.models.checkpoints import load_model

ROOT = Path(__file__).resolve().parents[2]
# Ingest reserves memory, and to the autoscaler a node type has what is written here, no more.
RESOURCES = {"CPU": 1, "memory": 2 * 2**30}
NODES = {"cpu": {"resources": RESOURCES, "node_config": {}, "min_workers": 0, "max_workers": 3}}
SMALL = [
    "model.change={embed_dims: [8, 8], pair_embed_dims: [4], num_layers: 1, num_heads: 2, fc_dims: [8]}",
    "loader.batch_size=32", "loader.micro_batches=2", "train.epochs=1", "train.steps_per_epoch=10",
    "workers.num_workers=2", "workers.threads=1", "workers.cpus_per_worker=1", "discriminants=[]",
]  # fmt: skip


class Trace:
    """Number of worker nodes that live, second by second."""

    def __init__(self) -> None:
        self.begin, self.points, self._end = time.monotonic(), [], threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Trace:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        import ray

        while not self._end.wait(0.25):
            alive = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
            if not self.points or self.points[-1][1] != alive:
                self.points.append((round(time.monotonic() - self.begin, 1), alive))

    def until(self, nodes: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.points or self.points[-1][1] != nodes:
            assert time.monotonic() < deadline, self.points
            time.sleep(0.1)

    @property
    def most(self) -> int:
        return max(nodes for _, nodes in self.points)


def job(*arguments: str) -> None:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(500)
def test_nodes_come_for_an_ingest_and_a_training_and_go_when_idle(tmp_path, write_root, toy_jets, autoscaling_head):
    import ray

    for number in range(4):
        write_root(tmp_path / f"jets-{number}.root", toy_jets(400, number))
    with autoscaling_head(NODES) as address:
        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        try:
            with Trace() as trace:
                trace.until(0, 30)
                where = f"ray.address={address}"
                job("jobs/ingest.py", f"input={tmp_path}/*.root", f"output={tmp_path / 'shards'}", where)
                assert trace.most >= 1
                trace.until(0, 90)
                training = [f"data={tmp_path / 'shards'}", f"run={tmp_path / 'run'}", where, *SMALL]
                before = len(trace.points)
                job("tests/train/pretrain_only.py", "jobs/recipes/demo.yaml", *training)
                assert max(nodes for _, nodes in trace.points[before:]) == 2
                trace.until(0, 90)
        finally:
            ray.shutdown()
    manifest = files.read_json(tmp_path / "shards" / "manifest.json")
    assert sum(split["rows"] for split in manifest["splits"].values()) == 1600
    assert load_model(tmp_path / "run" / "model.pt")
    print(f"worker nodes by second: {trace.points}")
