"""`logic`: the truth table of a formula over a, b and c, its eight rows from 000 to 111.

    Truth table over a, b, c: ((a and b) or not c) xor a        ->  10100100

The formula is nested to the left and the working has one line a connective, each the column so far
(``or not c = 10101011``). A formula has 3 to 5 connectives out of and, or, xor, implies; all three
variables occur and the column is not constant. Its structure is the formula up to renaming of the
variables. There are 83 thousand, 2.0 million and 48 million formulas before those two conditions;
the answer is the whole column, so a guess is right once in 254. The reference is the formula: the
`truth_table` verifier works the column out itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from distill.families.base import Solution, draw, problem_of, worked
from distill.types import Problem

if TYPE_CHECKING:
    import numpy as np

STEPS = (3, 4, 5)
PREFIX = "Truth table over a, b, c: "
CONNECTIVES = ("and", "or", "xor", "implies")
ALL = 0b11111111
COLUMNS = {"a": 0b00001111, "b": 0b00110011, "c": 0b01010101}
LITERALS = tuple(sign + variable for variable in COLUMNS for sign in ("", "not "))


class Logic:
    name = "logic"

    def __init__(self, steps: Sequence[int] = STEPS) -> None:
        self._steps = tuple(steps)

    def generate(self, seed: int, index: int, split: str) -> Problem:
        return draw(partial(_candidate, self._steps), self.name, seed, index, split)

    def solve(self, problem: Problem, slips: float = 0.0, rng: np.random.Generator | None = None) -> Solution:
        return worked(self, problem, slips, rng, lambda result, draws: f"{slipped(int(result, 2), draws):08b}")

    def next_line(self, problem: Problem, lines: Sequence[str]) -> str | None:
        first, rest = _chain(problem.reference)
        if len(lines) >= len(rest):
            return None
        column, label = (_written(lines[-1]), "") if lines else (_column(first), f"{first} ")
        connective, literal = rest[len(lines)]
        return f"{label}{connective} {literal} = {_connect(column, connective, _column(literal)):08b}"

    def final(self, problem: Problem, lines: Sequence[str]) -> str | None:
        return f"{_written(lines[-1]):08b}" if len(lines) == len(_chain(problem.reference)[1]) else None

    def guess(self, rng: np.random.Generator) -> str:
        return f"{int(rng.integers(1, ALL)):08b}"


def slipped(column: int, rng: np.random.Generator) -> int:
    """One or two rows wrong."""
    for row in rng.choice(8, size=int(rng.integers(1, 3)), replace=False):
        column ^= 1 << int(row)
    return column


def _written(line: str) -> int:
    """The column that a line comes to."""
    found = re.fullmatch("[01]{8}", line.rpartition(" = ")[2])
    if found is None:
        raise ValueError(f"no column: {line!r}")
    return int(found.group(), 2)


def _column(literal: str) -> int:
    variable = literal.removeprefix("not ")
    return COLUMNS[variable] if variable == literal else ALL ^ COLUMNS[variable]


def _connect(left: int, connective: str, right: int) -> int:
    table = {"and": left & right, "or": left | right, "xor": left ^ right, "implies": (ALL ^ left) | right}
    return table[connective]


def _chain(formula: str) -> tuple[str, list[tuple[str, str]]]:
    """The first literal, and the connectives with their right-hand literals in order."""
    flat = formula.replace("(", "").replace(")", "")
    literal = "(?:not )?[abc]"
    first = re.match(literal, flat)
    if first is None:
        raise ValueError(f"not a formula of this family: {formula!r}")
    return first.group(), re.findall(f"({'|'.join(CONNECTIVES)}) ({literal})", flat)


def _candidate(lengths: Sequence[int], rng: np.random.Generator) -> Problem:
    while True:
        steps = int(rng.choice(lengths))
        literals = [LITERALS[i] for i in rng.integers(len(LITERALS), size=steps + 1)]
        connectives = [CONNECTIVES[i] for i in rng.integers(len(CONNECTIVES), size=steps)]
        column, formula = _column(literals[0]), literals[0]
        for connective, literal in zip(connectives, literals[1:], strict=True):
            column = _connect(column, connective, _column(literal))
            formula = f"({formula} {connective} {literal})"
        if column not in (0, ALL) and {literal[-1] for literal in literals} == set(COLUMNS):
            formula = formula[1:-1]
            return problem_of("logic", PREFIX + formula, formula, "truth_table", _structure(formula, literals), steps)


def _structure(formula: str, literals: list[str]) -> str:
    """The formula with its variables renamed in order of appearance."""
    order = list(dict.fromkeys(literal[-1] for literal in literals))
    return re.sub(r"\b[abc]\b", lambda match: "xyz"[order.index(match.group())], formula)
