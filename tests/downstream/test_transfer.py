"""Transfer from the options to the report. Most tests run its trials one after the other in this process, instead of
Ray: the same functions, without actors. Those marked `ray` are about the fan-out itself."""

import dataclasses
import json
import shutil
import sys
import types

import numpy as np
import pytest
import torch

from jetfoundry import config, files, runs
from jetfoundry.downstream import embeddings, fanout
from jetfoundry.downstream.fanout import ResourcesConfig
from jetfoundry.downstream.finetune import NetworkConfig
from jetfoundry.downstream.methods import MethodsConfig
from jetfoundry.downstream.mlp import MlpConfig
from jetfoundry.downstream.shelf import open_backbones
from jetfoundry.downstream.transfer import MAY_CHANGE, TransferConfig, transfer
from jetfoundry.downstream.transfer_report import matrix, write_transfer_report
from jetfoundry.errors import ClusterError, ConfigError, InputError
from jetfoundry.labels import label_scheme
from jetfoundry.models.checkpoints import load_model, save_model
from jetfoundry.models.tasks import TaskConfig

BINARY = """
name: toy
title: toy jets
label: {scheme: "binary:X_bb vs QCD"}
budget: {epochs: 5, batch_size: 64}
"""
BINS = """
name: bins
title: toy jets in bins of pT
label: {formula: "np.minimum(np.floor(jet_pt / 350), 2)"}
metrics: {within_one: true}
classes: [low, middle, high]
budget: {epochs: 2, batch_size: 64}
"""
QUICK = MethodsConfig(
    mlp=MlpConfig(widths=(4, 8), depths=(1,), lrs=(1e-2,), epochs=3, batch_size=64),
    network=NetworkConfig(epochs=1, min_steps=2, batch_size=64, micro_batches=2),
    substructure="datasets/substructure.yaml",
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, small_model, toy_shards):
    """Two backbones, one with two class tokens, two tasks, 300 + 100 toy jets."""
    folder = tmp_path_factory.mktemp("transfer")
    toy_shards(folder / "shards", train=300, val=100)
    shutil.copytree(small_model, folder / "one", ignore=shutil.ignore_patterns("embeddings"))
    file = load_model(small_model / "model.pt")
    tokens = (TaskConfig(), TaskConfig(name="contrastive", class_blocks="classification", outputs=4))
    wider = dataclasses.replace(file.model_config, tasks=tokens)
    torch.manual_seed(4)
    from jetfoundry.models.presets import build

    save_model(
        folder / "two" / "model.pt",
        model_name="particle_transformer",
        model_config=wider,
        weights=build(wider).state_dict(),
        classes=label_scheme("sophon188").classes,
        data_yaml=file.data_yaml,
        meta={},
    )
    (folder / "tasks").mkdir()
    (folder / "tasks" / "toy.yaml").write_text(BINARY)
    (folder / "tasks" / "bins.yaml").write_text(BINS)
    return folder


@pytest.fixture
def without_ray(monkeypatch):
    """Embeddings and trials in this process; a list of the trials that were run."""
    monkeypatch.setitem(
        sys.modules, "ray", types.SimpleNamespace(put=lambda each: each, cluster_resources=lambda: {"CPU": 2})
    )

    def embed(todo, network, jets, workers, gpus, key):
        actor = embeddings.EmbedShard(todo, key, **network)
        for number in range(len(todo)):
            actor({"number": number})

    ran = []

    def run(missing, folder, options, resources):
        errors = {}
        for key, work in missing.items():
            grid, last = fanout.grid_of(work.trial.method, options), []
            for number, point in enumerate(grid):
                path = fanout._point_path(work.trial, folder, number if len(grid) > 1 else None)
                ran.append(work.trial)
                try:
                    loss, _ = fanout.run_point(
                        work, point, options, path, get=lambda each: each, report=lambda *_: None
                    )
                except InputError as error:
                    errors[key] = fanout._text(error)
                    continue
                last.append({"number": number, "epoch": 3, fanout._HELD_OUT: loss, "time_total_s": 1.0})
            if len(grid) > 1:
                fanout._choose(work.trial, folder, grid, last)
        return errors

    monkeypatch.setattr(embeddings, "_run", embed)
    monkeypatch.setattr(fanout, "_run", run)
    return ran


