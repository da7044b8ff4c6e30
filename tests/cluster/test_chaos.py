"""A short version of `chaos.py`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_is_killed_comes_back_with_the_same_results(tmp_path):
    spec = importlib.util.spec_from_file_location("chaos", Path(__file__).with_name("chaos.py"))
    chaos = importlib.util.module_from_spec(spec)
    sys.modules["chaos"] = chaos  # dataclasses look their module up
    spec.loader.exec_module(chaos)
    kills = chaos.run(4, tmp_path, seed=7, quiet_runs=1)
    assert [(kill.job, kill.victim) for kill in kills] == [
        ("ingest", "worker"), ("pre-training", "driver"), ("fan-out", "data actor"), ("ingest", "node"),
    ]  # fmt: skip
    assert all(kill.same for kill in kills), kills
