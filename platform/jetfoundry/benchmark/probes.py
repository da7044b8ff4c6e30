"""Linear probe number two: on jets that are embedded already, against a forward pass of the frozen network for every
epoch, as where nobody keeps embeddings. Same network (of random weights: speed does not depend on them), same jets,
labels and head.

    embedded              reads the cache of embeddings, trains the head, scores the other jets, as a second task does
    forward each epoch    our own network, in inference mode on batches of jets of like length, once for every epoch and
                          once for the other jets; then the same head on the same numbers

Features are in memory before the clock starts, for the side that needs them. "Jets" count once for every epoch. Ratios
are of wall time with one thread each. The second table is of probes of several tasks on the same latents, trained one
by one, as `downstream/probe.py` does, and as one batched problem.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from jetfoundry import files, ray_session
from jetfoundry.benchmark.measure import Side
from jetfoundry.benchmark.settings import BenchmarkConfig
from jetfoundry.downstream.embeddings import Embeddings, embed
from jetfoundry.downstream.probe import linear_probe
from jetfoundry.downstream.problem import Problem
from jetfoundry.downstream.scoring import Network, open_network, score_table
from jetfoundry.downstream.tasks import ProbeBudget
from jetfoundry.errors import JetFoundryError
from jetfoundry.features.transform import load_data_config
from jetfoundry.labels import label_scheme
from jetfoundry.models.checkpoints import save_model
from jetfoundry.models.presets import build, configure, model_name

__all__ = ["FORWARD", "agreement", "batched", "batched_table", "one_by_one", "sides"]

EMBEDDED, FORWARD = "embedded", "forward each epoch"
_SPLITS = ("train", "val")
_SCHEME = "sophon188"
_TASKS, _WIDTHS = (5, 20), (64, 128, 512)


def sides(cfg: BenchmarkConfig, shards: Path) -> list[Side]:
    """Both sides, on the train and validation splits of a shard folder."""
    folder = cfg.work / f"probes-{cfg.preset}"
    where = {"shards": str(shards), "folder": str(folder), "preset": cfg.preset, "features": cfg.features,
             "epochs": cfg.epochs}  # fmt: skip
    return [Side(EMBEDDED, _prepare_embedded, _run_embedded, where), Side(FORWARD, _prepare, _run_forward, where)]


def agreement(cfg: BenchmarkConfig) -> str:
    """How far apart the logits of both sides' heads are. JetFoundryError if that is more than rounding."""
    folder = cfg.work / f"probes-{cfg.preset}"
    one, two = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in (EMBEDDED, FORWARD))
    apart = float(np.abs(one - two).max())
    if not apart < 1e-2:
        msg = f"the heads of both sides differ by {apart:.2g} in their logits: they did not do the same work"
        raise JetFoundryError(msg)
    return f"Largest difference between the logits of both heads, {len(one):,} jets: {apart:.1e}."


@dataclasses.dataclass
class _State:
    folder: Path
    model: Path
    shards: str
    epochs: int
    network: Network
    tables: dict[str, Any]


def _prepare(shards: str, folder: str, preset: str, features: str, epochs: int) -> _State:
    """The network and the jets of both splits in memory; all embeddings are made if they are not there."""
    model = _model(Path(folder), preset, features)
    with ray_session.session(num_cpus=1):
        found = {split: embed(model, shards, split, Path(folder) / "cache") for split in _SPLITS}
    network = open_network(model)
    tables = {split: each.columns([*network.data.input_columns, "jet_label"]) for split, each in found.items()}
    return _State(Path(folder), model, shards, epochs, network, tables)


def _prepare_embedded(**arguments: Any) -> _State:
    return dataclasses.replace(_prepare(**arguments), tables={})


def _model(folder: Path, preset: str, features: str) -> Path:
    path, data, scheme = folder / "model.pt", load_data_config(features, scheme=_SCHEME), label_scheme(_SCHEME)
    if not path.exists():
        torch.manual_seed(1)
        width = len(data.inputs["pf_features"].vars)
        network = configure(preset, {}, input_dim=width, num_classes=len(scheme.classes))
        weights, text = build(network).state_dict(), Path(features).read_text(encoding="utf-8")
        save_model(
            path, model_name=model_name(network), model_config=network, weights=weights, classes=scheme.classes,
            data_yaml=text, meta={},
        )  # fmt: skip
    return path


