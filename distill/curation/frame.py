"""Frames: what all prompts of a source, or of an evaluation set, begin and end with, such as an instruction. It says
nothing about the problem.

With it, two short problems would be near duplicates, and every problem would be contaminated as soon as the evaluation
set used the same instruction. So it is removed before texts are compared. A few texts may have content in common, so
fewer than `LEAST` texts have no frame.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

LEAST = 10
END_OF_WORD = re.compile(r"\S*$")
BEGIN_OF_WORD = re.compile(r"^\S*")


class Frames:
    """Gathers the frames of sources, text by text."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, str, str]] = {}
        """By source: how many texts, their common beginning, and their common end, reversed."""

    def see(self, texts: Iterable[tuple[str, str]]) -> None:
        """Take in texts, each as (source, text)."""
        for source, text in texts:
            count, begin, end = self._seen.get(source, (0, text, text[::-1]))
            if begin or end:
                begin, end = _common(begin, text), _common(end, text[::-1])
            self._seen[source] = count + 1, begin, end

    def cutter(self) -> Cutter:
        """What removes the frames seen so far: whole words only, the longest first."""
        enough = [(begin, end[::-1]) for count, begin, end in self._seen.values() if count >= LEAST]
        begins = {END_OF_WORD.sub("", begin) for begin, _ in enough}
        ends = {BEGIN_OF_WORD.sub("", end) for _, end in enough}
        return Cutter(_longest_first(begins), _longest_first(ends))


def _common(one: str, other: str) -> str:
    """The common prefix of both."""
    at = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:at]


def _longest_first(parts: Iterable[str]) -> list[str]:
    return sorted((part for part in parts if part.strip()), key=lambda part: (-len(part), part))


class Cutter:
    """Removes the longest frame that fits from a text; a text that is nothing but a frame stays whole."""

    def __init__(self, begins: list[str], ends: list[str]) -> None:
        self._begins, self._ends = begins, ends

    def __call__(self, text: str) -> str:
        begin = next((len(part) for part in self._begins if text.startswith(part)), 0)
        end = next((len(part) for part in self._ends if text.endswith(part)), 0)
        inside = text[begin : len(text) - end]
        return inside if inside.strip() else text
