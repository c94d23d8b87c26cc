r"""`choice`: one letter of a multiple-choice question, however it is written.

``B``, ``(B)``, ``B.``, ``\boxed{\text{(B)}}``, "the answer is B) 12" all choose B. A reference that is
not one letter is `unverifiable`; an answer that names no letter, or several, is wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from distill.thinking import Response
from distill.types import Problem, Verdict
from distill.verifiers.extract import final_answer
from distill.verifiers.number import canonical

LETTER = re.compile(r"\W*(?:(?:option|choice)\s+)?\W*([A-Za-z])(?:\s*(?:[).:]|\})[^A-Za-z]?.*|\W*)", re.DOTALL)
MAX_LENGTH = 500


@dataclass(frozen=True)
class Choice:
    name: ClassVar[str] = "choice"
    version: ClassVar[str] = "1"

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        wanted = letter(problem.reference)
        if wanted is None:
            return Verdict.unverifiable(f"the reference is not one letter: {problem.reference[:40]!r}")
        span = final_answer(trace.answer)
        chosen = letter(span.text)
        evidence = {"answer": chosen, "reference": wanted, "rule": span.rule}
        if chosen is None:
            return Verdict.incorrect("no letter was chosen", **evidence)
        if chosen == wanted:
            return Verdict.correct(f"chose {chosen}", **evidence)
        return Verdict.incorrect(f"chose {chosen}, not {wanted}", **evidence)

    quick = verify


def letter(text: str) -> str | None:
    """The letter chosen, as a capital; None where there is none or more than one."""
    if len(text) > MAX_LENGTH:
        return None
    text = re.sub(r"\\[A-Za-z]+\s?\{|[{}$\\*]", " ", canonical(text))
    found = LETTER.fullmatch(text.strip())
    return found[1].upper() if found else None
