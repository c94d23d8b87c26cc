"""In the box: serve an answer to a test that runs in another box.

Requests arrive on one wire and replies leave on the other; both are plain data. What the test does to an object that is
not plain data (a class, a generator) is done here, through a handle. So the test's expected values never reach the
answer, and the test sees only what the answer does.

Request: ``{"do": name of an operation, "args": [...], "kwargs": {...}}``. Reply: ``value`` or ``error``, what was
printed, and the arguments if they were changed in place.
"""

from __future__ import annotations

import builtins
import io
import json
import operator
import os
import random
import sys
from collections.abc import Callable
from typing import Any

from .calls import load
from .data import decode, described, encode, read_all, send
from .first import FIRST_WIRE

REQUESTS, REPLIES = FIRST_WIRE, FIRST_WIRE + 1
NAMES = (
    "lt", "le", "eq", "ne", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_",
    "or_", "xor", "neg", "pos", "abs", "invert", "getitem", "setitem", "delitem", "contains",
)  # fmt: skip
BUILTINS = (
    "getattr", "setattr", "len", "bool", "int", "float", "str", "repr", "iter", "next", "hash", "isinstance",
    "issubclass", "reversed",
)  # fmt: skip
OPERATIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in NAMES},
    **{name: getattr(builtins, name) for name in BUILTINS},
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    "enter": lambda manager: type(manager).__enter__(manager),
    "exit": lambda manager: type(manager).__exit__(manager, None, None, None),
}


class Objects:
    """The objects that the test has handles for. A handle is [number, type's name, ""], and for an exception class
    [number, its own name, the name of its nearest built-in base]."""

    def __init__(self) -> None:
        self._held: list[Any] = []
        self._numbers: dict[int, int] = {}

    def handle(self, thing: Any) -> list[Any]:
        number = self._numbers.setdefault(id(thing), len(self._held))
        if number == len(self._held):
            self._held.append(thing)
        if isinstance(thing, type) and issubclass(thing, BaseException):
            return [number, thing.__name__, builtin_base(thing)]
        return [number, type(thing).__name__, ""]

    def number(self, thing: Any) -> int:
        """The number by which the test refers to an object."""
        return self.handle(thing)[0]

    def thing(self, number: int) -> Any:
        return self._held[number]


def builtin_base(kind: type[BaseException]) -> str:
    """The nearest built-in base class, which the test's process has too."""
    return next((base.__name__ for base in kind.__mro__ if base.__module__ == "builtins"), "Exception")


def main() -> None:
    given = json.loads(read_all(3))
    write, objects = send, Objects()
    random.seed(0)
    try:
        module = load(given["code"], given["module"])
        names = [name for name in module.__dict__ if not name.startswith("_")]
        write(REPLIES, {"names": names, "value": encode(module, objects.handle)})
    except BaseException as error:
        write(REPLIES, {"error": _error(error, objects)})
        os._exit(0)
    with os.fdopen(REQUESTS, "rb") as requests:
        for line in requests:
            write(REPLIES, _reply_to(json.loads(line), objects))
    os._exit(0)


def _reply_to(request: dict[str, Any], objects: Objects) -> dict[str, Any]:
    sys.stdout = printed = io.StringIO()
    reply: dict[str, Any] = {}
    try:
        arguments = [decode(argument, objects.thing) for argument in request["args"]]
        named = {name: decode(value, objects.thing) for name, value in request["kwargs"].items()}
        value = OPERATIONS[request["do"]](*arguments, **named)
        reply["value"] = encode(value, objects.handle)
        after = [encode(argument, objects.number) for argument in arguments]
        if after != request["args"]:
            reply["arguments"] = [encode(argument, objects.handle) for argument in arguments]
    except BaseException as error:
        reply = {"error": _error(error, objects)}
    if text := printed.getvalue():
        reply["printed"] = text
    return reply


def _error(error: BaseException, objects: Objects) -> dict[str, Any]:
    return {"type": objects.handle(type(error)), "text": described(error).partition(": ")[2]}
