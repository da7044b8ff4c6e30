"""Scores of files: order, alignment, formats, discriminants, what is kept and what is refused.

Ray is left out here (`local`): blocks of the same read tasks go through the same actor. One test marked `ray` compares.
"""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import uproot

from jetfoundry.downstream import score_files as module
from jetfoundry.downstream.score_block import ScoreBlock
from jetfoundry.downstream.score_files import ScoreConfig, score_files
from jetfoundry.downstream.score_output import plan_outputs, read_about
from jetfoundry.downstream.scoring import open_network, score_table
from jetfoundry.errors import ConfigError, InputError
from jetfoundry.evaluate.discriminants import resolve
from jetfoundry.labels import CLASSES
from jetfoundry.models.checkpoints import load_model, save_model
from jetfoundry.models.export import export_onnx
from jetfoundry.models.presets import build
from jetfoundry.models.tasks import TaskConfig

NAMED = """
discriminants:
  Xbb: {signal: {X_bb: 1}, background: [QCD]}
  mixed: {signal: {X_cs+X_qq: 0.3, X_YY_QQQ: 0.6}, background: [QCD_b, QCD_light]}
"""
EVENTS = "event: [run, event_number]\n" + NAMED + "  mixed_event: {sum_of: mixed, jets: 2}\n"


@pytest.fixture
def local(monkeypatch):
    """Score without Ray, block after block, in blocks of 16 jets."""

    def blocks(source, scorer, _):
        actor = ScoreBlock(**scorer)
        source._block = 16
        for task in source.get_read_tasks(1):
            for table in task():
                yield actor(table)

    monkeypatch.setattr(module, "_scored_blocks", blocks)


@pytest.fixture
def score(local, small_model, tmp_path):
    """`score(input=…, …)`: figures of scoring with the small model; outputs stand in tmp_path."""

    def run(**options):
        options = {"model": str(small_model), "input": (str(tmp_path / "in"),)} | options
        return score_files(ScoreConfig(**options | {"output": str(tmp_path / options.get("output", "scores.parquet"))}))

    return run


@pytest.fixture
def inputs(tmp_path, toy_jets, write_root):
    """A TTree of 40 and a Parquet file of 30 toy jets, in tmp_path/in; jet 4 of the first is below the selection."""
    tables = [toy_jets(40, 1), toy_jets(30, 2)]
    pt = np.where(np.arange(40) == 4, 100.0, tables[0]["jet_pt"].to_numpy()).astype(np.float32)
    tables[0] = tables[0].set_column(tables[0].column_names.index("jet_pt"), "jet_pt", [pt])
    write_root(tmp_path / "in" / "a.root", tables[0], kind="ttree", cluster=16)
    write_root(tmp_path / "in" / "b.parquet", tables[1], kind="parquet", cluster=16)
    return tables


def matrix(table, name):
    return np.array(table[name].to_pylist())


def test_one_parquet_file_has_a_row_for_each_jet_of_all_inputs_in_order(inputs, score, small_model, tmp_path):
    figures = score()
    assert [figures[name] for name in ("jets", "scored", "not_selected", "not_finite")] == [70, 69, 1, 0]
    result = pq.read_table(tmp_path / "scores.parquet")
    assert result["source_entry"].to_pylist() == [*range(40), *range(30)]
    assert result["source_file"].to_pylist() == [0] * 40 + [1] * 30
    assert result["jet_pt"].to_pylist() == [pt for table in inputs for pt in table["jet_pt"].to_pylist()]
    assert result["scored"].to_pylist() == [row != 4 for row in range(70)]
    direct = score_table(open_network(small_model), inputs[1])
    soft = np.exp(direct.logits) / np.exp(direct.logits).sum(axis=1, keepdims=True)
    assert np.abs(matrix(result, "scores")[40:] - soft).max() < 1e-6
    assert np.abs(matrix(result, "latent")[40:] - direct.latent).max() < 1e-5
    assert np.isnan(matrix(result, "scores")[4]).all()
    assert np.isnan(matrix(result, "latent")[4]).all()
    assert json.loads(read_about(tmp_path / "scores.parquet")["classes"]) == list(CLASSES)


