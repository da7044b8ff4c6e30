"""What a job says of itself to Ray stands at the node's metrics port, where Prometheus reads it."""

from __future__ import annotations

import time
import urllib.request

import pytest

from jetfoundry.gauges import INGEST, TRAINING, Gauges


@pytest.mark.ray
def test_prometheus_can_read_the_speed_of_a_training_and_what_an_ingest_sets_aside(ray_local):
    import ray

    Gauges(TRAINING, "runs/here")({"jets_per_s": 1234.5, "data_wait": 0.25, "loss": None, "accuracy": 0.5})
    Gauges(INGEST, "data/there")({"ingest_set_aside": 7})
    port, deadline = ray.nodes()[0]["MetricsExportPort"], time.monotonic() + 60
    found = []
    while len(found) < 3:
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        found = sorted(line for line in lines if line.startswith("ray_jetfoundry_"))
    values = {line.partition("{")[0]: float(line.split()[-1]) for line in found}
    assert values == {
        "ray_jetfoundry_jets_per_s": 1234.5,
        "ray_jetfoundry_data_wait": 0.25,
        "ray_jetfoundry_ingest_set_aside": 7,
    }
    assert 'run="runs/here"' in next(line for line in found if "jets_per_s" in line)
