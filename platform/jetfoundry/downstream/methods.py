"""The methods that are compared, by name: what each reads of a jet, its grid, and how it turns a problem into logits.

probe     latents of the frozen backbone    one linear layer
mlp       latents of the frozen backbone    a small feed-forward network, best of a grid
finetune  particles                         the whole network, from the backbone's weights
scratch   particles                         the same network, from random weights
boosting  jet-level numbers                 gradient-boosted trees; knows no backbone
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from jetfoundry import config
from jetfoundry.downstream.baselines import boosted, boosted_target
from jetfoundry.downstream.finetune import NetworkConfig, train_network
from jetfoundry.downstream.mlp import MlpConfig, mlp
from jetfoundry.downstream.probe import linear_probe
from jetfoundry.downstream.problem import Problem, Report
from jetfoundry.downstream.tasks import Task
from jetfoundry.errors import ConfigError, nearest

__all__ = ["METHODS", "Fit", "Method", "MethodsConfig", "Reads", "Setting", "check_methods", "grid_of"]

Reads: TypeAlias = Literal["latents", "particles", "numbers"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodsConfig:
    """Options of the methods; the probe's are the task's budget."""

    mlp: MlpConfig = config.option(MlpConfig(), "")
    network: NetworkConfig = config.option(NetworkConfig(), "")
    substructure: str = config.option("datasets/substructure.yaml", "boosting: data YAML with the jet-level numbers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What a method may look at beside its problem: the task, the backbone's model file, the point of its grid, its
    options, where it may train (cpu or cuda), and whom it tells of its epochs."""

    task: Task
    model: Path
    point: Mapping[str, Any]
    options: MethodsConfig
    device: str
    report: Report


class Fit(NamedTuple):
    """A trained method: logits (E, C) of the evaluation jets, and how many jets its training took in all passes."""

    logits: npt.NDArray[np.float32]
    seen: int


@dataclasses.dataclass(frozen=True)
class Method:
    """`options` names what of `MethodsConfig` decides a result; `of_backbone` what of a backbone does: its weights, its
    architecture, or nothing."""

    reads: Reads
    of_backbone: Literal["weights", "architecture", "nothing"]
    options: str
    run: Callable[[Problem, Setting], Fit]


def _probe(problem: Problem, setting: Setting) -> Fit:
    budget = setting.task.budget
    return Fit(linear_probe(problem, budget), budget.epochs * len(problem.labels))


def _mlp(problem: Problem, setting: Setting) -> Fit:
    options = setting.options.mlp
    seen = round(options.epochs * len(problem.labels) * (1 - options.held_out))
    return Fit(mlp(problem, setting.point, options, setting.report), seen)


def _network(problem: Problem, setting: Setting, *, trained: bool) -> Fit:
    options = setting.options.network
    return Fit(*train_network(problem, setting.model, options, trained=trained, device=setting.device))


def _boosting(problem: Problem, setting: Setting) -> Fit:
    fit = boosted if problem.num_classes else boosted_target
    scores, rounds = fit(problem.train, problem.labels, problem.weights, problem.evaluate, problem.seed)
    missing = problem.outputs - scores.shape[1]
    logits = np.pad(scores, ((0, 0), (0, missing)), constant_values=scores.min())
    return Fit(logits, rounds * len(problem.labels))


METHODS: dict[str, Method] = {
    "probe": Method("latents", "weights", "", _probe),
    "mlp": Method("latents", "weights", "mlp", _mlp),
    "finetune": Method("particles", "weights", "network", functools.partial(_network, trained=True)),
    "scratch": Method("particles", "architecture", "network", functools.partial(_network, trained=False)),
    "boosting": Method("numbers", "nothing", "substructure", _boosting),
}
"""Methods by the name that options and tables use."""


def check_methods(names: Sequence[str]) -> None:
    """ConfigError, with the nearest ones, for a name that is no method's."""
    for name in names:
        if name not in METHODS:
            msg = f"methods: no method {name!r}; {nearest(name, METHODS)}"
            raise ConfigError(msg)


def grid_of(method: str, options: MethodsConfig) -> list[dict[str, Any]]:
    """The points between which a method chooses by jets that it holds out; one empty point if there is no choice."""
    return options.mlp.grid if method == "mlp" else [{}]
