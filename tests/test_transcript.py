"""log.txt and progress: what a person saw is kept, with time stamps."""

from __future__ import annotations

import dataclasses
import logging
import re
import sys

import pytest

from jetfoundry import cli, config, progress
from jetfoundry.errors import InputError
from jetfoundry.transcript import Transcript


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Config:
    output: str = config.option("", "folder")


def _lines(folder):
    lines = (folder / "log.txt").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d ", line) for line in lines)
    return [line.partition(" ")[2] for line in lines]


def test_output_errors_and_log_messages_are_kept_line_by_line_and_every_run_is_appended(tmp_path, capsys):
    def main(options):
        print("10 jets", end="")
        print(" in\ntwo lines")
        sys.stderr.write("\r 10%|#   |\r 50%|##  |")
        sys.stderr.write("\r100%|####|\n")
        logging.getLogger("jetfoundry").info("half done")
        msg = "no file"
        raise InputError(msg)

    for _ in range(2):
        assert cli.run(main, _Config, [f"output={tmp_path}"], folder=lambda c: c.output) == cli.EXIT_BAD_INPUT
    lines = _lines(tmp_path)
    assert len(lines) == 14
    assert lines[0].startswith("$ ")
    assert f"output={tmp_path}" in lines[0]
    assert lines[1:6] == ["10 jets in", "two lines", "100%|####|", "half done", "error: no file"]
    assert lines[6].startswith("ended after ")
    assert "10 jets in\ntwo lines\n" in capsys.readouterr().out
    assert not isinstance(sys.stdout, Transcript)


def test_a_folder_that_is_never_made_gets_no_log(tmp_path):
    assert cli.run(lambda c: 0, _Config, [f"output={tmp_path / 'none'}"], folder=lambda c: c.output) == 0
    assert not (tmp_path / "none").exists()


def test_what_was_said_before_the_folder_was_made_is_kept(tmp_path):
    folder = tmp_path / "run"
    with Transcript(folder / "log.txt", ["job"]):
        print("first")
        folder.mkdir()
        print("second")
    assert _lines(folder)[1:3] == ["first", "second"]


def test_the_traceback_of_a_bug_is_kept(tmp_path):
    with pytest.raises(ZeroDivisionError), Transcript(tmp_path / "log.txt", ["job"]):
        _ = 1 / 0
    assert "ZeroDivisionError: division by zero" in _lines(tmp_path)


def test_without_a_terminal_progress_is_a_line_now_and_then(caplog, monkeypatch):
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    with caplog.at_level(logging.INFO, logger="jetfoundry"), progress.progress("ingest", "jet", 2000) as bar:
        bar.update(500, "3 set aside")
    assert re.fullmatch(r"ingest: 500 of 2,000 jets \(25%\), [\d,]+ jets/s, 3 set aside", caplog.messages[0])