def options_of(workplace, *backbones, **changed):
    given = {"seeds": 2, "methods": ("probe",), "replicas": 30, "method": QUICK, "embed_workers": 1} | changed
    return TransferConfig(
        tasks=str(workplace / "tasks"),
        backbone=tuple(str(workplace / name) for name in backbones),
        data=str(workplace / "shards"),
        **given,
    )


def run(workplace, folder, options):
    runs.open_run(folder, options, MAY_CHANGE)
    figures = transfer(options, folder)
    runs.write_summary(folder, **figures)
    return figures


def test_all_methods_of_two_backbones_give_one_table_and_a_report(workplace, tmp_path, without_ray):
    methods = ("probe", "mlp", "finetune", "scratch")
    options = options_of(workplace, "one", "two", methods=methods, sizes=(0.3, 1))
    figures = run(workplace, tmp_path / "out", options)
    rows = figures["table"]
    per_backbone = {
        name: {(row["method"], row["token"]) for row in rows if row["backbone"] == name} for name in ("one", "two", "")
    }
    frozen = [(method, token) for method in ("probe", "mlp") for token in ("classification", "contrastive", "both")]
    whole = [(method, "") for method in ("finetune", "scratch")]
    assert per_backbone["one"] == {("probe", "classification"), ("mlp", "classification"), *whole, ("model scores", "")}
    assert per_backbone["two"] == {*frozen, *whole, ("model scores", "")}
    assert not per_backbone[""]
    assert figures["failed_trials"] == 0
    compared = [row for row in rows if row["backbone"] == "two" and row["figure"] == "accuracy"]
    assert {row["reference"] for row in compared} == {"one"}
    assert all(row["verdict"] in ("better", "worse", "noise") for row in compared)
    assert not any("verdict" in row for row in rows if row["backbone"] == "one")
    probe = {
        row["size"]: row for row in rows if (row["task"], row["method"], row["figure"]) == ("toy", "probe", "accuracy")
    }
    assert (probe[0.3]["train_jets"], probe[1.0]["train_jets"]) == (90, 300)
    assert probe[1.0]["seeds"] == 2
    # Two class tokens in one cache, embedded together.
    assert [(each["backbone"], each["computed"]) for each in figures["embeddings"]] == [("one", 1), ("two", 1)] * 2
    page = write_transfer_report(tmp_path / "out", "toy").read_text()
    for text in (
        "Who wins",
        "probe (both)",
        "≈",
        "survivors",
        "Frozen embeddings",
        "data:image/png",
        "within one class",
    ):
        assert text in page
    assert (tmp_path / "out" / "plots" / "jets_toy.png").exists()
    header = (tmp_path / "out" / "table.csv").read_text().splitlines()[0]
    for name in ("task", "backbone", "method", "token", "size", "figure", "value", "std", "error", "survivors", "p"):
        assert name in header.split(",")


def test_the_same_command_computes_nothing_and_a_lost_trial_is_done_again(workplace, tmp_path, without_ray):
    options = options_of(workplace, "one")
    first = run(workplace, tmp_path / "out", options)
    assert (first["trials_found"], first["trials_run"]) == (0, 4)
    without_ray.clear()
    again = run(workplace, tmp_path / "out", options)
    assert (again["trials_found"], again["trials_run"], without_ray) == (4, 0, [])
    assert sum(each["computed"] for each in again["embeddings"]) == 0
    next((tmp_path / "out" / "trials").glob("toy-*.json")).unlink()
    third = run(workplace, tmp_path / "out", options)
    assert [trial.task for trial in without_ray] == ["toy"]
    assert [row["value"] for row in third["table"]] == [row["value"] for row in first["table"]]
    # Another discriminant, title or seed more needs no training again; another budget does.
    more = run(workplace, tmp_path / "out", dataclasses.replace(options, seeds=3))
    assert (more["trials_found"], more["trials_run"]) == (4, 2)


