import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from jetfoundry import config, runs
from jetfoundry.data.shards import open_shards
from jetfoundry.errors import CheckpointError, ConfigError, InputError
from jetfoundry.features.transform import load_data_config
from jetfoundry.loading.batch import Position
from jetfoundry.loading.loader import resumed, training_batches
from jetfoundry.models.checkpoints import load_model, load_state
from jetfoundry.train.ray_train import plan, pretrain
from jetfoundry.train.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "model.change={embed_dims: [8, 8], pair_embed_dims: [4], num_layers: 1, num_heads: 2, fc_dims: [8]}",
    "loader.batch_size=32",
    "loader.micro_batches=2",
    "train.epochs=2",
    "train.log_steps=1",
    "workers.threads=1",
    "sampling.balance=classes",  # most groups of the YAML's weights are not among toy jets
]


def recipe(data, run, *overrides):
    fixed = [f"features={ROOT / 'datasets' / 'jetclass2.yaml'}", f"data={data}", f"run={run}", *SMALL]
    return config.read(Recipe, None, [*fixed, *overrides])


def rows(run, key):
    return [(row["step"], row[key]) for row in runs.read_metrics(run / "metrics.jsonl") if key in row]


@pytest.fixture(scope="module")
def trained(ray_local, tmp_path_factory, toy_shards):
    """Shards, recipe (with a data YAML of its own), run folder and result of a training with two workers."""
    folder = tmp_path_factory.mktemp("trained")
    data = toy_shards(folder / "shards", train=400, val=120)
    features = shutil.copy(ROOT / "datasets" / "jetclass2.yaml", folder)
    workers = ["workers.num_workers=2", "workers.cpus_per_worker=0.5", "workers.max_failures=0"]
    two = recipe(data, folder / "run", f"features={features}", *workers)
    run = runs.open_run(two.run, two)
    return data, two, run, pretrain(two, run)


@pytest.mark.ray
def test_two_workers_train_one_model_and_leave_everything_a_run_needs(trained):
    data, two, run, result = trained
    assert result["steps_per_epoch"] == plan(two)["steps_per_epoch"]
    assert [step for step, _ in rows(run, "val_loss")] == [result["steps_per_epoch"], 2 * result["steps_per_epoch"]]
    assert result["best"]["val_jets"] == 120  # both workers' halves
    model = load_model(run / "model.pt")
    assert len(model.classes) == 188
    assert model.meta["manifest_hash"] == open_shards(data, "train").manifest_hash
    assert "part_d0val" in model.data_yaml
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "metrics.jsonl", "tensorboard", "checkpoints"}
    phases = set(result["timing"])
    assert {"data/wait", "train/forward", "train/backward", "train/optimizer", "jets_per_s"} <= phases


@pytest.mark.ray
def test_what_is_wrong_with_the_data_reaches_the_user_as_itself(ray_local, tmp_path, toy_shards):
    features = (ROOT / "datasets" / "jetclass2.yaml").read_text().replace("(jet_pt > 200)", "(jet_pt > 20000)")
    (tmp_path / "nothing.yaml").write_text(features)
    data = toy_shards(tmp_path / "shards", train=100, val=20)
    nothing = recipe(data, tmp_path / "run", f"features={tmp_path / 'nothing.yaml'}", "workers.max_failures=0")
    run = runs.open_run(nothing.run, nothing)
    with pytest.raises(InputError, match="no jet of the train split passes the selection") as told:
        pretrain(nothing, run)
    assert type(told.value) is InputError
    assert "\n" not in str(told.value)


@pytest.mark.ray
@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_a_run_of_two_workers_at_once_and_names_a_jet(ray_local, tmp_path, toy_shards):
    data = toy_shards(tmp_path / "shards", train=200, val=20)
    two = ["workers.num_workers=2", "workers.cpus_per_worker=0.5", "train.optim.lr=1e30", "train.optim.warmup=0"]
    diverging = recipe(data, tmp_path / "run", *two)
    with pytest.raises(InputError, match=r"worker \d, step \d+: the training loss of .* is not finite.*row \d+"):
        pretrain(diverging, runs.open_run(diverging.run, diverging))
    assert (
        len(list((tmp_path / "run" / "tensorboard").glob("events*"))) == 1
    )  # workers.max_failures is for lost workers


@pytest.mark.ray
def test_a_run_does_not_continue_with_other_features(trained):
    _, two, run, _ = trained
    features = Path(two.features)
    text = features.read_text()
    features.write_text(text.replace("np.tanh(part_d0val)", "np.tanh(2 * part_d0val)"))
    try:
        with pytest.raises(CheckpointError, match="written with another data YAML"):
            pretrain(two, run)
    finally:
        features.write_text(text)


