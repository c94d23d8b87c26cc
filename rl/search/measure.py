"""Every strategy with every budget on the same problems: run, judged, kept, and brought into figures.

Called by `rl.stages.search`, which says what is to be measured; the maths is `rl.search.curves`.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from rl.search.shifted import shifted, starts
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
    for named in settings.strategies:
        before, points = set(world.verdicts.values()), []
        for budget in settings.budgets:
            stop_check(context.stopping)
            world.label = f"{named.label}, {budget}"
            runs = _runs(named, budget, settings, world)
            points.append(_point(context, world, named.label, budget, runs, votes))
        members += [(named.label, key) for key in world.verdicts.values() if key not in before]
        told[named.label] = {"kind": named.name, "points": points, "saves": _saving(points, votes)}
        context.note(f"{named.label}: {_said(points[-1])}")
    figures = {
        "problems": len(world.tasks),
        "samples": settings.pool,
        "tokens_per_sample": round(votes.tokens, 2),
        "strategies": told,
    }
    return figures, members


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
        joint = run_joint(strategy.search_all(count, budget, pool), count, world)
        return [(number, 0, result) for number, result in enumerate(joint)]
    if not strategy.independent:
        found = run([(number, strategy.search(budget)) for number in range(count)], world)
        return [(number, 0, result) for number, result in enumerate(found)]
    places = [(number, start) for start in starts(pool, settings.orders) for number in range(count)]
    found = run([(number, shifted(strategy.search(budget), start, pool)) for number, start in places], world)
    return [(*place, result) for place, result in zip(places, found, strict=True)]


def _point(
    context: Context, world: StoredWorld, label: str, budget: int, runs: Sequence[Run], votes: Votes
) -> dict[str, Any]:
    """A strategy with a budget: judged, kept, and measured."""
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
    return curves.point(budget, outcomes, votes)


def _saving(points: Sequence[dict[str, Any]], votes: Votes) -> dict[str, Any] | None:
    """What the most accurate point saves: the share of tokens less than a majority needs for the same accuracy. None
    where no majority of the stored samples is as accurate."""
    best = max(points, key=lambda point: (point["accuracy"], -point["tokens"]))
    needed = votes.needed(best["accuracy"])
    if needed is None:
        return None
    majority = needed * votes.tokens
    return {
        "accuracy": best["accuracy"], "samples": best["samples"], "tokens": best["tokens"],
        "majority_samples": round(needed, 2), "majority_tokens": round(majority, 2),
        "saved": round(1 - best["tokens"] / majority, 4),
    }  # fmt: skip


def _said(point: dict[str, Any]) -> str:
    low, high = point["ci95"]
    return (
        f"{100 * point['accuracy']:.1f}% (95%: {100 * low:.1f} to {100 * high:.1f}) with {point['samples']} samples, "
        f"{point['tokens']:,.0f} tokens"
    )
