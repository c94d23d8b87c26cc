"""In a test's box: the answer's module as it looks from here, and proxies for objects that are not plain data.

Comparisons are made on this side. An operator between an object of the answer and a value of the test (``answer == 5``,
``answer - 0.5``) is never forwarded to the answer, which would see the value and could return anything: it raises a
TypeError, or gives False for ``==``. The exception is an object that the test made itself by calling a class
(recognized by its capital letter), because there the operator is what is tested. Such a claim of the answer about
itself, and an operator between two of its objects, sets ``claims``, which makes the evidence weak.

A test may pass something that is not plain data (a function, say) only to what it names itself: a function of the
module, a class, or a method of an object made by calling one. Such a test must run beside the answer (`Apart`). If it
is passed to anything else, that depends on what the answer returned, and an answer must not be able to bring its test
into its own process: that is `Refused`.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from .data import NOT_DATA, decode, encode, send
from .first import FIRST_WIRE

REPLIES, REQUESTS = FIRST_WIRE, FIRST_WIRE + 1
PLAIN = (list, dict, set, str, tuple)
MOST_BYTES = 4 << 20
"""Limit on all replies together."""


class Apart(BaseException):
    """The test passes something that is not plain data. `Remote.apart` records it, in case the test catches this."""


class Refused(BaseException):
    """The test passes something that is not plain data to a returned object. `Remote.refused` records it."""


class Gone(Exception):
    """The answer's process has ended, or its reply is invalid. `Remote.gone` records it, as the test may catch this."""


class Remote:
    """One answer in another box."""

    def __init__(self) -> None:
        self._replies = os.fdopen(REPLIES, "rb")
        self._left = MOST_BYTES
        self._exceptions: dict[int, type] = {}
        self.claims = False
        self.apart = ""
        self.gone = ""
        self.refused = ""
        self.raised: BaseException | None = None

    def module(self, name: str) -> types.ModuleType:
        """The answer's module, which can also be imported as ``name``."""
        first = self._reply()
        names, itself = first.get("names"), self._value(first)
        if not isinstance(names, list) or not isinstance(itself, Thing):
            raise Gone("the program says what is no reply")
        module = RemoteModule(name)
        module.__dict__.update(_remote=self, __all__=[str(n) for n in names], _itself=itself)
        sys.modules[name] = module
        return module

    def ask(self, do: str, *args: Any, **kwargs: Any) -> Any:
        to = args[0] if args and isinstance(args[0], Thing) else None
        sent = [encode(argument, lambda thing: self._number(thing, to)) for argument in args]
        named = {name: encode(value, lambda thing: self._number(thing, to)) for name, value in kwargs.items()}
        try:
            send(REQUESTS, {"do": do, "args": sent, "kwargs": named})
        except BrokenPipeError:
            raise self._lost("the program has ended") from None
        try:
            reply = self._reply()
        except StopIteration as error:
            if do == "next":
                raise
            # In a test's map() or all() it would end the test's own loop, which would then have tested nothing.
            raise RuntimeError(f"the program raised StopIteration: {error}") from None
        if isinstance(reply.get("printed"), str):
            sys.stdout.write(reply["printed"])
        for argument, after in zip(args, reply.get("arguments", ()), strict=False):
            _update(argument, self._value({"value": after}))
        return self._value(reply)

    def _reply(self) -> dict[str, Any]:
        try:
            line = self._replies.readline(self._left)
            self._left -= len(line)
            reply = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise self._lost("the program has ended, or said more than it may")
        if "error" in reply:
            try:
                error = self._handle(reply["error"]["type"])(str(reply["error"]["text"]))
            except NOT_DATA:
                error = self._lost("the program says what is no reply")
            self.raised = error
            raise error
        return reply

    def _value(self, reply: dict[str, Any]) -> Any:
        try:
            return decode(reply["value"], self._handle)
        except NOT_DATA:
            raise self._lost("the program returned what is no data") from None

    def _lost(self, why: str) -> Gone:
        self.gone = self.gone or why
        return Gone(why)

    def _handle(self, handle: Any) -> Any:
        number, kind, base = handle
        if not base:
            return Thing(self, int(number), str(kind))
        if number not in self._exceptions:
            found = getattr(builtins, base, None)
            parent = found if isinstance(found, type) and issubclass(found, BaseException) else Exception
            if parent.__name__ == kind:
                self._exceptions[number] = parent
            else:
                self._exceptions[number] = type(str(kind), (parent,), {"_number": number})
        return self._exceptions[number]

    def _number(self, thing: Any, to: Thing | None) -> int:
        """The number to send for an object that is not plain data, if it is one of the answer's own."""
        if isinstance(thing, Thing):
            return thing._number
        if isinstance(number := getattr(thing, "_number", None), int):
            return number
        if isinstance(thing, types.ModuleType):
            return int(thing._itself._number)
        if to is None or not to._role or isinstance(thing, BaseException):
            raise self._refusal(to, type(thing).__name__)
        self.apart = f"the test hands over an object that is no data ({type(thing).__name__})"
        raise Apart(self.apart)

    def _refusal(self, to: Thing | None, kind: str) -> BaseException:
        """The exception to raise instead. If plain data has the called method, the answer is to blame: `Gone`."""
        name = to._kind[:40] if to is not None else "the program"
        if to is not None and any(hasattr(plain, to._method) for plain in PLAIN):
            what = f"a {to._of[:40]} where plain data is asked for"
            self.gone = self.gone or f"{what} (its {to._method} is given a {kind})"
            return Gone(self.gone)
        self.refused = f'the test hands a {kind} to what the program returned ({name}): say "beside": true in it'
        return Refused(self.refused)


