"""Format rows as an aligned text table or as JSON lines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WIDTH = 60


def render(rows: Sequence[Mapping[str, Any]], width: int = WIDTH) -> str:
    """A plain aligned table. Numbers are right-aligned; long and multi-line text is cut to one line."""
    if not rows:
        return "(no rows)"
    names = list(rows[0])
    cells = [[_cell(row[name], width) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    right = [all(_numeric(row[name]) for row in rows) for name in names]
    lines = [names, ["-" * w for w in widths], *cells]
    aligned = ([c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in aligned)


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
