"""The `math` verifier: answers that others get wrong, formats and laws. Real data: test_math_agreement."""

from __future__ import annotations

from fractions import Fraction
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from distill.types import Outcome, Problem
from distill.verifiers import build, judge
from distill.verifiers.equality import Sameness
from distill.verifiers.extract import final_answer
from distill.verifiers.latex import readings
from distill.verifiers.meaning import same
from distill.verifiers.number import canonical, read_number

MATH = build("math")
CORRECT, INCORRECT, UNVERIFIABLE = Outcome.CORRECT, Outcome.INCORRECT, Outcome.UNVERIFIABLE


def problem(reference: str) -> Problem:
    return Problem("p", "?", reference, "math", "test")


def outcome(reference: str, answer: str) -> Outcome:
    return judge(MATH, problem(reference), answer).outcome


KNOWN_WRONG_ELSEWHERE = [
    (r"1 - 1/\mathrm{e}", r"\boxed{1 + 1/\mathrm{e}}", INCORRECT),
    ("3*x-1*y+13=0", r"\boxed{3x + 4y + 14=0}", INCORRECT),
    ("4", r"\boxed{4\sqrt(2)}", INCORRECT),
    ("5", r"maybe \boxed{4} no, \boxed{5}", CORRECT),
    ("6", r"\boxed{5}. Wait ... \boxed{6}", CORRECT),
    ("A", r"\boxed{A}", CORRECT),
    ("10", r"\boxed{10\%}", CORRECT),
    ("0.1", r"\boxed{10\%}", UNVERIFIABLE),
    ("½", r"\boxed{\frac12}", CORRECT),
    ("5", "1 " * 50_000 + "so $5$", CORRECT),
    ("5", "(" * 500 + "5" + ")" * 500, CORRECT),
    ("5", r"\boxed{" + "(" * 500 + "5" + ")" * 500 + "}", UNVERIFIABLE),
]


