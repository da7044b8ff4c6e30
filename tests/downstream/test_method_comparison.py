"""The comparison of methods, with networks that nobody trained: their run folders are written by hand."""

import json
import re
from pathlib import Path

import pytest
import torch

from jetfoundry import config, files, runs
from jetfoundry.data.shards import open_shards
from jetfoundry.downstream.comparison import ComparisonConfig, compare_methods, is_finished, trainings_of
from jetfoundry.downstream.comparison_report import result_rows, write_results
from jetfoundry.errors import CheckpointError, ConfigError
from jetfoundry.labels import label_scheme
from jetfoundry.models.checkpoints import save_model
from jetfoundry.models.particle_transformer import ParTConfig, ParticleTransformer
from jetfoundry.train.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "jobs" / "recipes"
BINARY = "labels=binary:X_bb vs QCD"


@pytest.fixture
def options(tmp_path, toy_shards, monkeypatch):
    """Two networks and both baselines with two seeds, on toy jets."""
    monkeypatch.chdir(ROOT)
    shards = toy_shards(tmp_path / "shards", train=400, val=40, test=300)
    recipe = config.load_yaml(RECIPES / "comparison_training.yaml") | {"data": str(shards)}
    files.write_text(tmp_path / "recipe.yaml", config.dump_yaml(recipe))
    return ComparisonConfig(
        recipe=str(tmp_path / "recipe.yaml"),
        networks={"ParT, 188 classes": (), "ParT, 2 classes": (BINARY,)},
        seeds=(1, 2),
        replicas=20,
        runs=str(tmp_path / "runs"),
        output=str(tmp_path / "results" / "comparison"),
    )


def write_run(training):
    """What jobs/pretrain.py leaves, without training."""
    classes = label_scheme(training.recipe.labels).classes
    size = {"embed_dims": (16, 8), "pair_embed_dims": (4,), "num_heads": 2, "num_layers": 1, "num_class_layers": 1}
    architecture = ParTConfig(**size, fc_dims=(8,), num_classes=len(classes))
    torch.manual_seed(training.seed)
    run = runs.open_run(training.run, training.recipe)
    save_model(
        run / "model.pt",
        model_name="particle_transformer",
        model_config=architecture,
        weights=ParticleTransformer(architecture).state_dict(),
        classes=classes,
        data_yaml=(ROOT / "datasets" / "jetclass2.yaml").read_text(),
        meta={},
    )
    rows = [{"epoch": e, "val_loss": 5 - e, "val_accuracy": 0.1 * e, "val_auc/X_bb vs QCD": 0.5} for e in (1, 2)]
    rows += [{"epoch": 0.5, "loss": 5.0}, {"epoch": 2.0, "loss": 4.0}]
    files.write_text(run / "metrics.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    training_figures = {"best": {"epoch": 2.0}, "timing": {"jets_per_s": 1000.0}, "jets_per_epoch": 51_200}
    manifest = open_shards(training.recipe.data, "train").manifest_hash
    runs.write_summary(run, training=training_figures, manifest_hash=manifest, model_sha256="0" * 64)


def test_the_shipped_comparison_has_one_budget_and_what_the_field_compares(monkeypatch):
    monkeypatch.chdir(ROOT)
    options = config.read(ComparisonConfig, RECIPES / "comparison.yaml")
    trainings = trainings_of(options)
    assert len(trainings) == 4 * 3
    assert [(t.recipe.labels, t.recipe.model.preset) for t in trainings[:4]] == [
        ("sophon188", "demo"),
        ("sophon42", "demo"),
        ("binary:X_bb vs QCD", "demo"),
        ("binary:X_bb vs QCD", "particle_net_lite"),
    ]
    assert {t.seed for t in trainings[:4]} == {1}, "an interrupted comparison has whole seeds"
    # Each is a command that a person can give to jobs/pretrain.py.
    assert config.read(Recipe, options.recipe, trainings[3].arguments) == trainings[3].recipe


def test_networks_of_different_budgets_and_of_one_folder_are_refused(options):
    networks = {"long": ("train.epochs=9",), "short": (BINARY,)}
    with pytest.raises(ConfigError, match="short has another budget than long"):
        trainings_of(config.build(ComparisonConfig, config.to_dict(options) | {"networks": networks}))
    networks = {"ParT 2": (), "ParT, 2": (BINARY,)}
    with pytest.raises(ConfigError, match="two names give one run folder"):
        trainings_of(config.build(ComparisonConfig, config.to_dict(options) | {"networks": networks}))


def test_a_network_that_lacks_the_classes_is_refused_before_any_training(options):
    networks = {"taus": ("labels=binary:X_tauhtauh vs QCD",)}
    with pytest.raises(ConfigError, match="X_bb"):
        trainings_of(config.build(ComparisonConfig, config.to_dict(options) | {"networks": networks}))


def test_finished_runs_are_known_and_those_of_another_configuration_refused(options):
    training, *_ = trainings_of(options)
    assert not is_finished(training)
    write_run(training)
    assert is_finished(training)
    other = config.build(ComparisonConfig, config.to_dict(options) | {"networks": {training.name: ["train.epochs=9"]}})
    with pytest.raises(CheckpointError, match=r"train\.epochs: was 4, now 9"):
        is_finished(trainings_of(other)[0])
    summary = files.read_json(training.run / "summary.json") | {"manifest_hash": "other"}
    files.write_json(training.run / "summary.json", summary)
    with pytest.raises(CheckpointError, match="trained on other jets"):
        is_finished(training)


@pytest.mark.ray
def test_all_methods_are_compared_on_the_same_jets_and_the_page_holds_every_figure(options, ray_local):
    trainings = trainings_of(options)
    for training in trainings:
        write_run(training)
    compared = compare_methods(options, trainings, workers=1)
    assert list(compared.scores) == ["ParT, 188 classes", "ParT, 2 classes", "gradient boosting", "MLP"]
    assert {len(score) for seeds in compared.scores.values() for score in seeds} == {300}
    assert int(compared.confusion.sum()) == 2 * 300
    # The signal of the toy jets has large impact parameters, which the substructure YAML reads.
    assert compared.figures["methods"]["gradient boosting"]["auc"]["value"] > 0.7

    page = write_results(options, trainings, compared, {"processor": "a processor", "cores": 2, "memory_gib": 8})
    text, record = page.read_text(), files.read_json(page.with_suffix(".json"))
    for word in ("simulated", "a processor, 2 cores", "Seeds 1, 2", runs.git_commit()[:12], *compared.scores):
        assert word in text
    for image in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (page.parent / image).stat().st_size > 5000
    assert len(re.findall(r"!\[", text)) == 4
    assert [row["method"] for row in result_rows(record)] == list(compared.scores)
    assert len(record["methods"]["MLP"]["rejections"][1]["each_seed"]) == 2
    assert record["jets"]["test"]["signal"] + record["jets"]["test"]["background"] == 300
