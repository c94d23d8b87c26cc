r"""Which part of a visible answer is the final answer, and by what rule it was found.

The rules, in order; the first that finds something wins and is named in the verdict's evidence:

1. ``boxed``: the last balanced ``\boxed{...}`` (an earlier box is a thought the writer left behind);
   ``boxes`` where nothing but "and", "or" or a comma stands between the last ones: together they are a list;
2. ``####``: what follows the last ``####`` on its line (GSM8K);
3. ``corrected``: a value put in place of the one that rule 4 finds ("Wait, no: 6", "Actually, it is 6");
4. ``answer:``: what follows the last "answer is", "answer:" or "answer =" on its line;
5. ``last line``: the last line, where it is short and holds no prose;
6. ``last formula``: the last ``$...$`` or ``\(...\)``;
7. ``last clause``: what follows the last "is" or equals sign of the last line, where it holds no prose;
8. ``last number``: the last number in the text, unless "not" stands before it;
9. ``text``: the last line, whatever it is.

Nothing here looks at the reference, so no wrong answer is found by looking for the right one. Every
rule takes time linear in the text. What the span means is `distill.verifiers.number` and
`distill.verifiers.latex`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from distill.verifiers.tree import SHORT_WORDS

PROSE = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]{3,}|(?i:" + "|".join(sorted(SHORT_WORDS)) + r")(?![A-Za-z]))")
MARKER = re.compile(
    r"\banswers?(?:\s{1,9}(?:to|for|of)\b[^.\n:=]{0,60}?)?[\s*]{0,9}"
    r"(?:\b(?:is|are|(?:should|must|would) be|equals)\b|:|=)"
    r"(?:\s{1,9}(?:therefore|thus|then|simply|just|indeed|clearly|equal to)\b,?)?[\s:*]*(?:is\b[\s:*]*)?",
    re.IGNORECASE,
)
VALUE = r"(?:[-−+]?\$?\(?[-−]?\.?\d|\$|\\[(\[a-z]|\*\*)"
CORRECTION = re.compile(
    r"\b(?:wait|actually|no|correction|sorry|oops|i mean|scratch that|make that)\b[\s,:;.!—–-]*"
    r"(?:(?:wait|actually|no|sorry|oops|correction|i|mean|it|that|this|is|was|wrong|be|should|must|the|correct|right|"
    r"answer|value|result|make|rather|it's|that's)\b[\s,:;.!—–-]*){0,12}(?=" + VALUE + ")",
    re.IGNORECASE,
)
BETWEEN_BOXES = re.compile(
    r"[\s$.]*(?:\\[\])])?[\s$]*(?:,|;|(?:,\s*)?\b(?:and|or)\b|(?:,\s*)?\\text\s?\{\s*(?:and|or)\s*\})[\s$]*(?:\\[\[(])?"
    r"[\s$]*(?:[A-Za-z]\w?\s*=)?[\s$]*"
)
FORMULA = re.compile(
    r"\$\$([^$]{1,2000})\$\$|(?<!\\)\$([^$\n]{1,2000})\$|\\\(([^\n]{1,2000}?)\\\)|\\\[(.{1,2000}?)\\\]", re.DOTALL
)
NUMBER = re.compile(r"(?<![\w.√^/])[-−]?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))(?:/\d+)?%?", re.ASCII)
SENTENCE_END = re.compile(r"[.?]\s|(?<![\d)}\\])!\s")
FONT = re.compile(r"\\(?:text|mbox|mathrm|textbf|begin|end)\s?\{[^{}]*\}")
CLAUSE = re.compile(r"\b(?:is|are|be|equals)\b|=")
NEGATION = re.compile(r"\bnot\b|n't\b", re.IGNORECASE)
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
BOX_TOKEN = re.compile(BOX.pattern + r"|\\.|[{}]", re.DOTALL)
LINE_LENGTH = 200
PHRASE_WORDS = 4
GAP = 60
TAIL = 5_000
"""Rules 3 to 7 read the end of the text alone, this many characters of it."""


class Span(NamedTuple):
    text: str
    rule: str


def final_answer(text: str) -> Span:
    """The span to be judged; empty text where there is nothing at all."""
    if boxes := _last_boxes(text):
        return Span(", ".join(boxes), "boxes" if len(boxes) > 1 else "boxed")
    if "####" in text:
        return Span(text.rpartition("####")[2].strip().partition("\n")[0].strip(), "####")
    tail = text[-TAIL:].strip()
    if markers := list(MARKER.finditer(tail)):
        rest = tail[markers[-1].end() :].strip()
        corrections = list(CORRECTION.finditer(rest))
        if corrections:
            rest = rest[corrections[-1].end() :]
        if said := SENTENCE_END.split(rest.partition("\n")[0])[0].strip():
            return Span(_without_prose(_clean(said)), "corrected" if corrections else "answer:")
    line = tail.rpartition("\n")[2].strip()
    if len(line) <= LINE_LENGTH and any(c.isalnum() for c in line) and not PROSE.search(line):
        return Span(_clean(line), "last line")
    if formulas := _formulas(tail):
        return Span(formulas[-1], "last formula")
    clause = _clean(CLAUSE.split(line)[-1])
    if clause != line and len(clause) <= LINE_LENGTH and re.search(r"\d|\\", clause) and not PROSE.search(clause):
        return Span(clause, "last clause")
    numbers = list(NUMBER.finditer(tail))
    if numbers and not NEGATION.fullmatch(tail[: numbers[-1].start()].rstrip()[-3:]):
        return Span(numbers[-1].group(), "last number")
    return Span(line, "text")


def last_box(text: str) -> str | None:
    r"""The content of the last balanced ``\boxed{...}`` or ``\fbox{...}``; None where there is none."""
    boxes = _boxes(text)
    return _content(text, boxes[-1]) if boxes else None


def _last_boxes(text: str) -> list[str]:
    """The last box, and those before it from which a mere connector parts it; equal ones once."""
    boxes = _boxes(text)
    first = len(boxes) - 1
    while first > 0 and _connected(text[boxes[first - 1].end + 1 : boxes[first].start]):
        first -= 1
    return list(dict.fromkeys(_content(text, box) for box in boxes[first:])) if boxes else []


def _connected(between: str) -> bool:
    return len(between) <= GAP and BETWEEN_BOXES.fullmatch(between) is not None


class _Box(NamedTuple):
    """Where ``\\boxed`` starts, where its content does, and where that ends."""

    start: int
    inside: int
    end: int


def _boxes(text: str) -> list[_Box]:
    """All balanced boxes that lie in no other, in one pass over the text; an unclosed one is none."""
    first = BOX.search(text)
    if first is None:
        return []
    opened: list[tuple[int, int, bool]] = []
    found: list[_Box] = []
    # What stands before the first box matters just where a backslash may take away its own.
    for match in BOX_TOKEN.finditer(text, 0 if text[: first.start()].endswith("\\") else first.start()):
        token = match.group()
        if token == "}" and opened:
            start, inside, boxed = opened.pop()
            if boxed:
                while found and found[-1].start > start:
                    found.pop()
                found.append(_Box(start, inside, match.start()))
        elif token == "{" or len(token) > 2:
            opened.append((match.start(), match.end(), token != "{"))
    return found


def _content(text: str, box: _Box) -> str:
    content = text[box.inside : box.end].strip()
    inner = BOX.match(content)
    return content[inner.end() : -1].strip() if inner and content.endswith("}") else content


def _formulas(text: str) -> list[str]:
    """What stands between dollar signs and the like; not what stands between two sums of money."""
    found = [next(filter(None, match.groups())).strip() for match in FORMULA.finditer(text)]
    return [formula for formula in found if not PROSE.search(FONT.sub("", formula))]


def _without_prose(sentence: str) -> str:
    """The formula or the leading number of "42 because 6 times 7 is that"; a short phrase stays whole."""
    if not PROSE.search(FONT.sub("", sentence)) or NEGATION.search(sentence):
        return sentence
    if formulas := _formulas(sentence):
        return formulas[0]
    if len(sentence.split()) <= PHRASE_WORDS:
        return sentence
    number = NUMBER.match(sentence)
    return number.group() if number and number.group() else sentence


def _clean(line: str) -> str:
    return line.strip().strip("*").strip().rstrip(".,;").strip("`").strip()
