r"""`format`: the thinking was closed and an answer was given; whether it is right is nobody's question here.

Wrong form are a response cut off inside its thinking, an empty answer, and a think tag inside the
answer (`distill.thinking` has the rule). ``boxed: true`` asks for exactly one ``\boxed{...}`` as well.
Meant as a part of a composition; the reference is not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from distill.thinking import CLOSE, OPEN, Response
from distill.types import Problem, Verdict
from distill.verifiers.extract import last_box


@dataclass(frozen=True)
class Format:
    boxed: bool = False

    name: ClassVar[str] = "format"
    version: ClassVar[str] = "1"

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        answer = trace.answer
        if not trace.closed:
            return Verdict.incorrect("the thinking was never closed")
        if not answer.strip():
            return Verdict.incorrect("the answer is empty")
        if OPEN in answer or CLOSE in answer:
            return Verdict.incorrect("a think tag inside the answer")
        if self.boxed and (answer.count(r"\boxed") != 1 or last_box(answer) is None):
            return Verdict.incorrect("not exactly one box", boxes=answer.count(r"\boxed"))
        return Verdict.correct("the form is right")

    quick = verify
