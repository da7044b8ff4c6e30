from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from jetfoundry import config
from jetfoundry.errors import CheckpointError
from jetfoundry.labels import class_list_hash
from jetfoundry.models import checkpoints
from jetfoundry.models.checkpoints import (
    architecture_hash,
    load_model,
    load_state,
    save_model,
    save_state,
    weights_hash,
)  # fmt: skip
from jetfoundry.models.particle_net import ParticleNetConfig
from jetfoundry.models.particle_transformer import ParTConfig, ParticleTransformer
from jetfoundry.models.presets import PRESETS, build, configure, model_name

CLASSES = ("X_bb", "X_cc", "QCD_light")


class Trap:
    """Unpickling an instance would call this."""

    def __reduce__(self):
        return print, ("unpickled",)


@pytest.fixture
def model(small_config: ParTConfig) -> ParticleTransformer:
    torch.manual_seed(0)
    return ParticleTransformer(small_config).eval()


def save(path: Path, model: ParticleTransformer, **changes) -> Path:
    fields = {
        "model_name": "particle_transformer",
        "model_config": model.config,
        "weights": model.state_dict(),
        "classes": CLASSES,
        "data_yaml": "treename: tree\n",
        "meta": {"step": 7, "metrics": {"accuracy": 0.5}},
    }
    save_model(path, **{**fields, **changes})
    return path


def test_a_model_file_gives_back_all_of_it(model: ParticleTransformer, make_batch, tmp_path: Path) -> None:
    loaded = load_model(save(tmp_path / "model.pt", model), expect_classes=CLASSES)
    assert loaded.model_config == model.config
    assert loaded.classes == CLASSES
    assert loaded.class_hash == class_list_hash(CLASSES)
    assert loaded.data_yaml == "treename: tree\n"
    assert loaded.meta == {"step": 7, "metrics": {"accuracy": 0.5}}
    built = loaded.build()
    assert not built.training
    batch = make_batch([4, 2], features=5)
    assert torch.equal(built(*batch), model(*batch))


def test_hash_is_that_of_the_weights_only(model: ParticleTransformer, tmp_path: Path) -> None:
    first = load_model(save(tmp_path / "a.pt", model))
    second = load_model(save(tmp_path / "b.pt", model, meta={"step": 8}))
    assert first.hash == second.hash == weights_hash(dict(reversed(model.state_dict().items())))
    with torch.no_grad():
        model.readout.token[0] += 1e-6
    assert load_model(save(tmp_path / "c.pt", model)).hash != first.hash


def test_hash_of_a_known_tensor() -> None:
    content = b"w torch.float32 (2,)\n" + np.array([1, 2], "<f4").tobytes()
    assert weights_hash({"w": torch.tensor([1.0, 2.0])}) == hashlib.sha256(content).hexdigest()
    assert weights_hash({"w": torch.tensor(1.0, dtype=torch.bfloat16)}) != weights_hash({"w": torch.tensor(1.0)})


def test_another_class_list_is_refused_with_the_first_difference(model: ParticleTransformer, tmp_path: Path) -> None:
    path = save(tmp_path / "model.pt", model)
    with pytest.raises(CheckpointError, match=r"model.pt: .* index 1 is 'X_cc', wanted 'X_ss'; .* 3 classes, .* are 2"):
        load_model(path, expect_classes=("X_bb", "X_ss"))
    with pytest.raises(CheckpointError, match=r"equal up to index 2, but the model has 3 classes, wanted are 4"):
        load_model(path, expect_classes=(*CLASSES, "X_ss"))


def test_class_names_must_be_as_many_as_outputs(model: ParticleTransformer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="2 class names for a network with 3 outputs"):
        save(tmp_path / "model.pt", model, classes=CLASSES[:2])
    assert not list(tmp_path.iterdir())


def test_every_damaged_byte_of_the_weights_is_noticed(model: ParticleTransformer, tmp_path: Path) -> None:
    path = save(tmp_path / "model.pt", model)
    content = bytearray(path.read_bytes())
    where = content.find(model.readout.token.detach().numpy().tobytes())
    assert where > 0
    content[where] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.pt: damaged: wrong checksum"):
        load_model(path)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_file_is_refused(model: ParticleTransformer, tmp_path: Path, keep: float) -> None:
    path = save(tmp_path / "model.pt", model)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(CheckpointError, match=r"model.pt: damaged, or not a torch archive"):
        load_model(path)


def test_foreign_files_are_refused_with_their_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*none.pt: No such file"):
        load_model(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match=r"cannot read "):
        load_model(tmp_path)
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(CheckpointError, match=r"text.zip: not a torch archive"):
        load_model(tmp_path / "text.zip")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other.pt: not a model file .* got None"):
        load_model(tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"list.pt: not a model file .* got 'list'"):
        load_model(tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"list.pt: wanted a state of named entries, got list"):
        load_state(tmp_path / "list.pt")