def test_a_tree_of_scores_is_a_friend_of_its_input(inputs, score, tmp_path):
    # A friend is joined by entry number: equally many entries, in the same order.
    score(output="friends", format="root")
    for name, jets in zip(("a", "b"), inputs, strict=True):
        with uproot.open(tmp_path / "friends" / f"{name}.root") as file:
            tree = file["scores"]
            assert file.classnames(cycle=False)["scores"] == "TTree"
            assert tree.num_entries == jets.num_rows
            assert tree["jet_pt"].array(library="np").tolist() == jets["jet_pt"].to_pylist()
            assert tree["source_entry"].array(library="np").tolist() == list(range(jets.num_rows))
            assert tree["scores"].array(library="np").shape == (jets.num_rows, 188)
            assert json.loads(str(file["classes"])) == list(CLASSES)


def test_root_and_parquet_hold_the_same_figures(inputs, score, tmp_path):
    (tmp_path / "d.yaml").write_text(NAMED)
    for name in ("one.root", "one.parquet"):
        score(output=name, discriminants=str(tmp_path / "d.yaml"), write=("scores", "log_scores", "latent"))
    parquet = pq.read_table(tmp_path / "one.parquet")
    with uproot.open(tmp_path / "one.root") as file:
        tree = file["scores"]
        assert tree.keys() == parquet.column_names
        for name in tree.keys():  # noqa: SIM118 - a TTree
            np.testing.assert_array_equal(tree[name].array(library="np"), matrix(parquet, name))
        about = read_about(tmp_path / "one.parquet")
        assert {key: str(file[key]) for key in about if key != "ARROW:schema"} == {
            key: value for key, value in about.items() if key != "ARROW:schema"
        }


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.filterwarnings("ignore::UserWarning:torch.*")
@pytest.mark.filterwarnings("ignore::FutureWarning:copyreg")
@pytest.mark.parametrize("sure", [1, 30], ids=["as it is", "scores below 1e-38"])
def test_onnx_and_pytorch_give_the_same_figures(inputs, score, small_model, tmp_path, sure):
    (tmp_path / "d.yaml").write_text(NAMED)
    file = load_model(small_model / "model.pt")
    weights = {name: weight * sure if name.startswith("head.") else weight for name, weight in file.weights.items()}
    save_model(
        tmp_path / "sure" / "model.pt", model_name=file.model_name, model_config=file.model_config, weights=weights,
        classes=file.classes, data_yaml=file.data_yaml, meta={},
    )  # fmt: skip
    export_onnx(load_model(tmp_path / "sure" / "model.pt"), tmp_path / "model.onnx")
    for model, name in ((tmp_path / "sure", "torch"), (tmp_path / "model.onnx", "onnx")):
        score(
            model=str(model),
            output=f"{name}.parquet",
            discriminants=str(tmp_path / "d.yaml"),
            write=("scores", "log_scores", "latent"),
        )
    one, two = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("torch", "onnx"))
    assert one.column_names == two.column_names
    assert (np.nanmin(matrix(one, "log_scores")) < -90) == (sure > 1)
    for name in ("scores", "log_scores", "latent", "Xbb", "mixed"):
        np.testing.assert_allclose(matrix(one, name), matrix(two, name), rtol=1e-4, atol=2e-5 * sure)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.filterwarnings("ignore::UserWarning:torch.*")
