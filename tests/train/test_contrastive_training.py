"""Sophon++ from shards to a trained network: what batches carry, what a step minimises, what cannot leak."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from jetfoundry import config, files, runs, schema
from jetfoundry.data.shards import open_shards, read_row_group
from jetfoundry.downstream.scoring import open_network, score_table
from jetfoundry.errors import ConfigError, InputError
from jetfoundry.features.transform import DataConfig, load_data_config
from jetfoundry.loading.batch import Batch, Position
from jetfoundry.loading.gen_particles import GEN_COLUMNS
from jetfoundry.loading.loader import LoaderConfig, every_jet, training_batches
from jetfoundry.loading.sampling import SamplingConfig
from jetfoundry.loading.window import length_sorted
from jetfoundry.models.contrastive import ContrastiveTransformer
from jetfoundry.models.gen_particles import gen_inputs
from jetfoundry.models.particle_transformer import ParticleTransformer
from jetfoundry.models.presets import build, configure
from jetfoundry.train.loop import TrainConfig, Validation, fit, predict
from jetfoundry.train.network_data import check_truth, training_data
from jetfoundry.train.optim import OptimConfig
from jetfoundry.train.ray_train import plan, pretrain
from jetfoundry.train.recipe import Recipe
from jetfoundry.train.step import Precision, Stepper
from jetfoundry.train.timing import PhaseTimer

YAML = Path(__file__).resolve().parents[2] / "datasets" / "jetclass2.yaml"
CPU = torch.device("cpu")
LOADER = LoaderConfig(batch_size=64, micro_batches=4, window=200, prefetch=0)
SAMPLING = SamplingConfig(balance="natural")
PLAIN = {
    "embed_dims": [32], "pair_embed_dims": [8], "num_heads": 4, "num_layers": 1, "ffn_ratio": 2, "dropout": 0,
    "attention_dropout": 0, "activation_dropout": 0, "fc_dropout": 0, "fc_dims": [],
}  # fmt: skip
SMALL = {
    "jet": PLAIN | {"tasks": [{"name": "classification"}, {"name": "contrastive", "head": [32], "outputs": 16}]},
    "gen": PLAIN | {"num_classes": 16},
}


def jets_of_partons(number: int, seed: int = 0, labels: tuple[int, ...] = (0, 187), shuffled: bool = False) -> pa.Table:
    """Jets of two or three partons, each split into four smeared particles, and the partons as aux_genpart_*; with
    `shuffled` each jet has the partons of the one before."""
    rng = np.random.default_rng(seed)
    partons = rng.integers(2, 4, number)
    at = np.concatenate([[0], np.cumsum(partons)]).astype(np.int32)
    pt, eta, phi = rng.uniform(50, 300, at[-1]), *rng.normal(0, 0.4, (2, at[-1]))
    share = rng.uniform(0.5, 1.5, (at[-1], 4))
    part_pt = (pt[:, None] * share / share.sum(1, keepdims=True)).ravel()
    part_eta, part_phi = (np.repeat(x, 4) + rng.normal(0, 0.01, 4 * at[-1]) for x in (eta, phi))
    px, py, pz = part_pt * np.cos(part_phi), part_pt * np.sin(part_phi), part_pt * np.sinh(part_eta)
    energy = part_pt * np.cosh(part_eta)
    jx, jy, jz, je = (np.add.reduceat(x, 4 * at[:-1]) for x in (px, py, pz, energy))
    jet_pt, jet_phi = np.hypot(jx, jy), np.arctan2(jy, jx)
    jet_eta = np.arcsinh(jz / jet_pt)
    columns = {
        "jet_pt": np.maximum(jet_pt, 201), "jet_eta": jet_eta, "jet_phi": jet_phi, "jet_energy": je,
        "jet_sdmass": np.full(number, 100.0), "jet_nparticles": 4 * partons,
        "jet_label": np.asarray(labels)[partons - 2],
        "part_px": px, "part_py": py, "part_pz": pz, "part_energy": energy,
        "part_deta": part_eta - np.repeat(jet_eta, 4 * partons),
        "part_dphi": part_phi - np.repeat(jet_phi, 4 * partons),
        "aux_genpart_pt": pt, "aux_genpart_eta": eta, "aux_genpart_phi": phi, "aux_genpart_pid": np.tile(5, at[-1]),
        "aux_genpart_isResDecayProd": np.ones(at[-1]),
    }  # fmt: skip
    offsets = {"part": 4 * at, "aux_genpart": at, "genpart": np.zeros(number + 1, np.int32)}
    arrays = []
    for column in schema.COLUMNS:
        kind = {"float32": np.float32, "int32": np.int32, "bool": np.bool_}[column.kind]
        if not column.jagged:
            arrays.append(pa.array(np.asarray(columns.get(column.name, np.zeros(number))).astype(kind)))
            continue
        where = offsets[schema.column_group(column.name)]
        values = pa.array(np.asarray(columns.get(column.name, np.zeros(where[-1]))).astype(kind))
        arrays.append(pa.ListArray.from_arrays(pa.array(where), values, type=column.arrow_type))
    table = pa.table(arrays, schema=schema.arrow_schema())
    if shuffled:
        other = table.take(np.roll(np.arange(number), 1))
        for name in GEN_COLUMNS:
            table = table.set_column(table.column_names.index(name), table.schema.field(name), other[name])
    return table


def network(**change: Any) -> ContrastiveTransformer:
    torch.manual_seed(0)
    model = build(configure("demo_contrastive", SMALL | change, input_dim=17, num_classes=188))
    assert isinstance(model, ContrastiveTransformer)
    return model


def data_of(model: Any = ContrastiveTransformer, yaml: Any = YAML) -> DataConfig:
    return training_data(load_data_config(yaml, scheme="sophon188"), model, LOADER)


def a_batch(table: pa.Table, micro_batches: int = 4, jets: Any = None) -> Batch:
    number = table.num_rows
    table = table.append_column("source_file", pa.array(np.zeros(number, np.int32)))
    table = table.append_column("source_entry", pa.array(np.arange(number)))
    features = data_of().apply(table, training=True)
    return length_sorted(features, np.arange(len(features)) if jets is None else np.asarray(jets), micro_batches)


def gen_lists(batch: Batch) -> list[bytes]:
    """The generator's particles of each jet of a batch, without padding."""
    return [
        jet[:, jet[0] > 0].numpy().tobytes() for micro in batch.micro for jet in micro.inputs["gen_particles"].unbind()
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, toy_shards):
    return toy_shards(tmp_path_factory.mktemp("partons") / "shards", jets=jets_of_partons, train=400, val=150)


