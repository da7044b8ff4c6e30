"""Sums of a discriminant over the leading jets of an event, for jets that stand in a row, event after event.

The jets of an event must stand together in the input. `whole_events` cuts a stream of tables between events, so that
nothing but the last event is held back, and refuses an input in which an event comes back later.

Sums are carried as ln sum D and ln sum (1 - D): D of a float32 softmax rounds to 1 where the cut is to be (`stored`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jetfoundry.errors import InputError
from jetfoundry.evaluate.metrics import Floats

__all__ = ["Stored", "first_of_event", "leading_sum", "stored", "whole_events"]

Stored: TypeAlias = Literal["log_odds", "minus_log_one_minus", "probability"]
"""How a discriminant is written: ln(D / (1 - D)), -ln(1 - D), or D itself, which saturates."""

_LONGEST = 1000  # jets of an event: more, and the column is no event number


def stored(log_odds: npt.ArrayLike, how: Stored) -> npt.NDArray[np.floating]:
    """Discriminants of jets, given as log-odds (B,), or sums over the n jets of (B, n) with NaN where a jet is missing.

    Of a sum S = D_1 + … + D_n, `probability` is S (0 to n), `log_odds` ln(S / (n - S)), `minus_log_one_minus`
    -ln(1 - S / n): all three rise with S. The first is float64, the others need no more than float32.
    """
    jets = np.asarray(log_odds, np.float64)
    jets = jets[:, None] if jets.ndim == 1 else jets
    with np.errstate(invalid="ignore"):  # NaN stays NaN
        inside = np.logaddexp.reduce(-np.logaddexp(0, -jets), axis=1)  # ln sum D
        outside = np.logaddexp.reduce(-np.logaddexp(0, jets), axis=1)  # ln sum (1 - D)
    if how == "probability":
        return np.asarray(np.exp(inside))
    value = inside - outside if how == "log_odds" else np.log(jets.shape[1]) - outside
    return np.asarray(value, np.float32)


def leading_sum(log_odds: Floats, pt: npt.ArrayLike, first: npt.NDArray[np.bool_], jets: int, how: Stored) -> Floats:
    """The sum over the `jets` leading jets (by `pt`) of each event, the same for all its jets (B,), as `stored`.

    `first` (B,) marks the first jet of every event. NaN where an event has fewer jets, or one of the leading ones has
    no score (NaN in `log_odds`).
    """
    event = np.cumsum(first) - 1
    order = np.lexsort((-np.asarray(pt, np.float64), event))  # events stay where they are, their jets fall in pt
    rank = np.arange(len(event)) - np.flatnonzero(first)[event]
    leading = np.full((int(first.sum()), jets), np.nan)
    taken = rank < jets
    leading[event[taken], rank[taken]] = log_odds[order][taken]
    return np.asarray(stored(leading, how)[event])


def first_of_event(keys: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.bool_]:
    """Which jets (B,) differ from the one before in any of the `keys` (B,); the first does."""
    return np.concatenate([np.ones(min(1, len(keys[0])), bool), np.any([np.diff(key) != 0 for key in keys], axis=0)])


def whole_events(
    tables: Iterable[pa.Table], keys: Sequence[str], file: str = "source_file", names: Sequence[str] = ()
) -> Iterator[pa.Table]:
    """The same rows in tables that end where an event ends; a new `file` (a column, rising) is a new event.

    InputError, with the file from `names`, if an event is too long to be one, or goes on after another one began.
    """
    return _none_returns(_cut_between(tables, keys, file, names), keys, file, names)


def _cut_between(
    tables: Iterable[pa.Table], keys: Sequence[str], file: str, names: Sequence[str]
) -> Iterator[pa.Table]:
    held: pa.Table | None = None
    for table in tables:
        together = pa.concat_tables([held, table]).combine_chunks() if held else table
        if not together.num_rows:
            continue
        starts = np.flatnonzero(first_of_event(_columns(together, file, keys)))
        if (np.diff([*starts, together.num_rows]) > _LONGEST).any():
            where = _name(together[file][-1].as_py(), names)
            msg = f"{where}: {', '.join(keys)} is the same for more than {_LONGEST} jets; wanted numbers of events"
            raise InputError(msg)
        if starts[-1]:
            yield together.slice(0, starts[-1])
        held = together.slice(starts[-1])
    if held:
        yield held


def _none_returns(
    tables: Iterable[pa.Table], keys: Sequence[str], file: str, names: Sequence[str]
) -> Iterator[pa.Table]:
    """Pass tables of whole events on; the numbers of the events of one file are kept, 8 bytes each, and compared."""
    seen: list[npt.NDArray[np.int64]] = []
    current = -1
    for table in tables:
        columns = _columns(table, file, keys)
        events = np.stack(columns)[:, first_of_event(columns)]
        for number in np.unique(events[0]).tolist():
            if number != current:
                _check(seen, keys, _name(current, names))
                seen, current = [], number
            seen.append(events[1:, events[0] == number])
        yield table
    _check(seen, keys, _name(current, names))


def _columns(table: pa.Table, file: str, keys: Sequence[str]) -> list[npt.NDArray[np.int64]]:
    return [table[name].to_numpy().astype(np.int64) for name in (file, *keys)]


def _name(file: int, names: Sequence[str]) -> str:
    return names[file] if 0 <= file < len(names) else f"file {file}"


def _check(seen: Sequence[npt.NDArray[np.int64]], keys: Sequence[str], where: str) -> None:
    if not seen:
        return
    events, times = np.unique(np.concatenate(seen, axis=1), axis=1, return_counts=True)
    if (times > 1).any():
        event = ", ".join(f"{key} {value}" for key, value in zip(keys, events[:, times > 1][:, 0], strict=True))
        msg = f"{where}: the jets of an event ({event}) do not stand together; sort the input by event"
        raise InputError(msg)