def test_what_can_be_checked_is_checked_before_anything_starts(tmp_path, toy_shards):
    data = toy_shards(tmp_path / "shards", train=100, val=0)
    with pytest.raises(InputError, match="the val split holds no jets"):
        plan(recipe(data, tmp_path / "run"))
    text = (ROOT / "datasets" / "jetclass2.yaml").read_text()
    (tmp_path / "f.yaml").write_text(text.replace("pf_vectors:", "pf_vector:"))
    data = toy_shards(tmp_path / "more", train=100, val=20)
    with pytest.raises(ConfigError, match="the network needs 'pf_vectors'; nearest: pf_vector"):
        plan(recipe(data, tmp_path / "run", f"features={tmp_path / 'f.yaml'}"))


@pytest.mark.ray
def test_a_yaml_with_weavers_simple_labels_trains_on_its_own_classes(ray_local, tmp_path, toy_shards):
    text = (ROOT / "datasets" / "jetclass2.yaml").read_text()
    features = tmp_path / "simple.yaml"
    features.write_text(text[: text.index("labels:")] + "labels: {type: simple, value: [X_QQ, QCD]}\n")
    data = toy_shards(tmp_path / "shards", train=200, val=40)
    own = [f"features={features}", "labels=", "train.epochs=1"]
    simple = recipe(data, tmp_path / "run", *own)
    run = runs.open_run(simple.run, simple)
    assert pretrain(simple, run)["best"]["val_jets"] == 40
    assert load_model(run / "model.pt").classes == ("X_QQ", "QCD")


@pytest.mark.ray
@pytest.mark.slow
def test_a_trained_network_is_the_beginning_of_another_task_and_what_is_frozen_stays(trained, tmp_path):
    data, _, run, _ = trained
    taken = [f"model.init={run / 'model.pt'}", r"model.freeze=['embed\.', 'pair_embed', 'blocks']", "train.epochs=1"]
    signal = recipe(data, tmp_path / "run", "labels=sophon42", *taken)
    pretrain(signal, runs.open_run(signal.run, signal))
    before, after = (load_model(folder / "model.pt").weights for folder in (run, tmp_path / "run"))
    same = {name for name in after if torch.equal(after[name], before[name])}
    assert same == {name for name in after if name.startswith(("embed.", "pair_embed", "blocks"))}
    with pytest.raises(ConfigError, match=r"freeze: 'blcks' matches no parameter"):
        plan(recipe(data, tmp_path / "run", "model.freeze=[blcks]"))


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_continues_with_another_number_of_workers_on_the_jets_that_are_left(ray_local, tmp_path, toy_shards):
    data = toy_shards(tmp_path / "shards", train=900, val=40)
    steps = ["train.steps_per_epoch=4", "workers.cpus_per_worker=0.5", "sampling.balance=natural"]
    first = recipe(data, tmp_path / "run", *steps, "train.epochs=1", "workers.num_workers=2")
    run = runs.open_run(first.run, first)
    pretrain(first, run)
    more = recipe(data, tmp_path / "run", *steps, "train.epochs=2", "workers.num_workers=3", "workers.max_failures=0")
    spec = plan(more)
    spec["identity"] = plan(first)["identity"]  # of a run that was planned for two epochs from the start
    pretrain(more, run, spec)
    found = [load_state(path) for path in sorted((run / "checkpoints").glob("step_*/state.pt"))]
    assert [state["step"] for state in found] == [4, 8]
    assert [len(state["positions"]) for state in found] == [2, 3]
    train, data_config = open_shards(data, "train"), load_data_config(more.features, scheme="sophon188")
    seen = jets_of_steps(train, data_config, more, [Position()] * 2, 4)
    start = resumed(train, more.loader, more.train.seed, [Position(*place) for place in found[0]["positions"]])
    seen += jets_of_steps(train, data_config, more, [start] * 3, 4)
    assert len(seen) > 450
    assert len(seen) == len(set(seen))


def jets_of_steps(train, data, recipe, starts, steps):
    """First feature of the first particle of all jets that the workers use: it names a toy jet."""
    world, names = len(starts), []
    for rank, start in enumerate(starts):
        place = {"seed": recipe.train.seed, "rank": rank, "world": world, "start": start}
        batches = training_batches(train, data, recipe.loader, recipe.sampling, **place)
        for batch, _ in itertools.islice(batches, steps):
            names += [tuple(jet) for micro in batch.micro for jet in micro.inputs["pf_vectors"][:, :, 0].tolist()]
    return names


