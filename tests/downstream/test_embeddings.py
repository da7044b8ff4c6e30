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

SPLITS = ("train", "val")
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


@pytest.fixture(scope="module")
def embedded(ray_local, small_model, tmp_path_factory, toy_shards):
    """Embeddings of 300 training and 100 validation jets, with their shards and cache folder."""
    folder = tmp_path_factory.mktemp("embedded")
    data = toy_shards(folder / "shards", train=300, val=100)
    train, val = (embed(small_model / "model.pt", data, split, folder / "cache", workers=2) for split in SPLITS)
    return data, folder / "cache", train, val


def test_every_jet_is_embedded_once_and_a_second_task_computes_nothing(embedded, small_model):
    data, cache, first, _ = embedded
    again = embed(small_model / "model.pt", data, "train", cache)
    assert (first.computed, again.computed) == (1, 0)
    assert first.latent.shape == (300, 8)
    assert (first.latent == again.latent).all()
    direct = score_table(open_network(small_model), pq.read_table(first.shards[0]))
    assert np.abs(direct.latent - first.latent).max() < 1e-5
    assert (
        first.columns(["jet_label"])["jet_label"].to_pylist() == pq.read_table(first.shards[0])["jet_label"].to_pylist()
    )


def test_another_data_set_has_another_cache(embedded, small_model, tmp_path, toy_shards):
    _, cache, first, _ = embedded
    other = embed(small_model / "model.pt", toy_shards(tmp_path / "other", train=299, val=4), "train", cache)
    assert other.key != first.key
    assert (other.computed, other.latent.shape) == (1, (299, 8))


def test_fan_out_gives_a_row_per_trial_and_does_only_missing_ones(embedded, tmp_path):
    _, _, train, val = embedded
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


def test_one_failing_trial_is_reported_and_the_others_go_on(embedded, tmp_path):
    _, _, train, val = embedded
    one_class = Task(name="one", title="", label=LabelRule(formula="jet_label * 0"), classes=("a", "b"))
    tasks = [one_class, BINARY]
    prepared = {task.name: task_data(task, train, val) for task in tasks}
    rows = fan_out(tasks, prepared, 1, tmp_path / "out", cpus_per_trial=0.5)
    assert "the trial failed" in rows[0]["error"]
    assert rows[1]["jets"] == 100


def test_a_task_without_jets_says_so(embedded):
    _, _, _, found = embedded
    nothing = Task(name="none", title="", label=LabelRule(scheme="binary:X_cc vs X_ss"))
    with pytest.raises(InputError, match="task none: none of the 100 training jets passes"):
        task_data(nothing, found, found)


def test_files_of_all_kinds_are_scored_jet_by_jet_in_input_order(
    ray_local, small_model, tmp_path, toy_jets, write_root
):
    tables = [toy_jets(40, 1), toy_jets(30, 2)]
    write_root(tmp_path / "part0.root", tables[0], kind="ttree", cluster=16)
    write_root(tmp_path / "part1.parquet", tables[1], kind="parquet", cluster=16)
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