def _run_embedded(state: _State) -> int:
    found = [embed(state.model, state.shards, split, state.folder / "cache") for split in _SPLITS]
    labels = [_labels(each) for each in found]
    return _probe(state, [each.latent for each in found], labels, EMBEDDED)


def _labels(found: Embeddings) -> npt.NDArray[np.int64]:
    return label_scheme(_SCHEME).apply(found.columns(["jet_label"])["jet_label"].to_numpy())


def _run_forward(state: _State) -> int:
    for _ in range(state.epochs):
        train = score_table(state.network, state.tables["train"])
    val = score_table(state.network, state.tables["val"])
    scheme = label_scheme(_SCHEME)
    labels = [scheme.apply(state.tables[split]["jet_label"].to_numpy()) for split in _SPLITS]
    return _probe(state, [train.latent, val.latent], labels, FORWARD)


def _probe(state: _State, latents: list[Any], labels: list[npt.NDArray[np.int64]], name: str) -> int:
    train, evaluate = latents
    weights = np.ones(len(train), np.float32)
    problem = Problem(train, labels[0], weights, evaluate, len(label_scheme(_SCHEME).classes), seed=1)
    logits = linear_probe(problem, ProbeBudget(epochs=state.epochs))
    with files.committed(state.folder / f"{name}.npy") as temporary, temporary.open("wb") as stream:
        np.save(stream, logits)
    return state.epochs * len(train)


def batched_table(jets: int, rounds: int, epochs: int = 3) -> str:
    """Markdown table of the time that K probes take as one batched problem, over that of K probes one by one."""
    rows = ["| probes | width of the latent | batched over one by one, wall time, median | smallest-largest |",
            "| --- | --- | --- | --- |"]  # fmt: skip
    for width in _WIDTHS:
        rng = np.random.default_rng(width)
        latent = torch.from_numpy(rng.standard_normal((jets, width)).astype(np.float32))
        for tasks in _TASKS:
            labels = torch.from_numpy(rng.integers(0, 2, (tasks, jets)))
            ratios = []
            for turn in range(rounds):
                seconds = {}
                for train in (batched, one_by_one) if turn % 2 else (one_by_one, batched):
                    begin = time.perf_counter()
                    train(latent, labels, epochs)
                    seconds[train] = time.perf_counter() - begin
                ratios.append(seconds[batched] / seconds[one_by_one])
            middle = statistics.median(ratios)
            rows.append(f"| {tasks} | {width} | {middle:.2f} | {min(ratios):.2f}–{max(ratios):.2f} |")
    return "\n".join(rows)


def one_by_one(latent: torch.Tensor, labels: torch.Tensor, epochs: int) -> torch.Tensor:
    """Weights (K, D, 2) of K probes on latents (B, D) with labels (K, B), trained one after the other."""
    found = []
    for number, own in enumerate(labels):
        weight, bias = torch.zeros(latent.shape[1], 2, requires_grad=True), torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.AdamW([weight, bias], lr=1e-2)
        generator = torch.Generator().manual_seed(number)
        for _ in range(epochs):
            for jets in torch.split(torch.randperm(len(own), generator=generator), 1024):
                optimizer.zero_grad()
                loss = functional.cross_entropy(torch.addmm(bias, latent[jets], weight), own[jets])
                torch.autograd.backward(loss)
                optimizer.step()
        found.append(weight.detach())
    return torch.stack(found)


def batched(latent: torch.Tensor, labels: torch.Tensor, epochs: int) -> torch.Tensor:
    """The same in products of K matrices at once; each probe sees its own jets in its own order, as if alone."""
    tasks = len(labels)
    weight = torch.zeros(tasks, latent.shape[1], 2, requires_grad=True)
    bias = torch.zeros(tasks, 1, 2, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=1e-2)
    generators = [torch.Generator().manual_seed(number) for number in range(tasks)]
    for _ in range(epochs):
        orders = torch.stack([torch.randperm(labels.shape[1], generator=generator) for generator in generators])
        for jets in torch.split(orders, 1024, dim=1):  # (K, b)
            optimizer.zero_grad()
            outputs = torch.baddbmm(bias, latent[jets], weight)  # (K, b, 2)
            mean = functional.cross_entropy(outputs.flatten(0, 1), labels.gather(1, jets).flatten())
            torch.autograd.backward(mean * tasks)
            optimizer.step()
    return weight.detach()
