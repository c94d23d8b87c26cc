"""Estimators against enumeration and simulation."""

from __future__ import annotations

from itertools import combinations, product
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.evaluation.statistics import clustered_mean, holm, paired_difference, pass_at_k, sign_test, student, wilson
from distill.randomness import generator
from pipeline.errors import InputError


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(case: tuple[int, int, int]) -> None:
    samples, correct, k = case
    subsets = list(combinations([True] * correct + [False] * (samples - correct), k))
    assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_is_refused_below_k_samples() -> None:
    with pytest.raises(InputError, match="at least 8 samples per problem; there are 4"):
        pass_at_k(4, 2, 8)


def test_the_interval_takes_the_problem_as_the_unit() -> None:
    """Repeating each sample ten times must not narrow it."""
    once = {str(i): [float(i % 3 == 0)] for i in range(60)}
    often = {key: values * 10 for key, values in once.items()}
    assert clustered_mean(once) == clustered_mean(often)


@pytest.mark.parametrize(
    ("problems", "samples", "right", "wrong"), [(100, 4, 1, 1), (10, 4, 1, 1), (20, 4, 9, 1), (150, 1, 30, 1)]
)
def test_intervals_have_their_nominal_coverage(problems: int, samples: int, right: int, wrong: int) -> None:
    """For problems with Beta-distributed pass rates: many and few, for a mediocre and a good model."""
    draw, covered, truth = generator("coverage", problems, right), 0, right / (right + wrong)
    for _ in range(300):
        found = draw.binomial(samples, draw.beta(right, wrong, size=problems)) / samples
        estimate = clustered_mean({str(i): [value] for i, value in enumerate(found.tolist())})
        covered += estimate.low <= truth <= estimate.high
    assert 0.92 <= covered / 300 <= 0.99


@pytest.mark.parametrize(
    ("freedom", "tail", "quantile"),
    [
        (1, 0.025, 12.7062),
        (2, 0.025, 4.3027),
        (3, 0.025, 3.1824),
        (9, 0.025, 2.2622),
        (120, 0.025, 1.9799),
        (1, 0.0005, 636.6192),
        (3, 0.0005, 12.9240),
        (8, 0.0005, 5.0413),
        (9, 0.005, 3.2498),
        (1000, 0.0005, 3.3003),
    ],
)
def test_student_t_quantiles_agree_with_tables(freedom: int, tail: float, quantile: float) -> None:
    assert student(freedom, tail) == pytest.approx(quantile, abs=6e-5)


def test_rounding_differences_do_not_narrow_an_interval() -> None:
    before, after = {"a": [0.4], "b": [0.0]}, {"a": [0.7], "b": [0.3]}
    assert 0.7 - 0.4 != 0.3
    found = paired_difference(before, after)
    assert found.high - found.low > 0.5
    nearly = {str(i): [1.0 - 1e-12 * (i == 0)] for i in range(20)}  # as the exact mean of a vote may be rounded
    assert clustered_mean(nearly).low == pytest.approx(clustered_mean({key: [1.0] for key in nearly}).low)


def test_an_interval_of_equal_problems_still_has_a_width() -> None:
    nothing = clustered_mean({str(i): [0.0] for i in range(50)})
    assert nothing.low == pytest.approx(0.0, abs=1e-9)
    assert 0.05 < nothing.high < 0.1
    assert wilson(1.0, 50)[0] == pytest.approx(1 - wilson(0.0, 50)[1])


def test_unverifiable_problems_do_not_count() -> None:
    assert clustered_mean({"a": [1.0], "b": []}).problems == 1


def test_a_paired_difference_is_tighter_than_two_intervals() -> None:
    before = {str(i): [float(i % 2)] for i in range(40)}
    after = {key: [min(1.0, values[0] + float(int(key) < 8))] for key, values in before.items()}
    paired = paired_difference(before, after)
    assert paired.value == pytest.approx(0.1)
    alone = clustered_mean(before)
    assert paired.high - paired.low < alone.high - alone.low
    assert paired_difference({"a": [0.0]}, {"a": [1.0]}).low == -1.0


def test_a_paired_difference_common_to_all_problems_still_has_a_width() -> None:
    zeros, ones = ({str(i): [value] for i in range(5)} for value in (0.0, 1.0))
    never = paired_difference(zeros, zeros)
    assert never.value == 0.0 and never.low == pytest.approx(-wilson(0.0, 5)[1]) == -never.high
    always = paired_difference(zeros, ones)
    assert always.value == always.high == 1.0 and -1.0 < always.low < 0.2


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=7), st.data())
def test_the_mean_of_n_samples_is_the_mean_over_subsets(values: list[float], data: st.DataObject) -> None:
    """avg@k is unbiased for pass@1 for any k, and its mean over all subsets of n samples is the same number."""
    k = data.draw(st.integers(1, len(values)))
    averages = [fmean(subset) for subset in combinations(values, k)]
    assert fmean(averages) == pytest.approx(clustered_mean({"a": values}).value)
    assert pass_at_k(len(values), round(sum(values)), 1) == pytest.approx(fmean(values))


@pytest.mark.parametrize("problems", [10, 100])
def test_a_paired_interval_has_its_nominal_coverage(problems: int) -> None:
    draw, covered = generator("paired coverage", problems), 0
    for _ in range(300):
        before = draw.beta(1, 1, size=problems)
        after = before + 0.2 * (1 - before)  # the true mean gain is 0.1
        scores = [
            {str(i): [value] for i, value in enumerate((draw.binomial(4, chances) / 4).tolist())}
            for chances in (before, after)
        ]
        estimate = paired_difference(*scores)
        covered += estimate.low <= 0.1 <= estimate.high
    assert 0.92 <= covered / 300 <= 0.985


@given(st.integers(0, 6), st.integers(0, 6))
def test_the_sign_test_is_the_share_of_outcomes_at_least_as_extreme(better: int, worse: int) -> None:
    """McNemar's exact test by enumeration: all signs that so many problems could have, each equally likely."""
    seen = abs(better - worse)
    ways = [abs(sum(signs)) for signs in product((-1, 1), repeat=better + worse)]
    assert sign_test(better, worse) == pytest.approx(sum(way >= seen for way in ways) / len(ways))


def test_the_sign_test_has_at_most_its_nominal_error_rate() -> None:
    flips = [generator("null", trial).binomial(40, 0.5) for trial in range(1000)]
    assert sum(sign_test(int(n), 40 - int(n)) < 0.05 for n in flips) / 1000 <= 0.05


def test_holm_adjusted_p_values_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
