"""The run folder: `config.yaml` (final), `summary.json` (figures and provenance), logs and plots.

A run folder belongs to one configuration. The same command on it continues; a changed configuration is
refused with the keys that differ, because results of two configurations must not mix under one name.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jetfoundry import config, files
from jetfoundry.errors import CheckpointError
from jetfoundry.transcript import LOG

__all__ = ["check_run", "git_commit", "open_run", "provenance", "read_metrics", "short_commit", "write_summary"]

_PACKAGES = (
    "jetfoundry", "torch", "ray", "pyarrow", "awkward", "uproot", "numpy", "scikit-learn",
    "onnx", "onnxruntime", "pythia8mc", "fastjet",
)  # fmt: skip

_NO_RESULTS = ("config.yaml", LOG, ".lock", ".tasks.lock", "find_lr")  # nothing was made of it yet


def open_run(folder: str | Path, configuration: Any, may_change: Sequence[str] = ()) -> Path:
    """Create or re-open a run folder and write the final configuration into it.

    Raises CheckpointError if the folder holds results of another configuration; the dotted keys in `may_change`,
    which do not change a result, are exempt.
    """
    path = files.place(folder)
    check_run(path, configuration, may_change)
    files.make_folder(path)
    files.write_text(path / "config.yaml", config.dump_yaml(config.to_dict(configuration)))
    return path


def check_run(folder: str | Path, configuration: Any, may_change: Sequence[str] = ()) -> None:
    """Raise CheckpointError as `open_run` does; nothing is written."""
    path, now = files.place(folder), config.to_dict(configuration)
    stored = path / "config.yaml"
    if stored.exists() and any(item.name not in _NO_RESULTS for item in path.iterdir()):
        before = config.load_yaml(stored)
        differing = [row for row in _differences(before, now) if row[0] not in may_change]
        if differing:
            shown = "; ".join(f"{key}: was {old!r}, now {new!r}" for key, old, new in differing[:5])
            msg = f"{path} holds a run with another configuration ({shown}); choose another run folder or delete it"
            raise CheckpointError(msg)


def _differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        rows = []
        for name in [*old, *(n for n in new if n not in old)]:
            rows += _differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
        return rows
    return [] if old == new else [(key, old, new)]


def git_commit() -> str:
    """Commit of the source tree with `+dirty` if it was changed, or the value of JETFOUNDRY_COMMIT, or 'unknown'."""
    root = Path(__file__).resolve().parent
    try:
        _git(root, "ls-files", "--error-unmatch", "runs.py")  # else this is a wheel inside somebody's repository
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):  # an installed wheel, or a Ray job without .git
        return os.environ.get("JETFOUNDRY_COMMIT", "unknown")


def short_commit(commit: str) -> str:
    """The first twelve digits of a commit, and whether the tree was changed."""
    found, _, changed = commit.partition("+")
    return found[:12] + (f"+{changed}" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def provenance() -> dict[str, Any]:
    """Versions, git commit, command and machine, for `summary.json`."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "versions": versions,
        "machine": {"system": platform.system(), "machine": platform.machine(), "cores": os.cpu_count()},
    }


def write_summary(folder: str | Path, **figures: Any) -> Path:
    """Write `summary.json`: the figures of this run, then where they come from."""
    path = files.place(folder) / "summary.json"
    files.write_json(path, {**figures, "provenance": provenance()})
    return path


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """All whole rows of a `metrics.jsonl`; a row that a killed process left half-written is passed over."""
    rows = []
    with contextlib.suppress(FileNotFoundError):
        for line in files.place(path).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
    return rows
