r"""The syntax of formulas in propositional and first-order logic, and its parser.

    p and (q or not r) -> s             and & ∧ /\,  or | ∨ \/,  not ~ ! ¬,  xor ⊕
    p iff q                             implies -> => → ⇒,  iff <-> <=> ↔ ⇔
    forall x. P(x) -> exists y. R(x, y) ∀x (P(x) → ∃y R(x, y)) is the same; several: forall x y. ...
    f(a) = b and a != c, true, false    terms: variables, constants, functions; LaTeX's commands too

Precedence, tightest first: not and a quantifier without a dot; and; xor; or; implies (right-associative); iff. A
quantifier with a dot (or colon) extends as far right as possible. Ambiguous formulas are refused: ``p <-> q <-> r`` and
``∀x P(x) → Q(x)``, whose last x is free, need parentheses, and ``^`` means "and" to some and "xor" to others. Only the
quantifiers decide which names are variables.

Sizes are bounded (`MAX_LENGTH`, `MAX_DEPTH`). The result is a tree of `distill.verifiers.formula`.
"""

from __future__ import annotations

import re
from functools import reduce

from distill.verifiers.formula import (
    Apply,
    Atom,
    Equal,
    Formula,
    Joined,
    Not,
    Quantified,
    Term,
    Truth,
    Unreadable,
    Variable,
    inside,
    subformulas,
    terms,
)

MAX_LENGTH = 5_000
MAX_DEPTH = 60
"""Maximum nesting of brackets, negations and quantifiers, as they are written."""
MAX_TREE_DEPTH = 150
MAX_ARGUMENTS = 8

LOOSEST_FIRST = ("iff", "implies", "or", "xor", "and")
SIGNS = {
    "and": "& && ∧ \\land \\wedge",
    "or": "| || ∨ \\lor \\vee",
    "xor": "⊕ ⊻ \\oplus",
    "not": "~ ! ¬ \\neg \\lnot",
    "implies": "-> => → ⇒ ⟹ ⊃ \\to \\rightarrow \\implies \\Rightarrow \\supset",
    "iff": "<-> <=> ↔ ⇔ ≡ \\iff \\leftrightarrow \\Leftrightarrow \\equiv",
    "forall": "∀ \\forall",
    "exists": "∃ \\exists",
    "true": "⊤ \\top",
    "false": "⊥ \\bot",
    "!=": "≠ \\neq \\ne",
}
MEANING = {sign: word for word, signs in SIGNS.items() for sign in signs.split()} | {"all": "forall"}
WORDS = frozenset({*SIGNS, "all"})
TOKEN = re.compile(
    r"\s+|(?P<command>\\[A-Za-z]+)|(?P<name>[^\W_][\w']*)"
    r"|(?P<sign><->|<=>|->|=>|!=|&&|\|\||[&|∧∨⊕⊻~!¬→⇒⟹⊃↔⇔≡∀∃⊤⊥≠=(),.:\[\]])"
)
SUBSCRIPT = re.compile(r"_\{(\w+)\}")
SPACING = re.compile(r"\\(?:left|right|quad|qquad)(?![A-Za-z])|\\[,;!:> {}]|[${}]|\\\(|\\\)|\\\[|\\\]")
FONT = re.compile(r"\\(?:text|mathrm|mathit|operatorname|textit|mathbf|mathsf)\s?\{([^{}]*)\}")


def parse(text: str) -> Formula:
    """The formula in ``text``. Raises `Unreadable` if it is not a formula, or ambiguous."""
    formula = _Reader(text).formula()
    if _depth(formula) > MAX_TREE_DEPTH:
        raise Unreadable("nested too deeply")
    _variables_apart(formula)
    return formula


def _depth(formula: Formula) -> int:
    level, depth = [formula], 0
    while level:
        level, depth = [part for above in level for part in inside(above)], depth + 1
    return depth


def _variables_apart(formula: Formula) -> None:
    """Raise if a name that a quantifier binds occurs free elsewhere, because it was meant to be bound there too."""
    bound = {part.variable for part in subformulas(formula) if isinstance(part, Quantified)}
    used = {term.name for term in terms(formula) if isinstance(term, Apply)}
    used |= {part.name for part in subformulas(formula) if isinstance(part, Atom)}
    if stray := bound & used:
        raise Unreadable(f"{min(stray)!r} is used outside its quantifier; parentheses tell how far that reaches")