TAKEN_BACK = [
    ("42", r"\boxed{42} is wrong", UNVERIFIABLE),
    ("42", r"$\boxed{42}$ cannot be right.", UNVERIFIABLE),
    ("42", r"It is not \boxed{42}", UNVERIFIABLE),
    ("42", r"The answer is not $\boxed{42}$.", UNVERIFIABLE),
    ("42", r"\boxed{42}. Hmm, that's not right.", UNVERIFIABLE),
    ("42", r"\boxed{41} is wrong", INCORRECT),
    ("42", "\\boxed{42}\n\nWait, that is wrong. The answer is 43.", INCORRECT),
    ("43", "\\boxed{42}\n\nWait, that is wrong. The answer is 43.", CORRECT),
    ("42", r"\boxed{42}. Actually, no: the final answer is 43", INCORRECT),
    ("43", r"\boxed{42}. Actually, no: it should be 43", CORRECT),
    ("43", r"\boxed{42}. No, that is wrong. \boxed{43}", CORRECT),
    ("42", r"\boxed{42}. This is wrong for negative x, but x>0 is given.", CORRECT),
    ("42", r"\boxed{42}. Some say 41. That is wrong.", CORRECT),
    ("42", r"\boxed{42}. Wait, let me check: 6 times 7 is 42. Yes.", CORRECT),
    ("42", r"\boxed{42}. No other value is possible. It is not wrong.", CORRECT),
    ("42", r"It is not 41, it is \boxed{42}, not 43. That's it!", CORRECT),
    ("42", r"\boxed{42}. Otherwise x would be negative. That is impossible.", CORRECT),
    ("42", r"\boxed{42} is impossible", UNVERIFIABLE),
    ("42", r"This is not hard: \boxed{42}", CORRECT),
    ("42", r"It is at most \boxed{42}.", CORRECT),
    ("42", "<answer>42</answer>", CORRECT),
    ("42", "<answer>41\n42</answer>", UNVERIFIABLE),
    ("42", "<answer>\nSo it is 42\n</answer>", CORRECT),
    (r"\frac{270}7", r"<answer>\frac{270}7\text{ degrees}</answer>", CORRECT),
    (r"\begin{pmatrix}-1\\2\end{pmatrix}", "<answer>\\begin{pmatrix}\n-1 \\\\\n2\n\\end{pmatrix}</answer>", CORRECT),
    (r"\begin{pmatrix}-1\\2\end{pmatrix}", "So we get:\n" + r"\begin{pmatrix}-1\\2\end{pmatrix}", CORRECT),
    (r"\frac{1}{2}", r"So <answer>\frac12</answer>", CORRECT),
]
RULES = [
    *((number, arithmetic, INCORRECT) for number, arithmetic in (
        ("42", "12+30"), ("7/12", r"\frac13+\frac14"), (r"\frac{7}{12}", r"\boxed{1/3+1/4}"), ("0.75", "1-1/4"),
        ("0.75", r"1-\frac14"), ("50", r"5 \times 10"), ("7/12", r"\frac{4+3}{12}"), ("96", r"2^5 \cdot 3"),
        ("2", r"\frac{\frac{8}{2}}{2}"), ("3", r"\boxed{2^{3-2}+1}"),
    )),
    *((number, value, CORRECT) for number, value in (
        ("0.75", r"\frac34"), ("5", "10/2"), ("32", "2^5"), ("4", r"\sqrt{16}"), ("24", "4!"), ("-1/2", r"-\frac{1}{2}"),
        ("1500", r"1.5 \times 10^3"), (r"6\pi", r"2\cdot 3\pi"), (r"2\sqrt{2}", r"\sqrt{8}"), ("1.5", r"1\frac12"),
        ("25", r"25\%"), (r"25\%", "25"), ("5th", "5th"), ("N/A", "n/a"), ("N/A", "not applicable"),
        ("5 MB", "5 megabytes"),
    )),
    *((one, other, UNVERIFIABLE) for one, other in (
        ("0.25", r"25\%"), (r"25\%", "0.25"), (r"25\%", "1/4"), ("5", "5th"), ("5 MB", "5 Mb"), ("5 Mb", "5 MB"),
    )),
    ("25", "0.25", INCORRECT),
    ("N/A", "5", INCORRECT),
    *((words, value, UNVERIFIABLE) for words, value in (
        ("row 7", r"\boxed{8}"), ("wrongref 7", "7"), ("June 20", r"\boxed{\frac12}"),
        ("3 hours and 20 minutes", "200 minutes"), ("proof", "7"), ("Not found.", r"\boxed{not found}"),
    )),
    *((words, other, INCORRECT) for words, other in (
        ("June 20", "Friday"), ("June 20", r"\boxed{21 June}"), (r"\text{Monday}", "7"), ("yes", r"\boxed{8}"),
        ("5 apples", "7"), ("Tuesday", "Monday"),
    )),
    ("June 20", r"\boxed{\text{June 20}}", CORRECT),
]  # fmt: skip
"""Undone arithmetic, percents, positions, references in words, as the docstring of `distill.verifiers.math` has them."""


