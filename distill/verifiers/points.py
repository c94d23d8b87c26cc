"""Do two answers mean the same? Asked at random points, independently of any computer algebra.

`same` evaluates two trees of `distill.verifiers.latex` at a few points that are a function of the
variables' names, and says True, False or None (cannot tell). Agreement at the points is evidence, not
proof; a clear difference at one point is a disproof. Values are complex floats, so that towers of
exponents cost nothing: what overflows is `Unreadable`. Variables are taken at positive points alone,
since answers use sqrt and log as if they were.
"""

from __future__ import annotations

import cmath
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping

from distill.verifiers.latex import Node, Unreadable

POINTS = 4
EQUAL, DIFFERENT = 1e-9, 1e-6
"""Relative differences: up to the first two values are equal, from the second on they differ."""

STRUCTURES = frozenset({"tuple", "matrix", "row", "union", "relation", "set"})
FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "ln": cmath.log, "exp": cmath.exp,
    "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh, "sqrt": cmath.sqrt, "abs": abs,
    "arcsin": cmath.asin, "arccos": cmath.acos, "arctan": cmath.atan,
    "cot": lambda z: 1 / cmath.tan(z), "sec": lambda z: 1 / cmath.cos(z), "csc": lambda z: 1 / cmath.sin(z),
}  # fmt: skip


def same(one: Node, other: Node) -> bool | None:
    """Do two readings mean the same? None where neither equality nor a difference can be shown."""
    one, other = _unassigned(one, other), _unassigned(other, one)
    if one.kind == other.kind == "relation":
        return _same_relation(one, other)
    if "set" in (one.kind, other.kind) or _has_sign(one) or _has_sign(other):
        return _same_set(_members(one), _members(other))
    if one.kind == other.kind == "union":
        return _same_set(list(one.parts), list(other.parts))
    if one.kind in STRUCTURES or other.kind in STRUCTURES:
        if (one.kind, one.name, len(one.parts)) != (other.kind, other.name, len(other.parts)):
            return False if one.kind == other.kind else None
        return _all(same(a, b) for a, b in zip(one.parts, other.parts, strict=True))
    return _same_value(one, other)


def too_large(node: Node) -> bool:
    """Does a value in it overflow, or is it undefined? Then algebra would only hang over it."""
    if node.kind in STRUCTURES:
        return any(too_large(part) for part in node.parts)
    try:
        return not _infinity(node) and not cmath.isfinite(evaluate(node, sign=1))
    except Unreadable:
        return True


def _unassigned(node: Node, other: Node) -> Node:
    """``x = 5`` as 5 and ``x \\in S`` as S, where the other side does not name a variable too."""
    named = node.kind == "relation" and node.name in ("=", "in") and node.parts[0].kind == "name"
    return node.parts[1] if named and other.kind != "relation" else node


def _members(node: Node) -> list[Node]:
    if node.kind == "set":
        return [member for part in node.parts for member in _members(part)]
    return [Node("plus", (node,)), Node("minus", (node,))] if _has_sign(node) else [node]


def _has_sign(node: Node) -> bool:
    if node.kind in ("plus", "minus"):
        return False
    return node.kind == "plusminus" or any(_has_sign(part) for part in node.parts if isinstance(part, Node))


def _same_set(ones: list[Node], others: list[Node]) -> bool | None:
    if len(ones) != len(others):
        return False if min(len(ones), len(others)) > 0 and not _structured(ones + others) else None
    if len(ones) > 50:
        return None
    left, unsure = list(others), False
    for one in ones:
        answers = [same(one, other) for other in left]
        if True in answers:
            del left[answers.index(True)]
        elif None in answers:
            unsure = True
        else:
            return False
    return None if unsure else True


def _structured(nodes: list[Node]) -> bool:
    return any(node.kind in STRUCTURES for node in nodes)


def _same_relation(one: Node, other: Node) -> bool | None:
    """Same variable and right side, or sides whose difference is the same up to a constant factor."""
    if one.name == other.name == "=" and one.parts[0].kind == "name" and one.parts[0] == other.parts[0]:
        return same(one.parts[1], other.parts[1])
    if "in" in (one.name, other.name) or _structured([*one.parts, *other.parts]):
        return _all(same(a, b) for a, b in zip(one.parts, other.parts, strict=True)) if one.name == other.name else None
    (sign1, low1, high1), (sign2, low2, high2) = _ascending(one), _ascending(other)
    if sign1 != sign2:
        return False
    ratios = []
    for point in range(POINTS):
        try:
            first = evaluate(high1, point) - evaluate(low1, point)
            second = evaluate(high2, point) - evaluate(low2, point)
            ratios.append(first / second)
        except (Unreadable, ZeroDivisionError):
            return None
    if sign1 != "=" and any(ratio.real <= 0 for ratio in ratios):
        return False
    return _all(_close(ratio, ratios[0]) for ratio in ratios[1:])


