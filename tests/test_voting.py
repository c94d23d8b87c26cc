"""What k samples would have bought: every estimator against the enumeration of all subsets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.voting import DRAWS, Sample, best_of_k, majority_at_k, weighted_vote_at_k
from pipeline.errors import InputError

samples = st.lists(
    st.builds(
        Sample,
        answer=st.sampled_from(["a", "b", "c", "d", None]),
        correct=st.sampled_from([0.0, 1.0]),
        score=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    ),
    min_size=1,
    max_size=7,
)
with_k = samples.flatmap(lambda found: st.tuples(st.just(found), st.integers(1, len(found))))


def majority(found: Sequence[Sample]) -> Callable[[Sequence[Sample]], float]:
    """Most ballots win; an answer is as right as its samples are, all told."""

    def choose(subset: Sequence[Sample]) -> float:
        votes = [s.answer for s in subset if s.answer is not None]
        winners = {answer for answer in votes if votes.count(answer) == max(map(votes.count, votes))}
        return fmean([fmean(s.correct for s in found if s.answer == winner) for winner in winners] or [0.0])

    return choose


def highest(subset: Sequence[Sample]) -> float:
    return fmean(s.correct for s in subset if s.score == max(other.score for other in subset))


def enumerated(found: Sequence[Sample], k: int, choose: Callable[[Sequence[Sample]], float]) -> float:
    return fmean(choose(subset) for subset in combinations(found, k))


@given(with_k)
def test_majority_is_the_mean_over_all_subsets(case: tuple[list[Sample], int]) -> None:
    found, k = case
    assert majority_at_k(found, k) == pytest.approx(enumerated(found, k, majority(found)))


@given(with_k)
def test_best_of_k_is_the_mean_over_all_subsets(case: tuple[list[Sample], int]) -> None:
    assert best_of_k(*case) == pytest.approx(enumerated(*case, highest))


@given(with_k)
def test_one_sample_is_a_sample_whatever_the_strategy(case: tuple[list[Sample], int]) -> None:
    found, _ = case
    assert best_of_k(found, 1) == pytest.approx(fmean(s.correct for s in found))
    if all(s.answer is not None for s in found):
        assert majority_at_k(found, 1) == pytest.approx(fmean(s.correct for s in found))


@given(samples)
def test_a_vote_with_equal_weights_is_the_majority(found: list[Sample]) -> None:
    even = [replace(s, score=1.0) for s in found]
    assert weighted_vote_at_k(even, len(even)) == pytest.approx(majority_at_k(even, len(even)))


def test_weights_turn_a_vote() -> None:
    found = [Sample("a", 0.0, score=0.2), Sample("a", 0.0, score=0.2), Sample("b", 1.0, score=0.5)]
    assert (majority_at_k(found, 3), weighted_vote_at_k(found, 3), best_of_k(found, 3)) == (0.0, 1.0, 1.0)
    assert weighted_vote_at_k(found, 2, seed=1) == weighted_vote_at_k(found, 2, seed=1)
    assert weighted_vote_at_k(found, 2, seed=1) == pytest.approx(2 / 3, abs=4 * (2 / 9 / DRAWS) ** 0.5)


def test_many_samples_are_counted_without_overflow() -> None:
    found = [Sample(str(i), 0.0) for i in range(200)] + [Sample("right", 1.0)] * 56
    assert majority_at_k(found, 1) == pytest.approx(56 / 256)
    assert 0.999 < majority_at_k(found, 64) <= 1.0 + 1e-9


@pytest.mark.parametrize("k", [0, 3])
def test_more_samples_than_there_are_is_refused(k: int) -> None:
    found = [Sample("a", 1.0), Sample("b", 0.0)]
    for strategy in (majority_at_k, best_of_k, weighted_vote_at_k):
        with pytest.raises(InputError, match=f"a choice of {k} samples"):
            strategy(found, k)