@pytest.mark.filterwarnings("ignore::FutureWarning:copyreg")
def test_latents_of_named_class_tokens_have_columns_of_their_own(inputs, score, small_model, tmp_path):
    file = load_model(small_model / "model.pt")
    tokens = (TaskConfig(), TaskConfig(name="contrastive", outputs=4))
    pair = dataclasses.replace(file.model_config, tasks=tokens)
    torch.manual_seed(1)
    save_model(
        tmp_path / "pair" / "model.pt", model_name=file.model_name, model_config=pair, weights=build(pair).state_dict(),
        classes=file.classes, data_yaml=file.data_yaml, meta={},
    )  # fmt: skip
    export_onnx(load_model(tmp_path / "pair" / "model.pt"), tmp_path / "pair.onnx")
    every = ("contrastive", "classification")
    for model, name in ((tmp_path / "pair", "torch"), (tmp_path / "pair.onnx", "onnx")):
        score(model=str(model), output=f"{name}.parquet", tokens=every)
    score(model=str(tmp_path / "pair"), output="first.parquet")
    one, two, first = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("torch", "onnx", "first"))
    for name in ("latent_contrastive", "latent_classification"):
        np.testing.assert_allclose(matrix(one, name), matrix(two, name), atol=2e-5)
    np.testing.assert_array_equal(matrix(one, "latent_classification"), matrix(first, "latent"))
    for model in ("pair", "pair.onnx"):
        with pytest.raises(ConfigError, match="no class token 'contrastiv'; nearest: contrastive"):
            score(model=str(tmp_path / model), tokens=("contrastiv",))


def test_discriminants_are_columns_by_name(inputs, score, small_model, tmp_path):
    (tmp_path / "d.yaml").write_text(NAMED)
    score(discriminants=str(tmp_path / "d.yaml"))
    result = pq.read_table(tmp_path / "scores.parquet")
    direct = score_table(open_network(small_model), inputs[1])
    expected = resolve("X_bb", "QCD", CLASSES).log_odds(direct.logits)
    np.testing.assert_allclose(result["Xbb"].to_numpy()[40:], expected, atol=1e-5)
    assert np.isnan(result["Xbb"].to_numpy()).nonzero()[0].tolist() == [4]
    told = json.loads(read_about(tmp_path / "scores.parquet")["discriminants"])
    assert told["store"] == "log_odds"
    assert told["mixed"]["signal"]["X_cs"] == 0.3
    assert told["mixed"]["background"] == ["QCD_b", "QCD_light"]


@pytest.fixture
def events(tmp_path, toy_jets):
    """40 jets of events of 1, 2, 3, 1, 2, … jets, with numbers that need 64 bits, in tmp_path/in/events.parquet."""
    jets = toy_jets(40, 3)
    number = np.repeat(np.arange(21), np.resize([1, 2, 3], 21))[:40] + 2**40
    jets = jets.append_column("event_number", pa.array(number)).append_column("run", pa.array(np.full(40, 7, np.int32)))
    (tmp_path / "in").mkdir()
    pq.write_table(jets, tmp_path / "in" / "events.parquet", row_group_size=7)
    (tmp_path / "d.yaml").write_text(EVENTS)
    return jets, number


@pytest.mark.parametrize("output", ["scores.parquet", "scores.root"])
def test_event_sums_cross_blocks_and_row_groups(events, score, tmp_path, output):
    jets, number = events
    score(discriminants=str(tmp_path / "d.yaml"), output=output)
    if output.endswith("root"):
        with uproot.open(tmp_path / output) as file:
            result = file["scores"].arrays(["mixed", "mixed_event", "event_number"], library="np")
    else:
        table = pq.read_table(tmp_path / output)
        result = {name: table[name].to_numpy() for name in ("mixed", "mixed_event", "event_number")}
    assert (result["event_number"] == number).all()
    d, pt = 1 / (1 + np.exp(-result["mixed"].astype(np.float64))), jets["jet_pt"].to_numpy()
    for row in range(40):
        mine = np.flatnonzero(number == number[row])
        leading = mine[np.argsort(-pt[mine])][:2]
        total = d[leading].sum()
        expected = np.log(total / (2 - total)) if len(mine) > 1 else np.nan
        assert result["mixed_event"][row] == pytest.approx(expected, abs=1e-5, nan_ok=True)


def test_event_sums_without_event_numbers_or_with_scattered_jets_are_refused(events, score, tmp_path):
    jets, _ = events
    path, named = tmp_path / "in" / "events.parquet", str(tmp_path / "d.yaml")
    pq.write_table(jets.rename_columns([n.replace("event_number", "eventNumber") for n in jets.column_names]), path)
    with pytest.raises(
        InputError, match=r"no column 'event_number'.*events of mixed_event apart; nearest: eventNumber"
    ):
        score(discriminants=named)
    pq.write_table(jets.take([*range(1, 40), 0, 1]), path)
    with pytest.raises(
        InputError, match=r"events\.parquet: the jets of an event \(run 7, event_number 10995\d+\) do not"
    ):
        score(discriminants=named)
    assert not list(tmp_path.glob("scores*"))