def test_python_objects_are_never_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"format": "jetfoundry-model-1", "meta": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(CheckpointError, match=r"trap.pt: holds Python objects"):
        load_model(tmp_path / "trap.pt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("weights", [], "field 'weights': wanted dict, got list"),
        ("data_yaml", None, "field 'data_yaml': wanted str, got NoneType"),
        ("model_name", "particle_net", "model.pt: unknown key 'embed_dims'"),
        ("model_name", "particle_transfomer", "unknown model 'particle_transfomer'; nearest: particle_transformer"),
        ("model_config", {"num_head": 4}, "model.pt: unknown key 'num_head'; nearest: num_heads"),
        ("model_config", {"num_heads": 3}, "num_heads=3 must divide"),
        ("hash", "0" * 64, "do not have the hash"),
    ],
)
def test_a_wrong_field_is_named(model: ParticleTransformer, tmp_path: Path, field, value, match: str) -> None:
    path = save(tmp_path / "model.pt", model)
    state = torch.load(path, weights_only=True)
    torch.save({**state, field: value}, path)
    with pytest.raises(CheckpointError, match=match):
        load_model(path)


def test_weights_of_another_configuration_are_refused(model: ParticleTransformer, tmp_path: Path) -> None:
    path = save(tmp_path / "model.pt", model, model_config=dataclasses.replace(model.config, num_layers=3))
    with pytest.raises(CheckpointError, match=r"(?s)model.pt: the weights do not fit .*blocks.2"):
        load_model(path).build()


def test_another_architecture_is_refused_with_what_differs(model: ParticleTransformer, tmp_path: Path) -> None:
    path = save(tmp_path / "model.pt", model)
    assert load_model(path, expect_config=model.config).model_config == model.config
    other = dataclasses.replace(model.config, num_layers=3, fc_dims=())
    with pytest.raises(
        CheckpointError, match=r"model.pt: another .*num_layers is 2, wanted 3, fc_dims is \[9\], .*\[\]"
    ):
        load_model(path, expect_config=other)
    with pytest.raises(CheckpointError, match=r"model is 'particle_transformer', wanted 'particle_net', .* more$"):
        load_model(path, expect_config=ParticleNetConfig())
    with pytest.raises(CheckpointError, match="a ParTConfig configures no 'particle_net'"):
        save(tmp_path / "other.pt", model, model_name="particle_net")


def test_identity_of_an_architecture_is_what_differs_from_the_defaults(
    model: ParticleTransformer, tmp_path: Path
) -> None:
    loaded = load_model(save(tmp_path / "model.pt", model))
    assert loaded.architecture_hash == architecture_hash(model.config)
    known = {architecture_hash(preset) for preset in PRESETS.values()} | {loaded.architecture_hash}
    assert len(known) == len(PRESETS) + 1
    assert architecture_hash(ParTConfig()) == config.fingerprint({"model": "particle_transformer", "config": {}})


def test_files_from_before_there_were_tasks_are_read(model: ParticleTransformer, make_batch, tmp_path: Path) -> None:
    path = save(tmp_path / "model.pt", model)
    state = torch.load(path, weights_only=True)
    for new in ("tasks", "pair_activation"):
        del state["model_config"][new]
    torch.save(state, path)
    assert "readout.token" in state["weights"]
    assert not any(name.startswith(("readouts", "heads")) for name in state["weights"])
    batch = make_batch([4, 2], features=5)
    assert torch.equal(load_model(path).build()(*batch), model(*batch))


@pytest.mark.parametrize("name", ["particle_net_lite", "demo_contrastive", "demo"])
def test_every_architecture_goes_through_a_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    wanted = configure(name, {}, input_dim=5, num_classes=3)
    network = build(wanted)
    path = save(tmp_path / "model.pt", network, model_name=model_name(wanted))
    loaded = load_model(path, expect_config=wanted)
    for key, value in loaded.build().state_dict().items():
        assert torch.equal(value, network.state_dict()[key]), key


def test_a_training_state_comes_back(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimiser.step()
    state = {
        "optimiser": optimiser.state_dict(),
        "rng": torch.get_rng_state(),
        "position": {"epoch": 2, "row_groups": [3, 1, 2], "seed": (1, 2)},
        "name": None,
    }
    save_state(tmp_path / "state.pt", state)
    back = load_state(tmp_path / "state.pt")
    assert torch.equal(back["rng"], state["rng"])
    assert back["position"] == state["position"]
    torch.optim.AdamW([weight]).load_state_dict(back["optimiser"])


@pytest.mark.parametrize("value", [Trap(), np.float64(1), np.ones(2), Path("x"), {1, 2}, torch.float32])
def test_a_state_that_could_not_be_loaded_is_not_saved(tmp_path: Path, value: object) -> None:
    with pytest.raises(
        CheckpointError, match=r"state.pt: loop.history\[1\]: only tensors .* got " + type(value).__name__
    ):
        save_state(tmp_path / "state.pt", {"loop": {"history": [1, value]}})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"step": 1})

    def fail(state: object, file: Path) -> None:
        Path(file).write_bytes(b"half")
        msg = "no space left"
        raise OSError(msg)

    monkeypatch.setattr(checkpoints.torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        save_state(path, {"step": 2})
    assert load_state(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]
