"""Inputs behind URLs, against a real S3 server: moto's, as a process of its own on a free port."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from jetfoundry import cli, remote
from jetfoundry.data.inventory import expand, stamp, take_inventory
from jetfoundry.data.plan import ShardConfig, make_plan
from jetfoundry.data.root import open_jets
from jetfoundry.data.unit import convert_unit
from jetfoundry.data.verify import verify
from jetfoundry.errors import InputError

JOB = Path(__file__).resolve().parents[2] / "jobs" / "ingest.py"
KEYS = {"AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "a-secret", "AWS_DEFAULT_REGION": "us-east-1"}


class Server:
    """An S3 server that can go away and return with the same content, that of `folder`."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("s3_server.py")), str(self.port), str(self.folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            try:
                urllib.request.urlopen(self.url, timeout=1).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        pytest.fail("the S3 server did not start")

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def put(self, name: str, data: bytes) -> str:
        import boto3

        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if self.process:
            boto3.client("s3", endpoint_url=self.url).put_object(Bucket="jets", Key=name, Body=data)
        return f"s3://jets/{name}"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    server = Server(tmp_path_factory.mktemp("s3"))
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": server.url, "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    server.start()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield server
    server.stop()


@pytest.mark.parametrize("kind", ["ttree", "rntuple", "parquet"])
def test_every_format_behind_a_url_gives_the_jets_of_the_file(kind, tmp_path, make_jets, write_root, s3):
    jets = make_jets(60)
    url = s3.put("in/jets", write_root(tmp_path / "jets", jets, kind=kind, cluster=25).read_bytes())
    with open_jets(url) as reader, open_jets(tmp_path / "jets") as local:
        assert reader.clusters().tolist() == local.clusters().tolist()
        for start, stop in ((0, 60), (20, 55)):
            assert reader.read(start, stop).equals(local.read(start, stop))
    assert take_inventory(expand([url])).sources[0].kind == kind


def test_patterns_and_folders_are_found_on_the_server(tmp_path, make_jets, write_root, s3):
    data = write_root(tmp_path / "jets.root", make_jets(3)).read_bytes()
    a, b = s3.put("in/a.root", data), s3.put("in/b.root", data)
    s3.put("in/notes.txt", b"no jets")
    for meant in ("s3://jets/in/*.root", "s3://jets/in", f"{a} {b}"):
        assert [file.path for file in expand([meant])] == [a, b]
    assert [file.group for file in expand([f"QCD:{a} Res2P:{b}"])] == ["QCD", "Res2P"]
    with pytest.raises(InputError, match=r"s3://jets/in/c.root: .*no (such|ROOT or Parquet) file"):
        expand(["s3://jets/in/c.root"])
    assert stamp(a) == stamp(b)  # the same content
    s3.put("in/b.root", data + b" ")
    assert stamp(a) != stamp(b)


def test_a_server_that_goes_away_and_returns_loses_nothing(tmp_path, make_jets, write_root, s3):
    data = write_root(tmp_path / "jets.root", make_jets(300), cluster=50).read_bytes()
    plan = make_plan(take_inventory(expand([s3.put("jets.root", data)])), ShardConfig())
    s3.stop()
    back = threading.Timer(3.0, s3.start)
    back.start()
    started = time.monotonic()
    sidecar = convert_unit(plan, tmp_path / "out", 0, patience=60.0)
    assert time.monotonic() - started > 3
    back.join()
    assert sum(shard["rows"] for shard in sidecar["shards"]) == 300
    assert not sidecar["set_aside"]["ranges"]


