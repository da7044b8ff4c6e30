"""Model files and training states: tensors and plain values only, read without unpickling objects.

A model file holds what a tagger needs to be used elsewhere: architecture, weights, ordered class names, the data
YAML that makes its inputs, and free provenance. A training state is any tree of tensors and plain values (optimiser,
schedule, random generators, position in the data).

Decided here: one file is one torch archive, written atomically, whose checksums are verified before anything in it
is decoded (torch itself does not check them); a class list is compared name by name; a file that is damaged, foreign
or holds Python objects is a CheckpointError with the reason, never a crash inside torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jetfoundry import config, files
from jetfoundry.errors import CheckpointError, ConfigError, nearest
from jetfoundry.labels import class_list_hash
from jetfoundry.models import presets
from jetfoundry.models.presets import MODELS, build

__all__ = [
    "ModelFile",
    "architecture_hash",
    "load_model",
    "load_state",
    "read_archive",
    "save_model",
    "save_state",
    "weights_hash",
]

_FORMAT = "jetfoundry-model-1"
_FIELDS = {
    "model_name": str,
    "model_config": dict,
    "weights": dict,
    "classes": list,
    "data_yaml": str,
    "meta": dict,
    "hash": str,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A trained model as it lies in a file. `path` only names it in messages."""

    path: Path
    model_name: str
    model_config: Any
    weights: Mapping[str, Tensor]
    classes: tuple[str, ...]
    data_yaml: str
    meta: Mapping[str, Any]
    hash: str

    @property
    def class_hash(self) -> str:
        """Identity of the ordered class list."""
        return class_list_hash(self.classes)

    @property
    def architecture_hash(self) -> str:
        """Identity of the architecture, see `architecture_hash`."""
        return architecture_hash(self.model_config)

    def build(self) -> nn.Module:
        """The network with its weights, in eval mode, on the CPU."""
        model = build(self.model_config)
        try:
            model.load_state_dict(dict(self.weights))
        except RuntimeError as error:  # torch's message lists missing, unexpected and misshapen weights
            msg = f"{self.path}: the weights do not fit the stored configuration: {error}"
            raise CheckpointError(msg) from error
        return model.eval()


def save_model(
    path: str | Path,
    *,
    model_name: str,
    model_config: Any,
    weights: Mapping[str, Tensor],
    classes: Sequence[str],
    data_yaml: str,
    meta: Mapping[str, Any],
) -> None:
    """Write a model file atomically.

    Parameters
    ----------
    model_name
        A key of `presets.MODELS`.
    model_config
        The dataclass that the network was made with.
    weights
        Its `state_dict()`, on any device.
    classes
        Names of the outputs, in order.
    data_yaml
        Text of the data configuration that makes the inputs.
    meta
        Plain values: run, step, metrics, manifest hash, commit.
    """
    if model_name != presets.model_name(model_config):
        msg = f"{path}: a {type(model_config).__name__} configures no {model_name!r}"
        raise CheckpointError(msg)
    if len(classes) != model_config.num_classes:
        msg = f"{path}: {len(classes)} class names for a network with {model_config.num_classes} outputs"
        raise CheckpointError(msg)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    state = {
        "format": _FORMAT,
        "model_name": model_name,
        "model_config": config.to_dict(model_config),
        "weights": weights,
        "classes": list(classes),
        "data_yaml": data_yaml,
        "meta": config.to_dict(meta),
        "hash": weights_hash(weights),
    }
    save_state(path, state)


