"""An error of ours in a Ray worker reaches the user as the one line that it is, however Ray wraps it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from jetfoundry import cli
from jetfoundry.errors import ConfigError, FormulaError, InputError
from jetfoundry.ray_session import own_error, raise_own, session

TEXT = "jets.root, entry 3, jet_pt: wanted a finite number, got nan"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Config:
    """No options."""


def fails(_=None):
    raise InputError(TEXT)


def fails_from_another():
    try:
        fails()
    except InputError as error:
        msg = f"demo.yaml: {error}"
        raise ConfigError(msg) from error


class Actor:
    def work(self):
        fails()

    def __call__(self, row):
        fails()


def raised(ray, failing):
    """What Ray raises in the driver."""
    try:
        failing(ray)
    except Exception as error:  # whatever it is, the test looks at it
        return error
    return None


def in_a_task(ray):
    ray.get(ray.remote(fails).remote())


def in_an_actor(ray):
    ray.get(ray.remote(Actor).remote().work.remote())


def in_a_task_of_a_task(ray):
    ray.get(ray.remote(lambda: ray.get(ray.remote(fails).remote())).remote())


def in_an_argument_of_a_task(ray):
    ray.get(ray.remote(lambda value: value).remote(ray.remote(fails).remote()))


def in_ray_data(ray):
    with session():
        ray.data.range(2).map(fails).take_all()


def in_an_actor_of_data(ray):
    with session():
        ray.data.range(2).map(Actor, compute=ray.data.ActorPoolStrategy(size=1)).take_all()


@pytest.mark.ray
@pytest.mark.parametrize(
    "failing", [in_a_task, in_an_actor, in_a_task_of_a_task, in_an_argument_of_a_task, in_ray_data, in_an_actor_of_data]
)
def test_an_error_of_ours_in_a_worker_is_raised_as_itself(ray_local, failing, capsys):
    wrapped = raised(ray_local, failing)
    assert "Traceback" in str(wrapped) or "ray::" in str(wrapped), "Ray's own text is not one line"
    with pytest.raises(InputError) as told:
        raise_own(wrapped)
    assert type(told.value) is InputError
    assert str(told.value) == TEXT

    def main(_):
        raise wrapped

    # A job that does not unwrap it shows the same, if Ray gave it our class.
    if isinstance(wrapped, InputError):
        assert cli.run(main, _Config, []) == cli.EXIT_BAD_INPUT
        assert capsys.readouterr().err == f"error: {TEXT}\n"


@pytest.mark.ray
def test_the_last_of_our_errors_is_told_not_what_it_was_made_from(ray_local):
    wrapped = raised(ray_local, lambda ray: ray.get(ray.remote(fails_from_another).remote()))
    assert type(own_error(wrapped)) is ConfigError
    assert str(own_error(wrapped)) == f"demo.yaml: {TEXT}"


@pytest.mark.ray
def test_an_error_that_is_not_ours_is_left_to_ray(ray_local):
    wrapped = raised(ray_local, lambda ray: ray.get(ray.remote(lambda: 1 / 0).remote()))
    assert isinstance(wrapped, ZeroDivisionError)
    assert own_error(wrapped) is None
    assert raise_own(wrapped) is None


def test_an_error_without_ray_is_itself():
    error = FormulaError("no such name")
    assert own_error(error) is error
    assert own_error(ValueError("a bug")) is None


PRIVATE = """
import os, subprocess, sys
from jetfoundry.ray_session import session

if sys.argv[1] == "before":
    import ray
with session(num_cpus=1, object_store_gb=0.1):
    import ray
    stranger = "import ray, sys; ray.init(sys.argv[1], logging_level='ERROR')"
    where = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "-c", stranger, where], env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        capture_output=True, text=True,
    )
    print(done.returncode, done.stderr)
"""


@pytest.mark.ray
@pytest.mark.parametrize("imported", ["before", "after"])
def test_a_private_ray_lets_in_nobody_who_lacks_its_secret(tmp_path, imported):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", PRIVATE, imported],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout.startswith("0 "), done.stdout
    assert "uthenticat" in done.stdout, done.stdout
    assert not (tmp_path / ".ray").exists()  # the secret is in no file
