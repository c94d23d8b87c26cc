"""Check proofs written as numbered lines: each is a premise, an assumption, or follows from the lines it cites.

    1. p -> q      [premise]
    2. p           [assume]
    3. q           [1, 2]                 words beside the numbers are ignored: [1, 2 modus ponens]
    4. p -> q      [discharge 2: 3]       line 3, concluded under assumption 2, holds without it as "2 -> 3"

A step is right if z3 shows that its formula follows from the cited lines. Any rule of natural deduction passes, and so
does a step that combines several rules. A step may cite at most `MOST_CITED` lines, so that a proof from more premises
than that cannot be a single step. Every line depends on the assumptions of the lines that it cites. The last line must
be the conclusion itself, and depend on none. There are no arbitrary individuals: all formulas are closed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from distill.verifiers.entailment import BUDGET, follows
from distill.verifiers.formula import Formula, Joined, Signature, Unreadable, alike
from distill.verifiers.interpretation import Interpretation
from distill.verifiers.syntax import parse

MOST_LINES = 60
MOST_CITED = 3
STEP_BUDGET = BUDGET // 4
"""Steps should be small, so each gets a smaller budget of z3's steps than a whole question."""
NUMBERED = re.compile(r"\s*(?:\\item\s*)?\(?(\d{1,4})[.):]\s*(.*)")
REASON = re.compile(
    r"(.+?)\s*(?:\[([^\[\]]*)\]|\(((?:by|from|premise|given|assum|discharge)[^()]*"
    r"|(?<=\s\()[^()=&|~!<>]*(?<![\w.])\d{1,4}(?![\w.])[^()=&|~!<>]*)\)|\b((?:by|from)\s.*|premise|given))\.?\s*$",
    re.IGNORECASE,
)
NUMBER = re.compile(r"(?<![\w.])\d{1,4}(?![\w.]*\w)")
PREMISE = re.compile(r"\b(?:premise|given|hypothesis)", re.IGNORECASE)
ASSUMPTION = re.compile(r"\bassum", re.IGNORECASE)
DISCHARGE = re.compile(r"\bdischarg\w*\D*?(\d{1,4})\b", re.IGNORECASE)


class Line(NamedTuple):
    number: int
    formula: Formula
    how: str
    """premise, assumption or step."""
    cited: tuple[int, ...] = ()
    discharged: int | None = None
    text: str = ""


class Flaw(NamedTuple):
    """The first line that is wrong (None: the proof as a whole), and why. ``sure`` is False if z3 gave up."""

    line: int | None
    reason: str
    sure: bool = True
    countermodel: Interpretation | None = None


def read(text: str) -> list[Line]:
    """The numbered lines in ``text``; other lines are ignored. Raises `Unreadable`, which names the bad line."""
    lines: list[Line] = []
    for found in filter(None, map(NUMBERED.fullmatch, text.splitlines())):
        lines.append(_line(int(found[1]), " ".join(found[2].split())))
        if len(lines) > MOST_LINES:
            raise Unreadable(f"more than {MOST_LINES} lines")
    if not lines:
        raise Unreadable("no numbered line")
    return lines


def _line(number: int, text: str) -> Line:
    found = REASON.fullmatch(text)
    if found is None:
        raise Unreadable(f"line {number} does not say in brackets what it follows from")
    reason = found[2] or found[3] or found[4] or ""
    try:
        formula = parse(found[1].rstrip(" ,;:-—"))
    except Unreadable as error:
        raise Unreadable(f"line {number}: {error}") from None
    if discharge := DISCHARGE.search(reason):
        rest = reason[: discharge.start()] + " " + reason[discharge.end() :]
        return Line(number, formula, "step", _numbers(rest), int(discharge[1]), text)
    if PREMISE.search(reason):
        return Line(number, formula, "premise", text=text)
    if ASSUMPTION.search(reason):
        return Line(number, formula, "assumption", text=text)
    return Line(number, formula, "step", _numbers(reason), text=text)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(map(int, NUMBER.findall(text))))


def flaw(lines: Sequence[Line], premises: Sequence[Formula], conclusion: Formula) -> Flaw | None:
    """The first flaw of a proof, or None if it is valid."""
    signature = Signature.of([*premises, conclusion])
    proved: dict[int, Line] = {}
    assumed: dict[int, frozenset[int]] = {}
    for line in lines:
        try:
            signature.add(line.formula)
        except Unreadable as error:
            return Flaw(line.number, str(error))
        if line.number in proved:
            return Flaw(line.number, "its number is there twice")
        if line.how == "premise" and not any(alike(line.formula, premise) for premise in premises):
            return Flaw(line.number, "it is none of the premises")
        if line.how == "step" and (wrong := _wrong_step(line, proved, assumed)):
            return wrong
        proved[line.number] = line
        assumed[line.number] = _assumptions(line, assumed)
    last = lines[-1]
    if not alike(last.formula, conclusion):
        return Flaw(last.number, "the last line is not the conclusion")
    if open_ones := assumed[last.number]:
        return Flaw(last.number, f"it still depends on the assumption in line {min(open_ones)}")
    return None


def _assumptions(line: Line, assumed: dict[int, frozenset[int]]) -> frozenset[int]:
    if line.how == "assumption":
        return frozenset({line.number})
    return frozenset().union(*(assumed[cited] for cited in line.cited)) - {line.discharged}


def _wrong_step(line: Line, proved: dict[int, Line], assumed: dict[int, frozenset[int]]) -> Flaw | None:
    if missing := [cited for cited in (*line.cited, line.discharged) if cited is not None and cited not in proved]:
        return Flaw(line.number, f"it cites line {missing[0]}, which does not come before it")
    if len(line.cited) > MOST_CITED:
        return Flaw(line.number, f"it cites {len(line.cited)} lines; a step takes {MOST_CITED} at most")
    if line.discharged is not None and proved[line.discharged].how != "assumption":
        return Flaw(line.number, f"line {line.discharged} is no assumption that could be discharged")
    given = []
    for cited in line.cited:
        formula = proved[cited].formula
        if line.discharged in assumed[cited]:
            formula = Joined("implies", (proved[line.discharged].formula, formula))
        given.append(formula)
    decision = follows(given, line.formula, STEP_BUDGET)
    if decision.together is False:
        return None
    cites = "lines " + ", ".join(map(str, line.cited)) if line.cited else "nothing"
    if decision.together is None:
        return Flaw(line.number, f"whether it follows from {cites} was too hard to tell", sure=False)
    return Flaw(line.number, f"it does not follow from {cites}", countermodel=decision.model)
