"""The selected jets of a block, standardised and flat, and how they are padded to one length.

A `Store` holds the standardised variables of all inputs that share particles and padding rule, particle by particle:
all that a particle is lies in one piece of memory, so a batch is one gather of rows; inputs (b, F, P) are views of it
that step over their neighbours' variables. Selected jets are places in a store (`starts`, `counts`): selecting, cutting
and reordering jets moves no particle.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from jetfoundry.features.data_config import InputGroup
from jetfoundry.features.jagged import Array, Column, after

__all__ = ["Features", "FlatInput", "Store"]


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
    """`particles` (N+1, F) float32, whose last row is what padding reads; the particles of jet i are the rows
    starts[i] … starts[i] + counts[i]. With `wrap` a short jet is filled up with its own particles again."""

    particles: npt.NDArray[np.float32]
    starts: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    wrap: bool

    def source(self, jets: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
        """Rows of `particles` that fill the slots of these jets, (b, width)."""
        starts, counts = self.starts[jets, None], self.counts[jets, None]
        slots, padding = np.arange(width), len(self.particles) - 1
        if not self.wrap:
            return np.where(slots < counts, starts + slots, padding)
        source = starts + slots % np.maximum(counts, 1)
        if not counts.all():
            source[counts[:, 0] == 0] = padding
        return source

    def take(self, jets: npt.NDArray[np.int64]) -> Store:
        return Store(self.particles, self.starts[jets], self.counts[jets], self.wrap)


@dataclasses.dataclass(frozen=True, eq=False)
class FlatInput:
    """One input, not padded: the columns `variables` of a store."""

    store: Store
    variables: slice
    group: InputGroup

    @functools.cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """(B'+1,) where each jet begins in `values`."""
        return after(self.store.counts)

    @property
    def values(self) -> npt.NDArray[np.float32]:
        """(F, N): standardised, clipped, cut to `length`, all jets one after the other."""
        where = np.repeat(self.store.starts - self.offsets[:-1], self.store.counts) + np.arange(self.offsets[-1])
        return self.store.particles[where, self.variables].T


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """The selected jets of a block, B' of B.

    `rows` (B',) are their indices in the table; `offsets` (B'+1,) those of the input with the most particles; `labels`
    (B',) class numbers, -1 for none; `targets` the values of all custom label formulas by name; `observers` quantities
    to carry along (monitor variables in training); `weights` (B',) float32 the sampling weights, in training, if the
    YAML has them and they are known. `nonfinite` counts, by variable, values that were NaN or infinite.
    """

    rows: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    inputs: dict[str, FlatInput]
    labels: npt.NDArray[np.int64]
    targets: dict[str, Array]
    observers: dict[str, Column]
    nonfinite: dict[str, int]
    weights: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        """Number of selected jets B'."""
        return len(self.rows)

    def pad(self, name: str, jets: npt.ArrayLike, length: int | None = None) -> npt.NDArray[np.float32]:
        """Input `name` of the given jets (b,) of this block, padded by weaver's rule to (b, F, P) float32.

        P = `length`, else the longest of these jets (at least 1). Longer jets are cut. An input of jet quantities
        (`length: null` in the YAML) has no particles: (b, F).
        """
        flat = self.inputs[name]
        return _input(self._slots(flat.store, flat.group, np.asarray(jets, np.int64), length), flat.variables)

    def pad_all(self, jets: npt.ArrayLike, length: int | None = None) -> dict[str, npt.NDArray[np.float32]]:
        """All inputs of these jets, as `pad` gives them one by one; the work that they share is done once."""
        padded = {
            name: _input(slots, variables)
            for slots, which in self.slots(jets, length)
            for name, variables in which.items()
        }
        return {name: padded[name] for name in self.inputs}

    def slots(
        self, jets: npt.ArrayLike, length: int | None = None, multiple: int = 1
    ) -> Iterator[tuple[npt.NDArray[np.float32], dict[str, slice]]]:
        """Store by store, the padded jets as they lie in memory, (b, P, F), with the variables of all its inputs side
        by side, and which are whose. Inputs of jet quantities: (b, F). P = `length`, else the next `multiple` from the
        longest of these jets on."""
        chosen = np.asarray(jets, np.int64)
        which: dict[int, list[str]] = {}
        for name, flat in self.inputs.items():
            which.setdefault(id(flat.store), []).append(name)
        for names in which.values():
            flat = self.inputs[names[0]]
            variables = {name: self.inputs[name].variables for name in names}
            yield self._slots(flat.store, flat.group, chosen, length, multiple), variables

    @staticmethod
    def _slots(
        store: Store, group: InputGroup, jets: npt.NDArray[np.int64], length: int | None, multiple: int = 1
    ) -> npt.NDArray[np.float32]:
        if group.length is None:
            return store.particles.take(store.starts[jets], axis=0)
        longest = int(store.counts[jets].max(initial=1))
        return store.particles.take(store.source(jets, length or -(-longest // multiple) * multiple), axis=0)

    def take(self, jets: npt.ArrayLike) -> Features:
        """The given jets (indices into this block), in that order. `nonfinite` stays that of the whole block."""
        chosen = np.asarray(jets, dtype=np.int64)
        stores = {id(flat.store): flat.store.take(chosen) for flat in self.inputs.values()}
        return Features(
            rows=self.rows[chosen],
            offsets=after(np.diff(self.offsets)[chosen]),
            inputs={n: FlatInput(stores[id(f.store)], f.variables, f.group) for n, f in self.inputs.items()},
            labels=self.labels[chosen],
            targets={name: values[chosen] for name, values in self.targets.items()},
            observers={name: values[chosen] for name, values in self.observers.items()},
            nonfinite=self.nonfinite,
            weights=None if self.weights is None else self.weights[chosen],
        )


def _input(slots: npt.NDArray[np.float32], variables: slice) -> npt.NDArray[np.float32]:
    """One input of a store's slots: (b, F, P), a view without a copy; (b, F) of jet quantities."""
    return slots[..., variables].swapaxes(1, -1)
