r"""LaTeX answers as a tree: a parser that reads the whole of a text or says `Unreadable`.

Nothing is ever skipped, which is where symbolic checkers go wrong (``1 - 1/\mathrm{e}`` read as 1). It
knows what stands in answers: arithmetic, roots, powers, functions, variables, lists, sets, tuples,
intervals, unions, matrices, equations, inequalities, plus-minus. Prose, calculus and numbers in another
base are left to others. What a tree means is `distill.verifiers.points`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_LENGTH, MAX_DEPTH = 1_000, 40

TOKEN = re.compile(
    r"(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<command>\\(?:(?:begin|end)\{[pb]?matrix\}|[A-Za-z]+|[{}|\\]))|(?P<word>[A-Za-z]+)"
    r"|(?P<sign>[-+*/^_=<>!()\[\]{}|,&:])|(?P<space>\s+)",
    re.ASCII,
)
THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])", re.ASCII)
FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"}
    | {"ln", "exp", "sqrt", "abs"}
)
GREEK = frozenset(
    {"alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "mu", "nu", "rho", "sigma", "tau", "phi", "omega"}
)
RELATIONS = {"=": "=", "<": "<", ">": ">", r"\le": "<=", r"\ge": ">=", r"\lt": "<", r"\gt": ">", r"\in": "in"}
OPENERS = {"(": ")", "[": "]"}


class Unreadable(ValueError):
    """Not wholly understood, or too large to evaluate."""


@dataclass(frozen=True, slots=True)
class Node:
    """``kind`` says what ``parts`` are: nodes, a number, or a name.

    Values: number, name, infinity, call, sum, product, quotient, power, plusminus, negative.
    Structures: set (a list without brackets too), tuple (also intervals; brackets in ``name``),
    matrix, row, union, relation (its sign in ``name``).
    """

    kind: str
    parts: tuple[Any, ...] = ()
    name: str = ""


def read(text: str) -> Node:
    """Parse all of a text in `distill.verifiers.number.canonical` form."""
    if len(text) > MAX_LENGTH:
        raise Unreadable(f"longer than {MAX_LENGTH} characters")
    return _Parser(_tokens(text)).whole()


def _tokens(text: str) -> list[str]:
    if not any(bracket in text for bracket in "([{"):
        text = THOUSANDS.sub(lambda found: found.group().replace(",", ""), text)
    tokens, at = [], 0
    while at < len(text):
        found = TOKEN.match(text, at)
        if not found:
            raise Unreadable(f"unknown sign {text[at]!r}")
        at = found.end()
        token = found.group()
        if found["word"]:
            tokens += [f"\\{token}"] if token in FUNCTIONS or token == "pi" else _letters(token)
        elif not found["space"]:
            tokens.append(token)
    return tokens


def _letters(word: str) -> list[str]:
    """A short word is a product of variables; a long one is prose."""
    if len(word) > 2:
        raise Unreadable(f"the word {word!r}")
    return list(word)


class _Parser:
    """Recursive descent; every method leaves ``at`` behind what it has read."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at, self.depth = tokens, 0, 0

    def whole(self) -> Node:
        node = self.relation()
        if self.at < len(self.tokens):
            raise Unreadable(f"{self.tokens[self.at]!r} is left over")
        return node

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        token = self.peek()
        if not token or (wanted and token not in wanted):
            raise Unreadable(f"expected {' or '.join(wanted) or 'more'}, found {token or 'the end'!r}")
        self.at += 1
        return token

    def skip(self, *wanted: str) -> bool:
        found = self.peek() in wanted
        self.at += found
        return found

    def relation(self) -> Node:
        left = self.items()
        if (sign := RELATIONS.get(self.peek())) is None:
            return left
        self.at += 1
        return Node("relation", (left, self.items()), sign)

    def items(self) -> Node:
        parts = [self.union()]
        while self.skip(","):
            parts.append(self.union())
        return Node("set", tuple(parts)) if len(parts) > 1 else parts[0]

    def union(self) -> Node:
        parts = [self.sum()]
        while self.skip(r"\cup"):
            parts.append(self.sum())
        return Node("union", tuple(parts)) if len(parts) > 1 else parts[0]

    def sum(self) -> Node:
        node = Node("number", (0,)) if self.peek() in (r"\pm", r"\mp") else self.product()
        while (sign := self.peek()) in ("+", "-", r"\pm", r"\mp"):
            self.at += 1
            term = self.product()
            if sign in "+-":
                node = Node("sum", (node, term if sign == "+" else Node("negative", (term,))))
            else:
                node = Node("plusminus", (node, term), "+" if sign == r"\pm" else "-")
        return node

    def product(self) -> Node:
        node = self.signed()
        while True:
            if self.skip("*", r"\cdot", r"\times"):
                node = Node("product", (node, self.signed()))
            elif self.skip("/", r"\div", ":"):
                node = Node("quotient", (node, self.signed()))
            elif self.starts_atom():
                node = self.joined(node)
            else:
                return node

    def joined(self, left: Node) -> Node:
        """What stands side by side: a product, or a mixed number (``2\\frac{1}{3}`` is 2 + 1/3)."""
        after_number, before_fraction = self.tokens[self.at - 1].isdigit(), self.peek() == r"\frac"
        right = self.power()
        if right.kind == "number":
            raise Unreadable("two numbers side by side")
        if after_number and before_fraction and all(part.kind == "number" for part in right.parts):
            if left.kind != "number":
                raise Unreadable("a mixed number inside a product")
            return Node("sum", (left, right))
        return Node("product", (left, right))

    def signed(self) -> Node:
        if self.skip("-"):
            return Node("negative", (self.nested(self.signed),))
        if self.skip("+"):
            return self.nested(self.signed)
        return self.power()

    def power(self) -> Node:
        node = self.atom()
        while (token := self.peek()) in ("^", "!", "_"):
            self.at += 1
            if token == "_":
                if node.kind != "name":
                    raise Unreadable("a number in another base")
                node = Node("name", (), f"{node.name}_{self.subscript()}")
            elif token == "!":
                node = Node("factorial", (node,))
            else:
                node = Node("power", (node, self.argument()))
        return node

    def subscript(self) -> str:
        if not self.skip("{"):
            return self.take()
        start = self.at
        while self.peek() != "}":
            self.take()
        self.at += 1
        return "".join(self.tokens[start : self.at - 1])

    def starts_atom(self) -> bool:
        token = self.peek()
        return bool(token) and (token[0].isalnum() or token[0] in "([{." or token[1:] in NAMED or token == r"\{")

    def argument(self) -> Node:
        r"""A group in braces, or the one sign that LaTeX takes: ``\frac12``, ``x^2``, ``\sqrt3``."""
        token = self.peek()
        if token.isdigit() and len(token) > 1:
            self.tokens[self.at : self.at + 1] = list(token)
        if self.skip("-"):
            return Node("negative", (self.nested(self.argument),))
        return self.nested(self.atom)

    def nested(self, rule: Callable[[], Node]) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        node = rule()
        self.depth -= 1
        return node

    def atom(self) -> Node:
        token = self.take()
        if token[0].isdigit() or token[0] == ".":
            return Node("number", (int(token) if token.isdigit() else float(token),))
        if token in ("(", "["):
            return self.bracketed(token)
        if token == "{":
            return self.closed("}")
        if token == "|":
            return Node("call", (self.closed("|"),), "abs")
        if token == r"\{":
            inner = self.closed(r"\}")
            return inner if inner.kind == "set" else Node("set", (inner,))
        if token == r"\infty":
            return Node("infinity")
        if token.startswith(r"\begin"):
            return self.matrix(token.replace("begin", "end"))
        return self.named(token.removeprefix("\\"), command=token.startswith("\\"))

    def named(self, name: str, command: bool) -> Node:
        if name in ("frac", "binom") and command:
            return Node("quotient" if name == "frac" else "binomial", (self.argument(), self.argument()))
        if name == "sqrt" and self.skip("["):
            degree = self.closed("]")
            return Node("power", (self.argument(), Node("quotient", (Node("number", (1,)), degree))))
        if name == "sqrt":
            return Node("call", (self.argument(),), name)
        if name in FUNCTIONS and command:
            return self.called(name)
        if name == "pi" or (command and name in GREEK) or (not command and len(name) == 1 and name.isalpha()):
            return Node("name", (), name)
        raise Unreadable(f"unknown {name!r}")

    def called(self, name: str) -> Node:
        r"""``\sin^2 2x``: the argument goes on over what stands side by side."""
        exponent = self.argument() if self.skip("^") else None
        argument = self.nested(self.power)
        bracketed = self.tokens[self.at - 1] in (")", "}")
        while not bracketed and self.starts_atom() and self.peek()[1:] not in FUNCTIONS:
            argument = self.joined(argument)
        node = Node("call", (argument,), name)
        if exponent is None:
            return node
        if exponent.kind == "negative":
            raise Unreadable("an inverse function written as a power")
        return Node("power", (node, exponent))

    def closed(self, closer: str) -> Node:
        inner = self.nested(self.items)
        self.take(closer)
        return inner

    def bracketed(self, opener: str) -> Node:
        inner = self.nested(self.items)
        closer = self.take(")", "]")
        if inner.kind == "set":
            return Node("tuple", inner.parts, opener + closer)
        if OPENERS[opener] != closer:
            raise Unreadable("brackets that do not match")
        return inner

    def matrix(self, end: str) -> Node:
        rows: list[list[Node]] = [[]]
        while not self.skip(end):
            rows[-1].append(self.nested(self.sum))
            if self.skip("\\\\"):
                rows.append([])
            elif self.peek() != end:
                self.take("&")
        return Node("matrix", tuple(Node("row", tuple(row)) for row in rows if row))


NAMED = frozenset({"frac", "binom", "sqrt", "pi", "infty"}) | GREEK | FUNCTIONS
