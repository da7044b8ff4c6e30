"""What every job's command line shares: `[config.yaml] key.sub=value …`, `--help`, logging, exit codes.

Exit codes: 0 done; 1 done, and a check that was asked for failed; 2 the input or configuration is at fault (one line
says why); 3 done, but some input was set aside and listed; 130 interrupted (the same command continues). An unexpected
error is a bug, with its traceback.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jetfoundry import config, files, ray_session, remote
from jetfoundry.errors import ConfigError, InputError, JetFoundryError
from jetfoundry.transcript import LOG, Transcript

__all__ = ["EXIT_BAD_INPUT", "EXIT_FAILED", "EXIT_OK", "EXIT_SET_ASIDE", "run"]

DRY_RUN = "dry_run"

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_SET_ASIDE, EXIT_INTERRUPTED = 0, 1, 2, 3, 130

C = TypeVar("C")

log = logging.getLogger("jetfoundry")


def run(
    main: Callable[[C], int],
    config_class: type[C],
    argv: Sequence[str] | None = None,
    *,
    usage: str = "",
    file_key: str | None = None,
    default: str | Path | None = None,
    folder: Callable[[C], str | Path] | None = None,
    log_file: Callable[[C], str | Path] | None = None,
    plan: Callable[[C], Iterable[tuple[str, str]]] | None = None,
) -> int:
    """Parse the command line into `config_class`, call `main(config)`, return the process's exit code.

    The first argument without `=` is the configuration file (`default` if there is none). With `file_key`
    that path is stored under the key of that name instead of being read as a configuration of this job (a
    data YAML or a run folder, say). `usage` is the text that `--help` prints above the table of options. `folder` gives
    the run folder, whose log.txt then keeps what the person saw (transcript.py), '' for none; a job that makes no
    folder but a file names its `log_file` instead. With `dry_run=true` on the command line, `plan` is called in place
    of `main`, and its rows (what, value) are printed; it starts and writes nothing.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    log.setLevel(logging.INFO)
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(help_text(config_class, usage, dry_run=plan is not None))
        return EXIT_OK
    try:
        dry, wanted = _take_dry_run(arguments) if plan else (False, arguments)
        parsed = _parse(config_class, wanted, file_key, default)
        if dry and plan:
            return _show(plan(parsed))
    except JetFoundryError as error:
        return _complain(error)
    try:
        place = folder(parsed) if folder else ""
        path = files.place(place) / LOG if place else log_file(parsed) if log_file else None
        transcript = Transcript(path, [Path(sys.argv[0]).name, *arguments]) if path else contextlib.nullcontext()
    except JetFoundryError as error:
        return _complain(error)
    with transcript:
        try:
            return main(parsed)
        except JetFoundryError as error:
            return _complain(error)
        except Exception as error:
            if not remote.is_from_server(error):
                raise
            return _complain(InputError(f"storage: {type(error).__name__}: {error}; the same command continues"))
        except KeyboardInterrupt:
            sys.stderr.write("interrupted; what is committed is kept, the same command continues\n")
            return EXIT_INTERRUPTED


def _take_dry_run(arguments: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether one of the arguments is `dry_run=true`, and the others. It is no key of a job: no run has it."""
    given = [argument for argument in arguments if argument.partition("=")[0] == DRY_RUN and "=" in argument]
    dry = False
    for argument in given:
        value = config.parse_overrides([argument])[DRY_RUN].value
        if not isinstance(value, bool):
            msg = f"{DRY_RUN}: wanted true or false, got {value!r}"
            raise ConfigError(msg)
        dry = value
    return dry, [argument for argument in arguments if argument not in given]


def _show(rows: Iterable[tuple[str, str]]) -> int:
    rows = [*rows, ("dry run", "nothing was started, nothing was written")]
    width = max(len(what) for what, _ in rows)
    sys.stdout.writelines(f"{what:<{width}}  {value}\n" for what, value in rows)
    return EXIT_OK


def _complain(error: JetFoundryError) -> int:
    sys.stderr.write(f"error: {ray_session.own_error(error) or error}\n")
    return EXIT_BAD_INPUT


def _parse(cls: type[C], arguments: Sequence[str], file_key: str | None, default: str | Path | None) -> C:
    named = [argument for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    if len(named) > 1 or (named and named[0].startswith("-")):
        msg = f"cannot read argument {named[-1]!r}: wanted one configuration file and key.sub=value"
        raise ConfigError(msg)
    path: Any = named[0] if named else default
    if file_key is None:
        return config.read(cls, path, overrides)
    tree = config.parse_overrides(overrides)
    if path is not None:
        tree.setdefault(file_key, str(path))
    return config.build(cls, tree)


def help_text(cls: Any, usage: str, *, dry_run: bool = False) -> str:
    """The usage text and one line per option: key, default, meaning."""
    rows = config.describe(cls)
    if dry_run:
        rows.append((DRY_RUN, "False", "only say what would be done: files, jets, resources, steps, expected time"))
    width = max((len(key) for key, _, _ in rows), default=0)
    lines = [f"  {key:<{width}}  {meaning} [{value}]" for key, value, meaning in rows]
    return usage.strip() + "\n\noptions (key=value) [default]:\n" + "\n".join(lines) + "\n"
