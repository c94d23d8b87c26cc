"""The curves of searches, exact on a few problems and equal to their definitions."""

from __future__ import annotations

from math import exp

import pytest
from toy_search import ToyWorld

from distill.evaluation.voting import Sample, majority_at_k
from distill.types import Finish
from rl.search.base import Piece
from rl.search.curves import Answered, Votes, curve, point, rival
from rl.search.drive import Usage
from rl.search.measure import in_words
from rl.search.pool import Drawn, Pool, ranking
from rl.search.ranked import BestOf
from rl.search.vote import Majority

SAMPLES = {
    "easy": [Sample(a, float(a == "r"), 10) for a in "rrrr"],
    "even": [Sample(a, float(a == "r"), 20) for a in "rwrw"],
    "hard": [Sample(a, float(a == "r"), 30) for a in "rwww"],
}


def outcomes(correct: str, tokens: int, scored: int = 0) -> list[Answered]:
    found = {"y": True, "n": False, "?": None}
    return [
        Answered(name, found[c], Usage(5, tokens, scored, 2)) for name, c in zip(SAMPLES, correct, strict=True)
    ]  # fmt: skip


def test_a_majority_of_a_fractional_number_of_samples_is_interpolated() -> None:
    votes = Votes(SAMPLES)
    assert (votes.most, votes.tokens) == (4, 20)
    assert votes.at(3) == {key: [majority_at_k(part, 3)] for key, part in SAMPLES.items()}
    between = votes.at(2.25)
    assert between["hard"][0] == pytest.approx(0.75 * votes.at(2)["hard"][0] + 0.25 * votes.at(3)["hard"][0])
    assert votes.at(99) == votes.at(4) and votes.at(0.3) == votes.at(1)


def test_a_point_counts_tokens_and_is_compared_at_equal_tokens() -> None:
    measured = point(4, outcomes("yyn", tokens=30, scored=15), Votes(SAMPLES))
    assert measured["accuracy"] == pytest.approx(2 / 3, abs=1e-4)
    assert (measured["sampled_tokens"], measured["scored_tokens"], measured["tokens"]) == (30, 15, 45)
    assert measured["tokens_saved"] == pytest.approx(1 - 45 / (4 * 20))
    equal = measured["against_majority"]["at_equal_tokens"]
    assert equal["samples"] == pytest.approx(45 / 20, abs=1e-2)
    majority = Votes(SAMPLES).at(45 / 20)
    expected = (2 - sum(values[0] for values in majority.values())) / 3
    assert equal["difference"] == pytest.approx(expected, abs=1e-4)
    assert measured["against_majority"]["at_equal_samples"]["samples"] == 4
    assert "clean_accuracy" not in measured


def test_a_majority_limited_by_the_stored_samples_reports_the_wished_number() -> None:
    equal = point(4, outcomes("yyn", tokens=130), Votes(SAMPLES))["against_majority"]["at_equal_tokens"]
    assert (equal["samples"], equal["wished"]) == (4, 130 / 20)


def test_clean_accuracy_leaves_out_problems_seen_in_training() -> None:
    first, *_ = outcomes("yyn", 10)
    measured = point(1, outcomes("yyn", 10), Votes(SAMPLES), {first.problem})
    assert (measured["accuracy"], measured["clean_accuracy"]) == (pytest.approx(2 / 3, abs=1e-4), 0.5)


def test_an_unverifiable_answer_is_neither_right_nor_wrong() -> None:
    assert point(1, outcomes("y?n", 10), Votes(SAMPLES))["accuracy"] == 0.5


def test_a_problem_with_few_judged_samples_does_not_limit_the_others() -> None:
    votes = Votes({**SAMPLES, "short": SAMPLES["even"][:2], "none": []})
    assert votes.most == 4 and votes.at(4) == Votes(SAMPLES).at(4)
    assert votes.at(2).keys() == {*SAMPLES, "short"} and votes.at(2.5).keys() == set(SAMPLES)


def test_unverifiable_samples_count_in_the_cost_and_not_in_the_accuracy() -> None:
    pieces = [Piece(str(n), "p", a, a, a, Finish.STOP, 10, 4) for n, a in enumerate("aab")]
    judged = [(piece, piece.ballot == "a") for piece in pieces]
    pool = Pool([Drawn("all", 0, pieces, judged), Drawn("two", 1, pieces, judged[1:]), Drawn("none", 2, pieces, [])])
    outcomes = pool.outcomes(Majority(), pool.samples(), 3)
    assert [(o.problem, o.correct) for o in outcomes] == [("all", 1.0), ("two", None), ("none", None)]
    assert {(o.usage.calls, o.usage.sampled, o.usage.prompt) for o in outcomes} == {(3, 12, 30)}
    alone = Pool(pool.problems[2:])
    nothing = point(3, alone.outcomes(Majority(), alone.samples(), 3), alone.votes())
    assert nothing["accuracy"] is None and nothing["against_majority"]["at_equal_tokens"] is None
    assert "no answer could be judged" in in_words(nothing)
    assert ranking({"none": []}) == {"auc": None, "auc_within": None}


def test_products_of_hundreds_of_steps_still_rank_where_they_underflow() -> None:
    pieces = [Piece(str(n), "p", a, a, a, Finish.STOP, 10, 4) for n, a in enumerate("abc")]
    pool = Pool([Drawn("p", 0, pieces, [(piece, piece.ballot == "b") for piece in pieces])])
    world = ToyWorld(values=lambda text: [0.1] * 399 + [{"a": 0.1, "b": 0.2, "c": 0.05}[text]])
    scored = pool.scored(world, "toy", "product")  # type: ignore[arg-type]
    ranks = [sample.score - scored["p"][1].score for sample in scored["p"]]
    assert [exp(rank) for rank in ranks] == pytest.approx([0.5, 1.0, 0.25])
    assert pool.ranking(world, "toy") == {"auc": 1.0, "auc_within": 1.0}  # type: ignore[arg-type]
    assert BestOf().over_subsets(scored["p"], 3) == 1.0


def test_two_strategies_are_compared_at_equal_tokens() -> None:
    """The other strategy is right on one problem of three for 10 tokens, and on all for 50."""
    cheap, dear = outcomes("ynn", 10), outcomes("yyy", 50)
    scores = [{o.problem: [float(o.correct or 0)] for o in each} for each in (cheap, dear)]
    other = curve([({"tokens": 50}, scores[1]), ({"tokens": 10}, scores[0])])
    ours = {key: [1.0] for key in SAMPLES}
    assert rival(ours, 30, other)["difference"] == pytest.approx(1 / 3, abs=1e-4)
    assert rival(ours, 500, other) | {"ci95": None} == {"tokens": 50, "difference": 0.0, "ci95": None}
    assert rival(ours, 10, other)["difference"] == pytest.approx(2 / 3, abs=1e-4)