def test_only_a_network_that_learns_from_the_generators_particles_reads_them():
    raw = load_data_config(YAML, scheme="sophon188")
    assert not set(GEN_COLUMNS) & set(data_of(ParticleTransformer).columns)
    assert {*GEN_COLUMNS, "source_file", "source_entry"} <= set(data_of().columns)
    assert data_of().hash == raw.hash
    assert list(data_of(ParticleTransformer).inputs) == ["pf_features", "pf_vectors", "pf_mask"]


def test_a_yaml_may_have_its_own_generator_particles():
    text = config.load_yaml(YAML)
    text["new_variables"]["aux_genpart_mass"] = "ak.zeros_like(aux_genpart_pt)"
    assert "aux_genpart_mass" not in data_of(yaml=text).columns
    few = [[name, None] for name in GEN_COLUMNS[:9]]
    text["inputs"]["gen_particles"] = {"length": 5, "pad_mode": "constant", "vars": few}
    with pytest.raises(ConfigError, match="wanted 10 variables in gen_particles, got 9"):
        data_of(yaml=text)


def test_ids_say_which_jets_of_whatever_worker_are_the_same(folder):
    jets, seen = open_shards(folder, "train"), []
    sampling = SamplingConfig(balance="classes")
    for rank in range(2):
        stream = training_batches(jets, data_of(), LOADER, sampling, seed=3, rank=rank, world=2)
        for batch, _ in itertools.takewhile(lambda item: item[1].passes < 1, stream):
            seen.append((rank, dict(zip(batch.ids.tolist(), gen_lists(batch), strict=True))))
            pairs = set(zip(batch.ids.tolist(), gen_lists(batch), strict=True))
            assert len(pairs) == len({i for i, _ in pairs}) == len({g for _, g in pairs})  # one to one
    mine, theirs = ({i for rank, ids in seen if rank == which for i in ids} for which in range(2))
    assert mine.isdisjoint(theirs)  # of one pass
    assert len(mine | theirs) > 100
    every = {**{i: g for _, ids in seen for i, g in ids.items()}}
    stored = pa.concat_tables(
        [read_row_group(g, ["source_file", "source_entry", "aux_genpart_pt"]) for g in jets.row_groups]
    )
    numbers = (stored["source_file"].to_numpy().astype(np.int64) << 40) | stored["source_entry"].to_numpy()
    for number, pts in zip(numbers.tolist(), stored["aux_genpart_pt"].to_pylist(), strict=True):
        if number in every:
            assert np.frombuffer(every[number], np.float32)[: len(pts)].tolist() == pts


