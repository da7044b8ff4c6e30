"""Score jets with a trained network, from PyTorch or ONNX, through one function.

Jets go through the data YAML that travels with the model, are sorted by length, padded in small batches, scored, and
come back in input order. Jets that the YAML's test-time selection refuses have no score; `rows` says which have.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from jetfoundry import config, files
from jetfoundry.errors import ConfigError, nearest
from jetfoundry.features.transform import DataConfig, load_data_config
from jetfoundry.loading.window import choose_inputs
from jetfoundry.models.checkpoints import ModelFile, load_model

__all__ = ["Floats", "Network", "Scored", "as_lists", "class_tokens", "open_network", "score_table"]

Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network ready to score: its data YAML, class names, identity, and a function of padded inputs.

    `run(inputs)` takes its `inputs` by their names in the data YAML, padded, as float32 arrays (b, F, P), and returns
    logits (b, C), up to a constant per jet, and the latent (b, D).
    """

    data: DataConfig
    classes: tuple[str, ...]
    hash: str
    latent_dim: int
    inputs: tuple[str, ...]
    run: Callable[[Mapping[str, Floats]], tuple[Floats, Floats]]


@dataclasses.dataclass(frozen=True)
class Scored:
    """Outputs for the selected jets: their `rows` in the table (B',), logits (B', C), latent (B', D)."""

    rows: npt.NDArray[np.int64]
    logits: Floats
    latent: Floats


def open_network(path: str | Path, device: str = "cpu", tokens: Sequence[str] = ()) -> Network:
    """Open `model.pt`, a run folder that holds one, or an exported `.onnx` file.

    With `tokens`, names of class tokens, the latent is theirs, one after the other, instead of the first token's;
    ConfigError if there is no such token.
    """
    path = files.place(path)
    if path.suffix == ".onnx":
        return _open_onnx(path, tokens)
    file = load_model(path / "model.pt" if path.is_dir() else path)
    model: Any = file.build().to(device)
    known = class_tokens(file)
    for name in tokens:
        if name not in known:
            msg = f"{path}: the network has no class token {name!r}; {nearest(name, known)}"
            raise ConfigError(msg)

    def run(inputs: Mapping[str, Floats]) -> tuple[Floats, Floats]:
        with torch.inference_mode():
            *values, mask = (torch.from_numpy(inputs[name]).to(device) for name in model.inputs)
            latents = model.latents(*values, mask > 0) if tokens else {}
            latent = latents[known[0]] if tokens else model.latent(*values, mask > 0)
            wanted = torch.cat([latents[name] for name in tokens], 1) if tokens else latent
            return model.head(latent).float().cpu().numpy(), wanted.float().cpu().numpy()

    data = load_data_config(config.parse_yaml(file.data_yaml, f"data YAML in {path}"), known=None)
    data = choose_inputs(data, model.inputs)
    width = file.model_config.dim * max(1, len(tokens))
    return Network(data, tuple(file.classes), file.hash, width, model.inputs, run)


def class_tokens(file: ModelFile) -> tuple[str, ...]:
    """Names of the class tokens of a network, of a contrastive pair those of the jet's; the first is its latent."""
    jet = getattr(file.model_config, "jet", file.model_config)
    return tuple(dict.fromkeys(task.reads for task in getattr(jet, "all_tasks", ())))


def _open_onnx(path: Path, tokens: Sequence[str]) -> Network:
    import onnxruntime

    with files.fetched(path) as local:
        session = onnxruntime.InferenceSession(str(local), providers=["CPUExecutionProvider"])
    meta = session.get_modelmeta().custom_metadata_map
    outputs = {output.name: output.shape for output in session.get_outputs()}
    known = json.loads(meta.get("tokens", "[]"))
    for name in tokens:
        if name not in known:
            msg = f"{path}: the network has no class token {name!r}; {nearest(name, known)}"
            raise ConfigError(msg)
    latents = ["latent" if name == known[0] else f"latent_{name}" for name in tokens] or ["latent"]
    logits = "log_scores" if "log_scores" in outputs else "scores"  # files of earlier versions have scores only

    def run(inputs: Mapping[str, Floats]) -> tuple[Floats, Floats]:
        found, *parts = session.run([logits, *latents], dict(inputs))
        if logits == "scores":
            found = np.log(np.maximum(found, np.finfo(np.float32).tiny))
        return found, np.concatenate(parts, axis=1)

    width = sum(outputs[name][1] for name in latents)
    inputs = tuple(value.name for value in session.get_inputs())
    data = load_data_config(config.parse_yaml(meta["data_yaml"], f"data YAML in {path}"), known=None)
    data = choose_inputs(data, inputs)
    return Network(data, tuple(json.loads(meta["classes"])), meta["model_hash"], width, inputs, run)


def score_table(network: Network, table: pa.Table, batch_size: int = 256) -> Scored:
    """Score a table of jets (JetClass-II columns, at least those that the network's data YAML reads)."""
    features = network.data.apply(table, training=False, labels=False)
    jets = len(features.rows)
    order = np.argsort(np.diff(features.offsets), kind="stable")
    parts = [order[begin : begin + batch_size] for begin in range(0, jets, batch_size)]
    padded = (features.pad_all(part) for part in parts)
    done = [network.run({name: inputs[name] for name in network.inputs}) for inputs in padded]
    if not done:
        return Scored(
            features.rows, *(np.empty((0, n), np.float32) for n in (len(network.classes), network.latent_dim))
        )
    back = np.argsort(order, kind="stable")
    logits, latent = (np.concatenate(outputs)[back] for outputs in zip(*done, strict=True))
    return Scored(features.rows, logits, latent)


def as_lists(matrix: Floats) -> pa.FixedSizeListArray:
    """A (B, D) array as an Arrow column of lists of D numbers."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])
