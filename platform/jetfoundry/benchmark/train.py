"""Training steps, or inference, on the CPU or one GPU: our Particle Transformer against weaver's, same configuration,
same jets in the same batches, same optimiser (AdamW) and precision, alternating.

    jetfoundry          batches sorted by length and cut into micro-batches, each padded to its own longest jet
    jetfoundry, bf16    the same in automatic mixed precision
    jetfoundry, N workers   on the CPU, if asked for: N processes of one thread that share each batch and exchange
                        gradients (DistributedDataParallel, gloo), as `workers.num_workers=N` trains; weaver has nothing
                        of the kind on a CPU. The peak of memory is that of one of them
    weaver              the batch as it comes, padded to its longest jet; weaver's own trimmer is on, as by default
    weaver, sorted      our micro-batches given to weaver's network, with accumulated gradients: what sorting alone buys
    …, compiled         the same with torch.compile, if asked for

Batches are made, and for a GPU pinned, before the clock starts. Dropout is on in training, and every step ends with the
update of the weights. Ratios are of jets per second of wall time with all cores, since that is what a user waits for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from jetfoundry.benchmark import peer
from jetfoundry.benchmark.measure import Side
from jetfoundry.benchmark.settings import BenchmarkConfig
from jetfoundry.benchmark.team import prepare_team
from jetfoundry.data.shards import open_shards
from jetfoundry.errors import InputError
from jetfoundry.features.transform import load_data_config
from jetfoundry.loading.batch import Batch
from jetfoundry.loading.pieces import read_pieces
from jetfoundry.loading.window import choose_inputs, length_sorted
from jetfoundry.models.presets import build, configure
from jetfoundry.train.compiled import Compile, compile_network
from jetfoundry.train.optim import OptimConfig
from jetfoundry.train.step import Precision, Stepper, autocast, logits_of
from jetfoundry.train.timing import PhaseTimer

__all__ = ["losses", "sides"]

_INPUTS = ("pf_features", "pf_vectors", "pf_mask")
_OPTIM = OptimConfig(betas=(0.95, 0.999), weight_decay=0.01, clip_norm=0)
_SEED = 1


@dataclasses.dataclass
class _State:
    network: nn.Module
    batches: list[Batch]
    device: torch.device
    precision: Precision
    step: Stepper | None


def sides(cfg: BenchmarkConfig, shards: Path) -> list[Side]:
    """All sides of the theme `train` or `infer`, on the train split of a shard folder."""
    where = {"shards": str(shards), "features": cfg.features, "jets": cfg.jets, "batch": cfg.batch_size,
             "preset": cfg.preset, "training": cfg.theme == "train", "device": cfg.device,
             "step": cfg.length_step}  # fmt: skip
    where["precision"] = cfg.precision
    rungs: dict[str, dict[str, Any]] = {
        "jetfoundry": {"ours": True, "micro": cfg.micro_batches},
        "weaver": {"ours": False, "micro": 1},
        "weaver, sorted": {"ours": False, "micro": cfg.micro_batches},
    }
    if cfg.precision == "off":
        rungs["jetfoundry, bf16"] = rungs["jetfoundry"] | {"precision": "bf16"}
    if cfg.compile != "off":
        rungs |= {f"{name}, compiled": rungs[name] | {"how": cfg.compile} for name in ("jetfoundry", "weaver")}
    found = [Side(name, _prepare, _run, {**where, **rung}, threads=0) for name, rung in rungs.items()]
    if cfg.workers > 1:
        team = {"world": cfg.workers, "prepare": _prepare, "run": _run_team, **where, **rungs["jetfoundry"]}
        found.insert(1, Side(f"jetfoundry, {cfg.workers} workers", prepare_team, _run_team, team, threads=1))
    return found


def losses(cfg: BenchmarkConfig, shards: Path, seeds: int) -> dict[str, list[list[float]]]:
    """Losses of the first `curves` training steps, of our network and weaver's, for several seeds: do both learn the
    same?

    The networks begin with weights drawn by their own rules, and see the same batches in the same order.
    """
    found: dict[str, list[list[float]]] = {"jetfoundry": [], "weaver": []}
    batches = _batches(str(shards), cfg.features, cfg.curves * cfg.batch_size, cfg.batch_size, cfg.micro_batches)
    whole = _batches(str(shards), cfg.features, cfg.curves * cfg.batch_size, cfg.batch_size, 1)
    for name, given in (("jetfoundry", batches), ("weaver", whole)):
        for seed in range(seeds):
            torch.manual_seed(seed)
            network = _network(cfg.preset, given, ours=name == "jetfoundry").to(cfg.device)
            step = Stepper(network, _OPTIM, cfg.precision, torch.device(cfg.device))
            curve = [step(batch, 1e-3, PhaseTimer()).losses.mean().item() for batch in given]
            found[name].append(curve)
    return found


def _batches(shards: str, features: str, jets: int, size: int, micro: int, step: int = 1) -> list[Batch]:
    """Batches of `size` random jets."""
    data = choose_inputs(load_data_config(features, scheme="sophon188"), _INPUTS)
    pieces, rows = [], 0
    for piece in open_shards(shards, "train").row_groups:
        pieces.append(piece)
        rows += piece.rows
        if rows > 1.3 * jets + 1000:
            break
    found = data.apply(read_pieces(pieces, data.columns), training=True)
    if len(found) < jets:
        msg = f"{shards}: wanted {jets} jets of the train split for the batches, got {len(found)}; raise jets"
        raise InputError(msg)
    order = np.random.default_rng(_SEED).permutation(len(found))[: max(1, jets // size) * size]
    return [length_sorted(found, order[begin : begin + size], micro, step) for begin in range(0, len(order), size)]


def _network(preset: str, batches: list[Batch], *, ours: bool) -> nn.Module:
    config = configure(preset, {}, input_dim=batches[0].micro[0].inputs["pf_features"].shape[1], num_classes=188)
    return build(config) if ours else _Weaver(config)


class _Weaver(nn.Module):
    """weaver's network of our configuration, called as its users' network files do."""

    inputs = _INPUTS

    def __init__(self, config: Any) -> None:
        super().__init__()
        rates = {"dropout": config.dropout, "attn_dropout": config.attention_dropout,
                 "activation_dropout": config.activation_dropout, "ffn_ratio": config.ffn_ratio}  # fmt: skip
        self.network = peer.weaver("nn.model.ParticleTransformer").ParticleTransformer(
            input_dim=config.input_dim, num_classes=config.num_classes, pair_input_dim=4,
            use_pre_activation_pair=not config.pair_activation, embed_dims=list(config.embed_dims),
            pair_embed_dims=list(config.pair_embed_dims), num_heads=config.num_heads, num_layers=config.num_layers,
            num_cls_layers=config.num_class_layers, block_params=rates,
            cls_block_params={"ffn_ratio": config.ffn_ratio},
            fc_params=[(width, config.fc_dropout) for width in config.fc_dims],
        )  # fmt: skip

    def forward(self, features: torch.Tensor, vectors: torch.Tensor, mask: torch.Tensor) -> Any:
        return self.network(features, v=vectors, mask=mask)


def _prepare(
    shards: str, features: str, jets: int, batch: int, preset: str, device: str, step: int, *, training: bool,
    ours: bool, micro: int, precision: Precision, how: Compile = "off", rank: int = 0, world: int = 1,
) -> _State:  # fmt: skip
    size, parts = batch // world, math.ceil(micro / world)
    batches = _batches(shards, features, jets // batch * batch, size, parts, step if ours else 1)[rank::world]
    torch.manual_seed(_SEED)
    where = torch.device(device)
    batches = [batch.pinned() for batch in batches] if where.type == "cuda" else batches
    network = _network(preset, batches, ours=ours).to(where).train(training)
    compile_network(network, how)
    if training and world > 1:
        network = nn.parallel.DistributedDataParallel(network)
    stepper = Stepper(network, _OPTIM, precision, where, graphs=how == "reduce-overhead") if training else None
    state = _State(network, batches, where, precision, stepper)
    # Warm up on a whole batch, whose memory is then at hand as later in training; kernels of a GPU are chosen, and
    # networks compiled, for each shape.
    _work(state, batches[:1] if where.type == "cpu" and how == "off" else batches)
    return state


def _run(state: _State) -> int:
    _work(state, state.batches)
    return sum(batch.size for batch in state.batches)


def _run_team(state: _State) -> int:
    """Jets of all workers, once all are done."""
    jets = torch.tensor(_run(state))
    torch.distributed.all_reduce(jets)
    return int(jets)


def _work(state: _State, batches: list[Batch]) -> None:
    timer, guard = PhaseTimer(), contextlib.nullcontext() if state.step else torch.inference_mode()
    with guard:
        for batch in batches:
            if state.step:
                state.step(batch, 1e-3, timer)
                continue
            for micro in batch.micro:
                with autocast(state.precision, state.device):
                    logits, _ = logits_of(state.network, micro, state.device)
                functional.softmax(logits.float(), dim=1)
    if state.device.type == "cuda":
        torch.cuda.synchronize()
