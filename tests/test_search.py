"""Search strategies where everything can be enumerated: the choice and the cost of each are known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from math import log
from statistics import fmean
from typing import Any

import pytest
from toy_search import PROMPT, ToyWorld

from distill import catalog
from distill.evaluation.statistics import pass_at_k
from distill.evaluation.voting import Sample, majority_at_k
from distill.types import Finish
from pipeline.errors import InputError
from rl.search.adaptive import AdaptiveVote
from rl.search.allocation import Allocation
from rl.search.base import Draft, Piece
from rl.search.beam import Beam
from rl.search.drive import Result, Usage, run, run_joint
from rl.search.dvts import Dvts
from rl.search.lookahead import Lookahead
from rl.search.pool import mean_usage
from rl.search.ranked import BestOf, WeightedVote
from rl.search.settings import named
from rl.search.settled import at_least, certain, lead_is_real, leaders, settled
from rl.search.shifted import shifted, starts
from rl.search.single import Greedy, One
from rl.search.vote import Majority, elect


def piece(answer: str | None, tokens: int = 1) -> Piece:
    return Piece(f"{answer}", "p", answer or "", answer or "", answer, Finish.STOP, PROMPT, tokens)


def search(strategy: Any, samples: int, world: ToyWorld) -> Result:
    return run([(0, strategy.search(samples))], world)[0]


def says(answers: str) -> ToyWorld:
    """Whole responses with these answers, in order; "-" is a cut response."""
    return ToyWorld(whole=lambda _, index: None if answers[index] == "-" else answers[index])


# -- votes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "weights", "winner"),
    [
        ("abb", None, "b"),
        ("abba", None, "a"),  # a tie: the first wins
        ("-bb", None, "b"),
        ("--", None, None),
        ("abb", [0.9, 0.3, 0.3], "a"),
        ("abb", [0.9, 0.5, 0.5], "b"),
    ],
)
def test_the_largest_sum_wins_a_vote_and_the_first_answer_wins_a_tie(
    answers: str, weights: list[float] | None, winner: str | None
) -> None:
    choice = elect([piece(None if a == "-" else a) for a in answers], weights)
    assert choice.piece.ballot == winner
    assert (choice.weights[0][0] if choice.weights else None) == winner


def test_the_majority_over_all_orders_equals_the_exact_estimate() -> None:
    """Compared with `distill.evaluation.voting`, which counts subsets and breaks ties by lot."""
    answers, right, k = "aabbc-", "a", 3
    samples = [Sample(None if a == "-" else a, float(a == right)) for a in answers]
    orders = list(product(range(len(answers)), repeat=k))
    orders = [order for order in orders if len(set(order)) == k]
    won = sum(
        search(Majority(), k, says("".join(answers[i] for i in order))).choice.piece.ballot == right for order in orders
    )
    assert won / len(orders) == pytest.approx(majority_at_k(samples, k))


@dataclass
class Deck:
    """A world with these samples in this order; a sample's text determines its score."""

    pieces: Sequence[Piece]
    scores: dict[str, float]

    def draw(self, wanted: Sequence[tuple[int, Draft]]) -> list[Piece]:
        return [self.pieces[draft.index] for _, draft in wanted]

    def score(self, pieces: Sequence[tuple[int, Piece]]) -> list[list[float]]:
        return [[self.scores[piece.text]] * 2 for _, piece in pieces]

    def judge(self, pieces: Sequence[tuple[int, Piece]]) -> list[bool]:
        return [piece.ballot == "a" for _, piece in pieces]


SAID = [("one", "a"), ("one", "a"), ("two", "b"), ("three", "a"), ("four", "b"), ("cut", None)]
"""Text and answer of six samples, two of which are equal."""


