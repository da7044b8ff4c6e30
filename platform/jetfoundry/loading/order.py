"""Which worker makes which batches, in which order: pure arithmetic on (seed, pass, window), no data.

A pass over the data takes its pieces (row groups, entry ranges) in an order drawn from (seed, pass) and cuts them into
`windows`. What a window's batches hold depends on (seed, pass, window) only, never on who makes them. All windows of
all passes stand in one endless line,

    number = pass * windows + window,        worker r of W takes the numbers r, r + W, r + 2 W, …

so every jet of a pass is on exactly one worker, whatever W, and no worker waits for another that has no data left.

A run that goes on with another number of workers deals anew: the windows that the old workers had begun or left out
stand in front, each from the batch on that is next, then comes the rest of the line, and worker r of W' takes every
W'-th of these. Such a `Deal` and how far a worker has come in it are its `Position`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfoundry.loading.batch import Position

__all__ = ["Deal", "Order"]

_WINDOWS_PER_WORKER = 4  # in a pass, if there are pieces enough


@dataclasses.dataclass(frozen=True)
class Deal:
    """The windows that are left: (number, first batch) of those in `begun`, then all from number `rest` on.

    `size` is the number of pieces of a window. It stays when the number of workers changes.
    """

    size: int
    rest: int = 0
    begun: tuple[tuple[int, int], ...] = ()

    def __getitem__(self, place: int) -> tuple[int, int]:
        """Number and first batch of the window at `place`."""
        left = place - len(self.begun)
        return self.begun[place] if left < 0 else (self.rest + left, 0)

    def place(self, number: int) -> int:
        """Where the window `number` stands."""
        if number >= self.rest:
            return len(self.begun) + number - self.rest
        return [window for window, _ in self.begun].index(number)

    def plain(self) -> tuple[Any, ...]:
        """As nested tuples of integers, for checkpoints."""
        return (self.size, self.rest, *self.begun)

    @classmethod
    def of(cls, plain: Sequence[Any]) -> Deal:
        size, rest, *begun = plain
        return cls(size, rest, tuple((number, batch) for number, batch in begun))


@dataclasses.dataclass(frozen=True)
class Order:
    """The order of `pieces` pieces in windows of `window` pieces; the last of a pass takes the rest, too."""

    pieces: int
    window: int
    seed: int

    def start(self, world: int) -> Position:
        """The start of a run with `world` workers, the same for all of them.

        With few pieces windows are smaller, so that each worker has four in a pass where that can be.
        """
        size = max(1, min(self.window, self.pieces // (_WINDOWS_PER_WORKER * world)))
        return Position(deal=Deal(size).plain())

    def resume(self, positions: Sequence[Position]) -> Position:
        """Where the workers that stood at `positions` (the next batch of each) left off, to go on with any number.

        All windows and batches that were left are dealt anew; the result is the same for all workers.
        """
        deal, old = Deal.of(positions[0].deal), len(positions)
        stands = [self._place(position, deal, rank, old) for rank, position in enumerate(positions)]
        last = max(len(deal.begun) - 1, *(place for place, _ in stands))
        begun = []
        for place in range(last + 1):
            here, batch = stands[place % old]
            if place >= here:
                number, first = deal[place]
                begun.append((number, batch if place == here else first))
        return self._position(Deal(deal.size, deal[last + 1][0], tuple(begun)), 0)

    def walk(self, start: Position, rank: int, world: int) -> Iterator[Position]:
        """Position of the first batch to make of each window of worker `rank`, without end, from `start` on."""
        deal = Deal.of(start.deal)
        place, batch = self._place(start, deal, rank, world)
        yield self._position(deal, place)._replace(batch=batch)
        while True:
            place += world
            yield self._position(deal, place)

    def pieces_of(self, position: Position) -> npt.NDArray[np.int64]:
        """Numbers of the pieces of a window; the last window of a pass takes the rest, so none is short."""
        size = position.deal[0]
        end = None if position.window + 1 == self.windows(position) else (position.window + 1) * size
        return _shuffled(self.pieces, self.seed, position.passes)[position.window * size : end]

    def windows(self, position: Position) -> int:
        """Number of windows of a pass."""
        return self._per_pass(position.deal[0])

    def _per_pass(self, size: int) -> int:
        return max(1, self.pieces // size)

    def _place(self, position: Position, deal: Deal, rank: int, world: int) -> tuple[int, int]:
        """Place and first batch of the window that worker `rank` does next: it may be later than `position`."""
        here = deal.place(position.passes * self._per_pass(deal.size) + position.window)
        mine = here + (rank - here) % world
        return mine, position.batch if mine == here else deal[mine][1]

    def _position(self, deal: Deal, place: int) -> Position:
        number, batch = deal[place]
        return Position(*divmod(number, self._per_pass(deal.size)), batch, deal.plain())


@functools.lru_cache(maxsize=4)
def _shuffled(pieces: int, seed: int, passes: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, passes]).permutation(pieces)
