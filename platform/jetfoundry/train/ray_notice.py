"""A checkpoint before a machine is taken away, or before the whole job is.

A *node* goes: a cloud, Kubernetes or SIGTERM to `ray start --block` has told Ray, which tells the workers. They write a
checkpoint at once and go on; when the node is gone, Ray restarts the run from there.

The *job* is to end: SIGTERM or SIGUSR1 reached the driver (a batch system before its time limit, `ray job stop`), or
somebody made the file `stop` in the run folder. The workers write a checkpoint and end; the same command continues.

Workers look every `train.log_steps` steps, all at the same: a checkpoint needs all of them.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from jetfoundry import files
from jetfoundry.train.loop import Notice

__all__ = ["STOP", "Notices", "stop_on_signal"]

STOP = "stop"
"""File of the run folder that asks the run to end."""

_EVERY = 10.0  # seconds between two looks at a run folder behind a URL

log = logging.getLogger("jetfoundry")


@contextlib.contextmanager
def stop_on_signal(run: Path) -> Iterator[None]:
    """While the body runs, SIGTERM and SIGUSR1 leave the file `stop` in the run folder instead of ending the process.

    Without effect outside the main thread, to which Python gives its signals.
    """
    asked = run / STOP
    asked.unlink(missing_ok=True)
    before = {}
    if threading.current_thread() is threading.main_thread():

        def ask(number: int, frame: FrameType | None) -> None:
            if files.is_remote(asked):  # the signal may have come amid a request to the same server
                threading.Thread(target=files.write_text, args=(asked, ""), name="jetfoundry-stop").start()
            else:
                asked.touch()
            log.warning("%s: the run ends with a checkpoint", signal.Signals(number).name)

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        asked.unlink(missing_ok=True)


class Notices:
    """What the loop asks, on every worker at the same steps."""

    def __init__(self, run: Path) -> None:
        self._stop = run / STOP
        self._told: set[str] = set()
        self._looked = 0.0
        self.stopped = False

    def __call__(self) -> Notice:
        import ray.train
        from ray.train import collective

        going = ray.train.get_preemption_info()  # both are agreed on by all workers, and wait for all
        if collective.broadcast_from_rank_zero(self._is_asked()):
            self.stopped = True
            return "stop"
        new = set(going.preempted_node_to_ranks) - self._told if going else set()
        self._told |= new
        return "save" if new else ""

    def _is_asked(self) -> bool:
        if files.is_remote(self._stop):  # each look is a request or two
            if time.monotonic() - self._looked < _EVERY:
                return False
            self._looked = time.monotonic()
        return self._stop.exists()
