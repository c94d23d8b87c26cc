r"""Read numbers exactly, in the many ways people write them: the fast path of the `math` verifier.

`canonical` unifies the spellings of a LaTeX text, `plain` reduces it further for comparing texts, and `read_number`
reads integers, thousands separators, decimals, percents, fractions (``\frac``, ``a/b``, mixed numbers), powers of ten,
money and units (`distill.verifiers.units`) as an exact `Fraction`. It returns None for anything that it cannot read
completely, so it never finds a number inside something else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from distill.verifiers import units

MAX_LENGTH = 1_000

UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ",
        "°": r"^\circ ", "∪": r"\cup ", "∈": r"\in ", "±": r"\pm ", "≤": r"\le ", "≥": r"\ge ",
        "≠": r"\ne ", "≈": r"\approx ", "∅": r"\emptyset ", "⇒": r"\Rightarrow ", "→": r"\to ",
        "∴": r"\therefore ", "θ": r"\theta ", "∓": r"\mp ", "ℝ": r"\mathbb{R} ", "‑": "-", "‒": "-",
        "≦": r"\le ", "≧": r"\ge ", "⋅": r"\cdot ",
        "∙": r"\cdot ", "∗": "*", "º": r"^\circ ", "˚": r"^\circ ", "∨": r"\text{ or }", "。": ".", "、": ",",
        "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
        "⅛": r"\frac{1}{8}", "⅕": r"\frac{1}{5}", "⅖": r"\frac{2}{5}", "⅗": r"\frac{3}{5}", "⅘": r"\frac{4}{5}",
        "⅙": r"\frac{1}{6}", "⅚": r"\frac{5}{6}", "⅜": r"\frac{3}{8}", "⅝": r"\frac{5}{8}", "⅞": r"\frac{7}{8}",
        "⁄": "/", "\u00a0": " ", "\u202f": " ", "\u2009": " ",
    }
    | {chr(0xFEE0 + code): chr(code) for code in range(0x21, 0x7F)}
    | dict.fromkeys("\u00ad\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\ufeff")
)  # fmt: skip
"""A table of our own instead of NFKC, which turns 5² into 52. Full-width signs become ASCII, and what nobody sees
(spaces of no width, marks of direction) is dropped."""
RAISED, LOWERED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-"), str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

COMMANDS = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac", "nicefrac", "sfrac"), r"\frac"),
    **dict.fromkeys(("dbinom", "tbinom"), r"\binom"),
    **dict.fromkeys(("leq", "leqslant", "leqq"), r"\le"), **dict.fromkeys(("geq", "geqslant", "geqq"), r"\ge"),
    **dict.fromkeys(("lor", "vee"), r"\text{ or }"), "bigcup": r"\cup", "colon": ":", "mid": "|", "cr": r"\\",
    "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "varphi": r"\phi", "lg": r"\log_{10}",
    **dict.fromkeys(
        ("mbox", "textbf", "textit", "textrm", "textnormal", "textsf", "texttt", "textsc", "emph", "mathrm", "mathbf",
         "mathsf", "operatorname"), r"\text",
    ),
    **dict.fromkeys(("large", "Large", "LARGE", "huge", "Huge", "small", "checkmark"), ""),
}  # fmt: skip
"""Commands that mean the same as another, and those that only change the looks."""


def _environment(found: re.Match[str]) -> str:
    """Write an array or a small matrix as a matrix."""
    name = "matrix" if found[1] in ("array", "smallmatrix", "Bmatrix") else found[1]
    return f"{found.group().partition('{')[0]}{{{name}}}"


def _repeating(found: re.Match[str]) -> str:
    r"""Write ``0.1\overline{6}`` as a fraction."""
    whole, once, again = found.groups()
    shift = 10 ** len(once)
    value = Fraction(int(whole + once or "0"), shift) + Fraction(int(again), shift * (10 ** len(again) - 1))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


REWRITES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (r"\\\\\s?\[[\d.]*\s?(?:pt|em|ex|mm|cm)\]", r"\\\\"),
        (r"√\s?(\d+(?:\.\d+)?)", r"\\sqrt{\1}"),
        (r"√", r"\\sqrt "),
        (r"∛\s?(\d+)", r"\\sqrt[3]{\1}"),
        (r"∛", r"\\sqrt[3]"),
        (r"[⁰¹²³⁴-⁹⁺⁻]+", lambda found: f"^{{{found.group().translate(RAISED)}}}"),
        (r"[₀-₉]+", lambda found: f"_{{{found.group().translate(LOWERED)}}}"),
        (r"(?<![\w)}])\*\*|\*\*(?![\w({\\.-])", ""),
        (r"\*\*", "^"),
        (r"\+/-", r"\\pm "),
        (r"<=", r"\\le "),
        (r"(?<!=)>=", r"\\ge "),
        (r"\\not\s?=", r"\\ne "),
        (r"\{([.:])\}", r"\1"),
        (r"\\text\s?\{\s?([,;])\s?\}", r"\1 "),
        (r"\\(?:text)?color\s?\{[^{}]*\}|\\underline(?=\s?\{)", ""),
        (r"(\\times|\\cdot)\s?\{(10(?:\^\{?-?\d{1,3}\}?)?)\}", r"\1 \2"),
        (r"^\s*\\text\s?\{\s?(?i:(?:the\s)?(?:final\s)?answer(?:\sis)?:?)\s?\}", ""),
        (r"\bUS(?=\\?\$)|\\text\s?\{\s?US\s?\}(?=\\?\$)", ""),
        (r"\bUSD\s?(?=\d)", r"\\$"),
        (r"(?:\\text\s?\{\s?)?\bRs\.?\s?\}?\s?(?=\d)", "₹"),
        (r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s?\{(\d{1,40})\}", _repeating),
        (r"(?<!\d)(\d*)\.(\d*?)(\d{1,6}?)\3{2,}\s?(?:\.{2,}|\\[lc]?dots(?![A-Za-z])|…)", _repeating),
        (r"(?<=[A-Za-z])\s?!=(?!=)", r" \\ne "),
        (r"^\s*(?i:negative|minus)\s+(?=[\d.\\$])", "-"),
        (r"\{([^{}\\]{1,40})\\choose(?![A-Za-z])([^{}\\]{1,40})\}", r"\\binom{\1}{\2}"),
        (r"(\\sqrt|\^)\s?(\d{2,})", r"\1{\2}"),
        (r"\^\s?-\s?(\d+)", r"^{-\1}"),
        (r"\\(?:left|right|middle|displaystyle|limits|[bB]igg?[lrm]?)(?![A-Za-z])\s?", ""),
        (r"(?<!\\)\\!\s?|(?<!\\)\\(?=\s*$)", ""),
        (r"(?<=\d)\{,\}(?=\d{3}(?!\d))", ""),
        (r"(?<=\d)\\,(?=\d{3}(?!\d))", " "),
        (r"\\(?:begin|end)\{([A-Za-z]*)\}(?:\{[lcr| ]*\})?", _environment),
        (r"(?<!\\)\\[,;:> ]|\\q?quad\b|~", " "),
        (r"\\(?:mathrm|mathbf|mathsf|mathit|boldsymbol|operatorname|vec|overrightarrow)\s*\{([A-Za-z])\}", r"\1"),
        (r"\\(?:mathbb\s?R|Bbb\s?\{?R\}?|reals|R)(?![A-Za-z])", r"\\mathbb{R}"),
        (r"\\(?:mathrm|operatorname)\s*\{(arc(?:sin|cos|tan)|ln|log|exp|sinh|cosh|tanh)\}", r"\\\1 "),
        (rf"\\({'|'.join(COMMANDS)})(?![A-Za-z])", lambda found: COMMANDS[found[1]]),
        (r"\\text\s?\{\s?\\text\s?\{([^{}]*)\}\s?\}", r"\\text{\1}"),
        (r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}", r"\\frac{\1}{\2}"),
        (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![A-Za-z])|\\(?:text)?degree(?![A-Za-z])", r"^\\circ"),
        (
            r"^\s*\\\{\s?([a-z])\s?(?:\\in\s?\\mathbb\{R\}\s?)?[|:](?=[^{}]*\1)(?=(?:[^=]*?(?<![\w}])\1\s?=)*[^=]*$)([^{}]*(?:\{[^{}]*\}[^{}]*)*)\\\}\s*$",
            r"\2",
        ),
        (r"\s+", " "),
    )
)
WRAPPERS = (("$$", "$$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("$", "$"), ("{", "}"), ('"', '"'), ("“", "”"))
BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
ESCAPED = re.compile(r"\\([%$])")
DOLLAR = re.compile(r"(?<!\\)\$")

INTEGER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:[ ]\d{3})+(?!\d)|\d+)"
DECIMAL = rf"(?:{INTEGER}(?:\.\d*)?|\.\d+)"
DIGITS = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?", re.ASCII)
PART = r"(?:\{\s*(-?\s?\d+(?:\.\d+)?)\s*\}|\s*(\d))"
NUMBER = re.compile(
    rf"""(?P<sign>[-+]?)\ ?(?P<money>[$€£¥₹]?)\ ?(?P<sign2>[-+]?)\ ?(?:
      (?P<whole>\d+)?\s?\\frac\s?{PART}\s?{PART}
      |(?:(?P<whole2>\d+)\s)?\(?(?P<over>\d+)\)?\s?/\s?\(?(?P<under>\d+)\)?
      |(?P<decimal>{DECIMAL})(?:\s?(?:\\times|\\cdot|\*|x)\s?10\^(?:\{{\s?(?P<power>[-+]?\d{{1,3}})\s?\}}|(?P<power2>\d))
                               |[eE](?P<power3>[-+]?\d{{1,3}}))?
    )\s?(?P<unit>.*)""",
    re.VERBOSE | re.ASCII | re.DOTALL,
)
UNIT = re.compile(
    r"(?:[%€£¢¥₹]|(?<=[A-Za-z]/)[hsmgLl](?![A-Za-z])(?:\^\{?[23]\}?)?|\^\\circ(?:\s?[CF])?|(?:\\text\s?\{[^{}]*\}|(?<![A-Za-z])[A-Za-z]{2,})(?:\^\{?[23]\}?)?|[\s./])*",
    re.ASCII,
)
SHORT_UNIT = re.compile(r"[mgLlshtNJWVAKC](?:/[sh])?(?:\^\{?[23]\}?)?")


class Number(NamedTuple):
    """``unit`` is "" if none is written; ``decimals`` is None for anything but a decimal number.

    ``scale`` is the factor from a word after the number: 5 million has the scale 10**6.
    """

    value: Fraction
    unit: str
    decimals: int | None
    scale: int = 1


def read_digits(text: str) -> Number | None:
    """The result of `read_number` for plain digits, the most common text, in a tenth of the time; None otherwise."""
    if len(text) > 40 or not DIGITS.fullmatch(text):
        return None
    whole, _, decimals = text.replace(",", "").partition(".")
    if not decimals:
        return Number(Fraction(int(whole)), "", 0)
    return Number(Fraction(int(whole + decimals), 10 ** len(decimals)), "", len(decimals))


def canonical(text: str) -> str:
    """The text with one spelling of spaces, fractions, fonts and signs, without delimiters and a final full stop."""
    if DIGITS.fullmatch(text):
        return text
    text = text.translate(UNICODE)
    for pattern, by in REWRITES:
        text = pattern.sub(by, text)
    text = text.strip().rstrip(".;,").strip()
    for left, right in WRAPPERS:
        if _wrapped(text, left, right):
            text = text[len(left) : len(text) - len(right)].strip().rstrip(".").strip()
    return ESCAPED.sub(r"\1", text)


def _wrapped(text: str, left: str, right: str) -> bool:
    """Whether ``left`` and ``right`` enclose the whole text as one pair."""
    if not (text.startswith(left) and text.endswith(right) and len(text) >= len(left + right)):
        return False
    if left == "$":
        return len(DOLLAR.findall(text)) == 2 and not text.endswith("\\$")
    return left != "{" or _first_group_ends(text) == len(text)


def _first_group_ends(text: str) -> int:
    depth = 0
    for token in BRACES.finditer(text):
        depth += (token.group() == "{") - (token.group() == "}")
        if depth == 0:
            return token.end()
    return 0


def plain(canonical_text: str) -> str:
    """A form for comparing texts: no fonts, spaces only between digits, braces only around several characters."""
    text = re.sub(r"\\text\s?\{([^{}]*)\}", r"\1", canonical_text)
    text = re.sub(r"\\frac\s?(\d)\s?(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"([_^])\{([^{}])\}", r"\1\2", text)
    return re.sub(r"(?<![\d,])\s+|\s+(?!\d)|(?<=,)\s+(?!\d{3}(?!\d))", "", text)


def read_number(canonical_text: str, short_unit: bool = False) -> Number | None:
    """The number that the whole text is, or None.

    ``short_unit`` reads one letter after a space as a unit ("5 m") instead of a variable.
    """
    if len(canonical_text) > MAX_LENGTH or not (found := NUMBER.fullmatch(canonical_text)):
        return None
    value = _value(found)
    short = short_unit and canonical_text[found.start("unit") - 1] == " " and SHORT_UNIT.fullmatch(found["unit"])
    scaled = units.read(found["unit"]) if short or UNIT.fullmatch(found["unit"]) else None
    if scaled is None or value is None:
        return None
    scale, unit = scaled
    money = units.ALIASES.get(found["money"], found["money"])
    if money and unit not in ("", money) and not unit.startswith("/"):
        return None
    sign = -1 if (found["sign"] == "-") != (found["sign2"] == "-") else 1
    decimal = found["decimal"]
    return Number(sign * value * scale, money or unit, len(decimal.partition(".")[2]) if decimal else None, scale)


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
