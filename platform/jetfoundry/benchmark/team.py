"""Several processes as one side of a comparison: the measured one and helpers, joined by torch.distributed."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch

__all__ = ["prepare_team"]

_TIMEOUT = timedelta(minutes=5)  # of a member that waits for one that failed


def prepare_team(world: int, prepare: Callable[..., Any], run: Callable[[Any], int], **arguments: Any) -> Any:
    """State of the first member of `world`, all of them prepared (`prepare(**arguments, rank=…, world=…)`). The others
    call `run` on theirs at once, and wait for the first where `run` has them exchange something."""
    meeting = f"file://{tempfile.mkdtemp()}/meeting"
    context = multiprocessing.get_context("spawn")
    for rank in range(1, world):
        context.Process(target=_member, args=(meeting, rank, world, prepare, run, arguments)).start()
    return _join(meeting, 0, world, prepare, arguments)


def _member(
    meeting: str, rank: int, world: int, prepare: Callable[..., Any], run: Callable[[Any], int], arguments: Any
) -> None:
    run(_join(meeting, rank, world, prepare, arguments))


def _join(meeting: str, rank: int, world: int, prepare: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=_TIMEOUT)
    state = prepare(**arguments, rank=rank, world=world)
    torch.distributed.barrier()
    return state
