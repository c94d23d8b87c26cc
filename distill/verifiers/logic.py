"""`logic`: entailment, equivalence, satisfiability; answers may be formulas, models or proofs. Judged by z3.

The reference is JSON, its formulas in the syntax of `distill.verifiers.syntax`:

    {"task": "entailment", "premises": [...], "conclusion": "..."}   True, False or Uncertain (FOLIO, ProofWriter)
    {"task": "follows", "premises": [...], "conclusion": "..."}      yes or no
    {"task": "satisfiable", "formulas": [...]}                       yes or no
    {"task": "equivalent", "formulas": ["...", "..."]}               yes or no
    {"task": "formula", "formula": "..."}                            an equivalent formula; ``form`` may require
                                                                     nnf, cnf or dnf
    {"task": "model", "formulas": [...]}                             an interpretation (`model`), or "unsatisfiable"
    {"task": "countermodel", "premises": [...], "conclusion": "..."} the same, where the conclusion is false
    {"task": "proof", "premises": [...], "conclusion": "..."}        numbered lines (`proof`)

The truth is computed from the formulas. A reference may also have a ``label``. If it contradicts the solver, if the
premises contradict each other, or if the solver gives up, the verdict is `unverifiable`. Models are checked without a
solver. Closed worlds, in which anything not stated is false, are not supported.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from distill.thinking import Response
from distill.types import Problem, Verdict
from distill.verifiers import entailment, model, proof
from distill.verifiers.extras import installed
from distill.verifiers.formula import Formula, Joined, Signature, Unreadable, alike, form_fault, negation
from distill.verifiers.interpretation import Interpretation, TooLarge, is_true
from distill.verifiers.logic_answer import SAYINGS, about, block, last_line, model_block, saying
from distill.verifiers.syntax import parse

MAX_REFERENCE = 50_000
MAX_ANSWER = 20_000
MOST_FORMULAS = 200


class Unknown(Exception):
    """The truth could not be determined, or the reference contradicts itself."""


@dataclass(frozen=True)
class Task:
    """A parsed reference: ``given`` are its premises or formulas, ``goal`` its conclusion or single formula."""

    name: str
    given: tuple[Formula, ...]
    goal: Formula | None = None
    label: str | None = None
    form: str | None = None

    @property
    def target(self) -> Formula:
        assert self.goal is not None
        return self.goal

    @property
    def wanted(self) -> tuple[Formula, ...]:
        """What a model must make true."""
        return self.given if self.goal is None else (*self.given, negation(self.goal))


FIELDS = {
    "entailment": ("premises", "conclusion"),
    "follows": ("premises", "conclusion"),
    "satisfiable": ("formulas", None),
    "equivalent": ("formulas", None),
    "formula": (None, "formula"),
    "model": ("formulas", None),
    "countermodel": ("premises", "conclusion"),
    "proof": ("premises", "conclusion"),
}
LABELLED = ("entailment", "follows", "satisfiable", "equivalent")
FORMS = ("nnf", "cnf", "dnf")


@dataclass(frozen=True)
class Logic:
    name: ClassVar[str] = "logic"

    @property
    def version(self) -> str:
        return f"3/{installed('z3-solver')}"

    def quick(self, problem: Problem, trace: Response) -> Verdict | None:
        """The verdict where no solver is needed: an unreadable reference, or an answer that is empty or too long."""
        try:
            task = read_task(problem.reference)
        except Unreadable as error:
            return Verdict.unverifiable(f"the reference: {error}")
        if not trace.answer.strip():
            return Verdict.incorrect("no answer", task=task.name)
        if len(trace.answer) > MAX_ANSWER:
            return Verdict.incorrect(f"an answer of {len(trace.answer)} characters", task=task.name)
        return None

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        verdict = self.quick(problem, trace)
        if verdict is not None:
            return verdict
        task = read_task(problem.reference)
        try:
            return JUDGES[task.name](task, trace.answer)
        except (entailment.NeedsSolver, entailment.Disagreement, Unknown) as error:
            return Verdict.unverifiable(str(error), task=task.name)

    def prepare(self) -> None:
        """Import the solver, if it is installed, before the first verdict."""
        try:
            entailment.load()
        except entailment.NeedsSolver:
            return


@lru_cache(maxsize=256)
def read_task(reference: str) -> Task:
    """Parse a reference. Raises `Unreadable`. Cached, because a reference has many answers."""
    if len(reference) > MAX_REFERENCE:
        raise Unreadable(f"longer than {MAX_REFERENCE} characters")
    try:
        data = json.loads(reference)
    except (ValueError, RecursionError):
        raise Unreadable("it is no JSON") from None
    name = data.get("task") if isinstance(data, dict) else None
    if not isinstance(name, str) or name not in FIELDS:
        raise Unreadable(f"its task is none of {', '.join(FIELDS)}")
    many, one = FIELDS[name]
    allowed = {"task", many, one, "label" if name in LABELLED else None, "form" if name == "formula" else None}
    if unknown := sorted(data.keys() - allowed):
        raise Unreadable(f"the task {name} has no {unknown[0]!r}")
    given = tuple(_formula(text, many) for text in _list(data, many)) if many else ()
    goal = _formula(data.get(one), one) if one else None
    Signature.of(given if goal is None else (*given, goal))
    if name == "equivalent" and len(given) != 2:
        raise Unreadable("equivalent takes two formulas")
    form = data.get("form")
    if form is not None and form not in FORMS:
        raise Unreadable(f"its form is none of {', '.join(FORMS)}")
    return Task(name, given, goal, _label(name, data.get("label")), form)


def _list(data: dict[str, Any], key: str) -> list[Any]:
    found = data.get(key)
    if not isinstance(found, list) or len(found) > MOST_FORMULAS or not (found or key == "premises"):
        raise Unreadable(f"{key!r} is no list of formulas")
    return found


def _formula(text: Any, key: str | None) -> Formula:
    if not isinstance(text, str):
        raise Unreadable(f"a formula is missing in {key!r}")
    try:
        return parse(text)
    except Unreadable as error:
        raise Unreadable(f"in {key!r}, {text[:60]!r}: {error}") from None


def _label(name: str, label: Any) -> str | None:
    if label is None:
        return None
    word = saying(str(label), SAYINGS[name])
    if word is None:
        raise Unreadable(f"its label {str(label)[:40]!r} is none of {', '.join(SAYINGS[name])}")
    return word


def _word_verdict(task: Task, answer: str) -> Verdict:
    """The verdict on an answer that is a word such as "yes", compared with the truth."""
    line, goal = last_line(answer), task.goal
    word = saying(line, SAYINGS[task.name])
    if word is None and goal is not None:
        word = about(line, SAYINGS[task.name], lambda text: _is_formula(text, goal))
    truth, model = _truth(task)
    evidence: dict[str, Any] = {"task": task.name, "truth": truth, "answer": word}
    if model is not None:
        evidence["model"] = model.plain()
    if task.label not in (None, truth):
        return Verdict.unverifiable(f"the label says {task.label}, the solver {truth}", **evidence)
    if word is None:
        return Verdict.incorrect(f"the answer says none of {', '.join(SAYINGS[task.name])}", **evidence)
    return (Verdict.correct if word == truth else Verdict.incorrect)(f"it is {truth}", **evidence)


def _is_formula(text: str, wanted: Formula) -> bool:
    try:
        return alike(parse(text), wanted)
    except Unreadable:
        return False


def _truth(task: Task) -> tuple[str, Interpretation | None]:
    """The right word, and an interpretation that demonstrates it, if one does."""
    if task.name == "satisfiable":
        decision = entailment.true_together(task.given)
        return ("yes" if _decided(decision.together) else "no"), decision.model
    if task.name == "equivalent":
        differ = entailment.true_together([Joined("xor", task.given)])
        return ("no" if _decided(differ.together) else "yes"), differ.model
    against = entailment.follows(task.given, task.target)
    together = entailment.true_together([*task.given, task.target])
    if not _decided(against.together) and not _decided(together.together):
        raise Unknown("the premises contradict each other")
    if task.name == "follows":
        return ("no" if against.together else "yes"), against.model
    if not against.together:
        return "True", together.model
    return ("Uncertain" if together.together else "False"), against.model


def _decided(answer: bool | None) -> bool:
    if answer is None:
        raise Unknown("too hard for the solver within its budget")
    return answer


def _formula_verdict(task: Task, answer: str) -> Verdict:
    text = last_line(answer)
    evidence: dict[str, Any] = {"task": task.name, "answer": text[:200]}
    try:
        given = parse(text)
        Signature.of((task.target, given))
    except Unreadable as error:
        return Verdict.incorrect(f"no formula: {error}", **evidence)
    if task.form and (fault := form_fault(given, task.form)):
        return Verdict.incorrect(f"not in {task.form}: {fault}", **evidence)
    differ = entailment.true_together([Joined("xor", (task.target, given))])
    if not _decided(differ.together):
        return Verdict.correct("the formulas are equivalent", **evidence)
    if differ.model is not None:
        evidence["model"] = differ.model.plain()
    return Verdict.incorrect("the formulas differ", **evidence)


def _model_verdict(task: Task, answer: str) -> Verdict:
    evidence: dict[str, Any] = {"task": task.name}
    if saying(last_line(answer), SAYINGS["model"]) == "none":
        decision = entailment.true_together(task.wanted)
        if not _decided(decision.together):
            return Verdict.correct("there is none", **evidence)
        shown = {} if decision.model is None else {"model": decision.model.plain()}
        return Verdict.incorrect("there is one", **evidence, **shown)
    try:
        given = model.read(model_block(answer), Signature.of(task.wanted))
        false = [index for index, formula in enumerate(task.wanted) if not is_true(formula, given)]
    except Unreadable as error:
        return Verdict.incorrect(f"no interpretation: {error}", **evidence)
    except TooLarge:
        return Verdict.unverifiable("too large to evaluate", **evidence)
    evidence["answer"] = given.plain()
    if not false:
        return Verdict.correct("every formula is as wanted in it", **evidence)
    if task.goal is not None and false[0] == len(task.given):
        return Verdict.incorrect("the conclusion is true in it", **evidence)
    return Verdict.incorrect(f"formula {false[0] + 1} is false in it", **evidence, false=[at + 1 for at in false])


def _proof_verdict(task: Task, answer: str) -> Verdict:
    if entailment.follows(task.given, task.target).together:
        raise Unknown("the conclusion does not follow from the premises")
    evidence: dict[str, Any] = {"task": task.name}
    try:
        lines = proof.read(block(answer))
    except Unreadable as error:
        return Verdict.incorrect(str(error), **evidence)
    evidence |= {"lines": len(lines), "steps": sum(line.how == "step" for line in lines)}
    wrong = proof.flaw(lines, task.given, task.target)
    if wrong is None:
        return Verdict.correct(f"all {len(lines)} lines hold", **evidence)
    evidence["wrong_line"] = wrong.line
    if wrong.countermodel is not None:
        evidence["countermodel"] = wrong.countermodel.plain()
    return (Verdict.incorrect if wrong.sure else Verdict.unverifiable)(f"line {wrong.line}: {wrong.reason}", **evidence)


JUDGES: dict[str, Callable[[Task, str], Verdict]] = {
    **dict.fromkeys(LABELLED, _word_verdict),
    "formula": _formula_verdict,
    "model": _model_verdict,
    "countermodel": _model_verdict,
    "proof": _proof_verdict,
}
