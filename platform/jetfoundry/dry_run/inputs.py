"""How many jets are in given files, from their headers; of many files, from the headers of some."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jetfoundry import remote
from jetfoundry.data.inventory import InputFile, Inventory, stamp, take_inventory
from jetfoundry.errors import InputError

__all__ = ["Looked", "look"]

_MOST = 16  # files that are opened; more are looked at by the tasks of the job itself


@dataclasses.dataclass(frozen=True)
class Looked:
    """`files` in number, their bytes (0: unknown, of URLs), jets or Delphes events; `inventory` of those opened."""

    files: int
    bytes: int
    jets: int
    inventory: Inventory

    @property
    def whole(self) -> bool:
        """Whether every file was opened, so that `jets` is exact."""
        return self.files == len(self.inventory.sources) + len(self.inventory.set_aside)

    def rows(self, unit: str = "jets") -> list[tuple[str, str]]:
        """As the plan shows them."""
        opened = len(self.inventory.sources) + len(self.inventory.set_aside)
        size = f", {self.bytes / 1e9:,.2f} GB" if self.bytes else ""
        how = "" if self.whole else f", estimated from {opened} of the files"
        found = [("input", f"{self.files:,} files{size}"), (unit, f"{'' if self.whole else '≈ '}{self.jets:,}{how}")]
        return found + [("set aside", file.reason) for file in self.inventory.set_aside]


def look(paths: Sequence[InputFile], **how: Any) -> Looked:
    """Open some of the files, as `take_inventory` does. InputError if none of these can be used."""
    chosen = sorted({round(i) for i in np.linspace(0, len(paths) - 1, min(len(paths), _MOST))})
    inventory = take_inventory([paths[i] for i in chosen], **how)
    if not inventory.sources:
        raise InputError(inventory.set_aside[0].reason)
    entries = sum(source.entries for source in inventory.sources)
    local = not any(remote.is_url(file.path) for file in paths)
    size = sum(stamp(file.path)[0] for file in paths) if local else 0
    if len(chosen) == len(paths):
        return Looked(len(paths), size, entries, inventory)
    opened = sum(source.size for source in inventory.sources) + sum(file.size for file in inventory.set_aside)
    share = opened / size if local else len(chosen) / len(paths)
    return Looked(len(paths), size, round(entries / share), inventory)
