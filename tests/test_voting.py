"""The accuracy that k samples would have had: every estimator against the enumeration of all subsets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.evaluation.voting import Sample, ballot, best_of_k, majority_at_k, weighted_vote_at_k
from pipeline.errors import InputError

samples = st.lists(
    st.builds(
        Sample,
        answer=st.sampled_from(["a", "b", "c", "d", None]),
        correct=st.sampled_from([0.0, 1.0]),
        score=st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.9]),
    ),
    min_size=1,
    max_size=7,
)
with_k = samples.flatmap(lambda found: st.tuples(st.just(found), st.integers(1, len(found))))


def majority(found: Sequence[Sample]) -> Callable[[Sequence[Sample]], float]:
    """The most frequent answer wins, and is as right as the mean of all its samples."""

    def choose(subset: Sequence[Sample]) -> float:
        votes = [s.answer for s in subset if s.answer is not None]
        winners = {answer for answer in votes if votes.count(answer) == max(map(votes.count, votes))}
        return fmean([fmean(s.correct for s in found if s.answer == winner) for winner in winners] or [0.0])

    return choose


def weighted(subset: Sequence[Sample]) -> float:
    """The answer with the largest sum of scores wins (ties share), and is as right as its best sample in the subset."""
    answers = {s.answer for s in subset if s.answer is not None}
    weight = {answer: round(sum(s.score for s in subset if s.answer == answer), 9) for answer in answers}
    winners = [answer for answer in answers if weight[answer] == max(weight.values())]
    return fmean([best([s for s in subset if s.answer == winner]) for winner in winners] or [0.0])


def best(subset: Sequence[Sample]) -> float:
    able = [s for s in subset if s.answer is not None] or subset
    highest = max(s.score for s in able)
    return fmean(s.correct for s in able if s.score == highest)


def enumerated(found: Sequence[Sample], k: int, choose: Callable[[Sequence[Sample]], float]) -> float:
    return fmean(choose(subset) for subset in combinations(found, k))


def test_prose_votes_with_its_stated_result() -> None:
    """As Wang et al. count votes. With whole texts every vote would differ, and voting be no better than one sample."""
    said = ["So 6 * 7 gives\n\\boxed{42}", "We get $\\boxed{ 42. }$, as asked.", "The answer is 42.", "Well.\n#### 42"]
    assert {ballot(text) for text in said} == {"42"} == {ballot(" 42\n")}
    assert ballot("\\boxed{\\dfrac12}") == ballot("Half: \\boxed{\\frac{1}{2}}") != ballot("\\boxed{0.5}")
    assert ballot("The answer is not 42") != "42"
    found = [Sample(ballot(text), 1.0) for text in said] + [Sample(ballot("So it is \\boxed{41}"), 0.0)]
    assert majority_at_k(found, 5) == 1.0


def test_programs_and_plain_answers_vote_with_their_whole_text() -> None:
    one, other = (f"def f(x):\n    answer = 1\n    return x{sign}" for sign in ("", " + 1"))
    assert ballot(one) != ballot(other) and ballot(f"```\n{one}\n```") != ballot(f"```\n{other}\n```")
    assert ballot("[1,  2]\nNone") == "[1, 2] None" and ballot("p and q") == "p and q" and ballot("  ") == ""


@given(with_k)
def test_majority_is_the_mean_over_all_subsets(case: tuple[list[Sample], int]) -> None:
    found, k = case
    assert majority_at_k(found, k) == pytest.approx(enumerated(found, k, majority(found)))


@given(with_k)
def test_weighted_votes_and_best_of_k_are_means_over_all_subsets(case: tuple[list[Sample], int]) -> None:
    found, k = case
    assert weighted_vote_at_k(found, k) == pytest.approx(enumerated(found, k, weighted))
    assert best_of_k(found, k) == pytest.approx(enumerated(found, k, best))


def test_sums_that_differ_only_by_rounding_are_a_tie() -> None:
    found = [Sample("a", 1.0, score=score) for score in (0.1, 0.2, 0.3)] + [Sample("b", 0.0, score=0.6)]
    assert 0.1 + 0.2 + 0.3 != 0.6 and weighted_vote_at_k(found, 4) == 0.5


def test_with_many_subsets_a_sample_of_them_approximates_the_mean() -> None:
    found = [Sample("ab"[n % 3 == 0], float(n % 3 == 0), score=(n % 5) / 5) for n in range(20)]
    drawn = weighted_vote_at_k(found, 6)
    assert drawn == weighted_vote_at_k(found, 6) and drawn != weighted_vote_at_k(found, 6, seed=1)
    assert drawn == pytest.approx(enumerated(found, 6, weighted), abs=0.03)


@given(with_k)
def test_the_majority_of_one_sample_is_the_mean_accuracy(case: tuple[list[Sample], int]) -> None:
    found, _ = case
    if all(s.answer is not None for s in found):
        assert majority_at_k(found, 1) == pytest.approx(fmean(s.correct for s in found))


def test_many_samples_are_counted_without_overflow() -> None:
    found = [Sample(str(i), 0.0) for i in range(200)] + [Sample("right", 1.0)] * 56
    assert majority_at_k(found, 1) == pytest.approx(56 / 256)
    assert 0.999 < majority_at_k(found, 64) <= 1.0 + 1e-9


@pytest.mark.parametrize("k", [0, 3])
def test_more_samples_than_there_are_is_refused(k: int) -> None:
    found = [Sample("a", 1.0), Sample("b", 0.0)]
    with pytest.raises(InputError, match=f"k = {k}: expected at least 1 and at most"):
        majority_at_k(found, k)
    with pytest.raises(InputError, match=f"k = {k}: expected at least 1 and at most"):
        weighted_vote_at_k(found, k)
    with pytest.raises(InputError, match=f"k = {k}: expected at least 1 and at most"):
        best_of_k(found, k)
