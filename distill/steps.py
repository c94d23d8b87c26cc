"""Where a step of reasoning begins and ends: the one rule, used by labels, reward models, rewards and search.

A step is a span of a response as it was generated, without the white space around it. Think tags belong to no step
and always end one, so that the answer is never in one step with the thinking. The rules:

- ``line``: each line that holds anything;
- ``paragraph``: what blank lines part;
- ``numbered``: a new step at each line that begins with a number (``1.``, ``2)``, ``Step 3:``), and at the answer;
- ``tokens:N``: every N tokens of whoever reads it, for text without any form. It needs the tokens' spans.

Left out: splitting by a model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator

from distill.thinking import CLOSE, OPEN
from pipeline.errors import InputError

Span = tuple[int, int]

TAGS = re.compile("|".join(map(re.escape, (OPEN, CLOSE))))
BOUNDARIES = {
    "line": re.compile(r"\n"),
    "paragraph": re.compile(r"\n[ \t]*\n"),
    "numbered": re.compile(r"(?m)^(?=[ \t]*(?:(?:\*\*)?[Ss]tep[ \t]+)?\d+(?:[.):](?!\d)))"),
}
TOKENS = "tokens:"


@dataclass(frozen=True, slots=True)
class Step:
    """``text`` is what stands from ``start`` to before ``end`` in the response."""

    start: int
    end: int
    text: str


def check_rule(rule: str) -> str:
    """``rule``, if there is such a one; for settings."""
    size = rule.removeprefix(TOKENS)
    if rule not in BOUNDARIES and not (rule != size and size.isdecimal() and int(size) > 0):
        raise ValueError(f"no rule for steps is called {rule!r}; there are: {', '.join(BOUNDARIES)}, {TOKENS}N")
    return rule


Rule = Annotated[str, AfterValidator(check_rule)]
Split = Callable[[str], list[Step]]
"""A rule at work on one response."""


def needs_tokens(rule: str) -> bool:
    return rule.startswith(TOKENS)


def split(text: str, rule: str = "line", tokens: Sequence[Span] | None = None) -> list[Step]:
    """The steps of a response, in order; none where there is nothing but white space and tags.

    ``tokens`` are the spans of its tokens, for the rule that counts them. A response that is only begun has the
    same steps as far as it goes: the last is what there is of it.
    """
    try:
        check_rule(rule)
    except ValueError as error:
        raise InputError(str(error)) from None
    parts = _parts(text, TAGS, (0, len(text)))
    if needs_tokens(rule):
        if tokens is None:
            raise InputError(f"steps by {rule} need the spans of the tokens")
        found = [run for part in parts for run in _runs(tokens, part, int(rule.removeprefix(TOKENS)))]
    else:
        found = [piece for part in parts for piece in _parts(text, BOUNDARIES[rule], part)]
    steps = (_stripped(text, span) for span in found)
    return [Step(start, end, text[start:end]) for start, end in steps if start < end]


def splitter(rule: str, tokenizer: Any = None) -> Split:
    """`split` by one rule; a ``tokenizer`` is asked where the rule counts its tokens."""

    def cut(text: str) -> list[Step]:
        return split(text, rule, spans_of(tokenizer, text)[1] if tokenizer and needs_tokens(rule) else None)

    return cut


def spans_of(tokenizer: Any, text: str) -> tuple[list[int], list[Span]]:
    """The tokens of a text on its own: ids, and where each stands."""
    if not tokenizer.is_fast:
        raise InputError("steps need a fast tokenizer, which tells where its tokens stand; this one cannot")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoded["input_ids"]), [(start, end) for start, end in encoded["offset_mapping"]]


def last_tokens(steps: Sequence[Step], tokens: Sequence[Span]) -> list[int]:
    """For each step the last token that holds a character of it, where ``tokens`` are spans of the whole text."""
    ends, at = [], 0
    for step in steps:
        while at + 1 < len(tokens) and tokens[at + 1][0] < step.end:
            at += 1
        ends.append(at)
    return ends


def _parts(text: str, boundary: re.Pattern[str], span: Span) -> Iterator[Span]:
    """What a boundary leaves of a span, in order."""
    at, end = span
    for match in boundary.finditer(text, at, end):
        yield at, match.start()
        at = match.end()
    yield at, end


def _runs(tokens: Sequence[Span], part: Span, size: int) -> Iterator[Span]:
    inside = [(start, end) for start, end in tokens if part[0] <= start < part[1]]
    for n in range(0, len(inside), size):
        run = inside[n : n + size]
        yield run[0][0], min(run[-1][1], part[1])


def _stripped(text: str, span: Span) -> Span:
    start, end = span
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())
