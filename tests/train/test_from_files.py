"""Training straight from ROOT files, through the job, with both feeds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jetfoundry import config, files
from jetfoundry.errors import ConfigError
from jetfoundry.train.ray_train import plan
from jetfoundry.train.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    f"features={ROOT / 'datasets' / 'jetclass2.yaml'}",
    "model.change={embed_dims: [8, 8], pair_embed_dims: [4], num_layers: 1, num_heads: 2, fc_dims: [8]}",
    "loader.batch_size=32",
    "loader.micro_batches=2",
    "train.epochs=2",
    "sampling.balance=classes",
    "sample=toys",
    "ray.num_cpus=2",
    "workers.cpus_per_worker=0.5",
]


@pytest.fixture
def ntuples(tmp_path, toy_jets, write_root):
    for number in range(3):
        write_root(tmp_path / "in" / f"jets_{number}.root", toy_jets(200, number), cluster=50)
    return f"{tmp_path}/in/*.root"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_job_trains_on_root_files_alike_with_both_feeds_up_to_its_report(tmp_path, ntuples):
    summaries = []
    for feed in ("direct", "ray"):
        run = tmp_path / feed
        command = [sys.executable, str(ROOT / "jobs" / "pretrain.py"), str(ROOT / "jobs" / "recipes" / "demo.yaml")]
        command += [f"data={ntuples}", f"run={run}", f"loader.feed={feed}", "workers.num_workers=1", *TINY]
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-4000:]
        assert "validation accuracy, all classes" in done.stdout
        assert (run / "report.html").exists()
        summaries.append(files.read_json(run / "summary.json"))
    direct, by_ray = summaries
    assert direct["training"]["best"]["val_loss"] == by_ray["training"]["best"]["val_loss"]
    assert direct["evaluation"]["jets"] == by_ray["evaluation"]["jets"] == direct["training"]["best"]["val_jets"]
    assert direct["evaluation"]["accuracy"] == pytest.approx(direct["training"]["best"]["val_accuracy"])
    assert direct["manifest_hash"] == by_ray["manifest_hash"]
    assert not (tmp_path / "data").exists()  # the recipe says how to simulate; with files at hand it does not


def test_files_as_they_are_plan_as_their_shards_would(tmp_path, ntuples):
    recipe = config.read(Recipe, None, [f"data=QCD:{ntuples}", f"run={tmp_path / 'run'}", *TINY])
    spec = plan(recipe)
    assert spec["steps_per_epoch"] == round(spec["files"]["train"].rows / 32)
    assert spec["files"]["val"].rows > 0


def test_a_yaml_of_a_regression_says_that_training_needs_classes(tmp_path, ntuples):
    text = (ROOT / "datasets" / "jetclass2.yaml").read_text()
    path = tmp_path / "regression.yaml"
    path.write_text(text[: text.index("labels:")] + "labels: {type: custom, value: {target: jet_sdmass / jet_pt}}\n")
    recipe = config.read(Recipe, None, [f"data={ntuples}", f"run={tmp_path / 'run'}", *TINY])
    natural = config.read(
        Recipe, None, [*TINY, f"data={ntuples}", f"features={path}", "labels=", "sampling.balance=natural"]
    )
    with pytest.raises(
        ConfigError, match=r"regression.yaml: labels: no classes to train on, only target; name a label"
    ):
        plan(natural)
    assert plan(recipe)["classes"][0] == "X_bb"


def test_standardisation_left_to_the_data_is_measured_on_the_files(tmp_path, ntuples):
    text = (ROOT / "datasets" / "jetclass2.yaml").read_text()
    begin = text.index("         - [part_pt_scale_log,")
    path = tmp_path / "auto.yaml"
    path.write_text(text[:begin] + "         - [part_pt_scale_log, auto]" + text[text.index("\n", begin) :])
    recipe = config.read(Recipe, None, [*TINY, f"data={ntuples}", f"features={path}"])
    measured = config.parse_yaml(plan(recipe)["data_yaml"], "measured")
    assert measured["preprocess"]["params"]["part_pt_scale_log"]["scale"] > 0