def _ascending(node: Node) -> tuple[str, Node, Node]:
    low, high = node.parts
    return (node.name.replace(">", "<"), high, low) if ">" in node.name else (node.name, low, high)


def _same_value(one: Node, other: Node) -> bool | None:
    if _infinity(one) or _infinity(other):
        return _infinity(one) == _infinity(other)
    answers = []
    for point in range(POINTS):
        try:
            answers.append(_close(evaluate(one, point), evaluate(other, point)))
        except Unreadable:
            return None
    return _all(answers)


def _infinity(node: Node) -> int:
    """1 and -1 for the infinities, 0 for everything else."""
    if node.kind == "negative":
        return -_infinity(node.parts[0])
    return int(node.kind == "infinity")


def _all(answers: Iterable[bool | None]) -> bool | None:
    """False if any is False, else None if any is None, else True."""
    known = list(answers)
    return False if False in known else None if None in known else True


def _close(one: complex, other: complex) -> bool | None:
    difference, size = abs(one - other), max(abs(one), abs(other))
    return True if difference <= EQUAL * size else False if difference > DIFFERENT * size else None


def evaluate(node: Node, point: int = 0, sign: int = 0) -> complex:
    """The value at one of the points; ``sign`` is what plus-minus stands for."""
    try:
        value = complex(_value(node, lambda name: _coordinate(name, point), sign))
    except (OverflowError, ZeroDivisionError, ValueError, RecursionError) as error:
        raise Unreadable(f"cannot be evaluated: {error}") from error
    if not cmath.isfinite(value):
        raise Unreadable("too large to evaluate")
    return value


def _coordinate(name: str, point: int) -> float:
    """A positive number that is a function of the variable's name and of the point alone."""
    digest = hashlib.blake2b(f"{name}/{point}".encode(), digest_size=8).digest()
    return 0.3 + 2.7 * int.from_bytes(digest, "little") / 2**64


def _value(node: Node, variable: Callable[[str], float], sign: int) -> complex:
    if node.kind == "number":
        return complex(node.parts[0])
    if node.kind == "name":
        return CONSTANTS[node.name] if node.name in CONSTANTS else variable(node.name)
    if node.kind in ("plus", "minus"):
        return _value(node.parts[0], variable, 1 if node.kind == "plus" else -1)
    if node.kind in STRUCTURES or node.kind == "infinity":
        raise Unreadable(f"a {node.kind} has no value")
    values = [_value(part, variable, sign) for part in node.parts]
    if node.kind == "plusminus":
        if not sign:
            raise Unreadable("plus-minus stands for two values")
        return values[0] + sign * int(node.name + "1") * values[1]
    return VALUES[node.kind](node, values)


def _factorial(value: complex) -> float:
    if value.imag or value.real < 0 or value.real > 170 or value.real != int(value.real):
        raise Unreadable("a factorial out of range")
    return float(math.factorial(int(value.real)))


def _power(base: complex, exponent: complex) -> complex:
    if base == 0:
        return 1 if exponent == 0 else 0 if exponent.real > 0 else math.inf
    if exponent.imag == 0 and exponent.real == int(exponent.real) and abs(exponent.real) <= 1000:
        return base ** int(exponent.real)
    return base**exponent


CONSTANTS: Mapping[str, complex] = {"e": math.e, "i": 1j, "pi": math.pi}
VALUES: dict[str, Callable[[Node, list[complex]], complex]] = {
    "sum": lambda _, v: v[0] + v[1],
    "product": lambda _, v: v[0] * v[1],
    "quotient": lambda _, v: v[0] / v[1],
    "power": lambda _, v: _power(v[0], v[1]),
    "negative": lambda _, v: -v[0],
    "factorial": lambda _, v: _factorial(v[0]),
    "binomial": lambda _, v: _factorial(v[0]) / _factorial(v[1]) / _factorial(v[0] - v[1]),
    "call": lambda node, v: FUNCTIONS[node.name](v[0]),
}
