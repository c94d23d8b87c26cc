"""The `math` verifier on real answers: each is right for its own row however it is written, and wrong for others.

Answers that are equal in different rows are found here without the verifier's parser.
"""

from __future__ import annotations

import re

import pytest
from answer_data import gsm8k, math500, rewrites

from distill.types import Outcome, Problem
from distill.verifiers import VerifierPool, build, judge

MATH = build("math")


def problem(reference: str) -> Problem:
    return Problem("p", "?", reference, "math", "test")


@pytest.mark.parametrize(("name", "rows"), [("gsm8k_test.jsonl", 1319), ("gsm8k_train.jsonl", 7473)])
def test_every_gsm8k_solution_is_right_for_its_own_row_and_no_other(name: str, rows: int) -> None:
    pairs = gsm8k(name)
    assert len(pairs) == rows
    assert [r for r, solution in pairs if judge(MATH, problem(r), solution).outcome is not Outcome.CORRECT] == []
    for (reference, _), (other, solution) in zip(pairs, pairs[1:] + pairs[:1], strict=True):
        equal = float(reference.replace(",", "")) == float(other.replace(",", ""))
        expected = Outcome.CORRECT if equal else Outcome.INCORRECT
        assert judge(MATH, problem(reference), solution).outcome is expected, (reference, other)


def test_every_math500_answer_is_right_however_it_is_written() -> None:
    answers = list(dict.fromkeys(math500()))
    items = [((a, name, text), "math", problem(a), text) for a in answers for name, text in rewrites(a)]
    assert len(answers) == 301 and len(items) > 8_000
    with VerifierPool(workers=1) as pool:
        verdicts = dict(pool.verify_many(items))
    wrong = [(*key, verdict.reason) for key, verdict in verdicts.items() if verdict.outcome is not Outcome.CORRECT]
    assert wrong == []


def bare(answer: str) -> str:
    """The answer without what has no meaning in these data: spaces, the name before an equals sign."""
    return re.sub(r"^[a-z]=|\s|\\left|\\right", "", answer.replace("dfrac", "frac"))


@pytest.mark.parametrize("shift", [1, 2, 7])
def test_no_math500_answer_is_right_for_another_row(shift: int) -> None:
    answers = math500()
    shifted = answers[shift:] + answers[:shift]
    items = [(i, "math", problem(a), rf"\boxed{{{b}}}") for i, (a, b) in enumerate(zip(answers, shifted, strict=True))]
    with VerifierPool(workers=1) as pool:
        right = {i for i, verdict in pool.verify_many(items) if verdict.outcome is Outcome.CORRECT}
    assert right == {i for i, (a, b) in enumerate(zip(answers, shifted, strict=True)) if bare(a) == bare(b)}
