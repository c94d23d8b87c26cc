r"""`math`: is the final answer equal to the reference, as numbers or as formulas?

There are three steps, each named in the evidence (``method``). The first that reaches a decision wins:

1. texts: equal texts, words, letters, bases, exact numbers with their units. It settles nearly all integers;
2. reading: both sides are parsed into trees (`latex`). Equal normal forms (`normal`) prove equality, a clear
   difference at random points (`points`) disproves it;
3. algebra: math-verify (the extra ``verify``), for what is equal at the points but not proved, and for
   what cannot be read. The verdict is `correct` only if algebra and the points agree. If they disagree, it is
   `unverifiable`, and the evidence has ``disagreement: true`` and both opinions (``algebra``, ``points``). If
   algebra alone says equal, it is `unverifiable` too.

Steps 1 and 2 are `quick`: bounded, without third-party code, safe anywhere. Step 3 may hang: run it in
the pool.

Decisions on cases that could go either way:

- If a number is asked for, plain arithmetic is not an answer (``12 + 30`` or ``5 \times 10`` for 42 and 50,
  ``\frac13 + \frac14`` for 7/12): copying the question would be enough. A sum, a difference, a product or a
  fraction of fractions is therefore wrong, whatever its value, also inside a function (``|6*7|``). One fraction, a
  power, a root, a factorial and a power of ten with its factor count as numbers.
- A percent sign is a unit, and like any unit it may be left out: 25 and 25% are the same, as are 25 and 25 apples.
  Only the question tells whether it means a hundredth, so 0.25 or 1/4 against 25% is `unverifiable`; 0.25 against 25
  is wrong. An ordinal (5th) against a number (5) is `unverifiable` too.
- A decimal that rounds an exact value or cuts it off (0.33 for 1/3, 0.66 for 2/3) is `unverifiable`.
- An answer that cannot be read is wrong, unless it has the reference in it, or exactly the reference's numbers. Nor is
  it wrong where the last number of a sentence was taken for it and the reference is another ("12 in 5 years").
- A box is never correct if the words around it deny or retract it (`extract`); a later answer counts instead.
- A reference that is one letter is read as a choice (`choice`). An unreadable reference never scores, nor do the
  placeholders that data sets use for a missing one (``proof``, ``not found``).
- A reference of words with a number in it (``June 20``, ``row 7``) is compared with words; a bare value against it
  (``8``, ``200 minutes``) is `unverifiable`, because nothing tells how to read one as the other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import ClassVar

from distill.thinking import Response
from distill.types import Outcome, Problem, Verdict
from distill.verifiers import algebra, latex, normal, points, units, words
from distill.verifiers.amounts import Evidence, rounds, same_number, same_short_unit
from distill.verifiers.choice import WRITTEN, choose, letter
from distill.verifiers.equality import Sameness
from distill.verifiers.extract import NUMBER, PROSE, TAIL, Span, at_most, final_answer, last_box
from distill.verifiers.extras import installed
from distill.verifiers.meaning import STRUCTURES, has_sign, same
from distill.verifiers.number import BRACES, Number, canonical, plain, read_digits, read_number
from distill.verifiers.relations import claimed
from distill.verifiers.tree import Node

MAX_LENGTH, MAX_FOR_ALGEBRA, MAX_NESTING = 2_000, 300, 20
LONG_DECIMAL = 10
ARBITRARY = frozenset("CKkmn")
"""Names that people choose freely: for any whole number, for a constant of integration."""
UNDONE = re.compile(r"[\d\s.,()+\-*/]*(?:\\(?:times|cdot|div|left|right)[\d\s.,()+\-*/]*)*", re.ASCII)
OPERATION = re.compile(r"\d\s*\)?\s*([-+*/]|\\[tcd])")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
DECIMAL_COMMA = re.compile(r"-?\d+,\d+")
SEVERAL = re.compile(r"[,;<>|]|\\(?:le|ge|ne|lt|gt|in|cup|pm|mp)(?![A-Za-z])|(?<![A-Za-z])(?:or|and)(?![A-Za-z])")
UNSOLVED = re.compile(r"[-+]?\s?\d[\d.]*\s?\\?[A-Za-z]\w*|.*[A-Za-z)]\s?\^.*", re.DOTALL)
ARROW = re.compile(r"(?:\\(?:implies|Rightarrow|Longrightarrow|iff|therefore)(?![A-Za-z])|=>)\s?")
APPROXIMATELY = re.compile(r"\s?\\approx(?![A-Za-z])\s?")


@dataclass(frozen=True)
class Math:
    name: ClassVar[str] = "math"

    @property
    def version(self) -> str:
        return f"5/{installed('math-verify')}"

    def quick(self, problem: Problem, trace: Response) -> Verdict | None:
        """Steps 1 and 2; None if step 3 must decide."""
        verdict, _, _, evidence = _without_algebra(problem, trace)
        return verdict and at_most(verdict, evidence.get("rule", ""))

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        verdict, reference, given, evidence = _without_algebra(problem, trace)
        return at_most(verdict or with_algebra(reference, given, evidence), evidence.get("rule", ""))

    def prepare(self) -> None:
        """Load math-verify before the first verdict, so that its import counts against no limit."""
        algebra.equal("1", "1")


def _without_algebra(problem: Problem, trace: Response) -> tuple[Verdict | None, str, str, Evidence]:
    reference = reference_of(problem.reference)
    if isinstance(reference, Verdict):
        return reference, "", "", {}
    if words.LETTER.fullmatch(reference) and letter(reference):
        chosen, rule = choose(trace.answer)
        if chosen:
            evidence_of_choice: Evidence = {"answer": chosen, "reference": reference, "rule": rule}
            return words.same_letter(letter(reference), chosen, evidence_of_choice), reference, "", evidence_of_choice
    span = final_answer(trace.answer)
    if span.rule not in WRITTEN and (decision := words.decides(reference, trace.answer)):
        span = Span(decision, "decision")
    evidence: Evidence = {"answer": span.text[:200], "reference": reference[:200], "rule": span.rule}
    if not span.text:
        return Verdict.incorrect("no answer", **evidence, method="text"), reference, "", evidence
    if len(span.text) > MAX_LENGTH:
        long = Verdict.unverifiable(f"the answer is longer than {MAX_LENGTH} characters", **evidence)
        return long, reference, "", evidence
    given = final_claim(canonical(span.text), reference)
    verdict = by_text(reference, given, evidence)
    if verdict is None:
        verdict, evidence = by_reading(reference, given, evidence)
    if verdict and verdict.outcome is Outcome.INCORRECT and (doubt := _doubt(reference, given, span, trace.answer)):
        verdict = Verdict.unverifiable(doubt, **evidence)
    return verdict, reference, given, evidence


def _doubt(reference: str, given: str, span: Span, answer: str) -> str:
    """Why a wrong value may be the wrong part of a sentence: "She will be 12 in 5 years", "The answer is 12!"."""
    if given.endswith("!") and span.rule not in ("boxed", "boxes"):
        calm = by_text(reference, given.rstrip("!"), {})
        return "equal only if the exclamation mark is no factorial" if calm and calm.outcome is Outcome.CORRECT else ""
    wanted = read_number(reference) if span.rule == "last number" else None
    line = answer.strip().rpartition("\n")[2][-TAIL:] if wanted else ""
    others = [read_number(found.group()) for found in NUMBER.finditer(line) if found.group()][:-1]
    same = any(wanted and number and number.value == wanted.value for number in others)
    return "the reference is another number in the last line" if same else ""


_digits = lru_cache(maxsize=2048)(read_digits)


@lru_cache(maxsize=2048)
def reference_of(text: str) -> str | Verdict:
    """The reference in canonical form, or an `unverifiable` verdict if it cannot be used."""
    if len(text) > MAX_LENGTH:
        return Verdict.unverifiable(f"the reference is longer than {MAX_LENGTH} characters")
    if _digits(text):
        return text
    boxed = last_box(text)
    text = canonical(text if boxed is None else boxed)
    if not any(character.isalnum() for character in text):
        return Verdict.unverifiable("the reference is empty")
    if words.PLACEHOLDER.fullmatch(words.unwrapped(text)):
        return Verdict.unverifiable(f"the reference is no answer, but a word in place of one: {text}")
    if not balanced(text):
        return Verdict.unverifiable("the reference has unbalanced braces")
    return text


def balanced(text: str) -> bool:
    """Whether braces match, grouping braces and literal (escaped) ones separately."""
    tokens = BRACES.findall(text)
    for opener, closer in (("{", "}"), (r"\{", r"\}")):
        depth = 0
        for token in tokens:
            depth += (token == opener) - (token == closer)
            if depth < 0:
                return False
        if depth:
            return False
    return True


def final_claim(given: str, reference: str) -> str:
    r"""What an answer finally claims: the part after its last arrow, without an approximation of its value.

    ``x = \sqrt2 \approx 1.41`` claims the square root, and ``x \approx 1.41`` claims 1.41. Nothing is dropped if the
    reference has an approximation too.
    """
    given = ARROW.split(given)[-1]
    if APPROXIMATELY.search(given) and not APPROXIMATELY.search(reference):
        exact, *_, last = APPROXIMATELY.split(given)
        return f"{exact} = {last}" if re.fullmatch(r"\\?[A-Za-z]\w*", exact) else exact or last
    return given


def by_text(reference: str, given: str, evidence: Evidence) -> Verdict | None:
    """Step 1, on canonical texts: texts, words, letters, bases, numbers."""
    digits, given_digits = _digits(reference), read_digits(given)
    if digits and given_digits and reference != given:
        same = digits.value == given_digits.value
        say = Verdict.correct if same else Verdict.incorrect
        return say("the same number" if same else "a different number", **evidence, method="number")
    wanted_text, given_text = reference if digits else plain(reference), given if given_digits else plain(given)
    if wanted_text == given_text:
        return Verdict.correct("the same text", **evidence, method="text")
    if words.LETTER.fullmatch(reference) and len(wanted_text.strip("()")) == 1:
        return words.same_letter(letter(reference), letter(given), evidence)
    if words.NOT_APPLICABLE.fullmatch(wanted_text):
        return words.same_words("not applicable", words.NOT_APPLICABLE.sub("not applicable", given_text), evidence)
    if wanted_base := words.BASE.fullmatch(words.in_base(wanted_text)):
        return words.same_base(wanted_base, words.in_base(given_text), evidence)
    if verdict := words.same_time(wanted_text, given_text, evidence):
        return verdict
    wanted = read_number(reference)
    if wanted is None and (verdict := same_short_unit(reference, given, evidence)):
        return verdict
    if wanted is not None:
        number = read_number(words.in_signs(given), short_unit=True) or _right_side_number(given)
        if number is not None:
            return same_number(wanted, number, evidence)
        if DECIMAL_COMMA.fullmatch(given) and read_digits(given.replace(",", ".")) == digits:
            return Verdict.unverifiable("equal only if the comma is a decimal one", **evidence, method="number")
        if _is_unfinished(given.rpartition("=")[2].strip()):
            return Verdict.incorrect("the arithmetic is left undone", **evidence, method="text")
        bare = words.unwrapped(given)
        if words.may_spell(bare, wanted.value):
            return Verdict.unverifiable("a number in words", **evidence, method="words")
        if (PROSE.search(bare) and not re.search(r"\d|\\", bare)) or words.LETTER.fullmatch(given):
            return Verdict.incorrect("no number in the answer", **evidence, method="text")
    elif (words.are_words(reference) or words.is_prose(reference)) and not latex.readings(reference):
        signs = words.in_signs(reference)
        if signs != reference and not signs.isdigit() and not words.are_words(given):
            return None
        if (spelled := words.in_digits(reference)) and (number := read_number(given)):
            return same_number(Number(Fraction(int(spelled)), "", 0), number, evidence)
        if (re.search(r"\d", reference) or words.LARGE.search(reference.casefold())) and _is_value(given):
            return Verdict.unverifiable("a value beside a reference in words with a number", **evidence, method="words")
        return words.same_words(reference, given, evidence)
    return None


def _is_value(text: str) -> bool:
    """Whether the text is a number, alone or with a known unit, or a formula: ``200 minutes``, but not ``21 June``."""
    if number := read_number(text):
        return not number.unit or units.quantity(number.unit) is not None
    return bool(latex.readings(_with_unit(text)[0]))


def _is_unfinished(text: str) -> bool:
    """Whether the text is unfinished arithmetic: operations on numbers, other than one fraction."""
    if UNDONE.fullmatch(text) and OPERATION.search(text):
        return True
    found = latex.readings(_with_unit(text)[0])
    return bool(found) and _has_unfinished(found[0])


def _has_unfinished(node: Node) -> bool:
    """Whether unfinished arithmetic is anywhere in it: in ``|6*7|``, ``\\{6*7\\}`` or ``\\sqrt{6 \\cdot 6}`` too."""
    if normal.exact(node) is not None:
        return _operations(node) > 1
    return any(_has_unfinished(part) for part in node.parts if isinstance(part, Node))


def _operations(node: Node) -> int:
    """The number of operations: a fraction counts as one, a sum or a product as two."""
    own = {"sum": 2, "product": 2, "quotient": 1}.get(node.kind, 0)
    return own + sum(_operations(part) for part in node.parts if isinstance(part, Node))


def _right_side_number(given: str) -> Number | None:
    """5 in ``x = 5`` and 42 in ``12 + 30 = 42``; None for ``x = 3, x = 5`` and for the unsolved ``2x = 10``."""
    left, _, right = given.rpartition("=")
    if not left or SEVERAL.search(left) or UNSOLVED.fullmatch(left.strip()) or not right:
        return None
    number = read_number(right.strip(), short_unit=True)
    claims = [claim for claim in latex.readings(left) if not points.variables(claim)] if number else []
    value = Node("number", (number.value,)) if number else None
    return None if value and any(same(claim, value) == Sameness.DIFFERENT for claim in claims) else number


def by_reading(reference: str, given: str, evidence: Evidence) -> tuple[Verdict | None, Evidence]:
    """Step 2: a verdict, or None, with the evidence for step 3."""
    (reference, wanted_unit), (given, given_unit) = _with_unit(reference), _with_unit(given)
    wanted, answers = latex.readings(reference), latex.readings(given)
    if not any(reading.kind == "relation" for reading in wanted):
        answers = tuple(claimed(answer) for answer in answers)
    found = {same(one, other) for one in wanted for other in answers}
    sameness = found.pop() if len(found) == 1 else Sameness.UNKNOWN
    evidence = evidence | {"points": {0: False, 1: None}.get(sameness, True)}
    if sameness > Sameness.UNKNOWN and wanted_unit and given_unit and not units.alike(wanted_unit, given_unit):
        verdict = Verdict.unverifiable(f"the units differ: {wanted_unit} and {given_unit}", **evidence, method="points")
    elif sameness == Sameness.LIKELY and _has_long_decimal(reference, given):
        verdict = Verdict.unverifiable("equal only to the decimals written", **evidence, method="points")
    elif sameness == Sameness.PROVED:
        verdict = Verdict.correct("equal in normal form", **evidence, method="normal form")
    elif sameness == Sameness.DIFFERENT:
        verdict = _different(wanted[0], answers[0], (reference, given), (wanted_unit, given_unit), evidence)
    elif wanted and not answers and words.are_words(given):
        verdict = Verdict.incorrect("words, where a value is asked for", **evidence, method="words")
    elif not _fit_for_algebra(reference, wanted):
        verdict = Verdict.unverifiable("the reference is too large, or undefined", **evidence, method="points")
    elif algebra.nesting(given) > MAX_NESTING or "!!" in given or (answers and len(given) > MAX_FOR_ALGEBRA):
        verdict = Verdict.unverifiable("too long or nested too deeply for algebra", **evidence, method="points")
    elif wanted and (len(given) > MAX_FOR_ALGEBRA or not any(character.isalnum() for character in given)):
        verdict = _unread(reference, given, evidence | {"method": "points"})
    elif answers and any(_undefined(answer) for answer in answers):
        verdict = Verdict.unverifiable("too large to evaluate, or undefined", **evidence, method="points")
    elif len(wanted) > 1 or len(answers) > 1:
        verdict = Verdict.unverifiable("it can be read in two ways", **evidence, method="points")
    else:
        return None, evidence
    return verdict, evidence


def _with_unit(text: str) -> tuple[str, str]:
    return units.split(words.in_signs(text))


def _different(wanted: Node, given: Node, texts: tuple[str, str], unit: tuple[str, str], evidence: Evidence) -> Verdict:
    """The verdict on a clear difference, unless a decimal is the other side rounded, or degrees meet radians."""
    evidence = evidence | {"method": "points"}
    if any(_is_rounded(exact, text) for exact, text in ((wanted, texts[1]), (given, texts[0]))):
        return Verdict.unverifiable("equal only to the decimals written", **evidence)
    if ("°" in unit[0]) != ("°" in unit[1]):
        turn = Node("quotient", (Node("name", (), "pi"), Node("number", (180,))))
        degrees, other = (wanted, given) if "°" in unit[0] else (given, wanted)
        if degrees.kind not in STRUCTURES and same(Node("product", (degrees, turn)), other) > Sameness.UNKNOWN:
            return Verdict.unverifiable("equal only if one is in degrees and the other is not", **evidence)
    ours, theirs = points.variables(wanted), points.variables(given)
    renamed = len(ours - theirs) == len(theirs - ours) == 1 and (ours ^ theirs) <= ARBITRARY
    if renamed and same(wanted, _renamed(given, *(theirs - ours), *(ours - theirs))) > Sameness.UNKNOWN:
        return Verdict.unverifiable("equal only if the two names stand for the same", **evidence)
    return Verdict.incorrect("a different value", **evidence)


def _renamed(node: Node, old: str, new: str) -> Node:
    parts = tuple(_renamed(part, old, new) if isinstance(part, Node) else part for part in node.parts)
    return Node(node.kind, parts, new if (node.kind, node.name) == ("name", old) else node.name)


def _is_rounded(exact: Node, text: str) -> bool:
    """Whether the text is a decimal to which the value of ``exact`` rounds, or is cut off."""
    decimal, value = read_number(text), points.values(exact)
    if not decimal or not decimal.decimals or decimal.decimals < 2 or not value or exact.kind == "number":
        return False
    if value[0].value.imag or abs(value[0].value) > 1e12:
        return False
    return rounds(Number(Fraction(value[0].value.real), "", None), decimal)


def _has_long_decimal(*texts: str) -> bool:
    """Whether one text is a decimal so long that it can agree at the points although it is rounded."""
    return any((number.decimals or 0) >= LONG_DECIMAL for text in texts if (number := read_number(text)))


def _fit_for_algebra(reference: str, readings: tuple[Node, ...]) -> bool:
    if algebra.nesting(reference) > MAX_NESTING or len(reference) > MAX_FOR_ALGEBRA:
        return False
    return not any(_undefined(reading) for reading in readings)


def _undefined(node: Node) -> bool:
    """Whether a value in it overflows or does not exist. math-verify would only hang on it."""
    if node.kind in STRUCTURES:
        return any(_undefined(part) for part in node.parts)
    return node.kind != "infinity" and not has_sign(node) and points.values(node) is None and not _infinite(node)


def _infinite(node: Node) -> bool:
    return node.kind == "infinity" or any(_infinite(part) for part in node.parts if isinstance(part, Node))


def with_algebra(reference: str, given: str, evidence: Evidence) -> Verdict:
    """Step 3, on canonical texts that the points find equal (True in the evidence) or cannot compare (None)."""
    numeric = evidence["points"]
    equal = algebra.equal(units.in_radians(reference), units.in_radians(given))
    if isinstance(equal, str):
        return Verdict.unverifiable(equal, **evidence, method="algebra")
    evidence = evidence | {"method": "algebra", "algebra": equal}
    if equal and numeric:
        return Verdict.correct("equal by algebra, and at random points", **evidence)
    if equal:
        return Verdict.unverifiable("equal by algebra alone: it could not be checked at points", **evidence)
    if numeric:
        return Verdict.unverifiable("equal at random points, not by algebra", **evidence, disagreement=True)
    if not latex.readings(_with_unit(reference)[0]) and not read_number(reference):
        return Verdict.unverifiable("the reference cannot be read, and algebra finds no equality", **evidence)
    if latex.readings(_with_unit(given)[0]):
        return Verdict.unverifiable("not equal by algebra alone: the two are no objects of one kind", **evidence)
    return _unread(reference, given, evidence)


def _unread(reference: str, given: str, evidence: Evidence) -> Verdict:
    """The verdict on an answer that cannot be parsed: incorrect, unless it has the reference in it, or its digits."""
    wanted, said = (THOUSANDS.sub("", plain(text)) for text in (reference, given))
    if wanted in said:
        return Verdict.unverifiable("the reference stands in an answer that cannot be read", **evidence)
    if (digits := sorted(re.findall(r"\d+", wanted))) and digits == sorted(re.findall(r"\d+", said)):
        return Verdict.unverifiable("the numbers of the reference stand in an answer that cannot be read", **evidence)
    return Verdict.incorrect("the answer cannot be read as what is asked for", **evidence)