def test_a_server_that_stays_away_ends_the_unit_and_the_same_call_continues(tmp_path, make_jets, write_root, s3):
    data = write_root(tmp_path / "jets.root", make_jets(100)).read_bytes()
    plan = make_plan(take_inventory(expand([s3.put("jets.root", data)])), ShardConfig())
    s3.stop()
    with pytest.raises(
        InputError, match=r"s3://jets/jets.root: cannot read: no answer for 1 s .*same command continues"
    ):
        convert_unit(plan, tmp_path / "out", 0, patience=1.0)
    assert not list((tmp_path / "out").rglob("*.json"))
    s3.start()
    assert sum(shard["rows"] for shard in convert_unit(plan, tmp_path / "out", 0)["shards"]) == 100


def test_a_file_that_changes_on_the_server_is_found(tmp_path, make_jets, write_root, s3):
    url = s3.put("jets.root", write_root(tmp_path / "jets.root", make_jets(50)).read_bytes())
    plan = make_plan(take_inventory(expand([url])), ShardConfig())
    s3.put("jets.root", write_root(tmp_path / "jets.root", make_jets(50, seed=1)).read_bytes())
    with pytest.raises(InputError, match=r"jets.root: changed while it was read, or since the plan was made"):
        convert_unit(plan, tmp_path / "out", 0)


@pytest.mark.ray
def test_the_job_reads_from_s3_and_writes_no_key_anywhere(tmp_path, make_jets, write_root, s3):
    data = write_root(tmp_path / "jets.root", make_jets(100)).read_bytes()
    s3.put("in/a.root", data)
    command = [sys.executable, str(JOB), "input=s3://jets/in/*.root", f"output={tmp_path / 'out'}", "ray.num_cpus=1"]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-2000:]
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) > 5
    for text in [*written, done.stdout.encode(), done.stderr.encode()]:
        assert b"a-secret" not in text
        assert b"a-key" not in text


class Job:
    """jobs/ingest.py as a process of its own, on 20 units of 60 jets behind the server."""

    def __init__(self, s3: Server, tmp_path: Path, *options: str) -> None:
        self.out = tmp_path / "out"
        command = [sys.executable, str(JOB), "input=s3://jets/in/*.root", f"output={self.out}", "ray.num_cpus=1"]
        self.command = [*command, "shards.jets_per_task=60", *options]
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def committed(self) -> set[str]:
        return {path.name for path in self.out.glob("units/[0-9]*.json")}

    def until_the_first_unit(self) -> None:
        for _ in range(1800):
            if self.committed():
                return
            assert self.process.poll() is None, self.process.communicate()[1][-2000:]
            time.sleep(0.05)
        pytest.fail("no unit was committed")

    def again(self) -> tuple[int, str]:
        self.process = self._start()
        return self.end()

    def end(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=240)
        return self.process.returncode, errors


@pytest.fixture
def behind_s3(tmp_path, make_jets, write_root, s3):
    for number in range(4):
        path = write_root(tmp_path / f"jets_{number}.root", make_jets(300, seed=number), cluster=50)
        s3.put(f"in/{path.name}", path.read_bytes())
    return s3


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_running_job_survives_a_server_that_goes_away_and_returns(tmp_path, behind_s3):
    job = Job(behind_s3, tmp_path, "patience=120")
    job.until_the_first_unit()
    behind_s3.stop()
    time.sleep(10)
    done = len(job.committed())
    assert done < 20, "the server went away too late"
    assert job.process.poll() is None
    behind_s3.start()
    code, errors = job.end()
    assert code == 0, errors[-2000:]
    found = verify(job.out)
    assert found.faults == ()  # each entry of the input in exactly one shard
    assert found.rows == 1200


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_running_job_ends_with_one_line_if_the_server_stays_away_and_continues_later(tmp_path, behind_s3):
    job = Job(behind_s3, tmp_path, "patience=4")
    job.until_the_first_unit()
    behind_s3.stop()
    gone = time.monotonic()
    code, errors = job.end()
    assert code == cli.EXIT_BAD_INPUT, errors[-2000:]
    assert time.monotonic() - gone < 60
    (line,) = [line for line in errors.splitlines() if "error" in line.lower()]
    assert line.startswith("error: s3://jets/in/jets_")
    assert "no answer for 4 s" in line
    assert "what is committed is kept, the same command continues" in line
    assert "Traceback" not in errors
    kept = {name: (job.out / "units" / name).stat().st_mtime_ns for name in job.committed()}
    assert 0 < len(kept) < 20
    behind_s3.start()
    code, errors = job.again()
    assert code == 0, errors[-2000:]
    assert all((job.out / "units" / name).stat().st_mtime_ns == stamp for name, stamp in kept.items())
    found = verify(job.out)
    assert found.faults == ()
    assert found.rows == 1200


