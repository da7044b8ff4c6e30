from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from jetfoundry.errors import CheckpointError
from jetfoundry.labels import CLASSES
from jetfoundry.loading.batch import INPUTS
from jetfoundry.models import export
from jetfoundry.models.checkpoints import ModelFile, load_model, save_model
from jetfoundry.models.export import check_onnx, export_onnx
from jetfoundry.models.particle_net import ParticleNetConfig
from jetfoundry.models.particle_transformer import ParTConfig
from jetfoundry.models.presets import build, model_name
from jetfoundry.models.tasks import TaskConfig


def model_file(folder: Path, config: Any) -> ModelFile:
    """A network whose norms have seen something, as a model file."""
    torch.manual_seed(0)
    model = build(config)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer += 0.5 * torch.rand(buffer.shape)
    save_model(
        folder / "model.pt",
        model_name=model_name(config),
        model_config=config,
        weights=model.state_dict(),
        classes=CLASSES[: config.num_classes],
        data_yaml="treename: tree\n",
        meta={},
    )
    return load_model(folder / "model.pt")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelFile, Path]:
    folder = tmp_path_factory.mktemp("export")
    config = ParTConfig(
        input_dim=5, num_classes=3, embed_dims=(8, 16), pair_embed_dims=(6,), num_heads=4, num_layers=1,
        num_class_layers=1, ffn_ratio=2, fc_dims=(9,),
    )  # fmt: skip
    source = model_file(folder, config)
    export_onnx(source, folder / "model.onnx")
    return source, folder / "model.onnx"


@pytest.mark.parametrize("lengths", [[1], [128], [2], [3, 2], [1, 1, 1], [45, 17, 0, 128, 1]])
def test_onnx_equals_torch_for_any_number_of_jets_and_particles(exported, make_batch, lengths: list[int]) -> None:
    source, path = exported
    assert check_onnx(path, source.build(), [make_batch(lengths, features=5)]) < 1e-5


def test_padding_content_does_not_change_onnx_scores(exported, make_batch) -> None:
    _, path = exported
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    features, vectors, mask = make_batch([5, 2], features=5)
    scores = []
    for fill in (0.0, 1e6):
        inputs = (features.masked_fill(~mask, fill), vectors.masked_fill(~mask, fill), mask.float())
        scores.append(session.run(["scores"], dict(zip(INPUTS, (x.numpy() for x in inputs), strict=True)))[0])
    np.testing.assert_array_equal(*scores)
    np.testing.assert_allclose(scores[0].sum(1), 1, rtol=1e-5)


def test_names_types_and_metadata_are_the_documented_ones(exported) -> None:
    source, path = exported
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert {i.name: (i.type, i.shape) for i in session.get_inputs()} == {
        "pf_features": ("tensor(float)", ["B", 5, "P"]),
        "pf_vectors": ("tensor(float)", ["B", 4, "P"]),
        "pf_mask": ("tensor(float)", ["B", 1, "P"]),
    }
    shapes = {o.name: o.shape for o in session.get_outputs()}
    assert shapes == {"scores": ["B", 3], "latent": ["B", 16], "log_scores": ["B", 3]}
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list(CLASSES[:3])
    assert metadata["class_hash"] == source.class_hash
    assert metadata["model_hash"] == source.hash
    assert metadata["data_yaml"] == source.data_yaml
    assert json.loads(metadata["tokens"]) == ["classification"]
    assert metadata["opset"] == str(export.OPSET)
    assert {entry.version for entry in onnx.load(path).opset_import if entry.domain == ""} == {export.OPSET}


def test_a_difference_is_seen(exported, make_batch) -> None:
    source, path = exported
    model = source.build()
    with torch.no_grad():
        model.head[-1].bias[0] += 0.1
    assert check_onnx(path, model, [make_batch([5, 2], features=5)]) > 1e-4
    with torch.no_grad():
        model.head[-1].bias[0] = torch.nan
    assert check_onnx(path, model, [make_batch([5, 2], features=5)]) == float("inf")


def test_another_opset_than_asked_for_is_refused(exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, path = exported

    class Program:
        model_proto = onnx.load(path)

    monkeypatch.setattr(export.torch.onnx, "export", lambda *args, **kwargs: Program())
    with pytest.raises(CheckpointError, match=r"wanted ONNX opset 21, the exporter wrote 18"):
        export_onnx(source, tmp_path / "model.onnx", opset=21)
    assert not list(tmp_path.iterdir())


def test_particle_net_is_exported_for_any_number_of_particles(tmp_path: Path, make_batch) -> None:
    config = ParticleNetConfig(input_dim=5, num_classes=3, neighbours=(4, 3), channels=((8, 8), (6, 7)), fc_dims=(9,))
    source = model_file(tmp_path, config)
    export_onnx(source, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["pf_points", "pf_features", "pf_mask"]
    for lengths in ([1], [3, 2], [60], [45, 17, 0, 64, 1]):
        features, vectors, mask = make_batch(lengths, features=5)
        assert check_onnx(tmp_path / "model.onnx", source.build(), [(vectors[:, :2], features, mask)]) < 1e-5


def test_further_class_tokens_are_exported_by_name(tmp_path: Path, small_config: ParTConfig, make_batch) -> None:
    tasks = (TaskConfig(), TaskConfig(name="contrastive", outputs=6))
    source = model_file(tmp_path, dataclasses.replace(small_config, tasks=tasks))
    export_onnx(source, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["scores", "latent", "log_scores", "latent_contrastive"]
    assert check_onnx(tmp_path / "model.onnx", source.build(), [make_batch([5, 2], features=5)]) < 1e-5


@pytest.mark.slow
def test_sophon_on_real_jets(tmp_path: Path, real_jets, make_batch) -> None:
    source = model_file(tmp_path, ParTConfig())
    export_onnx(source, tmp_path / "sophon.onnx", opset=20)
    batches = [real_jets, make_batch([1]), make_batch([128]), make_batch([30, 7, 55])]
    assert check_onnx(tmp_path / "sophon.onnx", source.build(), batches) < 1e-4
