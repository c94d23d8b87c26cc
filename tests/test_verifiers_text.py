"""The verifiers that compare texts: `regex`, `exact` and `choice`."""

from __future__ import annotations

import pytest

from distill.types import Outcome, Problem
from distill.verifiers import VerifierPool, build, judge
from distill.verifiers.worker import Limits
from pipeline.errors import InputError

CORRECT, INCORRECT, UNVERIFIABLE = Outcome.CORRECT, Outcome.INCORRECT, Outcome.UNVERIFIABLE


def outcome(spec: object, reference: str, answer: str) -> Outcome:
    return judge(build(spec), Problem("p", "?", reference, "exact", "test"), answer).outcome  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "reference", "answer", "expected"),
    [
        ({}, r"\d+ fox(es)?", r"\boxed{12 foxes}", CORRECT),
        ({}, r"\d+ fox(es)?", r"\boxed{12 foxes.}", INCORRECT),
        ({"search": True}, "fox", r"\boxed{12 foxes}", CORRECT),
        ({"search": True}, "^fox", r"\boxed{12 foxes}", INCORRECT),
        ({}, "fox", "The answer is fox", CORRECT),
        ({"whole": True}, "fox", "The answer is fox", INCORRECT),
        ({"whole": True, "search": True}, "answer.*fox", "The answer\nis fox", CORRECT),
        ({"ignore_case": True}, "FOX", "fox", CORRECT),
        ({"pattern": "[ab]"}, "whatever ((", "b", CORRECT),
        ({"pattern": "[ab]"}, "whatever ((", "c", INCORRECT),
        ({}, "((", "((", UNVERIFIABLE),
        ({}, "", "", UNVERIFIABLE),
        ({}, "a{1,99999999999}", "a", UNVERIFIABLE),
        ({}, ".*", "", CORRECT),
    ],
)
def test_regex_matches_the_answer(settings: dict[str, object], reference: str, answer: str, expected: Outcome) -> None:
    assert outcome({"regex": settings}, reference, answer) is expected


@pytest.mark.parametrize("pattern", ["((", "", "a{1,99999999999}", 5, "(?P<a>x)(?P<a>y)"])
def test_a_bad_pattern_is_reported_when_the_verifier_is_built(pattern: object) -> None:
    with pytest.raises(InputError, match=r"pattern .* is "):
        build({"regex": {"pattern": pattern}})


def test_an_expression_that_backtracks_without_end_costs_one_verdict() -> None:
    hostile, kind = Problem("p", "?", "(a+)+b", "regex", "t"), Problem("q", "?", "a+", "regex", "t")
    items = [(0, "regex", hostile, "a" * 60), (1, "regex", kind, "aaa"), (2, "regex", hostile, "ab")]
    with VerifierPool(workers=1, limits=Limits(cpu_seconds=0.5)) as pool:
        verdicts = dict(pool.verify_many(items))
        restarts = pool.restarts
    assert [verdicts[key].outcome for key in range(3)] == [UNVERIFIABLE, CORRECT, CORRECT]
    assert "CPU time" in verdicts[0].reason and restarts == 1


