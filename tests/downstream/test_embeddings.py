import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from jetfoundry import files
from jetfoundry.downstream.embeddings import embed
from jetfoundry.downstream.fanout import fan_out, task_data
from jetfoundry.downstream.score_files import ScoreConfig, score_files
from jetfoundry.downstream.scoring import open_network, score_table
from jetfoundry.downstream.tasks import LabelRule, ProbeBudget, Task
from jetfoundry.errors import InputError

pytestmark = pytest.mark.ray

BINARY = Task(
    name="toy", title="toy", label=LabelRule(scheme="binary:X_bb vs QCD"), budget=ProbeBudget(epochs=20, batch_size=64)
)


def test_scores_do_not_depend_on_the_batch_a_jet_stands_in(small_model, toy_jets):
    network, jets = open_network(small_model), toy_jets(60, 5)
    whole = score_table(network, jets, batch_size=60)
    single = score_table(network, jets, batch_size=1)
    assert (whole.rows == single.rows).all()
    assert np.abs(whole.logits - single.logits).max() < 1e-4
    assert np.abs(whole.latent - single.latent).max() < 1e-4


def test_jets_outside_the_selection_have_no_score(small_model, toy_jets):
    jets = toy_jets(10, 5)
    low = np.where(np.arange(10) == 4, 100.0, jets["jet_pt"].to_numpy()).astype(np.float32)
    jets = jets.set_column(jets.column_names.index("jet_pt"), "jet_pt", [low])
    assert score_table(open_network(small_model), jets).rows.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_every_jet_is_embedded_once_and_a_second_task_computes_nothing(ray_local, small_model, tmp_path, toy_shards):
    data = toy_shards(tmp_path / "shards", train=120, val=40)
    first = embed(small_model / "model.pt", data, "train", tmp_path / "cache", workers=2)
    again = embed(small_model / "model.pt", data, "train", tmp_path / "cache")
    assert (first.computed, again.computed) == (1, 0)
    assert first.latent.shape == (120, 8)
    assert (first.latent == again.latent).all()
    direct = score_table(open_network(small_model), pq.read_table(first.shards[0]))
    assert np.abs(direct.latent - first.latent).max() < 1e-5
    assert (
        first.columns(["jet_label"])["jet_label"].to_pylist() == pq.read_table(first.shards[0])["jet_label"].to_pylist()
    )


def test_another_data_set_has_another_cache(ray_local, small_model, tmp_path, toy_shards):
    one, two = (toy_shards(tmp_path / name, train=n, val=4) for name, n in (("one", 30), ("two", 31)))
    keys = {embed(small_model / "model.pt", data, "train", tmp_path / "cache").key for data in (one, two)}
    assert len(keys) == 2


def test_fan_out_gives_a_row_per_trial_and_does_only_missing_ones(ray_local, small_model, tmp_path, toy_shards):
    data = toy_shards(tmp_path / "shards", train=300, val=100)
    train, val = (embed(small_model / "model.pt", data, split, tmp_path / "cache") for split in ("train", "val"))
    prepared = {"toy": task_data(BINARY, train, val)}
    rows = fan_out([BINARY], prepared, 2, tmp_path / "out", cpus_per_trial=0.5)
    assert [(row["task"], row["seed"], row["jets"]) for row in rows] == [("toy", 1, 100), ("toy", 2, 100)]
    assert all(0 <= row["accuracy"] <= 1 and row["logits"].shape == (100, 2) for row in rows)
    # Mark one result, lose the other: only the lost one is computed again.
    kept, lost = sorted((tmp_path / "out" / "trials").glob("*.json"))
    kept.write_text(json.dumps(files.read_json(kept) | {"marked": True}))
    lost.unlink()
    again = fan_out([BINARY], prepared, 2, tmp_path / "out", cpus_per_trial=0.5)
    assert [row.get("marked") for row in again] == [True, None]
    assert [row["accuracy"] for row in again] == [row["accuracy"] for row in rows]


def test_one_failing_trial_is_reported_and_the_others_go_on(ray_local, small_model, tmp_path, toy_shards):
    data = toy_shards(tmp_path / "shards", train=100, val=40)
    train, val = (embed(small_model / "model.pt", data, split, tmp_path / "cache") for split in ("train", "val"))
    one_class = Task(name="one", title="", label=LabelRule(formula="jet_label * 0"), classes=("a", "b"))
    tasks = [one_class, BINARY]
    prepared = {task.name: task_data(task, train, val) for task in tasks}
    rows = fan_out(tasks, prepared, 1, tmp_path / "out", cpus_per_trial=0.5)
    assert "the trial failed" in rows[0]["error"]
    assert rows[1]["jets"] == 40


def test_a_task_without_jets_says_so(ray_local, small_model, tmp_path, toy_shards):
    data = toy_shards(tmp_path / "shards", train=50, val=20)
    found = embed(small_model / "model.pt", data, "val", tmp_path / "cache")
    nothing = Task(name="none", title="", label=LabelRule(scheme="binary:X_cc vs X_ss"))
    with pytest.raises(InputError, match="task none: none of the 20 training jets passes"):
        task_data(nothing, found, found)


@pytest.mark.parametrize("kind", ["ttree", "parquet"])
def test_files_are_scored_jet_by_jet_in_input_order(ray_local, small_model, tmp_path, toy_jets, write_root, kind):
    tables = [toy_jets(40, 1), toy_jets(30, 2)]
    for i, table in enumerate(tables):
        write_root(tmp_path / f"part{i}.{'root' if kind == 'ttree' else 'parquet'}", table, kind=kind, cluster=16)
    options = ScoreConfig(
        model=str(small_model), input=(str(tmp_path / "part*"),), output=str(tmp_path / "scores.parquet"), workers=2
    )
    figures = score_files(options)
    assert (figures["jets"], figures["scored"]) == (70, 70)
    result = pq.read_table(tmp_path / "scores.parquet")
    assert result["source_entry"].to_pylist() == [*range(40), *range(30)]
    assert np.allclose(result["jet_pt"].to_numpy(), np.concatenate([table["jet_pt"].to_numpy() for table in tables]))
    scores = np.array(result["scores"].to_pylist())
    assert scores.shape == (70, 188)
    assert np.allclose(scores.sum(axis=1), 1, atol=1e-5)
