"""Satisfiability and entailment of formulas, decided by z3 within a deterministic budget.

The budget counts z3's own steps (``rlimit``), not time, so a busy machine gets the same answer. Memory is bounded too.
If z3 cannot decide within the budget, the answer is None, which never becomes a verdict. Unless z3 refutes the
formulas, small finite interpretations are tried as well: they decide some cases that z3 alone leaves open, and serve as
evidence. Each is checked by `interpretation`, which shares no code with z3; a mismatch raises `Disagreement`.

There is one sort, with a nonempty domain. Without z3 (the extra ``verify``), `NeedsSolver` is raised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, reduce
from itertools import product
from typing import Any, NamedTuple

from distill.verifiers.formula import (
    Atom,
    Equal,
    Formula,
    Joined,
    Not,
    Quantified,
    Signature,
    Term,
    Truth,
    Variable,
    negation,
)
from distill.verifiers.interpretation import Interpretation, TooLarge, is_true

BUDGET = 600_000
"""z3's steps for one question: about a CPU-second."""
FINITE_SHARE = 6
"""A finite search gets the budget divided by this, for each size."""
MOST_CONFLICTS = 20_000
"""Limit on the conflicts of z3's propositional search, which hardly count as steps."""
MEMORY_MIB = 1_024
SIZES = (1, 2, 3, 4)
MOST_GROUND = 20_000
"""Limit on the formulas of a finite search, after every quantifier is expanded to one formula per element."""
INSTALL = "needs the solver z3: pip install 'distill-reasoning[verify]'"


class NeedsSolver(Exception):
    """z3 is not installed."""


class Disagreement(Exception):
    """z3 returned a model that evaluation rejects."""


class Decision(NamedTuple):
    """``together``: can all formulas be true at once? None if the budget ran out. ``model`` is set if a small one was
    found."""

    together: bool | None
    model: Interpretation | None = None


def load() -> Any:
    """Import z3 and bound its memory."""
    try:
        import z3
    except ImportError:
        raise NeedsSolver(INSTALL) from None
    z3.set_param("memory_max_size", MEMORY_MIB)
    return z3


def true_together(formulas: Sequence[Formula], budget: int = BUDGET) -> Decision:
    """Is there an interpretation in which all of ``formulas`` are true?"""
    return _decided(tuple(formulas), budget)


