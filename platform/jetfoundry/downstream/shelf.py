"""What trials read, prepared once and put into Ray's object store: class tokens, particles, jet-level numbers.

Jets are known by their number in the split, so that all backbones and methods train on, and are judged by, the same
jets: those that every backbone's data YAML selects and that have a label in one of the tasks. All arrays of a `Shelf`
are in this order. Trials get references, and fetch what they need without a copy.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jetfoundry import files
from jetfoundry.downstream.baselines import numbers_of
from jetfoundry.downstream.embeddings import Embeddings, embed
from jetfoundry.downstream.finetune import jet_config
from jetfoundry.downstream.scoring import class_tokens, open_network
from jetfoundry.downstream.tasks import Task, TaskSample
from jetfoundry.errors import ConfigError, InputError, nearest
from jetfoundry.features.transform import DataConfig, load_data_config
from jetfoundry.loading.pieces import open_jet_set, read_pieces
from jetfoundry.models.checkpoints import architecture_hash, load_model

__all__ = ["Backbone", "Shelf", "check_jets", "embedded", "fill", "open_backbones", "yaml_hash"]


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A pre-trained network: its name in tables, model file, class tokens to read of all that it has, width D of one,
    classes, and what identifies it: its `weights`, and the `architecture` of what fine-tuning trains."""

    name: str
    model: Path
    tokens: tuple[str, ...]
    all_tokens: tuple[str, ...]
    width: int
    classes: tuple[str, ...]
    data: DataConfig
    weights: str
    architecture: str

    @property
    def variants(self) -> dict[str, slice]:
        """What frozen methods read, by name: each class token, and all of them together if there are several."""
        single = {name: slice(i * self.width, (i + 1) * self.width) for i, name in enumerate(self.tokens)}
        if len(single) < 2:
            return single
        together = ("both" if len(single) == 2 else "all") if self.tokens == self.all_tokens else "+".join(self.tokens)
        return single | {together: slice(0, len(single) * self.width)}


def open_backbones(folders: Sequence[str], tokens: Sequence[str] = ()) -> list[Backbone]:
    """The backbones in these run folders, with all their class tokens or those of these `tokens` that they have; one
    that has none of them is read by its first.

    Names are those of the folders, with as many parents as tell them apart. ConfigError for one given twice, and for a
    token that no backbone has.
    """
    paths = [files.place(folder) for folder in folders]
    if not paths or len({path.resolve() for path in paths}) < len(paths):
        msg = f"backbone: wanted one or several run folders, each once, got {', '.join(folders) or 'none'}"
        raise ConfigError(msg)
    parts = [path.resolve().parts for path in paths]
    depth = next(n for n in range(1, 99) if len({part[-n:] for part in parts}) == len(parts))
    found = []
    for path, part in zip(paths, parts, strict=True):
        file = load_model(path / "model.pt")
        every = class_tokens(file) or ("latent",)  # a network without class tokens has one latent all the same
        chosen = tuple(token for token in tokens or every if token in every) or every[:1]
        network = open_network(path, tokens=_beside_first(chosen, every))
        sizes = (chosen, every, file.model_config.dim)
        identity = (file.hash, architecture_hash(jet_config(file.model_config, 1)))
        found.append(Backbone("/".join(part[-depth:]), file.path, *sizes, network.classes, network.data, *identity))
    known = {token for backbone in found for token in backbone.all_tokens}
    for token in tokens:
        if token not in known:
            msg = f"tokens: no backbone has a class token {token!r}; {nearest(token, sorted(known))}"
            raise ConfigError(msg)
    return found


def _beside_first(tokens: tuple[str, ...], every: tuple[str, ...]) -> tuple[str, ...]:
    """None for the first token alone, which is the latent that all else reads: it shares their cache."""
    return () if tokens == every[:1] else tokens


@dataclasses.dataclass(frozen=True)
class Shelf:
    """One split. `ids` (B,) are its jets; `samples` by task which of them take part (indices), with labels and weights;
    `logits` (B, C) what the pre-trained heads say, by backbone.

    `refs` says where in the object store is what: ("latents", backbone) the class tokens (B, D) side by side,
    ("particles", hash of the data YAML) features, ("numbers", "") jet-level numbers (B, F).
    """

    split: str
    manifest: str
    ids: npt.NDArray[np.int64]
    samples: dict[str, TaskSample]
    logits: dict[str, npt.NDArray[np.float32]]
    refs: dict[tuple[str, str], Any]

    def identity(self, task: str) -> str:
        """Hash of the jets of a task, of their labels and weights."""
        sample = self.samples[task]
        content = (self.ids[sample.jets], sample.labels, sample.weights)
        return " ".join((self.manifest, self.split, *(files.sha256_bytes(values.tobytes()) for values in content)))


