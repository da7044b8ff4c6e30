"""A trained model as ONNX: scores and latent from the inputs that weaver's ONNX users already feed.

Inputs `pf_features` (B, F, P), `pf_vectors` (B, 4, P) in GeV and `pf_mask` (B, 1, P), all float32, mask 1 for real
particles; outputs `scores` (B, C), a softmax, and `latent` (B, D). Batch size and particle count are free. What is
needed to make the inputs and to read the outputs travels in the file's metadata: class names and their hash, data
YAML, model hash, opset.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from jetfoundry import files
from jetfoundry.errors import CheckpointError
from jetfoundry.loading.batch import INPUTS
from jetfoundry.models.checkpoints import ModelFile
from jetfoundry.models.particle_transformer import ParticleTransformer

__all__ = ["OPSET", "OUTPUTS", "check_onnx", "export_onnx"]

OUTPUTS = ("scores", "latent")
OPSET = 18
"""The oldest opset that torch's exporter writes without converting: readable by the most runtimes."""


class _Deployed(nn.Module):
    """The network as users of the file see it: float mask in, softmax and latent out."""

    def __init__(self, model: ParticleTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, pf_features: Tensor, pf_vectors: Tensor, pf_mask: Tensor) -> tuple[Tensor, Tensor]:
        latent = self.model.latent(pf_features, pf_vectors, pf_mask != 0)
        return self.model.head(latent).softmax(-1), latent


def export_onnx(model_file: ModelFile, path: str | Path, *, opset: int = OPSET) -> None:
    """Write `model_file` as ONNX to `path`, atomically; see the module docstring for inputs and outputs.

    Raises CheckpointError if the written graph has another opset than asked for.
    """
    network = _Deployed(model_file.build()).eval()
    # Two jets of three particles: the exporter must not take a size of 0 or 1 for a constant.
    example = (torch.zeros(2, model_file.model_config.input_dim, 3), torch.ones(2, 4, 3), torch.ones(2, 1, 3))
    jets, particles = torch.export.Dim("B"), torch.export.Dim("P")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)  # it is meant that inputs share B and P
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # torch 2.13 copying its own classes
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that we do not need
        program = torch.onnx.export(
            network,
            example,
            input_names=INPUTS,
            output_names=OUTPUTS,
            opset_version=opset,
            dynamo=True,
            dynamic_shapes=({0: jets, 2: particles},) * 3,
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
        "opset": str(opset),
    }
    onnx.helper.set_model_props(graph, metadata)
    onnx.checker.check_model(graph)
    with files.committed(path) as temporary:
        temporary.write_bytes(graph.SerializeToString())


def check_onnx(path: str | Path, model: ParticleTransformer, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> float:
    """Largest absolute difference of scores and latent between the ONNX file and `model` (in eval mode).

    `batches` are (features, vectors, mask) as for the network's `forward`. A difference that is not a number
    counts as infinite.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    network = _Deployed(model)
    largest = 0.0
    for features, vectors, mask in batches:
        batch = (features.float(), vectors.float(), mask.float())
        with torch.no_grad():
            expected = network(*batch)
        found = session.run(OUTPUTS, dict(zip(INPUTS, (x.numpy() for x in batch), strict=True)))
        for ours, theirs in zip(expected, found, strict=True):
            difference = np.abs(ours.numpy() - theirs).max()
            largest = max(largest, float(np.nan_to_num(difference, nan=np.inf)))
    return largest
