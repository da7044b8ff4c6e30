"""Rows of results as text: one way to write numbers, for the terminal and for the HTML report.

A table is a list of rows, each a mapping of column name to value; the columns are those of all rows, in order of
appearance. None, "no such number", is written as a dash.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jetfoundry.evaluate.metrics import CONFIDENCE

__all__ = ["Rows", "columns", "format_cell", "format_rejection", "is_figure", "terminal_table"]

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


def format_rejection(point: Mapping[str, Any]) -> str:
    """One rejection of `validation.evaluate_scores`: `120 ± 9`, `> 299 (95% CL)`, or `–`."""
    if point["rejection"] is None:
        return "–"
    if point["is_lower_bound"]:
        return f"> {point['rejection']:.3g} ({CONFIDENCE:.0%} CL)"
    digits = max(0, 1 - math.floor(math.log10(point["error"]))) if point["error"] else 0
    return f"{point['rejection']:,.{digits}f} ± {point['error']:,.{digits}f}"


def columns(rows: Rows) -> list[str]:
    """Names of all columns in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def is_figure(values: Sequence[Any]) -> bool:
    """Whether a column holds figures (to be aligned right): numbers, or text that starts like one."""
    shown = [str(value) for value in values if value is not None]
    return bool(shown) and all(text.lstrip("><~±+-– ")[:1].isdigit() or text in ("–", "nan") for text in shown)


def terminal_table(rows: Rows) -> str:
    """Plain-text table with a header and a rule, figures aligned right; '' without rows."""
    names = columns(rows)
    if not names:
        return ""
    cells = [[format_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    right = [is_figure([row.get(name) for row in rows]) for name in names]

    def line(texts: Sequence[str]) -> str:
        padded = (text.rjust(w) if r else text.ljust(w) for text, w, r in zip(texts, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(names), "  ".join("─" * width for width in widths), *(line(texts) for texts in cells)])
