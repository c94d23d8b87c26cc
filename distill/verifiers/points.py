"""Evaluate a tree at a few points, with a bound on the rounding error, independent of any algebra system.

The points depend only on the variables' names. Agreement at all of them is evidence, not proof; a clear difference at
one is a disproof. Values are complex floats, so towers of exponents cost nothing: an overflow is `Unreadable`.
Variables only take positive values, since answers use sqrt and log as if they were positive. A notation with two
meanings is `Unreadable` too: an odd root of a negative number, written as a power.

Every value carries a bound on the error of the operations before it, so ``\\sin\\pi`` does not differ from 0, and
rounding does not make equal expressions that cancel look different.
"""

from __future__ import annotations

import cmath
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from distill.verifiers.tree import Node, Unreadable

POINTS = 4
EQUAL, DIFFERENT, MOST_ERROR = 1e-13, 1e-12, 1e-6
"""Relative differences: two values are equal up to the first, and differ above the second. The comparison is undecided
between them, or if the values may be wrong by more than the third."""
ROUNDING = 4e-16
SAFETY = 100
"""The error bound is of first order, so a difference counts only above this many times the bound."""

CONSTANTS: Mapping[str, complex] = {"e": math.e, "i": 1j, "pi": math.pi}
FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "ln": cmath.log, "exp": cmath.exp,
    "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh, "sqrt": cmath.sqrt, "abs": abs,
    "arcsin": cmath.asin, "arccos": cmath.acos, "arctan": cmath.atan,
    "cot": lambda z: 1 / cmath.tan(z), "sec": lambda z: 1 / cmath.cos(z), "csc": lambda z: 1 / cmath.sin(z),
}  # fmt: skip


class Value(NamedTuple):
    value: complex
    error: float


class Where(NamedTuple):
    """A point. ``base`` is for a ``\\log`` that names none; ``moved`` overrides the value of one variable."""

    point: int
    base: float = math.e
    moved: tuple[str, float] | None = None

    def variable(self, name: str) -> float:
        return self.moved[1] if self.moved and self.moved[0] == name else _coordinate(name, self.point)


def agree(one: Node, other: Node) -> bool | None:
    """Whether two expressions are equal at the points; None if undecided.

    With a ``\\log`` that names no base, the answer must be the same for the natural and the decimal logarithm.
    """
    answers = set()
    for base in (math.e, 10.0) if _has_plain_log(one) or _has_plain_log(other) else (math.e,):
        ours, theirs = values(one, base), values(other, base)
        if ours is None or theirs is None:
            return None
        answers.add(_all(close(*pair) for pair in zip(ours, theirs, strict=True)))
    return answers.pop() if len(answers) == 1 else None


def close(one: Value, other: Value) -> bool | None:
    difference, size = abs(one.value - other.value), max(abs(one.value), abs(other.value))
    error = SAFETY * (one.error + other.error)
    if error > MOST_ERROR * max(size, 1.0):
        return None
    if difference <= max(EQUAL * size, error):
        return True
    return False if difference > DIFFERENT * size else None


