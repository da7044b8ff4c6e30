"""Several tasks on one jet network: who reads which class token, and through which class blocks.

A task has a head; a head reads a class token; a token goes through class blocks. Tasks may share a token, and tokens
may share class blocks, in which they also see each other. Two published layouts, as YAML:

    tasks: [{name: classification}, {name: contrastive, head: [512], outputs: 256}]            # blocks of their own
    tasks: [{name: classification}, {name: contrastive, class_blocks: classification, ...}]    # shared blocks
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jetfoundry import config as cfg

__all__ = ["TaskConfig", "token_groups"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One head and what it reads."""

    name: str = cfg.option("classification", "name of the task")
    token: str = cfg.option("", "class token that the head reads, '' = one of its own, named like the task")
    class_blocks: str = cfg.option("", "class blocks that the token goes through, '' = its own, named like the token")
    head: tuple[int, ...] | None = cfg.option(None, "hidden widths of the head, none = fc_dims")
    outputs: int = cfg.option(0, "outputs of the head, 0 = num_classes")

    def __post_init__(self) -> None:
        for name in (self.name, self.token or "x", self.class_blocks or "x"):
            if not name.isidentifier():
                msg = f"names of tasks, tokens and class blocks are letters, digits and _; got {name!r}"
                raise ValueError(msg)
        if min((*(self.head or ()), 1)) < 1 or self.outputs < 0:
            msg = f"task {self.name!r}: wanted widths >= 1 and outputs >= 0, got {self.head} and {self.outputs}"
            raise ValueError(msg)

    @property
    def reads(self) -> str:
        """Name of the class token that the head reads."""
        return self.token or self.name


def token_groups(tasks: Sequence[TaskConfig]) -> dict[str, tuple[str, ...]]:
    """Class blocks by name -> class tokens that go through them, both in the order in which tasks name them.

    Raises ValueError if two tasks have one name, or a token goes through two sets of class blocks.

    >>> token_groups([TaskConfig(name="a"), TaskConfig(name="b", class_blocks="a"), TaskConfig(name="c", token="b")])
    {'a': ('a', 'b')}
    """
    if len({task.name for task in tasks}) < len(tasks):
        msg = f"tasks: every task needs a name of its own, got {[task.name for task in tasks]}"
        raise ValueError(msg)
    blocks: dict[str, str] = {}
    for task in tasks:
        if task.class_blocks and blocks.get(task.reads, task.class_blocks) != task.class_blocks:
            msg = f"tasks: token {task.reads!r} goes through class blocks {blocks[task.reads]!r} and "
            raise ValueError(msg + repr(task.class_blocks))
        blocks.setdefault(task.reads, task.class_blocks or task.reads)
    groups: dict[str, tuple[str, ...]] = {}
    for token, group in blocks.items():
        groups[group] = (*groups.get(group, ()), token)
    return groups
