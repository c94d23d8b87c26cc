"""`exact`: the final answer is the reference, sign for sign, but for white space at the ends and between.

``whole: true`` compares the whole visible answer instead of the span that `extract` finds in it;
``ignore_case: true`` forgets the case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from distill.thinking import Response
from distill.types import Problem, Verdict
from distill.verifiers.extract import final_answer


@dataclass(frozen=True)
class Exact:
    whole: bool = False
    ignore_case: bool = False

    name: ClassVar[str] = "exact"
    version: ClassVar[str] = "3"

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        wanted = self._fold(problem.reference)
        if not wanted:
            return Verdict.unverifiable("the reference is empty")
        span, rule = final_answer(trace.answer)
        # The reference may itself be what extraction would cut down ("x = 5."), so both forms count.
        if self.whole or self._fold(trace.answer) == wanted:
            span, rule = trace.answer, "whole"
        evidence = {"answer": span[:200], "reference": problem.reference[:200], "rule": rule}
        if self._fold(span) == wanted:
            return Verdict.correct("the same text", **evidence)
        return Verdict.incorrect("a different text", **evidence)

    quick = verify

    def _fold(self, text: str) -> str:
        text = " ".join(text.split())
        return text.casefold() if self.ignore_case else text