def test_backbones_of_one_architecture_share_trainings_from_random_weights(workplace, tmp_path, without_ray):
    shutil.copytree(workplace / "one", tmp_path / "three")
    file = load_model(tmp_path / "three" / "model.pt")
    weights = {name: weight + 0.01 for name, weight in file.weights.items()}
    save_model(
        tmp_path / "three" / "model.pt",
        model_name=file.model_name,
        model_config=file.model_config,
        weights=weights,
        classes=file.classes,
        data_yaml=file.data_yaml,
        meta={},
    )
    options = options_of(workplace, "one", tmp_path / "three", methods=("scratch",), seeds=1)
    figures = run(workplace, tmp_path / "out", options)
    assert figures["trials_run"] == 2  # one for each task
    assert {row["backbone"] for row in figures["table"] if row["method"] == "scratch"} == {"one", "three"}


def test_nan_in_one_trial_is_a_row_and_the_others_go_on(workplace, tmp_path, without_ray, monkeypatch):
    from jetfoundry.downstream import methods

    honest = methods.linear_probe

    def probe(problem, budget):
        logits = honest(problem, budget)
        return np.full_like(logits, np.nan) if problem.seed == 2 and problem.num_classes == 2 else logits

    monkeypatch.setattr(methods, "linear_probe", probe)
    figures = run(workplace, tmp_path / "out", options_of(workplace, "one"))
    assert figures["failed_trials"] == 1
    (failed,) = (row for row in figures["trials"] if "error" in row)
    assert (failed["task"], failed["seed"]) == ("toy", 2)
    assert "probe: logits: 200 of 200 values are NaN or infinite" in failed["error"]
    rows = {(row["task"], row["method"]): row for row in figures["table"] if row["figure"] == "accuracy"}
    assert (rows["toy", "probe"]["seeds"], rows["toy", "probe"]["failed"]) == (1, 1)
    assert (rows["bins", "probe"]["seeds"], rows["bins", "probe"]["failed"]) == (2, 0)
    assert "Failed trials" in write_transfer_report(tmp_path / "out", "toy").read_text()
    monkeypatch.setattr(methods, "linear_probe", honest)
    assert run(workplace, tmp_path / "out", options_of(workplace, "one"))["failed_trials"] == 0


def test_full_memory_ends_no_fan_out_but_has_fewer_trials_run_at_once(workplace, tmp_path, without_ray, monkeypatch):
    one_process, at_once = fanout._run, []

    def until_full(missing, folder, options, resources):
        at_once.append((resources.concurrent, len(missing)))
        one_process(dict(list(missing.items())[:1]), folder, options, resources)
        raise fanout._MemoryFull

    monkeypatch.setattr(fanout, "_run", until_full)
    with pytest.raises(ClusterError, match="memory is full with one trial at once: take fewer jets"):
        run(workplace, tmp_path / "out", options_of(workplace, "one"))
    assert at_once == [(0, 4), (1, 3)]  # two CPUs: two at once, then one
    assert len(list((tmp_path / "out").glob("trials/**/*.npy"))) == 2
    monkeypatch.setattr(fanout, "_run", one_process)
    without_ray.clear()
    run(workplace, tmp_path / "out", options_of(workplace, "one"))
    assert len(without_ray) == 2


def test_a_task_of_which_every_trial_failed_has_a_row(workplace, tmp_path, without_ray, monkeypatch):
    from jetfoundry.downstream import methods

    monkeypatch.setattr(methods, "linear_probe", lambda problem, _: np.full((len(problem.evaluate), 2), np.nan))
    figures = run(workplace, tmp_path / "out", options_of(workplace, "one"))
    assert figures["failed_trials"] == 4
    assert "failed" in [cell for line in matrix(figures) for cell in line.values()]
    assert write_transfer_report(tmp_path / "out", "toy").exists()


def test_backbone_that_needs_columns_the_data_lack(workplace, tmp_path, without_ray):
    shutil.copytree(workplace / "one", tmp_path / "strange")
    file = load_model(tmp_path / "strange" / "model.pt")
    save_model(
        tmp_path / "strange" / "model.pt",
        model_name=file.model_name,
        model_config=file.model_config,
        weights=file.weights,
        classes=file.classes,
        data_yaml=file.data_yaml.replace("part_d0val", "part_ip3d"),
        meta={},
    )
    with pytest.raises(InputError, match=r"backbone strange needs columns that .* lacks: .*part_ip3d"):
        run(workplace, tmp_path / "out", options_of(workplace, "one", tmp_path / "strange"))


