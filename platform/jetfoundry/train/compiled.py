"""torch.compile as an option: the same numbers but for rounding, from fewer and larger kernels.

    off               operations one by one
    default           compiled once for all numbers of jets and particles
    reduce-overhead   compiled for each shape, and on a GPU replayed as a CUDA graph without launching its kernels one
                      by one; wants few shapes: `loader.length_step` pads micro-batches to multiples of a length

Compiling takes minutes at the start. The network must not have sizes that depend on the content of its inputs; ours
computes on padded rows then (`models/particle_transformer.py`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

__all__ = ["Compile", "compile_network"]

Compile = Literal["off", "default", "reduce-overhead"]

_SHAPES = 64  # numbers of jets differ by one, lengths by steps: 2 x 128 / 16 for training and for validation, twice


def compile_network(network: nn.Module, how: Compile) -> None:
    """Let `network`, in place, be compiled at its first calls. Its parameters keep their names."""
    if how == "off":
        return
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _SHAPES)
    if how == "default":
        network.compile(dynamic=True)
    else:
        network.compile(dynamic=False, mode=how)
