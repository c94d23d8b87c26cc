"""`truth_table`: the answer is the truth table column of the formula in the reference.

The column is computed here from the formula, by a separate parser, so a mistake of the problem's author cannot pass as
the truth. Operators are left-associative with equal precedence (use parentheses), and `not` binds tightest. Rows run
from all false to all true, and the first variable in the alphabet changes slowest. White space in an answer is ignored.
The working is not judged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import product

from distill.thinking import Response
from distill.types import Problem, Verdict

LONGEST_ANSWER = 4096  # characters; enough for a column of ten variables with room to spare
LONGEST_FORMULA = 2000
MOST_VARIABLES = 10

OPERATORS: dict[str, Callable[[bool, bool], bool]] = {
    "and": lambda left, right: left and right,
    "or": lambda left, right: left or right,
    "xor": lambda left, right: left != right,
    "implies": lambda left, right: not left or right,
}


class TruthTable:
    name = "truth_table"
    version = "1"

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        try:
            expected = truth_column(problem.reference)
        except ValueError as error:
            return Verdict.unverifiable(f"the reference is no formula: {error}")
        answer = trace.answer
        if len(answer) > LONGEST_ANSWER:
            return Verdict.incorrect(f"an answer of {len(answer)} characters is no column")
        given = "".join(answer.split())
        if not re.fullmatch("[01]+", given):
            return Verdict.incorrect("the answer is not a column of 0 and 1")
        if len(given) != len(expected):
            return Verdict.incorrect(f"{len(given)} rows given, the formula has {len(expected)}")
        wrong = [row for row, (a, b) in enumerate(zip(given, expected, strict=True)) if a != b]
        if wrong:
            return Verdict.incorrect(f"{len(wrong)} of {len(expected)} rows are wrong", expected=expected, rows=wrong)
        return Verdict.correct("every row agrees", expected=expected)

    quick = verify  # bounded by the lengths of formula and answer


def truth_column(formula: str) -> str:
    """The value of ``formula`` in every row, as a text of 0 and 1. Raises ValueError if it is not a formula."""
    if len(formula) > LONGEST_FORMULA:
        raise ValueError(f"{len(formula)} characters")
    tokens = re.findall(r"[a-z]+|[()]|\S", formula)
    variables = sorted({token for token in tokens if re.fullmatch("[a-z]", token)})
    if not 1 <= len(variables) <= MOST_VARIABLES:
        raise ValueError(f"{len(variables)} variables")
    rows = [dict(zip(variables, row, strict=True)) for row in product((False, True), repeat=len(variables))]
    try:
        return "".join("01"[_evaluate(tokens, row)] for row in rows)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _evaluate(tokens: list[str], row: dict[str, bool]) -> bool:
    stream = iter([*tokens, "end"])
    value, last = _expression(stream, row)
    if last != "end":
        raise ValueError(f"unexpected {last!r}")
    return value


def _expression(stream: Iterator[str], row: dict[str, bool]) -> tuple[bool, str]:
    """The value of operand (operator operand)*, and the first token after it."""
    value = _operand(stream, row)
    while (token := next(stream)) in OPERATORS:
        value = OPERATORS[token](value, _operand(stream, row))
    return value, token


def _operand(stream: Iterator[str], row: dict[str, bool]) -> bool:
    token = next(stream)
    if token == "not":
        return not _operand(stream, row)
    if token == "(":
        value, closing = _expression(stream, row)
        if closing != ")":
            raise ValueError("a parenthesis is not closed")
        return value
    if token not in row:
        raise ValueError(f"unexpected {token!r}")
    return row[token]
