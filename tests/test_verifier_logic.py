"""The logic verifier: reading formulas, deciding what follows from what, and reading answers.

z3 is compared with two methods that share nothing with it: truth tables, and all small interpretations.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from itertools import chain, combinations, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.types import Outcome, Problem, Verdict
from distill.verifiers import VerifierPool, judge
from distill.verifiers.formula import (
    Apply,
    Atom,
    Equal,
    Formula,
    Joined,
    Not,
    Quantified,
    Signature,
    Truth,
    Unreadable,
    Variable,
    alike,
    form_fault,
)
from distill.verifiers.interpretation import Interpretation, is_true
from distill.verifiers.logic import Logic
from distill.verifiers.model import read
from distill.verifiers.proof import Line, flaw
from distill.verifiers.syntax import parse

pytest.importorskip("z3", reason="z3 is not installed")
from distill.verifiers.entailment import follows, true_together

CORRECT, INCORRECT, UNVERIFIABLE = Outcome.CORRECT, Outcome.INCORRECT, Outcome.UNVERIFIABLE
BARBARA = {"task": "entailment", "premises": ["forall x. P(x) -> Q(x)", "P(a)"]}


def verdict(reference: Mapping[str, Any] | str, answer: str) -> Verdict:
    text = reference if isinstance(reference, str) else json.dumps(reference)
    return judge(Logic(), Problem("p", "?", text, "logic", "test"), answer)


def outcome(reference: Mapping[str, Any] | str, answer: str) -> Outcome:
    return verdict(reference, answer).outcome


# How formulas are written.


@pytest.mark.parametrize(
    "spellings",
    [
        ("p and q", "p & q", "p && q", "p ∧ q", "p /\\ q", r"p \land q", r"$p \wedge q$", "p AND q"),
        ("p or q", "p | q", "p || q", "p ∨ q", "p \\/ q", r"p \lor q", "(p or q).", r"\left(p \vee q\right)"),
        ("not p", "~p", "!p", "¬p", r"\neg p", r"\lnot{p}", "not (p)", "NOT p"),
        ("p -> q", "p implies q", "p => q", "p → q", r"p \to q", r"p \implies q", "[p → q]"),
        ("p <-> q", "p iff q", "p ↔ q", "p <=> q", r"p \leftrightarrow q"),
        ("p xor q", "p ⊕ q", r"p \oplus q"),
        ("p -> q -> r", "p -> (q -> r)"),
        ("not p and q or r -> s", "((((not p) and q) or r) -> s)"),
        ("p or q xor r and s", "p or (q xor (r and s))"),
        ("forall x. P(x) -> Q(x)", "∀x (P(x) → Q(x))", "all x: P(x) -> Q(x)", r"\forall x (P(x) \to Q(x))"),
        ("forall x. forall y. R(x, y)", "forall x y. R(x,y)", "∀x, y. R(x, y)", "∀x∀y R(x, y)"),
        ("(forall x. P(x)) and q", "∀x P(x) ∧ q"),
        ("not exists x. P(x)", "¬∃x P(x)"),
        ("a != b", "a ≠ b", "not a = b"),
        ("Cat(tom_1)", r"\text{Cat}(tom_{1})"),
        ("true -> false", "⊤ → ⊥", "True -> False"),
    ],
)
def test_different_spellings_give_the_same_formula(spellings: tuple[str, ...]) -> None:
    assert len({parse(spelling) for spelling in spellings}) == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "missing"),
        ("p q", "unexpected 'q'"),
        ("p and", "missing at the end"),
        ("(p", r"'\)' is missing"),
        ("p)", "unexpected"),
        ("p ^ q", "two ways"),
        ("p <-> q <-> r", "two ways"),
        ("∀x P(x) → Q(x)", "outside its quantifier"),
        ("forall x. x", "variable 'x' stands"),
        ("P(x y)", "missing"),
        ("P(p) and p", "both a predicate and a thing"),
        ("P(a) or P(a, b)", "1 arguments and 2"),
        ("1", "number"),
        ("(" * 200 + "p" + ")" * 200, "nested too deeply"),
        ("not " * 200 + "p", "nested too deeply"),
        ("p -> " * 400 + "p", "nested too deeply"),
        ("f(" * 200 + "a" + ")" * 200 + " = a", "nested too deeply"),
        ("p and " * 2000 + "p", "longer than"),
        ("__import__('os')", "unexpected"),
        ("p \x00 q", "unexpected"),
    ],
)
def test_an_unreadable_formula_is_refused_with_a_reason(text: str, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        Signature.of([parse(text)])


def written(formula: Formula) -> str:
    """The formula with all possible brackets."""
    match formula:
        case Truth(value):
            return "true" if value else "false"
        case Atom(name, arguments):
            return f"{name}({', '.join(map(spoken, arguments))})" if arguments else name
        case Equal(left, right):
            return f"({spoken(left)} = {spoken(right)})"
        case Not(inside):
            return f"(not {written(inside)})"
        case Joined(operator, parts):
            return "(" + f" {operator} ".join(map(written, parts)) + ")"
        case Quantified(quantifier, variable, inside):
            return f"({quantifier} {variable}. {written(inside)})"


def spoken(term: Variable | Apply) -> str:
    return (
        term.name
        if isinstance(term, Variable) or not term.arguments
        else f"{term.name}({', '.join(map(spoken, term.arguments))})"
    )


def joined(parts: st.SearchStrategy[Formula]) -> st.SearchStrategy[Formula]:
    two = st.tuples(parts, parts)
    return (
        st.builds(Not, parts)
        | st.builds(Joined, st.sampled_from(["implies", "iff"]), two)
        | st.builds(Joined, st.sampled_from(["and", "or", "xor"]), two | st.tuples(parts, parts, parts))
    )


propositional = st.recursive(
    st.sampled_from([Atom(name) for name in "pqrs"]) | st.builds(Truth, st.booleans()), joined, max_leaves=12
)


def quantified(parts: st.SearchStrategy[Formula]) -> st.SearchStrategy[Formula]:
    return joined(parts) | st.builds(
        Quantified, st.sampled_from(["forall", "exists"]), st.sampled_from(["x", "y"]), parts
    )


def closed(formula: Formula, bound: frozenset[str] = frozenset()) -> Formula:
    """The formula with the constant a in place of free variables."""
    match formula:
        case Quantified(quantifier, variable, inside):
            return Quantified(quantifier, variable, closed(inside, bound | {variable}))
        case Not(inside):
            return Not(closed(inside, bound))
        case Joined(operator, parts):
            return Joined(operator, tuple(closed(part, bound) for part in parts))
        case Atom(name, arguments):
            return Atom(name, tuple(bound_or_a(term, bound) for term in arguments))
        case Equal(left, right):
            return Equal(bound_or_a(left, bound), bound_or_a(right, bound))
    return formula


def bound_or_a(term: Variable | Apply, bound: frozenset[str]) -> Variable | Apply:
    return term if isinstance(term, Apply) or term.name in bound else Apply("a")


things = st.sampled_from([Variable("x"), Variable("y"), Apply("a")])
atoms = (
    st.builds(Atom, st.just("P"), st.tuples(things))
    | st.builds(Atom, st.just("R"), st.tuples(things, things))
    | st.builds(Equal, things, things)
)
first_order = st.recursive(atoms, quantified, max_leaves=5).map(closed)


@settings(max_examples=150, deadline=None)
@given(formula=propositional | first_order)
def test_a_written_formula_is_parsed_back(formula: Formula) -> None:
    assert parse(written(formula)) == formula


# What follows from what.


def assignments(names: str) -> Iterator[dict[str, bool]]:
    return (dict(zip(names, worths, strict=True)) for worths in product((False, True), repeat=len(names)))


def worth(formula: Formula, row: Mapping[str, bool]) -> bool:
    match formula:
        case Truth(value):
            return value
        case Atom(name):
            return row[name]
        case Not(inside):
            return not worth(inside, row)
        case Joined("implies", (left, right)):
            return worth(right, row) if worth(left, row) else True
        case Joined("iff", (left, right)):
            return worth(left, row) is worth(right, row)
        case Joined("xor", parts):
            return [worth(part, row) for part in parts].count(True) in (1, 3)
        case Joined(operator, parts):
            return (all if operator == "and" else any)([worth(part, row) for part in parts])
    raise AssertionError(formula)


@settings(max_examples=150, deadline=None)
@given(premises=st.lists(propositional, max_size=3), conclusion=propositional)
def test_propositional_entailment_agrees_with_truth_tables(premises: list[Formula], conclusion: Formula) -> None:
    rows = [row for row in assignments("pqrs") if all(worth(premise, row) for premise in premises)]
    assert (follows(premises, conclusion).together is False) == all(worth(conclusion, row) for row in rows)


def small_interpretations() -> Iterator[Interpretation]:
    """All interpretations of P, R and a over one and two elements."""
    for domain in (("1",), ("1", "2")):
        for ones in subsets([(e,) for e in domain]):
            for pairs in subsets(list(product(domain, repeat=2))):
                for a in domain:
                    yield Interpretation(domain, {}, {"P": frozenset(ones), "R": frozenset(pairs)}, {"a": {(): a}})


def subsets(items: list[tuple[str, ...]]) -> list[tuple[tuple[str, ...], ...]]:
    return list(chain.from_iterable(combinations(items, count) for count in range(len(items) + 1)))


SMALL = list(small_interpretations())


@settings(max_examples=60, deadline=None)
@given(formulas=st.lists(first_order, min_size=1, max_size=3))
def test_first_order_answers_agree_with_small_interpretations(formulas: list[Formula]) -> None:
    decision = true_together(formulas)
    found = any(all(is_true(formula, small) for formula in formulas) for small in SMALL)
    if found:
        assert decision.together is True and decision.model is not None
    if decision.model is not None:
        assert all(is_true(formula, decision.model) for formula in formulas)
        assert found or len(decision.model.domain) > 2


@pytest.mark.parametrize(
    ("premises", "conclusion", "truth"),
    [
        (["forall x. P(x) -> Q(x)", "P(a)"], "Q(a)", "True"),
        (["forall x. P(x) -> Q(x)", "not Q(a)"], "P(a)", "False"),
        (["forall x. P(x) -> Q(x)", "Q(a)"], "P(a)", "Uncertain"),
        (["exists y. forall x. R(x, y)"], "forall x. exists y. R(x, y)", "True"),
        (["forall x. exists y. R(x, y)"], "exists y. forall x. R(x, y)", "Uncertain"),
        (["forall x. f(f(x)) = x", "f(a) = b"], "f(b) = a", "True"),
        (["a = b", "P(a)"], "P(b)", "True"),
        ([], "exists x. P(x) -> forall y. P(y)", "True"),
        (["forall x. P(x)"], "exists x. P(x)", "True"),
        (["forall x. f(x) = f(f(x)) -> false"], "exists x. f(x) = x", "False"),
    ],
)
def test_entailment_in_three_values(premises: list[str], conclusion: str, truth: str) -> None:
    reference = {"task": "entailment", "premises": premises, "conclusion": conclusion}
    for said in ("True", "False", "Uncertain"):
        assert outcome(reference, said) is (CORRECT if said == truth else INCORRECT)
        labelled = verdict(reference | {"label": said}, truth)
        assert labelled.outcome is (CORRECT if said == truth else UNVERIFIABLE)


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ({**BARBARA, "conclusion": "Q("}, "missing"),
        ({**BARBARA, "conclusion": "P"}, "0"),
        ({**BARBARA}, "a formula is missing in 'conclusion'"),
        ({**BARBARA, "conclusion": "Q(a)", "label": "perhaps"}, "label 'perhaps'"),
        ({**BARBARA, "conclusion": "Q(a)", "answer": "True"}, "no 'answer'"),
        ({**BARBARA, "premises": ["P(a)", "not P(a)"], "conclusion": "Q(a)"}, "contradict each other"),
        ({**BARBARA, "premises": "P(a)", "conclusion": "Q(a)"}, "no list"),
        ({"task": "prove"}, "its task is none of"),
        ({"task": "equivalent", "formulas": ["p"]}, "two formulas"),
        ({"task": "formula", "formula": "p", "form": "xnf"}, "form"),
        ("[]", "its task is none of"),
        ("{", "no JSON"),
        (
            {
                "task": "satisfiable",
                "formulas": [
                    "forall x. not R(x, x)",
                    "forall x y z. R(x, y) and R(y, z) -> R(x, z)",
                    "forall x. exists y. R(x, y)",
                ],
            },
            "too hard",
        ),
    ],
)
def test_a_reference_that_cannot_be_judged_is_unverifiable(reference: dict[str, Any] | str, why: str) -> None:
    found = verdict(reference, "True")
    assert found.outcome is UNVERIFIABLE and why in found.reason


def test_a_hard_question_ends_within_the_pool_s_limits_without_a_restart() -> None:
    """Eleven pigeons in ten holes: easy to state, but hard for solvers that work like z3."""
    holes, pigeons = range(10), range(11)
    formulas = [" or ".join(f"p_{i}_{j}" for j in holes) for i in pigeons]
    formulas += [f"not (p_{i}_{j} and p_{k}_{j})" for j in holes for i in pigeons for k in range(i)]
    groups = [" and ".join(f"({f})" for f in formulas[i::80]) for i in range(80)]
    problem = Problem("p", "?", json.dumps({"task": "satisfiable", "formulas": groups}), "logic", "test")
    with VerifierPool(workers=1) as pool:
        assert pool.verify("logic", problem, "no").reason.startswith("too hard")
        assert pool.restarts == 0


def test_without_the_solver_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "z3", None)
    found = verdict({"task": "satisfiable", "formulas": ["no_solver_has_seen_this"]}, "yes")
    assert found.outcome is UNVERIFIABLE and "pip install 'distill-reasoning[verify]'" in found.reason
    assert outcome({"task": "model", "formulas": ["p or q"]}, "p = true, q = false") is CORRECT


# Answers in words.


@pytest.mark.parametrize(
    ("task", "formulas", "right", "wrong", "nothing"),
    [
        (
            "entailment",
            {"premises": ["P(a)"], "conclusion": "P(a)"},
            ["True", "true.", "yes", "**True**", r"\boxed{\text{True}}", "It is entailed.", "The answer is: True", "Therefore, the conclusion is True.", "#### True", "False at first.\nBut no.\n\nTrue", "Answer: Yes, because P(a) is given.", "entailment", "So P(a) is true", "I think it's true", "Therefore, $P(a)$ is True.", "<answer>True</answer>", "False. Wait, it is True.", "True (by modus ponens)", "Conclusion: True", "The conclusion must be true.", "The premises entail the conclusion.", "True. Wait, let me check. Yes."],
            ["False", "no", "Unknown", "Uncertain", "neutral", "contradiction", r"\boxed{True} no, \boxed{False}", "True. Wait, it is False.", "Not enough information", "It cannot be determined from the premises."],
            ["not entailed", "The conclusion is not entailed.", "True or False", "It is not the case that it is entailed", "It is not true", "perhaps", "P(a)", "True" * 200, "So P(b) is true", "not P(a) is true", "I do not think it's true", "True, False", "True; False; Uncertain", "True, or maybe Uncertain", "True: no; False: yes"],
        ),
        (
            "follows",
            {"premises": ["P(a)"], "conclusion": "P(b)"},
            ["no", "No.", "It does not follow.", "not entailed", "The conclusion does not follow from that: b may differ.", "invalid", "False"],
            ["yes", "valid", "It follows.", "True"],
            ["Uncertain", "hm"],
        ),
        (
            "satisfiable",
            {"formulas": ["p", "not p"]},
            ["unsatisfiable", "not satisfiable", "no", "The formulas are inconsistent.", "UNSAT"],
            ["satisfiable", "yes", "consistent"],
            ["not unsatisfiable"],
        ),
        (
            "equivalent",
            {"formulas": ["p -> q", "not q -> not p"]},
            ["yes", "equivalent", "The two formulas are logically equivalent."],
            ["no", "not equivalent", "They are not equivalent."],
            ["p"],
        ),
    ],
)  # fmt: skip
def test_answers_in_words_are_understood(
    task: str, formulas: dict[str, Any], right: list[str], wrong: list[str], nothing: list[str]
) -> None:
    reference = {"task": task, **formulas}
    assert {text: outcome(reference, text) for text in right} == dict.fromkeys(right, CORRECT)
    for text in wrong + nothing:
        found = verdict(reference, text)
        assert found.outcome is INCORRECT, text
        assert ("says none of" in found.reason) == (text in nothing), text


@pytest.mark.parametrize(
    ("answer", "form", "expected"),
    [
        ("not p or not q", None, CORRECT),
        (r"The answer is $\neg p \lor \neg q$.", None, CORRECT),
        ("So we get:\n\np -> not q", None, CORRECT),
        ("q implies not p", None, CORRECT),
        ("not p or not q or (r and not r)", None, CORRECT),
        ("not p and not q", None, INCORRECT),
        ("not p or not P(q)", None, INCORRECT),
        ("yes", None, INCORRECT),
        ("not p or not q", "cnf", CORRECT),
        ("not p or not q", "dnf", CORRECT),
        ("not (p and q)", "nnf", INCORRECT),
        ("p -> not q", "nnf", INCORRECT),
        ("(not p and q) or (not p and not q) or (p and not q)", "dnf", CORRECT),
        ("(not p and q) or (not p and not q) or (p and not q)", "cnf", INCORRECT),
    ],
)
def test_a_formula_is_judged_by_equivalence(answer: str, form: str | None, expected: Outcome) -> None:
    reference = {"task": "formula", "formula": "not (p and q)"} | ({"form": form} if form else {})
    assert outcome(reference, answer) is expected


def test_a_formula_that_contains_dots_is_read_whole() -> None:
    reference = {"task": "formula", "formula": "forall x. P(x) -> exists y. R(x, y)"}
    assert outcome(reference, "The answer is: forall z. P(z) -> exists y. R(z, y)") is CORRECT
    assert outcome(reference, "The answer is: forall z. exists y. R(z, y)") is INCORRECT


@settings(max_examples=100, deadline=None)
@given(formula=propositional)
def test_every_formula_is_equivalent_to_itself_and_not_to_its_negation(formula: Formula) -> None:
    reference = {"task": "formula", "formula": written(formula)}
    assert outcome(reference, written(formula)) is CORRECT
    assert outcome(reference, written(Not(formula))) is INCORRECT
    if not form_fault(formula, "cnf") or not form_fault(formula, "dnf"):
        assert not form_fault(formula, "nnf")


# Models.


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("p = true, q = false", CORRECT),
        ("p: T\nq: F", CORRECT),
        ("p is true and q is false.", CORRECT),
        ('{"p": true, "q": false}', CORRECT),
        ("```\np = 1\nq = 0\n```", CORRECT),
        (r"\boxed{p = \text{True}, q = \text{False}}", CORRECT),
        ("Here is a model:\np = true\nq = false", CORRECT),
        ("p = false, q = false", INCORRECT),
        ("p = true", INCORRECT),
        ("p = true, q = false, q = true", INCORRECT),
        ("p = true, q = 7", INCORRECT),
        ("unsatisfiable", INCORRECT),
        ("p", INCORRECT),
        ("", INCORRECT),
    ],
)
def test_propositional_models_are_checked(answer: str, expected: Outcome) -> None:
    assert outcome({"task": "model", "formulas": ["p xor q", "q -> p"]}, answer) is expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("domain = {1, 2}\nR = {(1, 2), (2, 1)}\na = 1", CORRECT),
        ('{"domain": [1, 2], "R": [[1, 2], [2, 1]], "a": 1}', CORRECT),
        ("domain: 1, 2; a: 2; R(1,1) = F; R(1,2) = T; R(2,1) = T; R(2,2) = F", CORRECT),
        ("domain = {a, b}, R = {(a, b), (b, a)}", CORRECT),
        ("domain = {1}, R = {(1, 1)}, a = 1", INCORRECT),
        ("domain = {1, 2}, R = {(1, 2)}, a = 1", INCORRECT),
        ("domain = {1, 2}, R = {(1, 3), (2, 1)}, a = 1", INCORRECT),
        ("domain = {1, 2}, R = {(1, 2), (2, 1)}", INCORRECT),
        ("domain = {1, 2}, R = {1, 2}, a = 1", INCORRECT),
        ("R = {(1, 2), (2, 1)}, a = 1", INCORRECT),
        ("domain = {}, R = {}", INCORRECT),
        ("domain = " + "{" * 50, INCORRECT),
        ("valid", INCORRECT),
    ],
)
def test_countermodels_are_checked(answer: str, expected: Outcome) -> None:
    reference = {"task": "countermodel", "premises": ["forall x. exists y. R(x, y)"], "conclusion": "R(a, a)"}
    assert outcome(reference, answer) is expected


def test_saying_that_there_is_no_model_is_correct_where_there_is_none() -> None:
    assert outcome({"task": "model", "formulas": ["p", "not p"]}, "There is no model.") is CORRECT
    assert outcome({"task": "countermodel", "premises": ["p"], "conclusion": "p"}, "It is valid.") is CORRECT
    assert outcome({"task": "model", "formulas": ["p", "not p"]}, "p = true") is INCORRECT


def test_an_interpretation_too_large_to_evaluate_is_unverifiable() -> None:
    domain = ", ".join(map(str, range(1, 400)))
    reference = {"task": "model", "formulas": ["forall x y z. R(x, y) -> R(y, z) -> R(x, z)"]}
    assert outcome(reference, f"domain = {{{domain}}}\nR = {{}}") is UNVERIFIABLE


@settings(max_examples=80, deadline=None)
@given(small=st.sampled_from(SMALL))
def test_interpretations_are_read_from_json_and_from_words(small: Interpretation) -> None:
    signature = Signature({"P": 1, "R": 2}, {"a": 0})
    assert read(json.dumps(small.plain()), signature) == small
    in_words = "\n".join(
        [f"domain = {{{', '.join(small.domain)}}}", f"a = {small.values['a'][()]}"]
        + [f"P({e}) = {(e,) in small.holds['P']}" for e in small.domain]
        + ["R = {" + ", ".join(f"({one}, {other})" for one, other in sorted(small.holds["R"])) + "}"]
    )
    assert read(in_words, signature) == small


# Proofs.

CHAIN = {"task": "proof", "premises": ["p -> q", "q -> r"], "conclusion": "p -> r"}
PROOF = """\
1. p -> q    [premise]
2. q -> r    [premise]
3. p         [assume]
4. q         [1, 3 modus ponens]
5. r         [2, 4]
6. p -> r    [discharge 3: 5]"""


@pytest.mark.parametrize(
    "proof",
    [
        PROOF,
        f"Here is the proof.\n```\n{PROOF}\n```",
        PROOF.replace("[discharge 3: 5]", "by discharging 3 from 5").replace(
            "[1, 3 modus ponens]", "(by MP from 1 and 3)"
        ),
        PROOF.replace(". ", ") "),
        PROOF.replace("[1, 3 modus ponens]", "(modus ponens 1, 3)").replace("[2, 4]", "(→E: 2, 4)"),
        "1. p -> q [premise]\n2. q -> r [premise]\n3. p -> r [1, 2]",
    ],
)
def test_a_proof_whose_every_line_holds_is_correct(proof: str) -> None:
    found = verdict(CHAIN, proof)
    assert found.outcome is CORRECT, found.reason


@pytest.mark.parametrize(
    ("old", "new", "line", "why"),
    [
        ("4. q  ", "4. r  ", 4, "does not follow from lines 1, 3"),
        ("[2, 4]", "[2, 3]", 5, "does not follow from lines 2, 3"),
        ("[2, 4]", "[2, 9]", 5, "cites line 9"),
        ("[2, 4]", "[2, 5]", 5, "cites line 5"),
        ("[2, 4]", "[]", 5, "does not follow from nothing"),
        ("[2, 4]", "[1, 2, 3, 4]", 5, "4 lines"),
        ("1. p -> q", "1. q -> p", 1, "none of the premises"),
        ("[discharge 3: 5]", "[5]", 6, "depends on the assumption in line 3"),
        ("[discharge 3: 5]", "[discharge 1: 5]", 6, "no assumption"),
        ("6. p -> r    [discharge 3: 5]", "6. s -> r [5]", 6, "not the conclusion"),
        ("6. p -> r    [discharge 3: 5]", "6. r [discharge 3: 5]", 6, "does not follow from lines 5"),
        ("5. r", "4. r", 4, "twice"),
        ("5. r", "5. P(r)", 5, "both a predicate and a thing"),
    ],
)
def test_the_first_wrong_line_is_named(old: str, new: str, line: int, why: str) -> None:
    found = verdict(CHAIN, PROOF.replace(old, new))
    assert (found.outcome, found.evidence["wrong_line"]) == (INCORRECT, line)
    assert why in found.reason


@pytest.mark.parametrize(
    "proof",
    [
        "",
        "q.e.d.",
        "1. p" + " " * 9_000 + "!",
        "1. " + "[" * 9_000,
        "1. " + "(by " * 4_000,
        "1. p -> r",
        "1. p -> [premise]",
        "1. p [premise]\n" * 70,
    ],
)
def test_a_text_that_is_no_proof_is_incorrect(proof: str) -> None:
    assert outcome(CHAIN, proof) is INCORRECT


def test_a_wrong_step_comes_with_a_countermodel() -> None:
    found = verdict(CHAIN, PROOF.replace("4. q  ", "4. r  "))
    counter = read(json.dumps(found.evidence["countermodel"]), Signature({"p": 0, "q": 0, "r": 0}))
    assert is_true(parse("(p -> q) and p"), counter) and not is_true(parse("r"), counter)


def test_first_order_proofs_and_proofs_by_contradiction() -> None:
    premises = ["forall x. Human(x) -> Mortal(x)", "not Mortal(zeus)"]
    reference = {"task": "proof", "premises": premises, "conclusion": "not Human(zeus)"}
    proof = (
        "1. ∀y (Human(y) → Mortal(y)) [premise]\n2. ¬Mortal(zeus) [premise]\n3. Human(zeus) [assumption]\n"
        "4. Human(zeus) → Mortal(zeus) [from 1]\n5. false [2, 3, 4]\n6. ¬Human(zeus) [discharge 3: 5]"
    )
    assert outcome(reference, proof) is CORRECT
    assert outcome(reference, proof.replace("[2, 3, 4]", "[2, 4]")) is INCORRECT
    assert alike(parse(premises[0]), parse("∀y (Human(y) → Mortal(y))"))


POOL = [parse(text) for text in ("p", "q", "p -> q", "q -> p", "p and q", "p or q", "not p", "false")]
steps = st.tuples(
    st.sampled_from(POOL),
    st.sampled_from(["premise", "assumption", "step", "step", "step"]),
    st.sets(st.integers(1, 5), max_size=2),
    st.none() | st.integers(1, 5),
)


@settings(max_examples=300, deadline=None)
@given(premises=st.lists(st.sampled_from(POOL), max_size=2), drawn=st.lists(steps, min_size=1, max_size=6))
def test_an_accepted_proof_never_proves_what_does_not_follow(premises: list[Formula], drawn: list[Any]) -> None:
    """Every beginning of a proof is also a proof of its own last line."""
    lines = [
        Line(number, formula, how, tuple(sorted(cited)), discharged) if how == "step" else Line(number, formula, how)
        for number, (formula, how, cited, discharged) in enumerate(drawn, 1)
    ]
    for length in range(1, len(lines) + 1):
        conclusion = lines[length - 1].formula
        if flaw(lines[:length], premises, conclusion) is None:
            rows = [row for row in assignments("pq") if all(worth(premise, row) for premise in premises)]
            assert all(worth(conclusion, row) for row in rows)


def test_a_reference_whose_conclusion_does_not_follow_is_unverifiable() -> None:
    found = verdict({**CHAIN, "conclusion": "r -> p"}, PROOF)
    assert found.outcome is UNVERIFIABLE and "does not follow" in found.reason


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=80) | st.text("pqr()[]{}=,.:→¬∀x123 \n", max_size=80))
def test_any_text_gets_a_verdict(text: str) -> None:
    for reference in (CHAIN, {"task": "model", "formulas": ["p and not q"]}, {**BARBARA, "conclusion": "Q(a)"}):
        assert outcome(reference, text) in (CORRECT, INCORRECT)
    assert outcome(text, "True") is UNVERIFIABLE