@pytest.mark.ray
def test_both_feeds_carry_the_same_ids_and_particles(ray_local, folder):
    jets = open_shards(folder, "train")
    loaders = (LOADER, dataclasses.replace(LOADER, feed="ray"))
    streams = (training_batches(jets, data_of(), loader, SAMPLING, seed=3) for loader in loaders)
    for (direct, _), (by_ray, _) in itertools.islice(zip(*streams, strict=False), 6):
        assert direct.ids.tolist() == by_ray.ids.tolist()
        assert gen_lists(direct) == gen_lists(by_ray)


def a_step(
    batch: Batch, wrap: Any = lambda model: model, precision: Precision = "off", **change: Any
) -> dict[str, Any]:
    """What one step has for gradients, not clipped, and figures by jet; batch norms in eval mode: theirs differ."""
    model = network(**change).eval()
    stepper = Stepper(wrap(model), OptimConfig(lr=1e-3, clip_norm=0), precision, CPU)
    done = stepper(batch, 1e-3, PhaseTimer())
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"gradients": gradients, "figures": dict(zip(model.figures, done.figures.tolist(), strict=True))}


def same_step(one: dict[str, Any], two: dict[str, Any]) -> None:
    for name, wanted in two["gradients"].items():
        torch.testing.assert_close(one["gradients"][name], wanted, atol=2e-6, rtol=1e-3, msg=name)
    assert max(gradient.abs().max() for gradient in two["gradients"].values()) > 1e-2


def test_micro_batches_change_neither_loss_nor_gradients_of_the_whole_batch():
    table = jets_of_partons(48)
    whole, parts = (a_step(a_batch(table, micro)) for micro in (1, 6))
    same_step(parts, whole)
    assert parts["figures"] == pytest.approx(whole["figures"], rel=1e-4)
    first = whole["figures"]["contrastive_loss"] / 48
    assert first == pytest.approx(2 * np.log(48), rel=0.5)
    assert whole["figures"]["temperature"] / 48 == pytest.approx(0.07, rel=1e-4)


def test_jets_drawn_twice_are_no_negatives_of_themselves_in_a_step():
    table = jets_of_partons(4)
    twice = a_step(a_batch(table, 1, [0, 1, 2, 3, 1]))["figures"]["contrastive_loss"]
    batch = dataclasses.replace(a_batch(table, 1, [0, 1, 2, 3, 1]), ids=None)
    assert twice < a_step(batch)["figures"]["contrastive_loss"] - 0.5


def parts_of_two() -> tuple[Batch, Batch]:
    """Batches of two workers, of five and of three jets, one of which both have."""
    table = jets_of_partons(7)
    return a_batch(table, 2, [0, 1, 2, 3, 4]), a_batch(table, 2, [1, 5, 6])


RANK = """
import datetime, sys
import torch
from torch import distributed
tests, folder, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.path.insert(0, tests)
from torch.nn.parallel import DistributedDataParallel
from test_contrastive_training import a_step, parts_of_two
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
                               timeout=datetime.timedelta(seconds=200))
torch.save(a_step(parts_of_two()[rank], DistributedDataParallel, negatives="global"), f"{folder}/{rank}.pt")
distributed.destroy_process_group()
"""