def test_an_input_without_truth_or_generator_record_is_scored(score, tmp_path, toy_jets):
    jets = toy_jets(10, 5)
    kept = [name for name in jets.column_names if not name.startswith(("gen", "aux")) and name != "jet_label"]
    (tmp_path / "in").mkdir()
    pq.write_table(jets.select(kept), tmp_path / "in" / "data.parquet")
    assert score()["scored"] == 10


def test_all_jets_scores_what_the_selection_refuses(inputs, score, tmp_path):
    assert score(all_jets=True)["scored"] == 70
    assert np.isfinite(matrix(pq.read_table(tmp_path / "scores.parquet"), "scores")).all()


def test_further_observers_are_copied_and_lists_are_refused(inputs, score, tmp_path):
    score(observers=("jet_label", "genjet_pt"))
    labels = [label for table in inputs for label in table["jet_label"].to_pylist()]
    assert pq.read_table(tmp_path / "scores.parquet")["jet_label"].to_pylist() == labels
    with pytest.raises(ConfigError, match="part_px has one value per particle"):
        score(observers=("part_px",))
    with pytest.raises(InputError, match=r"'jet_ptt' is not a JetClass-II column; nearest: jet_pt"):
        score(observers=("jet_ptt",))


def test_inputs_of_another_schema_are_read_by_it(score, tmp_path, toy_jets):
    jets = toy_jets(10, 5)
    (tmp_path / "in").mkdir()
    pq.write_table(jets.rename_columns([f"fj_{n}" for n in jets.column_names]), tmp_path / "in" / "mine.parquet")
    columns = [
        {"name": name, "from": f"fj_{name}", "kind": kind, **({"list": "part"} if name.startswith("part") else {})}
        for name in jets.column_names
        if not name.startswith(("gen", "aux"))
        for kind in [str(jets.schema.field(name).type).replace("list<element: ", "").replace("float", "float32")]
        for kind in [kind.split(" ")[0].rstrip(">")]
    ]
    (tmp_path / "schema.yaml").write_text(json.dumps({"name": "mine", "classes": list(CLASSES), "columns": columns}))
    score(schema=str(tmp_path / "schema.yaml"))
    (tmp_path / "in" / "mine.parquet").unlink()
    pq.write_table(jets, tmp_path / "in" / "usual.parquet")
    score(output="usual.parquet")
    one, two = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("scores", "usual"))
    assert one.equals(two)


def test_jets_for_which_the_network_gives_no_number_are_counted_and_have_no_score(inputs, score, tmp_path, monkeypatch):
    from jetfoundry.downstream import score_block

    def broken(network, table):
        found = score_table(network, table)
        found.logits[found.rows == 1] = np.nan
        return found

    monkeypatch.setattr(score_block, "score_table", broken)
    (tmp_path / "d.yaml").write_text(NAMED)
    figures = score(discriminants=str(tmp_path / "d.yaml"), input=(str(tmp_path / "in" / "b.parquet"),))
    assert (figures["scored"], figures["not_finite"]) == (28, 2)  # row 1 of both blocks
    assert pq.read_table(tmp_path / "scores.parquet")["scored"].to_pylist() == [row not in (1, 17) for row in range(30)]


def test_an_interrupted_folder_goes_on_with_the_next_file(inputs, score, tmp_path, monkeypatch):
    blocks = module._scored_blocks

    def dies(*arguments):
        for number, block in enumerate(blocks(*arguments)):
            if number == 4:  # in the second file
                raise KeyboardInterrupt
            yield block

    monkeypatch.setattr(module, "_scored_blocks", dies)
    with pytest.raises(KeyboardInterrupt):
        score(output="out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.root"]
    first = (tmp_path / "out" / "a.root").stat().st_mtime_ns
    monkeypatch.setattr(module, "_scored_blocks", blocks)
    figures = score(output="out")
    assert (figures["files_written"], figures["files_kept"], figures["jets"], figures["scored"]) == (1, 1, 70, 69)
    assert (tmp_path / "out" / "a.root").stat().st_mtime_ns == first
    assert pq.read_table(tmp_path / "out" / "b.parquet")["source_file"].to_pylist() == [0] * 30
    assert score(output="out")["files_written"] == 0


