"""Run every strategy with every budget on the same problems; judge and store the results, and turn them into figures.

Called by `rl.stages.search`, which decides what is measured; the maths is in `rl.search.curves`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from distill.types import Outcome
from pipeline.stage import Context, stop_check
from rl.search import curves, pool
from rl.search.allocation import Allocation
from rl.search.base import ByScore, Exact, Piece
from rl.search.curves import Answered, Votes
from rl.search.drive import Result, run, run_joint
from rl.search.pool import Pool, Samples
from rl.search.settings import Named
from rl.search.shifted import shifted, shifted_joint, starts
from rl.search.stored import StoredWorld

if TYPE_CHECKING:
    from rl.stages.search import SearchSettings

SAMPLES = "samples"
"""The label of the members that all strategies choose from."""

Run = tuple[int, int, Result]
"""(number of the problem, the first sample taken, the result)."""
Measured = tuple[dict[str, Any], curves.Scores]
"""(a point of a curve, the accuracies by problem behind it)."""


def measure(
    context: Context, settings: SearchSettings, world: StoredWorld, seen: Set[str]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The figures, and the members: (label, key of a verdict). ``seen`` are problems that the model was trained on."""
    found = pool.drawn(world, settings.pool)
    votes = found.votes()
    members = [(SAMPLES, key) for key in world.verdicts.values()]
    scorers = {label: _scorer(context, label, found, world) for label in settings.scorers}
    by_strategy: dict[str, Any] = {}
    scores: dict[str, list[Measured]] = {}
    for named in settings.named:
        before = set(world.verdicts.values())
        world.by = named.by or ""
        scores[named.label] = points = _points(context, settings, world, named, found, votes, seen)
        members += [(named.label, key) for key in world.verdicts.values() if key not in before]
        by_strategy[named.label] = {
            "kind": named.name, "way": named.way, "by": named.by, "needs": sorted(named.strategy.needs),
            "points": [point for point, _ in points],
        }  # fmt: skip
        context.note(f"{named.label}: {in_words(points[-1][0])}")
    figures = {
        "problems": len(world.tasks),
        "samples": settings.pool,
        "tokens_per_sample": round(votes.tokens, 2),
        "scorers": scorers,
        "strategies": by_strategy,
        "rivals": _rivals(settings.named, scores),
    }
    return figures, members


def _scorer(context: Context, label: str, found: Pool, world: StoredWorld) -> dict[str, Any]:
    """How well a scorer ranks all samples, by the product over their steps."""
    ranking = found.ranking(world, label)
    shown = ["n/a" if ranking[name] is None else f"{ranking[name]:.3f}" for name in ("auc", "auc_within")]
    context.note(f"{label}: AUC of right against wrong samples {shown[0]}, within a problem {shown[1]}")
    return ranking


def _points(
    context: Context, settings: SearchSettings, world: StoredWorld, named: Named, found: Pool, votes: Votes,
    seen: Set[str],
) -> list[Measured]:  # fmt: skip
    """The points of a strategy, one per budget, each with the accuracies by problem."""
    points: list[Measured] = []
    strategy = named.strategy
    samples = _samples_of(strategy, found, world) if isinstance(strategy, Exact) else {}
    for budget in settings.budgets:
        stop_check(context.stopping)
        world.label = f"{named.label}, {budget}"
        if isinstance(strategy, Exact):
            outcomes = found.outcomes(strategy, samples, budget)
            rows = [_row(outcome) for outcome in outcomes]
        else:
            outcomes, rows = _judged(world, _runs(named, budget, settings, world))
        kept = {"run": context.fingerprint, "strategy": named.label, "budget": budget}
        world.store.append("searches", [kept | row for row in rows])
        points.append((curves.point(budget, outcomes, votes, seen), curves.by_problem(outcomes)))
    return points


def _samples_of(strategy: Exact, found: Pool, world: StoredWorld) -> Samples:
    """The stored samples, with the scores that a strategy goes by, if any."""
    if isinstance(strategy, ByScore) and "scorer" in strategy.needs:
        return found.scored(world, world.by, strategy.aggregate)
    return found.samples()


def _rivals(strategies: Sequence[Named], scores: Mapping[str, Sequence[Measured]]) -> list[dict[str, Any]]:
    """Each search step by step, with each budget, against the strategies that choose among whole responses by the same
    scores, at equal tokens."""
    return [
        {"strategy": one.label, "samples": point["samples"], "against": other.label,
         **curves.rival(values, point["tokens"], curves.curve(scores[other.label]))}
        for one in strategies
        if "steps" in one.strategy.needs
        for point, values in scores[one.label]
        for other in strategies
        if other.strategy.needs == {"scorer"} and other.by == one.by
    ]  # fmt: skip


def _runs(named: Named, budget: int, settings: SearchSettings, world: StoredWorld) -> list[Run]:
    """One search of each problem; for strategies of whole responses, one on each of several orders of the samples."""
    strategy, stored, count = named.strategy, settings.pool, len(world.tasks)
    if isinstance(strategy, Allocation):
        return [
            (number, start, result)
            for start in starts(stored, settings.orders)
            for joint in [shifted_joint(strategy.search_all(count, budget, stored), start, stored)]
            for number, result in enumerate(run_joint(joint, count, world))
        ]
    if not strategy.independent:
        found = run([(number, strategy.search(budget)) for number in range(count)], world)
        return [(number, 0, result) for number, result in enumerate(found)]
    places = [(number, start) for start in starts(stored, settings.orders) for number in range(count)]
    found = run([(number, shifted(strategy.search(budget), start, stored)) for number, start in places], world)
    return [(*place, result) for place, result in zip(places, found, strict=True)]


def _judged(world: StoredWorld, runs: Sequence[Run]) -> tuple[list[Answered], list[dict[str, Any]]]:
    """The judged outcomes of a strategy's searches with a budget, and their rows."""
    chosen: list[tuple[int, Piece]] = [(number, result.choice.piece) for number, _, result in runs]
    outcomes, rows = [], []
    for (number, start, result), verdict in zip(runs, world.outcomes(chosen), strict=True):
        correct = None if verdict is Outcome.UNVERIFIABLE else float(verdict is Outcome.CORRECT)
        outcomes.append(Answered(world.tasks[number][0], correct, result.usage))
        rows.append(_row(outcomes[-1], start, result.choice.piece))
    return outcomes, rows


def _row(outcome: Answered, start: int = 0, chosen: Piece | None = None) -> dict[str, Any]:
    usage = outcome.usage
    return {
        "start": start, "problem_key": outcome.problem, "trace_key": chosen and chosen.key,
        "answer": chosen and chosen.ballot, "correct": outcome.correct, "calls": usage.calls,
        "prompt_tokens": usage.prompt, "sampled_tokens": usage.sampled, "scored_tokens": usage.scored,
    }  # fmt: skip


def in_words(point: dict[str, Any]) -> str:
    low, high = point["ci95"]
    share = f"{100 * point['accuracy']:.1f}%" if point["accuracy"] is not None else "no answer could be judged"
    return (
        f"{share} (95%: {100 * low:.1f} to {100 * high:.1f}) for {point['calls']:,.4g} calls and "
        f"{point['tokens']:,.0f} tokens a problem, with a budget of {point['samples']}"
    )