@pytest.mark.parametrize(("reference", "answer", "expected"), KNOWN_WRONG_ELSEWHERE + TAKEN_BACK + RULES)
def test_answers_that_other_verifiers_get_wrong_are_judged_right(
    reference: str, answer: str, expected: Outcome
) -> None:
    assert outcome(reference, answer) is expected


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("1,080", "#### 1080", CORRECT),
        (r"10,\!080", "The answer is 10080.", CORRECT),
        ("18", "Answer: $18", CORRECT),
        ("42", "She has 42 apples left.", CORRECT),
        ("42", "12 + 30 = 42", CORRECT),
        ("42", "The answer is 42 because 6 times 7 is that.", CORRECT),
        ("10", "He pays $5 and then gets $10 more", CORRECT),
        ("1/2", r"It follows that it is $\frac12$ of the cake", CORRECT),
        ("42", "12 + 30", INCORRECT),
        ("0.5", r"\boxed{\dfrac{1}{2}}", CORRECT),
        (r"1\frac{4}{5}", r"\boxed{9/5}", CORRECT),
        (r"90^\circ", r"\boxed{90}", CORRECT),
        (r"\$18.90", r"\boxed{18.9 \text{ dollars}}", CORRECT),
        ("5 km", r"\boxed{5\text{ m}}", INCORRECT),
        ("1/3", r"\boxed{0.33}", UNVERIFIABLE),
        ("1/3", r"\boxed{0.34}", INCORRECT),
        (r"\text{Evelyn}", r"\boxed{evelyn}", CORRECT),
        (r"\text{Evelyn}", r"\boxed{Carla}", INCORRECT),
        (r"\text{(C)}", r"\boxed{C}", CORRECT),
        (r"\text{(C)}", r"\boxed{(D)}", INCORRECT),
        ("4210_{5}", r"\boxed{4210_5}", CORRECT),
        ("52_8", r"\boxed{52}", UNVERIFIABLE),
        ("7", "", INCORRECT),
        ("7", "I do not know", INCORRECT),
        ("", r"\boxed{7}", UNVERIFIABLE),
        (r"\frac{1", r"\boxed{\frac{1}", UNVERIFIABLE),
        ("1", r"\boxed{9^{9^{9^9}}}", UNVERIFIABLE),
        ("1", r"\boxed{((10!)!)!}", UNVERIFIABLE),
        ("3", r"\boxed{\{3, 4\}}", INCORRECT),
        (r"(3,4]", r"\boxed{[3,4]}", INCORRECT),
        ("1,-2", r"\boxed{1, 2}", INCORRECT),
    ],
)
def test_common_formats_of_answers_are_read(reference: str, answer: str, expected: Outcome) -> None:
    assert outcome(reference, answer) is expected


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt3}"),
        ("(a+5)(b+2)", "(b+2)(a+5)"),
        ("1,-2", "-2, 1"),
        (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"),
        ("y = 2x + 3", "2x+3"),
        ("x=5", r"\sqrt{25}"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3, 0.5\pi)"),
        (r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}", r"\begin{bmatrix} -\frac13 \\ \frac23 \end{bmatrix}"),
        (r"(0,9) \cup (9,36)", r"(9,36) \cup (0,9)"),
    ],
)
def test_equal_formulas_are_correct_by_algebra_and_by_points(reference: str, answer: str) -> None:
    pytest.importorskip("math_verify")
    verdict = judge(MATH, problem(reference), rf"\boxed{{{answer}}}")
    assert verdict.outcome is CORRECT, verdict


def test_without_algebra_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "math_verify", None)
    verdict = judge(MATH, problem(r"\sin 2x"), r"\boxed{2\sin x\cos x}")
    assert verdict.outcome is UNVERIFIABLE and "distill-reasoning[verify]" in verdict.reason
    assert outcome(r"\sqrt{12}", r"\boxed{2\sqrt{3}}") is CORRECT
    assert outcome(r"\sqrt{12}", r"\boxed{3\sqrt{3}}") is INCORRECT


def test_the_evidence_names_the_rule_and_the_method() -> None:
    verdict = judge(MATH, problem("6"), r"\boxed{5} no \boxed{6.0}")
    assert verdict.evidence["rule"] == "boxed" and verdict.evidence["method"] == "number"
    assert (verdict.verifier, verdict.version) == ("math", MATH.version) and verdict.seconds >= 0


NUMBERS = st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=1000)


def written(value: Fraction) -> list[str]:
    """The same number in several spellings."""
    top, bottom = value.numerator, value.denominator
    forms = [f"{top}/{bottom}", rf"\frac{{{top}}}{{{bottom}}}", rf"$\dfrac{{{top}}}{{{bottom}}}$"]
    if bottom == 1:
        forms += [str(top), f"{top:,}", f"{top}.0", f"{top} apples", rf"{top}\%", f"{top:,}".replace(",", r",\!")]
    return forms


