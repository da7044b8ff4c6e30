"""weaver-core's checkpoints as ours: Particle Transformer, ParticleNet, and Sophon's with several class tokens.

The networks compute the same function in eval mode; only the names differ. Sizes are read from the weights. Some
options leave no trace in a checkpoint and must be said: dropout rates (ours are kept), `use_pre_activation_pair` of a
Particle Transformer (False in weaver's published networks and in Sophon), the number of neighbours of a ParticleNet (16
in the published ones). With a wrong one a network is imported without complaint and gives other scores.

Supported are weaver's first version of the Particle Transformer (GELU, layer norm, biases), its ParticleNet with
`use_counts`, and of Sophon's contrastive networks the network of the jet, with tasks classification and contrastive;
their generator-level network has other inputs than ours and is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from jetfoundry.errors import CheckpointError, nearest
from jetfoundry.models.checkpoints import read_archive
from jetfoundry.models.particle_net import ParticleNetConfig
from jetfoundry.models.particle_transformer import ParTConfig
from jetfoundry.models.presets import build
from jetfoundry.models.tasks import TaskConfig

__all__ = ["config_from_weaver", "from_weaver", "load_weaver"]

_PREFIX = re.compile(r"^(?:module\.|mod\.|_orig_mod\.)+")  # DistributedDataParallel, weaver's wrapper, torch.compile
_GEN_NETWORK = re.compile(r"^(?:gen|gen_proj)\.")
_BATCH_NORM = "embed.input_bn."

# Our names -> weaver's, the first that fits; heads apart.
_PARTICLE_TRANSFORMER = (
    (r"embed\.norm\.", r"embed.input_bn."),
    (r"embed\.layers\.", r"embed.embed."),
    (r"pair_embed\.norm\.", r"pair_embed.embed.0."),
    (r"readout\.token$", r"cls_token"),
    (r"readout\.norm\.", r"norm."),
    (r"readout\.blocks\.", r"cls_blocks."),
)
_PARTICLE_NET = (
    (r"norm\.", r"bn_fts."),
    (r"blocks\.(\d+)\.edge\.", r"edge_convs.\1.convs.0."),
    (r"blocks\.(\d+)\.norm\.", r"edge_convs.\1.bns.0."),
    (r"blocks\.(\d+)\.shortcut\.norm\.", r"edge_convs.\1.sc_bn."),
    (r"blocks\.(\d+)\.shortcut\.", r"edge_convs.\1.sc."),
    (r"fusion\.norm\.", r"fusion_block.1."),
    (r"fusion\.", r"fusion_block.0."),
)


def load_weaver(path: str | Path) -> dict[str, Tensor]:
    """Read weaver's `*.pt` file: a state dict of tensors, loaded without unpickling objects."""
    state = read_archive(path)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        msg = f"{path}: wanted a weaver state dict (names to tensors), got {type(state).__name__} of other things"
        raise CheckpointError(msg)
    return state


def from_weaver(state_dict: Mapping[str, Tensor], config: ParTConfig | ParticleNetConfig) -> dict[str, Tensor]:
    """Rename weaver's weights to ours: `build(config).load_state_dict(from_weaver(state_dict, config))`.

    Raises CheckpointError, with weaver's names, for weights that are missing, unknown or of another shape.
    """
    given = _normalised(state_dict)
    with torch.device("meta"):
        wanted = build(config).state_dict()
    names = {_weaver_name(name, config): name for name in wanted}
    unknown = [name for name in given if name not in names]
    if unknown:
        msg = f"weaver checkpoint has {len(unknown)} weights that this configuration has no place for, "
        raise CheckpointError(msg + f"first {_first(unknown)}; {nearest(unknown[0], names)}")
    missing = [name for name in names if name not in given and not _may_lack(name)]
    if missing:
        msg = f"weaver checkpoint lacks {len(missing)} weights, first {_first(missing)}; {nearest(missing[0], given)}"
        raise CheckpointError(msg)
    ours: dict[str, Tensor] = {}
    for theirs, name in names.items():
        weight = given[theirs] if theirs in given else torch.zeros(wanted[name].shape)
        if _without_ones(weight.shape) != _without_ones(wanted[name].shape):
            msg = f"weaver checkpoint, {theirs}: wanted shape {tuple(wanted[name].shape)}, got {tuple(weight.shape)}"
            raise CheckpointError(msg)
        ours[name] = weight.reshape(wanted[name].shape)  # 1x1 convolutions are linear layers, (1, 1, D) is (D)
    return ours


def config_from_weaver(
    state_dict: Mapping[str, Tensor], *, pair_activation: bool = True, neighbours: int = 16
) -> ParTConfig | ParticleNetConfig:
    """The architecture that a weaver state dict belongs to, as far as its weights tell; see the module docstring.

    Parameters
    ----------
    pair_activation
        weaver's `not use_pre_activation_pair`, of a Particle Transformer.
    neighbours
        Nearest neighbours in every block of a ParticleNet.
    """
    given = _normalised(state_dict)
    if "blocks.0.fc1.weight" in given and _BATCH_NORM + "weight" in given and "cls_token" in given:
        return _particle_transformer(given, pair_activation)
    if "edge_convs.0.convs.0.weight" in given and "fc.0.0.weight" in given:
        return _particle_net(given, neighbours)
    msg = "this is no checkpoint of weaver's ParticleTransformer or ParticleNet classifier; it holds "
    raise CheckpointError(msg + ", ".join(sorted(given)[:5]) + ", …")


