"""Format rows as an aligned text table or as JSON lines. On a terminal, a table that is too wide for it has its long
cells broken into several lines; in a pipe a row is always one line."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from shutil import get_terminal_size
from textwrap import wrap
from typing import Any

WIDTH = 60
NARROW = (12, 8)
"""The least width of a column that is narrowed to fit: the second where the first is not enough."""
BETWEEN = "  "


def render(rows: Sequence[Mapping[str, Any]], width: int = WIDTH, columns: int | None = None) -> str:
    """A plain aligned table. Numbers are right-aligned; text of several lines or longer than ``width`` is cut to one
    line. Then cells are broken so that the table fits into ``columns``: by default the terminal's, if there is one."""
    if not rows:
        return "(no rows)"
    names = list(rows[0])
    cells = [[_cell(row[name], width) for name in names] for row in rows]
    right = [all(_numeric(row[name]) for row in rows) for name in names]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    widths = _fitted(widths, names, right, columns or _terminal())
    lines = [names, ["-" * w for w in widths], *cells]
    lines = [part for line in lines for part in _broken(line, widths)]
    aligned = ([c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)] for line in lines)
    return "\n".join(BETWEEN.join(line).rstrip() for line in aligned)


def _terminal() -> int | None:
    return get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None


def _fitted(widths: Sequence[int], names: Sequence[str], right: Sequence[bool], columns: int | None) -> list[int]:
    """The widths of a table of at most ``columns``: the widest texts are narrowed. Names, numbers and the first column,
    by which a row is known, are not. A table that does not fit even so keeps its widths."""
    excess = sum(widths) + len(BETWEEN) * (len(widths) - 1) - (columns or sys.maxsize)
    for least in NARROW:
        spare = [
            0 if is_right or i == 0 else max(0, width - max(least, len(name)))
            for i, (width, is_right, name) in enumerate(zip(widths, right, names, strict=True))
        ]
        if 0 < excess <= sum(spare):
            found = list(widths)
            for _ in range(excess):
                widest = max((i for i, some in enumerate(spare) if some), key=lambda i: found[i])
                found[widest] -= 1
                spare[widest] -= 1
            return found
    return list(widths)


def _broken(cells: Sequence[str], widths: Sequence[int]) -> list[list[str]]:
    """The lines of a row, of whose cells some are longer than their column."""
    parts = [[cell] if len(cell) <= w else wrap(cell, w) for cell, w in zip(cells, widths, strict=True)]
    return [list(line) for line in zip_longest(*parts, fillvalue="")]


def show(rows: Iterable[Mapping[str, Any]], as_json: bool, width: int = WIDTH) -> None:
    """Print rows for a person, cells cut to ``width``, or as JSON lines."""
    if as_json:
        for row in rows:
            print(as_line(row))
    else:
        print(render(list(rows), width))


def as_line(row: Mapping[str, Any]) -> str:
    """A row as JSON. NaN and infinity, which JSON does not have, become null."""
    try:
        return json.dumps(row, default=str, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(row), default=str, ensure_ascii=False)


def is_cut(rows: Iterable[Mapping[str, Any]], width: int = WIDTH) -> bool:
    """Whether a table of these rows shows less than they hold."""
    return any(len(str(value)) > width for row in rows for value in row.values())


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any, width: int) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e6 else f"{value:.0f}"
    return cut("".join(c if c.isprintable() else " " for c in str(value)), width)


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _numeric(value: Any) -> bool:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return True
    return isinstance(value, str) and bool(value) and value.rstrip("%").replace(".", "", 1).replace(",", "").isdigit()
