"""Metrics of a run: one JSON row a line in `metrics.jsonl`, the same numbers in TensorBoard and MLflow, a progress bar.

Only worker 0 writes. When a run continues, rows after the checkpoint's step are cut off first, so that the file
reads as if the run had never been interrupted.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from jetfoundry import files
from jetfoundry.errors import ConfigError
from jetfoundry.runs import read_metrics

__all__ = ["MetricsLog", "MlflowLog", "progress_bar"]

_EVERY = 10.0  # seconds between two copies to a URL, and between two looks at one

log = logging.getLogger("jetfoundry")


class MetricsLog:
    """Appends rows; `at_step` is the step from which the run continues.

    Behind a URL they appear there with each checkpoint (`save`), and now and then for those who look on.
    """

    def __init__(self, folder: Path, at_step: int) -> None:
        self._mirror = files.Mirror(folder)
        self.path = self._mirror.folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder / "metrics.jsonl") if row["step"] <= at_step]
        files.write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._board = SummaryWriter(str(self._mirror.folder / "tensorboard"), purge_step=at_step + 1)
        self.save()

    def __call__(self, row: dict[str, Any]) -> None:
        if time.monotonic() - self._saved > _EVERY:
            self.save()
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, allow_nan=False) + "\n")
        for name, value in _numbers(row).items():
            self._board.add_scalar(name, value, row["step"])

    def save(self) -> None:
        """What is written so far is where it belongs after this."""
        self._saved = time.monotonic()
        if self._mirror.folder is not self._mirror.target:
            self._board.flush()
            self._mirror.save()

    def close(self) -> None:
        self._board.close()
        self._mirror.save()
        self._mirror.close()


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"}


class MlflowLog:
    """Sends rows to the MLflow at `uri`, as one run of its experiment `jetfoundry`; a continued run is the same one.

    `mlflow.json` in the run folder says which it is. Rows after the checkpoint, which a continued run makes anew with
    the same values, it then has twice: MLflow cannot cut them off. Raises ConfigError if the package is not installed
    or the MLflow refuses; later, rows that it does not take are lost, and training goes on.
    """

    def __init__(self, uri: str, folder: Path) -> None:
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        try:
            mlflow = importlib.import_module("mlflow")
            self._metric = importlib.import_module("mlflow.entities").Metric
            self._error: type[Exception] = importlib.import_module("mlflow.exceptions").MlflowException
        except ImportError as error:
            msg = "mlflow: the package is not installed: `pip install mlflow-skinny`, or leave the option empty"
            raise ConfigError(msg) from error
        try:
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            known = folder / "mlflow.json"
            if not known.exists():
                found = self._client.get_experiment_by_name(_EXPERIMENT)
                experiment = found.experiment_id if found else self._client.create_experiment(_EXPERIMENT)
                run = self._client.create_run(experiment, run_name=folder.name)
                files.write_json(known, {"uri": uri, "run": run.info.run_id})
            self._run = files.read_json(known)["run"]
            self._client.update_run(self._run, status="RUNNING")
        except self._error as error:
            msg = f"mlflow: {uri} cannot be used: {' '.join(str(error).split())[:200]}"
            raise ConfigError(msg) from error

    def __call__(self, row: dict[str, Any]) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(name, value, now, row["step"]) for name, value in _numbers(row).items()]
        try:
            self._client.log_batch(self._run, metrics=metrics)
        except self._error as error:
            log.warning("MLflow did not take the row of step %d: %s", row["step"], error)

    def close(self) -> None:
        with contextlib.suppress(self._error):
            self._client.set_terminated(self._run)


_EXPERIMENT = "jetfoundry"
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""With MLflow's own, two minutes and seven times, a server that is gone would make the other workers give up."""


@contextlib.contextmanager
def progress_bar(path: Path, jets_per_epoch: int, epochs: int) -> Iterator[None]:
    """Show a bar with jets/s and the last loss while the body runs, read from the growing `metrics.jsonl`."""
    stop = threading.Event()

    def follow() -> None:
        total = jets_per_epoch * epochs
        with tqdm(total=total, unit=" jets", unit_scale=True, desc="pre-train", mininterval=1.0) as bar:
            while True:
                ended = stop.wait(_EVERY if files.is_remote(path) else 1.0)
                rows = read_metrics(path)
                shown = {k: f"{v:.3f}" for row in rows[-3:] for k, v in row.items() if k in ("loss", "val_accuracy")}
                if rows:
                    bar.set_postfix(shown, refresh=False)
                    bar.update(min(total, round(rows[-1]["epoch"] * jets_per_epoch)) - bar.n)
                if ended:
                    return

    thread = threading.Thread(target=follow, name="jetfoundry-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
