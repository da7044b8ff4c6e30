"""Options of the export job, and padded batches of real jets to check the exported file with."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from jetfoundry import config
from jetfoundry.errors import InputError
from jetfoundry.features.transform import load_data_config
from jetfoundry.loading.window import choose_inputs
from jetfoundry.models.checkpoints import ModelFile
from jetfoundry.models.presets import MODELS

__all__ = ["ExportConfig", "padded_batches"]

_BATCHES = (1, 3, 32, 64)  # a file that has one of these sizes built in fails on the others


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What to export and how to check it."""

    run: str = config.option("runs/demo", "run folder with model.pt")
    output: str = config.option("", "ONNX file, '' = <run>/model.onnx")
    data: str = config.option("", "shards that the check takes jets from, '' = those of the run")
    check_jets: int = config.option(100, "jets to compare ONNX and PyTorch on")
    tolerance: float = config.option(1e-4, "largest allowed difference of any score or latent value")


def padded_batches(model: ModelFile, jets: pa.Table) -> list[tuple[torch.Tensor, ...]]:
    """Inputs of the selected jets in batches of several sizes, each padded to its own longest jet."""
    data = load_data_config(config.parse_yaml(model.data_yaml, "data YAML of the model"), known=None)
    network: Any = MODELS[model.model_name][1]
    features = choose_inputs(data, network.inputs).apply(jets, training=False, labels=False)
    number = len(features.rows)
    if number == 0:
        msg = f"none of the {jets.num_rows} jets passes the selection of the model's data YAML"
        raise InputError(msg)
    edges = np.minimum(np.cumsum([0, *_BATCHES]), number)
    parts = [np.arange(begin, end) for begin, end in itertools.pairwise(edges) if end > begin]
    padded, names = (features.pad_all(part) for part in parts), network.inputs
    return [tuple(torch.from_numpy(inputs[name]) for name in names) for inputs in padded]