@pytest.mark.ray
@pytest.mark.slow
def test_the_ray_feed_trains_the_same_model_and_from_root_too(ray_local, tmp_path, toy_shards, toy_jets, write_root):
    data = toy_shards(tmp_path / "shards", train=300, val=40)
    models = []
    for feed in ("direct", "ray"):
        one = recipe(data, tmp_path / feed, "train.epochs=1", f"loader.feed={feed}", "workers.cpus_per_worker=0.5")
        pretrain(one, runs.open_run(one.run, one))
        models.append(load_model(tmp_path / feed / "model.pt").weights)
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    write_root(tmp_path / "root" / "jets.root", toy_jets(300), cluster=50)
    root = recipe(f"{tmp_path}/root/*.root", tmp_path / "root_run", "train.epochs=1", "loader.feed=ray")
    run = runs.open_run(root.run, root)
    assert pretrain(root, run)["best"]["val_jets"] > 10


@pytest.mark.ray
def test_the_ray_feed_needs_a_cpu_beside_the_workers(ray_local, tmp_path, toy_shards):
    data = toy_shards(tmp_path / "shards", train=100, val=20)
    full = recipe(data, tmp_path / "run", "loader.feed=ray", "workers.num_workers=4")
    with pytest.raises(ConfigError, match="needs a CPU that no worker has reserved, 0 of 4 are left"):
        pretrain(full, runs.open_run(full.run, full))


@pytest.mark.ray
def test_gpus_that_this_machine_does_not_have_are_not_waited_for(ray_local, tmp_path, toy_shards):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    wanted = recipe(toy_shards(tmp_path / "shards", train=100, val=50), tmp_path / "run", "workers.use_gpu=true")
    with pytest.raises(ConfigError, match=r"this machine has 0 GPUs; train on the CPU with workers.use_gpu=false"):
        pretrain(wanted, runs.open_run(wanted.run, wanted))


def test_a_recipe_with_an_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown key 'train.epoch'; nearest: epochs"):
        recipe("d", "r", "train.epoch=3")


def test_heads_that_nothing_would_train_are_refused(tmp_path, toy_shards):
    data = toy_shards(tmp_path / "shards", train=100, val=20)
    two = "model.change={tasks: [{name: classification}, {name: mass, outputs: 1}]}"
    with pytest.raises(ConfigError, match=r"tasks: nothing trains mass"):
        plan(recipe(data, tmp_path / "run", two))


def test_unknown_preset_and_model_option_name_the_nearest(tmp_path, toy_shards):
    data = toy_shards(tmp_path / "shards", train=100, val=20)
    with pytest.raises(ConfigError, match="unknown preset 'demmo'; nearest: demo"):
        pretrain(recipe(data, tmp_path / "run", "model.preset=demmo"), tmp_path)
    with pytest.raises(ConfigError, match="unknown key 'num_layer'; nearest: num_layers"):
        pretrain(recipe(data, tmp_path / "run", "model.change={num_layer: 2}"), tmp_path)


def test_a_run_folder_refuses_another_configuration_but_not_another_address(tmp_path):
    runs.open_run(tmp_path / "run", recipe("typo", "r"))
    runs.open_run(tmp_path / "run", recipe("d", "r", "ray.num_cpus=7"), may_change=["ray.num_cpus"])
    runs.open_run(tmp_path / "run", recipe("d", "r"))  # nothing was made with it yet: a typo may be mended
    (tmp_path / "run" / "metrics.jsonl").touch()
    with pytest.raises(CheckpointError, match=r"train.epochs: was 2, now 9"):
        runs.open_run(tmp_path / "run", recipe("d", "r", "train.epochs=9"))


def start(data, run):
    arguments = [f"data={data}", f"run={run}", *SMALL, "train.epochs=4", "train.checkpoint_steps=5", "discriminants=[]"]
    command = [sys.executable, "jobs/pretrain.py", "jobs/recipes/demo.yaml", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "RAY_AUTH_MODE": "disabled"}, stderr=subprocess.PIPE)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_with_signal_9_and_started_again_it_ends_with_the_same_model_and_history(tmp_path, toy_shards):
    data = toy_shards(tmp_path / "shards", train=600, val=60)
    quiet = start(data, tmp_path / "quiet")
    assert quiet.wait(200) == 0, quiet.stderr.read().decode()

    killed = start(data, tmp_path / "killed")
    deadline = time.monotonic() + 200
    while not list((tmp_path / "killed" / "checkpoints").glob("step_*/state.pt")):
        assert killed.poll() is None, killed.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "model.pt").exists()

    again = start(data, tmp_path / "killed")
    assert again.wait(200) == 0, again.stderr.read().decode()
    assert rows(tmp_path / "killed", "val_loss") == rows(tmp_path / "quiet", "val_loss")
    one, two = (load_model(tmp_path / name / "model.pt").weights for name in ("quiet", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one)