@pytest.mark.parametrize(
    ("settings", "reference", "answer", "expected", "rule"),
    [
        ({}, "red fox", "The answer is red  fox.", CORRECT, "answer:"),
        ({}, "Red fox", "The answer is red fox.", INCORRECT, "answer:"),
        ({"ignore_case": True}, "Red fox", "The answer is red fox.", CORRECT, "answer:"),
        ({"whole": True}, "red fox", "The answer is red fox.", INCORRECT, "whole"),
        ({}, "x = 5.", "x = 5.", CORRECT, "whole"),
        ({}, "Paris", "**Paris**", CORRECT, "text"),
        ({}, " ", "x", UNVERIFIABLE, None),
    ],
)
def test_exact_compares_the_answer_with_the_reference(
    settings: dict[str, object], reference: str, answer: str, expected: Outcome, rule: str | None
) -> None:
    verdict = judge(build({"exact": settings}), Problem("p", "?", reference, "exact", "test"), answer)
    assert (verdict.outcome, verdict.evidence.get("rule")) == (expected, rule)


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("B", "B", CORRECT),
        ("(B)", r"\boxed{\text{(B)}}", CORRECT),
        ("B", "The answer is B) 12", CORRECT),
        ("B", "The correct answer is **B**.", CORRECT),
        ("b", "Option B", CORRECT),
        ("B", "A, B", INCORRECT),
        ("B", "AB", INCORRECT),
        ("B", "I do not know", INCORRECT),
        ("B", "", INCORRECT),
        ("A, C", "C and A", CORRECT),
        ("AC", r"\boxed{A, C}", CORRECT),
        ("A and C", r"The answer is (A) and (C).", CORRECT),
        ("A, B, D", "A, B, and D", CORRECT),
        ("A, C", "A", INCORRECT),
        ("A, C", "A, B, C", INCORRECT),
        ("12", "B", UNVERIFIABLE),
        ("", "B", UNVERIFIABLE),
        ("B", "The correct option is B.", CORRECT),
        ("B", "I think (B).", CORRECT),
        ("B", "So B is the correct answer", CORRECT),
        ("A", "The best choice is A because I like it.", CORRECT),
        ("D", "A, B and C fail. The correct option is D.", CORRECT),
        ("B", "The correct choice is not B.", INCORRECT),
        ("B", "It is not (B).", INCORRECT),
        ("C", "Option (A) or (C)", INCORRECT),
        ("C", "C is correct, B is not", INCORRECT),
        ("A", "P(A) is small", INCORRECT),
        ("I", "I think so", INCORRECT),
        ("B", "I choose B", CORRECT),
        ("B", "The right choice is (B).", CORRECT),
        ("B", "Therefore, B.", CORRECT),
        ("B", "The answer is B, not A.", CORRECT),
        ("B", "The answer is not A but B.", CORRECT),
        ("B", "A fails.\nSo I would go with B, not A or C.", CORRECT),
        ("B", "<think>A?</think><answer>B</answer>", CORRECT),
        ("B", "It's B.", CORRECT),
        ("A", "The answer is B, not A.", INCORRECT),
        ("B", "I would not choose B.", INCORRECT),
        ("B", "Therefore, not B.", INCORRECT),
        ("B", "Therefore, B and C are wrong.", INCORRECT),
        ("B", r"\boxed{B} is wrong", UNVERIFIABLE),
        ("B", r"\boxed{C}. Wait, that is wrong. The answer is B.", CORRECT),
        ("B", "The answer is B. Wait, it is C.", INCORRECT),
        ("C", "The answer is B. No, C.", CORRECT),
        ("B", "The answer is B. No, A is wrong.", CORRECT),
        ("B", r"\boxed{(B) 12 or (C) 13}", INCORRECT),
        ("B", "(B) 2 (A) 1 (C) 3 (D) 4", INCORRECT),
        ("B", r"\boxed{(B)(C)}", INCORRECT),
        ("B", "The answer is (B) Vitamin C.", CORRECT),
        ("B", "The best answer is B, since C is wrong.", CORRECT),
        ("B", r"\boxed{B \text{ (the cat)}}", CORRECT),
        ("B", "The answer is B - the cat", CORRECT),
        ("B", r"\boxed{B - C}", INCORRECT),
        ("B", r"\boxed{B = 12}", CORRECT),
        ("B", r"\boxed{b = 12}", INCORRECT),
        ("F", r"\boxed{F(x) = 2x}", INCORRECT),
        ("A", "The answer is a (small) dog", INCORRECT),
        ("B", "答案：B", CORRECT),
        ("B", "故选B。", CORRECT),
        ("B", "La respuesta es B", CORRECT),
        ("B", "正确答案是 C", INCORRECT),
    ],
)
def test_choice_reads_the_chosen_letters(reference: str, answer: str, expected: Outcome) -> None:
    assert outcome("choice", reference, answer) is expected
    if reference.isupper() and len(reference) == 1:
        assert outcome("math", reference, answer) is expected


def test_a_letter_before_very_many_spaces_is_read_at_once() -> None:
    """It took time cubic in their number, in the process of the training: an hour for these."""
    assert outcome("choice", "A", f"I choose (A){' ' * 4_900}as I said") is CORRECT