@given(NUMBERS)
def test_every_spelling_of_a_number_is_read_as_that_number(value: Fraction) -> None:
    for form in written(value):
        number = read_number(canonical(form))
        assert number is not None and number.value == value, form
        assert outcome(str(value), rf"\boxed{{{form}}}") is CORRECT, form


FORMULAS = st.recursive(
    st.integers(1, 9).map(str) | st.sampled_from(["x", "y", r"\pi", r"\sqrt{2}", r"\sqrt{3}", "i"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda p: f"({p[0]} + {p[1]})"),
        st.tuples(inner, inner).map(lambda p: f"({p[0]} - {p[1]})"),
        st.tuples(inner, inner).map(lambda p: rf"({p[0]}) \cdot ({p[1]})"),
        st.tuples(inner, inner).map(lambda p: rf"\frac{{{p[0]}}}{{{p[1]}}}"),
        inner.map(lambda p: f"({p})^{{2}}"),
    ),
    max_leaves=6,
)


def compared(one: str, other: str) -> Sameness:
    (left,), (right,) = readings(canonical(one)), readings(canonical(other))
    return same(left, right)


@settings(deadline=None)
@given(FORMULAS)
def test_spaces_and_brackets_do_not_change_a_formula(formula: str) -> None:
    again = compared(formula, formula)
    assume(again != Sameness.UNKNOWN)  # it divides by zero
    assert again == Sameness.PROVED
    for other in (
        f"({formula})",
        f"{{{formula}}}",
        formula.replace(" ", ""),
        formula.replace("(", r"\left(").replace(")", r"\right)"),
    ):
        assert compared(formula, other) == Sameness.PROVED, other
    # Unknown: where large terms cancel, only rounding is left to compare.
    assert compared(f"{formula} + x + 1", f"1 + x + {formula}") in (Sameness.PROVED, Sameness.UNKNOWN)
    assert compared(f"{formula} + x + 1", f"{formula} + x") in (Sameness.DIFFERENT, Sameness.UNKNOWN)


@settings(deadline=None)
@given(FORMULAS, FORMULAS)
def test_comparing_formulas_is_symmetric_and_never_refutes_an_identity(one: str, other: str) -> None:
    assert compared(one, other) == compared(other, one)
    theirs = compared(f"{one} + {other}", f"{other} + {one}")
    assert theirs in (Sameness.PROVED, Sameness.UNKNOWN)


@given(
    st.lists(st.sampled_from(["1", "-2", "x", r"\frac{1}{2}", r"\sqrt{2}", "7"]), min_size=2, max_size=5, unique=True),
    st.randoms(),
)
def test_order_matters_in_tuples_and_not_in_sets(members: list[str], draw: Random) -> None:
    mixed = list(members)
    draw.shuffle(mixed)
    for left, right in ((r"\{", r"\}"), ("", "")):
        there, back = left + ", ".join(members) + right, left + ", ".join(mixed) + right
        assert outcome(there, rf"\boxed{{{back}}}") is CORRECT
    expected = CORRECT if mixed == members else INCORRECT
    assert outcome(f"({', '.join(members)})", rf"\boxed{{({', '.join(mixed)})}}") is expected


@given(NUMBERS, NUMBERS)
def test_number_verdicts_are_symmetric_and_exact(one: Fraction, other: Fraction) -> None:
    there, back = outcome(str(one), f"#### {other}"), outcome(str(other), f"#### {one}")
    assert there is back
    assert (there is CORRECT) == (one == other)


@given(st.text(max_size=200))
def test_the_final_answer_is_a_part_of_the_text(text: str) -> None:
    assert final_answer(text).text in text


@given(st.text(alphabet="{}\\boxed", max_size=60), st.integers(-99, 99))
def test_the_last_balanced_box_counts(before: str, value: int) -> None:
    text = before.rstrip("\\") + rf" \boxed{{{value}}}"
    assert final_answer(text).text == str(value)