@pytest.mark.parametrize("strategy", [One(), Majority(), BestOf(by="x"), BestOf(by="verifier"), WeightedVote(by="x")])
@pytest.mark.parametrize(
    "ranks",
    [
        (0.9, 0.21, 0.35, 0.72, 0.8),
        (0.11, 0.2, 0.15, 0.72, 0.95),
        (0.4, 0.9, 0.6, 0.07, 0.3),
        (1e-290, 1e-291, 1e-289, 0.4, 1e-288),  # their squares underflow
    ],
)
def test_estimates_over_subsets_equal_the_strategys_means_over_all_orders(strategy: Any, ranks: Any) -> None:
    scores = dict(zip(("one", "two", "three", "four", "cut"), ranks, strict=True))
    pieces = [
        Piece(str(n), "p", text, text, answer, Finish.STOP, PROMPT, len(text)) for n, (text, answer) in enumerate(SAID)
    ]
    samples = [Sample(p.ballot, float(p.ballot == "a"), p.tokens, 2 * log(scores[p.text])) for p in pieces]
    for k in (1, 3, 4):
        orders = list(permutations(pieces, k))
        found = [run([(0, strategy.search(k))], Deck(order, scores))[0] for order in orders]
        right = fmean(result.choice.piece.ballot == "a" for result in found)
        assert strategy.over_subsets(samples, strategy.takes(k)) == pytest.approx(right)
        usage = mean_usage(pieces, strategy.takes(k), "scorer" in strategy.needs)
        for kind in ("prompt", "sampled", "scored", "calls"):
            assert getattr(usage, kind) == pytest.approx(fmean(getattr(result.usage, kind) for result in found))


def test_best_of_takes_the_highest_score_or_the_first_verified_answer() -> None:
    world = says("-bcab")
    world.values = lambda text: {"": [0.99], "b": [0.5, 0.9], "c": [0.6, 0.6], "a": [0.9, 0.4]}[text]
    assert search(BestOf(), 5, world).choice.piece.ballot == "b"  # .45 against .36; a cut response has no answer
    assert search(BestOf(aggregate="minimum"), 5, world).choice.piece.ballot == "c"
    assert search(BestOf(aggregate="last"), 3, world).choice.piece.ballot == "b"
    assert search(BestOf(by="verifier"), 5, world).choice.piece.ballot == "a"
    weighted = search(WeightedVote(), 5, world)
    assert dict(weighted.choice.weights) == pytest.approx({"b": 0.9, "c": 0.36, "a": 0.36})


class TakesCut(Deck):
    def judge(self, pieces: Sequence[tuple[int, Piece]]) -> list[bool]:
        return [piece.text == "cut" for _, piece in pieces]


def test_a_perfect_judge_takes_a_right_response_that_was_cut_off() -> None:
    """So that best_of by verifier is pass@k: such a response has no vote, but its text holds the answer."""
    deck = TakesCut([piece("b"), replace(piece(None), text="cut"), piece("c")], {})
    assert run([(0, BestOf(by="verifier").search(3))], deck)[0].choice.piece.text == "cut"
    samples = [Sample("b", 0.0), Sample(None, 1.0), Sample("c", 0.0)]
    assert BestOf(by="verifier").over_subsets(samples, 2) == pass_at_k(3, 1, 2)


def test_responses_are_ranked_even_where_products_of_steps_underflow() -> None:
    """The product underflows to zero, but its factors still rank and weight the responses."""
    world = says("baac")
    world.values = lambda text: {"a": [0.1] * 400, "b": [0.1] * 399 + [0.15], "c": [0.05] * 400}[text]
    assert search(BestOf(), 4, world).choice.piece.ballot == "b"
    weighted = search(WeightedVote(), 4, world).choice
    assert weighted.piece.ballot == "a" and weighted.weights[0][1] == pytest.approx(weighted.weights[1][1] * 4 / 3)
    small = ToyWorld(values=lambda text: [value / 1e200 for value in worth(text)])
    assert search(Beam(width=2, final="best"), 4, small).choice.piece.text == "c\nb\nb\n"


