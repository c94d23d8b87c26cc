"""Answers made to hang, crash or fool the `math` verifier get a verdict, and never a reward."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.types import Outcome, Problem
from distill.verifiers import VerifierPool, build, judge
from distill.verifiers.run import judge_quickly
from distill.verifiers.worker import Limits

MATH = build("math")
REFERENCES = (
    "42",
    r"\frac{1}{2}",
    r"\sqrt{2} + x",
    r"\{1, 2\}",
    r"(0, 1) \cup (2, 3)",
    "x^2 + y^2 = 1",
    r"\text{east}",
)
PATHOLOGICAL = {
    "tower of nines": "9^{9^{9^{9^{9}}}}",
    "tower of ones and noughts": "^".join("{10" for _ in range(30)) + "}" * 30,
    "wide tower": "2^{" * 39 + "2" + "}" * 39,
    "negative tower": "2^{-2^{" * 15 + "1" + "}}" * 15,
    "exponent of a million digits": "10^{" + "9" * 400 + "}",
    "python tower": "9**9**9**9",
    "scientific": "1e999999999",
    "factorials": "((((9!)!)!)!)!",
    "a factorial of many digits": "99999999999999!",
    "binomials": r"\binom{10^9}{5*10^8}",
    "roots 1000 deep": r"\sqrt{" * 1000 + "2" + "}" * 1000,
    "roots 30 deep": r"\sqrt{" * 30 + "2" + "}" * 30,
    "roots of many variables": "+".join(rf"\sqrt{{x_{i}}}" for i in range(60)),
    "fractions 1000 deep": r"\frac{1}{" * 1000 + "2" + "}" * 1000,
    "a product of many sums": "".join(f"(x_{i}+y_{i}+1)" for i in range(60)),
    "a sum to a high power": "(a+b+c+d+f+g+h)^{40}",
    "powers of powers": "((((a+b)^9)^9)^9)^9",
    "sines in sines": r"\sin(" * 39 + "x" + ")" * 39,
    "logs of logs": r"\ln " * 39 + "x",
    "giant set": r"\{" + ",".join(str(i) for i in range(20_000)) + r"\}",
    "set of fifty equal members": r"\{" + ",".join("x+x-x" for _ in range(50)) + r"\}",
    "set of near misses": r"\{" + ",".join(f"x^{{{i}}}" for i in range(90)) + r"\}",
    "signs": r"\pm 1" * 40,
    "signs in sets": r"\{" + r",".join(r"1 \pm 2 \pm 3" for _ in range(20)) + r"\}",
    "giant matrix": r"\begin{pmatrix}" + r"\\".join("&".join("1" * 30) for _ in range(30)) + r"\end{pmatrix}",
    "unbalanced": r"\frac{1}{2",
    "unbalanced the other way": r"1}}}}{{{{2",
    "brackets that cross": "([)]" * 200,
    "100k digits": "1" * 100_000,
    "100k letters": "x" * 100_000,
    "100k spaces": "4" + " " * 100_000 + "3",
    "100k backslashes": "\\" * 100_000,
    "2k dollars": "$" * 1_999,
    "null bytes": "4\x002\x00" * 100,
    "bars": "|" * 200 + "x" + "|" * 200,
    "minus signs": "-" * 1_000 + "1",
    "arrows": r"\Rightarrow " * 150,
    "approximations": r"\approx 1" * 150,
    "equals signs": "=" * 1_000,
    "chains": "<".join("abcdefg" * 60),
    "subscripts": "x" + "_{x" * 200 + "}" * 200,
    "surrogate": "\ud800" * 50,
    "right to left": "\u202e24",
    "division by zero": r"\frac{42}{1-1}",
    "nothing over nothing": r"\frac{42\sin 0}{\sin 0}",
    "infinity less infinity": r"\infty - \infty + 42",
    "a hidden zero": r"42\cdot\frac{\sqrt{1062961}-1031}{\sqrt{1062961}-1031}",
    "another hidden zero": r"42\cdot\frac{\sin\pi}{\sin\pi}",
    "almost": "42.00000000000000000001",
    "almost, irrational": r"42 + \frac{\pi}{10^{11}}",
    "a sum that vanishes": r"42 + 10^{-30}",
    "everything": r"\{41, 42, 43\}",
    "this or that": r"42 \text{ or } 43",
    "an instruction": r"\text{The answer equals the reference, whatever that is}",
    "an unsolved equation": "x = x",
    "the reference's own name": "reference",
    "code": "__import__('os').system('true')",
}


def problem(reference: str) -> Problem:
    return Problem("p", "?", reference, "math", "test")


@pytest.fixture(scope="module")
def pool() -> VerifierPool:
    with VerifierPool(workers=1, limits=Limits(cpu_seconds=3)) as pool:
        yield pool


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_pathological_answer_gets_a_verdict_in_time_and_never_a_reward(reference: str, pool: VerifierPool) -> None:
    items = [(what, "math", problem(reference), rf"\boxed{{{text}}}") for what, text in PATHOLOGICAL.items()]
    items += [(f"bare {what}", "math", problem(reference), text) for what, text in PATHOLOGICAL.items()]
    verdicts = dict(pool.verify_many(items))
    assert verdicts.keys() == {key for key, *_ in items}
    assert [what for what, verdict in verdicts.items() if verdict.outcome is Outcome.CORRECT] == []


@pytest.mark.parametrize("what", PATHOLOGICAL)
def test_a_pathological_reference_rewards_no_other_answer(what: str, pool: VerifierPool) -> None:
    for answer in ("42", r"\boxed{x}", ""):
        verdict = pool.verify("math", problem(PATHOLOGICAL[what]), answer)
        assert verdict.outcome is not Outcome.CORRECT, (what, answer, verdict)


def test_the_quick_part_judges_long_repetitions_within_a_limit_of_cpu_time() -> None:
    """It runs in the calling thread, where nothing could interrupt it, so here a worker runs it. The worst case found
    takes a twentieth of the limit."""
    answers = [r"\boxed{1}" + "wait, no " * 3_000]
    for piece in (r"\(", r" \(\(", r"\)\[", r"_\(", r"\boxed{1} or ", "is ", "answer to "):
        answers.append(piece * (30_000 // len(piece)))
    with VerifierPool(workers=1, limits=Limits(cpu_seconds=1)) as pool:
        items = ((text[:20], "hostile_verifiers:QuickMath", problem("42"), text) for text in answers)
        reasons = {start: verdict.reason for start, verdict in pool.verify_many(items)}
    assert reasons == dict.fromkeys((text[:20] for text in answers), "the quick part ended")


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet=r"\{}()[]$^_!|=<>,.;:+-*/ 0123456789abxeifnp", max_size=60),
    st.sampled_from(REFERENCES),
)
def test_the_quick_part_survives_any_text(text: str, reference: str) -> None:
    for answer in (text, rf"\boxed{{{text}}}"):
        verdict = judge_quickly(MATH, problem(reference), answer)
        assert verdict is None or not verdict.reason.startswith("the verifier failed"), verdict
        verdict = judge_quickly(MATH, problem(text), rf"\boxed{{{reference}}}")
        assert verdict is None or not verdict.reason.startswith("the verifier failed"), verdict


@pytest.mark.parametrize("reference", ["", " ", "{", "}{", r"\frac{1}{", r"\{1, 2", "\x00", "...", "$$", r"\boxed{}"])
def test_an_unparsable_reference_never_scores(reference: str) -> None:
    for answer in (reference, rf"\boxed{{{reference}}}", "", "42", r"\boxed{\{1, 2}"):
        assert judge(MATH, problem(reference), answer).outcome is Outcome.UNVERIFIABLE


def test_the_quick_part_compares_equations_of_more_variables_without_solving_for_all() -> None:
    """It runs in the caller's process, so it must limit itself: twice the variables make each value twice the work,
    but not twice as many values. The work is counted in calls of functions."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    def work(letter: str, variables: int) -> int:
        nonlocal calls
        sines = "+".join(rf"\sin {letter}_{{{n}}}" for n in range(variables))
        calls = 0
        sys.setprofile(count)
        try:
            verdict = judge_quickly(MATH, problem(f"{sines}=1"), rf"\boxed{{{sines}=1+10^{{-3}}}}")
        finally:
            sys.setprofile(None)
        assert verdict is None or verdict.outcome is not Outcome.CORRECT
        return calls

    assert 0 < work("b", 16) < 3 * work("a", 8)
