"""Encode plain data that enters or leaves a box, as JSON that distinguishes 1, 1.0 and True.

Anything that is not plain data is refused, or passed to the caller's ``unknown``, which returns a handle for it.
"""

from __future__ import annotations

import collections
import json
import os
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

DEPTH = 50
LIKE_DICT = (dict, collections.OrderedDict, collections.defaultdict, collections.Counter)
SEQUENCES: dict[str, Callable[[Any], Any]] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def encode(value: Any, unknown: Callable[[Any], Any] | None = None, depth: int = 0) -> Any:
    """Raises TypeError or ValueError for anything that is not plain data, unless ``unknown`` can take it."""
    if depth > DEPTH:
        raise ValueError("nested too deeply")
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return {"int": hex(value)}
    if kind in (float, Fraction, Decimal):
        return {kind.__name__: repr(value) if kind is float else str(value)}
    if kind is complex:
        return {"complex": [repr(value.real), repr(value.imag)]}
    if kind is bytes:
        return {"bytes": value.hex()}
    if kind is slice:
        return {"slice": [encode(part, unknown, depth + 1) for part in (value.start, value.stop, value.step)]}
    if kind.__name__ in SEQUENCES and kind is SEQUENCES[kind.__name__]:
        return {kind.__name__: [encode(item, unknown, depth + 1) for item in value]}
    if kind in LIKE_DICT:
        pairs = ((encode(k, unknown, depth + 1), encode(v, unknown, depth + 1)) for k, v in value.items())
        return {"dict": list(pairs)}
    if unknown is None:
        raise TypeError("not plain data: " + kind.__name__)
    return {"handle": unknown(value)}


def decode(value: Any, handle: Callable[[Any], Any] | None = None) -> Any:
    """The inverse of `encode`. Raises one of `NOT_DATA` for anything that it did not write."""
    if value is None or isinstance(value, bool | str):
        return value
    ((kind, inside),) = value.items()
    if kind == "int":
        return int(inside, 16)
    if kind == "complex":
        return complex(float(inside[0]), float(inside[1]))
    if kind == "dict":
        return {decode(key, handle): decode(item, handle) for key, item in inside}
    if kind == "slice":
        return slice(*(decode(part, handle) for part in inside))
    if kind == "handle" and handle is not None:
        return handle(inside)
    if kind in SEQUENCES:
        return SEQUENCES[kind](decode(item, handle) for item in inside)
    simple: dict[str, Callable[[str], Any]] = {
        "float": float, "Fraction": Fraction, "Decimal": Decimal, "bytes": bytes.fromhex,
    }  # fmt: skip
    return simple[kind](inside)


NOT_DATA = (ValueError, TypeError, AttributeError, LookupError, RecursionError, ArithmeticError)


def read_all(descriptor: int) -> bytes:
    return b"".join(iter(lambda: os.read(descriptor, 1 << 16), b""))


def send(descriptor: int, frame: object) -> None:
    """Write one frame: JSON on a line."""
    data = json.dumps(frame).encode() + b"\n"
    while data:
        data = data[os.write(descriptor, data) :]


def described(error: BaseException) -> str:
    """An exception's type and message, shortened."""
    try:
        text = f"{type(error).__name__}: {error}"[:200]
        if isinstance(error, ModuleNotFoundError) and error.name:
            known = error.name.partition(".")[0] in sys.stdlib_module_names
            return text if known else f"{text[:150]} (only the standard library is there)"
        return text
    except BaseException:
        return type(error).__name__[:200]
