"""`--help` and `dry_run=true` of every job: the whole plan, and nothing started, written or changed."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from jetfoundry import cli, config
from jetfoundry.data.inventory import expand
from jetfoundry.dry_run import inputs, rates
from jetfoundry.dry_run.rates import Rate, benchmark, duration, time_for
from jetfoundry.labels import label_scheme
from jetfoundry.models.checkpoints import save_model
from jetfoundry.models.particle_transformer import ParTConfig, ParticleTransformer

ROOT = Path(__file__).resolve().parents[1]
JOBS = [
    pytest.param(path.stem, marks=[pytest.mark.sim] if path.stem == "simulate" else [])
    for path in sorted((ROOT / "jobs").glob("*.py"))
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, toy_shards, toy_jets):
    """A folder with shards, files of jets and a run folder with an untrained network, in which nothing may change."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("jobs", "datasets"):
        (folder / name).symlink_to(ROOT / name)
    toy_shards(folder / "shards", train=300, val=100, test=60)
    (folder / "jets").mkdir()
    for number in range(20):
        pq.write_table(toy_jets(50, seed=number), folder / "jets" / f"{number:02d}.parquet")
    run = folder / "runs" / "demo"
    run.mkdir(parents=True)
    network = ParTConfig(
        embed_dims=(8,), pair_embed_dims=(4,), num_heads=2, num_layers=1, num_class_layers=1, fc_dims=(4,)
    )
    torch.manual_seed(1)
    save_model(
        run / "model.pt",
        model_name="particle_transformer",
        model_config=network,
        weights=ParticleTransformer(network).state_dict(),
        classes=label_scheme("sophon188").classes,
        data_yaml=(ROOT / "datasets" / "jetclass2.yaml").read_text(),
        meta={},
    )
    (run / "config.yaml").write_text(config.dump_yaml({"data": "shards", "model": {"preset": "demo"}}))
    return folder


