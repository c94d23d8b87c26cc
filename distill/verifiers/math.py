r"""`math`: is the final answer equal to the reference, as numbers or as formulas?

Three steps, each named in the evidence (``method``); the first that can tell decides:

1. the fast path, linear in the text and safe anywhere (`quick`): equal texts, words, letters, and exact
   numbers with their units. It settles nearly all integer answers;
2. the independent reading at random points (`latex`, `points`): a clear difference is a disproof;
3. algebra: math-verify (the extra ``verify``). Equal is said just where algebra and the points agree;
   where they disagree, or one alone says equal, the verdict is `unverifiable`.

An answer that leaves plain arithmetic undone (``12 + 30`` where 42 is asked) is wrong: otherwise copying
the question would be an answer. A decimal that is a fraction rounded (0.33 for 1/3) is `unverifiable`.
An unreadable reference never scores. Step 3 may hang in third-party code: run it in the pool.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from distill.thinking import Response
from distill.types import Problem, Verdict
from distill.verifiers import latex, points
from distill.verifiers.choice import letter
from distill.verifiers.extract import PROSE, Span, final_answer, last_box
from distill.verifiers.number import Number, canonical, plain, read_number

MAX_LENGTH = 2_000
INSTALL = "needs algebra: pip install 'distill[verify]'"
WORDS = re.compile(r"[A-Za-z]{3,}(?: [A-Za-z]+)*")
LETTER = re.compile(r"\(?[A-Z]\)?|\\text\s?\{\s?\(?[A-Z]\)?\s?\}")
UNDONE = re.compile(r"[\d\s.,()+\-*/]*(?:\\(?:times|cdot|div|left|right)[\d\s.,()+\-*/]*)*", re.ASCII)
BASE = re.compile(r"([0-9A-Za-z.]+)_(\d+)", re.ASCII)
TRAILING_UNIT = re.compile(r"(?<=\S)\s?(?:\\text\s?\{[^{}]*\}(?:\^\{?\d\}?)?|\^\\circ)$")


@dataclass(frozen=True)
class Math:
    name: ClassVar[str] = "math"
    version: ClassVar[str] = "1"

    def quick(self, problem: Problem, trace: Response) -> Verdict | None:
        """The fast path; None where it cannot tell."""
        reference = reference_of(problem)
        if isinstance(reference, Verdict):
            return reference
        span = final_answer(trace.answer)
        evidence = {"answer": span.text[:200], "reference": reference[:200], "rule": span.rule}
        if not span.text:
            return Verdict.incorrect("no answer", **evidence, method="text")
        if len(span.text) > MAX_LENGTH:
            return Verdict.unverifiable(f"the answer is longer than {MAX_LENGTH} characters", **evidence)
        return compare(reference, span, problem.reference, evidence)

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        verdict = self.quick(problem, trace)
        if verdict is not None:
            return verdict
        reference = reference_of(problem)
        assert isinstance(reference, str)
        span = final_answer(trace.answer)
        evidence = {"answer": span.text[:200], "reference": reference[:200], "rule": span.rule}
        return algebra(reference, canonical(span.text), evidence)

    def prepare(self) -> None:
        """Load algebra ahead of the first verdict, so that its import counts against no limit."""
        symbolic("1", "1")


def reference_of(problem: Problem) -> str | Verdict:
    """The reference in canonical form, or why there is none."""
    text = problem.reference
    if len(text) > MAX_LENGTH:
        return Verdict.unverifiable(f"the reference is longer than {MAX_LENGTH} characters")
    boxed = last_box(text)
    text = canonical(text if boxed is None else boxed)
    if not any(character.isalnum() for character in text):
        return Verdict.unverifiable("the reference is empty")
    if not balanced(text):
        return Verdict.unverifiable("the reference has unbalanced braces")
    return text


def balanced(text: str) -> bool:
    depth = 0
    for token in re.findall(r"\\.|[{}]", text, re.DOTALL):
        depth += (token == "{") - (token == "}")
        if depth < 0:
            return False
    return depth == 0


def nesting(text: str) -> int:
    """How deep brackets of any kind lie in each other."""
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def compare(reference: str, span: Span, raw_reference: str, evidence: dict[str, Any]) -> Verdict | None:
    """The fast path on canonical texts: texts, words, letters, bases, numbers."""
    given = canonical(span.text)
    wanted_text, given_text = plain(reference), plain(given)
    if wanted_text == given_text:
        return Verdict.correct("the same text", **evidence, method="text")
    if LETTER.fullmatch(reference) and len(wanted_text.strip("()")) == 1:
        return _same_letter(letter(reference), letter(given), evidence)
    if WORDS.fullmatch(_unwrapped(reference)) and _unwrapped(reference).casefold() not in latex.FUNCTIONS:
        return _same_words(_unwrapped(reference), _unwrapped(given), evidence)
    if wanted_base := BASE.fullmatch(wanted_text):
        return _same_base(wanted_base, BASE.fullmatch(given_text), evidence)
    wanted = read_number(reference)
    number = read_number(given) or read_number(given.rpartition("=")[2].strip())
    if wanted is not None and number is not None:
        return _same_number(wanted, number, evidence)
    undone = UNDONE.fullmatch(given.rpartition("=")[2]) and re.search(r"\d\s*\)?\s*([-+*/]|\\[tcd])", given)
    if wanted is not None and undone:
        return Verdict.incorrect("the arithmetic is left undone", **evidence, method="text")
    if wanted is not None and PROSE.search(given) and not re.search(r"\d|\\", given):
        return Verdict.incorrect("no number in the answer", **evidence, method="text")
    return None


def _unwrapped(text: str) -> str:
    return re.sub(r"\\text\s?\{([^{}]*)\}", r"\1", text).strip().strip(".").strip()


def _same_letter(wanted: str | None, given: str | None, evidence: dict[str, Any]) -> Verdict:
    if wanted == given:
        return Verdict.correct(f"chose {given}", **evidence, method="letter")
    return Verdict.incorrect(f"chose {given}, not {wanted}", **evidence, method="letter")


def _same_words(wanted: str, given: str, evidence: dict[str, Any]) -> Verdict:
    if " ".join(wanted.casefold().split()) == " ".join(given.casefold().split()):
        return Verdict.correct("the same words", **evidence, method="words")
    return Verdict.incorrect("different words", **evidence, method="words")


def _same_base(wanted: re.Match[str], given: re.Match[str] | None, evidence: dict[str, Any]) -> Verdict:
    if given is None:
        return Verdict.unverifiable("the reference names a base, the answer none", **evidence, method="base")
    return Verdict.incorrect("a different number in a base", **evidence, method="base")


def _same_number(wanted: Number, given: Number, evidence: dict[str, Any]) -> Verdict:
    evidence = evidence | {"method": "number"}
    units = {wanted.unit, given.unit} - {""}
    if len(units) == 2:
        return Verdict.unverifiable(f"the units differ: {' and '.join(sorted(units))}", **evidence)
    if wanted.value == given.value:
        return Verdict.correct("the same number", **evidence)
    if "%" in units and 100 in (wanted.value / (given.value or 1), given.value / (wanted.value or 1)):
        return Verdict.unverifiable("equal only if the percent sign means a hundredth", **evidence)
    if _rounded(wanted, given) or _rounded(given, wanted):
        return Verdict.unverifiable("equal only to the decimals written", **evidence)
    return Verdict.incorrect("a different number", **evidence)


def _rounded(exact: Number, decimal: Number) -> bool:
    """Is a fraction rounded to the decimals of the other?"""
    if exact.decimals is not None or decimal.decimals is None or decimal.decimals < 2:
        return False
    return abs(exact.value - decimal.value) * 2 * 10**decimal.decimals <= 1


def algebra(reference: str, given: str, evidence: dict[str, Any]) -> Verdict:
    """Steps 2 and 3, on canonical texts that the fast path could not tell apart."""
    wanted_tree, given_tree = _tree(reference), _tree(given)
    if wanted_tree is None and not re.search(r"\d|\\", reference):
        return Verdict.unverifiable("the reference cannot be read", **evidence, method="points")
    numeric = points.same(wanted_tree, given_tree) if wanted_tree and given_tree else None
    evidence = evidence | {"points": numeric}
    if numeric is False:
        return Verdict.incorrect("a different value", **evidence, method="points")
    if nesting(given) > latex.MAX_DEPTH:
        return Verdict.unverifiable("nested too deeply", **evidence, method="points")
    if given_tree and points.too_large(given_tree):
        return Verdict.unverifiable("too large to evaluate, or undefined", **evidence, method="points")
    equal = symbolic(reference, given)
    if isinstance(equal, str):
        return Verdict.unverifiable(equal, **evidence, method="algebra")
    evidence = evidence | {"method": "algebra", "algebra": equal}
    if equal and numeric:
        return Verdict.correct("equal by algebra, and at random points", **evidence)
    if equal:
        return Verdict.unverifiable("equal by algebra alone: it could not be checked at points", **evidence)
    if numeric:
        return Verdict.unverifiable("equal at random points, not by algebra", **evidence)
    return Verdict.incorrect("not equal", **evidence)


def _tree(text: str) -> latex.Node | None:
    try:
        return latex.read(TRAILING_UNIT.sub("", text))
    except latex.Unreadable:
        return None


def symbolic(reference: str, given: str) -> bool | str:
    """What math-verify says, or why it cannot say. No time limit of its own: the pool has one."""
    try:
        import math_verify
    except ImportError:
        return INSTALL
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    wanted = math_verify.parse(f"${reference}$", parsing_timeout=None)
    if not wanted:
        return "the reference cannot be parsed"
    return bool(math_verify.verify(wanted, math_verify.parse(f"${given}$", parsing_timeout=None), timeout_seconds=None))
