"""Architectures by name, named configurations, and the network of a configuration.

A new architecture is a file with a configuration dataclass (`input_dim`, `num_classes`, `dim`) and a network: it is
made from its configuration alone, names the batch inputs that its `forward` takes in `inputs`, and has `latent`, of
the same arguments, and `head`, with `forward = head(latent)`. Then it is entered here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from jetfoundry import config as cfg
from jetfoundry.errors import ConfigError, nearest
from jetfoundry.models.contrastive import ContrastiveConfig, ContrastiveTransformer
from jetfoundry.models.particle_net import ParticleNet, ParticleNetConfig
from jetfoundry.models.particle_transformer import ParTConfig, ParticleTransformer
from jetfoundry.models.tasks import TaskConfig

__all__ = ["MODELS", "PRESETS", "build", "configure", "model_name"]

MODELS: dict[str, tuple[type[Any], type[nn.Module]]] = {
    "particle_transformer": (ParTConfig, ParticleTransformer),
    "particle_net": (ParticleNetConfig, ParticleNet),
    "contrastive": (ContrastiveConfig, ContrastiveTransformer),
}
"""Architectures by the name in recipes and model files: (configuration, network)."""

# For a laptop. Below a width of 64 the time goes into pairs, attention maps and activations, not into matrix
# products: two blocks, four heads and a small pair network buy more speed than a narrower model.
_DEMO = ParTConfig(
    embed_dims=(64, 64),
    pair_embed_dims=(16,),
    num_heads=4,
    num_layers=2,
    num_class_layers=1,
    ffn_ratio=2,
    attention_dropout=0.0,
    activation_dropout=0.0,
    fc_dims=(64,),
)

PRESETS: dict[str, Any] = {
    "demo": _DEMO,
    # arXiv:2405.12972, 2,304,688 parameters.
    "sophon": ParTConfig(),
    # The jet network of Sophon++, for classification alone.
    "sophon_pp": ParTConfig(embed_dims=(512, 128, 512)),
    # arXiv:1902.08570 in the layout of the JetClass networks; 370,156 parameters with 10 classes.
    "particle_net": ParticleNetConfig(),
    "particle_net_lite": ParticleNetConfig(neighbours=(7, 7), channels=((32,) * 3, (64,) * 3), fc_dims=(128,)),
    "sophon_pp_contrastive": ContrastiveConfig(),
    "demo_contrastive": ContrastiveConfig(
        jet=dataclasses.replace(_DEMO, tasks=(TaskConfig(), TaskConfig(name="contrastive", outputs=64))),
        gen=dataclasses.replace(
            ContrastiveConfig().gen, num_classes=64, embed_dims=(32, 32), pair_embed_dims=(16,), num_layers=2
        ),
    ),
}
"""Configurations by the name that recipes use; `num_classes` and `input_dim` follow the data."""


def configure(preset: str, change: Mapping[str, Any], *, input_dim: int, num_classes: int, name: str = "") -> Any:
    """The preset with single fields changed, for data of `input_dim` features and `num_classes` classes.

    `name`, if given, is the architecture that the preset must be of. Raises ConfigError.
    """
    if preset not in PRESETS:
        msg = f"model.preset: unknown preset {preset!r}; {nearest(preset, PRESETS)}"
        raise ConfigError(msg)
    found = model_name(PRESETS[preset])
    if name not in ("", found):
        of_name = [other for other, config in PRESETS.items() if name == model_name(config)]
        hint = f"its presets: {', '.join(of_name)}" if of_name else nearest(name, MODELS)
        msg = f"model.name: preset {preset!r} is a {found}, not a {name!r}; {hint}"
        raise ConfigError(msg)
    sizes: dict[str, Any] = {"input_dim": input_dim, "num_classes": num_classes}
    tree = _changed(cfg.to_dict(PRESETS[preset]), change)
    tree = _changed(tree, {"jet": sizes} if found == "contrastive" else sizes)
    return cfg.build(MODELS[found][0], tree, "model.change")


def _changed(tree: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    return tree | {
        key: _changed(tree[key], value) if isinstance(value, Mapping) and isinstance(tree.get(key), dict) else value
        for key, value in change.items()
    }


def model_name(config: Any) -> str:
    """Key in `MODELS` of the architecture that `config` configures."""
    for name, (config_class, _) in MODELS.items():
        if type(config) is config_class:
            return name
    msg = f"{type(config).__name__} configures none of the models {', '.join(MODELS)}"
    raise ConfigError(msg)


def build(config: Any) -> nn.Module:
    """A new network of the configuration `config`, with random weights from torch's generator."""
    return MODELS[model_name(config)][1](config)
