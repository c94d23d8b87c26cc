r"""The trees of answers, and the tokenizer for LaTeX.

This file decides which signs and names are known. `distill.verifiers.latex` parses them into trees, and
`distill.verifiers.meaning` compares trees. An unknown sign or word makes the whole text `Unreadable`: nothing is ever
skipped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

TOKEN = re.compile(
    r"(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<command>\\(?:(?:begin|end)\{[pb]?matrix\}|[A-Za-z]+|[{}\\]))|(?P<word>[A-Za-z]+)"
    r"|(?P<sign>[-+*/^_=<>!()\[\]{}|,;&:])|(?P<space>\s+)",
    re.ASCII,
)
THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])", re.ASCII)
CONNECTOR = re.compile(r",?\s*\\text\s?\{[\s,]*(or|and)[\s,]*\}")
FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"}
    | {"ln", "log", "exp", "sqrt"}
)
OF_ANGLES = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})
INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
GREEK = frozenset(
    {"alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "mu", "nu", "rho", "sigma", "tau", "phi", "omega"}
)
RELATIONS = {
    "=": "=", "<": "<", ">": ">", r"\le": "<=", r"\ge": ">=", r"\lt": "<", r"\gt": ">", r"\in": "in",
    r"\ne": "!=", r"\neq": "!=",
}  # fmt: skip
BARS = {r"\lvert": "|", r"\rvert": "|", r"\vert": "|"}
AND = r"\and"
"""The token for a written "and"; a written "or" is a comma."""

SHORT_WORDS = frozenset({"is", "so", "it", "we", "to", "of", "if", "on", "no"})
"""English words. Any other word of one or two letters is a product of variables ("by" in ax + by)."""

STARTERS = (
    frozenset({"frac", "binom", "sqrt", "pi", "infty", "langle", "lfloor", "emptyset", "varnothing", "mathbb"})
    | GREEK
    | FUNCTIONS
)
"""The commands that a value can begin with."""


class Unreadable(ValueError):
    """The text cannot be read completely, or the expression is too large to evaluate."""


@dataclass(frozen=True, slots=True)
class Node:
    """``kind`` says what ``parts`` are: nodes, a number (int or `Fraction`), or nothing.

    Values: number, name, infinity, call, log (base, argument), sum, product, quotient, power, root
    (argument, degree), plusminus, negative, factorial, binomial.
    Structures: set (``name`` is "{}" where the braces are written, "" for a bare list), tuple (also
    intervals; its brackets are the ``name``), matrix of rows, union, ratio (3:4:5), relation (``name`` holds
    the signs between its parts, with spaces: "< <=").
    """

    kind: str
    parts: tuple[Any, ...] = ()
    name: str = ""


def number(value: Any) -> Node:
    return Node("number", (value,))


def tokens(text: str) -> list[str]:
    """The tokens of a text in `distill.verifiers.number.canonical` form. Raises `Unreadable`."""
    text = CONNECTOR.sub(r" \1 ", text)
    if not any(bracket in text for bracket in "([{"):
        text = THOUSANDS.sub(lambda found: found.group().replace(",", ""), text)
    found_tokens: list[str] = []
    at = 0
    while at < len(text):
        found = TOKEN.match(text, at)
        if not found:
            raise Unreadable(f"unknown sign {text[at]!r}")
        at = found.end()
        token = found.group()
        if found["word"]:
            found_tokens += _word(token)
        elif not found["space"]:
            found_tokens.append(BARS.get(token, token.replace(";", ",")))
    return found_tokens


def _word(word: str) -> list[str]:
    """The tokens of a function's name, a connector, or a short product of variables. A longer word is prose."""
    if word in FUNCTIONS or word == "pi":
        return [f"\\{word}"]
    if word in ("or", "and"):
        return ["," if word == "or" else AND]
    if len(word) > 2 or word.lower() in SHORT_WORDS:
        raise Unreadable(f"the word {word!r}")
    return list(word)
