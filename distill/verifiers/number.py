r"""Numbers as people write them, read exactly: the fast path of the `math` verifier.

`canonical` brings the many spellings of one LaTeX text together, `plain` goes on to a form fit for
comparing texts, and `read_number` reads integers, thousands separators, decimals, percents, fractions
(``\frac``, ``a/b``, mixed numbers), powers of ten, money and units as an exact `Fraction`. Whatever it
cannot read wholly is None: no number is ever found inside something else.

A percent sign is a unit like any other: ``10\%`` is 10 of the unit percent, never 0.1.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

MAX_LENGTH = 1_000

UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ",
        "√": r"\sqrt ", "°": r"^\circ ", "∪": r"\cup ", "∈": r"\in ", "±": r"\pm ", "≤": r"\le ", "≥": r"\ge ",
        "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
        "⅛": r"\frac{1}{8}", "⅕": r"\frac{1}{5}", "⅖": r"\frac{2}{5}", "⅗": r"\frac{3}{5}", "⅘": r"\frac{4}{5}",
        "⅙": r"\frac{1}{6}", "⅚": r"\frac{5}{6}", "⅜": r"\frac{3}{8}", "⅝": r"\frac{5}{8}", "⅞": r"\frac{7}{8}",
        "²": "^{2}", "³": "^{3}", "⁄": "/", "\u00a0": " ", "\u202f": " ", "\u2009": " ",
    }
    | {chr(0xFF10 + digit): str(digit) for digit in range(10)}
)  # fmt: skip
"""By hand and not by NFKC, which makes 52 of 5²."""

REWRITES = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (r"\\(?:left|right|displaystyle|bigl?|bigr|Bigl?|Bigr)(?![A-Za-z])\s?", ""),
        (r"(?<!\\)\\!\s?|(?<!\\)\\(?=\s*$)", ""),
        (r"\{,\}(?=\d)", ","),
        (r"(?<!\\)\\[,;:> ]|\\q?quad\b|~", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:mathrm|mathbf|mathit|boldsymbol|operatorname)\s*\{([A-Za-z])\}", r"\1"),
        (r"\\(?:mbox|textbf|textit|textrm|textnormal|mathrm|mathbf|operatorname)(?![A-Za-z])", r"\\text"),
        (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![A-Za-z])|\\degree(?![A-Za-z])", r"^\\circ"),
        (r"\\leq?(?![A-Za-z])", r"\\le"),
        (r"\\geq?(?![A-Za-z])", r"\\ge"),
        (r"\\([%$])", r"\1"),
        (r"\s+", " "),
    )
)
WRAPPERS = (("$$", "$$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"))

INTEGER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:[ ]\d{3})+(?!\d)|\d+)"
DECIMAL = rf"(?:{INTEGER}(?:\.\d*)?|\.\d+)"
PART = r"(?:\{\s*(-?\s?\d+(?:\.\d+)?)\s*\}|\s*(\d))"
NUMBER = re.compile(
    rf"""(?P<sign>[-+]?)\ ?(?P<money>\$?)\ ?(?P<sign2>[-+]?)\ ?(?:
      (?P<whole>\d+)?\s?\\frac\s?{PART}\s?{PART}
      |(?:(?P<whole2>\d+)\s)?\(?(?P<over>\d+)\)?\s?/\s?\(?(?P<under>\d+)\)?
      |(?P<decimal>{DECIMAL})(?:\s?(?:\\times|\\cdot|\*|x)\s?10\^(?:\{{\s?(?P<power>[-+]?\d{{1,3}})\s?\}}|(?P<power2>\d))
                               |[eE](?P<power3>[-+]?\d{{1,3}}))?
    )\s?(?P<unit>.*)""",
    re.VERBOSE | re.ASCII | re.DOTALL,
)
UNIT = re.compile(
    r"(?:%|\^\\circ(?:\s?[CF])?|(?:\\text\s?\{([^{}]*)\}|(?<![A-Za-z])[A-Za-z]{2,})(?:\^\{?[23]\}?)?|[\s./])*", re.ASCII
)
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
NO_UNIT = frozenset(
    {"and", "or", "not", "is", "are", "than", "less", "more", "most", "least", "about", "wrong", "times", "minus"}
    | {"plus", "over", "pi", "sqrt", "sin", "cos", "tan", "log", "ln"}
)
ALIASES = {
    "dollar": "$", "usd": "$", "percent": "%", "percentage": "%", "degree": "°", "deg": "°", "inche": "inch",
    "feet": "foot",
}  # fmt: skip


class Number(NamedTuple):
    """``unit`` is "" where none is written; ``decimals`` is None for anything but a decimal number."""

    value: Fraction
    unit: str
    decimals: int | None


def canonical(text: str) -> str:
    """One spelling of spaces, fractions, fonts and signs; delimiters and a final full stop are gone."""
    text = text.translate(UNICODE)
    for pattern, by in REWRITES:
        text = pattern.sub(by, text)
    text = text.strip().rstrip(".;").strip()
    for left, right in WRAPPERS:
        if text.startswith(left) and text.endswith(right) and len(text) >= len(left + right):
            text = text[len(left) : len(text) - len(right)].strip()
    if text.startswith("$") and text.endswith("$") and text.count("$") == 2:
        text = text[1:-1].strip()
    return text.rstrip(".").strip()


def plain(canonical_text: str) -> str:
    """For comparing texts: no fonts, no spaces, braces only where they group more than one sign."""
    text = re.sub(r"\\text\s?\{([^{}]*)\}", r"\1", canonical_text)
    text = re.sub(r"\\frac\s?(\d)\s?(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"([_^])\{([^{}])\}", r"\1\2", text)
    return re.sub(r"\s+", "", text)


def read_number(canonical_text: str) -> Number | None:
    """The number that the whole text is, or None."""
    if len(canonical_text) > MAX_LENGTH or not (found := NUMBER.fullmatch(canonical_text)):
        return None
    scaled = _unit(found["unit"], found["money"])
    value = _value(found)
    if scaled is None or value is None:
        return None
    scale, unit = scaled
    sign = -1 if (found["sign"] == "-") != (found["sign2"] == "-") else 1
    decimal = found["decimal"]
    return Number(sign * value * scale, unit, len(decimal.partition(".")[2]) if decimal else None)


def _value(found: re.Match[str]) -> Fraction | None:
    if (decimal := found["decimal"]) is not None:
        power = int(found["power"] or found["power2"] or found["power3"] or 0)
        return Fraction(re.sub("[, ]", "", decimal).rstrip(".")) * Fraction(10) ** power
    if found["over"] is not None:
        over, under, whole = Fraction(found["over"]), Fraction(found["under"]), found["whole2"]
    else:
        parts = [part.replace(" ", "") for part in found.groups()[4:8] if part is not None]
        over, under, whole = Fraction(parts[0]), Fraction(parts[1]), found["whole"]
    return None if under == 0 or (whole and over < 0) else Fraction(whole or 0) + over / under


def _unit(text: str, money: str) -> tuple[int, str] | None:
    """(scale, unit) of what follows a number; None where it is not a unit."""
    if not UNIT.fullmatch(text):
        return None
    text = re.sub(r"\\text\s?\{([^{}]*)\}", r" \1 ", text).replace(r"^\circ", " degree ").lower()
    scale = 1
    words: list[str] = []
    for word in re.findall(r"[a-z]+|%|\^\{?\d\}?|/", text.replace("%", " % ")):
        if word in NO_UNIT:
            return None
        if word in SCALES and not words:
            scale *= SCALES[word]
        else:
            word = word.strip("^{}") if word[0] == "^" else word
            singular = word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
            words.append(ALIASES.get(singular, singular))
    if len(words) > 4 or (money and words not in ([], ["$"])):
        return None
    return scale, money or " ".join(words)
