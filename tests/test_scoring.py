"""The figures of a model's samples, checked on samples with known answers."""

from __future__ import annotations

import math
from itertools import pairwise, permutations
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.evaluation import scoring


def row(problem: str, answer: str, outcome: str, tokens: int = 10, finish: str = "stop") -> dict[str, Any]:
    return {
        "problem_key": problem, "answer": answer, "outcome": outcome, "tokens": tokens, "thinking_tokens": tokens // 2,
        "finish": finish, "closed": finish == "stop", "source": "calc", "difficulty": 3,
    }  # fmt: skip


RIGHT, WRONG = "correct", "incorrect"
SPLIT = [row("a", "7", RIGHT), row("a", " 7\n", RIGHT), row("a", "8", WRONG), row("a", "9", WRONG)]
SURE = [row("b", "1", WRONG)] * 3 + [row("b", "2", RIGHT)]


def test_a_vote_counts_equal_answers_and_ignores_white_space() -> None:
    found = {at["samples"]: at for at in scoring.summary(SPLIT + SURE, [])["by_samples"]}
    assert list(found) == [1, 2, 4]
    assert (found[1]["majority"]["accuracy"], found[1]["pass"]["accuracy"]) == (0.375, 0.375)
    assert (found[4]["majority"]["accuracy"], found[4]["pass"]["accuracy"]) == (0.5, 1.0)
    assert found[4]["tokens"] == 40


def test_a_cut_response_has_no_vote() -> None:
    cut = [row("a", "8", WRONG, finish="length")] * 3 + [row("a", "7", RIGHT)]
    assert scoring.summary(cut, [])["by_samples"][-1]["majority"]["accuracy"] == 1.0


def test_an_unverifiable_response_is_not_counted_as_a_sample() -> None:
    found = scoring.summary([*SPLIT, row("a", "7", "unverifiable")], [2])
    assert found["by_samples"][-1]["samples"] == 4 and found["unverifiable"] == 1
    assert found["pass_at_2"] == pytest.approx(1 - 1 / 6, abs=1e-4)


def test_length_is_compared_within_a_problem() -> None:
    """Problem b is hard and its answers are long; in each problem the longest answer is wrong."""
    easy = [row("a", "7", RIGHT, 10), row("a", "7", RIGHT, 11), row("a", "8", WRONG, 12)]
    hard = [row("b", "7", RIGHT, 90), row("b", "8", WRONG, 91), row("b", "8", WRONG, 92)]
    found = scoring.summary(easy + hard, [])["by_length"]
    assert [found[third]["pass_at_1"] for third in scoring.THIRDS] == [1.0, 0.5, 0.0]
    assert found["longer"]["over_shorter"] == -1.0 and found["longer"]["over_shorter_ci95"][1] < 0.7
    assert scoring.summary(easy[:2], [])["by_length"] == {}


def test_a_problem_that_was_hardly_judged_leaves_the_others_their_curve() -> None:
    """Each point is over the problems with as many judged samples."""
    hardly = [row("b", "1", RIGHT), *[row("b", "1", "unverifiable")] * 3]
    found = scoring.summary(SPLIT + hardly, [])["by_samples"]
    assert [(at["samples"], at["problems"]) for at in found] == [(1, 2), (2, 1), (4, 1)]
    assert (found[0]["pass"]["accuracy"], found[2]["pass"]["accuracy"]) == (0.75, 1.0)


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=3, max_size=6))
def test_equally_long_samples_are_divided_by_chance_not_by_their_order(drawn: list[tuple[int, bool]]) -> None:
    """The thirds are the means over all orders of the samples, in which ties are broken by the order."""
    size, orders = len(drawn) // 3, list(permutations(drawn))
    means = [0.0, 0.0, 0.0]
    for order in orders:
        right = [is_right for _, is_right in sorted(order, key=lambda sample: sample[0])]
        for third, part in enumerate((right[:size], right[size:-size], right[-size:])):
            means[third] += fmean(part) / len(orders)
    rows = [row("a", "7" if is_right else "8", RIGHT if is_right else WRONG, n) for n, is_right in drawn]
    found = scoring.summary(rows, [])["by_length"]
    assert [found[third]["pass_at_1"] for third in scoring.THIRDS] == pytest.approx(means, abs=1e-4)
    assert found == scoring.summary(rows[::-1], [])["by_length"]


def test_cut_responses_do_not_count_as_long_and_wrong() -> None:
    cut = [row("a", "", WRONG, 99, finish="length")] * 3
    found = scoring.summary([*cut, *(row("a", "7", RIGHT, n) for n in (10, 20, 30))], [])["by_length"]
    assert [found[third]["pass_at_1"] for third in scoring.THIRDS] == [1.0, 1.0, 1.0]


def test_tokens_per_correct_answer() -> None:
    found = scoring.summary([*SPLIT, *SURE], [])
    assert found["tokens_per_correct"] == round(80 / 3, 2)
    assert scoring.summary(SURE[:3], [])["tokens_per_correct"] is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("123"), st.integers(1, 9)), min_size=1, max_size=20))
def test_pass_at_k_is_never_below_the_majority_and_grows_with_k(cases: list[tuple[str, str, int]]) -> None:
    rows = [row(p, answer, RIGHT if answer == "1" else WRONG, n) for p, answer, n in cases]
    points = scoring.summary(rows, [])["by_samples"]
    same = [(a, b) for a, b in pairwise(points) if a["problems"] == b["problems"]]
    assert all(a["pass"]["accuracy"] <= b["pass"]["accuracy"] for a, b in same)
    assert all(at["majority"]["accuracy"] <= at["pass"]["accuracy"] + 1e-4 for at in points)
    assert all(math.isfinite(at["tokens"]) for at in points)
