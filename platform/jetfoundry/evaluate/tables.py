"""Rows of results as text: one way to write numbers, for the terminal and for the HTML report.

A table is a list of rows, each a mapping of column name to value; the columns are those of all rows, in order of
appearance. None, "no such number", is written as a dash.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jetfoundry.evaluate.metrics import CONFIDENCE

__all__ = [
    "Rows",
    "cell_texts",
    "columns",
    "format_cell",
    "format_column",
    "format_rejection",
    "is_figure",
    "terminal_table",
]

_FIGURE = re.compile(r"–|nan|bound|[▲▼≈?<>~±+\- ]*\d[\d.,]*(e[+-]?\d+)?%?( .*)?")

Rows = Sequence[Mapping[str, Any]]


def format_cell(value: Any) -> str:
    """Four significant digits, thousands separated by commas, `–` for None and NaN.

    >>> format_cell(1234567), format_cell(0.123456), format_cell(98765.4), format_cell(None)
    ('1,234,567', '0.1235', '98,765', '–')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"
    return str(value)


def format_column(values: Sequence[Any]) -> list[str]:
    """A column's cells; floats of similar size share their number of decimals, so that points stand below each other.

    >>> format_column([0.644, 1.9021, None]), format_column([0.5, 2_000_000.0])
    (['0.644', '1.902', '–'], ['0.5', '2,000,000'])
    """
    sizes = [abs(value) for value in values if isinstance(value, float) and math.isfinite(value) and value != 0]
    whole = all(size == int(size) for size in sizes)
    if whole or min(sizes) <= 1e-3 or max(sizes) >= min(1e4, 1e3 * min(sizes)):
        return [format_cell(value) for value in values]
    decimals = 3 - math.floor(math.log10(max(sizes)))
    return [
        f"{value:.{decimals}f}" if isinstance(value, float) and math.isfinite(value) else format_cell(value)
        for value in values
    ]


def format_rejection(point: Mapping[str, Any]) -> str:
    """One rejection of `validation.evaluate_scores`: `120 ± 9`, `> 299 (95% CL)`, or `–`."""
    if point["rejection"] is None:
        return "–"
    if point["is_lower_bound"]:
        step = 10.0 ** (math.floor(math.log10(point["rejection"])) - 2)  # three digits; a bound is rounded down
        bound = math.floor(point["rejection"] / step) * step
        return f"> {bound:,.{max(0, -math.floor(math.log10(step)))}f} ({CONFIDENCE:.0%} CL)"
    digits = max(0, 1 - math.floor(math.log10(point["error"]))) if point["error"] else 0
    return f"{point['rejection']:,.{digits}f} ± {point['error']:,.{digits}f}"


def columns(rows: Rows) -> list[str]:
    """Names of all columns in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def cell_texts(rows: Rows) -> list[list[str]]:
    """The text of every cell, one list per row, in the order of `columns`."""
    return [
        list(row) for row in zip(*(format_column([row.get(n) for row in rows]) for n in columns(rows)), strict=True)
    ]


def is_figure(values: Sequence[Any]) -> bool:
    """Whether a column holds figures (to be aligned right): numbers, or text such as `120 ± 9`, `> 299 (95% CL)`."""
    shown = [str(value) for value in values if value is not None]
    return bool(shown) and all(_FIGURE.fullmatch(text) for text in shown)


def terminal_table(rows: Rows) -> str:
    """Plain-text table with a header and a rule, figures aligned right; '' without rows."""
    names = columns(rows)
    if not names:
        return ""
    cells = cell_texts(rows)
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    right = [is_figure([row.get(name) for row in rows]) for name in names]

    def line(texts: Sequence[str]) -> str:
        padded = (text.rjust(w) if r else text.ljust(w) for text, w, r in zip(texts, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(names), "  ".join("─" * width for width in widths), *(line(texts) for texts in cells)])
