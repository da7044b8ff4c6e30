from __future__ import annotations

import time

import pytest

from jetfoundry.train.timing import PhaseTimer


def test_pauses_have_a_share_of_the_time_and_none_in_the_speed():
    timer = PhaseTimer(warm_up=0)
    for phase in ("train/forward", "pause/validation"):
        with timer.phase(phase):
            time.sleep(0.05)
    timer.step_done(100)
    found = timer.summary()
    assert found["pause/validation"] == pytest.approx(0.5, abs=0.2)
    assert found["jets_per_s"] == pytest.approx(100 / timer.seconds["train/forward"], abs=0.1)
    assert found["jets_per_s"] > 1.3 * 100 / sum(timer.seconds.values())


def test_the_first_steps_are_left_out():
    timer = PhaseTimer(warm_up=1)
    for _ in range(2):
        with timer.phase("train/forward"):
            time.sleep(0.001)
        timer.step_done(10)
    assert timer.jets == 10
    assert timer.summary()["jets_per_s"] == pytest.approx(10 / timer.seconds["train/forward"], abs=0.1)