@pytest.fixture
def call(workplace, monkeypatch, capsys):
    """`call("ingest", "input=…")`: exit code, standard output and error of a job, with the start of Ray forbidden."""

    def run(name, *arguments):
        import ray

        def started(*_, **__):
            pytest.fail("Ray was started")

        monkeypatch.setattr(ray, "init", started)
        monkeypatch.setattr("jetfoundry.ray_session.session", started)  # it joins a Ray that other tests have started
        monkeypatch.chdir(workplace)
        monkeypatch.setattr(sys, "argv", [f"jobs/{name}.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "jobs" / f"{name}.py"), run_name="__main__")
        return ended.value.code, *capsys.readouterr()

    return run


def state(folder):
    """Everything in a folder: path, size, time of change."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


# A command line of each job, and what its plan must say.
PLANS = {
    "simulate": (
        "output=out jets=12000",
        ["out: 12 files, 0 of them", "12,000, 12,000 of them", "Res34P", "worker", "≈", "docs/simulation.md"],
    ),
    "ingest": (
        "datasets/jetclass2.yaml input=jets output=out",
        ["20 files", "≈ 996, estimated from 16", "out: new", "train ≈ 797", "GB", "manifest.json", "jets/s of each"],
    ),
    "pretrain": (
        "jobs/recipes/demo.yaml data=shards run=out train.epochs=3 loader.batch_size=50 sampling.balance=natural",
        ["2 shards", "300 to train on, 100 for", "124,048 parameters", "out: new", "9: 3 epochs of 3 steps of 100 jets",
         "2 workers of 0.5 CPU", "≈ 1 s"],
    ),
    "compare": (
        "jobs/recipes/comparison.yaml runs=out output=report prepare.jets=10000 prepare.root=root",
        ["simulates 10,000 jets", "train ≈ 6,000", "12, 0 of them", "gradient boosting", "seed 3", "12 times jobs",
         "9 trainings of demo ≈", "3 trainings of particle_net_lite unknown"],
    ),
    "transfer": (
        "datasets/tasks/demo.yaml backbone=runs/demo methods=probe,finetune sizes=0.1,1 seeds=3 output=out",
        ["2: xbb_vs_qcd, xbb_opening_angle", "400, each once through 1 network", "24: probe 12, finetune 12", "CPU",
         "embedding ≈", "trials unknown"],
    ),
    "evaluate": (
        "runs/demo input=jets output=out.parquet discriminants=datasets/discriminants/sophon.yaml",
        ["20 files", "≈ 996", "188 classes, latent of 8", "out.parquet: 1 file, new", "Xbb", "1 worker of 1 CPU"],
    ),
    "export": ("runs/demo", ["188 classes", "50 to compare", "runs/demo/model.onnx: new", "no Ray", "unknown"]),
    "benchmark": (
        "train preset=demo batch_size=512 work=out output=report",
        ["40,000, repeated", "5 runs", "report/train", "1 worker on cpu", "ours alone ≈"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", JOBS)
def test_dry_run_shows_the_plan_and_changes_nothing(name, call, workplace):

    arguments, wanted = PLANS[name]
    before = state(workplace)
    code, shown, complaint = call(name, *arguments.split(), "dry_run=true")
    assert (code, complaint) == (cli.EXIT_OK, "")
    for text in [*wanted, "jets", "output" if name != "pretrain" else "run", "resources", "steps", "expected time"]:
        assert text in shown, text
    assert shown.endswith("nothing was started, nothing was written\n")
    assert state(workplace) == before


BAD = {
    "simulate": ("jets=12000 card=nothing.yaml", "cannot read nothing.yaml"),
    "ingest": ("input=nothing/*.root", "no ROOT or Parquet file there"),
    "pretrain": ("jobs/recipes/demo.yaml data=shards labels=sophon43", "sophon43"),
    "compare": ("jobs/recipes/comparison.yaml baselines=[magic]", "no method 'magic'"),
    "transfer": ("datasets/tasks/demo.yaml backbone=runs/nothing", "runs/nothing"),
    "evaluate": ("runs/demo input=jets tree=x discriminants=nothing.yaml", "cannot read nothing.yaml"),
    "export": ("runs/nothing", "runs/nothing"),
    "benchmark": ("ingest input=nothing.root", "nothing.root: no such file"),
}


@pytest.mark.parametrize("name", JOBS)
def test_bad_input_is_an_error_in_a_dry_run_too(name, call, workplace):
    arguments, wanted = BAD[name]
    before = state(workplace)
    code, _, complaint = call(name, *arguments.split(), "dry_run=true")
    assert code == cli.EXIT_BAD_INPUT
    assert complaint.startswith("error: ")
    assert wanted in complaint
    assert state(workplace) == before


@pytest.mark.parametrize("name", JOBS)
def test_help_names_every_option_with_its_meaning(name, call):
    code, shown, _ = call(name, "--help")
    assert code == cli.EXIT_OK
    options = shown.partition("options (key=value) [default]:\n")[2].splitlines()
    assert len(options) > 3
    for line in options:
        key, _, rest = line.strip().partition("  ")
        assert key, line
        assert len(rest.strip().rpartition(" [")[0]) > 3, line
    assert options[-1].strip().startswith("dry_run ")


def test_dry_run_is_true_or_false(call, workplace):
    assert call("export", "runs/demo", "dry_run=perhaps")[0] == cli.EXIT_BAD_INPUT
    (workplace / "runs" / "demo2").mkdir()
    assert call("export", "runs/demo2", "dry_run=false", "dry_run=true")[0] == cli.EXIT_BAD_INPUT
    shutil.rmtree(workplace / "runs" / "demo2")


def test_a_run_folder_of_another_configuration_is_refused_in_a_dry_run_too(call, workplace):
    run = workplace / "other"
    run.mkdir()
    (run / "config.yaml").write_text("train: {epochs: 7}\n")
    (run / "metrics.jsonl").write_text("")
    code, _, complaint = call("pretrain", "jobs/recipes/demo.yaml", "data=shards", "run=other", "dry_run=true")
    assert code == cli.EXIT_BAD_INPUT
    assert "holds a run with another configuration" in complaint
    shutil.rmtree(run)


def test_rates_of_an_earlier_run_in_the_folder_come_first(call, workplace):
    folder = workplace / "measured"
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({"jets_per_cpu_second": 100.0}))
    _, shown, _ = call("ingest", "input=jets/00.parquet", "output=measured", "dry_run=true")
    assert "≈ 1 s on 1 CPU, at 100 jets/s of each, measured in measured/summary.json" in shown
    shutil.rmtree(folder)


def test_jets_are_exact_where_every_file_was_opened_and_estimated_by_bytes_else(workplace):
    paths = expand([str(workplace / "jets")])
    assert inputs.look(paths[:3]).jets == 150
    assert inputs.look(paths[:3]).whole
    estimated = inputs.look(paths)
    assert not estimated.whole
    assert estimated.jets == pytest.approx(1000, rel=0.05)


def test_expected_time_is_unknown_where_nothing_was_measured(tmp_path, monkeypatch):
    assert time_for(100, None, 2) == "unknown: no rate was measured for this"
    assert time_for(1200, Rate(10, "measured here"), 2) == "≈ 1 min on 2 CPUs, at 10 jets/s of each, measured here"
    assert time_for(1200, Rate(10, "measured here")).startswith(
        "unknown: it depends on the cluster; ≈ 2 min on one CPU"
    )
    assert time_for(1200, Rate(10, "measured here", of="")) == "≈ 2 min, at 10 jets/s, measured here"
    assert [duration(seconds) for seconds in (0, 90, 4000, 1e6)] == ["1 s", "1.5 min", "1.11 h", "11.6 days"]
    monkeypatch.setattr(rates, "BENCHMARKS", tmp_path)
    assert benchmark("ingest") is None
    found = {"hardware": {"processor": "P", "gpu": "G"}, "sides": {"jetfoundry": {"rate": 1.0, "wall": 5.0}}}
    (tmp_path / "train-x_2026-01-01.json").write_text(json.dumps(found))
    assert benchmark("train-x") is None  # that was on a GPU
    assert benchmark("train-x", gpu=True) == Rate(5.0, "measured on G, docs/benchmarks/train-x_2026-01-01", "GPU")
