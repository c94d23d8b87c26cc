"""The rule of adaptive sampling is pure: the wanted samples depend on the verdicts, not on their order of arrival."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.adaptive.course import Course, Place, Quota
from distill.adaptive.rule import ERROR, Fate, Repeat, Result, Rule
from distill.types import Outcome, Problem

untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy

C, W, U = Outcome.CORRECT, Outcome.INCORRECT, Outcome.UNVERIFIABLE
LETTERS = {"c": C, "w": W, "u": U}


def results_of(letters: str) -> list[Outcome | None]:
    return [LETTERS.get(letter) for letter in letters]


def rules() -> st.SearchStrategy[Rule]:
    def build(
        accepted: int, more: int, trivial: int | None, hopeless: float | None, unknown: int | None, distinct: bool
    ) -> Rule:
        trivial = trivial if trivial and trivial < accepted else None
        return Rule(accepted, accepted + more, trivial, hopeless, unknown, distinct)

    return st.builds(
        build, st.integers(1, 4), st.integers(0, 6), st.none() | st.integers(1, 3),
        st.none() | st.sampled_from([0.2, 0.5, 0.8]), st.none() | st.integers(1, 4), st.booleans(),
    )  # fmt: skip


def one_at_a_time(rule: Rule, verdicts: Sequence[Result]) -> int:
    """The number of samples if each is requested only after the verdict on the one before."""
    tries = 0
    while rule.ended(verdicts[:tries]) is None:
        tries += 1
    return tries


def with_repeats(rule: Rule, verdicts: Sequence[Outcome], answers: Sequence[str]) -> list[Result]:
    """If the rule wants distinct answers, a correct answer that was given before becomes a repeat."""
    right = [answer if verdict is C else None for verdict, answer in zip(verdicts, answers, strict=True)]
    return [
        Repeat.REPEATED if rule.distinct and answer and answer in right[:at] else verdicts[at]
        for at, answer in enumerate(right)
    ]


def problem(number: int, source: str = "calc", difficulty: int | None = None) -> Problem:
    return Problem(f"{source}/{number}", f"{number}?", "1", "exact", source, difficulty=difficulty)


# -- one problem --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("letters", "expected"),
    [
        ("cc", (2, Fate.SATISFIED)),
        ("wucc", (4, Fate.SATISFIED)),
        ("wucw", None),
        ("wcwwww", (6, Fate.SHORT)),
        ("wwwwww", (6, Fate.HOPELESS)),
        ("wuuuuu", (6, Fate.HOPELESS)),
        ("uuu", (3, Fate.UNVERIFIABLE)),
        ("uuw", None),
        ("uu", None),
        ("c?c", None),
        ("", None),
    ],
)
def test_how_a_problem_ends(letters: str, expected: tuple[int, Fate] | None) -> None:
    assert Rule(accepted=2, most=6, unverifiable=3).ended(results_of(letters)) == expected


def test_a_trivial_problem_ends_after_its_first_samples() -> None:
    rule = Rule(accepted=4, most=8, trivial=2)
    assert rule.ended(results_of("cc")) == (2, Fate.TRIVIAL)
    assert rule.ended(results_of("cuccc")) == (5, Fate.SATISFIED)
    assert rule.ended(results_of("wccc")) is None


def test_a_repeated_answer_counts_as_correct_but_not_as_another_accepted_one() -> None:
    course = Course([problem(0)], Rule(accepted=2, most=4, distinct=True))
    assert course.start() == [(0, 0), (0, 1)]
    assert course.judged((0, 1), C, "same") == []  # it may still turn out to be a repeat: nothing is certain
    assert course.judged((0, 0), C, "same") == [(0, 2)]
    assert course.judged((0, 2), C, "other") == []
    assert (course.fate(0), course.accepted(0), course.repeated(0)) == (Fate.SATISFIED, 2, 1)
    rule = Rule(accepted=4, most=8, trivial=2, distinct=True)
    assert rule.ended([C, Repeat.REPEATED]) == (2, Fate.TRIVIAL)
    assert Rule(accepted=2, most=9, hopeless=0.4, distinct=True).ended([C, *[Repeat.REPEATED] * 7]) is None


def test_all_samples_that_are_certainly_wanted_are_requested_at_once() -> None:
    rule = Rule(accepted=3, most=5)
    assert [rule.certain(results_of(letters)) for letters in ("", "?w", "w", "ww", "www", "ccc", "wwwww")] == [
        3, 4, 4, 5, 5, 3, 5,
    ]  # fmt: skip
    assert Rule(accepted=4, most=8, trivial=2).certain(()) == 2
    assert Rule(accepted=4, most=8, trivial=2).certain(results_of("w")) == 5
    assert Rule(accepted=4, most=8, unverifiable=1).certain(()) == 1


@untimed
@given(rules(), st.data())
def test_certain_is_the_smallest_number_of_samples_that_a_problem_can_need(rule: Rule, data: Any) -> None:
    verdicts = data.draw(st.lists(st.sampled_from([C, W, U, None, None]), max_size=rule.most))
    verdicts += [None] * (min(rule.most, 6) - len(verdicts))
    unknown = verdicts.count(None)
    if unknown > (5 if rule.distinct else 6):
        return
    ends = []
    for guess in product([*Outcome, Repeat.REPEATED] if rule.distinct else Outcome, repeat=unknown):
        guesses = iter(guess)
        filled = [outcome or next(guesses) for outcome in verdicts]
        end = rule.ended(filled)
        ends.append(end[0] if end else len(filled) + 1)
    assert min(rule.certain(verdicts), len(verdicts) + 1) == min(ends)


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.4, 0.6, 0.9])
def test_a_problem_at_the_hopeless_rate_or_above_is_rarely_given_up(rate: float) -> None:
    """Enumerates all courses: the chance is at most 5% at the rate itself, and smaller above it."""
    rule = Rule(accepted=100, most=100, hopeless=rate)
    chances = []
    for true_rate in (rate, (1 + rate) / 2):
        lost = 0.0
        for right in product((C, W), repeat=12):
            if (end := rule.ended(right)) and end[1] is Fate.HOPELESS:
                correct = right.count(C)
                lost += true_rate**correct * (1 - true_rate) ** (12 - correct)
        chances.append(lost)
    assert chances[0] <= ERROR + 1e-12
    assert chances[1] <= chances[0]


def test_an_unsolved_problem_is_given_up_as_soon_as_the_error_bound_allows() -> None:
    """0.75 ** 10 > 0.05 >= 0.75 ** 11."""
    rule = Rule(accepted=2, most=64, hopeless=0.25)
    assert rule.ended([W] * 10) is None
    assert rule.ended([W] * 11) == (11, Fate.HOPELESS)
    assert rule.ended([U, *[W] * 10]) is None  # an unverifiable answer says nothing about the rate
    assert rule.ended([C, *[W] * 10]) is None


@untimed
@given(rules(), st.integers(0, 3), st.integers(0, 4), st.lists(st.sampled_from(Outcome), min_size=30, max_size=30))
def test_higher_limits_only_add_samples(rule: Rule, accepted: int, most: int, verdicts: list[Outcome]) -> None:
    more = Rule(rule.accepted + accepted, rule.most + accepted + most, rule.trivial, rule.hopeless, rule.unverifiable)
    assert one_at_a_time(more, verdicts) >= one_at_a_time(rule, verdicts)


# -- many problems ------------------------------------------------------------------------------


def in_order(
    problems: Sequence[Problem], rule: Rule, quotas: Sequence[Quota], verdicts: Sequence[Sequence[Result]]
) -> list[Place]:
    """The samples if problems, and the samples of each problem, are taken strictly one after the other."""
    left = [quota.accepted for quota in quotas]
    made = []
    for number, each in enumerate(problems):
        at = next((n for n, quota in enumerate(quotas) if quota.covers(each)), None)
        if quotas and (at is None or left[at] <= 0):
            continue
        tries = one_at_a_time(rule, verdicts[number])
        made += [(number, index) for index in range(tries)]
        if at is not None:
            left[at] -= verdicts[number][:tries].count(C)
    return made


QUOTAS = st.lists(
    st.builds(Quota, st.integers(1, 12), st.none() | st.sampled_from(["calc", "logic"]), st.none() | st.integers(1, 2)),
    max_size=3,
)


@settings(untimed, max_examples=300)
@given(rules(), QUOTAS, st.data())
def test_the_samples_do_not_depend_on_the_order_of_the_verdicts(rule: Rule, quotas: list[Quota], data: Any) -> None:
    count = data.draw(st.integers(0, 8))
    chance = random.Random(data.draw(st.integers(0, 1 << 32)))
    problems = [problem(n, chance.choice(["calc", "logic"]), chance.choice([1, 2, None])) for n in range(count)]
    weights = [[chance.random() for _ in Outcome] for _ in problems]
    verdicts = [chance.choices(list(Outcome), weights[n], k=rule.most) for n in range(count)]
    answers = [chance.choices("ab" if n % 2 else "abcdef", k=rule.most) for n in range(count)]
    results = [with_repeats(rule, *both) for both in zip(verdicts, answers, strict=True)]
    expected = in_order(problems, rule, quotas, results)

    course = Course(problems, rule, quotas)
    waiting = course.start()
    asked = list(waiting)
    while waiting:
        assert set(asked) <= set(expected) <= set(course.may_want())  # none is wasted, and the bounds hold
        assert not course.complete
        place = waiting.pop(chance.randrange(len(waiting)))
        number, index = place
        new = course.judged(place, verdicts[number][index], answers[number][index])
        waiting += new
        asked += new
    assert course.complete
    assert len(asked) == len(set(asked))
    assert list(course.members()) == expected == sorted(course.may_want())
    done, total = course.progress()
    assert done <= total and (quotas or done == total)


def test_a_quota_starts_only_the_problems_that_it_certainly_needs() -> None:
    problems = [problem(n) for n in range(10)] + [problem(n, "logic", 3) for n in range(3)]
    course = Course(problems, Rule(accepted=2, most=4), [Quota(4, "calc"), Quota(1, "logic", 3)])
    assert course.start() == [(0, 0), (0, 1), (1, 0), (1, 1), (10, 0), (10, 1)]
    assert course.judged((0, 0), W) == [(0, 2)]
    assert course.judged((0, 2), W) == [(0, 3)]
    assert course.judged((0, 1), W) == [(2, 0), (2, 1)]  # 0 yields one at best, and 1 two: 3 of 4
    assert course.judged((0, 3), W) == []
    assert [course.fate(n) for n in (0, 1)] == [Fate.HOPELESS, None]


def test_quotas_limit_sampling_to_the_problems_that_they_cover() -> None:
    problems = [problem(0, "calc"), problem(1, "logic"), problem(2, "code")]
    assert {n for n, _ in Course(problems, Rule(1, 1)).start()} == {0, 1, 2}
    course = Course(problems, Rule(1, 1), [Quota(1, "logic"), Quota(5, "calc")])
    assert {n for n, _ in course.start()} == {0, 1}
