r"""`regex`: the final answer matches a regular expression (Python's `re`).

The expression is the reference, or ``pattern`` for all problems (the reference is then ignored). All of the final
answer must match; with ``search: true`` any part of it may. ``whole: true`` takes the whole visible
answer instead of the span that `extract` finds, ``ignore_case: true`` ignores case. A dot matches a line
break too.

There is no quick part: an expression that takes forever costs one verdict in the pool, nothing more. A bad
``pattern`` is reported at once; a bad reference is `unverifiable`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from distill.thinking import Response
from distill.types import Problem, Verdict
from distill.verifiers.extract import at_most, final_answer
from pipeline.errors import InputError


@dataclass(frozen=True)
class Regex:
    pattern: str | None = None
    """The expression for all problems. Default: each problem's reference."""
    search: bool = False
    """Any part of the answer may match, not only all of it."""
    whole: bool = False
    """Match the whole visible answer, not just the final answer found in it."""
    ignore_case: bool = False
    """Ignore case."""

    name: ClassVar[str] = "regex"
    version: ClassVar[str] = "3"

    def __post_init__(self) -> None:
        if self.pattern is not None:
            problem = _problem_with(self.pattern)
            if problem:
                raise InputError(f"verifier 'regex': pattern {str(self.pattern)[:80]!r} {problem}")

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        pattern = problem.reference if self.pattern is None else self.pattern
        if trouble := _problem_with(pattern):
            return Verdict.unverifiable(f"the reference {pattern[:80]!r} {trouble}")
        text, rule = (trace.answer.strip(), "whole") if self.whole else final_answer(trace.answer)
        evidence = {"answer": text[:200], "reference": pattern[:200], "rule": rule}
        compiled = re.compile(pattern, re.DOTALL | (re.IGNORECASE if self.ignore_case else 0))
        found = compiled.search(text) if self.search else compiled.fullmatch(text)
        if found is None:
            return Verdict.incorrect("no match", **evidence)
        return at_most(Verdict.correct("a match", **evidence, match=found.group()[:200]), rule)


def _problem_with(pattern: object) -> str:
    """Why this is not a regular expression; empty if it is one."""
    if not isinstance(pattern, str):
        return "is no text"
    if not pattern:
        return "is empty"
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"is no regular expression: {error}"
    return ""