def test_files_of_any_fsspec_protocol_are_read(tmp_path, make_jets, write_root):
    jets = make_jets(20)
    system = fsspec.filesystem("memory")
    system.pipe("/in/jets.root", write_root(tmp_path / "jets.root", jets).read_bytes())
    (file,) = expand(["memory://in/*.root"])
    with open_jets(file.path) as reader:
        table = reader.read(0, 20)
    assert isinstance(table, pa.Table)
    assert table.drop_columns(["source_file", "source_entry"]).equals(jets)
    system.rm("/in/jets.root")
    with pytest.raises(InputError, match=r"memory://.*: cannot read: no such file"), open_jets(file.path):
        pass


def test_a_url_with_a_key_in_it_is_refused_without_showing_it():
    for url in ("https://me:secret@host/a.root", "https://host/a.root?X-Amz-Signature=secret"):
        with pytest.raises(InputError, match="give credentials by environment variables") as caught:
            expand([url])
        assert "secret" not in str(caught.value)


def test_a_protocol_without_its_package_names_it():
    with pytest.raises(InputError, match=r"root://host//a.root: root:// needs a Python package that is not installed"):
        expand(["root://host//a.root"])
    with pytest.raises(InputError, match=r"nothing://a.root: Protocol not known"):
        expand(["nothing://a.root"])


def _asked(error: Exception, patience: float) -> tuple[int, Exception]:
    """How often something that raises `error` is asked, and what comes out."""
    calls = []

    def ask() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error) if isinstance(error, remote._BUGS) else InputError) as caught:
        remote.patiently("x", ask, patience)
    return len(calls), caught.value


@pytest.mark.parametrize(
    "kind", [TypeError, AttributeError, KeyError, IndexError, NameError, AssertionError, ZeroDivisionError]
)
def test_a_bug_behind_a_file_system_passes_as_it_is(kind):
    error = kind("ours")
    assert _asked(error, 100) == (1, error)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileNotFoundError("x"), "no such file"),
        (PermissionError("no"), "refused: PermissionError: no"),
        (IsADirectoryError("x"), "refused: IsADirectoryError: x"),
        (ValueError("bad bucket"), "refused: ValueError: bad bucket"),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "bad"), "refused: UnicodeDecodeError: .*"),
        (type("NoCredentialsError", (Exception,), {})("none"), "refused: NoCredentialsError: none"),
        (OSError("stat failed: [ERROR] Server responded with an error: [3011] no such file"), "no such file"),
        (OSError("[ERROR] Server responded with an error: [3010] disallowed"), "refused: OSError: .* disallowed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_a_server_refuses_is_not_asked_for_again(error, text):
    calls, caught = _asked(error, 100)
    assert calls == 1
    assert re.fullmatch(f"x: cannot read: {text}", str(caught))


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError("gone"), TimeoutError("late"), OSError("[ERROR] Operation expired"), Exception("503")],
)
def test_whatever_else_a_file_system_raises_counts_as_no_answer(error, monkeypatch):
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    answers = iter([error, error, None])

    def return_later() -> int:
        found = next(answers)
        if found:
            raise found
        return 3

    assert remote.patiently("x", return_later) == 3
    calls, caught = _asked(error, 0.5)
    assert calls == 1
    assert "no answer for 0.5 s" in str(caught)
    assert "the same command continues" in str(caught)
