"""`code`: write the function a*x + b that goes through two points; the answer is run, not compared.

    Write a*x + b that is 17 at x = 3 and 42 at x = 8        ->  5*x + 2

The working has five lines: run, rise, slope, and the intercept in two. Its structure is the function
itself, so no function of a held-out problem is ever trained on, from any points. With a from 2 to
30, b from -99 to 99 and the first point in 0..99, there are 5,542 functions and 207 thousand prompts
(counted by `count`). The `expression` verifier runs the answer on points that the prompt does not show.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill.families.base import Solution, draw, problem_of, result_of, worked
from distill.families.calc import slipped
from distill.types import Problem

if TYPE_CHECKING:
    import numpy as np

TOP = 99
SLOPES = range(2, 31)
RUNS = range(2, 10)
STEPS = 5


class Code:
    name = "code"

    def generate(self, seed: int, index: int, split: str) -> Problem:
        return draw(_candidate, self.name, seed, index, split)

    def solve(self, problem: Problem, slips: float = 0.0, rng: np.random.Generator | None = None) -> Solution:
        return worked(self, problem, slips, rng, lambda result, draws: str(slipped(int(result), draws)))

    def next_line(self, problem: Problem, lines: Sequence[str]) -> str | None:
        y1, x1, y2, x2 = map(int, re.findall(r"\d+", problem.prompt))
        known = [result_of(line) for line in lines]
        match known:
            case []:
                return f"{x2} - {x1} = {x2 - x1}"
            case [_]:
                return f"{y2} - {y1} = {y2 - y1}"
            case [run, rise]:
                return f"{rise} / {run} = {rise // max(run, 1)}"
            case [_, _, slope]:
                return f"{slope} * {x1} = {slope * x1}"
            case [_, _, _, shift]:
                return f"{y1} - {shift} = {y1 - shift}"
        return None

    def final(self, problem: Problem, lines: Sequence[str]) -> str | None:
        return expression(result_of(lines[2]), result_of(lines[4])) if len(lines) == STEPS else None

    def guess(self, rng: np.random.Generator) -> str:
        return expression(int(rng.choice(SLOPES)), int(rng.integers(-60, TOP + 1)))


def expression(slope: int, intercept: int) -> str:
    return f"{slope}*x {'-' if intercept < 0 else '+'} {abs(intercept)}"


def count() -> tuple[int, int]:
    """How many functions and how many prompts there are."""
    functions, prompts = set(), 0
    for slope in SLOPES:
        for run in RUNS:
            if slope * run <= TOP:
                starts = range(TOP // slope + 1)
                prompts += len(starts) * (TOP + 1)
                functions |= {(slope, y1 - slope * x1) for x1 in starts for y1 in range(TOP + 1)}
    return len(functions), prompts


def _candidate(rng: np.random.Generator) -> Problem:
    run = int(rng.choice(RUNS))
    slope = int(rng.integers(SLOPES[0], min(SLOPES[-1], TOP // run) + 1))
    x1 = int(rng.integers(TOP // slope + 1))
    y1 = int(rng.integers(TOP + 1))
    x2, y2 = x1 + run, y1 + slope * run
    reference = expression(slope, y1 - slope * x1)
    prompt = f"Write a*x + b that is {y1} at x = {x1} and {y2} at x = {x2}"
    return problem_of("code", prompt, reference, "expression", reference, STEPS)
