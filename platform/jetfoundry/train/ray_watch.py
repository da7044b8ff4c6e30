"""A run ends by itself when starting again cannot help, or when its machines do not come back.

Ray starts a run again after any failure of a worker. What we raised ourselves, for bad data say, would only be met
again: it ends the run at once.

Ray asks again for the machines of lost workers without end: it counts failed starts over the whole run and never resets
that count, so a limit on it (`controller_failure_limit`) would end a long run whose nodes come and go, and fewer
machines than an elastic run's minimum it does not count at all. What is limited here is the time without workers.
"""

from __future__ import annotations

import time
from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback

from jetfoundry import ray_session
from jetfoundry.errors import ClusterError

__all__ = ["RunWatch"]

_NO_WAITING = ("RunningState", "PreemptingState", "ShuttingDownState", "FinishedState", "ErroredState", "AbortedState")


class RunWatch(ControllerCallback):  # type: ignore[misc]  # Ray has no types
    """Raises in Ray Train's controller what a worker raised of ours, and ClusterError when no workers have run for
    `seconds`.

    `wanted` says in words what the workers need.
    """

    def __init__(self, seconds: float, wanted: str) -> None:
        self.seconds, self.wanted = seconds, wanted
        self.since: float | None = None

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Called in every round of the controller, also when its state stays."""
        failure = getattr(current_state, "training_failed_error", None)
        if type(current_state).__name__ == "RestartingState":
            for error in getattr(failure, "worker_failures", {}).values():
                ray_session.raise_own(error)
        if type(current_state).__name__ in _NO_WAITING:
            self.since = None
            return
        self.since = self.since or time.monotonic()
        if time.monotonic() - self.since > self.seconds:
            msg = f"waited {self.seconds / 60:g} minutes (workers.wait_minutes) for {self.wanted}; the cluster has "
            raise ClusterError(msg + f"{_resources()}. When it has more, the same command continues")


def _resources() -> str:
    import ray

    have = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    return f"{nodes} node(s) with {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs in all"
