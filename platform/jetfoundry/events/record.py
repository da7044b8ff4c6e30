"""The generator record of a batch of events, as flat arrays."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy.typing as npt

__all__ = ["Events"]

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Events:
    """The full record of E events: M entries in flat arrays. GeV and mm (time in mm/c).

    `offsets` (E + 1,); `mother`, `daughter1`, `daughter2` are positions in the flat arrays, -1 for none.
    """

    offsets: Array
    event: Array
    pid: Array
    status: Array
    mother: Array
    daughter1: Array
    daughter2: Array
    p4: Array
    mass: Array
    vertex: Array

    def __len__(self) -> int:
        return len(self.offsets) - 1