def test_a_task_without_jets_says_so(workplace, tmp_path, without_ray):
    (tmp_path / "none.yaml").write_text('name: none\ntitle: x\nlabel: {scheme: "binary:X_cc vs X_ss"}\n')
    options = dataclasses.replace(options_of(workplace, "one"), tasks=str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match=r"task none, train jets of .*: no jet takes part: 300 jets"):
        run(workplace, tmp_path / "out", options)


@pytest.mark.parametrize(
    ("asked", "wanted"), [({"network_gpus": 0.5}, "1 CPU and 0.5 GPU"), ({"network_cpus": 3}, "3 CPU")]
)
def test_what_no_trial_could_ever_get_is_refused(workplace, tmp_path, without_ray, asked, wanted):
    options = options_of(workplace, "one", methods=("probe", "finetune"), resources=ResourcesConfig(**asked))
    with pytest.raises(ConfigError, match=f"a trial of finetune wants {wanted}, this Ray has 2 CPU and 0 GPU"):
        run(workplace, tmp_path / "out", options)


def test_options_of_a_command_line():
    arguments = ["backbone=runs/a,runs/b", "methods=probe,finetune", "sizes=1,0.01,0.1"]
    options = config.read(TransferConfig, None, ["tasks=datasets/tasks/", *arguments])
    assert options.backbone == ("runs/a", "runs/b")
    assert options.methods == ("probe", "finetune")
    assert options.sizes == (0.01, 0.1, 1.0)
    assert str(options.folder) == "runs/transfer/tasks"
    one = config.read(TransferConfig, None, ["tasks=datasets/tasks/demo.yaml", "backbone=runs/demo"])
    assert str(one.folder) == "runs/demo/transfer/demo"
    with pytest.raises(ConfigError, match="wanted sizes above 0 and up to 1"):
        config.read(TransferConfig, None, ["sizes=0,1"])
    with pytest.raises(ConfigError, match="no method 'prob'; nearest: probe"):
        config.read(TransferConfig, None, ["methods=prob"])


