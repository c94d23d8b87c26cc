"""A table of answers with the verdict the `math` verifier must give; first those that other verifiers get wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distill.thinking import Response, split_thinking
from distill.types import Outcome, Problem
from distill.verifiers import VerifierPool, build, judge

MATH = build("math")
CORRECT, INCORRECT, UNVERIFIABLE = Outcome.CORRECT, Outcome.INCORRECT, Outcome.UNVERIFIABLE

REPORTED = [
    # huggingface/Math-Verify issues 2, 10, 14, 25, 26, 37, 40, 41, 56, 60, 64, 69, 76; open-r1 and ms-swift
    (r"\frac{1}{2004!}", r"\boxed{\frac{1}{2006!}}", INCORRECT),
    (r"\frac{1}{2^{99}}", r"\boxed{\frac{1}{2^{98}}}", INCORRECT),
    ("n=2, 3, 4", r"\boxed{n=1,2,3}", INCORRECT),
    ("n=2, 3, 4", r"\boxed{4,3,2}", CORRECT),
    ("D = (0, 1)", r"\boxed{D=(0,1.5)}", INCORRECT),
    (r"F_n = \sum_{k=0}^{n-1} F_k F_{n-k-1}", r"\boxed{F_n = \sum_{k=0}^{n-2} F_k F_{n-k-2}}", UNVERIFIABLE),
    (r"19, 46, \text{ and } 82", r"\boxed{21, 36, and 82}", INCORRECT),
    (r"19, 46, \text{ and } 82", r"\boxed{46, 19, 82}", CORRECT),
    (r"\frac{2^{2005}+1}{3 \cdot 2^{2006}}", r"\boxed{\frac{1}{3 \cdot 2^{2006}}}", INCORRECT),
    (r"\pm 2021", r"\boxed{2021}", INCORRECT),
    ("12:00", r"\boxed{1:00}", INCORRECT),
    (r"1, 2, \ldots, n", r"\boxed{1, 3, 5, \ldots, 2n-1}", UNVERIFIABLE),
    (r"1:2:3:\ldots", r"\boxed{1:4:9:\ldots}", UNVERIFIABLE),
    ("2x+4y-3=0", r"\boxed{y = -1/2*x + 3/4}", CORRECT),
    ("x^2/4+y^2/3=1", r"\boxed{x^2/16+y^2/12=1}", INCORRECT),
    (r"\sqrt{1/n}", r"\boxed{\frac{1}{\sqrt{n}}}", UNVERIFIABLE),
    ("f(x) = 0", r"\boxed{\forall x>0, f(x) = 0}", UNVERIFIABLE),
    (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3, \frac{2\pi}{3})}", INCORRECT),
    (r"\text{13}", r"\boxed{13}", CORRECT),
    ("e^{16} - 1", r"\boxed{-1 + exp(16)}", CORRECT),
    ("14 - i", r"\boxed{14.0 + -1.0i}", CORRECT),
    (r"\dfrac{\pi}{2}", r"\boxed{pi/2}", CORRECT),
    (r"m \geq \sqrt{2}", r"the solution is $m \in [\sqrt{2}, +\infty)$", CORRECT),
    ("73", "**Final Answer: **73**", CORRECT),
    ("73", "✅ Final Answer: **73**", CORRECT),
    (r"\frac{1}{12}", r"\boxed{0.0833333333333333}", UNVERIFIABLE),
    (r"(1,\frac{9}{2})", r"\boxed{(1,4.5)}", CORRECT),
    (r"\tan^2(y)+1", r"\boxed{\sec^2(y)}", CORRECT),
    ("34x+45y-20z+100=0", r"\boxed{-34x-45y+20z-100=0}", CORRECT),
    ("33.3", r"\boxed{\frac{100}{3}}", INCORRECT),
    ("(0, 12.5)", r"\boxed{0 < x < 12.5}", CORRECT),
    ("0<x<12.5", r"\boxed{(0,12.5)}", CORRECT),
    (r"a=1 \text{ or } a=-2", r"\boxed{-2, 1}", CORRECT),
]
"""Pairs from the issue trackers of math-verify and of projects that use it."""

OURS = [
    (r"a=1 \text{ or } a=-2", r"\boxed{a=-2, a=1}", CORRECT),
    ("6", "The answer is 5. Wait, no: 6", CORRECT),
    ("5", "The answer is 5. Wait, no: 6", INCORRECT),
    ("6", "The answer is 5. Actually, it should be 6.", CORRECT),
    ("5", "The answer is 5. Wait, let me double check: 2+3=5. Yes.", CORRECT),
    ("2,3", r"$x=\boxed{2}$ and $x=\boxed{3}$", CORRECT),
    ("3", r"$x=\boxed{2}$ or $x=\boxed{3}$", INCORRECT),
    ("5", r"\boxed{x=3, x=5}", INCORRECT),
    ("5", r"\boxed{x=3 \text{ or } 5}", INCORRECT),
    ("4", r"\boxed{x^2=4}", UNVERIFIABLE),
    ("10", r"\boxed{2x=10}", UNVERIFIABLE),
    ("5", r"\boxed{x+y=5}", CORRECT),
    ("12", r"\boxed{1 2}", INCORRECT),
    ("11/2", r"\boxed{1 1/2}", INCORRECT),
    ("3/2", r"\boxed{1 1/2}", CORRECT),
    ("0", r"\boxed{\sin\pi}", CORRECT),
    ("2i", r"\boxed{\sqrt{-4}}", CORRECT),
    ("-2", r"\boxed{\sqrt[3]{-8}}", CORRECT),
    ("1267650600228229401496703205376", r"\boxed{2^{100}}", CORRECT),
    ("1267650600228229401496703205377", r"\boxed{2^{100}}", INCORRECT),
    (r"\{\{1\},\{2,3\}\}", r"\boxed{\{1,2,3\}}", UNVERIFIABLE),
    (r"\{1,2\}", r"\boxed{\{2,1,1\}}", CORRECT),
    ("x", r"\boxed{|x|}", UNVERIFIABLE),
    ("5", r"\boxed{5\frac{\sin 0}{\sin 0}}", UNVERIFIABLE),
    ("5 km", r"\boxed{5000\text{ m}}", CORRECT),
    ("5", r"\boxed{5 m}", CORRECT),
    (r"12\pi", r"\boxed{12\pi \text{ cm}^2}", CORRECT),
    (r"12\pi", r"\boxed{12π cm}", CORRECT),
    (r"12\pi\text{ cm}", r"\boxed{12\pi\text{ m}}", UNVERIFIABLE),
    (r"90^\circ", r"\boxed{\frac{\pi}{2}}", UNVERIFIABLE),
    (r"\log_2 8", r"\boxed{3}", CORRECT),
    ("2", r"\boxed{\log 100}", UNVERIFIABLE),
    ("2", r"\boxed{\log_{10} 100}", CORRECT),
    ("x^2-1", r"\boxed{(x-1)(x+1)}", CORRECT),
    ("xy=1", r"\boxed{y=\frac1x}", CORRECT),
    ("x^2+y^2=1", r"\boxed{y=\sqrt{1-x^2}}", UNVERIFIABLE),
    ("y=2x", r"\boxed{x=y/2}", CORRECT),
    ("x=5", r"\boxed{n=5}", UNVERIFIABLE),
    ("1:2", r"\boxed{2:4}", CORRECT),
    ("1:2", r"\boxed{\frac12}", CORRECT),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{array}{c}1\\2\end{array}}", CORRECT),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{(1,2)}", CORRECT),
    ("(1,2)", r"\boxed{\langle 1, 2\rangle}", CORRECT),
    ("(3,4)", r"\boxed{x=3, y=4}", CORRECT),
    ("(3,4)", r"\boxed{x=4, y=3}", UNVERIFIABLE),
    ("(3,4)", r"\boxed{x=4, y=5}", INCORRECT),
    (r"x \ne 3", r"\boxed{(-\infty,3)\cup(3,\infty)}", CORRECT),
    ("x<2 or x>3", r"\boxed{(-\infty,2)\cup(3,\infty)}", CORRECT),
    (r"\mathbb{R}", r"\boxed{(-\infty,\infty)}", CORRECT),
    (r"\emptyset", r"\boxed{\{\}}", CORRECT),
    ("no solution", r"\boxed{\text{No real solutions}}", CORRECT),
    (r"\text{ellipse}", r"\boxed{\text{an ellipse}}", CORRECT),
    ("Yes", "The answer is yes, because it works.", CORRECT),
    ("Yes", "No", INCORRECT),
    ("7", "seven", CORRECT),
    ("72", "The answer is seventy-two.", CORRECT),
    ("52_8", r"\boxed{42_{10}}", UNVERIFIABLE),
    ("52_8", r"\boxed{53_8}", INCORRECT),
    ("52_8", r"\boxed{7}", INCORRECT),
    (r"5.4 \text{ cents}", r"\boxed{\$0.054}", CORRECT),
    ("5000000", r"\boxed{5 \text{ million}}", CORRECT),
    ("5", r"\boxed{5 \text{ million}}", UNVERIFIABLE),
    ("1/2x", r"\boxed{\frac{x}{2}}", UNVERIFIABLE),
    (r"\frac{x}{2}", r"\boxed{x/2}", CORRECT),
    (r"2\pi", r"\boxed{6.28}", UNVERIFIABLE),
    (r"2\pi", r"\boxed{6.29}", INCORRECT),
    (r"x=\sqrt2", r"\boxed{x = \sqrt{2} \approx 1.414}", CORRECT),
    ("3.14", r"\boxed{x\approx 3.14}", CORRECT),
    ("5", r"\boxed{2x=10 \Rightarrow x=5}", CORRECT),
    ("1,000", r"\boxed{1{,}000}", CORRECT),
    ("1000", r"\boxed{1\,000}", CORRECT),
    (r"-1\frac{4}{5}", r"\boxed{-\frac95}", CORRECT),
    (r"\lfloor 3.7 \rfloor", r"\boxed{3}", CORRECT),
    ("2|x|", r"\boxed{|2x|}", CORRECT),
    ("p/q", r"\boxed{\frac{p}{q}}", CORRECT),
    ("June 20", r"\boxed{\text{June 21}}", INCORRECT),
    ("June 20", r"\boxed{\text{20 June}}", UNVERIFIABLE),
    ("42", "not 42", UNVERIFIABLE),
    ("42", "The answer is not 42 but 43.", UNVERIFIABLE),
    ("5!", "The answer is $5!$ ways", CORRECT),
    ("10", "The answer is $10 per box.", CORRECT),
    (r"\frac{\sqrt{3}}{2}", "So sin 60 is √3/2", CORRECT),
    (r"10 - 2\sqrt{5}", "**Answer:** 10 - 2√5", CORRECT),
    ("A", r"\boxed{\text{A}}", CORRECT),
    (r"-2 \le x \le 7", r"\boxed{x\in[-2,7]}", CORRECT),
    (r"-2 \le x \le 7", r"\boxed{7\ge x\ge -2}", CORRECT),
    (r"-2 \le x \le 7", r"\boxed{-2<x<7}", INCORRECT),
    ("e", r"\boxed{2.718}", UNVERIFIABLE),
    ("i", r"\boxed{\sqrt{-1}}", CORRECT),
    (r"\sin 2x", r"\boxed{2\sin x\cos x}", CORRECT),
    (r"\ln 6", r"\boxed{\ln 2+\ln 3}", CORRECT),
    (r"\frac{n(n+1)}{2}", r"\boxed{\sum_{k=1}^n k}", UNVERIFIABLE),
    ("1 + 2 i", r"\boxed{1+2\mathrm{i}}", CORRECT),
    (r"3\sqrt[3]{2}", r"\boxed{\sqrt[3]{54}}", CORRECT),
    ("2k", r"\boxed{2k}", CORRECT),
    (r"-\frac{1}{3}", r"\boxed{\frac{-1}{3}}", CORRECT),
    (r"-\frac{1}{3}", r"\boxed{\frac{1}{-3}}", CORRECT),
    ("9", r"\boxed{\text{Evelyn}}", INCORRECT),
    (r"\emptyset", "The answer is no solution", CORRECT),
    ("no solution", r"\boxed{\emptyset}", CORRECT),
    ("no solution", r"\boxed{5}", INCORRECT),
    (r"\mathbb{R}", "all real numbers", CORRECT),
    ("{5}", "5", CORRECT),
    ("3", r"\boxed{\text{(C)}}", INCORRECT),
    ("1,234", r"\boxed{1, 234}", INCORRECT),
    (r"\sqrt{23}", "So it is √23", CORRECT),
    (r"\sqrt{23}", r"\boxed{\sqrt 23}", CORRECT),
    ("1024", r"\boxed{2^10}", CORRECT),
    ("1024", r"\boxed{2**10}", CORRECT),
    ("0.5", r"\boxed{0,5}", UNVERIFIABLE),
    ("10", r"\boxed{{5 \choose 2}}", CORRECT),
    ("42", "The answer is **42** apples.", CORRECT),
    (r"0.\overline{3}", r"\boxed{\frac13}", CORRECT),
    ("1", r"\boxed{0.\overline{9}}", CORRECT),
    ("7:30", "The answer is 7:30 PM", CORRECT),
    ("7:30 a.m.", "The answer is 7:30 PM", INCORRECT),
    (
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        r"\boxed{\begin{bmatrix}1 & 2\\[2pt] 3 & \frac82\end{bmatrix}}",
        CORRECT,
    ),
    ("x^2 + y^2 = 1", r"\boxed{1}", UNVERIFIABLE),
    ("x=2,y=3", r"\boxed{y=3, x=2}", CORRECT),
    ("x=2,y=3", r"\boxed{x=3, y=2}", INCORRECT),
    ("5", r"\boxed{5 \text{ or more}}", UNVERIFIABLE),
    ("3:15", r"\boxed{1:5}", CORRECT),
    (r"\cos 60^\circ", r"\boxed{1/2}", CORRECT),
    (r"\frac{\sqrt3}{2}", r"\boxed{\sin(60^{\circ})}", CORRECT),
    (r"\sin(x+30^\circ)", r"\boxed{\sin(x+\pi/6)}", CORRECT),
    (r"\pi", r"\boxed{3.14159265358979}", UNVERIFIABLE),
    (r"\cos(\pi/3)/2", r"\boxed{0.25}", CORRECT),
    (r"\pm1 \pm 2", r"\boxed{3, -3}", UNVERIFIABLE),
    (r"a \pm b \mp c", r"\boxed{a+b-c, a-b+c}", CORRECT),
    ("1/3", r"\boxed{0.\bar{3}}", CORRECT),
    ("5%", r"\boxed{500\%}", INCORRECT),
    ("5 Mg", r"\boxed{5 mg}", UNVERIFIABLE),
    ("5 m", r"\boxed{500 cm}", CORRECT),
    ("5 m", r"\boxed{5 cm}", INCORRECT),
    ("5", r"\boxed{5 \text{ squared}}", UNVERIFIABLE),
    ("60", r"\boxed{5 \text{ dozen}}", CORRECT),
    ("x_1", r"\boxed{x}", INCORRECT),
    ("FF_{16}", r"\boxed{255}", UNVERIFIABLE),
    ("-5", "The answer is negative 5", CORRECT),
    ("negative five", "-5", CORRECT),
    ("A", r"\boxed{\text{Answer: A}}", CORRECT),
]

WRITTEN = [
    *((reference, answer, CORRECT) for reference, answer in (
        (r"3.2\times10^{-5}", r"\boxed{3.2 × 10⁻⁵}"), (r"3.2\times10^{-5}", r"\boxed{3.2\times{10}^{-5}}"),
        ("x>3", r"\boxed{\{x \mid x>3\}}"), ("[1,5)", r"\boxed{\{x \in \mathbb{R} \mid 1 \leqslant x < 5\}}"),
        (r"(-\infty, 2) \cup (3, \infty)", r"\boxed{x<2 \lor x>3}"), (r"\mathbb{R}", r"\boxed{\mathbb R}"),
        ("x^2+2x+1", r"\boxed{x**2+2*x+1}"), ("(1,2)", "\\boxed{（1，2）}"), ("12", "\\boxed{\u200e12\u200b}"),
        (r"\frac34", r"\boxed{{3 \over 4}}"), ("12", r"\boxed{\textcolor{red}{12}}"), ("5600", "The answer is Rs. 5600."),
        ("60 mph", r"\boxed{60\text{ miles per hour}}"), (r"36\pi\text{ cm}^2", r"\boxed{36\pi\text{ square cm}}"),
        (r"\text{Evelyn}", r"\boxed{\text{\textbf{Evelyn}}}"), ("12_8", r"\boxed{12_{\text{eight}}}"),
        ("12_8", "The answer is 12 base 8."), ("3:45 p.m.", r"\boxed{15:45}"), ("(3,-2)", r"\boxed{\{(3,-2)\}}"),
        ("11/3", r"\boxed{3.666...}"), (r"\sqrt[3]{2}", r"\boxed{∛2}"), ("no", r"\boxed{\text{No}}"),
        ("No", "**Final Answer:** **No**"), ("No", "The answer is $No$."), ("No", "No, because 7 is prime."),
        ("yes", "7 is prime.\n\n**Yes**, it is 7."), ("12", "答案是12。"),
        ("450", r"In total, she spent $\$450$ on groceries."), ("79", "Result: 79 km/h"), ("12", "A: 12"), (r"\log_{10}2", r"\boxed{\lg 2}"), ("12", "∴ 12"),
        ("2050", "The answer is about 2,050."), ("42", "Answer: Tom has 42 marbles."), ("42", 'The answer is "42".'),
        ("42", "**Final Answer:** The total is 42 apples."), ("12", r"\boxed{\text{Answer: } 12}"), ("12", "Die Antwort ist 12."), ("Mr. Smith", "The answer is Mr. Smith."),
        (r"\{2,-2\}", r"\boxed{\{x \mid x=2 \text{ or } x=-2\}}"), (r"\{x \mid x=2\}", r"\boxed{2}"),
        ("12", "Given:\nA: 5 apples\nB: 7 apples\n\nTogether they have 12 apples."), ("42", "Q: 6*7?\n**A:** 42 apples"),
        (r"2\sqrt{2}", "Let the points be\nA: (1,2)\nB: (3,4)\nThe distance is $2\\sqrt{2}$."),
        ("5", r"\boxed{5\text{ logs}}"), ("3", "The answer is 3 roots."), ("60 mph", "60 mph"),
        ("infinitely many", r"\boxed{\infty}"), (r"\begin{pmatrix}1\\2\\3\end{pmatrix}", r"\boxed{\vec{v}=[1,2,3]}"),
    )),
    *((reference, answer, UNVERIFIABLE) for reference, answer in (
        ("12", "twelve apples"), (r"\frac34", r"\boxed{\text{three quarters}}"), ("12", "The answer is 12!"),
        (r"(-\infty, 2) \cup (3, \infty)", r"\boxed{]-\infty,2[\cup]3,\infty[}"), ("(3,-2)", r"\boxed{P(3,-2)}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\frac12\begin{pmatrix}2\\4\end{pmatrix}}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\mathbf{i}+2\mathbf{j}}"), ("True", "Yes"),
        ("x^2+1", r"\boxed{x^2+1=0}"), ("18.90", "The answer is 18 dollars and 90 cents."), ("2/3", r"\boxed{0.66}"),
        (r"\{x \mid x^2=4\}", r"\boxed{\{-2,2\}}"), (r"\{x \mid 2x=4\}", r"\boxed{\{2\}}"),
        ("42", r"\boxed{x \approxeq 42}"), (r"2n\pi", r"\boxed{2k\pi}"), ("x^2+C", r"\boxed{x^2+K}"),
        ("42", "Maria will be 42 years old in 5 years."), ("42", "Answer: Tom has 42 or 43 pens."),
        ("42", "Answer: Tom has at most 42 marbles."), ("row 7", "The answer is that row 7 is the one."),
    )),
    *((reference, answer, INCORRECT) for reference, answer in (
        ("43", "Answer: Tom has 42 marbles."), ("yes", r"\boxed{\text{yes or no}}"), ("No", "The answer is no and yes."),
        ("Yes", "No, because 7 is prime."), (r"2n\pi", r"\boxed{3k\pi}"), ("x^2+1", r"\boxed{y^2+1}"), ("x^2+C", r"\boxed{x^2}"),
        ("42", "A: 43"), ("13", "twelve apples"), ("True", "No"), ("2/3", r"\boxed{0.65}"), ("12_8", "The answer is 13 base 8."),
        ("50 km/h", "50 mph"), ("50 km/h", "So it is 50 mph on average."), ("B", r"\boxed{b = 5}"),
        ("3:45 p.m.", r"\boxed{14:45}"), ("(3,-2)", r"\boxed{\{(-2,3)\}}"), ("Yes", "**Final Answer:** **No**"),
    )),
]  # fmt: skip
"""Answers as they are written, which were unreadable and therefore incorrect, or read as something else."""

FOOLING = [
    *(
        ("42", rf"\boxed{{{hack}}}", INCORRECT)
        for hack in (
            "|6*7|",
            r"\{6*7\}",
            r"\log_2 2^{6*7}",
            r"e^{\ln(6*7)}",
            r"\sqrt{6\cdot 7\cdot 42}",
            r"\lfloor 42.5+0\rfloor",
            r"x = |6*7|",
        )
    ),
    *(
        ("42", hack, UNVERIFIABLE)
        for hack in (
            r"\boxed{42\text{, 43}}",
            r"\boxed{42\text{ (43)}}",
            r"\boxed{42\text{ 43}}",
            r"\boxed{42\text{ halved}}",
            r"\boxed{42\text{ hundreds}}",
            r"\boxed{42\text{ sevenths}}",
            r"\boxed{\not= 42}",
            r"\boxed{42!!}",
            "The answer is 42 and a half.",
            "The answer is 42 apples or 43 apples.",
            "Is it 42?",
            "There are 42 students. How many are in two classes?",
        )
    ),
    ("42", "The answer is 42. Just kidding, it is 43.", INCORRECT),
    *(
        ("No", said, UNVERIFIABLE)
        for said in ("No one knows.", r"\boxed{\text{no more than 5}}", "The answer is no solution.")
    ),
    ("No", "No it is not prime.", CORRECT),
    ("No", "\\boxed{\\text{No}} is what I thought.\nNo, that is wrong.", UNVERIFIABLE),
    (r"\frac12", r"\boxed{\frac13 = \frac12}", UNVERIFIABLE),
    ("(8,-2)", r"\boxed{7 = (8,-2)}", UNVERIFIABLE),
    ("p-q", r"\boxed{p-q\text{, 7}}", UNVERIFIABLE),
    ("1.25", r"\boxed{1.25\ldots}", UNVERIFIABLE),
]
"""Answers that were correct although they name more than the answer, take it back, or leave the work to the verifier."""

IN_WORDS = [
    ("$5", "5 cents", INCORRECT),
    ("5 dollars", "5 cents", INCORRECT),
    ("5 cm", "5 inches", INCORRECT),
    ("1 hour", "1 minute", INCORRECT),
    ("1 hour", "60 minutes", CORRECT),
    ("$5", "It costs 500 cents.", CORRECT),
    ("90 minutes", "1.5 hours", CORRECT),
    ("5000000", "About 5 million live there", CORRECT),
    ("5", "About 5 million live there", UNVERIFIABLE),
    ("42", "She has 42 dollars left.", CORRECT),
    ("42", "It did not rain, so he has 42 dollars.", CORRECT),
    ("42", "It is not 41 but 42", CORRECT),
    ("42", "No, it is 42", CORRECT),
    (r"2\sqrt{3}", "So it is 2*sqrt(3)", CORRECT),
    (r"\ln 2", "x = ln(2)", CORRECT),
    ("5", "sqrt(5)", INCORRECT),
    ("5", "x != 5", INCORRECT),
    ("120", "5!=120", CORRECT),
    ("5", "The answer is $5$ because $2+3=5$.", CORRECT),
    ("11", "So $5$ plus $6$ is $11$", CORRECT),
    ("5", "The answer is 5. Let me check: 2+3=5.", CORRECT),
    ("5", "The answer is 5. Let me know if that helps!", CORRECT),
    *(("5", said, UNVERIFIABLE) for said in (
        "The answer cannot be 5.", "It can’t be 5", "It is never 5.", "So x = 5 is wrong", "x cannot equal 5",
        "It is neither 4 nor 5", "There are at least 5", "x is between 3 and 5", "It's 3 to 5", "more than $5$ apples",
        "The number of apples is less than 5", "5 squared", "5 factorial", "5 thousandths", "The result is minus 5",
        "The answer is 5 less than the number of apples that she had", "The number cannot be $5$.",
        "The answer is either $5$ or $6$.", "It is either $6$ or $5$.", "The answer is $5$ if x > 0, $6$ otherwise",
        "The answer is 5. But wait, that's wrong.", "The answer is 5. Hmm, no. Let me recompute: 3+3=6.",
        r"\boxed{x = 5 \text{ (extraneous)}}",
        "The answer is half of 5, which is two and a half.", "The answer is twice 5, which is ten.",
        "Answer: it is the square root of 5.", "Answer: x can be any value except 5", "Answer: It is divisible by 5.",
        "So x can be any value except 5.",
    )),
]  # fmt: skip
"""Sentences: the words beside a number deny it, change it, or are its unit."""


@pytest.mark.parametrize(("reference", "answer", "expected"), REPORTED + OURS + WRITTEN + FOOLING + IN_WORDS)
def test_each_answer_gets_the_expected_verdict(reference: str, answer: str, expected: Outcome) -> None:
    pytest.importorskip("math_verify")
    verdict = judge(MATH, Problem("p", "?", reference, "math", "test"), answer)
    assert verdict.outcome is expected, verdict


@pytest.mark.parametrize(("reference", "answer", "expected"), REPORTED + OURS + WRITTEN + FOOLING + IN_WORDS)
def test_without_algebra_a_verdict_is_the_expected_one_or_missing(
    reference: str, answer: str, expected: Outcome
) -> None:
    """Without algebra it can judge fewer answers, but it never judges one differently."""
    quick = MATH.quick(Problem("p", "?", reference, "math", "test"), response(answer))
    assert quick is None or quick.outcome is expected


def response(answer: str) -> Response:
    return split_thinking(answer)


def test_a_disagreement_is_in_the_evidence_with_both_opinions() -> None:
    pytest.importorskip("math_verify")
    verdict = judge(MATH, Problem("p", "?", r"\sqrt{1/n}", "math", "test"), r"\boxed{\frac{1}{\sqrt{n}}}")
    assert verdict.outcome is UNVERIFIABLE
    assert verdict.evidence["disagreement"] is True
    assert (verdict.evidence["points"], verdict.evidence["algebra"]) == (True, False)


def test_there_is_no_disagreement_where_one_opinion_is_missing() -> None:
    pytest.importorskip("math_verify")
    verdict = judge(MATH, Problem("p", "?", "f(x) = 0", "math", "test"), r"\boxed{\forall x>0, f(x) = 0}")
    assert verdict.outcome is UNVERIFIABLE and "disagreement" not in verdict.evidence


def test_no_verdict_changes_with_order_workers_or_repetition() -> None:
    pytest.importorskip("math_verify")
    items = [(i, "math", Problem("p", "?", r, "math", "t"), a) for i, (r, a, _) in enumerate(REPORTED[::2] + OURS[::4])]
    runs = []
    for workers, order, repeats in ((1, items, 1), (2, items[1::2] + items[::2], 2)):
        with VerifierPool(workers=workers) as pool:
            for _ in range(repeats):
                verdicts = dict(pool.verify_many(order))
                runs.append({key: replace(verdict, seconds=0.0) for key, verdict in verdicts.items()})
    assert all(run == runs[0] for run in runs)
