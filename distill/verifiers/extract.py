r"""Which part of a visible answer is the final answer, and by what rule it was found.

The rules, in order; the first that finds something wins and is named in the verdict's evidence:

1. ``boxed``: the last balanced ``\boxed{...}`` (an earlier box is a thought the writer left behind);
2. ``####``: what follows the last ``####`` on its line (GSM8K);
3. ``answer:``: what follows the last "answer is", "answer:" or "answer =" on its line;
4. ``last line``: the last line, where it is short and holds no prose;
5. ``last formula``: the last ``$...$`` or ``\(...\)``;
6. ``last number``: the last number in the text;
7. ``text``: the last line, whatever it is.

Nothing here looks at the reference, so no wrong answer is found by looking for the right one. Every
rule takes time linear in the text. What the span means is `distill.verifiers.number` and
`distill.verifiers.latex`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
MARKER = re.compile(r"\banswer\s{0,9}(?:is|:|=)[\s:*]*(?:is\b[\s:*]*)?", re.IGNORECASE)
FORMULA = re.compile(
    r"\$\$([^$]{1,2000})\$\$|(?<!\\)\$([^$\n]{1,2000})\$|\\\(([^\n]{1,2000}?)\\\)|\\\[(.{1,2000}?)\\\]", re.DOTALL
)
NUMBER = re.compile(r"(?<![\w.])[-−]?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))(?:/\d+)?%?", re.ASCII)
SENTENCE_END = re.compile(r"[.!?]\s")
FONT = re.compile(r"\\(?:text|mbox|mathrm|textbf)\s?\{[^{}]*\}")
LINE_LENGTH = 200
PHRASE_WORDS = 4
TAIL = 5_000
"""Rules 3 to 7 read the end of the text alone, this many characters of it."""


class Span(NamedTuple):
    text: str
    rule: str


def final_answer(text: str) -> Span:
    """The span to be judged; empty text where there is nothing at all."""
    if (box := last_box(text)) is not None:
        return Span(box, "boxed")
    if "####" in text:
        return Span(text.rpartition("####")[2].strip().partition("\n")[0].strip(), "####")
    tail = text[-TAIL:].strip()
    if markers := list(MARKER.finditer(tail)):
        rest = tail[markers[-1].end() :].strip().partition("\n")[0]
        if rest:
            return Span(_without_prose(_clean(SENTENCE_END.split(rest)[0])), "answer:")
    line = tail.rpartition("\n")[2].strip()
    if len(line) <= LINE_LENGTH and any(c.isalnum() for c in line) and not PROSE.search(line):
        return Span(_clean(line), "last line")
    if formulas := _formulas(tail):
        return Span(formulas[-1], "last formula")
    if numbers := list(NUMBER.finditer(tail)):
        return Span(numbers[-1].group(), "last number")
    return Span(line, "text")


def last_box(text: str) -> str | None:
    r"""The content of the last balanced ``\boxed{...}`` or ``\fbox{...}``, in one pass over the text.

    The box that closes last is meant: a box inside a box closes before it, an unclosed one never.
    """
    opened: list[tuple[int, bool]] = []
    found: tuple[int, int] | None = None
    for match in re.finditer(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", text, re.DOTALL):
        token = match.group()
        if token == "}" and opened:
            start, boxed = opened.pop()
            found = (start, match.start()) if boxed else found
        elif token == "{" or len(token) > 2:
            opened.append((match.end(), token != "{"))
    if found is None:
        return None
    content = text[found[0] : found[1]].strip()
    inner = re.match(r"\\(?:boxed|fbox)\s*\{", content)
    return content[inner.end() : -1].strip() if inner and content.endswith("}") else content


def _formulas(text: str) -> list[str]:
    """What stands between dollar signs and the like; not what stands between two sums of money."""
    found = [next(filter(None, match.groups())).strip() for match in FORMULA.finditer(text)]
    return [formula for formula in found if not PROSE.search(FONT.sub("", formula))]


def _without_prose(sentence: str) -> str:
    """The formula or the leading number of "42 because 6 times 7 is that"; a short phrase stays whole."""
    if len(sentence.split()) <= PHRASE_WORDS or not PROSE.search(sentence):
        return sentence
    if formulas := _formulas(sentence):
        return formulas[0]
    number = NUMBER.match(sentence)
    return number.group() if number and number.group() else sentence


def _clean(line: str) -> str:
    return line.strip().strip("*").strip().rstrip(".,;").strip("`").strip()
