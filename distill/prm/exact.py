"""Exact step labels from the problem families, for stored responses and for solutions with planted errors.

The labels are local to the line: a line is right if it follows from the lines before it, whether those are right or
wrong. One error therefore makes one label wrong and not all after it. The product of the labels still says whether the
whole solution is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from distill import catalog
from distill.families.base import Family, labels
from distill.prm.examples import Label
from distill.prm.labels import Labelled, Marked, of_steps
from distill.randomness import generator
from distill.steps import Split, splitter
from distill.thinking import CLOSE, join_thinking
from distill.types import Problem
from pipeline.fingerprint import content_hash

LINES = splitter("line")


class Checkers:
    """The families that can label lines, by name. Each is loaded once."""

    def __init__(self) -> None:
        self._known: dict[str, Family | None] = {}

    def of(self, problem: Problem) -> Family | None:
        """The family that made a problem, if it can check lines (`Family.next_line`)."""
        name = problem.source
        if name not in self._known:
            family = catalog.resolve("families", name)() if name in catalog.names("families") else None
            self._known[name] = family if hasattr(family, "next_line") else None
        return self._known[name]

    def marked(self, problem: Problem, response: str) -> list[Marked] | None:
        """The lines of a response with their labels; None if no family can label them."""
        family = self.of(problem)
        if family is None:
            return None
        lines, closed = LINES(response), CLOSE in response
        end = response.rfind(CLOSE) if closed else len(response)
        thinking = [line for line in lines if line.start < end]
        answer = [line for line in lines if line.start >= end]
        found = labels(family, problem, [line.text for line in thinking], answer[0].text if answer else "")
        of_lines: list[Label] = [None if label is None else float(label) for label in found]
        more = [0.0] * (len(answer) - 1)  # lines after the first one of the answer should not be there
        return [((line.start, line.end), label) for line, label in zip(lines, [*of_lines, *more], strict=False)]


def checked(
    checkers: Checkers, key: str, problem: Problem, response: str, split: Split, *,
    trace: str | None = None, correct: bool | None = None,
) -> Labelled | None:  # fmt: skip
    """A response labelled by its problem's family; None without such a family or without steps."""
    marked = checkers.marked(problem, response)
    found = of_steps(response, split, marked) if marked else ()
    return Labelled(key, problem, response, found, "exact", trace, correct) if found else None


def planted(
    checkers: Checkers, problems: Sequence[Problem], split: Split, slips: float, each: int, seed: int
) -> Iterator[Labelled]:
    """Labelled solutions with planted errors, ``each`` per problem.

    A line's result is wrong with probability ``slips``, and the following lines continue from it. This costs no
    sampling and supplies as many wrong lines as needed.
    """
    for problem in problems:
        family = checkers.of(problem)
        for page in range(each if family else 0):
            assert family is not None
            draws = generator(seed, "planted", problem.id, page)
            response = join_thinking(*family.solve(problem, slips, draws))
            key = content_hash(["planted", problem.messages, response])
            if labelled := checked(checkers, key, problem, response, split):
                yield Labelled(key, problem, response, labelled.labels, "slips")
