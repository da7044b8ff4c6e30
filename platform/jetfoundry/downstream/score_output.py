"""Files of scored jets: where they go, whether they are already there, and how they are written.

One Parquet or ROOT file for all inputs, in order, or a folder with one file for each input. Row i is entry i of the
input, scored or not, so that the TTree `scores` can be a friend of the tree it was made of (TTree::AddFriend).

A file appears whole, or not at all, and says what it was made of: model, inputs, options. What is there from the same
is kept, so that an interrupted job goes on with the next file; anything else is never overwritten.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import uproot

from jetfoundry import files
from jetfoundry.data.inventory import Source
from jetfoundry.data.reader import DamagedFile, decoding
from jetfoundry.errors import ConfigError, InputError

__all__ = ["TREE", "Format", "Output", "Sink", "is_there", "plan_outputs", "read_about", "writing"]

TREE = "scores"
"""Name of the TTree."""

Format: TypeAlias = Literal["", "root", "parquet"]

_SUFFIXES: dict[str, Format] = {".root": "root", ".parquet": "parquet"}
_MADE_OF = "made_of"
_ROWS = 10_000  # jets of one row group or basket, at least
_ZLIB = uproot.ZLIB(1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """A file to be written: the inputs that it holds, in order, and what it says about itself (text by name)."""

    path: Path
    format: Format
    sources: tuple[Source, ...]
    about: Mapping[str, str]


def plan_outputs(
    output: str, wanted: Format, sources: Sequence[Source], about: Mapping[str, Any], made_of: Mapping[str, Any]
) -> list[Output]:
    """One file if `output` ends with .root or .parquet, else a folder with a file named after each input.

    In a folder the format '' is that of the input. `about` goes into each file as JSON, `made_of` is what decides
    whether a file that is there is the same. ConfigError or InputError where names or formats do not fit.
    """

    def plan(path: Path, kind: Format, some: tuple[Source, ...]) -> Output:
        identity = {**made_of, "inputs": [[source.path, source.size, source.mtime_ns] for source in some]}
        facts = {**about, "inputs": [source.path for source in some], _MADE_OF: identity}
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
        return Output(path=path, format=kind, sources=some, about=texts)

    target = files.place(output)
    suffix = "" if target.is_dir() else target.suffix
    if suffix in _SUFFIXES:
        if wanted not in ("", _SUFFIXES[suffix]):
            msg = f"format={wanted} does not go with output={output}"
            raise ConfigError(msg)
        return [plan(target, _SUFFIXES[suffix], tuple(sources))]
    found: dict[Path, Output] = {}
    for source in sources:
        kind: Format = wanted or ("parquet" if source.kind == "parquet" else "root")
        path = target / f"{Path(source.path).stem}.{kind}"
        if path in found:
            msg = f"{source.path} and {found[path].sources[0].path} would both become {path}; score them one by one"
            raise InputError(msg)
        found[path] = plan(path, kind, (source,))
    return list(found.values())


def is_there(output: Output) -> bool:
    """Whether the file exists with the same model, inputs and options; InputError if it exists and is another one."""
    if not output.path.exists():
        return False
    before, now = read_about(output.path).get(_MADE_OF), json.loads(output.about[_MADE_OF])
    if before is None:
        msg = f"{output.path}: exists and is no file of scores; choose another output"
        raise InputError(msg)
    was = json.loads(before)
    differing = [name for name in now if was.get(name) != now[name]]
    if differing:
        what = ", ".join(f"{name} (was {_short(was.get(name))}, now {_short(now[name])})" for name in differing)
        msg = f"{output.path}: exists, made of another {what}; choose another output or delete it"
        raise InputError(msg)
    return True


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def read_about(path: str | Path) -> dict[str, str]:
    """What a file says about itself, {} if nothing: `classes`, `inputs`, `model_hash`, `discriminants`, `made_of`."""
    # Whatever cannot be read is not ours.
    with contextlib.suppress(DamagedFile), decoding(str(path)), files.opened(path) as source:
        if files.place(path).suffix == ".parquet":
            return {key.decode(): value.decode() for key, value in (pq.read_metadata(source).metadata or {}).items()}
        with uproot.open(source) as root:
            texts = [name for name, kind in root.classnames(cycle=False).items() if kind == "TObjString"]
            return {name: str(root[name]) for name in texts}
    return {}


class Sink:
    """An open output: `add` tables; what `about` says at the end goes into the file."""

    def __init__(self, append: Callable[[pa.Table], None], about: dict[str, str]) -> None:
        self.about = about
        self._append, self._waiting, self._rows = append, list[pa.Table](), 0

    def add(self, table: pa.Table) -> None:
        """Append the rows of `table`; they wait in memory for others, some 10,000."""
        self._waiting.append(table)
        self._rows += table.num_rows
        if self._rows >= _ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._rows:
            self._append(pa.concat_tables(self._waiting).combine_chunks())
        self._waiting, self._rows = [], 0


@contextlib.contextmanager
def writing(output: Output) -> Iterator[Sink]:
    """The file, open to be written; it appears at the end."""
    about = dict(output.about)
    write = _write_parquet if output.format == "parquet" else _write_root
    with files.committed(output.path) as temporary, write(temporary, about) as append:
        sink = Sink(append, about)
        yield sink
        sink.flush()


@contextlib.contextmanager
def _write_parquet(path: Path, about: dict[str, str]) -> Iterator[Callable[[pa.Table], None]]:
    with contextlib.ExitStack() as stack:
        writer: Any = None

        def append(table: pa.Table) -> None:
            nonlocal writer
            writer = writer or stack.enter_context(pq.ParquetWriter(path, table.schema, compression="zstd"))
            writer.write_table(table)

        yield append
        writer.add_key_value_metadata(about)


@contextlib.contextmanager
def _write_root(path: Path, about: dict[str, str]) -> Iterator[Callable[[pa.Table], None]]:
    with uproot.recreate(path, compression=_ZLIB) as root:
        tree: Any = None

        def append(table: pa.Table) -> None:
            nonlocal tree
            branches = {name: _branch(table[name]) for name in table.column_names}
            if tree is None:
                types = {name: np.dtype((array.dtype, array.shape[1:])) for name, array in branches.items()}
                tree = root.mktree(TREE, types, title="one entry for each jet of the input, in order")
            tree.extend(branches)

        yield append
        for name, text in about.items():
            root[name] = text


def _branch(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A column as (B,), or (B, D) if it holds lists of D."""
    if not pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.to_numpy())
    flat = pa.concat_arrays([chunk.flatten() for chunk in column.chunks])
    return np.asarray(flat.to_numpy()).reshape(-1, column.type.list_size)
