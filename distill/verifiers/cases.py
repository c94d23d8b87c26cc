"""Tests as data: turn asserts into inputs and expected values, and compare values and texts.

The supported asserts are ``assert f(...) == value``, ``assert f(...)``, ``assert not f(...)``, ``is``, and
``abs(f(...) - value) < small`` (``math.fabs`` too), all with literal arguments. If a test does anything else, the
parsers here report that their cases do not cover all of it.
"""

from __future__ import annotations

import ast
import builtins
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Case:
    """One call and what its result must be. Only the arguments enter the candidate's sandbox.

    The result must equal ``expected`` (or one of ``others``), within ``tolerance`` if that is set. If ``truth`` is set,
    only the result's truth value counts. If ``itself`` is set (``is True``), its type must match too.
    """

    arguments: list[Any]
    named: dict[str, Any] = field(default_factory=dict)
    expected: Any = None
    tolerance: float | None = None
    truth: bool | None = None
    others: tuple[Any, ...] = ()
    itself: bool = False


def wanted(case: Case, value: Any, strict: bool, tolerance: float = 0.0) -> bool:
    """Whether ``value`` is what the case asks for. ``strict`` distinguishes True, 1 and 1.0, as JSON does.

    ``tolerance`` applies to every float anywhere in the value, absolute or relative, whichever allows more.
    """
    if case.truth is not None:
        return bool(value) is case.truth
    if case.tolerance is not None:
        return type(value) in (int, float) and abs(value - case.expected) < case.tolerance
    strict = strict or case.itself
    return any(_alike(value, expected, strict, tolerance) for expected in (case.expected, *case.others))


def _alike(value: Any, expected: Any, strict: bool, tolerance: float) -> bool:
    """Deep equality. If strict, types must match too, but a tuple passes for a list, because JSON only has lists."""
    if isinstance(expected, list) or (isinstance(expected, tuple) and isinstance(value, tuple)):
        fits = type(value) in ((list, tuple) if strict else (type(expected),)) and len(value) == len(expected)
        return fits and all(_alike(v, e, strict, tolerance) for v, e in zip(value, expected, strict=True))
    if isinstance(expected, dict):
        fits = type(value) is dict and value.keys() == expected.keys()
        return fits and all(_alike(value[key], expected[key], strict, tolerance) for key in expected)
    if tolerance and isinstance(expected, float) and type(value) in (int, float):
        return near(value, expected, tolerance)
    return (not strict or type(value) is type(expected)) and bool(value == expected)


def as_lists(value: Any) -> Any:
    """Convert tuples to lists at every level, because published JSON tests cannot express tuples."""
    if isinstance(value, list | tuple):
        return [as_lists(item) for item in value]
    return {key: as_lists(item) for key, item in value.items()} if isinstance(value, dict) else value


def near(value: float, expected: float, tolerance: float) -> bool:
    """Closeness as contest checkers define it: absolute or relative, whichever allows more. Nothing is near NaN."""
    return value == expected or math.isclose(value, expected, rel_tol=tolerance, abs_tol=tolerance)


def same_text(text: str, expected: str, tolerance: float = 0.0) -> bool:
    """Whether two texts have the same words on each line. Spacing and empty lines at the end do not count.

    With a ``tolerance``, two words are also the same if both are finite numbers that are `near` each other.
    """
    lines, wanted_lines = _lines(text), _lines(expected)
    if len(lines) != len(wanted_lines):
        return False
    return all(
        len(words) == len(others) and all(_same_word(a, b, tolerance) for a, b in zip(words, others, strict=True))
        for words, others in zip(lines, wanted_lines, strict=True)
    )


def _lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.rstrip().split("\n")]


def _same_word(word: str, expected: str, tolerance: float) -> bool:
    if word == expected or not tolerance:
        return word == expected
    try:
        value, number = float(word), float(expected)
    except ValueError:
        return False
    return math.isfinite(value) and math.isfinite(number) and near(value, number, tolerance)


def cases_of_check(test: str) -> tuple[list[Case], bool]:
    """The cases of a HumanEval ``check(candidate)``, and whether they are all that it tests."""
    checks = [node for node in ast.parse(test).body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    if not checks:
        raise ValueError("no check(candidate)")
    return _cases(checks[-1].body, "candidate")


def cases_of_asserts(asserts: Iterable[str]) -> tuple[str, list[Case], bool]:
    """(function name, cases, whether they are all that is tested) of a list of assert statements."""
    body = ast.parse("\n".join(asserts)).body
    called = [
        node.func.id
        for statement in body
        for node in ast.walk(statement)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not hasattr(builtins, node.func.id)
    ]
    name = max(sorted(set(called)), key=called.count, default="")
    return name, *_cases(body, name)


def _cases(body: list[ast.stmt], name: str) -> tuple[list[Case], bool]:
    cases, whole = [], True
    for statement in body:
        if isinstance(statement, ast.Pass) or _idle(statement):
            continue
        try:
            cases.append(_case(statement, name))
        except (ValueError, TypeError):
            whole = False
    return cases, whole


def _idle(statement: ast.stmt) -> bool:
    """Whether a statement tests nothing: a docstring, an import, or ``assert True``."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return True
    value = statement.value if isinstance(statement, ast.Expr) else None
    test = statement.test if isinstance(statement, ast.Assert) else value
    return isinstance(test, ast.Constant) and bool(test.value)


def _case(statement: ast.stmt, name: str) -> Case:
    if not isinstance(statement, ast.Assert):
        raise ValueError("not an assert")
    test = statement.test
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return Case(*_call(test.operand, name), truth=False)
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        left, right = test.left, test.comparators[0]
        if isinstance(test.ops[0], ast.Eq | ast.Is):
            return Case(*_call(left, name), expected=_literal(right), itself=isinstance(test.ops[0], ast.Is))
        if isinstance(test.ops[0], ast.Lt | ast.LtE):
            return _near(left, _literal(right), name)
    return Case(*_call(test, name), truth=True)


def _near(node: ast.expr, tolerance: Any, name: str) -> Case:
    """The case that ``abs(f(...) - value)`` tests, with its tolerance."""
    absolute = isinstance(node, ast.Call) and ast.unparse(node.func) in ("abs", "math.fabs") and len(node.args) == 1
    if not absolute or not isinstance(node.args[0], ast.BinOp) or not isinstance(node.args[0].op, ast.Sub):  # type: ignore[attr-defined]
        raise ValueError("not a distance")
    difference = node.args[0]  # type: ignore[attr-defined]
    return Case(*_call(difference.left, name), expected=_literal(difference.right), tolerance=float(tolerance))


def _call(node: ast.expr, name: str) -> tuple[list[Any], dict[str, Any]]:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id != name:
        raise ValueError("not a call of the candidate")
    if any(keyword.arg is None for keyword in node.keywords):
        raise ValueError("a call with **")
    named = {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords}
    return [_literal(argument) for argument in node.args], named


def _literal(node: ast.expr) -> Any:
    """A literal's value. Arithmetic on literals (``2 ** 10``, ``[0] * 5``) is not a literal and raises ValueError."""
    return ast.literal_eval(node)
