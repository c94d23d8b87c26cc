"""What a reasoning text does, by what it says: phrases of verification, backtracking, sub-goals; answers on the way.

Counts of phrases, no more: a model that says "wait" need not have looked back. So what is told beside them is whether
an answer that a text names on its way is the one that it ends with (`distill.emergence`).
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
"""How a text names an answer; the first group is the answer."""

Phrases = Mapping[str, Sequence[str]]


@cache
def shipped() -> Phrases:
    """The phrases of ``behaviours.yaml``."""
    import yaml

    found: Phrases = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return found


@cache
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE | re.MULTILINE)


def count(patterns: Sequence[str], text: str) -> int:
    """How often a text says any of it."""
    return sum(1 for _ in _compiled(tuple(patterns)).finditer(text)) if patterns else 0


def candidates(thinking: str, patterns: Sequence[str] = CANDIDATES) -> Iterator[str]:
    """The answers that a text names, in order."""
    found = [
        (match.start(), match[1].strip(" $*`'\""))
        for pattern in patterns
        for match in re.finditer(pattern, thinking, re.IGNORECASE | re.MULTILINE)
    ]
    yield from (answer for _, answer in sorted(found) if answer)


def earlier(thinking: str, answer: str, patterns: Sequence[str] = CANDIDATES) -> str | None:
    """The first answer that a text names and that is not, sign for sign, the one that it ends with."""
    finals = {_plain(answer), *map(_plain, candidates(answer, patterns))}
    return next((said for said in candidates(thinking, patterns) if _plain(said) not in finals), None)


def _plain(answer: str) -> str:
    return "".join(answer.casefold().split())
