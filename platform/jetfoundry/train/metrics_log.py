"""Metrics of a run: one JSON row per line in `metrics.jsonl`, the same numbers in TensorBoard, a progress bar.

Only worker 0 writes. When a run continues, rows after the checkpoint's step are cut off first, so that the file
reads as if the run had never been interrupted.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from jetfoundry import files
from jetfoundry.runs import read_metrics

__all__ = ["MetricsLog", "progress_bar"]


class MetricsLog:
    """Appends rows; `at_step` is the step from which the run continues."""

    def __init__(self, folder: Path, at_step: int) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= at_step]
        files.write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=at_step + 1)

    def __call__(self, row: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, allow_nan=False) + "\n")
        for name, value in row.items():
            if isinstance(value, int | float) and name != "step":
                self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._board.close()


@contextlib.contextmanager
def progress_bar(path: Path, jets_per_epoch: int, epochs: int) -> Iterator[None]:
    """Show a bar with jets/s and the last loss while the body runs, read from the growing `metrics.jsonl`."""
    stop = threading.Event()

    def follow() -> None:
        total = jets_per_epoch * epochs
        with tqdm(total=total, unit=" jets", unit_scale=True, desc="pre-train", mininterval=1.0) as bar:
            while True:
                ended = stop.wait(1.0)
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
