"""The truth_table and expression verifiers accept a right answer in any form, and hostile text does them no harm."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.types import Outcome, Problem
from distill.verifiers import judge
from distill.verifiers.base import Verifier
from distill.verifiers.expression import ExpressionVerifier
from distill.verifiers.truth_table import TruthTable, truth_column

CORRECT, INCORRECT, UNVERIFIABLE = Outcome.CORRECT, Outcome.INCORRECT, Outcome.UNVERIFIABLE
HOSTILE = (
    "",
    "\x00",
    "0101\x000001",
    "1" * 10**6,
    "(" * 10**5 + "x" + ")" * 10**5,
    "(" * 99 + "x" + ")" * 99,
    "-" * 199 + "x",
    "9**9**9**9",
    "__import__('os').system('true')",
    "x.__class__",
    "lambda: 0",
    "\ud800",
    "🎉" * 100,
    "0101 0101" * 1000,
)


def problem(verifier: str, reference: str) -> Problem:
    return Problem(id="t/1", prompt="?", reference=reference, verifier=verifier, source="t")


@pytest.mark.parametrize(
    ("formula", "column"),
    [
        ("a and b", "0001"),
        ("a or not b", "1011"),
        ("a xor b", "0110"),
        ("a implies b", "1101"),
        ("not (a or b)", "1000"),
        ("a or b and not b", "0010"),
        ("((a and b) or not c) xor a", "10100100"),
    ],
)
def test_truth_columns(formula: str, column: str):
    assert truth_column(formula) == column


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("10100100", CORRECT),
        (" 1010 0100\n", CORRECT),
        ("10100101", INCORRECT),
        ("1010010", INCORRECT),
        ("ten", INCORRECT),
        ("", INCORRECT),
    ],
)
def test_truth_table_verdicts(answer: str, outcome: Outcome):
    assert judge(TruthTable(), problem("truth_table", "((a and b) or not c) xor a"), answer).outcome is outcome


@pytest.mark.parametrize(
    "reference",
    ["", "a and", "a b", "(a or b", "a or b)", "and a", "a & b", "(" * 900 + "a" + ")" * 900, "not"],
)
def test_a_broken_formula_is_unverifiable(reference: str):
    assert judge(TruthTable(), problem("truth_table", reference), "01").outcome is UNVERIFIABLE


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("5*x + 2", CORRECT),
        ("2+x*5", CORRECT),
        ("f(x) = 5*x + 2", CORRECT),
        ("y = 4*x - (-2) + x", CORRECT),
        ("5*x + 3", INCORRECT),
        ("5*x + 2 + x*(x-3)*(x-8)", INCORRECT),
        ("x**2", INCORRECT),
        ("5*x/1 + 2", INCORRECT),
        ("5*z + 2", INCORRECT),
        ("True*x", INCORRECT),
        ("5x + 2", INCORRECT),
    ],
)
def test_expression_verdicts(answer: str, outcome: Outcome):
    assert judge(ExpressionVerifier(), problem("expression", "5*x + 2"), answer).outcome is outcome


def test_a_wrong_answer_cannot_be_built_to_agree_at_every_tested_point():
    """A polynomial that vanishes at many points contains as many x, and is therefore tested at more points."""
    planted = "5*x + 2 + " + "*".join(f"(x-{point})" for point in range(20)).replace("(x-0)", "x")
    verdict = judge(ExpressionVerifier(), problem("expression", "5*x + 2"), planted)
    assert verdict.outcome is INCORRECT


@pytest.mark.parametrize("reference", ["", "x**2", "5*y", "import os", "x" * 300])
def test_a_broken_reference_is_unverifiable(reference: str):
    assert judge(ExpressionVerifier(), problem("expression", reference), "5*x + 2").outcome is UNVERIFIABLE


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize(
    ("verifier", "reference"), [(TruthTable(), "a xor (b and c)"), (ExpressionVerifier(), "5*x + 2")]
)
def test_hostile_text_is_incorrect_with_a_reason(verifier: Verifier, reference: str, hostile: str):
    verdict = judge(verifier, problem(verifier.name, reference), hostile)
    assert verdict.outcome is INCORRECT and verdict.reason and "\n" not in verdict.reason


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60) | st.text("x0123456789+-*() ", max_size=60))
def test_any_text_gets_a_verdict(text: str):
    for verifier, reference in ((TruthTable(), "a or (b and c)"), (ExpressionVerifier(), "5*x + 2")):
        assert judge(verifier, problem(verifier.name, reference), text).outcome in (CORRECT, INCORRECT)
        assert judge(verifier, problem(verifier.name, text), "1").outcome in Outcome
