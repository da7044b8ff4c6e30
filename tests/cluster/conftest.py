"""A Ray head on this machine whose autoscaler (v2, as with `ray up` and KubeRay) starts and ends nodes by Ray's own
fake provider: each node is a raylet here. Ray's helper for this, `AutoscalingCluster`, would end every Ray process of
the machine; this one ends what it started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

HEAD_ID = "f" * 51 + "00000"
PROVIDER = "fake_provider.Provider"
EMPTY_LISTS = [
    "cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands",
    "head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
]  # fmt: skip


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def processes_of(folder: str) -> Iterator[int]:
    """Ids of the processes that name the cluster's own temporary folder: nodes may outlive the head."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if folder.encode() in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                yield int(entry.name)


def configuration(address: str, node_types: dict[str, Any], idle_minutes: float) -> dict[str, Any]:
    """What `ray start --autoscaling-config` reads; `node_types` name -> resources and limits of the workers."""
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    provider = {
        "type": "external", "module": PROVIDER, "gcs_address": address, "head_node_id": HEAD_ID,
        "launch_multiple": True, "use_node_id_as_ip": True, "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }  # fmt: skip
    return {
        "cluster_name": "fake",
        "max_workers": sum(each["max_workers"] for each in node_types.values()),
        "idle_timeout_minutes": idle_minutes,
        "upscaling_speed": 1.0,
        "provider": provider,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "head_node_type": "ray.head.default",
        "available_node_types": {"ray.head.default": head} | node_types,
        **{name: [] for name in EMPTY_LISTS},
    }


@pytest.fixture(scope="session")
def autoscaling_head() -> Callable[..., AbstractContextManager[str]]:
    """`with autoscaling_head(node_types) as address`, see `_autoscaling_head`."""
    return _autoscaling_head


@contextlib.contextmanager
def _autoscaling_head(node_types: dict[str, Any], idle_minutes: float = 0.1) -> Iterator[str]:
    """Address of a head without CPUs, to which nodes of `node_types` come when they are asked for."""
    from ray.util import get_node_ip_address

    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short: a socket's path has at most 107 bytes
    port, dashboard, agent, agent_grpc = free_ports(4)
    address = f"{get_node_ip_address()}:{port}"
    settings = Path(folder) / "autoscaling.json"
    settings.write_text(json.dumps(configuration(address, node_types, idle_minutes)))
    environment = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep),
    }
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}"]
    command += [f"--autoscaling-config={settings}", f"--temp-dir={folder}", "--num-cpus=0", "--num-gpus=0"]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--dashboard-agent-grpc-port={agent_grpc}", "--object-store-memory=100000000"]
    with (Path(folder) / "head.log").open("w") as log:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log, cwd=folder)
        try:
            _wait_for(port, process)
            yield address
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            for pid in processes_of(folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.kill()
            process.wait()  # else it warns, in another test, that it still runs


def _wait_for(port: int, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "the head ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    msg = "the head did not come up"
    raise TimeoutError(msg)
