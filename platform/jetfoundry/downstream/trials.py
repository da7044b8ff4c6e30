"""A trial: one training of one method for one task, with what makes it that trial and no other.

A trial's `key` is a hash of all that decides its result: task, jets and their labels, what the method reads (weights of
the backbone, data YAML, manifest), options, class token, training-set size, seed. Its result lies under that key, as
JSON with the logits of the evaluation jets beside it, each written whole or not at all. So an interrupted fan-out does
the missing trials only, and two backbones of one architecture share their trainings from random weights. The figures
are not kept: they follow from the logits, whatever discriminants are asked for later.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry import files
from jetfoundry.downstream.problem import strata

__all__ = ["Outcome", "Trial", "read_logits", "read_outcome", "subset", "write_outcome"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """`backbone` is '' for a method that needs none, `token` the class token that a frozen method reads, or `both` or
    `all` of them, '' for others; `size` is the share of the training jets."""

    task: str
    backbone: str
    method: str
    token: str
    size: float
    seed: int
    key: str

    def path(self, folder: Path) -> Path:
        """Where its result lies."""
        return folder / "trials" / f"{self.task}-{self.method}-{self.key}.json"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A trial's logits (E, C) of the evaluation jets and its `record` (jets, seconds, …); or the error it met."""

    trial: Trial
    logits: npt.NDArray[np.float32] | None
    record: dict[str, Any]
    error: str = ""

    @property
    def row(self) -> dict[str, Any]:
        """The trial as a row of the summary."""
        return {**dataclasses.asdict(self.trial), **self.record} | ({"error": self.error} if self.error else {})


def write_outcome(path: Path, logits: npt.NDArray[np.float32], record: dict[str, Any]) -> None:
    """Commit a result; the JSON comes last and says that it is complete."""
    with files.committed(path.with_suffix(".npy")) as temporary, temporary.open("wb") as stream:
        np.save(stream, logits)
    files.write_json(path, record)


def read_outcome(trial: Trial, folder: Path, error: str = "") -> Outcome:
    """The result of a trial, or `error` where there is none."""
    path = trial.path(folder)
    if not path.exists():
        return Outcome(trial, None, {}, error or "the trial did not end")
    return Outcome(trial, read_logits(path), files.read_json(path))


def read_logits(path: Path) -> npt.NDArray[np.float32]:
    """The logits (E, C) that were committed with the record at `path`."""
    with files.fetched(path.with_suffix(".npy")) as local:
        found: npt.NDArray[np.float32] = np.load(local, allow_pickle=False)
    return found


def subset(labels: npt.NDArray[Any], size: float, seed: int) -> npt.NDArray[np.int64]:
    """Which jets (indices, rising) a training on the share `size` of jets with these labels uses.

    The same share of every class, at least one jet of each that has some; a smaller share is part of a larger one.

    >>> subset(np.array([0, 0, 0, 0, 1, 1]), 0.5, seed=1).size
    3
    """
    rng = np.random.default_rng([seed, 0x5B5E7])
    chosen = []
    groups = strata(labels)
    for number in np.unique(groups):
        jets = rng.permutation(np.flatnonzero(groups == number))
        chosen.append(jets[: max(1, round(size * len(jets)))])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)