def test_a_step_of_two_workers_with_global_negatives_is_that_of_one_with_all_jets(tmp_path):
    command = [sys.executable, "-c", RANK, str(Path(__file__).parent), str(tmp_path)]
    running = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE) for rank in range(2)]
    for process in running:
        _, errors = process.communicate(timeout=250)
        assert process.returncode == 0, errors.decode()
    two = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]

    class Both(nn.Module):  # each worker's mean counts half, whatever the number of its jets
        inputs, training_inputs = ContrastiveTransformer.inputs, ContrastiveTransformer.training_inputs
        figures, joined = (), staticmethod(ContrastiveTransformer.joined)

        def __init__(self, model: ContrastiveTransformer) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: torch.Tensor) -> Any:
            return self.model(*inputs)

        def losses(self, outputs: Any, labels: torch.Tensor, ids: torch.Tensor) -> Any:
            found = self.model.losses(outputs, labels, ids)
            return found._replace(total=found.total * 8 * torch.tensor([0.1] * 5 + [1 / 6] * 3))

    one, other = parts_of_two()
    ids = np.concatenate([one.ids, other.ids])
    both = Batch((*one.micro, *other.micro), 8, ids=ids)
    model = network().eval()
    Stepper(Both(model), OptimConfig(lr=1e-3, clip_norm=0), "off", CPU)(both, 1e-3, PhaseTimer())
    wanted = {"gradients": {name: parameter.grad for name, parameter in model.named_parameters()}}
    for rank in two:
        same_step(rank, wanted)
    local = [a_step(part) for part in parts_of_two()]
    apart = [sum(step["gradients"][name] for step in local) / 2 for name in wanted["gradients"]]
    assert max((a - b).abs().max() for a, b in zip(apart, wanted["gradients"].values(), strict=True)) > 1e-3


