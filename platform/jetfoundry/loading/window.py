"""From a window of pieces to batches: a pure function of the pieces and (seed, pass, window), run by either feed.

    pieces          row groups of shards or entry ranges of ROOT files, read with the columns of the data YAML only
    features        DataConfig.apply: formulas, selection, standardisation on flat buffers   -> (N, F) + offsets
    draw            each jet accepted or repeated by its expected uses, in random order
    batches         as many as keep each within `batch_size`, equal in size to within one jet
    micro-batches   a batch sorted by length, cut (`cuts.py`), each part padded to its own longest jet
                                                                                             -> (b, F, P), labels (b,)

With natural sampling every selected jet is in exactly one batch of the window: nothing is dropped or repeated to make
batches come out even, so some are a little smaller than `batch_size`, with the default settings by three per cent.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from jetfoundry.errors import ConfigError, nearest
from jetfoundry.features.transform import DataConfig, Features
from jetfoundry.loading.batch import Batch, MicroBatch
from jetfoundry.loading.cuts import equal_cuts, least_padding
from jetfoundry.loading.gen_particles import GEN_INPUT, JET_ID
from jetfoundry.loading.pieces import Piece, read_flat
from jetfoundry.loading.sampling import JetUses, systematic_draw

__all__ = ["BatchMaker", "Window", "choose_inputs", "length_sorted", "padding_share"]


@dataclasses.dataclass(frozen=True)
class Window:
    """Pieces that are read and mixed at once. `key` (seed, pass, window) decides the draw; without it each jet comes
    once, in stored order (validation). Batches before number `first` are left out."""

    pieces: tuple[Piece, ...]
    key: tuple[int, int, int] | None = None
    first: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class BatchMaker:
    """Makes the batches of a window; small, and sent to other machines by the `ray` feed.

    `uses` tells the expected uses of a jet in a pass; not needed for windows without a key.
    """

    data: DataConfig
    batch_size: int
    micro_batches: int
    uses: JetUses | None = None
    length_step: int = 1

    def __call__(self, window: Window) -> Iterator[Batch]:
        """The batches of a window one by one; none if it holds no jet to use."""
        features = self.data.apply(read_flat(window.pieces, self.data.columns), training=True)
        for jets in self._split(features, window)[window.first :]:
            yield length_sorted(features, jets, self.micro_batches, self.length_step)

    def _split(self, features: Features, window: Window) -> list[npt.NDArray[np.int64]]:
        """The jets of each batch."""
        if window.key is None:
            jets = np.flatnonzero(features.labels >= 0)
            return [jets[begin : begin + self.batch_size] for begin in range(0, len(jets), self.batch_size)]
        assert self.uses is not None
        uses = self.uses.of(features)
        rng = np.random.default_rng(window.key)
        draws = math.floor(uses.sum() + rng.random())  # on average what is expected; exact where that is whole
        if draws == 0:
            return []
        return np.array_split(systematic_draw(uses, draws, rng), math.ceil(draws / self.batch_size))


def length_sorted(features: Features, jets: npt.NDArray[np.int64], micro_batches: int, length_step: int = 1) -> Batch:
    """These jets as one batch: sorted by length, in up to `micro_batches` parts padded to their own longest jet; with a
    `length_step` to its next multiple, in parts of equal numbers of jets: few different shapes."""
    lengths = np.diff(features.offsets)[jets]
    order = np.argsort(lengths, kind="stable")
    jets = jets[order]
    bounds = least_padding(lengths[order], micro_batches) if length_step == 1 else equal_cuts(len(jets), micro_batches)
    micro = []
    for part in np.split(jets, bounds[1:-1]):
        inputs: dict[str, torch.Tensor] = {}
        for slots, which in features.slots(part, multiple=length_step):
            memory = torch.from_numpy(slots)
            inputs |= {name: memory[..., variables].transpose(1, -1) for name, variables in which.items()}
        ordered = {name: inputs[name] for name in features.inputs}
        micro.append(MicroBatch(ordered, torch.from_numpy(features.labels[part])))
    return Batch(tuple(micro), len(jets), features.rows[jets], ids=_ids(features, jets))


def _ids(features: Features, jets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
    """One number (b,) that says file and entry of each of these jets, where the data YAML carries them along."""
    if not all(name in features.observers for name in JET_ID):
        return None
    file, entry = (np.asarray(features.observers[name])[jets].astype(np.int64) for name in JET_ID)
    return (file << 40) | entry


def padding_share(features: Features, batch_size: int, micro_batches: int) -> tuple[float, float]:
    """Share of the slots of batches, cut from these jets as they stand, that hold no particle: of batches padded to
    their longest jet, and of the same batches as `length_sorted` micro-batches."""
    lengths = np.diff(features.offsets)
    real = lengths.sum()
    whole = sorted_ = 0
    for begin in range(0, len(lengths), batch_size):
        batch = np.sort(lengths[begin : begin + batch_size])
        whole += len(batch) * batch[-1]
        bounds = least_padding(batch, micro_batches)
        sorted_ += np.dot(np.diff(bounds), batch[bounds[1:] - 1])
    return 1 - real / whole, 1 - real / sorted_


def choose_inputs(data: DataConfig, names: Sequence[str]) -> DataConfig:
    """The data YAML with these inputs only (none named = all): others are neither read nor computed.

    `gen_particles` need not stand in the YAML (`gen_particles.py`); batches with it carry `ids`.
    """
    groups = {GEN_INPUT.name: GEN_INPUT, **data.inputs}
    for name in names:
        if name not in groups:
            msg = f"{data.where}: loader.inputs: no input {name!r}; {nearest(name, groups)}"
            raise ConfigError(msg)
    if not names:
        return data
    carried = data.monitor_variables
    if GEN_INPUT.name in names:
        carried = (*carried, *(name for name in JET_ID if name not in carried))
    return dataclasses.replace(data, inputs={name: groups[name] for name in names}, monitor_variables=carried)
