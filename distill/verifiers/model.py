r"""Read a finite interpretation from text: the answer to a problem that asks for a model or a countermodel.

    p = true, q = false                              propositions; separated by commas, lines, "and"; also ``:``, "is"
    domain = {1, 2}                                  first-order: the elements
    P = {1}, R = {(1, 2), (2, 2)}                    predicates: where they hold, and nowhere else
    a = 1, f = {1: 2, 2: 1}                          constants and functions
    P(1) = true, P(2) = false, f(1) = 2, f(2) = 1    or place by place, all of them
    {"domain": [1, 2], "R": [[1, 2], [2, 2]]}        the same as JSON

The text must define every name in the formulas exactly once. A constant that is itself the name of an element means
that element. Other names are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from distill.verifiers.formula import Signature, Unreadable
from distill.verifiers.interpretation import MAX_STEPS, Interpretation, Place, TooLarge

MAX_LENGTH = 5_000
MAX_DEPTH = 6
WORTH = dict.fromkeys(("true", "t", "1", "yes", "⊤"), True) | dict.fromkeys(("false", "f", "0", "no", "⊥"), False)
TOKEN = re.compile(r"[ \t\r]+|(?P<name>\w[\w']*|[⊤⊥])|\"(?P<text>[^\"\n]*)\"|(?P<sign>:=|->|[={}()\[\],:;\n↦→∅≔])")
LATEX = ((r"\\(?:text|mathrm)\s?\{([^{}]*)\}", r"\1"), (r"\\([{}])", r"\1"), (r"\\(?:mapsto|to)\b", "->"), (r"\$", " "))
IS = ("=", ":", ":=", "≔", "is")
MAPS_TO = (":", "->", "→", "↦", "=")
BETWEEN = (",", ";", "\n", "and")
CLOSING = {"(": ")", "[": "]", "{": "}"}


def read(text: str, signature: Signature) -> Interpretation:
    """The interpretation in ``text`` of the names in ``signature``. Raises `Unreadable` if it is none or incomplete."""
    assignments = _Reader(_tokens(text)).read()
    if "domain" in assignments.whole:
        domain = _elements(assignments.whole["domain"])
    elif signature.functions or any(signature.predicates.values()):
        raise Unreadable("it names no domain")
    else:
        domain = ("1",)
    predicates, functions = signature.predicates.items(), signature.functions.items()
    return Interpretation(
        domain,
        {name: _truth_value(name, assignments.of(name, 0, domain)[()]) for name, count in predicates if not count},
        {name: _predicate(name, count, domain, assignments) for name, count in predicates if count},
        {name: _function(name, count, domain, assignments) for name, count in functions},
    )


@dataclass
class _Assignments:
    """The value given to each name as a whole (a name, a list or a mapping), and at single places (argument tuples)."""

    whole: dict[str, Any] = field(default_factory=dict)
    places: dict[str, dict[Place, Any]] = field(default_factory=dict)

    def add(self, name: str, place: Place, value: Any) -> None:
        if place in self.places.get(name, {}) or name in self.whole or (not place and name in self.places):
            raise Unreadable(f"it says twice what {_written(name, place)} is")
        if place:
            self.places.setdefault(name, {})[place] = value
        else:
            self.whole[name] = value

    def of(self, name: str, count: int, domain: Place) -> dict[Place, Any]:
        """The value of ``name`` at each place of the domain."""
        if len(domain) ** count > MAX_STEPS:
            raise TooLarge
        whole = self.whole.get(name)
        found = self.places.get(name, {})
        if count and isinstance(whole, dict):
            found = {_place(key, count, domain, name): value for key, value in whole.items()}
        elif not count and name in self.whole:
            found = {(): whole}
        for place in product(domain, repeat=count):
            if place not in found:
                raise Unreadable(f"it does not say what {_written(name, place)} is")
        return {place: value for place, value in found.items() if len(place) == count}


def _predicate(name: str, count: int, domain: Place, assignments: _Assignments) -> frozenset[Place]:
    whole = assignments.whole.get(name)
    if isinstance(whole, list):
        return frozenset(_place(item, count, domain, name) for item in whole)
    return frozenset(place for place, value in assignments.of(name, count, domain).items() if _truth_value(name, value))


def _function(name: str, count: int, domain: Place, assignments: _Assignments) -> dict[Place, str]:
    if not count and name not in assignments.whole and name in domain:
        return {(): name}
    values = assignments.of(name, count, domain)
    if not all(isinstance(value, str) and value in domain for value in values.values()):
        raise Unreadable(f"a value of {name!r} is not in the domain")
    return values


def _elements(found: Any) -> Place:
    elements = tuple(dict.fromkeys(found if isinstance(found, list) else ()))
    if not elements or not all(isinstance(element, str) for element in elements):
        raise Unreadable("the domain is not a list of names")
    return elements


def _place(item: Any, count: int, domain: Place, name: str) -> Place:
    """A tuple of elements. It may be written as the element alone if there is one, and as "1,2" in a JSON key."""
    if isinstance(item, str):
        place: Place = (item,) if count == 1 else tuple(re.findall(r"[\w']+", item))
    else:
        place = tuple(item) if isinstance(item, list | tuple) else ()
    if len(place) != count:
        raise Unreadable(f"a place of {name!r} has not {count} elements")
    if not all(isinstance(element, str) and element in domain for element in place):
        raise Unreadable(f"a place of {name!r} is not in the domain")
    return place


def _truth_value(name: str, value: Any) -> bool:
    if not isinstance(value, str) or value.lower() not in WORTH:
        raise Unreadable(f"what {name!r} is, is neither true nor false")
    return WORTH[value.lower()]


def _written(name: str, place: Place) -> str:
    return f"{name}({', '.join(place)})" if place else name


class _Reader:
    """Reads entries ``name is value`` with separators between them, optionally all in one pair of braces."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.at = 0

    def read(self) -> _Assignments:
        assignments = _Assignments()
        braced = self._take("{")
        while True:
            while self._take(*BETWEEN):
                pass
            if braced and self._take("}"):
                braced = False
                continue
            if self._next() == "":
                break
            self._entry(assignments)
        if braced:
            raise Unreadable("'}' is missing")
        if not (assignments.whole or assignments.places):
            raise Unreadable("it says nothing")
        return assignments

    def _entry(self, assignments: _Assignments) -> None:
        name = self._name()
        place = tuple(self._many(")", 0)) if self._take("(") else ()
        if not self._take(*IS):
            raise Unreadable(f"after {_short(_written(name, place))!r} it does not say what that is")
        value = self._value(0)
        if name == "domain" and isinstance(value, str):
            value = [value, *self._bare_names()]
        if not all(isinstance(element, str) for element in place):
            raise Unreadable(f"a place of {name!r} is no list of names")
        assignments.add(name, place, value)

    def _bare_names(self) -> Iterator[str]:
        """The remaining names in ``domain: 1, 2, 3``, up to the next entry."""
        while self._next() == "," and _is_name(self.tokens[self.at + 1]) and self.tokens[self.at + 2] not in (*IS, "("):
            self.at += 1
            yield self._name()

    def _value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        if self._take("∅"):
            return []
        for opening, closing in CLOSING.items():
            if self._take(opening):
                return self._group(closing, depth)
        return self._name()

    def _group(self, closing: str, depth: int) -> Any:
        """A list, a tuple (for round brackets) or a mapping. Their items are names or further groups."""
        items = list(self._many(closing, depth))
        if items and all(isinstance(item, _Pair) for item in items):
            pairs = [(tuple(pair.key) if isinstance(pair.key, list) else pair.key, pair.value) for pair in items]
            if len(dict(pairs)) < len(pairs):
                raise Unreadable("a mapping says one thing twice")
            return dict(pairs)
        if any(isinstance(item, _Pair) for item in items):
            raise Unreadable("half a mapping")
        return tuple(items) if closing == ")" else [tuple(item) if isinstance(item, list) else item for item in items]

    def _many(self, closing: str, depth: int) -> Iterator[Any]:
        while True:
            while self._take("\n"):
                pass
            if self._take(closing):
                return
            item = self._value(depth + 1)
            yield _Pair(item, self._value(depth + 1)) if self._take(*MAPS_TO) else item
            while self._take("\n"):
                pass
            if not self._take(",", ";") and self._next() != closing:
                raise Unreadable(f"{closing!r} is missing")

    def _next(self) -> str:
        return self.tokens[self.at]

    def _take(self, *wanted: str) -> bool:
        found = self._next() in wanted
        self.at += found
        return found

    def _name(self) -> str:
        name = self._next()
        if not _is_name(name):
            raise Unreadable(f"a name is missing before {name!r}" if name else "it ends too soon")
        self.at += 1
        return name.removeprefix('"')


@dataclass(frozen=True)
class _Pair:
    key: Any
    value: Any


def _is_name(token: str) -> bool:
    return token[:1].isalnum() or token[:1] in ("_", '"', "⊤", "⊥")


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "..."


def _tokens(text: str) -> list[str]:
    """The tokens and two empty ones at the end. Quoted text keeps its first quote, so it cannot be taken for a sign."""
    if len(text) > MAX_LENGTH:
        raise Unreadable(f"longer than {MAX_LENGTH} characters")
    for pattern, by in LATEX:
        text = re.sub(pattern, by, text)
    tokens, at = [], 0
    text = text.strip().removesuffix(".")
    while at < len(text):
        found = TOKEN.match(text, at)
        if found is None:
            raise Unreadable(f"unexpected {text[at]!r}")
        at = found.end()
        if found["name"] is not None:
            tokens.append(found["name"])
        elif found["text"] is not None:
            tokens.append('"' + found["text"])
        elif found["sign"]:
            tokens.append(found["sign"])
    return [*tokens, "", ""]
