r"""Parse LaTeX answers into trees. The parser reads all of a text or raises `Unreadable`.

It never skips anything, which is where symbolic checkers go wrong (``1 - 1/\mathrm{e}`` read as 1). It covers what
occurs in answers: arithmetic, roots, powers, functions, variables, lists, sets, tuples, intervals, unions, vectors,
matrices, ratios, equations, chains of inequalities, plus-minus. It does not cover prose, calculus and numbers in
another base. If a text can be read in two ways (``1/2x``), both trees are returned. `distill.verifiers.meaning`
compares trees.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

from distill.verifiers.tree import (
    AND,
    FUNCTIONS,
    GREEK,
    INVERSES,
    OF_ANGLES,
    RELATIONS,
    STARTERS,
    Node,
    Unreadable,
    number,
    tokens,
)

MAX_LENGTH, MAX_DEPTH = 1_000, 40
MATRICES = frozenset({r"\begin{matrix}", r"\begin{pmatrix}", r"\begin{bmatrix}"})
OPENERS = {"(": ")", "[": "]"}
DEGREE = Node("quotient", (Node("name", (), "pi"), number(180)))
"""One degree in the argument of a trigonometric function. Elsewhere degrees are a unit, or unreadable."""


@lru_cache(maxsize=2048)
def readings(text: str) -> tuple[Node, ...]:
    """All ways to parse a text in `distill.verifiers.number.canonical` form; empty if it cannot be parsed."""
    if len(text) > MAX_LENGTH:
        return ()
    try:
        found = tokens(text)
        parser = _Parser(list(found), slash_binds_tightly=False)
        first = parser.whole()
        return (first, _Parser(found, slash_binds_tightly=True).whole()) if parser.ambiguous else (first,)
    except Unreadable:
        return ()


class _Parser:
    """Recursive descent; every method leaves ``at`` after what it has read.

    ``slash_binds_tightly`` reads ``1/2x`` as 1/(2x). Afterwards ``ambiguous`` is True if that can make a difference.
    """

    def __init__(self, found: list[str], slash_binds_tightly: bool) -> None:
        self.tokens, self.at, self.depth, self.bars, self.angles = found, 0, 0, 0, 0
        self.slash_binds_tightly, self.ambiguous = slash_binds_tightly, False

    def whole(self) -> Node:
        node = self.items()
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

    def items(self) -> Node:
        parts, both = [self.relation()], False
        while (separator := self.peek()) in (",", AND):
            self.at += 1
            both = (self.skip(AND) if separator == "," else True) or both
            parts.append(self.relation())
        if both and any(part.kind == "relation" and set(part.name) & set("<>") for part in parts):
            raise Unreadable("inequalities that must hold together")
        return Node("set", tuple(parts)) if len(parts) > 1 else parts[0]

    def relation(self) -> Node:
        parts, signs = [self.union()], []
        while (sign := RELATIONS.get(self.peek())) is not None:
            self.at += 1
            signs.append(sign)
            parts.append(self.union())
        return Node("relation", tuple(parts), " ".join(signs)) if signs else parts[0]

    def union(self) -> Node:
        parts = [self.ratio()]
        while self.skip(r"\cup"):
            parts.append(self.ratio())
        return Node("union", tuple(parts)) if len(parts) > 1 else parts[0]

    def ratio(self) -> Node:
        parts = [self.sum()]
        while self.skip(":"):
            parts.append(self.sum())
        return Node("ratio", tuple(parts)) if len(parts) > 1 else parts[0]

    def sum(self) -> Node:
        node = number(0) if self.peek() in (r"\pm", r"\mp") else self.product()
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
            elif self.skip("/", r"\div"):
                node = Node("quotient", (node, self.divisor()))
            elif self.starts_atom():
                node = self.joined(node)
            else:
                return node

    def divisor(self) -> Node:
        """The divisor after a slash: the next factor, or, if the slash binds tightly, all juxtaposed factors."""
        node = self.signed()
        if self.starts_atom():
            self.ambiguous = True
            while self.slash_binds_tightly and self.starts_atom():
                node = self.joined(node)
        return node

    def joined(self, left: Node) -> Node:
        """Juxtaposition: a product, or a mixed number (``2\\frac{1}{3}`` is 2 + 1/3)."""
        after_number, before_fraction = self.tokens[self.at - 1].isdigit(), self.peek() == r"\frac"
        right = self.power()
        if right.kind == "number":
            raise Unreadable("two numbers side by side")
        if after_number and before_fraction and all(part.kind == "number" for part in right.parts):
            whole = left.parts[0] if left.kind == "negative" else left
            if whole.kind != "number":
                raise Unreadable("a mixed number inside a product")
            mixed = Node("sum", (whole, right))
            return Node("negative", (mixed,)) if left.kind == "negative" else mixed
        return Node("product", (left, right))

    def signed(self) -> Node:
        if self.skip("-"):
            return Node("negative", (self.nested(self.signed),))
        if self.skip("+"):
            return self.nested(self.signed)
        return self.power()

    def power(self) -> Node:
        node = self.atom()
        raised = counted = False
        while (token := self.peek()) in ("^", "!", "_"):
            self.at += 1
            if token == "^" and self.angles and self.skip(r"\circ"):
                node = Node("product", (node, DEGREE))
            elif token == "_":
                if node.kind != "name":
                    raise Unreadable("a number in another base")
                node = Node("name", (), f"{node.name}_{self.subscript()}")
            elif token == "!":
                if counted:
                    raise Unreadable("a double factorial")
                node, counted = Node("factorial", (node,)), True
            elif raised:
                raise Unreadable("two powers, one after the other")
            else:
                node, raised = Node("power", (node, self.argument())), True
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
        if token == "|":
            return not self.bars
        return bool(token) and (
            token[0].isalnum() or token[0] in "([{." or token[1:] in STARTERS or token == r"\{" or token in MATRICES
        )

    def argument(self) -> Node:
        r"""A group in braces, or the single character that LaTeX takes: ``\frac12``, ``x^2``, ``\sqrt3``."""
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
            return number(int(token) if token.isdigit() else Fraction(token))
        if token in ("(", "["):
            return self.bracketed(token)
        if token == "{":
            return self.closed("}")
        if token == "|":
            return self.between_bars()
        if token == r"\{":
            return self.braced()
        if token in MATRICES:
            return self.matrix(token.replace("begin", "end"))
        return self.named(token.removeprefix("\\"), command=token.startswith("\\"))

    def named(self, name: str, command: bool) -> Node:
        if name == "pi" or (command and name in GREEK) or (not command and len(name) == 1 and name.isalpha()):
            return Node("name", (), name)
        if not command:
            raise Unreadable(f"unknown {name!r}")
        if name in ("frac", "binom"):
            return Node("quotient" if name == "frac" else "binomial", (self.argument(), self.argument()))
        if name == "sqrt" and self.skip("["):
            degree = self.closed("]")
            return Node("root", (self.argument(), degree))
        if name == "sqrt":
            return Node("call", (self.argument(),), name)
        if name in FUNCTIONS:
            return self.called(name)
        if name in ("infty", "emptyset", "varnothing"):
            return Node("infinity") if name == "infty" else Node("set", (), "{}")
        if name == "lfloor":
            return Node("call", (self.closed(r"\rfloor"),), "floor")
        if name == "langle":
            return self.tupled(r"\rangle")
        if name == "mathbb" and [self.take() for _ in range(3)] == ["{", "R", "}"]:
            return Node("tuple", (Node("negative", (Node("infinity"),)), Node("infinity")), "()")
        raise Unreadable(f"unknown {name!r}")

    def called(self, name: str) -> Node:
        r"""A function and its argument, which extends over juxtaposed factors: ``\sin^2 2x``."""
        base = self.argument() if name == "log" and self.skip("_") else None
        exponent = self.argument() if self.skip("^") else None
        self.angles += name in OF_ANGLES
        argument = self.nested(self.power)
        bracketed = self.tokens[self.at - 1] in (")", "}")
        while not bracketed and self.starts_atom() and self.peek()[1:] not in FUNCTIONS:
            argument = self.joined(argument)
        self.angles -= name in OF_ANGLES
        if exponent == Node("negative", (number(1),)) and name in INVERSES:
            name, exponent = INVERSES[name], None
        node = Node("call", (argument,), name) if base is None else Node("log", (base, argument))
        if exponent is None:
            return node
        if exponent.kind == "negative":
            raise Unreadable("an inverse function written as a power")
        return Node("power", (node, exponent))

    def closed(self, closer: str) -> Node:
        bars, self.bars = self.bars, 0
        inner = self.nested(self.items)
        self.take(closer)
        self.bars = bars
        return inner

    def between_bars(self) -> Node:
        self.bars += 1
        inner = self.nested(self.sum)
        self.take("|")
        self.bars -= 1
        return Node("call", (inner,), "abs")

    def braced(self) -> Node:
        if self.skip(r"\}"):
            return Node("set", (), "{}")
        inner = self.closed(r"\}")
        members = inner.parts if inner.kind == "set" and not inner.name else (inner,)
        return Node("set", members, "{}")

    def tupled(self, closer: str) -> Node:
        inner = self.closed(closer)
        if inner.kind != "set" or inner.name:
            raise Unreadable("a vector with one component")
        return Node("tuple", inner.parts, "()")

    def bracketed(self, opener: str) -> Node:
        bars, self.bars = self.bars, 0
        inner = self.nested(self.items)
        closer = self.take(")", "]")
        self.bars = bars
        if inner.kind == "set" and not inner.name:
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
