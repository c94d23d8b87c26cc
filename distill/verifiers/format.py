r"""`format`: is the thinking closed, and is there an answer in the right language? Correctness is not judged.

A response has the wrong form if it is cut off inside its thinking, if its answer is empty, or if there is a think
tag inside the answer (`distill.thinking` has the rule). Settings can require more:

    boxed: true          exactly one \boxed{...}
    one_answer: true     exactly one answer: one box or, without a box, one "####", "answer is" or "answer:"
    thinking: true       some thinking
    language: en         thinking and answer in the script of that language (`language`), or with `prompt` of the
                         problem's own: at least ``language_share`` (0.9) of the words in each of the two

This verifier is meant as a part of a composition; it does not look at the reference. A text of under five words passes
as any language. If the prompt is that short, ``language: prompt`` is `unverifiable`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from distill.thinking import CLOSE, OPEN, Response
from distill.types import Problem, Verdict
from distill.verifiers.extract import MARKER, last_box
from distill.verifiers.language import LEAST_WORDS, SCRIPTS, scripts_of, share
from pipeline.errors import InputError

BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
OF_PROMPT = "prompt"


@dataclass(frozen=True)
class Format:
    boxed: bool = False
    """Require exactly one `\\boxed{...}`."""
    one_answer: bool = False
    """Require exactly one answer: one box, or else one "####", "answer is" or "answer:"."""
    thinking: bool = False
    """Require some thinking."""
    language: str | None = None
    """Require thinking and answer to be in the script of this language, such as `en`; `prompt` means the problem's."""
    language_share: float = 0.9
    """Minimum share of words in that script, in each of the two."""

    name: ClassVar[str] = "format"
    version: ClassVar[str] = "4"

    def __post_init__(self) -> None:
        for switch in ("boxed", "one_answer", "thinking"):
            if not isinstance(getattr(self, switch), bool):
                raise InputError(f"verifier 'format': {switch} must be true or false, not {getattr(self, switch)!r}")
        if self.language is not None and self.language not in (OF_PROMPT, *SCRIPTS):
            known = ", ".join((OF_PROMPT, *SCRIPTS))
            raise InputError(f"verifier 'format': language must be one of {known}, not {self.language!r}")
        share = self.language_share
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise InputError(f"verifier 'format': language_share must be a number above 0 and up to 1, not {share!r}")

    @property
    def reads_thinking(self) -> bool:
        return self.thinking or self.language is not None

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        fault = next(self._faults(trace), None)
        if fault is not None:
            return Verdict.incorrect(fault)
        if self.language is None:
            return Verdict.correct("the form is right")
        return self._in_language(problem, trace)

    quick = verify  # linear in the text

    def _faults(self, trace: Response) -> Iterator[str]:
        answer = trace.answer
        if not trace.closed:
            yield "the thinking was never closed"
        if not answer.strip():
            yield "the answer is empty"
        if OPEN in answer or CLOSE in answer:
            yield "a think tag inside the answer"
        if self.thinking and not trace.thinking.strip():
            yield "there is no thinking"
        boxes = len(BOX.findall(answer))
        if (self.boxed or (self.one_answer and boxes)) and boxes != 1:
            yield f"{boxes} boxes instead of one"
        if boxes and (self.boxed or self.one_answer) and last_box(answer) is None:
            yield "the box is not closed"
        if boxes and (self.boxed or self.one_answer) and last_box(answer) == "":
            yield "the box is empty"
        marks = answer.count("####") + len(MARKER.findall(answer))
        if self.one_answer and not boxes and marks != 1:
            yield f"{marks} answers instead of one"

    def _in_language(self, problem: Problem, trace: Response) -> Verdict:
        wanted = scripts_of(problem.prompt) if self.language == OF_PROMPT else SCRIPTS[str(self.language)]
        if not wanted:
            return Verdict.unverifiable("the prompt has too few words to tell its language")
        evidence: dict[str, Any] = {"scripts": sorted(wanted)}
        for part, text in (("thinking", trace.thinking), ("answer", trace.answer)):
            found, words = share(text, wanted)
            evidence[part] = {"words": words, "share": round(found, 4)}
            if words >= LEAST_WORDS and found < self.language_share:
                names = " or ".join(sorted(wanted)).lower()
                return Verdict.incorrect(f"{found:.0%} of the words in the {part} are {names}", **evidence)
        return Verdict.correct("the form and the script are right", **evidence)