@lru_cache(maxsize=1_024)
def _decided(formulas: tuple[Formula, ...], budget: int) -> Decision:
    """Cached, because many answers to one problem ask the same question."""
    together = _Question(formulas, budget).answer()
    if together is False:
        return Decision(False)
    for size in SIZES:
        model = _finite(formulas, size, budget // FINITE_SHARE)
        if model is not None:
            return Decision(True, model)
    return Decision(together)


def follows(premises: Sequence[Formula], conclusion: Formula, budget: int = BUDGET) -> Decision:
    """Try the premises with the negated conclusion: ``together`` is False if it follows; a model is a countermodel."""
    return true_together([*premises, negation(conclusion)], budget)


def _finite(formulas: Sequence[Formula], size: int, budget: int) -> Interpretation | None:
    """A model with ``size`` elements, if one is found within the budget."""
    if sum(_ground_size(formula, size) for formula in formulas) > MOST_GROUND:
        return None
    question = _Question(formulas, budget, size)
    if not question.answer():
        return None
    model = question.interpretation()
    try:
        if not all(is_true(formula, model) for formula in formulas):
            raise Disagreement("z3's model is none by evaluation")
    except TooLarge:
        return None
    return model


def _ground_size(formula: Formula, elements: int) -> int:
    match formula:
        case Quantified(inside=inside):
            return min(elements * _ground_size(inside, elements), MOST_GROUND + 1)
        case Not(inside):
            return 1 + _ground_size(inside, elements)
        case Joined(parts=parts):
            return min(1 + sum(_ground_size(part, elements) for part in parts), MOST_GROUND + 1)
    return 1


class _Question:
    """One question to z3, in its own context. With ``size``, over exactly that many elements."""

    def __init__(self, formulas: Sequence[Formula], budget: int, size: int | None = None) -> None:
        self.z3 = load()
        self.context = self.z3.Context()
        self.thing = self.z3.DeclareSort("Thing", self.context)
        self.signature = Signature.of(formulas)
        self.declared = self._declared()
        self.elements = [self.z3.Const(f"#{index}", self.thing) for index in range(size or 0)]
        self.solver = self.z3.Solver(ctx=self.context)
        self.solver.set("rlimit", budget)
        self.solver.set("max_conflicts", MOST_CONFLICTS)
        for formula in formulas:
            self.solver.add(self._boolean(formula, {}))
        if size:
            self.solver.add(*self._domain_constraints())

    def answer(self) -> bool | None:
        try:
            result = self.solver.check()
        except self.z3.Z3Exception:  # out of memory
            return None
        return None if result == self.z3.unknown else bool(result == self.z3.sat)

    def interpretation(self) -> Interpretation:
        """The model that a finite search found."""
        model = self.solver.model()
        names = [str(index) for index in range(1, len(self.elements) + 1)]
        things = dict(zip(names, self.elements, strict=True))
        values: dict[str, dict[tuple[str, ...], str]] = {}
        held: dict[str, dict[tuple[str, ...], bool]] = {}
        for name, count in self.signature.functions.items():
            found = {place: self._value(model, name, place, things) for place in product(names, repeat=count)}
            values[name] = {
                place: next(other for other in names if model.eval(thing == things[other], True))
                for place, thing in found.items()
            }
        for name, count in self.signature.predicates.items():
            found = {place: self._value(model, name, place, things) for place in product(names, repeat=count)}
            held[name] = {place: self.z3.is_true(model.eval(worth, True)) for place, worth in found.items()}
        counts = self.signature.predicates
        return Interpretation(
            tuple(names),
            {name: held[name][()] for name in held if not counts[name]},
            {name: frozenset(p for p in held[name] if held[name][p]) for name in held if counts[name]},
            values,
        )

    def _value(self, model: Any, name: str, place: tuple[str, ...], things: Mapping[str, Any]) -> Any:
        return self.declared[name](*(things[element] for element in place))

    def _declared(self) -> dict[str, Any]:
        """A z3 function ``name/arity`` for every name. Names contain no slash, so no two declarations can clash."""
        truth = self.z3.BoolSort(self.context)
        wanted = [(name, count, truth) for name, count in self.signature.predicates.items()]
        wanted += [(name, count, self.thing) for name, count in self.signature.functions.items()]
        return {
            name: self.z3.Function(f"{name}/{count}", *[self.thing] * count, result) for name, count, result in wanted
        }

    def _domain_constraints(self) -> Iterator[Any]:
        """Constraints: the elements are distinct, and every function maps elements to elements."""
        if len(self.elements) > 1:
            yield self.z3.Distinct(*self.elements)
        for name, count in self.signature.functions.items():
            for place in product(self.elements, repeat=count):
                value = self.declared[name](*place)
                yield self.z3.Or(*(value == element for element in self.elements), self._truth(False))

    def _boolean(self, formula: Formula, bound: Mapping[str, Any]) -> Any:
        match formula:
            case Truth(value):
                return self._truth(value)
            case Atom(name, arguments):
                return self.declared[name](*(self._term(term, bound) for term in arguments))
            case Equal(left, right):
                return self._term(left, bound) == self._term(right, bound)
            case Not(inside):
                return self.z3.Not(self._boolean(inside, bound))
            case Joined(operator, parts):
                return self._joined(operator, [self._boolean(part, bound) for part in parts])
            case Quantified(quantifier, variable, inside):
                return self._quantified(quantifier, variable, inside, bound)

    def _joined(self, operator: str, parts: list[Any]) -> Any:
        z3 = self.z3
        if operator in ("and", "or"):
            return (z3.And if operator == "and" else z3.Or)(*parts)
        joins = {"xor": z3.Xor, "implies": z3.Implies, "iff": lambda left, right: left == right}
        return reduce(joins[operator], parts)

    def _quantified(self, quantifier: str, variable: str, inside: Formula, bound: Mapping[str, Any]) -> Any:
        every = quantifier == "forall"
        if self.elements:
            parts = [self._boolean(inside, {**bound, variable: element}) for element in self.elements]
            return self._joined("and" if every else "or", parts)
        # Named by depth, so that an inner variable of the same name is a different one.
        constant = self.z3.Const(f"{variable}@{len(bound)}", self.thing)
        scope = self._boolean(inside, {**bound, variable: constant})
        return (self.z3.ForAll if every else self.z3.Exists)([constant], scope)

    def _term(self, term: Term, bound: Mapping[str, Any]) -> Any:
        if isinstance(term, Variable):
            return bound[term.name]
        return self.declared[term.name](*(self._term(argument, bound) for argument in term.arguments))

    def _truth(self, value: bool) -> Any:
        return self.z3.BoolVal(value, self.context)
