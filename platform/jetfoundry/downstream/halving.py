"""Successive halving for each trial's own grid: what Ray Tune's scheduler and callback have to know of our trials. And
what Ray Tune must not tell of us.

Tune's ASHA compares all trials of an experiment. Here the points of one trial, which are one task, backbone, size and
seed, have a loss in common, and others have not: each grid gets a scheduler of its own.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ray.tune import Callback
from ray.tune.execution import class_cache
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

__all__ = ["GridEnds", "GroupedHalving", "keys_unlogged"]


@contextlib.contextmanager
def keys_unlogged() -> Iterator[None]:
    """While the body runs, Tune does not hand the driver's AWS credentials to its trials: it would do so in their
    runtime environment, which Ray writes into a log. Trials have the environment of their node, as all other tasks."""
    usual = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in usual if not name.startswith("AWS_")}
    try:
        yield
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE = usual


class GroupedHalving(FIFOScheduler):
    """One `AsyncHyperBandScheduler` for the points of each key that has several; others run to their end.

    A point is compared after epochs // 9 epochs, three and nine times as many (2, 6 and 18 of 20), and goes on if it is
    in the best third of those that came so far.
    """

    def __init__(self, several: Sequence[str], metric: str, epochs: int) -> None:
        super().__init__()
        self._groups = {
            key: AsyncHyperBandScheduler(
                time_attr="epoch", metric=metric, mode="min", max_t=epochs, grace_period=max(1, epochs // 9),
                reduction_factor=3,
            )
            for key in several
        } if epochs > 1 else {}  # fmt: skip

    def _group(self, trial: Any) -> Any:
        return self._groups.get(trial.config["point"]["key"])

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if group := self._group(trial):
            group.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> Any:
        group = self._group(trial)
        return group.on_trial_result(tune_controller, trial, result) if group else FIFOScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if group := self._group(trial):
            group.on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        if group := self._group(trial):
            group.on_trial_remove(tune_controller, trial)


class GridEnds(Callback):
    """Calls `ended(key, what each point last reported)` when the last point of a key has ended, in whatever way, and
    moves a progress bar by points, which also shows the jets/s of all trainings together."""

    def __init__(
        self, points: Sequence[tuple[str, int]], ended: Callable[[str, list[dict[str, Any]]], None], bar: Any
    ) -> None:
        self._left = collections.Counter(key for key, _ in points)
        self._last: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
        self._ended, self._bar, self._jets = ended, bar, 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bar": None}  # Tune keeps its callbacks in files; a bar writes to a terminal

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._one_less(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._one_less(trial)

    def _one_less(self, trial: Any) -> None:
        point, last = trial.config["point"], trial.last_result or {}
        self._jets += int(last.get("jets", 0))
        self._bar.set_postfix_str(
            f"{self._jets / max(self._bar.format_dict['elapsed'], 1e-9):,.0f} jets/s", refresh=False
        )
        self._bar.update()
        self._last[point["key"]].append({"number": point["number"], **last})
        self._left[point["key"]] -= 1
        if self._left[point["key"]] == 0:
            self._ended(point["key"], self._last.pop(point["key"]))