def test_the_bill_counts_each_trace_and_each_scored_text_once() -> None:
    """Of five responses one is cut and two are equal: five calls, four texts."""
    world = says("-bcab")
    assert search(Majority(), 5, world).usage == Usage(prompt=5 * PROMPT, sampled=4 * 2 + 1, calls=5)
    by_prm = search(WeightedVote(), 5, world).usage
    assert by_prm == Usage(5 * PROMPT, 9, scored=(PROMPT + 1) + 3 * (PROMPT + 2), calls=5)
    assert by_prm.tokens == by_prm.sampled + by_prm.scored
    assert search(Greedy(), 16, world).usage.calls == 1


# -- when a vote is settled -------------------------------------------------------------------


def test_a_vote_is_certain_when_no_remaining_votes_can_change_the_winner() -> None:
    for cast, left in [(cast, left) for n in range(5) for cast in product("abc", repeat=n) for left in range(4)]:
        if not cast:
            continue
        winner = elect([piece(a) for a in cast]).piece.ballot
        ends = [elect([piece(a) for a in (*cast, *rest)]).piece.ballot for rest in product("abcd", repeat=left)]
        unsure = any(end != winner for end in ends)
        first, second = leaders(cast)
        assert not (certain(first, second, left) and unsure)
        if not unsure:  # the exception is the lead that a tie would still give to the first answer
            assert certain(first, second, left) or first - second == left


def test_the_beta_tail_equals_its_integral() -> None:
    cells = 20_000
    for first, second in [(0, 0), (4, 0), (6, 1), (3, 3), (9, 4)]:
        grid = [(i + 0.5) / cells for i in range(cells)]
        density = [p**first * (1 - p) ** second for p in grid]
        above = sum(d for p, d in zip(grid, density, strict=True) if p > 0.5) / sum(density)
        assert lead_is_real(first, second) == pytest.approx(above, abs=1e-6)
    assert lead_is_real(4, 0) == 31 / 32


@pytest.mark.parametrize("confidence", [None, 0.95, 0.8])
def test_adaptive_votes_stop_exactly_where_the_rule_says(confidence: float | None) -> None:
    """For every sequence of seven answers: no more are drawn than if the rule were asked after each."""
    strategy = AdaptiveVote(stop="certain") if confidence is None else AdaptiveVote(confidence=confidence)
    most = 7
    for sequence in product("ab-", repeat=most):
        votes = [None if a == "-" else a for a in sequence]
        stops = next(n for n in range(most + 1) if settled(*leaders(votes[:n]), most - n, confidence))
        found = search(strategy, most, says("".join(sequence)))
        assert found.usage.calls == stops
        if confidence is None and any(votes):
            everything = elect([piece(v) for v in votes])
            assert found.choice.piece.ballot == everything.piece.ballot
    assert at_least(0, 0, 16, 0.95) == 4 and at_least(3, 1, 12, 0.95) == 3 and at_least(8, 7, 1, None) == 1


# -- one total for all ------------------------------------------------------------------------


def test_a_total_budget_goes_to_unsettled_votes_and_is_not_exceeded() -> None:
    """Four problems: two are unanimous, one has a different answer every time, one has no answer."""
    votes = [lambda i: "a", lambda i: "b", lambda i: "abcdefgh"[i], lambda i: None]
    world = ToyWorld(whole=lambda problem, index: votes[problem](index))
    results = run_joint(Allocation().search_all(4, samples=5, stored=8), 4, world)
    calls = [result.usage.calls for result in results]
    assert calls == [4, 4, 6, 6]  # 4 settle a unanimous vote; the rest of the total goes to the others in equal parts
    spent, first = sum(r.usage.sampled for r in results), 2 + 2 + 2 + 1
    assert 0 <= 5 * first - spent < 2  # the next sample might take two
    assert [r.choice.piece.ballot for r in results] == ["a", "b", "a", None]


def test_the_rest_of_a_total_budget_goes_to_the_least_settled_vote() -> None:
    """Two answers each, and tokens for one more."""
    votes = ["aaaa", "abab", "aaaa"]
    world = ToyWorld(whole=lambda problem, index: votes[problem][index])
    results = run_joint(Allocation(tokens=3 * 2 * 2 + 2).search_all(3, samples=1, stored=4), 3, world)
    assert [result.usage.calls for result in results] == [2, 3, 2]


