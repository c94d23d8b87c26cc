"""Every strategy with every budget on the same problems: run, judged, kept, and brought into figures.

Called by `rl.stages.search`, which says what is to be measured; the maths is `rl.search.curves`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distill.types import Outcome as Verdict
from distill.voting import Sample
from pipeline.stage import Context, stop_check
from rl.search import curves
from rl.search.allocation import Allocation
from rl.search.base import Piece, whole
from rl.search.curves import Outcome, Votes
from rl.search.drive import Result, run, run_joint
from rl.search.settings import Named
from rl.search.shifted import shifted, shifted_joint, starts
from rl.search.stored import StoredWorld

if TYPE_CHECKING:
    from rl.stages.search import SearchSettings

SAMPLES = "samples"
"""The label of the members that all strategies choose from."""

Run = tuple[int, int, Result]
"""(number of the problem, the first sample taken, what came of it)."""


def measure(
    context: Context, settings: SearchSettings, world: StoredWorld
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The figures, and the members: (label, key of a verdict)."""
    votes = _votes(world, settings.pool)
    members = [(SAMPLES, key) for key in world.verdicts.values()]
    told: dict[str, Any] = {}
    scores: dict[str, list[tuple[dict[str, Any], curves.Scores]]] = {}
    for named in settings.named:
        before = set(world.verdicts.values())
        scores[named.label] = points = []
        for budget in settings.budgets:
            stop_check(context.stopping)
            world.label = f"{named.label}, {budget}"
            outcomes = _outcomes(context, world, named.label, budget, _runs(named, budget, settings, world))
            points.append((curves.point(budget, outcomes, votes), curves.by_problem(outcomes)))
        members += [(named.label, key) for key in world.verdicts.values() if key not in before]
        told[named.label] = {
            "kind": named.name, "needs": sorted(named.strategy.needs), "points": [point for point, _ in points],
        }  # fmt: skip
        context.note(f"{named.label}: {_said(points[-1][0])}")
    figures = {
        "problems": len(world.tasks),
        "samples": settings.pool,
        "tokens_per_sample": round(votes.tokens, 2),
        "strategies": told,
        "rivals": _rivals(settings.named, scores),
    }
    return figures, members


def _rivals(
    strategies: Sequence[Named], scores: Mapping[str, Sequence[tuple[dict[str, Any], curves.Scores]]]
) -> list[dict[str, Any]]:
    """Each search step by step, with each budget, against those that choose among whole responses by the same scores,
    at equal tokens."""
    searches = [named.label for named in strategies if "steps" in named.strategy.needs]
    others = [named.label for named in strategies if named.strategy.needs == {"prm"}]
    return [
        {"strategy": label, "samples": point["samples"], "against": other,
         **curves.rival(values, point["tokens"], curves.curve(scores[other]))}
        for label in searches
        for point, values in scores[label]
        for other in others
    ]  # fmt: skip


def _votes(world: StoredWorld, pool: int) -> Votes:
    """All samples that strategies of whole responses choose from: drawn, judged."""
    wanted = [(number, draft) for number in range(len(world.tasks)) for draft in whole(pool)]
    pieces = list(zip([number for number, _ in wanted], world.draw(wanted), strict=True))
    samples: dict[str, list[Sample]] = {}
    for (number, piece), outcome in zip(pieces, world.outcomes(pieces), strict=True):
        if outcome is not Verdict.UNVERIFIABLE:
            said = Sample(piece.ballot, float(outcome is Verdict.CORRECT), piece.tokens)
            samples.setdefault(world.tasks[number][0], []).append(said)
    return Votes(samples)


def _runs(named: Named, budget: int, settings: SearchSettings, world: StoredWorld) -> list[Run]:
    """A search of each problem; of strategies of whole responses, on several orders of the samples."""
    strategy, pool, count = named.strategy, settings.pool, len(world.tasks)
    if isinstance(strategy, Allocation):
        return [
            (number, start, result)
            for start in starts(pool, settings.orders)
            for joint in [shifted_joint(strategy.search_all(count, budget, pool), start, pool)]
            for number, result in enumerate(run_joint(joint, count, world))
        ]
    if not strategy.independent:
        found = run([(number, strategy.search(budget)) for number in range(count)], world)
        return [(number, 0, result) for number, result in enumerate(found)]
    places = [(number, start) for start in starts(pool, settings.orders) for number in range(count)]
    found = run([(number, shifted(strategy.search(budget), start, pool)) for number, start in places], world)
    return [(*place, result) for place, result in zip(places, found, strict=True)]


def _outcomes(context: Context, world: StoredWorld, label: str, budget: int, runs: Sequence[Run]) -> list[Outcome]:
    """What the searches of a strategy with a budget came to, judged and kept."""
    chosen: list[tuple[int, Piece]] = [(number, result.choice.piece) for number, _, result in runs]
    rows, outcomes = [], []
    for (number, start, result), verdict in zip(runs, world.outcomes(chosen), strict=True):
        problem, bill = world.tasks[number][0], result.bill
        correct = None if verdict is Verdict.UNVERIFIABLE else verdict is Verdict.CORRECT
        outcomes.append(Outcome(problem, correct, bill))
        rows.append({
            "run": context.fingerprint, "strategy": label, "budget": budget, "start": start, "problem_key": problem,
            "trace_key": result.choice.piece.key, "answer": result.choice.piece.ballot, "correct": correct,
            "calls": bill.calls, "prompt_tokens": bill.prompt, "sampled_tokens": bill.sampled,
            "scored_tokens": bill.scored,
        })  # fmt: skip
    world.store.append("searches", rows)
    return outcomes


def _said(point: dict[str, Any]) -> str:
    low, high = point["ci95"]
    return (
        f"{100 * point['accuracy']:.1f}% (95%: {100 * low:.1f} to {100 * high:.1f}) with {point['samples']} samples, "
        f"{point['tokens']:,.0f} tokens"
    )