def _update(argument: Any, after: Any) -> None:
    """Apply the changes that the answer made in place to a list, dict or set."""
    if type(argument) is list and type(after) is list:
        argument[:] = after
    elif type(argument) is type(after) and isinstance(argument, dict | set):
        argument.clear()
        argument.update(after)


class RemoteModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_remote":
            raise AttributeError(name)
        found = self._remote.ask("getattr", self._itself, name)
        if isinstance(found, Thing):
            found.__dict__["_role"] = "class" if name[:1].isupper() else "function"
        return found

    def __dir__(self) -> list[str]:
        return list(self.__dict__["__all__"])


class Thing:
    """A proxy of an object of the answer. Operations on it are executed in the answer's box."""

    _remote: Remote
    _number: int
    _kind: str
    _made: bool
    _role: str
    """What the test itself took it for: "class", "made" by calling one, "function"; empty for anything returned."""
    _of: str
    _method: str
    """For a method of a returned object: the object's type (``_of``) and the method's name."""

    def __init__(self, remote: Remote, number: int, kind: str) -> None:
        self.__dict__.update(_remote=remote, _number=number, _kind=kind, _made=False, _role="", _of="", _method="")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__") and name not in ("__name__", "__doc__"):
            raise AttributeError(name)
        found = self._remote.ask("getattr", self, name)
        if isinstance(found, Thing):
            role = "function" if self._role in ("class", "made") else ""
            found.__dict__.update(_role=role, _of=self._kind, _method="" if role else name)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        self._remote.ask("setattr", self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._remote.ask("call", self, *args, **kwargs)
        if isinstance(result, Thing) and self._kind == "type" and result._kind[:1].isupper():
            result.__dict__["_made"] = True
        if isinstance(result, Thing) and self._role == "class":
            result.__dict__["_role"] = "made"
        return result

    def __iter__(self) -> Iterator[Any]:
        return self._remote.ask("iter", self)

    def __hash__(self) -> int:
        return hash(self._number)

    def __eq__(self, other: object) -> Any:
        return _operate("eq", self, other, otherwise=NotImplemented)

    def __ne__(self, other: object) -> Any:
        return _operate("ne", self, other, otherwise=NotImplemented)

    def __contains__(self, value: Any) -> Any:
        if self._made or isinstance(value, Thing):
            return _operate("contains", self, value)
        return any(item == value for item in self)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Thing) and bool(self._remote.ask("isinstance", value, self))


def _operate(do: str, thing: Thing, other: Any, turned: bool = False, otherwise: Any = None) -> Any:
    if not (isinstance(other, Thing) or thing._made):
        if otherwise is not None:
            return otherwise
        raise TypeError(f"the answer is no data (a {thing._kind}), and is not asked to compare itself")
    thing._remote.claims = True
    return thing._remote.ask(do, *((other, thing) if turned else (thing, other)))


def _alone(do: str) -> Callable[..., Any]:
    return lambda self, *args: self._remote.ask(do, self, *args)


def _between(do: str, turned: bool = False) -> Callable[[Thing, Any], Any]:
    return lambda self, other: _operate(do, self, other, turned)


for _do in ("len", "bool", "int", "float", "str", "repr", "next", "reversed", "neg", "pos", "abs", "invert"):
    setattr(Thing, f"__{_do}__", _alone(_do))
for _do in ("getitem", "setitem", "delitem", "enter"):
    setattr(Thing, f"__{_do}__", _alone(_do))
Thing.__exit__ = lambda self, *_: self._remote.ask("exit", self)  # type: ignore[attr-defined]
for _do in ("lt", "le", "gt", "ge"):
    setattr(Thing, f"__{_do}__", _between(_do))
for _do in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor"):
    setattr(Thing, f"__{_do.strip('_')}__", _between(_do))
    setattr(Thing, f"__r{_do.strip('_')}__", _between(_do, turned=True))
