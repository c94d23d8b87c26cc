"""`exact`: the final answer is the reference, character for character; only the amount of white space may differ.

``whole: true`` compares the whole visible answer instead of the span that `extract` finds in it;
``ignore_case: true`` ignores case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from distill.thinking import Response
from distill.types import Problem, Verdict
from distill.verifiers.extract import at_most, final_answer


@dataclass(frozen=True)
class Exact:
    whole: bool = False
    """Compare the whole visible answer, not just the final answer found in it."""
    ignore_case: bool = False
    """Ignore case."""

    name: ClassVar[str] = "exact"
    version: ClassVar[str] = "4"

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
            return at_most(Verdict.correct("the same text", **evidence), rule)
        return Verdict.incorrect("a different text", **evidence)

    quick = verify

    def _fold(self, text: str) -> str:
        text = " ".join(text.split())
        return text.casefold() if self.ignore_case else text
