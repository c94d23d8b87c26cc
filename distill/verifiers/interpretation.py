"""Finite interpretations, and the truth value of a formula in one by plain evaluation, without a solver.

`distill.verifiers.model` reads an interpretation from text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.verifiers.formula import Atom, Equal, Formula, Joined, Not, Quantified, Term, Truth, Variable

MAX_STEPS = 200_000

Place = tuple[str, ...]


class TooLarge(Exception):
    """Evaluating would take more steps than `MAX_STEPS`."""


@dataclass(frozen=True, slots=True)
class Interpretation:
    """Elements are represented by their names. ``truths`` gives the value of each proposition, ``holds`` the places
    (argument tuples) at which each predicate is true, and ``values`` the value of each function at each place."""

    domain: tuple[str, ...]
    truths: Mapping[str, bool]
    holds: Mapping[str, frozenset[Place]]
    values: Mapping[str, Mapping[Place, str]]

    def plain(self) -> dict[str, Any]:
        """As JSON, in the form that `distill.verifiers.model.read` takes."""
        data: dict[str, Any] = {"domain": list(self.domain)} if self.holds or self.values else {}
        data |= {name: self.truths[name] for name in sorted(self.truths)}
        data |= {name: sorted(map(list, self.holds[name])) for name in sorted(self.holds)}
        for name, values in sorted(self.values.items()):
            data[name] = values[()] if () in values else {",".join(place): value for place, value in values.items()}
        return data


def is_true(formula: Formula, interpretation: Interpretation) -> bool:
    """The truth value of a formula whose names are all interpreted. Raises `TooLarge` if that takes too many steps."""
    return _Evaluation(interpretation).truth(formula, {})


class _Evaluation:
    def __init__(self, interpretation: Interpretation) -> None:
        self.interpretation = interpretation
        self.steps = 0

    def truth(self, formula: Formula, bound: Mapping[str, str]) -> bool:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise TooLarge
        match formula:
            case Truth(value):
                return value
            case Atom(name, ()):
                return self.interpretation.truths[name]
            case Atom(name, arguments):
                return tuple(self.value(term, bound) for term in arguments) in self.interpretation.holds[name]
            case Equal(left, right):
                return self.value(left, bound) == self.value(right, bound)
            case Not(inside):
                return not self.truth(inside, bound)
            case Quantified(quantifier, variable, inside):
                results = (self.truth(inside, {**bound, variable: thing}) for thing in self.interpretation.domain)
                return all(results) if quantifier == "forall" else any(results)
            case Joined(operator, parts):
                return self.joined(operator, parts, bound)

    def joined(self, operator: str, parts: tuple[Formula, ...], bound: Mapping[str, str]) -> bool:
        results = (self.truth(part, bound) for part in parts)
        if operator == "and":
            return all(results)
        if operator == "or":
            return any(results)
        if operator == "xor":
            return sum(results) % 2 == 1
        left, right = results
        return left == right if operator == "iff" else not left or right

    def value(self, term: Term, bound: Mapping[str, str]) -> str:
        self.steps += 1
        if isinstance(term, Variable):
            return bound[term.name]
        place = tuple(self.value(argument, bound) for argument in term.arguments)
        return self.interpretation.values[term.name][place]
