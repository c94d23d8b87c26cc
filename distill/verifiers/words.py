r"""Answers in words, letters and number bases: the part of `math` that compares names instead of values.

Verdicts here are certain: the same words, or words with nothing in common. An answer that only shares some words with
the reference ("not an ellipse") is `unverifiable`.
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise
from typing import Any

from distill.types import Verdict

WORDS = re.compile(r"[A-Za-z]{2,}(?:[ '-][A-Za-z]+)*|[A-Za-z]{3,}")
LETTER = re.compile(r"\(?[A-Z]\)?|\\text\s?\{\s?\(?[A-Z]\)?\s?\}")
BASE = re.compile(
    r"(?=[A-Za-z.]*\d[\w.]*_|[A-F]+_\{?1[1-6]|[a-f]{2,}_\{?16)(?P<digits>[0-9A-Za-z.]+)_\{?(?P<base>\d{1,2})\}?",
    re.ASCII,
)
"""A number in a base. Letters alone count only if they can be digits in it: ``x_1`` is a variable."""
ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
IN_BASE = re.compile(
    rf"\(?(?P<digits>(?=[A-Fa-f]*\d)[0-9A-Fa-f.]+?)\)?(?:_\{{?\(?(?:base)?|\(?(?:in)?base)"
    rf"(?P<base>\d{{1,2}}|{'|'.join(ONES[2:17])})\)?\}}?"
)
CLOCK = re.compile(r"\d{1,2}:\d{2}(?::\d{2})?(?:[ap]\.?m\.?)?", re.ASCII | re.IGNORECASE)
NOT_APPLICABLE = re.compile(r"n\.?\s?/\s?a\.?|not\s?applicable", re.IGNORECASE)
PLACEHOLDER = re.compile(r"proof|not\s?found", re.IGNORECASE)
"""What data sets such as NuminaMath write if a problem asks for a proof, or its answer was not found."""
TEXT = re.compile(r"\\text\s?\{([^{}]*)\}")
DECISIONS = frozenset({"yes", "no", "true", "false"})
SAME_DECISION = frozenset(
    (one, other) for words in (("yes", "true", "y", "t"), ("no", "false", "n", "f")) for one in words for other in words
)
NO_OF = re.compile(
    r"\W*no\s+(?!(?:and|as|because|but|for|he|i|in|it|or|she|since|so|that|the|there|they|this|we)\b)\w", re.IGNORECASE
)
"""A no that belongs to the word after it: "no one", "no more than 5"."""
FILLERS = frozenset({"a", "an", "the", "it", "is", "its"})
SAME_WORDS = {
    "none": "no solution", "no solutions": "no solution", "no real solution": "no solution",
    "no real solutions": "no solution", "dne": "does not exist", "doesn't exist": "does not exist",
    "infinitely many solutions": "infinitely many", "infinite": "infinitely many",
    "undefined": "does not exist",
}  # fmt: skip
IN_SIGNS = {
    "no solution": r"\emptyset", "empty set": r"\emptyset", "infinity": r"\infty", "negative infinity": r"-\infty",
    "infinitely many": r"\infty",
    "all real numbers": r"\mathbb{R}", "all reals": r"\mathbb{R}", "real numbers": r"\mathbb{R}",
}  # fmt: skip
LARGE = re.compile(
    r"\b(?:half|halves|(?:third|quarter|(?:four|fif|six|seven|eigh|nin|ten)th|hundred|thousand|million|dozen)s?)\b"
)
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def unwrapped(text: str) -> str:
    return TEXT.sub(r" \1 ", text).strip(" .,!$*")


def are_words(text: str) -> bool:
    return WORDS.fullmatch(unwrapped(text)) is not None


def decides(reference: str, answer: str) -> str:
    """The last line of an answer if it begins with a decision, as the reference is one: "No, because 7 is prime"."""
    line = answer.strip().rpartition("\n")[2]
    begins = re.match(rf"\W*(?:{'|'.join(DECISIONS)})\b", line, re.IGNORECASE)
    return line.strip("* ") if begins and unwrapped(reference).casefold() in DECISIONS else ""


def in_signs(text: str) -> str:
    """Phrases such as ``no solution`` as LaTeX, and number words as digits. Other texts stay as they are."""
    if not are_words(text):
        return text
    return IN_SIGNS.get(" ".join(_normalized_words(text))) or in_digits(text) or text


def is_prose(text: str) -> bool:
    """Whether a text is words and numbers without any mathematics: ``June 20``."""
    return re.fullmatch(r"[\w\s.,'’:-]+", unwrapped(text)) is not None and re.search(r"[^\W\d_]{3}", text) is not None


def in_digits(text: str) -> str | None:
    """``seventy-two`` as 72, ``minus two`` as -2; None for anything but a number from 0 to 99 in words."""
    tens, *ones = re.split(r"[ -]", unwrapped(text).casefold())
    sign = ""
    if tens in ("minus", "negative") and ones:
        sign, (tens, *ones) = "-", ones
    if tens in ONES and not ones:
        return f"{sign}{ONES.index(tens)}"
    if tens in TENS and len(ones) < 2 and all(one in ONES[1:10] for one in ones):
        return f"{sign}{20 + 10 * TENS.index(tens) + sum(ONES.index(one) for one in ones)}"
    return None


def may_spell(text: str, value: Fraction) -> bool:
    """Whether a text may have this number in it, in words: "twelve apples", "three quarters"."""
    said = re.findall(r"[a-z]+", text.casefold()) if not re.search(r"\d|\\", text) else []
    pairs = (f"{one} {other}" for one, other in pairwise(said))
    return LARGE.search(text.casefold()) is not None or any(in_digits(part) == str(value) for part in (*said, *pairs))


def same_letter(wanted: str | None, given: str | None, evidence: dict[str, Any]) -> Verdict:
    if wanted == given:
        return Verdict.correct(f"chose {given}", **evidence, method="letter")
    return Verdict.incorrect(f"chose {given}, not {wanted}", **evidence, method="letter")


def same_words(wanted: str, given: str, evidence: dict[str, Any]) -> Verdict:
    """The verdict for a reference in words. A decision (yes, no) may be followed by its reasons."""
    evidence = evidence | {"method": "words"}
    ours, theirs = _normalized_words(wanted), _normalized_words(given)
    if ours[:1] and ours[0] in DECISIONS and len(ours) == 1 and theirs and theirs[0] in DECISIONS:
        rest = [word for word in theirs[1:] if word not in ("or", "and")]
        if len(rest) == 1 and rest[0] in DECISIONS - {theirs[0]}:
            return Verdict.incorrect("two decisions", **evidence)
        if NO_OF.match(unwrapped(given)):
            return Verdict.unverifiable("a no that may be no decision", **evidence)
        theirs = theirs[:1]
    if ours == theirs:
        return Verdict.correct("the same words", **evidence)
    if len(ours) == len(theirs) == 1 and (ours[0], theirs[0]) in SAME_DECISION:
        return Verdict.unverifiable("the same decision in another word", **evidence)
    if {word for word in ours if word.isdigit()} - set(theirs):
        return Verdict.incorrect("different numbers in the words", **evidence)
    if set(ours) & set(theirs) - DECISIONS:
        return Verdict.unverifiable("some of the words are the same", **evidence)
    return Verdict.incorrect("different words", **evidence)


def _normalized_words(text: str) -> list[str]:
    words = [word for word in re.findall(r"[^\W_]+(?:'[^\W_]+)?", unwrapped(text).casefold()) if word not in FILLERS]
    known = SAME_WORDS.get(" ".join(words))
    return known.split() if known else words


def same_base(wanted: re.Match[str], given: str, evidence: dict[str, Any]) -> Verdict:
    """The verdict for a number with a base. In another base or without one, equal digits or values decide nothing."""
    evidence = evidence | {"method": "base"}
    found = BASE.fullmatch(given) or re.fullmatch(r"(?P<digits>[0-9A-Za-z.]+)(?P<base>)", given, re.ASCII)
    if found is None:
        if wanted["digits"] in given or str(_value(wanted["digits"], wanted["base"])) in given:
            return Verdict.unverifiable("the reference names a base, the answer none", **evidence)
        return Verdict.incorrect("no number in a base", **evidence)
    ours, theirs = _value(wanted["digits"], wanted["base"]), _value(found["digits"], found["base"] or "10")
    if wanted["base"] == found["base"]:
        same = ours == theirs if ours is not None else wanted["digits"] == found["digits"]
        verdict = Verdict.correct if same else Verdict.incorrect
        return verdict("the same number" if same else "a different number in its base", **evidence)
    if wanted["digits"] == found["digits"] or ours is None or ours == theirs:
        return Verdict.unverifiable("equal but for the base that the reference names", **evidence)
    return Verdict.incorrect("a different number in a base", **evidence)


def _value(digits: str, base: str) -> int | None:
    try:
        return int(digits, int(base))
    except ValueError:
        return None


def in_base(text: str) -> str:
    """A number with its base as ``12_8``, also if it was "12 base 8" or ``(12)_8``. Other texts stay as they are."""
    found = IN_BASE.fullmatch(text)
    if found is None:
        return text
    return f"{found['digits']}_{in_digits(found['base']) if found['base'].isalpha() else found['base']}"


def _time(text: str) -> str:
    return re.sub(r"[.\s]|^0|(?<=\d:\d\d):00", "", text.casefold())


def _in_halves(text: str) -> str:
    """15:45 as 3:45pm."""
    hour, colon, rest = text.partition(":")
    return f"{int(hour) - 12}{colon}{rest}pm" if hour.isdigit() and 12 < int(hour) < 24 else text


def same_time(wanted: str, given: str, evidence: dict[str, Any]) -> Verdict | None:
    """The verdict for times of day (12:00), which look like ratios: equal as texts or not at all. None for others."""
    if not CLOCK.fullmatch(wanted) or not CLOCK.fullmatch(given):
        return None
    ours, theirs = (_time(text) for text in (wanted, given))
    if theirs.endswith("m") != ours.endswith("m"):
        ours, theirs = (_in_halves(text) for text in (ours, theirs))
    halves = {text[-2:] for text in (ours, theirs) if text.endswith("m")}
    if len(halves) < 2 and ours.rstrip("apm") == theirs.rstrip("apm"):
        return Verdict.correct("the same time", **evidence, method="words")
    if halves or ":0" in ours + theirs:
        return Verdict.incorrect("a different time", **evidence, method="words")
    return None
