r"""`choice`: the letter, or the letters, of a multiple-choice question, however they are written.

``B``, ``(B)``, ``B.``, ``\boxed{\text{(B)}}``, ``<answer>B</answer>``, "the answer is B) 12", "the correct option is
B", "I think (B)", "I choose B", "Therefore, B." and "the answer is B, not A" all choose B. A reference of several
letters (``A, C``, ``AC``, "A and C") requires exactly that set, in any order. Any other reference is `unverifiable`.
An answer that names no letter, or additional ones, is `incorrect`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from distill.thinking import Response
from distill.types import Problem, Verdict
from distill.verifiers.extract import MARKED, MARKER, TAIL, TAKEN, at_most, denied, final_answer
from distill.verifiers.number import canonical

LETTER = re.compile(
    r"\W*(?:(?:option|choice|answer)s?\b:?\s*)?\W*([A-Za-z])(?:\s*(?:[).:]|\})[^A-Za-z]?.*|\W*"
    r"|(?-i:(?<=[A-Z])(?:\s*=\s*|\s*[–—-]\s|\s+\()[^A-Za-z]*(?:[a-z\d]|[A-Z]\w).*))",
    re.DOTALL | re.IGNORECASE,
)
"""A letter, with what it stands for: "b) 12", "B = 12", "B - the cat". (Not "b = 12" or "B(x)", which are formulas.)"""
TOGETHER = re.compile(r"(?P<all>[A-Z]{2,10})")
BETWEEN = re.compile(r"\s*(?:[,;&/+|]|\band\b|\bor\b)\s*(?:\band\b|\bor\b)?\s*", re.IGNORECASE)
STATED = re.compile(
    r"(?i:\b(?:option|choice|answer)\b:?\s+(?:(?:is|would be|must be)\s+)?(?:option\s+)?)[(*$]{0,3}([A-Z])(?![\w'’])"
    r"|(?i:\b(?:choose|chose|pick|picked|select|selected|go with|going with)\b:?\s+(?:(?:option|choice|answer)\s+)?)"
    r"[(*$]{0,3}([A-Z])(?![\w'’])"
    r"|(?i:\b(?:therefore|thus|hence|so)\b[,:]?\s+(?:it(?:['’]s|\s+is|\s+must\s+be)\s+)?)[(*$]{0,3}([A-Z])[)*$]{0,3}[.!]?\s*(?=\n|$)"
    r"|(?i:(?:\A|(?<=[.\n,]))\s{0,9}it(?:['’]s|\s+is|\s+must\s+be)\s+)[(*$]{0,3}([A-Z])[)*$]{0,3}[.!]?\s*(?=\n|$)"
    r"|选择?[是:：\s]{0,3}[(*$]{0,3}([A-Z])(?!\w)|(?<!\w)\(([A-Z])\)|\b([A-Z])\b[)*$]{0,3}\s+(?:is|seems)\s+(?:the\s+)?(?:correct|right|best|answer)\b"
)
"""Phrases that choose a letter."""
OTHER = re.compile(r"(?<![\w'’])\(?([B-HJ-Z]|(?<=\()[AI](?=\)))(?![\w'’])")
"""Another letter in the same sentence. "A" and "I", which are also words, count only in brackets."""
SEVERAL = re.compile(r"(?<!\w)\(([A-Z])\)|(?<![\w(])([A-Z])\)")
"""A choice with its bracket: "(B) 12 (C) 13" chooses none. "(B) Vitamin C" has only one."""
CORRECTED = re.compile(
    r"\b(?i:wait|actually|no|correction|sorry|oops|i mean|scratch that|make that)\b[\s,:;.!—–-]{1,9}"
    r"(?:(?i:wait|actually|no|sorry|i|it|that|this|is|was|wrong|should|must|be|the|correct|right|answer|option|choice|mean"
    r"|it's|that's)\b[\s,:;.!—–-]{1,9}){0,12}[(*$]{0,3}([A-Z])(?![\w'’])[).*$!]*\s*(?=\n|$)"
)
"""A later letter that replaces the stated one: "The answer is B. Wait, it is C."."""
REASONS = re.compile(r",?\s*\b(?:since|because)\b.*", re.DOTALL)
NOT_OTHERS = re.compile(
    r"(?<!\s)\s*,?\s*\b(?:and\s+|but\s+)?not\s+[(*$]{0,3}[A-Z](?![\w'’])[)*$]{0,3}"
    r"(?:\s*(?:,|\bn?or\b|\band\b)\s*[(*$]{0,3}[A-Z](?![\w'’])[)*$]{0,3})*(?:,?\s+but\b)?"
)
"""Letters that are rejected next to the chosen one: "B, not A", "not A but B"."""
WRITTEN = MARKED | {TAKEN}
MAX_LENGTH = 500


@dataclass(frozen=True)
class Choice:
    name: ClassVar[str] = "choice"
    version: ClassVar[str] = "4"

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        wanted = letters(problem.reference)
        if not wanted:
            return Verdict.unverifiable(f"the reference names no letter: {problem.reference[:40]!r}")
        chosen, rule = choose(trace.answer)
        evidence = {"answer": chosen or None, "reference": wanted, "rule": rule}
        if not chosen:
            return Verdict.incorrect("no letter was chosen", **evidence)
        if chosen == wanted:
            return at_most(Verdict.correct(f"chose {chosen}", **evidence), rule)
        return Verdict.incorrect(f"chose {chosen}, not {wanted}", **evidence)

    quick = verify


def choose(answer: str) -> tuple[str, str]:
    """(letters, rule): the letters that a visible answer chooses, if any, and the rule that found them."""
    span = final_answer(answer)
    chosen = letters(span.text) or letters(REASONS.sub("", NOT_OTHERS.sub("", span.text[:MAX_LENGTH])))
    if span.rule == "answer:" and (later := CORRECTED.search(answer[-TAIL:], _last_marker(answer[-TAIL:]))):
        return later[1], "corrected"
    if not chosen and span.rule not in WRITTEN and (named := stated(answer)):
        return named, "last choice"
    return chosen, span.rule


def _last_marker(text: str) -> int:
    return max((found.end() for found in MARKER.finditer(text)), default=0)


def stated(text: str) -> str:
    """The letter that the last choosing sentence chooses; empty if that sentence denies it or names others."""
    text = text[-TAIL:]
    found = list(STATED.finditer(text))
    if not found:
        return ""
    last, group = found[-1], found[-1].lastindex or 0
    start = max(text.rfind(end, 0, last.start()) for end in (". ", "\n", "? ", "! ", "; ")) + 1
    sentence = re.split(r"[.?!;]\s|\n", text[start:].lstrip(), maxsplit=1)[0]
    sentence = NOT_OTHERS.sub("", sentence)
    if {other[1] for other in OTHER.finditer(sentence)} - {last[group]} or denied(text, *last.span(group)):
        return ""
    return last[group]


def letter(text: str) -> str | None:
    """The one letter chosen, as a capital; None if there is none or more than one."""
    chosen = letters(text)
    return chosen if len(chosen) == 1 else None


def letters(text: str) -> str:
    """The letters chosen, as capitals in alphabetical order: ``A, C``; empty if there are none."""
    if len(text) > MAX_LENGTH:
        return ""
    text = re.sub(r"\\[A-Za-z]+\s?\{|[{}$\\*]", " ", canonical(text)).strip()
    if together := TOGETHER.fullmatch(text.strip(" ()[].")):
        return _joined(together["all"]) if len(set(together["all"])) == len(together["all"]) else ""
    parts = [LETTER.fullmatch(part) for part in BETWEEN.split(text) if part]
    if len(parts) > 1 and all(parts):
        return _joined(part[1] for part in parts if part)
    found = LETTER.fullmatch(text)
    if not found or {one or other for one, other in SEVERAL.findall(text)} - {found[1].upper()}:
        return ""
    return found[1].upper()


def _joined(chosen: str | Iterable[str]) -> str:
    return ", ".join(sorted({one.upper() for one in chosen}))
