"""A network that begins with the weights of a trained one: another task, more jets, a new signal.

Taken is every weight of the same name and shape, from a model file of ours or from weaver's state dict. What then still
has its random weights may only be heads, which depend on the classes; of a contrastive pair the network of the jet is
taken alone if need be.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from jetfoundry.errors import CheckpointError
from jetfoundry.models.checkpoints import load_model, read_archive
from jetfoundry.models.weaver_import import config_from_weaver, from_weaver, load_weaver

__all__ = ["begin_from", "trained_weights"]

_HEADS = ("head.", "heads.", "jet.head.", "jet.heads.")
_JET = "jet."  # what names of the jet network of a contrastive pair begin with


def trained_weights(path: str | Path) -> dict[str, Tensor]:
    """Weights by our names of a model file (`model.pt`) or of weaver's `*.pt`. Nothing is unpickled."""
    archive = read_archive(path)
    if isinstance(archive, Mapping) and "format" in archive:
        return dict(load_model(path).weights)
    state = load_weaver(path)
    return from_weaver(state, config_from_weaver(state))


def begin_from(network: nn.Module, path: str | Path) -> list[str]:
    """Give `network` the weights of the trained one in `path`; returns the names of those it has no weights for.

    Raises CheckpointError, with the first difference, if these are others than of heads.
    """
    given, wanted = trained_weights(path), network.state_dict()
    if not any(name.startswith(_JET) for name in wanted):
        given = {name.removeprefix(_JET): weight for name, weight in given.items()}
    fitting = {name: given[name] for name in wanted if name in given and given[name].shape == wanted[name].shape}
    left = [name for name in wanted if name not in fitting]
    other = [name for name in left if not name.startswith(_HEADS)]
    if other:
        shape = f"is {tuple(given[other[0]].shape)}" if other[0] in given else "is not there"
        msg = f"{path}: another architecture: {len(other)} weights beside the heads do not fit; {other[0]} {shape}, "
        raise CheckpointError(msg + f"wanted {tuple(wanted[other[0]].shape)}")
    network.load_state_dict(fitting, strict=False)
    return left