def trained(folder: Path, steps: int, model: ContrastiveTransformer) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Train on the shards, without Ray: sums of the validation figures by jet, and the rows of metrics."""
    jets, val, rows = open_shards(folder, "train"), open_shards(folder, "val"), []

    @contextlib.contextmanager
    def stream(start: Position) -> Any:
        yield training_batches(jets, data_of(), LOADER, SAMPLING, seed=1, start=start)

    def validate(judged: nn.Module) -> Validation:
        own, size = torch.zeros(3), LOADER.batch_size
        sizes = [batch.size for batch, _, _ in predict(judged, every_jet(val, data_of(), LOADER), CPU, own, size)]
        assert own[0] == size * sizes.count(size) > 0  # in smaller ones jets are found more easily
        own_figures = zip(ContrastiveTransformer.validation_figures, (own[1:] / own[0]).tolist(), strict=True)
        return Validation(0.0, 0.0, sum(sizes), own=dict(own_figures))

    options = TrainConfig(epochs=1, optim=OptimConfig(lr=3e-3, warmup=0.1), log_steps=1)
    fit(model, stream, validate, options, steps_per_epoch=steps, device=CPU, save=lambda s, m: None, log=rows.append)
    return rows[-1], rows


def test_losses_retrieval_and_temperature_are_logged_beside_the_cross_entropy(folder):
    last, rows = trained(folder, 3, network(w_contrastive=0.5, learn_temperature=True))
    for row in rows[:-1]:
        assert row["total_loss"] == pytest.approx(row["loss"] + 0.5 * row["contrastive_loss"], rel=1e-5)
        assert 0 <= row["retrieval"] <= 1
    assert rows[0]["temperature"] == pytest.approx(0.07, rel=1e-5)
    assert rows[1]["temperature"] != rows[0]["temperature"]
    assert {"val_contrastive_loss", "val_retrieval", "val_accuracy"} <= last.keys()


def test_a_contrastive_run_continues_bit_for_bit_within_an_epoch(folder):
    jets, saved = open_shards(folder, "train"), []

    def run(state: dict[str, Any] | None = None) -> tuple[ContrastiveTransformer, dict[str, Any]]:
        @contextlib.contextmanager
        def stream(start: Position) -> Any:
            yield training_batches(jets, data_of(), LOADER, SAMPLING, seed=1, start=start)

        model, rows = network(learn_temperature=True), []
        options = TrainConfig(epochs=1, optim=OptimConfig(lr=1e-3), log_steps=4, checkpoint_steps=2)
        fit(
            model, stream, lambda judged: Validation(0, 0, 1), options, steps_per_epoch=4, device=CPU, state=state,
            save=lambda state, metrics: saved.append(copy.deepcopy(state)), log=rows.append,
        )  # fmt: skip
        return model, {name: rows[0][name] for name in ("loss", *ContrastiveTransformer.figures)}

    whole, row = run()
    continued, same_row = run(saved[0])
    assert saved[0]["step"] == 2
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), continued.parameters(), strict=True))
    assert row == pytest.approx(same_row, rel=1e-6)


def test_lower_precision_has_about_the_same_losses():
    batch = a_batch(jets_of_partons(48))
    full, half = (a_step(batch, precision=precision)["figures"] for precision in ("off", "bf16"))
    assert half["contrastive_loss"] == pytest.approx(full["contrastive_loss"], rel=0.05)
    assert half["contrastive_loss"] != full["contrastive_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("shuffled", [False, True])
def test_jets_find_their_own_partons_and_never_those_of_others(tmp_path, toy_shards, shuffled):
    """From shards of jets whose partons are their own, unseen jets are found far more often than by chance, 1 / 50 in
    validation batches of one row group; with the partons of other jets they are not: nothing of the jet is in them."""

    def jets(number: int, seed: int, labels: tuple[int, ...]) -> pa.Table:
        return jets_of_partons(number, seed, labels, shuffled)

    data = toy_shards(tmp_path / "shards", jets=jets, train=2000, val=1000)
    last, _ = trained(data, 200, network(w_contrastive=1.0, w_classification=0.0))
    if shuffled:
        assert last["val_retrieval"] < 0.038  # 20 of 1000 are expected: four standard deviations
    else:
        assert last["val_retrieval"] > 0.2


def test_what_the_generator_network_sees_has_no_bit_of_the_reconstructed_jet():
    table = jets_of_partons(30)
    other, changed = jets_of_partons(30, seed=1), table
    for name in table.column_names:
        if name.startswith("jet_"):
            changed = changed.set_column(table.column_names.index(name), table.schema.field(name), other[name])
        if name.startswith("part_"):  # as many particles, with other values
            column = table[name].combine_chunks()
            values = column.values.to_numpy(zero_copy_only=False)[::-1]
            lists = pa.ListArray.from_arrays(column.offsets, pa.array(values, column.values.type), type=column.type)
            changed = changed.set_column(table.column_names.index(name), table.schema.field(name), lists)
    one, two = (a_batch(each, 1, range(30)) for each in (table, changed))
    order = [np.argsort(batch.rows) for batch in (one, two)]
    assert not torch.equal(
        *(batch.micro[0].inputs["pf_features"][at] for batch, at in zip((one, two), order, strict=True))
    )
    model = network().eval()
    seen = [gen_inputs(batch.micro[0].inputs["gen_particles"][at]) for batch, at in zip((one, two), order, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert torch.equal(*(model.gen(*inputs) for inputs in seen))


def test_a_jet_whose_particles_are_not_finite_stops_the_run():
    batch = a_batch(jets_of_partons(12))
    batch.micro[2].inputs["gen_particles"][1, 1, 0] = 1e30  # eta
    with pytest.raises(InputError, match=r"step 1: the training loss of \d+ of 12 jets is not finite"):
        fit(
            network(), lambda start: contextlib.nullcontext(iter([(batch, start)])), lambda model: Validation(0, 0, 1),
            TrainConfig(epochs=1), steps_per_epoch=1, device=CPU, save=lambda s, m: None,
        )  # fmt: skip


def test_a_projection_that_is_not_finite_is_told_from_those_that_it_spoils():
    model, batch = network().eval(), a_batch(jets_of_partons(6), 1)
    outputs = model(*(batch.micro[0].inputs[name] for name in model.training_inputs))
    outputs.gen[4] = torch.nan
    losses = model.losses(outputs, batch.micro[0].labels)
    assert losses.total.isnan().all()
    assert losses.classification.isnan().tolist() == [False] * 4 + [True, False]


def test_jets_of_one_parton_and_jets_of_none_make_a_step():
    """No pair of different particles on either side, then nothing at all of the generator."""
    batch = a_batch(jets_of_partons(8), 2)
    for micro in batch.micro:
        micro.inputs["pf_mask"][:, :, 1:] = 0
        micro.inputs["gen_particles"][:, :, 1:] = 0
    for _ in range(2):
        assert all(np.isfinite(value) for value in a_step(batch)["figures"].values())
        for micro in batch.micro:
            micro.inputs["gen_particles"][:] = 0


def recipe(data: Path, run: Path, *overrides: str) -> Recipe:
    change = f"model.change={json.dumps(SMALL | {'negatives': 'global'})}"
    fixed = [f"data={data}", f"run={run}", f"features={YAML}", "model.preset=demo_contrastive", change]
    small = ["loader.batch_size=40", "train.epochs=1", "train.log_steps=1", "workers.threads=1"]
    return config.read(Recipe, None, [*fixed, *small, "sampling.balance=classes", *overrides])


def test_data_without_the_generators_particles_are_refused_with_the_way_out(tmp_path, folder, toy_shards):
    way_out = r"train without the contrastive part: model.preset=demo \| sophon \| sophon_pp"
    empty = toy_shards(tmp_path / "empty", train=100, val=50)
    with pytest.raises(InputError, match=rf"aux_genpart_pt and its fellows are empty: none of 100 jets.*{way_out}"):
        plan(recipe(empty, tmp_path / "run"))
    manifest = json.loads((folder / "manifest.json").read_text())
    stored = [column.name for column in schema.COLUMNS if column.name != "aux_genpart_mass"]
    files.write_json(tmp_path / "shards" / "manifest.json", manifest | {"columns": stored})
    with pytest.raises(
        ConfigError, match=rf"the data have no column aux_genpart_mass; ingest files that do.*{way_out}"
    ):
        plan(recipe(tmp_path / "shards", tmp_path / "run"))
    lacking = jets_of_partons(200).drop_columns(["aux_genpart_pid"])
    (tmp_path / "files").mkdir()
    pq.write_table(lacking, tmp_path / "files" / "lacking.parquet")
    with pytest.raises(InputError, match=rf"(?s)lacking.parquet.*aux_genpart_pid.*{way_out}"):
        plan(recipe(tmp_path / "files" / "lacking.parquet", tmp_path / "run"))
    assert plan(recipe(folder, tmp_path / "run"))["model_name"] == "contrastive"
    check_truth(data_of(ParticleTransformer), open_shards(empty, "train"))  # who does not need them is not asked


@pytest.mark.ray
@pytest.mark.slow
def test_a_contrastive_run_leaves_the_jet_network_for_other_jobs(ray_local, folder, tmp_path):
    two = ["workers.num_workers=2", "workers.cpus_per_worker=0.5", "workers.max_failures=0"]
    chosen = recipe(folder, tmp_path / "run", *two)
    run = runs.open_run(chosen.run, chosen)
    best = pretrain(chosen, run)["best"]
    assert best["val_jets"] == 150
    rows = runs.read_metrics(run / "metrics.jsonl")
    assert rows[0]["contrastive_loss"] == pytest.approx(2 * np.log(80), rel=0.5)  # both workers' jets
    assert 0 < best["val_contrastive_loss"] < 20
    found = open_network(run)
    assert not set(GEN_COLUMNS) & set(found.data.input_columns)
    table = jets_of_partons(20).drop_columns(list(GEN_COLUMNS))
    scored = score_table(found, table)
    assert scored.logits.shape == (20, 188)
    assert scored.latent.shape == (20, 32)
    both = score_table(open_network(run, tokens=("classification", "contrastive")), table)
    np.testing.assert_allclose(both.latent[:, :32], scored.latent, atol=1e-5)
    assert both.latent.shape == (20, 64)
    assert np.abs(both.latent[:, 32:] - scored.latent).max() > 0.1
    with pytest.raises(ConfigError, match="no class token 'contrast'; nearest: contrastive"):
        open_network(run, tokens=("contrast",))
