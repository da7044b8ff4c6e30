import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from jetfoundry.data.shards import open_shards
from jetfoundry.downstream.embeddings import EmbedShard, embed
from jetfoundry.downstream.score_files import ScoreConfig, score_files
from jetfoundry.downstream.scoring import open_network, score_table
from jetfoundry.errors import InputError
from jetfoundry.models.checkpoints import load_model, save_model

pytestmark = pytest.mark.ray

SPLITS = ("train", "val")


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


def test_a_cache_file_of_another_network_is_refused(embedded, small_model, tmp_path):
    data, cache, first, _ = embedded
    shutil.copytree(cache, tmp_path / "cache")
    (path,) = (tmp_path / "cache" / first.key).glob("*.parquet")
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"jetfoundry_embedding": "another"}), path)
    with pytest.raises(InputError, match=r"an embedding of another, wanted one of .*: files were moved between caches"):
        embed(small_model / "model.pt", data, "train", tmp_path / "cache")


def test_another_network_and_another_data_yaml_are_computed_anew(embedded, small_model, tmp_path):
    data, cache, first, _ = embedded
    file = load_model(small_model / "model.pt")
    about = {"model_name": file.model_name, "model_config": file.model_config, "classes": file.classes, "meta": {}}
    weights = {name: weight * 1.1 for name, weight in file.weights.items()}
    save_model(tmp_path / "weights.pt", weights=weights, data_yaml=file.data_yaml, **about)
    cut = file.data_yaml.replace("jet_pt > 200", "jet_pt > 300")
    assert cut != file.data_yaml
    save_model(tmp_path / "yaml.pt", weights=dict(file.weights), data_yaml=cut, **about)
    others = [embed(tmp_path / name, data, "train", cache) for name in ("weights.pt", "yaml.pt")]
    assert [other.computed for other in others] == [1, 1]
    assert len({first.key, *(other.key for other in others)}) == 3
    assert len(others[1].ids) < len(others[0].ids) == 300


def test_an_embedding_that_is_not_finite_is_not_kept(small_model, tmp_path, toy_shards):
    file = load_model(small_model / "model.pt")
    weights = dict(file.weights) | {"readout.token": file.weights["readout.token"] * float("nan")}
    about = {"model_name": file.model_name, "model_config": file.model_config, "classes": file.classes, "meta": {}}
    save_model(tmp_path / "model.pt", weights=weights, data_yaml=file.data_yaml, **about)
    pieces = tuple(open_shards(toy_shards(tmp_path / "shards", train=30, val=4), "train").row_groups)
    actor = EmbedShard([(pieces, str(tmp_path / "out.parquet"))], "key", str(tmp_path / "model.pt"), "cpu", ())
    with pytest.raises(
        InputError, match=r"shard-.*parquet: the network gives NaN or infinity for 30 of 30 jets, .*row 0"
    ):
        actor({"number": 0})
    assert not list(tmp_path.glob("out.parquet*"))


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
