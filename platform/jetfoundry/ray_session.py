"""Start or join Ray, in one place, the same way for every job.

- On a laptop: a private local Ray, ended with the job. Never one that happens to run on the machine:
  `ray.init()` alone would attach to a stranger's cluster through RAY_ADDRESS or a left-over address file.
- Inside a submitted job (`ray job submit`): the cluster that runs the job.
- `address=auto` or `host:port`: that cluster.

Sessions nest: a job that makes its missing data by another room's function shares its Ray.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jetfoundry import config, files, remote
from jetfoundry.errors import ClusterError, JetFoundryError

__all__ = [
    "RayConfig",
    "available_cpus",
    "available_gpus",
    "in_job",
    "own_error",
    "raise_own",
    "session",
    "storage",
    "usable_cores",
]

# A session's socket path may not exceed 107 bytes and Ray appends some 66 to the temporary root.
_LONGEST_TEMP_ROOT = 40

# Quiet, quick defaults; a user's own setting in the environment wins.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # 2 s by default: every checkpoint would wait that long
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints of workers would appear twice
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # ours shows jets/s
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # One heap for all threads of a worker, else each thread of a trial leaves its own behind: 9 GB after 90 trials.
    "MALLOC_ARENA_MAX": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its errors about healthy clusters; real ones reach us as exceptions
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Where the job's tasks run."""

    address: str = config.option("", "'' = private local Ray, or the job's own cluster; else auto or host:port")
    num_cpus: int = config.option(0, "CPUs of the private local Ray, 0 = all cores of this machine")
    object_store_gb: float = config.option(0.5, "object store of the private local Ray [GB]")

    def __post_init__(self) -> None:
        if self.num_cpus < 0 or self.object_store_gb <= 0:
            msg = f"num_cpus {self.num_cpus} must be >= 0 and object_store_gb {self.object_store_gb} > 0"
            raise ValueError(msg)


@contextlib.contextmanager
def session(address: str = "", num_cpus: int = 0, object_store_gb: float = 0.5) -> Iterator[None]:
    """Run the body with Ray started or joined; a Ray that was already running stays as it was."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    arguments = _arguments(address, num_cpus, object_store_gb)
    if arguments["address"] == "local":
        _ask_for_a_secret()
    import ray

    if ray.is_initialized():
        with _own_errors():
            yield
        return
    try:
        ray.init(**arguments, logging_level="ERROR")
    except (RuntimeError, ConnectionError) as error:
        msg = f"cannot {'join' if address not in ('', 'local') else 'start'} Ray: {' '.join(str(error).split())[:200]}"
        raise ClusterError(msg) from error
    _quiet_data()
    try:
        with _own_errors():
            yield
    finally:
        ray.shutdown()


def _ask_for_a_secret() -> None:
    """Shut the ports of a private Ray, which the machine's other users can reach, to all but its own processes: these
    inherit a secret that is in no file. Ray's own would lie in ~/.ray, for all to read with the usual umask."""
    if "ray" not in sys.modules:  # it reads this when it is imported, and does the same by itself if nothing is set
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def storage(place: str) -> dict[str, Any]:
    """Where Ray Train and Tune keep what they store, as their RunConfig wants it: a folder, or a URL by the same fsspec
    as all else, which takes credentials from the environment in every worker."""
    where = files.place(place)
    if not files.is_remote(where):
        return {"storage_path": str(where.resolve())}
    import pyarrow.fs

    system, path = remote.file_system(str(where))
    return {"storage_path": path, "storage_filesystem": pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(system))}


def _quiet_data() -> None:
    """Keep Ray Data's plans, timings and tracebacks in its log file, off the terminal: errors are raised here."""
    import ray.data  # noqa: F401 - configures the logger

    for handler in logging.getLogger("ray.data").handlers:
        # Ray's own handler only: a program may have hung one of its own on this logger.
        if isinstance(handler, logging.StreamHandler) and type(handler).__module__.startswith("ray."):
            handler.setLevel(logging.CRITICAL)


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    """Let the functions that Ray Data maps raise their own errors: from its UserCodeException they cannot be had."""
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.raise_original_map_exception = True
    with DataContext.current(context):
        yield


def _arguments(address: str, num_cpus: int, object_store_gb: float) -> dict[str, Any]:
    if not address and in_job():
        address = "auto"
    if address and address != "local":
        return {"address": address}
    arguments: dict[str, Any] = {
        "address": "local",
        "num_cpus": num_cpus or usable_cores(),
        "include_dashboard": False,
        "log_to_driver": False,  # errors of tasks are raised here anyway; the rest is chatter of Ray's own actors
        "object_store_memory": int(object_store_gb * 2**30),
    }
    root = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir()))
    if len(str(root)) > _LONGEST_TEMP_ROOT:
        arguments["_temp_dir"] = "/tmp/ray"
    return arguments


def in_job() -> bool:
    """Whether this process was started by Ray's job manager, on a cluster."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def usable_cores() -> int:
    """Cores that this process may run on: its batch slot or container, not the whole machine."""
    return len(os.sched_getaffinity(0))


def own_error(error: BaseException) -> JetFoundryError | None:
    """The JetFoundryError that ended a Ray task, without Ray's wrappings; None if it was none of ours.

    What Ray raises for it in the driver is of a class made of its own and of ours, whose text is a traceback.
    """
    found: BaseException | None = error
    while found is not None:
        wrapped = getattr(found, "cause", None)
        if wrapped is None and isinstance(found, JetFoundryError):
            return found
        found = wrapped or found.__cause__
    return None


def raise_own(error: BaseException) -> None:
    """Raise the error of ours that ended a Ray task, if it was one, instead of Ray's wrapping of it."""
    if own := own_error(error):
        raise own from None


def available_gpus() -> float:
    """GPUs of the running Ray."""
    import ray

    return float(ray.cluster_resources().get("GPU", 0))


def available_cpus() -> int:
    """CPUs of the running Ray."""
    import ray

    return int(ray.cluster_resources().get("CPU", 1))
