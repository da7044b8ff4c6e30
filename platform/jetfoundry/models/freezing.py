"""Freezing parts of a network by the names of their parameters.

Decided here: a pattern is a regular expression matched from the start of the name, as weaver matches its
learning-rate multipliers (`blocks\\.[0-3]\\.`, `embed`, `.*norm`); a module all of whose parameters are frozen stays
in eval mode whatever `model.train()` says, so its norms keep their statistics and its dropout is off; a pattern that
matches nothing is an error.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Sequence

from torch import nn

from jetfoundry.errors import ConfigError, nearest

__all__ = ["freeze", "matching"]


def matching(names: Iterable[str], pattern: str, where: str = "pattern") -> list[str]:
    """The names that the regular expression `pattern` matches from their start, in order.

    Raises ConfigError, opened by `where`, if it does not compile or matches none.
    """
    names = list(names)
    try:
        found = [name for name in names if re.match(pattern, name)]
    except re.error as error:
        msg = f"{where}: {pattern!r} is no regular expression: {error}"
        raise ConfigError(msg) from error
    if not found:
        msg = f"{where}: {pattern!r} matches no parameter; {nearest(pattern.replace(chr(92), ''), names)}"
        raise ConfigError(msg)
    return found


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Freeze the parameters of `model` that any of `patterns` matches, and what belongs to them; returns their names.

    Call it before the optimiser is made and before the model is wrapped.
    """
    parameters = dict(model.named_parameters())
    frozen = {name for pattern in patterns for name in matching(parameters, pattern, "freeze")}
    for name in frozen:
        parameters[name].requires_grad_(False)
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            module.train = types.MethodType(_stay_in_eval, module)  # type: ignore[method-assign]
            module.eval()
    return [name for name in parameters if name in frozen]


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(module, False)