class _Reader:
    """Recursive descent over the tokens; ``depth`` bounds the recursion."""

    def __init__(self, text: str) -> None:
        self.tokens = _tokens(text)
        self.at = 0
        self.depth = 0
        self.bound: list[str] = []

    def formula(self) -> Formula:
        found = self._joined(0)
        if self._next() != "":
            raise Unreadable(f"unexpected {self._next()!r}")
        return found

    def _next(self) -> str:
        return self.tokens[self.at]

    def _take(self, *wanted: str) -> bool:
        found = self._next() in wanted
        self.at += found
        return found

    def _need(self, sign: str) -> None:
        if not self._take(sign):
            raise Unreadable(f"{sign!r} is missing before {self._next()!r}" if self._next() else f"{sign!r} is missing")

    def _joined(self, level: int) -> Formula:
        """Parse parts joined by the operators of `LOOSEST_FIRST` from ``level`` on."""
        if level == len(LOOSEST_FIRST):
            return self._single()
        operator = LOOSEST_FIRST[level]
        parts = [self._joined(level + 1)]
        while self._take(operator):
            parts.append(self._joined(level + 1))
        if len(parts) == 1:
            return parts[0]
        if operator == "implies":
            return reduce(lambda right, left: Joined("implies", (left, right)), reversed(parts))
        if operator == "iff" and len(parts) > 2:
            raise Unreadable("a chain of 'iff' can be read in two ways: it needs parentheses")
        return Joined(operator, tuple(parts))

    def _single(self) -> Formula:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        try:
            if self._take("not"):
                return Not(self._single())
            if self._next() in ("forall", "exists"):
                return self._quantified()
            for left, right in ("()", "[]"):
                if self._take(left):
                    inside = self._joined(0)
                    self._need(right)
                    return inside
            return self._atom()
        finally:
            self.depth -= 1

    def _quantified(self) -> Formula:
        quantifier = self._next()
        self.at += 1
        names = [self._name()]
        while self._take(",") or self._more_names():
            names.append(self._name())
        self.bound += names
        found = self._joined(0) if self._take(".", ":") else self._single()
        del self.bound[-len(names) :]
        return reduce(lambda scope, name: Quantified(quantifier, name, scope), reversed(names), found)

    def _more_names(self) -> bool:
        """In ``forall x y. ...`` y is a variable too; in ``forall x P(x)`` and ``forall x p``, P and p are not."""
        ahead = self.at
        while _is_name(self.tokens[ahead]) or self.tokens[ahead] == ",":
            ahead += 1
        return ahead > self.at and self.tokens[ahead] in (".", ":")

    def _name(self) -> str:
        name = self._next()
        if not _is_name(name):
            raise Unreadable(f"a name is missing before {name!r}" if name else "a name is missing at the end")
        self.at += 1
        return name

    def _atom(self) -> Formula:
        if self._next() in ("true", "false"):
            self.at += 1
            return Truth(self.tokens[self.at - 1] == "true")
        left = self._term()
        if self._take("="):
            return Equal(left, self._term())
        if self._take("!="):
            return Not(Equal(left, self._term()))
        if isinstance(left, Variable):
            raise Unreadable(f"the variable {left.name!r} stands where a formula should")
        if left.name.isdigit():
            raise Unreadable(f"the number {left.name} stands where a formula should")
        return Atom(left.name, left.arguments)

    def _term(self) -> Variable | Apply:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        name = self._name()
        arguments: list[Term] = []
        if self._take("("):
            arguments.append(self._term())
            while self._take(","):
                arguments.append(self._term())
            self._need(")")
        self.depth -= 1
        if len(arguments) > MAX_ARGUMENTS:
            raise Unreadable(f"{name!r} has more than {MAX_ARGUMENTS} arguments")
        if name not in self.bound:
            return Apply(name, tuple(arguments))
        if arguments:
            raise Unreadable(f"the variable {name!r} has arguments")
        return Variable(name)


def _is_name(token: str) -> bool:
    return token[:1].isalnum() and token not in WORDS


def _tokens(text: str) -> list[str]:
    """The tokens and an empty one at the end, with operators and quantifiers replaced by their words."""
    if len(text) > MAX_LENGTH:
        raise Unreadable(f"longer than {MAX_LENGTH} characters")
    text = text.replace("/\\", "∧").replace("\\/", "∨")
    if "^" in text:
        raise Unreadable("'^' can be read in two ways: write 'and' or 'xor'")
    text = SUBSCRIPT.sub(r"_\1", FONT.sub(r" \1 ", text))
    text = SPACING.sub(" ", text).strip().rstrip(".;")
    tokens, at = [], 0
    while at < len(text):
        found = TOKEN.match(text, at)
        if found is None:
            raise Unreadable(f"unexpected {text[at]!r}")
        at = found.end()
        token = found.group()
        if found["command"] and token not in MEANING:
            raise Unreadable(f"unexpected {token!r}")
        word = token.lower() if found["name"] and token.lower() in WORDS else token
        if token.strip():
            tokens.append(MEANING.get(word, word))
    return [*tokens, ""]