def embedded(
    backbones: Sequence[Backbone], data: str, split: str, workers: int, gpus: float = 0.0
) -> dict[str, Embeddings]:
    """Embeddings of a split by backbone, made by so many workers with this share of a GPU each; every backbone has its
    cache in its run folder."""
    return {
        backbone.name: embed(
            backbone.model, data, split, backbone.model.parent / "embeddings", workers=workers, gpus=gpus,
            tokens=_beside_first(backbone.tokens, backbone.all_tokens),
        )
        for backbone in backbones
    }  # fmt: skip


def fill(
    tasks: Sequence[Task],
    backbones: Sequence[Backbone],
    found: Mapping[str, Embeddings],
    needs: Mapping[str, bool],
    substructure: str,
    put: Callable[[Any], Any],
) -> Shelf:
    """Prepare a split from its embeddings. `needs` says whether trials read particles, and jet-level numbers; `put`
    puts an object into the store and returns its reference.

    Raises InputError if a task has no jets, or not of two classes.
    """
    first = found[backbones[0].name]
    common = functools.reduce(np.intersect1d, (each.ids for each in found.values()))
    table = _taken(first, common, sorted({name for task in tasks for name in task.columns}))
    training = first.split == "train"
    samples = {task.name: task.sample(table, training=training, where=f"{first.split} jets") for task in tasks}
    used = functools.reduce(np.union1d, (sample.jets for sample in samples.values()))
    ids = common[used]
    refs: dict[tuple[str, str], Any] = {}
    logits = {}
    for backbone in backbones:
        each = found[backbone.name]
        rows = np.searchsorted(each.ids, ids)
        logits[backbone.name] = each.logits[rows]
        refs["latents", backbone.name] = put(each.latent[rows])
        if needs["particles"] and ("particles", backbone.data.hash) not in refs:
            features = backbone.data.apply(
                _taken(first, ids, backbone.data.input_columns), training=False, labels=False
            )
            assert len(features) == len(ids)  # all were selected when they were embedded
            refs["particles", backbone.data.hash] = put(features)
    if needs["numbers"]:
        numbers_config = load_data_config(substructure)
        refs["numbers", ""] = put(numbers_of(numbers_config, _taken(first, ids, numbers_config.input_columns)))
    kept = {
        name: dataclasses.replace(sample, jets=np.searchsorted(used, sample.jets)) for name, sample in samples.items()
    }
    return Shelf(first.split, first.manifest, ids, kept, logits, refs)


def _taken(found: Embeddings, ids: npt.NDArray[np.int64], names: Sequence[str]) -> pa.Table:
    return found.columns(list(names)).take(pa.array(np.searchsorted(found.ids, ids)))


def yaml_hash(path: str) -> str:
    """Identity of the data YAML that makes the jet-level numbers."""
    return load_data_config(path).hash


def check_jets(tasks: Sequence[Task], backbones: Sequence[Backbone], data: str, splits: Sequence[str]) -> str:
    """What these jets are (simulated, say), if nothing is found that would end a transfer hours later: InputError if
    shards, or files, lack a column that a backbone or a task reads, and if in one of the `splits` a task's label does
    not fit its jets or leaves a class empty.

    The jets that a backbone's data YAML leaves out are not known here; `fill` looks again.
    """
    for task in tasks:
        task.check_data()
    for split in splits:
        jets = open_jet_set(data, split, count=False)
        readers: list[tuple[str, Sequence[str]]] = [
            (f"backbone {each.name}", each.data.input_columns) for each in backbones
        ]
        for who, names in [*readers, *((f"task {task.name}", task.columns) for task in tasks)]:
            try:
                read_pieces(jets.row_groups[:1], list(names))
            except InputError as error:
                msg = f"{who} needs columns that {jets.folder} lacks: {error}"
                raise InputError(msg) from error
        table = read_pieces(jets.row_groups, sorted({name for task in tasks for name in task.columns}))
        for task in tasks:
            task.sample(table, training=split == "train", where=f"{split} jets of {jets.folder}")
    return jets.sample
