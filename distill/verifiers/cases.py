"""Tests as data: asserts turned into inputs and expected values, so that the answers stay out of the box.

Understood are ``assert f(...) == value``, ``assert f(...)``, ``assert not f(...)``, ``is``,
``abs(f(...) - value) < small`` (``math.fabs`` too), all with literal arguments. Whatever else a test does
makes it not wholly understood, which its caller is told.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any, NamedTuple


class Case(NamedTuple):
    """``call`` is the source of (positional arguments, keyword arguments); the rest never enters the box.

    The result must equal ``expected``, within ``tolerance`` where there is one; where ``truth`` is set,
    it must just be true or false.
    """

    call: str
    expected: Any = None
    tolerance: float | None = None
    truth: bool | None = None

    @classmethod
    def of_values(cls, arguments: list[Any], named: dict[str, Any], expected: Any) -> Case:
        return cls(repr((list(arguments), dict(named))), expected)


def wanted(case: Case, value: Any, strict: bool) -> bool:
    """Is ``value`` what the case asks for? ``strict`` tells True from 1 and 1.0 from 1, as JSON does."""
    if case.truth is not None:
        return bool(value) is case.truth
    if case.tolerance is not None:
        return type(value) in (int, float) and abs(value - case.expected) < case.tolerance
    return _alike(value, case.expected) if strict else bool(value == case.expected)


def _alike(value: Any, expected: Any) -> bool:
    """Equal, with equal types all the way down; a tuple passes for a list, which is all JSON has."""
    if isinstance(expected, list):
        return type(value) in (list, tuple) and len(value) == len(expected) and all(map(_alike, value, expected))
    if isinstance(expected, dict):
        return (
            type(value) is dict
            and value.keys() == expected.keys()
            and all(_alike(value[key], expected[key]) for key in expected)
        )
    return type(value) is type(expected) and bool(value == expected)


def decode(value: Any) -> Any:
    """Plain data out of the frames of the box. ValueError or TypeError for anything else."""
    if value is None or isinstance(value, bool | str):
        return value
    ((kind, inside),) = value.items()
    if kind == "int":
        return int(inside, 16)
    if kind == "float":
        return float(inside)
    if kind == "complex":
        return complex(float(inside[0]), float(inside[1]))
    if kind == "dict":
        return {decode(key): decode(item) for key, item in inside}
    return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](map(decode, inside))


def cases_of_check(test: str) -> tuple[list[Case], bool]:
    """The cases of a HumanEval ``check(candidate)``, and whether they are all that it tests."""
    checks = [node for node in ast.parse(test).body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    if not checks:
        raise ValueError("no check(candidate)")
    return _cases(checks[-1].body, "candidate")


def cases_of_asserts(asserts: Iterable[str]) -> tuple[str, list[Case], bool]:
    """(function name, cases, whether they are all) of a list of assert statements."""
    body = ast.parse("\n".join(asserts)).body
    called = [
        node.func.id
        for statement in body
        for node in ast.walk(statement)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id not in dir(__builtins__)
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
    """A docstring, an import, or ``assert True``: it tests nothing."""
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
        return Case(_call(test.operand, name), truth=False)
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        left, right = test.left, test.comparators[0]
        if isinstance(test.ops[0], ast.Eq | ast.Is):
            return Case(_call(left, name), expected=_literal(right))
        if isinstance(test.ops[0], ast.Lt | ast.LtE):
            return _near(left, _literal(right), name)
    return Case(_call(test, name), truth=True)


def _near(node: ast.expr, tolerance: Any, name: str) -> Case:
    """``abs(f(...) - value)``"""
    absolute = isinstance(node, ast.Call) and ast.unparse(node.func) in ("abs", "math.fabs") and len(node.args) == 1
    if not absolute or not isinstance(node.args[0], ast.BinOp) or not isinstance(node.args[0].op, ast.Sub):  # type: ignore[attr-defined]
        raise ValueError("not a distance")
    difference = node.args[0]  # type: ignore[attr-defined]
    return Case(_call(difference.left, name), expected=_literal(difference.right), tolerance=float(tolerance))


def _call(node: ast.expr, name: str) -> str:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id != name:
        raise ValueError("not a call of the candidate")
    named = {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
    return repr(([_literal(argument) for argument in node.args], named))


def _literal(node: ast.expr) -> Any:
    """A literal's value; simple arithmetic of literals (``2 ** 10``, ``[0] * 5``) is no literal."""
    return ast.literal_eval(node)
