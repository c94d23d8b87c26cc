"""Find behaviours in reasoning text: phrases of verification, backtracking and sub-goals, and intermediate answers.

Behaviours are only counts of phrases: a model that writes "wait" has not necessarily looked back.
`distill.evaluation.emergence` therefore also reports whether an answer that the text names on the way is its last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

CANDIDATES = (
    r"\\boxed\s*\{([^{}]+)\}",
    r"\b(?:answer|result) (?:is|=|:|must be|should be)\s*:?\s*([^\n]+?)(?:\.(?=\s|$)|,\s|;|\n|$)",
)
"""Patterns that find an answer in a text; the first group is the answer."""

Phrases = Mapping[str, Sequence[str]]


@cache
def shipped() -> Phrases:
    """The phrases in ``behaviours.yaml``."""
    import yaml

    found: Phrases = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return found


@cache
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE | re.MULTILINE)


def count(patterns: Sequence[str], text: str) -> int:
    """The number of matches of any of ``patterns`` in ``text``."""
    return sum(1 for _ in _compiled(tuple(patterns)).finditer(text)) if patterns else 0


def candidates(thinking: str, patterns: Sequence[str] = CANDIDATES) -> Iterator[str]:
    """The answers named in a text, in order."""
    found = [
        (match.start(), match[1].strip(" $*`'\""))
        for pattern in patterns
        for match in re.finditer(pattern, thinking, re.IGNORECASE | re.MULTILINE)
    ]
    yield from (answer for _, answer in sorted(found) if answer)


def earlier(thinking: str, answer: str, patterns: Sequence[str] = CANDIDATES) -> str | None:
    """The first answer named in ``thinking`` that differs from the final one, ignoring case and white space."""
    finals = {_plain(answer), *map(_plain, candidates(answer, patterns))}
    return next((named for named in candidates(thinking, patterns) if _plain(named) not in finals), None)


def _plain(answer: str) -> str:
    return "".join(answer.casefold().split())
