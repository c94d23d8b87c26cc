"""`expression`: the answer is an expression in x that must be the same function as the reference.

The answer is parsed with `ast`, never executed: integers, x, + - * and parentheses only. Both sides are
therefore polynomials whose degree is at most the number of x in them, so if they agree at one more point
than that, they are equal, however they are written (``2 + 5*x`` is ``5*x + 2``). A leading
``f(x) =`` or ``y =`` is allowed. Powers and division are not, because their values can explode or be undefined.
"""

from __future__ import annotations

import ast
import re

from distill.thinking import Response
from distill.types import Problem, Verdict

LONGEST_ANSWER = 200  # characters; bounds nesting, degree and the size of every value at once


class ExpressionVerifier:
    name = "expression"
    version = "1"

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        try:
            reference = parse(problem.reference)
        except ValueError as error:
            return Verdict.unverifiable(f"the reference is no expression in x: {error}")
        try:
            given = parse(trace.answer)
        except ValueError as error:
            return Verdict.incorrect(f"the answer is no expression in x: {error}")
        points = _points(max(_degree(reference), _degree(given)))
        for x in points:
            expected, value = evaluate(reference, x), evaluate(given, x)
            if expected != value:
                return Verdict.incorrect(f"at x = {x} it gives {value:.6g}, not {expected:.6g}", x=x)
        return Verdict.correct(f"agrees at {len(points)} points", points=len(points))

    quick = verify  # bounded by the length of the answer


def parse(text: str) -> ast.expr:
    """The expression in ``text``. Raises ValueError, with a one-line message, for anything else."""
    text = text.strip()
    if len(text) > LONGEST_ANSWER:
        raise ValueError(f"{len(text)} characters, {LONGEST_ANSWER} at most")
    if not text.isascii() or not text.isprintable():
        raise ValueError("characters that no expression has")
    text = re.sub(r"^(?:f\(x\)|y)\s*=\s*", "", text)
    if re.search(r"\d[A-Za-z_]", text):  # Python would warn, on stderr, before it refused
        raise ValueError("a number runs into a name; a product needs *")
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError, ValueError):
        raise ValueError("not readable") from None
    for part in ast.walk(node):
        _check(part)
    return node


def evaluate(node: ast.expr, x: int) -> int:
    """The value at ``x`` of a node that `parse` accepted."""
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name():
            return x
        case ast.UnaryOp(operand=operand):
            return -evaluate(operand, x)
        case ast.BinOp(left, ast.Add(), right):
            return evaluate(left, x) + evaluate(right, x)
        case ast.BinOp(left, ast.Sub(), right):
            return evaluate(left, x) - evaluate(right, x)
        case ast.BinOp(left, ast.Mult(), right):
            return evaluate(left, x) * evaluate(right, x)
    raise ValueError(f"{type(node).__name__} is not allowed")


def _check(part: ast.AST) -> None:
    match part:
        case ast.Constant(value=value) if type(value) is int:
            return
        case ast.Name(id="x") | ast.BinOp() | ast.UnaryOp(op=ast.USub()):
            return
        case ast.Add() | ast.Sub() | ast.Mult() | ast.USub() | ast.Load():
            return
        case ast.Name(id=name):
            raise ValueError(f"{name!r} is not x")
    raise ValueError(f"{type(part).__name__} is not allowed")


def _degree(node: ast.expr) -> int:
    return sum(isinstance(part, ast.Name) for part in ast.walk(node))


def _points(degree: int) -> range:
    """More than ``degree`` points, and at least seven, some of them negative."""
    return range(-3, max(4, degree - 1))
