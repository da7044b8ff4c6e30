"""What a network takes of a data YAML and of the data, checked before anything starts.

Batches carry the inputs that the network is trained with and no others: what it does not take is neither read nor
computed. A network that learns from the generator's particles needs data that have them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

from jetfoundry.errors import ConfigError, InputError, nearest
from jetfoundry.features.transform import DataConfig
from jetfoundry.loading.batch import CHANNELS
from jetfoundry.loading.gen_particles import GEN_COLUMNS, GEN_INPUT
from jetfoundry.loading.loader import LoaderConfig
from jetfoundry.loading.pieces import JetSet, read_flat
from jetfoundry.loading.window import choose_inputs
from jetfoundry.models.presets import PRESETS, model_name

__all__ = ["check_columns", "check_truth", "naming_the_way_out", "training_data"]

_LOOKED_AT = 3  # row groups


def training_data(data: DataConfig, network: Any, loader: LoaderConfig) -> DataConfig:
    """`data` with the inputs that training `network` (class or object) takes, or with those that the loader names.

    Raises ConfigError for an input that is missing or of another number of variables.
    """
    needed = getattr(network, "training_inputs", network.inputs)
    for name in needed:
        if name not in data.inputs and name != GEN_INPUT.name:
            msg = f"{data.where}: inputs: the network needs {name!r}; {nearest(name, data.inputs)}"
            raise ConfigError(msg)
        if loader.inputs and name not in loader.inputs:
            msg = f"loader.inputs: the network needs {name!r}, got {', '.join(loader.inputs)}"
            raise ConfigError(msg)
    chosen = choose_inputs(data, loader.inputs or needed)
    for name in needed:
        wanted, got = CHANNELS.get(name, 0), len(chosen.inputs[name].vars)
        if wanted and got != wanted:
            msg = f"{data.where}: inputs: wanted {wanted} variables in {name}, got {got}"
            raise ConfigError(msg)
    return chosen


def check_columns(data: DataConfig, known: Collection[str]) -> None:
    """ConfigError if `data` reads the generator's particles and these are none of the `known` columns."""
    missing = [name for name in GEN_COLUMNS if name in data.columns and name not in known]
    if missing:
        msg = f"the data have no column {', '.join(missing)}; ingest files that do, or make them in new_variables of "
        raise ConfigError(msg + f"{data.where}; " + _without_truth())


@contextlib.contextmanager
def naming_the_way_out(data: DataConfig) -> Iterator[None]:
    """Files may be found to lack the generator's particles while they are opened: then say what else can be done."""
    try:
        yield
    except InputError as error:
        if not any(name in str(error) for name in GEN_COLUMNS if name in data.columns):
            raise
        msg = f"{error}; {_without_truth()}"
        raise InputError(msg) from error


def check_truth(data: DataConfig, jets: JetSet) -> None:
    """InputError if `data` wants the generator's particles and jets of some row groups, looked at here, have none."""
    if GEN_INPUT.name not in data.inputs:
        return
    step = max(1, len(jets.row_groups) // _LOOKED_AT)
    features = data.apply(read_flat(jets.row_groups[::step][:_LOOKED_AT], data.columns), training=True)
    if len(features) and not features.inputs[GEN_INPUT.name].store.counts.any():
        name = data.inputs[GEN_INPUT.name].vars[0]
        msg = f"{jets.folder}: {name} and its fellows are empty: none of {len(features)} jets, the first of "
        raise InputError(msg + f"{_LOOKED_AT} parts of the data, has a particle of the generator; " + _without_truth())


def _without_truth() -> str:
    """The way out for data that know nothing of the generator."""
    plain = [name for name, config in PRESETS.items() if model_name(config) == "particle_transformer"]
    return f"or train without the contrastive part: model.preset={' | '.join(plain)}"
