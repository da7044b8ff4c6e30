"""What every job's command line shares: `[config.yaml] key.sub=value …`, `--help`, logging, exit codes.

Exit codes: 0 done; 1 done, and a check that was asked for failed; 2 the input or configuration is at fault (one line
says why); 3 done, but some input was set aside and listed; 130 interrupted (the same command continues). An unexpected
error is a bug, with its traceback.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jetfoundry import config, ray_session
from jetfoundry.errors import ConfigError, JetFoundryError
from jetfoundry.transcript import LOG, Transcript

__all__ = ["EXIT_BAD_INPUT", "EXIT_FAILED", "EXIT_OK", "EXIT_SET_ASIDE", "run"]

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
) -> int:
    """Parse the command line into `config_class`, call `main(config)`, return the process's exit code.

    The first argument without `=` is the configuration file (`default` if there is none). With `file_key`
    that path is stored under the key of that name instead of being read as a configuration of this job (a
    data YAML or a run folder, say). `usage` is the text that `--help` prints above the table of options. `folder` gives
    the run folder, whose log.txt then keeps what the person saw (transcript.py), '' for none; a job that makes no
    folder but a file names its `log_file` instead.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    log.setLevel(logging.INFO)
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(help_text(config_class, usage))
        return EXIT_OK
    try:
        parsed = _parse(config_class, arguments, file_key, default)
    except JetFoundryError as error:
        return _complain(error)
    place = folder(parsed) if folder else ""
    path = Path(place) / LOG if place else log_file(parsed) if log_file else None
    with Transcript(path, [Path(sys.argv[0]).name, *arguments]) if path else contextlib.nullcontext():
        try:
            return main(parsed)
        except JetFoundryError as error:
            return _complain(error)
        except KeyboardInterrupt:
            sys.stderr.write("interrupted; what is committed is kept, the same command continues\n")
            return EXIT_INTERRUPTED


def _complain(error: JetFoundryError) -> int:
    sys.stderr.write(f"error: {ray_session.own_error(error) or error}\n")
    return EXIT_BAD_INPUT


def _parse(cls: type[C], arguments: Sequence[str], file_key: str | None, default: str | Path | None) -> C:
    files = [argument for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    if len(files) > 1 or (files and files[0].startswith("-")):
        msg = f"cannot read argument {files[-1]!r}: wanted one configuration file and key.sub=value"
        raise ConfigError(msg)
    path: Any = files[0] if files else default
    if file_key is None:
        return config.read(cls, path, overrides)
    tree = config.parse_overrides(overrides)
    if path is not None:
        tree.setdefault(file_key, str(path))
    return config.build(cls, tree)


def help_text(cls: Any, usage: str) -> str:
    """The usage text and one line per option: key, default, meaning."""
    rows = config.describe(cls)
    width = max((len(key) for key, _, _ in rows), default=0)
    lines = [f"  {key:<{width}}  {meaning} [{value}]" for key, value, meaning in rows]
    return usage.strip() + "\n\noptions (key=value) [default]:\n" + "\n".join(lines) + "\n"
