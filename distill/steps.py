"""Split a response into reasoning steps: the one implementation for labels, reward models, rewards and search.

A step is a span of the generated response, without the surrounding white space. Think tags belong to no step and always
end one, so that the answer never shares a step with the thinking. The rules:

- ``line``: each line that is not blank;
- ``paragraph``: text between blank lines;
- ``numbered``: a new step at each line that begins with a number (``1.``, ``2)``, ``Step 3:``), and at the answer;
- ``tokens:N``: every N tokens of the reader's tokenizer, for text without structure. It needs the spans of the tokens.

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
    """``text`` is ``response[start:end]``."""

    start: int
    end: int
    text: str


def check_rule(rule: str) -> str:
    """Return ``rule`` if it exists, otherwise raise ValueError; for settings."""
    size = rule.removeprefix(TOKENS)
    if rule not in BOUNDARIES and not (rule != size and size.isdecimal() and int(size) > 0):
        raise ValueError(f"no rule for steps is called {rule!r}; there are: {', '.join(BOUNDARIES)}, {TOKENS}N")
    return rule


Rule = Annotated[str, AfterValidator(check_rule)]
Split = Callable[[str], list[Step]]
"""Splits a response into steps by one rule."""


def needs_tokens(rule: str) -> bool:
    return rule.startswith(TOKENS)


def split(text: str, rule: str = "line", tokens: Sequence[Span] | None = None) -> list[Step]:
    """The steps of a response, in order; none if it holds only white space and tags.

    ``tokens`` are the spans of its tokens, for the rule that counts them. An unfinished response has the same steps as
    far as it goes; the last one may be incomplete.
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
    """`split` with a fixed rule; ``tokenizer`` is used if the rule counts tokens."""

    def cut(text: str) -> list[Step]:
        return split(text, rule, spans_of(tokenizer, text)[1] if tokenizer and needs_tokens(rule) else None)

    return cut


def spans_of(tokenizer: Any, text: str) -> tuple[list[int], list[Span]]:
    """The token ids of a text by itself, and the span of each token."""
    if not tokenizer.is_fast:
        raise InputError("steps need a fast tokenizer, which reports the offsets of its tokens; this one is not fast")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoded["input_ids"]), [(start, end) for start, end in encoded["offset_mapping"]]


def last_tokens(steps: Sequence[Step], tokens: Sequence[Span]) -> list[int]:
    """For each step, the index of the last token with a character of it; ``tokens`` are the spans of the whole text."""
    ends, at = [], 0
    for step in steps:
        while at + 1 < len(tokens) and tokens[at + 1][0] < step.end:
            at += 1
        ends.append(at)
    return ends


def _parts(text: str, boundary: re.Pattern[str], span: Span) -> Iterator[Span]:
    """The parts of a span between the matches of ``boundary``, in order."""
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
