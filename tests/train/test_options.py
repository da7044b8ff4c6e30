"""Options of a run that are handed to Ray or to a service: what reaches them, and what is refused before."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from torch import nn

from jetfoundry import config, runs
from jetfoundry.errors import CheckpointError, ClusterError, ConfigError, InputError
from jetfoundry.loading.batch import Batch, MicroBatch
from jetfoundry.models.checkpoints import load_model
from jetfoundry.train import ray_train
from jetfoundry.train.loop import TrainConfig
from jetfoundry.train.lr_finder import find_learning_rate, range_test
from jetfoundry.train.optim import OptimConfig, build_optimizer, restore_optimizer
from jetfoundry.train.ray_notice import stop_on_signal
from jetfoundry.train.ray_train import plan, pretrain
from jetfoundry.train.recipe import CheckpointsConfig, Recipe, WorkersConfig

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    f"features={ROOT / 'datasets' / 'jetclass2.yaml'}",
    "model.change={embed_dims: [8, 8], pair_embed_dims: [4], num_layers: 1, num_heads: 2, fc_dims: [8]}",
    "loader.batch_size=32",
    "loader.micro_batches=2",
    "train.epochs=4",
    "train.steps_per_epoch=5",
    "train.log_steps=1",
    "workers.threads=1",
    "workers.cpus_per_worker=0.5",
    "sampling.balance=classes",
]


def recipe(data, run, *options):
    return config.read(Recipe, None, [*SMALL, f"data={data}", f"run={run}", *options])


def scaling(**options):
    """What Ray Train is asked for."""
    workers = WorkersConfig(**options)
    return ray_train._trainer({"run": "/nowhere"}, workers, CheckpointsConfig()).scaling_config


def test_a_share_of_a_gpu_is_asked_for_and_nccl_is_not():
    half = {"num_workers": 4, "use_gpu": True, "gpus_per_worker": 0.5}
    assert scaling(**half).resources_per_worker == {"CPU": 1.0, "GPU": 0.5}
    assert scaling(**half).num_workers == 4
    assert WorkersConfig(**half).backend == "gloo"
    assert WorkersConfig(use_gpu=True).backend == "nccl"
    assert "GPU" not in scaling(gpus_per_worker=0.5).resources_per_worker
    with pytest.raises(ValueError, match="wanted 0 < gpus_per_worker <= 1, a worker computes on one GPU; got 2"):
        WorkersConfig(gpus_per_worker=2)


def test_an_elastic_run_names_both_numbers_to_ray():
    assert scaling(num_workers=4, min_workers=2).num_workers == (2, 4)
    assert scaling(num_workers=4, min_workers=4).num_workers == 4
    with pytest.raises(ValueError, match="wanted 0 <= min_workers <= num_workers"):
        WorkersConfig(num_workers=2, min_workers=3)


@pytest.mark.ray
def test_shares_of_a_gpu_that_this_machine_does_not_have_are_refused(ray_local, tmp_path, toy_shards):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    data = toy_shards(tmp_path / "shards", train=100, val=50)
    wanted = recipe(data, tmp_path / "run", "workers.use_gpu=true", "workers.gpus_per_worker=0.5")
    with pytest.raises(ConfigError, match=r"this machine has 0 GPUs; train on the CPU with workers.use_gpu=false"):
        pretrain(wanted, runs.open_run(wanted.run, wanted))


@pytest.mark.ray
def test_cpus_that_this_machine_does_not_have_are_not_waited_for(ray_local, tmp_path, toy_shards):
    data = toy_shards(tmp_path / "shards", train=100, val=50)
    wanted = recipe(data, tmp_path / "run", "workers.num_workers=9", "workers.cpus_per_worker=1")
    with pytest.raises(ConfigError, match=r"9 worker\(s\) of 1 CPUs, but this Ray has 4; lower workers.num_workers"):
        pretrain(wanted, runs.open_run(wanted.run, wanted))


def test_waiting_for_machines_ends(monkeypatch):
    from jetfoundry.train import ray_watch

    monkeypatch.setattr(ray_watch, "_resources", lambda: "1 node(s) with 1 CPUs and 0 GPUs in all")
    clock = iter([100.0, 100.0, 159.0, 500.0, 500.0, 559.0, 561.0])
    monkeypatch.setattr(ray_watch.time, "monotonic", lambda: next(clock))
    running, waiting = type("RunningState", (), {})(), type("ReschedulingState", (), {})()
    limit = ray_watch.RunWatch(60, "2 worker(s) of 1 CPU")
    limit.after_controller_state_update(running, waiting)
    limit.after_controller_state_update(waiting, waiting)
    limit.after_controller_state_update(waiting, running)  # the count begins anew
    limit.after_controller_state_update(running, waiting)
    limit.after_controller_state_update(waiting, waiting)
    wanted = (
        r"waited 1 minutes \(workers.wait_minutes\) for 2 worker\(s\) of 1 CPU; the cluster has 1 node\(s\) with 1 "
    )
    with pytest.raises(ClusterError, match=wanted):
        limit.after_controller_state_update(waiting, waiting)


def test_a_signal_leaves_the_file_that_asks_a_run_to_end_and_nothing_after_it(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    (tmp_path / "stop").touch()  # of an earlier run
    with stop_on_signal(tmp_path):
        assert not (tmp_path / "stop").exists()
        os.kill(os.getpid(), signal.SIGTERM)
        assert (tmp_path / "stop").exists()
    assert not (tmp_path / "stop").exists()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture(scope="module")
def best_of(ray_local, tmp_path_factory, toy_shards):
    """Shards and run of four epochs of which the two with the smallest loss are kept."""
    folder = tmp_path_factory.mktemp("best")
    data = toy_shards(folder / "shards", train=400, val=60)
    kept = ["checkpoints.keep=2", "checkpoints.metric=val_loss", "checkpoints.order=min", "train.checkpoint_steps=3"]
    chosen = recipe(data, folder / "run", *kept)
    run = runs.open_run(chosen.run, chosen)
    return data, kept, run, pretrain(chosen, run)


@pytest.mark.ray
def test_the_best_checkpoints_and_the_latest_are_kept_and_the_best_becomes_the_model(best_of):
    _, _, run, result = best_of
    losses = {row["step"]: row["val_loss"] for row in runs.read_metrics(run / "metrics.jsonl") if "val_loss" in row}
    best = sorted(losses, key=losses.__getitem__)
    steps = {int(path.name[5:]) for path in (run / "checkpoints").glob("step_*")}
    assert steps == {*best[:2], 20}
    assert result["best"]["val_loss"] == losses[best[0]]
    assert load_model(run / "model.pt").meta["step"] == best[0]


@pytest.mark.ray
def test_a_run_does_not_continue_with_another_class_list_or_architecture(best_of):
    data, kept, run, _ = best_of
    deeper = "model.change={embed_dims: [8, 8], pair_embed_dims: [4], num_layers: 2, num_heads: 2, fc_dims: [8]}"
    for option, what in (("labels=sophon42", "class list"), (deeper, "architecture")):
        other = recipe(data, run, *kept, option, "workers.max_failures=0")
        with pytest.raises(CheckpointError, match=rf"was written with another {what}; choose another run folder"):
            pretrain(other, run)


def test_a_figure_that_no_validation_gives_is_refused_at_once(tmp_path, toy_shards):
    chosen = recipe(toy_shards(tmp_path / "s", train=100, val=50), tmp_path, "checkpoints.metric=val_acuracy")
    with pytest.raises(ConfigError, match="the validation gives no 'val_acuracy'; nearest: val_accuracy"):
        pretrain(chosen, tmp_path)
    with pytest.raises(ValueError, match=r"set checkpoints.order=min"):
        CheckpointsConfig(metric="val_loss")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_continues_from_checkpoints_on_s3(tmp_path, toy_shards):
    data = toy_shards(tmp_path / "shards", train=400, val=60)
    (tmp_path / "bucket").mkdir()
    run, script = tmp_path / "run", ROOT / "tests" / "train" / "pretrain_only.py"
    options = [*SMALL, f"data={data}", f"run={run}", "checkpoints.storage=s3://jets/runs/one"]
    options += ["train.epochs=1", "train.steps_per_epoch=100000", "discriminants=[]"]  # it is ended by the file `stop`
    command = [sys.executable, str(script), str(ROOT / "jobs" / "recipes" / "demo.yaml"), *options]
    with s3_server(tmp_path / "bucket") as url:
        keys = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        for _ in range(2):
            job = subprocess.Popen(command, env={**os.environ, **keys}, stderr=subprocess.PIPE, text=True)
            seen = before = runs.read_metrics(run / "metrics.jsonl")
            while len(seen) < len(before) + 20:
                assert job.poll() is None, job.communicate()[1]
                time.sleep(0.1)
                seen = runs.read_metrics(run / "metrics.jsonl")
            (run / "stop").touch()
            assert job.wait(200) == 130
            assert not list(run.rglob("state.pt"))
        steps = [row["step"] for row in runs.read_metrics(run / "metrics.jsonl") if "loss" in row]
        assert steps == list(range(1, len(steps) + 1))
        stored = fsspec.filesystem("s3", endpoint_url=url, key="a", secret="b").glob("jets/runs/one/**/state.pt")
    assert f"step_{steps[-1]:08d}" in {path.split("/")[-2] for path in stored}


@pytest.mark.ray
def test_a_storage_without_credentials_is_named_at_once(ray_local, tmp_path, toy_shards, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # it keeps the credentials of tests before this one
    data = toy_shards(tmp_path / "shards", train=100, val=50)
    chosen = recipe(data, tmp_path / "run", "checkpoints.storage=s3://nobodys-bucket/run")
    with pytest.raises(InputError, match="s3://nobodys-bucket/run: cannot use: refused: NoCredentialsError"):
        pretrain(chosen, runs.open_run(chosen.run, chosen))


@contextlib.contextmanager
def s3_server(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, str(ROOT / "tests" / "data" / "s3_server.py"), str(port), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(600):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(url, timeout=1).close()
                    break
                time.sleep(0.1)
            yield url
        finally:
            process.kill()


def test_an_optimiser_state_that_does_not_fit_is_refused():
    def optimizer(*sizes, **options):
        model = nn.Sequential(*(nn.Linear(a, b) for a, b in sizes))
        made = build_optimizer(model, OptimConfig(**options))
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        made.step()
        return made

    state = optimizer((2, 3)).state_dict()
    restore_optimizer(optimizer((2, 3)), state)
    with pytest.raises(CheckpointError, match=r"does not fit: it is of groups of \[1, 1\] parameters, wanted \[2, 2\]"):
        restore_optimizer(optimizer((2, 3), (3, 2)), state)
    with pytest.raises(CheckpointError, match=r"exp_avg of parameter 0 is \(3, 2\), wanted \(4, 2\)"):
        restore_optimizer(optimizer((2, 4)), state)
    with pytest.raises(CheckpointError, match=r"it is not of a Ranger \(.*fast_steps"):
        restore_optimizer(optimizer((2, 3), name="ranger"), state)


def test_the_range_test_finds_the_rates_at_which_a_known_problem_learns_and_diverges():
    class Network(nn.Module):
        inputs = ("pf_features", "pf_mask")

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, features, mask):
            return self.linear(features.mean(dim=2))

    def batches():
        rng = np.random.default_rng(1)
        while True:
            labels = torch.from_numpy(rng.integers(0, 2, 32))
            features = torch.from_numpy(rng.normal(size=(32, 2, 3)).astype(np.float32)) + labels[:, None, None]
            yield Batch((MicroBatch({"pf_features": features, "pf_mask": torch.ones(32, 1, 3)}, labels),), 32)

    torch.manual_seed(1)
    found = range_test(Network(), batches(), TrainConfig(), torch.device("cpu"), highest=1000.0)
    assert found.diverged
    assert len(found.rates) < 100
    assert found.rates[0] == 1e-6
    assert 1e-3 < found.suggestion < 3
    assert found.suggestion < found.rates[int(np.argmin(found.smoothed))]


def test_looking_for_a_learning_rate_leaves_the_run_as_it_is(tmp_path, toy_shards):
    chosen = recipe(toy_shards(tmp_path / "shards", train=400, val=60), tmp_path / "run", "find_lr=true")
    found = find_learning_rate(chosen, plan(chosen))
    assert np.isfinite(found.losses).all()
    assert found.rates[0] < found.suggestion < 10
    run = runs.open_run(tmp_path / "run", chosen)
    (run / "find_lr").mkdir()
    other = recipe(chosen.data, run, "train.optim.lr=0.03")
    runs.open_run(run, other)  # the answer is used: the folder is still free for another rate