def test_backbones_are_named_by_what_tells_them_apart(workplace, tmp_path):
    shutil.copytree(workplace / "one", tmp_path / "a" / "run")
    shutil.copytree(workplace / "two", tmp_path / "b" / "run")
    found = open_backbones([str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run")])
    assert [each.name for each in found] == ["a/run", "b/run"]
    assert [list(each.variants) for each in found] == [["classification"], ["classification", "contrastive", "both"]]
    with pytest.raises(ConfigError, match="each once"):
        open_backbones([str(workplace / "one"), str(workplace / "two" / ".." / "one")])


def test_recipes_of_several_backbones_are_compared(workplace, tmp_path, without_ray):
    names = {name: str(workplace / name) for name in ("one", "two")}
    recipes = (f"plain:{names['one']}", f"tokens:{names['two']}")
    figures = run(workplace, tmp_path / "out", options_of(workplace, "one", "two", recipes=recipes, seeds=1))
    assert {(row["recipe"], row["reference"], row["verdict"]) for row in figures["recipes"]} == {
        ("tokens", "plain", "one seed")
    }
    assert "nothing can be said" in figures["recipes_verdict"]
    page = write_transfer_report(tmp_path / "out", "toy").read_text()
    assert page.index("Which pre-training") < page.index("Who wins") < page.index("Recipes")
    assert figures["recipes_verdict"] in page
    with pytest.raises(ConfigError, match="'runs/x' is no backbone"):
        run(workplace, tmp_path / "b", options_of(workplace, "one", recipes=("a:runs/x",)))


def test_targets_baselines_and_weights_have_their_rows(workplace, tmp_path, without_ray):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "toy.yaml").write_text(
        BINARY
        + 'baselines: {pT: {formula: jet_pt, compare: ["X_bb vs QCD"]}}\n'
        + "reweighting: {variables: {jet_pt: [200, 600, 1200], jet_sdmass: [0, 250, 600]}}\n"
    )
    (tmp_path / "tasks" / "mass.yaml").write_text(
        "name: mass\ntitle: x\nlabel: {target: jet_pt, relative_to: jet_sdmass}\nbudget: {epochs: 2}\n"
    )
    options = options_of(workplace, "one", "two", methods=("probe", "finetune", "boosting"), seeds=2)
    figures = run(workplace, tmp_path / "out", dataclasses.replace(options, tasks=str(tmp_path / "tasks")))
    assert figures["failed_trials"] == 0
    found = {(row["task"], row["method"]) for row in figures["table"]}
    assert found == {
        ("toy", "baseline: pT"), ("toy", "model scores"), ("mass", "reference quantity"),
        *((task, method) for task in ("toy", "mass") for method in ("probe", "finetune", "boosting")),
    }  # fmt: skip
    mass = [row for row in figures["table"] if row["task"] == "mass" and row["figure"] == "resolution"]
    assert all(row["verdict"] in ("better", "worse", "noise") for row in mass if row["backbone"] == "two")
    page = write_transfer_report(tmp_path / "out", "toy").read_text()
    assert "baseline: pT" in page
    assert "resolution" in page


def test_resources_belong_to_the_method():
    resources = ResourcesConfig(cpus=0.5, network_cpus=2, network_gpus=0.25)
    assert resources.of("probe") == {"CPU": 0.5}
    assert resources.of("scratch") == {"CPU": 2, "GPU": 0.25}


@pytest.mark.ray
def test_fan_out_by_tune_with_a_grid_and_what_is_left_after_an_interruption(workplace, tmp_path, ray_local):
    options = options_of(
        workplace, "one", "two", methods=("probe", "mlp", "scratch"), resources=ResourcesConfig(cpus=0.5)
    )
    figures = run(workplace, tmp_path / "out", options)
    assert figures["failed_trials"] == 0
    grids = [row for row in figures["trials"] if row["method"] == "mlp"]
    assert all(len(row["grid"]) == 2 and any(point["ended"] for point in row["grid"]) for row in grids)
    assert not list((tmp_path / "out" / "trials").glob("*-point*"))
    # Mark one result, lose another: only the lost one is computed again.
    lost, kept = sorted((tmp_path / "out" / "trials").glob("toy-probe-*.json"))[:2]
    kept.write_text(json.dumps(files.read_json(kept) | {"marked": True}))
    lost.unlink()
    again = run(workplace, tmp_path / "out", options)
    assert again["trials_run"] == 1
    assert sum("marked" in row for row in again["trials"]) == 1


@pytest.mark.ray
def test_one_failing_trial_of_tune_is_reported_and_the_others_go_on(workplace, tmp_path, ray_local):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "toy.yaml").write_text(BINARY)
    far = BINARY.replace("name: toy", "name: far").replace("batch_size: 64", "batch_size: 64, lr: 1.0e+37")
    (tmp_path / "tasks" / "far.yaml").write_text(far)
    options = dataclasses.replace(options_of(workplace, "one", seeds=1), tasks=str(tmp_path / "tasks"))
    figures = run(workplace, tmp_path / "out", options)
    (failed,) = (row for row in figures["trials"] if "error" in row)
    assert failed["task"] == "far"
    assert "probe: logits: " in failed["error"]
    assert "values are NaN or infinite" in failed["error"]


def test_one_chosen_token_is_that_token_and_backbones_without_it_are_read_by_their_first(workplace, without_ray):
    one, two = open_backbones([str(workplace / "one"), str(workplace / "two")], ["contrastive"])
    assert (one.tokens, list(one.variants)) == (("classification",), ["classification"])
    assert (two.tokens, list(two.variants)) == (("contrastive",), ["contrastive"])
    jets = str(workplace / "shards")
    every = {backbone.name: backbone for backbone in open_backbones([str(workplace / "two")])}["two"]
    assert list(every.variants) == ["classification", "contrastive", "both"]
    both = embeddings.embed(every.model, jets, "val", workplace / "cache", tokens=every.tokens)
    alone = embeddings.embed(two.model, jets, "val", workplace / "cache", tokens=two.tokens)
    np.testing.assert_allclose(alone.latent, both.latent[:, every.variants["contrastive"]], rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="no backbone has a class token 'contrastiv'; nearest: contrastive"):
        open_backbones([str(workplace / "two")], ["contrastiv"])
