"""Repair text that cannot be stored. JSON may contain lone surrogates, which no file and no database accepts.

Used where JSON comes in from outside: replies of endpoints (`distill.engines.chat`), cells of rows
(`distill.sources.columns`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def whole_letters(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def storable(value: Any) -> Any:
    """Apply `whole_letters` to all text in plain data."""
    if isinstance(value, str):
        return whole_letters(value)
    if isinstance(value, Mapping):
        return {storable(name): storable(inner) for name, inner in value.items()}
    return [storable(inner) for inner in value] if isinstance(value, list) else value
