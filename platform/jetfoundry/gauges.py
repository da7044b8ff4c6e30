"""Gauges for Prometheus: what a running job tells Ray, which serves it at the metrics port of each node.

In Prometheus their names begin with `ray_jetfoundry_`; each has the tag `run`, the folder of the run or of the shards.
Ray's own gauges (CPUs, memory, object store, GPU) stand beside them; docs/operations.md says how to look at them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["INGEST", "TRAINING", "Gauges"]

TRAINING = {
    "jets_per_s": "Jets that all training workers take in a second",
    "data_wait": "Share of the time in which training waits for jets",
    "loss": "Training loss",
    "val_loss": "Validation loss",
    "step": "Training step",
}
INGEST = {
    "ingest_jets": "Jets written to shards by this command",
    "ingest_jets_per_s": "Jets written to shards in a second",
    "ingest_set_aside": "Jets, and entries of files that cannot be read, that were set aside",
}
"""Name -> meaning."""


class Gauges:
    """Sets those of its gauges that a row of figures has. Ray must be running."""

    def __init__(self, meanings: Mapping[str, str], run: str | Path) -> None:
        from ray.util.metrics import Gauge

        self._gauges = {
            name: Gauge(f"jetfoundry_{name}", description=meaning, tag_keys=("run",))
            for name, meaning in meanings.items()
        }
        self._tags = {"run": str(run)}

    def __call__(self, row: Mapping[str, Any]) -> None:
        for name, gauge in self._gauges.items():
            if row.get(name) is not None:
                gauge.set(float(row[name]), tags=self._tags)

    def close(self) -> None:
        """Nothing to do: Ray forgets the gauges of a process that has ended."""
