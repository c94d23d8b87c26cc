r"""Units after a number: which words are units, how large they are, whether two measure the same thing.

A unit is a text like ``cm 2``, ``km / hour`` or ``apple``. The table below holds those that can be converted; any other
word is a unit that equals only itself. A percent sign is such a unit: 10% is 10 of the unit percent, never 0.1.
"""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

SCALES = {
    "dozen": 12, "hundred": 10**2, "thousand": 10**3, "lakh": 10**5, "million": 10**6, "crore": 10**7, "billion": 10**9,
    "trillion": 10**12, "quadrillion": 10**15,
}  # fmt: skip
NO_UNIT = frozenset(
    {"and", "or", "not", "is", "are", "than", "less", "more", "most", "least", "about", "wrong", "times", "minus"}
    | {"plus", "over", "pi", "sqrt", "sin", "cos", "tan", "log", "ln", "if", "mod", "to", "from", "factorial"}
    | {"extraneous", "rejected", "invalid", "impossible", "incorrect", "false", "no", "never", "excluded", "fails"}
    | {"halved", "double", "doubled", "twice", "tripled", "tens", "negative", "below", "remainder", "root"}
    | {"reciprocal", "inverse", "maybe", "perhaps", "alternatively", "else"}
)
FRACTIONS = frozenset(
    {"half", "halve", "quarter", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"}
    | {"twelfth", "hundredth", "thousandth"}
)
"""No units either, and nor are their plurals. (Plural logs and roots are things that are counted.)"""
ALIASES = {
    "dollar": "$", "usd": "$", "buck": "$", "percent": "%", "percentage": "%", "degree": "°", "deg": "°",
    "euro": "€", "eur": "€", "inche": "inch", "in": "inch", "feet": "foot", "ft": "foot", "yd": "yard", "mi": "mile",
    "meter": "m", "metre": "m", "centimeter": "cm", "centimetre": "cm", "millimeter": "mm", "millimetre": "mm",
    "kilometer": "km", "kilometre": "km", "gram": "g", "kilogram": "kg", "milligram": "mg", "kilo": "kg",
    "tonne": "t", "lb": "pound", "lbs": "pound", "oz": "ounce", "liter": "l", "litre": "l", "milliliter": "ml",
    "millilitre": "ml", "s": "second", "sec": "second", "min": "minute", "hr": "hour", "h": "hour", "cents": "cent",
    "¢": "cent", "sq": "square", "cubed": "3", "squared": "2", "st": "th", "nd": "th", "rd": "th",
    "kbyte": "kilobyte", "gbyte": "gigabyte", "tbyte": "terabyte", "kbit": "kilobit", "gbit": "gigabit",
    "tbit": "terabit",
}  # fmt: skip
KNOWN: dict[str, tuple[str, Fraction]] = {
    "mm": ("length", Fraction(1, 1000)), "cm": ("length", Fraction(1, 100)), "m": ("length", Fraction(1)),
    "km": ("length", Fraction(1000)), "inch": ("length", Fraction(254, 10_000)),
    "foot": ("length", Fraction(3048, 10_000)), "yard": ("length", Fraction(9144, 10_000)),
    "mile": ("length", Fraction(1_609_344, 1000)),
    "second": ("time", Fraction(1)), "minute": ("time", Fraction(60)), "hour": ("time", Fraction(3600)),
    "day": ("time", Fraction(86_400)), "week": ("time", Fraction(604_800)),
    "mg": ("mass", Fraction(1, 1000)), "g": ("mass", Fraction(1)), "kg": ("mass", Fraction(1000)),
    "t": ("mass", Fraction(10**6)), "ounce": ("mass", Fraction(28_349_523_125, 10**9)),
    "pound": ("mass", Fraction(45_359_237, 10**5)),
    "ml": ("volume", Fraction(1, 1000)), "l": ("volume", Fraction(1)),
    "$": ("money", Fraction(1)), "cent": ("money", Fraction(1, 100)),
}  # fmt: skip
MOST_WORDS = 5
POSITION = "th"
"""The suffix of an ordinal number."""
BYTES = re.compile(r"\b([kKMGT]i?)(B|b)(?=s?\b)")
MEGA = re.compile(r"\bM(?=(?:g|m|l|L|W|J|V|byte|bit|Hz|Pa)s?\b)")
"""Case matters only in these two patterns: a milligram is not a megagram, and a bit is not a byte."""
WORD = re.compile(r"[^\W\d_]+|[%$€£¢¥₹]|\^\{?\d\}?|/")
FILLING = re.compile(r"[\s.()'’{}-]*")
"""What may stand between the words of a unit. Digits and commas may not: ``5\\text{, 6}`` is a list."""
SHORT = {"mph": "mile/hour", "kmh": "km/hour", "kph": "km/hour", "per cent": "percent", "pct": "percent"}
TEXT = re.compile(r"\\text\s?\{([^{}]*)\}")
TRAILING = re.compile(
    r"(?<=\S)(?:\s?\\text\s?\{(?P<text>[^{}]*)\}|\s(?P<word>(?:square|sq|cubic)?\s?[A-Za-z]{2,}))(?P<power>\s?\^\{?[23]\}?)?$|"
    r"(?<=\S)\s?(?P<degrees>\^\\circ(?:\s?[CF])?)$"
)

TRIGONOMETRY = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
"""Degrees after one of these belong to its argument, and are not a unit of the whole."""
DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s?\^\{?\\circ\}?")


class Quantity(NamedTuple):
    dimension: tuple[tuple[str, int], ...]
    size: Fraction


def read(text: str) -> tuple[int, str] | None:
    """(scale, unit) of the text after a number; None if that is not a unit ("squared" is a power)."""
    text = TEXT.sub(r" \1 ", text).replace(r"^\circ", " degree ")
    text = BYTES.sub(lambda found: found[1] + ("byte" if found[2] == "B" else "bit"), text)
    text = MEGA.sub("mega", text).lower()
    for short, long in SHORT.items():
        text = re.sub(rf"\b{short}\b", long, text)
    if not FILLING.fullmatch(WORD.sub("", text)):
        return None
    scale = 1
    words: list[str] = []
    for word in WORD.findall(text):
        if word in NO_UNIT or word.removesuffix("s") in FRACTIONS:
            return None
        if word.removesuffix("s") in SCALES and not words:
            scale *= SCALES[word.removesuffix("s")]
        elif word not in ("of", "the"):
            words.append(_alias(word))
    if len(words) > MOST_WORDS or (words and words[0].isdigit()):
        return None
    return scale, " ".join(words)


def split(text: str) -> tuple[str, str]:
    r"""A formula and the unit after it (``12\pi\text{ cm}^2``); no unit unless it certainly is one."""
    found = TRAILING.search(text)
    if found is None or (found["degrees"] and TRIGONOMETRY.search(text)):
        return text, ""
    if found["word"] and not all(_alias(word) in KNOWN or word in UNITS for word in found["word"].lower().split()):
        return text, ""
    unit = read(found.group())
    return (text[: found.start()].rstrip(), unit[1]) if unit and unit[0] == 1 else (text, "")


def in_radians(text: str) -> str:
    """Convert degrees to radians in a text with trigonometric functions, for math-verify, which knows no degrees."""
    return DEGREES.sub(r"(\1\\pi/180)", text) if TRIGONOMETRY.search(text) else text


UNITS = frozenset({"unit", "units", "square", "sq", "cubic", "degrees", "percent"})
"""More words that may follow a formula without ``\\text``."""


def _alias(word: str) -> str:
    word = "/" if word == "per" else word.strip("^{}")
    if word in ALIASES:
        return ALIASES[word]
    singular = word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
    return ALIASES.get(singular, singular)


def alike(one: str, other: str) -> bool:
    """Whether two units are the same, however they are written: ``cm 2`` and ``square cm``."""
    ours, theirs = quantity(one), quantity(other)
    return one == other or (ours is not None and ours == theirs)


def quantity(unit: str) -> Quantity | None:
    """The dimension and the size of a unit; None if a word is not in the table."""
    dimension: Counter[str] = Counter()
    size, sign, power = Fraction(1), 1, 1
    last: tuple[str, Fraction] | None = None
    for word in unit.split():
        if word == "/":
            sign, last = -1, None
        elif word in ("square", "cubic"):
            power = 2 if word == "square" else 3
        elif word.isdigit() and last:
            more = int(word) - 1
            dimension[last[0]] += sign * more
            size *= last[1] ** (sign * more)
        elif word in KNOWN:
            last = KNOWN[word]
            dimension[last[0]] += sign * power
            size *= last[1] ** (sign * power)
            power = 1
        else:
            return None
    return Quantity(tuple(sorted((name, n) for name, n in dimension.items() if n)), size)
