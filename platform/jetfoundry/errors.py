"""The errors a user can meet, and the nearest-name hint that goes into their messages.

Every message names where it happened (file, entry, field), what was wanted and what came. Jobs print
such an error as one line and exit with code 2 (`cli.py`); anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["CheckpointError", "ClusterError", "ConfigError", "FormulaError", "InputError", "JetFoundryError", "nearest"]

_LONGEST_MESSAGE = 4000  # characters


class JetFoundryError(Exception):
    """Base of all errors that are the input's fault, not the program's.

    The text is kept apart from `args`, to which Ray Data appends hints on retries when an error passes through it.
    What a file holds may be part of it, so it is cut where it is very long and has no signs that steer a terminal.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        if len(text) > _LONGEST_MESSAGE:
            text = f"{text[: _LONGEST_MESSAGE // 2]} … {text[-_LONGEST_MESSAGE // 2 :]}"
        self._text = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)

    def __str__(self) -> str:
        return self._text


class ConfigError(JetFoundryError):
    """A recipe, data YAML, task file or command line that cannot be used."""


class FormulaError(ConfigError):
    """A formula in a YAML file that does not parse, or names something unknown or forbidden."""


class InputError(JetFoundryError):
    """A data file, shard or jet that cannot be used."""


class CheckpointError(JetFoundryError):
    """A checkpoint or run folder that does not belong to this configuration."""


class ClusterError(JetFoundryError):
    """Ray, or a machine that it ran on, went away; the same command continues."""


def nearest(name: str, options: Iterable[str], n: int = 3) -> str:
    """Say which of `options` look most like `name`: a phrase to append to an error message.

    >>> nearest("part_ptt", ["part_pt", "part_eta", "jet_pt"], n=1)
    'nearest: part_pt'
    """
    known = sorted(set(options))
    close = difflib.get_close_matches(name, known, n=n, cutoff=0.4)
    if close:
        return "nearest: " + ", ".join(close)
    shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
    return f"known: {shown}" if known else "nothing is known here"