def test_a_total_budget_used_up_by_long_answers_is_not_exceeded() -> None:
    """Room for three more of the first one's length is used up by three longer ones: no problem gets a third."""
    world = ToyWorld(whole=lambda problem, index: "abcdefgh"[index] * (1 + 2 * index))
    results = run_joint(Allocation(tokens=6 * 2 + 3 * 2).search_all(6, samples=1, stored=8), 6, world)
    assert sorted(result.usage.calls for result in results) == [1, 1, 1, 2, 2, 2]


def test_a_total_budget_below_one_answer_per_problem_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"a total of 5 tokens is less than one answer to each of the 4 problems .*\(8\)"
    ):
        run_joint(Allocation(tokens=5).search_all(4, 1, 8), 4, ToyWorld())


def test_no_problem_gets_more_samples_than_allowed() -> None:
    results = run_joint(Allocation(most=3).search_all(2, 100, stored=8), 2, ToyWorld())
    assert [result.usage.calls for result in results] == [3, 3]


# -- step by step -----------------------------------------------------------------------------


def worth(text: str) -> list[float]:
    """A step is worth more the later its letter, so the best response is "c c c"."""
    return [{"a": 0.2, "b": 0.5, "c": 0.8}[step] for step in text.split()]


def test_beam_search_keeps_the_best_at_a_known_cost() -> None:
    """Budget 4, width 2: 4 first steps, of which the best 2 continue with 2 steps each, twice. Steps are a, b, c by
    index, so the best first steps are c and b, and each continues with a and b."""
    found = search(Beam(width=2, final="best"), 4, ToyWorld(values=worth))
    assert found.choice.piece.text == "c\nb\nb\n"
    drawn = 4 + 4 + 4
    assert (found.usage.calls, found.usage.sampled) == (drawn, drawn)
    assert found.usage.prompt == 4 * PROMPT + 4 * (PROMPT + 1) + 4 * (PROMPT + 2)
    # "a" comes twice among the first four: three texts, then four, then four
    assert found.usage.scored == 3 * (PROMPT + 1) + 4 * (PROMPT + 2) + 4 * (PROMPT + 3)


def test_equal_texts_are_one_beam() -> None:
    """ "c" comes twice at first, and takes one of the two places."""
    world = ToyWorld(steps=2, says=lambda prefix, index: "abc"[index % 3] if prefix else "ccba"[index], values=worth)
    found = search(Beam(width=2), 4, world)
    assert dict(found.choice.weights) == pytest.approx({"b": 0.8 * 0.5 + 0.5 * 0.5}) and world.calls == [4, 4]


def test_beam_search_over_everything_finds_the_best_response() -> None:
    """With room for all 27 responses it is exhaustive search."""
    best = max(
        ("\n".join(r) + "\n" for r in product("abc", repeat=3)),
        key=lambda text: worth(text)[0] * worth(text)[1] * worth(text)[2],
    )
    found = search(Beam(width=3, final="best"), 27, ToyWorld(values=worth))
    assert found.choice.piece.text == best == "c\nc\nc\n"


def test_dvts_follows_the_best_step_in_each_separate_tree() -> None:
    """Budget 4, width 2: one tree sees samples 0 and 1 (a, b), the other 2 and 3 (c, a)."""
    world = ToyWorld(values=worth)
    found = search(Dvts(width=2), 4, world)
    assert dict(found.choice.weights) == pytest.approx({"b": 0.5**3, "c": 0.8**3})
    assert found.choice.piece.text == "c\nc\nc\n"
    assert (found.usage.calls, world.calls) == (12, [4, 4, 4])


