"""Formulas of propositional and first-order logic as trees, and operations on them.

`distill.verifiers.syntax` parses them. `distill.verifiers.entailment` (z3) and `distill.verifiers.interpretation`
(evaluation) give them meaning. The parser bounds the depth of a tree, so all of this code may recurse.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field


class Unreadable(ValueError):
    """Not a formula; the message says why, in one line."""


@dataclass(frozen=True, slots=True)
class Variable:
    name: str


@dataclass(frozen=True, slots=True)
class Apply:
    """A function of its arguments; a constant has none."""

    name: str
    arguments: tuple[Term, ...] = ()


Term = Variable | Apply


@dataclass(frozen=True, slots=True)
class Truth:
    value: bool


@dataclass(frozen=True, slots=True)
class Atom:
    """A predicate of its arguments; a proposition has none."""

    name: str
    arguments: tuple[Term, ...] = ()


@dataclass(frozen=True, slots=True)
class Equal:
    left: Term
    right: Term


@dataclass(frozen=True, slots=True)
class Not:
    inside: Formula


@dataclass(frozen=True, slots=True)
class Joined:
    """``operator`` is and, or, xor (two parts or more), implies or iff (two)."""

    operator: str
    parts: tuple[Formula, ...]


@dataclass(frozen=True, slots=True)
class Quantified:
    """``quantifier`` is forall or exists."""

    quantifier: str
    variable: str
    inside: Formula


Formula = Truth | Atom | Equal | Not | Joined | Quantified


def inside(formula: Formula) -> tuple[Formula, ...]:
    """The direct subformulas."""
    if isinstance(formula, Not | Quantified):
        return (formula.inside,)
    return formula.parts if isinstance(formula, Joined) else ()


def subformulas(formula: Formula) -> Iterator[Formula]:
    """The formula and all its subformulas, outermost first."""
    stack = [formula]
    while stack:
        part = stack.pop()
        yield part
        stack.extend(reversed(inside(part)))


def terms(formula: Formula) -> Iterator[Term]:
    """Every term in the formula, including terms inside terms."""
    for part in subformulas(formula):
        outer = part.arguments if isinstance(part, Atom) else (part.left, part.right) if isinstance(part, Equal) else ()
        stack = list(outer)
        while stack:
            term = stack.pop()
            yield term
            if isinstance(term, Apply):
                stack.extend(term.arguments)


def size(formula: Formula) -> int:
    return sum(1 for _ in subformulas(formula)) + sum(1 for _ in terms(formula))


def negation(formula: Formula) -> Formula:
    return formula.inside if isinstance(formula, Not) else Not(formula)


def alike(left: Formula, right: Formula) -> bool:
    """Whether two formulas are the same up to the names of bound variables."""
    return _numbered(left, {}) == _numbered(right, {})


def _numbered(formula: Formula, bound: Mapping[str, str]) -> Formula:
    """The formula with each bound variable named by the number of quantifiers around its own."""
    match formula:
        case Quantified(quantifier, variable, inside):
            name = str(len(bound))
            return Quantified(quantifier, name, _numbered(inside, {**bound, variable: name}))
        case Not(inside):
            return Not(_numbered(inside, bound))
        case Joined(operator, parts):
            return Joined(operator, tuple(_numbered(part, bound) for part in parts))
        case Atom(name, arguments):
            return Atom(name, tuple(_renamed(term, bound) for term in arguments))
        case Equal(left, right):
            return Equal(_renamed(left, bound), _renamed(right, bound))
    return formula


def _renamed(term: Term, names: Mapping[str, str]) -> Term:
    if isinstance(term, Variable):
        return Variable(names.get(term.name, term.name))
    return Apply(term.name, tuple(_renamed(argument, names) for argument in term.arguments))


@dataclass
class Signature:
    """The names in a set of formulas, with their arities. `add` raises `Unreadable` for a name with two meanings."""

    predicates: dict[str, int] = field(default_factory=dict)
    functions: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, formulas: Iterable[Formula]) -> Signature:
        signature = cls()
        for formula in formulas:
            signature.add(formula)
        return signature

    def add(self, formula: Formula) -> None:
        for part in subformulas(formula):
            if isinstance(part, Atom):
                self._name(self.predicates, self.functions, part)
        for term in terms(formula):
            if isinstance(term, Apply):
                self._name(self.functions, self.predicates, term)

    def covers(self, other: Signature) -> bool:
        return other.predicates.keys() <= self.predicates.keys() and other.functions.keys() <= self.functions.keys()

    @staticmethod
    def _name(mine: dict[str, int], others: Mapping[str, int], part: Atom | Apply) -> None:
        count = len(part.arguments)
        if part.name in others:
            raise Unreadable(f"{part.name!r} is both a predicate and a thing")
        if mine.setdefault(part.name, count) != count:
            raise Unreadable(f"{part.name!r} has {mine[part.name]} arguments and {count}")


def form_fault(formula: Formula, form: str) -> str:
    """Why a formula is not in ``form`` (nnf, cnf or dnf); empty if it is."""
    for part in subformulas(formula):
        if isinstance(part, Quantified):
            return "it has a quantifier"
        if isinstance(part, Joined) and part.operator not in ("and", "or"):
            return f"it has {part.operator!r}"
        if isinstance(part, Not) and not isinstance(part.inside, Atom | Equal):
            return "a negation of more than an atom"
    inner = {"cnf": "or", "dnf": "and"}.get(form)
    for part in subformulas(formula) if inner else ():
        if isinstance(part, Joined) and part.operator == inner:
            deeper = (below for below in subformulas(part) if isinstance(below, Joined))
            if any(below.operator != inner for below in deeper):
                return f"{'and' if inner == 'or' else 'or'!r} inside {inner!r}"
    return ""
