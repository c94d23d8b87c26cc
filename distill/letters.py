"""Text that can be stored. JSON may spell halves of letters, lone surrogates, which no file and no database takes.

Used where JSON comes in from outside: replies of endpoints (`distill.engines.chat`), cells of rows (`distill.columns`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def whole_letters(text: str) -> str:
    """The text; two halves that stand together are a letter, one alone is the sign for what cannot be read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def storable(value: Any) -> Any:
    """The same for all text in plain data."""
    if isinstance(value, str):
        return whole_letters(value)
    if isinstance(value, Mapping):
        return {storable(name): storable(inner) for name, inner in value.items()}
    return [storable(inner) for inner in value] if isinstance(value, list) else value