def test_lookahead_avoids_a_trap_that_beam_search_falls_into() -> None:
    """ "c" looks best at first and leads to nothing."""

    def traps(text: str) -> list[float]:
        steps = text.split()
        return [0.9 if step == "c" and at == 0 else 0.01 if steps[0] == "c" else 0.6 for at, step in enumerate(steps)]

    world = ToyWorld(values=traps)
    greedy_beam = search(Beam(width=3, final="best"), 3, world)
    ahead = search(Lookahead(width=3, ahead=1, final="best"), 3, world)
    assert greedy_beam.choice.piece.text[0] == "c" and ahead.choice.piece.text[0] != "c"
    # three steps and three lookahead steps, twice; the last three have ended and need no lookahead
    assert (greedy_beam.usage.calls, ahead.usage.calls) == (9, 15)


def test_a_budget_that_is_no_multiple_of_the_width_is_refused() -> None:
    with pytest.raises(InputError, match="a budget of 6 samples is not a multiple of the search's width, 4"):
        search(Beam(), 6, ToyWorld())


# -- many at once -----------------------------------------------------------------------------


def test_searches_run_together_give_the_results_of_each_alone() -> None:
    """All kinds at once; each kind of need takes one call per round."""
    kinds: list[Any] = [Majority(), AdaptiveVote(), BestOf(), BestOf(by="verifier"), Beam(width=2), Dvts(width=2)]
    world = ToyWorld(values=lambda text: [0.1 + (len(text) + ord(text[0])) % 7 / 10], right="3")
    together = run([(n, kind.search(4)) for n, kind in enumerate(kinds)], world)
    assert len(world.calls) <= 4
    for n, (kind, found) in enumerate(zip(kinds, together, strict=True)):
        alone = run([(n, kind.search(4))], world)[0]
        assert (alone.choice, alone.usage) == (found.choice, found.usage)


def test_a_shifted_search_takes_the_same_samples_from_another_start() -> None:
    world = says("abcd")
    found = run([(0, shifted(Majority().search(2), start, 4)) for start in starts(4, 8)], world)
    assert [result.choice.piece.ballot for result in found] == ["a", "b", "c", "d"]
    assert starts(16, 8) == [0, 2, 4, 6, 8, 10, 12, 14] and starts(3, 8) == [0, 1, 2]


# -- by name ----------------------------------------------------------------------------------


def test_every_strategy_of_the_catalog_makes_a_choice_and_declares_its_needs() -> None:
    for name in catalog.names("strategies"):
        strategy = named(name).strategy
        assert strategy.needs <= {"scorer", "verifier", "steps"} and type(strategy).__doc__
        if isinstance(strategy, Allocation):
            result = run_joint(strategy.search_all(1, 4, 4), 1, ToyWorld())[0]
        else:
            result = search(strategy, 4, ToyWorld())
        assert result.choice.piece.ballot is not None and result.usage.sampled > 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("beem", "no strategy is called 'beem'; did you mean 'beam'?"),
        ({"beam": {"widht": 2}}, "beam.widht: Extra inputs are not permitted"),
        ({"beam": {}, "dvts": {}}, "expected the name of a strategy"),
        (3, "expected the name of a strategy"),
    ],
)
def test_an_unknown_strategy_is_reported(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        named(spec)


def test_a_label_names_the_settings_that_are_not_defaults() -> None:
    assert named({"beam": {"width": 8, "final": "best"}}).label == "beam width=8 final=best"
    assert named({"beam": {"width": 4}}).label == named("beam").label == "beam"
    by = named({"beam": {"by": "mine", "width": 8}})
    assert (by.label, by.way, by.by) == ("beam width=8 by mine", "beam width=8", "mine")


def test_a_strategy_without_a_named_scorer_runs_with_each_scorer() -> None:
    assert [each.label for each in named("weighted").each(["a", "b"])] == ["weighted by a", "weighted by b"]
    assert [each.label for each in named({"weighted": {"by": "b"}}).each(["a", "b"])] == ["weighted by b"]
    for alone in ("majority", {"best_of": {"by": "verifier"}}):
        assert named(alone).each(["a", "b"]) == [named(alone)]
