"""A verifier that is opened and judges many at a time, for the pool's tests: it says what the answer says of it.

The answer is JSON, a mapping of names to outcomes: `Oracle` reads the outcome under its own name, `Rule` is
the same as a rule, in the workers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from distill.thinking import Response
from distill.types import Outcome, Problem, Verdict
from distill.verifiers.base import Stopping, never

SCORES = {Outcome.CORRECT: 1.0, Outcome.INCORRECT: 0.0, Outcome.UNVERIFIABLE: None}


class Rule:
    version = "1"

    def __init__(self, of: str) -> None:
        self.of, self.name = of, f"rule-{of}"

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        outcome = Outcome(json.loads(trace.answer)[self.of])
        return Verdict(outcome, SCORES[outcome], "as told")


class Oracle(Rule):
    asked: ClassVar[list[tuple[str, str]]] = []
    """(its name, the answer) for every verdict given, in this process."""
    closed = 0

    def open(self, note: Callable[[str], None]) -> Session:
        return Session(self)


class Session:
    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle

    def judge(
        self, items: Sequence[tuple[Any, Problem, Response]], stopping: Stopping = never
    ) -> Iterator[tuple[Any, Verdict]]:
        for key, problem, trace in reversed(items):
            if stopping():
                return
            if trace.answer == "break":
                raise ValueError("broken")
            Oracle.asked.append((self._oracle.of, trace.answer))
            yield key, self._oracle.verify(problem, trace)

    def close(self) -> None:
        Oracle.closed += 1
