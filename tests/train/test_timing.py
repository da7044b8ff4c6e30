from __future__ import annotations

import types

import pytest

from jetfoundry.train import timing
from jetfoundry.train.timing import PhaseTimer


@pytest.fixture
def clock(monkeypatch):
    """A clock that is put forward by hand, in seconds."""
    found = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing, "time", types.SimpleNamespace(perf_counter=lambda: found.now))
    return found


def test_pauses_have_a_share_of_the_time_and_none_in_the_speed(clock):
    timer = PhaseTimer(warm_up=0)
    for phase, seconds in (("train/forward", 2), ("pause/validation", 3), ("train/backward", 3)):
        with timer.phase(phase):
            clock.now += seconds
    timer.step_done(100)
    shares = {"train/forward": 0.25, "pause/validation": 0.375, "train/backward": 0.375}
    assert timer.summary() == {"jets_per_s": 20.0, **shares}


def test_the_first_steps_are_left_out(clock):
    timer = PhaseTimer(warm_up=1)
    for seconds in (50, 2):
        with timer.phase("train/forward"):
            clock.now += seconds
        timer.step_done(10)
    assert timer.jets == 10
    assert timer.summary()["jets_per_s"] == 5.0