def _rows(given: Mapping[str, Tensor], pattern: str) -> tuple[int, ...]:
    """Lengths of the weights whose whole name fits `pattern`, in the order of the number in it."""
    found = [(int(m[1]), len(value)) for name, value in given.items() if (m := re.fullmatch(pattern, name))]
    return tuple(length for _, length in sorted(found))


def _particle_transformer(given: Mapping[str, Tensor], pair_activation: bool) -> ParTConfig:
    def blocks(name: str) -> int:
        return len({key.split(".")[1] for key in given if key.startswith(name + ".")})

    pairs = _rows(given, r"pair_embed\.embed\.(\d+)\.running_mean")
    widths = _rows(given, r"embed\.embed\.(\d+)\.weight")
    head = _rows(given, r"fc\.(\d+)\.(?:0\.)?weight")
    projection = _rows(given, r"mod_proj\.fc\.(\d+)\.(?:0\.)?weight")
    if not (pairs and widths and head):
        msg = "weaver's ParticleTransformer without pairs, embedding or classifier has no place here; it holds "
        raise CheckpointError(msg + ", ".join(sorted(given)[:5]) + ", …")
    tasks: tuple[TaskConfig, ...] = ()
    if projection:
        shared = given["cls_token"].numel() == widths[-1]
        place = {"token": "classification"} if shared else {"class_blocks": "classification"}
        tasks = (TaskConfig(), TaskConfig(name="contrastive", head=projection[:-1], outputs=projection[-1], **place))
    return ParTConfig(
        input_dim=len(given[_BATCH_NORM + "weight"]),
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
        pair_activation=pair_activation,
        tasks=tasks,
    )


def _particle_net(given: Mapping[str, Tensor], neighbours: int) -> ParticleNetConfig:
    blocks = _rows(given, r"edge_convs\.(\d+)\.convs\.0\.weight")
    channels = tuple(_rows(given, rf"edge_convs\.{block}\.convs\.(\d+)\.weight") for block in range(len(blocks)))
    head = _rows(given, r"fc\.(\d+)\.(?:0\.)?weight")
    return ParticleNetConfig(
        input_dim=given["edge_convs.0.convs.0.weight"].shape[1] // 2,
        num_classes=head[-1],
        neighbours=(neighbours,) * len(blocks),
        channels=channels,
        input_norm="bn_fts.weight" in given,
        fusion="fusion_block.0.weight" in given,
        fc_dims=head[:-1],
    )


def _normalised(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without wrappers' prefixes, with the names of weaver 0.5 for 0.4's attention weights, and of a contrastive pair
    the network of the jet, its classifier named like that of a single network."""
    plain = {re.sub(r"in_proj_(weight|bias)$", r"in_proj.\1", _PREFIX.sub("", k)): v for k, v in state_dict.items()}
    if not any(name.startswith("mod_proj.") for name in plain):
        return plain
    return {re.sub(r"^mod_fc\.", "", k): v for k, v in plain.items() if not _GEN_NETWORK.match(k)}


def _without_ones(shape: torch.Size) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _first(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")


def _may_lack(name: str) -> bool:
    """Sophon's projections end without a bias; ours is zero then."""
    return re.fullmatch(r"mod_proj\.fc\.\d+\.bias", name) is not None


def _weaver_name(name: str, config: ParTConfig | ParticleNetConfig) -> str:
    head = re.fullmatch(r"(head|heads\.contrastive)\.(\d+)\.(.*)", name)
    if head:
        prefix, slot = "fc" if head[1] == "head" else "mod_proj.fc", int(head[2]) // 3  # (linear, ReLU, dropout)
        last = slot == _hidden_layers(config, head[1])
        return f"{prefix}.{slot}.{head[3]}" if last else f"{prefix}.{slot}.0.{head[3]}"
    if isinstance(config, ParticleNetConfig):
        inner = re.fullmatch(r"blocks\.(\d+)\.layers\.(\d+)\.(norm\.)?(.*)", name)
        if inner:
            kind = "bns" if inner[3] else "convs"
            return f"edge_convs.{inner[1]}.{kind}.{int(inner[2]) + 1}.{inner[4]}"
        return _renamed(name, _PARTICLE_NET)
    pair = re.fullmatch(r"pair_embed\.layers\.(\d+)\.(norm\.)?(.*)", name)
    if pair:  # (linear, GELU) here, (convolution, batch norm, GELU) after a batch norm there
        return f"pair_embed.embed.{int(pair[1]) // 2 * 3 + (2 if pair[2] else 1)}.{pair[3]}"
    theirs = _renamed(name, _PARTICLE_TRANSFORMER)
    return theirs.replace("head_scale", "c_attn").replace("residual_scale", "w_resid")


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for ours, theirs in table:
        renamed, found = re.subn("^" + ours, theirs, name)
        if found:
            return renamed
    return name


def _hidden_layers(config: ParTConfig | ParticleNetConfig, head: str) -> int:
    hidden = config.fc_dims
    for task in getattr(config, "tasks", ()):
        if head == f"heads.{task.name}" and task.head is not None:
            hidden = task.head
    return len(hidden)
