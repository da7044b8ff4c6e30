"""The jobs as a user calls them: the whole way in one folder, and a command line that only grows on purpose."""

import contextlib
import importlib.util
import runpy
import shlex
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jetfoundry import cli, config, files
from jetfoundry.data.ingest import IngestConfig
from jetfoundry.data.plan import ShardConfig
from jetfoundry.downstream.comparison import ComparisonConfig
from jetfoundry.downstream.export import ExportConfig
from jetfoundry.downstream.score_files import ScoreConfig
from jetfoundry.downstream.transfer import TransferConfig
from jetfoundry.errors import InputError
from jetfoundry.sim.prepare import prepare
from jetfoundry.train.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]

# Flags only ever grow; this list makes each one a decision.
FLAGS = {
    IngestConfig: 22,
    Recipe: 63,
    TransferConfig: 38,
    ScoreConfig: 16,
    ExportConfig: 5,
    ComparisonConfig: 28,
}


@pytest.mark.parametrize("job", FLAGS, ids=lambda job: job.__name__)
def test_the_number_of_options_of_a_job_is_a_decision(job):
    rows = config.describe(job)
    assert all(meaning for _, _, meaning in rows), "every option has a meaning"
    assert len(rows) == FLAGS[job]


def job_module(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "jobs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# What a job does, to be replaced by an error; its command line; the log it leaves.
LOGS = {
    "ingest": ("data.ingest.ingest", "input=*.root output=out", "out/log.txt"),
    "simulate": ("sim.run.simulate", f"{ROOT}/datasets/jetclass2_sim.yaml output=out", "out/log.txt"),
    "pretrain": ("ray_session.session", "run=out", "out/log.txt"),
    "transfer": ("downstream.tasks.load_tasks", "tasks.yaml backbone=. data=. output=out", "out/log.txt"),
    "evaluate": ("downstream.score_files.score_files", "model.onnx input=*.root output=out/s.parquet", "out/s.log.txt"),
    "export": ("data.shards.open_shards", "out data=.", "out/log.txt"),
    "benchmark": ("benchmark.themes.run", "ingest work=out", "out/log.txt"),
    "compare": ("downstream.comparison.trainings_of", "runs=out", "out/log.txt"),
}


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "jobs").glob("*.py")))
def test_every_job_keeps_what_the_person_saw(name, tmp_path, monkeypatch, capsys):
    replaced, arguments, log = LOGS[name]

    def told(*_, **__):
        msg = "nothing works today"
        raise InputError(msg)

    monkeypatch.setattr(f"jetfoundry.{replaced}", told)
    if name == "evaluate":
        monkeypatch.setattr("jetfoundry.ray_session.session", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(sys, "argv", [f"jobs/{name}.py", *arguments.split()])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / f"{name}.py"), run_name="__main__")
    assert ended.value.code == cli.EXIT_BAD_INPUT
    assert capsys.readouterr().err == "error: nothing works today\n"
    first, second, last = (tmp_path / log).read_text().splitlines()
    assert f"$ {name}.py {shlex.join(arguments.split())}" in first
    assert second.endswith(" error: nothing works today")
    assert " ended after " in last


def test_a_recipe_makes_only_the_data_that_is_missing(tmp_path, monkeypatch):
    calls, shards = [], tmp_path / "shards"
    monkeypatch.setattr(
        "jetfoundry.sim.run.simulate", lambda cfg: calls.append(("simulate", str(cfg.output), cfg.jets))
    )
    monkeypatch.setattr(
        "jetfoundry.sim.prepare.ingest", lambda cfg: calls.append(("ingest", cfg.input, cfg.output, cfg.shards.test))
    )
    monkeypatch.chdir(ROOT)
    recipe = config.read(Recipe, ROOT / "jobs" / "recipes" / "demo.yaml", [f"data={shards}"])
    how = config.to_dict(recipe.prepare) | {"features": recipe.features, "shards": ShardConfig(test=0.3)}
    prepare(recipe.data, **how)
    assert calls == [
        ("simulate", "data/sim/root", 24000),
        ("ingest", ("data/sim/root/*.root",), str(shards), 0.3),
    ]
    files.write_json(shards / "manifest.json", {})
    prepare(recipe.data, **how)
    prepare(str(tmp_path / "others"), **(how | {"simulate": ""}))
    assert len(calls) == 2


@pytest.fixture
def workplace(tmp_path):
    """A folder that looks like the checkout to a job, in which it may write."""
    for name in ("jobs", "datasets"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.mark.ray
@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pretrain_alone_simulates_and_ingests_and_the_other_jobs_go_on_from_its_run_job(workplace, run_job):
    small = ["prepare.jets=4000", "train.epochs=1", "model.change={num_layers: 1}"]
    shown = run_job(workplace, "jobs/pretrain.py", *small)
    assert "validation accuracy, all classes" in shown
    runs = workplace / "runs" / "demo"
    assert files.read_json(runs / "summary.json")["sample"].startswith("simulated")

    # The same command again does nothing but show the result.
    assert "it was before this call" in run_job(workplace, "jobs/pretrain.py", *small)

    shown = run_job(workplace, "jobs/transfer.py", "datasets/tasks/demo.yaml", "backbone=runs/demo", "seeds=1")
    assert "xbb_vs_qcd" in shown
    assert "model scores" in shown
    assert "xbb_opening_angle" in (runs / "transfer" / "demo" / "table.csv").read_text()

    assert "largest difference" in run_job(workplace, "jobs/export.py", "runs/demo")
    assert files.read_json(runs / "export.json")["max_difference"] < 1e-4
    report = (runs / "report.html").read_text()
    for heading in ("In short", "Transfer: demo", "Export", "Training", "Discriminants"):
        assert f"<h2>{heading}</h2>" in report
    assert "http" not in report.split("</style>")[1].replace("http-equiv", "")  # nothing is loaded from outside

    run_job(
        workplace, "jobs/evaluate.py", "runs/demo/model.onnx", "input=data/sim/root/*.root", "output=scores.parquet"
    )
    assert pq.read_table(workplace / "scores.parquet").num_rows == 4000
    for folder, command in (("runs/demo/transfer/demo", "transfer.py"), ("runs/demo", "export.py")):
        log = (workplace / folder / "log.txt").read_text()
        assert f"$ {command}" in log
        assert "report.html" in log
    assert "not_selected" in (workplace / "scores.log.txt").read_text()
