"""Places behind URLs: written whole or not at all, read like those of this machine."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from jetfoundry import config, files, remote, runs
from jetfoundry.errors import InputError
from jetfoundry.transcript import Transcript


def test_a_place_on_this_machine_is_a_path_and_one_behind_a_url_keeps_its_name(bucket):
    assert files.place("runs/demo") == Path("runs/demo")
    assert files.place("file:///tmp/x") == Path("/tmp/x")
    place = files.place(f"{bucket}/runs/demo/")
    assert str(place) == str(place.resolve()) == "s3://jets/runs/demo"
    assert files.place(place) is place
    assert (place.name, place.parent.name, (place / "a.json").stem) == ("demo", "runs", "a")
    assert files.is_remote(place)
    assert not files.is_remote(Path("runs/demo"))


def test_a_place_goes_to_another_process_without_any_key(bucket, secrets):
    place = files.place(f"{bucket}/runs")
    files.write_text(place / "a.txt", "here")
    stored = pickle.dumps(place)
    assert not any(secret.encode() in stored for secret in secrets)
    code = f"import pickle; print(pickle.loads({stored!r}).joinpath('a.txt').read_text())"
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True)
    assert done.stdout.strip() == "here", done.stderr


def test_a_url_that_lost_a_slash_makes_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for write in (lambda: files.write_text(Path("s3://jets/a.txt"), ""), lambda: files.make_folder(Path("s3://jets"))):
        with pytest.raises(InputError, match=r"s3:/jets.*: neither a path nor a URL; wanted s3://jets"):
            write()
    assert not list(tmp_path.iterdir())


def test_a_url_with_a_key_in_it_is_refused_without_showing_it():
    with pytest.raises(InputError, match="give credentials by environment variables") as caught:
        files.place("s3://name:hunter2@jets/a")
    assert "hunter2" not in str(caught.value)


def test_to_read_a_configuration_asks_no_server(bucket, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Job:
        output: Path

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    remote.file_system(bucket)[0].clear_instance_cache()
    monkeypatch.setattr(remote.patiently, "__defaults__", (0.0, "read"))
    job = config.build(Job, {"output": f"{bucket}/a"})
    assert str(job.output) == f"{bucket}/a"
    with pytest.raises(InputError, match=r"s3://jets/a: cannot use: no answer"):
        files.place(job.output)


def test_credentials_that_lack_are_an_error_in_one_line(bucket, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    remote.file_system(bucket)[0].clear_instance_cache()
    with pytest.raises(InputError, match=r"s3://jets/a: cannot use: refused: NoCredentialsError"):
        files.place(f"{bucket}/a")


def test_a_file_is_there_when_it_was_written_without_error(bucket):
    target = files.place(f"{bucket}/a/b.txt")

    def fail() -> None:
        with files.committed(target) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not target.exists()
    with files.committed(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert files.read_text(target) == "whole"
    assert [path.name for path in target.parent.iterdir()] == ["b.txt"]
    files.write_text(target, "new")
    assert target.read_text() == "new"
    assert not temporary.exists()


def test_where_there_is_no_object_store_a_file_is_renamed_at_the_end(bucket, monkeypatch):
    monkeypatch.setattr(files, "_STORES", ())
    seen = []
    system = remote.file_system("memory://")[0]
    monkeypatch.setattr(type(system), "mv", lambda self, a, b: (seen.append((a, b)), self.cp_file(a, b), self.rm(a)))
    files.write_text("memory://folder/a.txt", "x")
    assert [(before.startswith("/folder/a.txt.tmp."), after) for before, after in seen] == [(True, "/folder/a.txt")]
    assert [path.name for path in files.place("memory://folder").iterdir()] == ["a.txt"]


def test_a_bucket_that_is_not_there_is_named(bucket):
    with pytest.raises(InputError, match=r"s3://none/a.json: cannot write: no such file"):
        files.write_json("s3://none/a.json", {})
    with pytest.raises(InputError, match=r"s3://jets/none.json: cannot read: no such file"):
        files.read_json(f"{bucket}/none.json")


def test_what_another_process_writes_is_seen_at_once(bucket):
    folder = files.place(f"{bucket}/trials")
    assert not list(folder.glob("*.json"))
    code = f"from jetfoundry import files; files.write_json('{folder}/a.json', 1)"
    subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=True)
    assert [path.name for path in folder.glob("*.json")] == ["a.json"]
    assert (folder / "a.json").exists()


def test_a_fetched_file_is_a_copy_and_checksums_are_those_of_the_content(bucket, tmp_path):
    content = bytes(range(256)) * 1000
    (tmp_path / "a.bin").write_bytes(content)
    with files.committed(f"{bucket}/a.bin") as temporary:
        temporary.write_bytes(content)
    with files.fetched(f"{bucket}/a.bin") as local:
        assert local.read_bytes() == content
    assert not local.exists()
    with files.fetched(tmp_path / "a.bin") as local:
        assert local == tmp_path / "a.bin"
    for digest in (files.sha256_file, files.xxh128_file):
        assert digest(f"{bucket}/a.bin") == digest(tmp_path / "a.bin")
    with files.opened(f"{bucket}/a.bin") as stream:
        stream.seek(1000)
        assert stream.read(10) == content[1000:1010]


def test_growing_files_are_copied_when_they_are_saved_and_go_on(bucket):
    target = files.place(f"{bucket}/run")
    for number in range(2):
        mirror = files.Mirror(target, ["log.txt"])
        with (mirror.folder / "log.txt").open("a") as stream:
            stream.write(f"{number}\n")
        (mirror.folder / "board").mkdir()
        (mirror.folder / "board" / f"{number}.bin").write_bytes(b"x")
        assert not (target / "board" / f"{number}.bin").exists()
        mirror.save()
        mirror.close()
    assert files.read_text(target / "log.txt") == "0\n1\n"
    assert sorted(path.name for path in (target / "board").iterdir()) == ["0.bin", "1.bin"]


def test_on_this_machine_a_growing_file_is_where_it_belongs_at_once(tmp_path):
    mirror = files.Mirror(tmp_path)
    assert mirror.folder == tmp_path
    mirror.save()
    mirror.close()
    assert tmp_path.exists()


def test_the_transcript_of_a_run_behind_a_url_has_all_its_commands(bucket):
    place = files.place(f"{bucket}/run")
    with Transcript(place / "log.txt", ["never.py"]):
        print("no folder")
    assert not (place / "log.txt").exists()
    for number in range(2):
        with Transcript(place / "log.txt", ["job.py"]):
            files.write_text(place / "config.yaml", "")
            print("line", number)
            logging.getLogger("jetfoundry").warning("warned")
    text = files.read_text(place / "log.txt")
    assert [text.count(part) for part in ("$ job.py", "line 0", "line 1", "warned", "ended after")] == [2, 1, 1, 2, 2]


def test_everybody_gets_a_lock_behind_a_url(bucket):
    with files.locked(f"{bucket}/.lock") as one, files.locked(f"{bucket}/.lock") as other:
        assert one
        assert other


def test_a_run_folder_behind_a_url_refuses_another_configuration(bucket):
    folder = runs.open_run(f"{bucket}/run", {"lr": 1})
    files.write_json(folder / "summary.json", {})
    runs.open_run(folder, {"lr": 1})
    with pytest.raises(Exception, match=r"s3://jets/run holds a run with another configuration \(lr: was 1, now 2\)"):
        runs.open_run(folder, {"lr": 2})
    assert config.load_yaml(folder / "config.yaml") == {"lr": 1}
    assert runs.read_metrics(folder / "metrics.jsonl") == []
