"""`calc`: a chain of + - * worked left to right, every value in 0..99.

    Compute left to right: 12 + 7 * 3 - 4        ->  53

The working has one line a step (``12 + 7 = 19``). A chain has 3 to 5 steps (or as asked); its structure is the
operations without the number it starts from, so a held-out chain was never trained on from any
start. There are 1.0e8, 1.0e10 and 1.0e12 chains of 3, 4 and 5 steps (counted by `count`); a base and
a teacher together see less than 1e5 of them. Answers go to the `math` verifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from distill.families.base import Solution, draw, problem_of, result_of, worked
from distill.types import Problem

if TYPE_CHECKING:
    import numpy as np

TOP = 99
STEPS = (3, 4, 5)
PREFIX = "Compute left to right: "


class Calc:
    name = "calc"

    def __init__(self, steps: Sequence[int] = STEPS) -> None:
        self._steps = tuple(steps)

    def generate(self, seed: int, index: int, split: str) -> Problem:
        return draw(partial(_candidate, self._steps), self.name, seed, index, split)

    def solve(self, problem: Problem, slips: float = 0.0, rng: np.random.Generator | None = None) -> Solution:
        return worked(self, problem, slips, rng, lambda result, draws: str(slipped(int(result), draws)))

    def next_line(self, problem: Problem, lines: Sequence[str]) -> str | None:
        start, chain = _chain(problem)
        if len(lines) >= len(chain):
            return None
        value = result_of(lines[-1]) if lines else start
        operator, operand = chain[len(lines)]
        return f"{value} {operator} {operand} = {apply(value, operator, operand)}"

    def final(self, problem: Problem, lines: Sequence[str]) -> str | None:
        return str(result_of(lines[-1])) if len(lines) == len(_chain(problem)[1]) else None

    def guess(self, rng: np.random.Generator) -> str:
        return str(rng.integers(TOP + 1))


def _chain(problem: Problem) -> tuple[int, list[tuple[str, int]]]:
    """Where it starts, and each operator with its operand."""
    start, *rest = problem.prompt.removeprefix(PREFIX).split()
    return int(start), [(operator, int(operand)) for operator, operand in zip(rest[::2], rest[1::2], strict=True)]


def apply(value: int, operator: str, operand: int) -> int:
    return {"+": value + operand, "-": value - operand, "*": value * operand}[operator]


def operations(value: int) -> dict[str, range]:
    """The operands each operator may take from ``value`` without leaving 0..99."""
    ranges = {
        "+": range(1, TOP - value + 1),
        "-": range(1, value + 1),
        "*": range(2, min(9, TOP // max(value, 1)) + 1),
    }
    if value == 0:
        ranges["*"] = range(0)
    return {operator: operands for operator, operands in ranges.items() if operands}


def slipped(result: int, rng: np.random.Generator) -> int:
    """Off by one, by a carry, or by a few; never negative, never the true result."""
    wrong = result + int(rng.choice([-10, -2, -1, 1, 2, 10]))
    return wrong if wrong >= 0 else result + 1


def count(steps: int) -> int:
    """How many chains of ``steps`` operations there are, over all starts."""
    ways = [1] * (TOP + 1)
    for _ in range(steps):
        ways = [
            sum(ways[apply(value, operator, n)] for operator, operands in operations(value).items() for n in operands)
            for value in range(TOP + 1)
        ]
    return sum(ways)


def _candidate(lengths: Sequence[int], rng: np.random.Generator) -> Problem:
    steps = int(rng.choice(lengths))
    value = start = int(rng.integers(TOP + 1))
    chain: list[str] = []
    for _ in range(steps):
        choices = operations(value)
        operator = list(choices)[rng.integers(len(choices))]
        operand = choices[operator][rng.integers(len(choices[operator]))]
        value = apply(value, operator, operand)
        chain.append(f"{operator} {operand}")
    structure = " ".join(chain)
    return problem_of("calc", f"{PREFIX}{start} {structure}", str(value), "math", structure, steps)
