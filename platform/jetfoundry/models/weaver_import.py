"""weaver-core's Particle Transformer checkpoints as ours.

The two networks compute the same function in eval mode; only the names differ. Supported is weaver's first version
of the architecture (GELU, layer norm, biases) with `use_pre_activation_pair=False`, as in its published example
networks and in Sophon. That option leaves no trace in a checkpoint, and neither do dropout rates: a network trained
with `use_pre_activation_pair=True` would be imported without complaint and give other scores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from jetfoundry.errors import CheckpointError, nearest
from jetfoundry.models.checkpoints import read_archive
from jetfoundry.models.particle_transformer import ParTConfig, ParticleTransformer

__all__ = ["config_from_weaver", "from_weaver", "load_weaver"]

_PREFIX = re.compile(r"^(?:module\.|mod\.|_orig_mod\.)+")  # DistributedDataParallel, weaver's wrapper, torch.compile


def load_weaver(path: str | Path) -> dict[str, Tensor]:
    """Read weaver's `*.pt` file: a state dict of tensors, loaded without unpickling objects."""
    state = read_archive(path)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        msg = f"{path}: wanted a weaver state dict (names to tensors), got {type(state).__name__} of other things"
        raise CheckpointError(msg)
    return state


def from_weaver(state_dict: Mapping[str, Tensor], config: ParTConfig) -> dict[str, Tensor]:
    """Rename weaver's weights to ours: `ParticleTransformer(config).load_state_dict(from_weaver(...))`.

    Raises CheckpointError, with weaver's names, for weights that are missing, unknown or of another shape.
    """
    given = _normalised(state_dict)
    with torch.device("meta"):
        wanted = ParticleTransformer(config).state_dict()
    names = {_weaver_name(name, config): name for name in wanted}
    unknown = [name for name in given if name not in names]
    if unknown:
        msg = f"weaver checkpoint has {len(unknown)} weights that this configuration has no place for, " + (
            f"first {unknown[0]!r}; {nearest(unknown[0], names)}"
        )
        raise CheckpointError(msg)
    missing = [name for name in names if name not in given]
    if missing:
        msg = f"weaver checkpoint lacks {len(missing)} weights, first {missing[0]!r}; {nearest(missing[0], given)}"
        raise CheckpointError(msg)
    ours: dict[str, Tensor] = {}
    for theirs, name in names.items():
        shape, wanted_shape = given[theirs].shape, wanted[name].shape
        if _without_ones(shape) != _without_ones(wanted_shape):
            msg = f"weaver checkpoint, {theirs}: wanted shape {tuple(wanted_shape)}, got {tuple(shape)}"
            raise CheckpointError(msg)
        ours[name] = given[theirs].reshape(wanted_shape)  # 1x1 convolutions are linear layers, (1, 1, D) is (D)
    return ours


def config_from_weaver(state_dict: Mapping[str, Tensor]) -> ParTConfig:
    """The architecture that a weaver state dict belongs to; dropout rates, which it does not hold, are Sophon's."""
    given = _normalised(state_dict)

    def rows(pattern: str) -> tuple[int, ...]:
        found = [(int(m[1]), len(value)) for name, value in given.items() if (m := re.fullmatch(pattern, name))]
        return tuple(length for _, length in sorted(found))

    def blocks(name: str) -> int:
        return len({key.split(".")[1] for key in given if key.startswith(name + ".")})

    pairs = rows(r"pair_embed\.embed\.(\d+)\.running_mean")
    widths = rows(r"embed\.embed\.(\d+)\.weight")
    head = rows(r"fc\.(\d+)\.(?:0\.)?weight")
    if not (pairs and widths and head and "embed.input_bn.weight" in given and "blocks.0.fc1.weight" in given):
        shown = ", ".join(sorted(given)[:5])
        msg = f"this is no checkpoint of weaver's ParticleTransformer classifier; it holds {shown}, …"
        raise CheckpointError(msg)
    return ParTConfig(
        input_dim=len(given["embed.input_bn.weight"]),
        num_classes=head[-1],
        embed_dims=widths[1::2],  # layer norms and linear layers alternate
        pair_embed_dims=pairs[1:-1],  # the first is the input's, the last has one channel for each head
        num_heads=pairs[-1],
        num_layers=blocks("blocks"),
        num_class_layers=blocks("cls_blocks"),
        ffn_ratio=len(given["blocks.0.fc1.weight"]) // widths[-1],
        fc_dims=head[:-1],
        scale_attn="blocks.0.post_attn_norm.weight" in given,
        scale_fc="blocks.0.post_fc_norm.weight" in given,
        scale_heads="blocks.0.c_attn" in given,
        scale_resids="blocks.0.w_resid" in given,
    )


def _normalised(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without wrappers' prefixes, and with the names of weaver 0.5 for 0.4's attention weights."""
    return {re.sub(r"in_proj_(weight|bias)$", r"in_proj.\1", _PREFIX.sub("", k)): v for k, v in state_dict.items()}


def _without_ones(shape: torch.Size) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _weaver_name(name: str, config: ParTConfig) -> str:
    part, _, rest = name.partition(".")
    if part == "embed":
        return "embed.input_bn." + rest.removeprefix("norm.") if rest.startswith("norm.") else f"embed.embed.{rest[7:]}"
    if part == "pair_embed":
        if rest.startswith("norm."):
            return "pair_embed.embed.0." + rest.removeprefix("norm.")
        _, index, leaf = rest.split(".", 2)
        slot = int(index) // 2 * 3 + 1  # (linear, GELU) here, (convolution, batch norm, GELU) after a batch norm there
        return (
            f"pair_embed.embed.{slot + 1}.{leaf[5:]}" if leaf.startswith("norm.") else f"pair_embed.embed.{slot}.{leaf}"
        )
    if part == "head":
        index, leaf = rest.split(".")
        slot = int(index) // 3  # (linear, ReLU, dropout)
        return f"fc.{slot}.{leaf}" if slot == len(config.fc_dims) else f"fc.{slot}.0.{leaf}"
    if rest == "token":
        return "cls_token"
    if name.startswith("readout.norm."):
        return rest
    theirs = name.replace("readout.blocks", "cls_blocks")
    return theirs.replace("head_scale", "c_attn").replace("residual_scale", "w_resid")
