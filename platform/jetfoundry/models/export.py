"""A trained model as ONNX: scores and latent from the inputs that weaver's ONNX users already feed.

Inputs are the network's (`model.inputs`) by their names in the data YAML, for example `pf_features` (B, F, P),
`pf_vectors` (B, 4, P) in GeV and `pf_mask` (B, 1, P), all float32, mask 1 for real particles; outputs are `scores`
(B, C), a softmax, `latent` (B, D), `log_scores` (B, C), the softmax's logarithm, exact where scores are too small for
float32, and of a network with several class tokens `latent_<token>` for each further one.
Batch size and particle count are free. What is needed to make the inputs and to read the outputs travels in the
file's metadata: class names and their hash, data YAML, model hash, opset.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from jetfoundry import files
from jetfoundry.errors import CheckpointError
from jetfoundry.models.checkpoints import ModelFile

__all__ = ["OPSET", "OUTPUTS", "check_onnx", "export_onnx"]

OUTPUTS = ("scores", "latent", "log_scores")
"""Outputs of every file, in order, before those of further class tokens."""

OPSET = 18
"""The oldest opset that torch's exporter writes without converting: readable by the most runtimes."""


class _Deployed(nn.Module):
    """The network as users of the file see it: float mask in, softmax and latents out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = getattr(model, "jet", model)  # of a contrastive pair, the network of the jet
        self.inputs: tuple[str, ...] = self.model.inputs
        tasks = getattr(self.model.config, "all_tasks", ())
        self.tokens = tuple(dict.fromkeys(task.reads for task in tasks))
        self.outputs = (*OUTPUTS, *(f"latent_{token}" for token in self.tokens[1:]))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        *values, mask = inputs
        if len(self.tokens) < 2:
            latent, further = self.model.latent(*values, mask != 0), ()
        else:
            latent, *further = self.model.latents(*values, mask != 0).values()
        logits = self.model.head(latent)
        return logits.softmax(-1), latent, logits.log_softmax(-1), *further

    def example(self) -> tuple[Tensor, ...]:
        """Two jets of three particles: the exporter must not take a size of 0 or 1 for a constant."""
        channels = {"pf_features": self.model.config.input_dim, "pf_vectors": 4, "pf_points": 2, "pf_mask": 1}
        return tuple(torch.ones(2, channels[name], 3) for name in self.inputs)


def export_onnx(model_file: ModelFile, path: str | Path, *, opset: int = OPSET) -> None:
    """Write `model_file` as ONNX to `path`, atomically; see the module docstring for inputs and outputs.

    Raises CheckpointError if the written graph has another opset than asked for.
    """
    network = _Deployed(model_file.build()).eval()
    jets, particles = torch.export.Dim("B"), torch.export.Dim("P")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)  # it is meant that inputs share B and P
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # torch 2.13 copying its own classes
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that we do not need
        program = torch.onnx.export(
            network,
            network.example(),
            input_names=network.inputs,
            output_names=network.outputs,
            opset_version=opset,
            dynamo=True,
            dynamic_shapes=(({0: jets, 2: particles},) * len(network.inputs),),
            verbose=False,
        )
        if program is None:
            msg = "torch.onnx.export returned no program although dynamo=True"
            raise AssertionError(msg)
    graph = program.model_proto
    written = next(entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx"))
    if written != opset:
        msg = f"{path}: wanted ONNX opset {opset}, the exporter wrote {written}"
        raise CheckpointError(msg)
    metadata = {
        "model_name": model_file.model_name,
        "model_hash": model_file.hash,
        "classes": json.dumps(model_file.classes),
        "class_hash": model_file.class_hash,
        "data_yaml": model_file.data_yaml,
        "tokens": json.dumps(network.tokens),
        "opset": str(opset),
    }
    onnx.helper.set_model_props(graph, metadata)
    onnx.checker.check_model(graph)
    with files.committed(path) as temporary:
        temporary.write_bytes(graph.SerializeToString())


def check_onnx(path: str | Path, model: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> float:
    """Largest absolute difference of any output between the ONNX file and `model` (in eval mode).

    `batches` are arguments of the network's `forward`. A difference that is not a number counts as infinite.
    """
    with files.fetched(path) as local:
        session = onnxruntime.InferenceSession(str(local), providers=["CPUExecutionProvider"])
    network = _Deployed(model)
    largest = 0.0
    for inputs in batches:
        batch = tuple(values.float() for values in inputs)
        with torch.no_grad():
            expected = network(*batch)
        found = session.run(network.outputs, dict(zip(network.inputs, (x.numpy() for x in batch), strict=True)))
        for ours, theirs in zip(expected, found, strict=True):
            difference = np.abs(ours.numpy() - theirs).max()
            largest = max(largest, float(np.nan_to_num(difference, nan=np.inf)))
    return largest