@pytest.mark.parametrize("output", ["scores.parquet", "scores.root"])
def test_an_output_of_another_model_or_of_other_options_is_not_overwritten(
    inputs, score, small_model, tmp_path, output
):
    score(output=output)
    before = (tmp_path / output).read_bytes()
    with pytest.raises(
        InputError, match=r"scores\.\w+: exists, made of another all_jets \(was false, now true\); choose"
    ):
        score(output=output, all_jets=True)
    model = load_model(small_model / "model.pt")
    other = {name: value * 2 for name, value in model.build().state_dict().items()}
    save_model(
        tmp_path / "model.pt",
        model_name=model.model_name,
        model_config=model.model_config,
        weights=other,
        classes=model.classes,
        data_yaml=model.data_yaml,
        meta={},
    )
    with pytest.raises(InputError, match=r"scores\.\w+: exists, made of another model \(was "):
        score(output=output, model=str(tmp_path / "model.pt"))
    assert (tmp_path / output).read_bytes() == before


def test_a_file_that_is_not_ours_is_not_overwritten(inputs, score, tmp_path):
    for name in ("in/a.root", "in/b.parquet"):
        with pytest.raises(InputError, match="exists and is no file of scores; choose another output"):
            score(output=name)
    (tmp_path / "junk.root").write_bytes(b"root of all evil" * 10)
    with pytest.raises(InputError, match="exists and is no file of scores"):
        score(output="junk.root")
    with pytest.raises(InputError, match="exists and is no file of scores"):
        score(output="in")


def test_missing_columns_damaged_files_and_names_that_clash_are_told(inputs, score, tmp_path):
    pq.write_table(inputs[1].drop_columns(["part_d0err"]), tmp_path / "in" / "c.parquet")
    with pytest.raises(InputError, match=r"c\.parquet: missing branch part_d0err \(nearest: part_"):
        score()
    (tmp_path / "in" / "c.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(InputError, match=r"c\.parquet: damaged"):
        score()
    (tmp_path / "in" / "c.parquet").unlink()
    pq.write_table(inputs[1], tmp_path / "in" / "a.parquet")
    with pytest.raises(InputError, match=r"would both become .*a\.parquet"):
        score(output="out", format="parquet")
    with pytest.raises(ConfigError, match=r"format=root does not go with output=.*\.parquet"):
        score(format="root")
    (tmp_path / "d.yaml").write_text("discriminants: {jet_pt: {signal: {X_bb: 1}, background: [QCD]}}")
    with pytest.raises(ConfigError, match="'jet_pt' is the name of another column; rename the discriminant"):
        score(discriminants=str(tmp_path / "d.yaml"))


def test_unknown_arrays_are_refused_at_the_command_line():
    with pytest.raises(ValueError, match="write: 'score' is unknown; nearest: scores"):
        ScoreConfig(write=("score",))


def test_a_plan_of_no_inputs_is_empty(tmp_path):
    assert plan_outputs(str(tmp_path / "out"), "", [], {}, {}) == []


@pytest.mark.ray
def test_two_actors_write_what_one_process_writes(ray_local, inputs, small_model, tmp_path, monkeypatch, request):
    def options(output):
        given = {"model": str(small_model), "input": (str(tmp_path / "in"),)}
        return ScoreConfig(**given, output=str(tmp_path / output), workers=2)

    score_files(options("ray.parquet"))
    request.getfixturevalue("local")
    score_files(options("local.parquet"))
    one, two = (pq.read_table(tmp_path / name) for name in ("ray.parquet", "local.parquet"))
    assert one.column_names == two.column_names
    assert one["source_entry"] == two["source_entry"]
    np.testing.assert_allclose(matrix(one, "scores"), matrix(two, "scores"), atol=1e-6)
