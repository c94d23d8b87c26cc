r"""`format`: the thinking was closed and an answer was given; whether it is right is nobody's question here.

A response cut off inside its thinking reaches a verifier with an empty answer (`distill.thinking`), so
an empty answer is wrong form. A think tag inside the answer is wrong form too. ``boxed: true`` asks for
exactly one ``\boxed{...}`` as well. Meant as a part of a composition; the reference is not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from distill.thinking import CLOSE, OPEN
from distill.types import Problem, Verdict
from distill.verifiers.extract import last_box


@dataclass(frozen=True)
class Format:
    boxed: bool = False

    name: ClassVar[str] = "format"
    version: ClassVar[str] = "1"

    def verify(self, problem: Problem, answer: str) -> Verdict:
        if not answer.strip():
            return Verdict.incorrect("no answer: empty, or the thinking was never closed")
        if OPEN in answer or CLOSE in answer:
            return Verdict.incorrect("a think tag inside the answer")
        if self.boxed and (answer.count(r"\boxed") != 1 or last_box(answer) is None):
            return Verdict.incorrect("not exactly one box", boxes=answer.count(r"\boxed"))
        return Verdict.correct("the form is right")

    quick = verify
