"""The units of an ingest as Ray tasks: as many at once as memory allows, each committed on its own.

What the input is at fault for comes back from a task as text and ends the job with one line. A task whose process dies
is tried again a few times; if Ray itself goes away, the same command continues later.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jetfoundry import files
from jetfoundry.data.plan import Plan
from jetfoundry.data.unit import convert_unit
from jetfoundry.errors import ClusterError, InputError
from jetfoundry.gauges import INGEST, Gauges
from jetfoundry.progress import progress

__all__ = ["LEFT_BEHIND", "TASKS", "bytes_per_task", "convert_units"]

TASKS = ".tasks.lock"
"""Every task that writes into a folder holds this lock, shared."""

LEFT_BEHIND = 60.0
"""Seconds to wait for the tasks of a killed run; Ray ends them within some two."""

_RETRIES = 3  # of a task whose process died; without a limit a file that crashes it would be tried for ever


def convert_units(plan: Plan, folder: Path, todo: list[int], *, memory_gb: float, patience: float) -> int:
    """Run the units `todo` as Ray tasks; returns the number of jets they wrote.

    `memory_gb` limits what all tasks take together (0 = what Ray finds free), `patience` [s] is for slow servers.
    Raises InputError if a unit cannot be read or written, ClusterError if Ray ends; committed units stay.
    """
    import ray

    at_once, memory = _tasks_at_once(bytes_per_task(plan), memory_gb)
    task = functools.partial(_task, plan=plan, folder=folder.resolve(), patience=patience)
    pool = ray.data.TaskPoolStrategy(size=min(len(todo), at_once))
    rows = ray.data.from_items([{"unit": unit} for unit in todo], override_num_blocks=len(todo))
    with warnings.catch_warnings():
        # max_retries has no parameter of its own yet in the Ray that we pin, and says so with a warning.
        warnings.simplefilter("ignore", DeprecationWarning)
        done = rows.map(task, num_cpus=1, memory=memory, compute=pool, max_retries=_RETRIES)
    entries = sum(r.stop - r.start for unit in todo for r in plan.units[unit])
    jets = set_aside = 0
    tell = Gauges(INGEST, folder)
    with progress("ingest", "event" if plan.delphes else "jet", entries) as bar, _telling_of_lost_ray():
        for row in done.iter_rows():
            if row["error"]:
                msg = f"{row['error']}; what is committed is kept, the same command continues"
                raise InputError(msg)
            jets += row["jets"]
            set_aside += row["set_aside"]
            found = f"{jets:,} jets, {jets / bar.seconds:,.0f} jets/s, " if plan.delphes else ""
            bar.update(row["entries"], f"{found}{set_aside:,} set aside")
            speed = jets / max(bar.seconds, 1e-9)
            tell({"ingest_jets": jets, "ingest_jets_per_s": speed, "ingest_set_aside": set_aside})
    return jets


@contextlib.contextmanager
def _telling_of_lost_ray() -> Iterator[None]:
    """Turn the end of Ray or of a node, and tasks that die again and again, into a ClusterError."""
    import ray

    try:
        yield
    except ray.exceptions.RayTaskError:
        raise  # an error in our code, with its traceback
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        msg = f"Ray gave up ({type(error).__name__}: {reason}); what is committed is kept, the same command continues"
        raise ClusterError(msg) from error


def bytes_per_task(plan: Plan) -> int:
    """Memory of the largest task: Python, its jets, and a quarter of them for what is being decoded and written.

    Measured: 435 MB for 46,700 simulated jets of 5.3 kB; this says 445 MB.
    """
    per_jet = [source.bytes_per_jet for source in plan.inventory.sources]
    jets = max(sum((r.stop - r.start) * per_jet[r.file] for r in unit) for unit in plan.units)
    return int(1.25 * jets) + 128 * 2**20


def _tasks_at_once(needed: int, memory_gb: float) -> tuple[int, int]:
    """How many tasks of `needed` bytes run at once, and the bytes that Ray sets apart for each.

    As many as there are CPUs on nodes with memory for them, at least one, and no more than fit into `memory_gb`. Ray
    never starts a task that needs more than any node has, so it is not asked for that much.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    free = [(node.get("CPU", 0), node.get("memory", 0)) for node in nodes]
    fitting = sum(min(int(cpus), int(memory // needed)) for cpus, memory in free)
    if memory_gb:
        fitting = min(fitting, int(memory_gb * 2**30 // needed))
    return max(1, fitting), int(min(needed, max((memory for cpus, memory in free if cpus >= 1), default=needed)))


def _task(row: dict[str, Any], plan: Plan, folder: Path, patience: float) -> dict[str, Any]:
    """One unit in a Ray worker. What is the input's fault comes back as text, to end the job with one line."""
    try:
        with files.locked(folder / TASKS, shared=True, wait=LEFT_BEHIND) as mine:
            if not mine:
                msg = f"{folder}: another ingest has locked it for {LEFT_BEHIND:g} s"
                raise InputError(msg)
            sidecar = convert_unit(plan, folder, row["unit"], patience)
    except InputError as error:
        return {"unit": row["unit"], "jets": 0, "entries": 0, "set_aside": 0, "error": str(error)}
    jets = sum(shard["rows"] for shard in sidecar["shards"])
    set_aside = sidecar["set_aside"]["entries"] + sum(sidecar["set_aside"]["jets"].values())
    return {"unit": row["unit"], "jets": jets, "entries": sidecar["entries"], "set_aside": set_aside, "error": ""}