@lru_cache(maxsize=4096)
def values(node: Node, base: float = math.e) -> tuple[Value, ...] | None:
    """The values at all points; None if one cannot be computed. Without variables, one value is repeated."""
    points = POINTS if variables(node) else 1
    try:
        found = [evaluate(node, Where(point, base)) for point in range(points)]
    except Unreadable:
        return None
    return tuple(found * (POINTS // points))


def evaluate(node: Node, where: Where) -> Value:
    """The value at one point. Raises `Unreadable` if there is none."""
    try:
        found = _evaluated(node, where)
    except (OverflowError, ZeroDivisionError, ValueError, RecursionError) as error:
        raise Unreadable(f"cannot be evaluated: {error}") from error
    if not cmath.isfinite(found.value) or not math.isfinite(found.error):
        raise Unreadable("too large to evaluate")
    return found


def _all(answers: Iterable[bool | None]) -> bool | None:
    """False if any is False, else None if any is None, else True."""
    known = set(answers)
    return False if False in known else None if None in known else True


def _has_plain_log(node: Node) -> bool:
    return (node.kind, node.name) == ("call", "log") or any(_has_plain_log(part) for part in _below(node))


def variables(node: Node) -> set[str]:
    if node.kind == "name":
        return {node.name} - CONSTANTS.keys()
    return {name for part in _below(node) for name in variables(part)}


def _below(node: Node) -> Iterable[Node]:
    return (part for part in node.parts if isinstance(part, Node))


@lru_cache(maxsize=1024)
def _coordinate(name: str, point: int) -> float:
    """A positive number that depends only on the variable's name and the point."""
    digest = hashlib.blake2b(f"{name}/{point}".encode(), digest_size=8).digest()
    return 0.3 + 2.7 * int.from_bytes(digest, "little") / 2**64


def _evaluated(node: Node, where: Where) -> Value:
    if node.kind == "number":
        return _rounded(complex(float(node.parts[0])))
    if node.kind == "name":
        return _rounded(CONSTANTS.get(node.name) or complex(where.variable(node.name)))
    if node.kind not in OPERATIONS:
        raise Unreadable(f"a {node.kind} has no value")
    parts = [_evaluated(part, where) for part in node.parts]
    return OPERATIONS[node.kind](parts, node, where)


def _rounded(value: complex, error: float = 0.0) -> Value:
    """Add the value's own rounding error, and drop an imaginary part that is nothing but error."""
    error += ROUNDING * abs(value)
    imaginary = value.imag if abs(value.imag) > error else 0.0
    return Value(complex(value.real, imaginary + 0.0), error)  # + 0.0 makes 0.0 of -0.0


def _sum(one: Value, other: Value) -> Value:
    return _rounded(one.value + other.value, one.error + other.error)


def _product(one: Value, other: Value) -> Value:
    return _rounded(one.value * other.value, abs(one.value) * other.error + abs(other.value) * one.error)


def _quotient(one: Value, other: Value) -> Value:
    if abs(other.value) <= SAFETY * other.error:
        raise Unreadable("division by what may be zero")
    value = one.value / other.value
    return _rounded(value, (one.error + abs(value) * other.error) / abs(other.value))


def _called(function: Callable[[complex], complex], at: Value) -> Value:
    """Apply a function. Its error is how far the value moves when the argument moves by the argument's error."""
    value = complex(function(at.value))
    moved = abs(complex(function(at.value + at.error)) - value) if at.error else 0.0
    return _rounded(value, moved)


def _power(base: Value, exponent: Value) -> Value:
    top = exponent.value
    if exponent.error == 0 and top == 0 and base.value == 0:
        raise Unreadable("zero to the power of zero")
    if base.value == 0:
        return Value(0j, base.error) if top.real > 0 else Value(complex(math.inf), 0.0)
    if top.imag == 0 and top.real == int(top.real) and abs(top.real) <= 1000:
        value = base.value ** int(top.real)
    elif base.value.imag == 0 and base.value.real < 0 and 2 * top != int(2 * top.real):
        raise Unreadable("a root of a negative number, written as a power")
    else:
        value = base.value**top
    moved = abs(top) * base.error / abs(base.value) + abs(cmath.log(base.value)) * exponent.error
    return _rounded(value, abs(value) * moved)


def _root(inside: Value, degree: Value) -> Value:
    """The real root if the degree is odd, the principal root otherwise."""
    order = degree.value
    if order.imag or order.real != int(order.real) or not 2 <= order.real <= 1000:
        raise Unreadable("a root of another degree")
    exponent = Value(1 / order, ROUNDING)
    if inside.value.imag == 0 and inside.value.real < 0 and int(order.real) % 2:
        return _product(Value(-1 + 0j, 0.0), _power(Value(-inside.value, inside.error), exponent))
    return _power(inside, exponent) if inside.value else inside


def _factorial(at: Value) -> Value:
    n = at.value
    if n.imag or n.real < 0 or n.real > 170 or n.real != int(n.real):
        raise Unreadable("a factorial out of range")
    return _rounded(complex(math.factorial(int(n.real))))


def _binomial(upper: Value, lower: Value) -> Value:
    n, k = upper.value, lower.value
    if n.imag or k.imag or n.real != int(n.real) or k.real != int(k.real) or not 0 <= k.real <= n.real <= 1000:
        raise Unreadable("a binomial coefficient out of range")
    return _rounded(complex(math.comb(int(n.real), int(k.real))))


def _floor(at: Value) -> Value:
    """Round down. Raises `Unreadable` next to a whole number, where the error would decide."""
    nearest = abs(at.value.real - round(at.value.real))
    if at.value.imag or (0 < nearest <= SAFETY * at.error):
        raise Unreadable("too near to a whole number to round down")
    return Value(complex(math.floor(at.value.real)), 0.0)


def _call(node: Node, at: Value, where: Where) -> Value:
    if node.name == "floor":
        return _floor(at)
    if node.name == "log":
        return _quotient(_called(cmath.log, at), _rounded(complex(math.log(where.base))))
    return _called(FUNCTIONS[node.name], at)


OPERATIONS: dict[str, Callable[[list[Value], Node, Where], Value]] = {
    "sum": lambda v, _, __: _sum(v[0], v[1]),
    "product": lambda v, _, __: _product(v[0], v[1]),
    "quotient": lambda v, _, __: _quotient(v[0], v[1]),
    "power": lambda v, _, __: _power(v[0], v[1]),
    "root": lambda v, _, __: _root(v[0], v[1]),
    "negative": lambda v, _, __: _rounded(-v[0].value, v[0].error),
    "factorial": lambda v, _, __: _factorial(v[0]),
    "binomial": lambda v, _, __: _binomial(v[0], v[1]),
    "log": lambda v, _, __: _quotient(_called(cmath.log, v[1]), _called(cmath.log, v[0])),
    "call": lambda v, node, where: _call(node, v[0], where),
}