def load_model(
    path: str | Path, *, expect_classes: Sequence[str] | None = None, expect_config: Any = None
) -> ModelFile:
    """Read a model file; with `expect_classes` or `expect_config`, only if its outputs or its architecture are these.

    Raises CheckpointError naming the file and what is wrong with it.
    """
    path = files.place(path)
    state = read_archive(path)
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        msg = f"{path}: not a model file of this version: wanted format {_FORMAT!r}, got {found!r}"
        raise CheckpointError(msg)
    for name, kind in _FIELDS.items():
        if not isinstance(state.get(name), kind):
            msg = f"{path}: field {name!r}: wanted {kind.__name__}, got {type(state.get(name)).__name__}"
            raise CheckpointError(msg)
    if weights_hash(state["weights"]) != state["hash"]:
        msg = f"{path}: the weights do not have the hash that was stored with them"
        raise CheckpointError(msg)
    if state["model_name"] not in MODELS:
        msg = f"{path}: unknown model {state['model_name']!r}; {nearest(state['model_name'], MODELS)}"
        raise CheckpointError(msg)
    config_class = MODELS[state["model_name"]][0]
    try:
        model_config = config.build(config_class, state["model_config"], where=str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    if len(state["classes"]) != model_config.num_classes:
        msg = f"{path}: {len(state['classes'])} class names for a network with {model_config.num_classes} outputs"
        raise CheckpointError(msg)
    if expect_classes is not None:
        _compare_classes(path, state["classes"], expect_classes)
    if expect_config is not None:
        _compare_configs(path, model_config, expect_config)
    return ModelFile(
        path=path,
        model_name=state["model_name"],
        model_config=model_config,
        weights=state["weights"],
        classes=tuple(state["classes"]),
        data_yaml=state["data_yaml"],
        meta=state["meta"],
        hash=state["hash"],
    )


def _compare_classes(path: Path, stored: Sequence[str], wanted: Sequence[str]) -> None:
    if list(stored) == list(wanted):
        return
    numbers = f"the model has {len(stored)} classes, wanted are {len(wanted)}"
    for index, (have, want) in enumerate(zip(stored, wanted, strict=False)):
        if have != want:
            msg = f"{path}: another class list: index {index} is {have!r}, wanted {want!r}; {numbers}"
            raise CheckpointError(msg)
    msg = f"{path}: another class list: equal up to index {min(len(stored), len(wanted)) - 1}, but {numbers}"
    raise CheckpointError(msg)


def _compare_configs(path: Path, stored: Any, wanted: Any) -> None:
    have, want = (_flat({"model": presets.model_name(each), **config.to_dict(each)}) for each in (stored, wanted))
    other = [name for name in have | want if have.get(name) != want.get(name)]
    if other:
        first = ", ".join(f"{name} is {have.get(name)!r}, wanted {want.get(name)!r}" for name in other[:3])
        msg = f"{path}: another architecture: {first}" + (f" and {len(other) - 3} more" if len(other) > 3 else "")
        raise CheckpointError(msg)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def architecture_hash(model_config: Any) -> str:
    """Twelve hex digits of the architecture that `model_config` describes: its name and what differs from defaults.

    A new field with a default changes no hash.
    """
    default = _flat(config.to_dict(type(model_config)()))
    changed = {name: value for name, value in _flat(config.to_dict(model_config)).items() if value != default[name]}
    return config.fingerprint({"model": presets.model_name(model_config), "config": changed})


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and content, whatever the device and the order of the mapping."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a tree of tensors and plain values atomically.

    Raises CheckpointError, before anything is written, if the tree holds something that `load_state` would refuse.
    """
    _check_plain(state, str(path))
    with files.committed(path) as temporary:
        torch.save(dict(state), temporary)


def load_state(path: str | Path) -> dict[str, Any]:
    """Read what `save_state` wrote; all tensors on the CPU."""
    state = read_archive(path)
    if not isinstance(state, dict):
        msg = f"{path}: wanted a state of named entries, got {type(state).__name__}"
        raise CheckpointError(msg)
    return state


def _check_plain(value: Any, where: str) -> None:
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            if not isinstance(key, str | int):
                msg = f"{where}: keys must be str or int, got {key!r}"
                raise CheckpointError(msg)
            _check_plain(item, f"{where}: {key}" if ": " not in where else f"{where}.{key}")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif type(value) not in (Tensor, nn.Parameter, str, int, float, bool, type(None)):
        msg = f"{where}: only tensors and plain values can be saved, got {type(value).__name__}"
        raise CheckpointError(msg)


def read_archive(path: str | Path) -> Any:
    """Verify and read a torch archive of tensors and plain values, onto the CPU."""
    try:
        with files.fetched(path) as local:
            with zipfile.ZipFile(local) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                msg = f"{path}: damaged: wrong checksum of {damaged!r}"
                raise CheckpointError(msg)
            return torch.load(local, map_location="cpu", weights_only=True)
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror or error}"
        raise CheckpointError(msg) from error
    except zipfile.BadZipFile as error:
        msg = f"{path}: damaged, or not a torch archive: {error}"
        raise CheckpointError(msg) from error
    except pickle.UnpicklingError as error:
        msg = f"{path}: holds Python objects; only tensors and plain values are read: {_first_sentence(error)}"
        raise CheckpointError(msg) from error
    except (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:  # another zip file
        msg = f"{path}: not a torch archive: {_first_sentence(error)}"
        raise CheckpointError(msg) from error


def _first_sentence(error: Exception) -> str:
    return str(error).split("\n", 1)[0].split(". ", 1)[0]
