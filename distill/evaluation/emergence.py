"""How reinforcement learning changes the thinking: behaviours, corrections and lengths over the steps of a run.

Everything is computed from stored rollouts; nothing is sampled. Steps are grouped into `BINS` points. Lengths are means
over all rollouts of a point; texts are read in a subset that their keys determine. The behaviours are those of
`distill.evaluation.behaviours`. A correction is judged by its effect: if the thinking names an answer other than the
final one, the problem's verifier judges both, and the answer went from wrong to right, from right to wrong, or neither.
Unverifiable answers are not counted, and a verifier with a judge is not called.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from distill import verification
from distill.evaluation import behaviours
from distill.evaluation.statistics import rounded
from distill.store import Store
from distill.store.records import Row, problem_of
from distill.thinking import Response
from distill.types import Outcome, Problem, Verdict
from distill.verifiers.compose import Spec
from pipeline.manifest import Manifest

BINS = 30
CHANGES = {
    (Outcome.INCORRECT, Outcome.CORRECT): "wrong to right",
    (Outcome.CORRECT, Outcome.INCORRECT): "right to wrong",
    (Outcome.INCORRECT, Outcome.INCORRECT): "wrong to wrong",
    (Outcome.CORRECT, Outcome.CORRECT): "right in other words",
}

Asked = tuple[Any, Spec, Problem, Response]
Judge = Callable[[Iterable[Asked]], Iterable[tuple[Any, Verdict]]]
"""Maps (key, verifier, problem, response) to (key, verdict), in any order."""


@dataclass(frozen=True, slots=True)
class Looking:
    """What to look for in the texts, and in how many rollouts of each point."""

    phrases: behaviours.Phrases = field(default_factory=behaviours.shipped)
    candidates: Sequence[str] = behaviours.CANDIDATES
    each: int = 200


LENGTHS = """
    SELECT source || coalesce('/' || difficulty, '') AS of, (step - 1) * $bins // $steps AS bin, max(step) AS step,
        sum(tokens * rollouts) / sum(rollouts) AS tokens, sum(rollouts)::BIGINT AS rollouts
    FROM rollout_lengths WHERE run = $run GROUP BY ALL ORDER BY ALL
"""
TEXTS = """
    WITH chosen AS (
        SELECT trace_key, problem_key, reward, (step - 1) * $bins // $steps AS bin FROM rollouts WHERE run = $run
        QUALIFY row_number() OVER (PARTITION BY bin ORDER BY trace_key) <= $each)
    SELECT c.bin, c.reward, t.trace_key, t.thinking, t.answer, t.closed, p.*
    FROM chosen c JOIN traces t USING (trace_key) JOIN problems p USING (problem_key) ORDER BY c.bin, t.trace_key
"""


def observe(store: Store, made: Manifest, looking: Looking, judge: Judge) -> dict[str, Any] | None:
    """The figures of the run that ``made`` records; None if it has no rollouts."""
    run = made.fingerprint
    steps = store.rows("SELECT max(step) AS steps FROM rollouts WHERE run = ?", [run])[0]["steps"]
    if not steps:
        return None
    asked = {"run": run, "bins": min(BINS, steps), "steps": steps}
    lengths = store.rows(LENGTHS, asked)
    texts = store.rows(TEXTS, {**asked, "each": looking.each})
    last = {row["bin"]: row["step"] for row in sorted(lengths, key=lambda row: row["step"])}
    changes = list(_changes(texts, made.identity.settings.get("verifier"), looking, judge))
    return {
        "steps": [last[at] for at in sorted(last)],
        "looked_at": len(texts),
        "behaviours": _behaviours(texts, looking.phrases),
        "lengths": _lengths(lengths),
        "changes": [dict(Counter(c for at, _, c in changes if at == place)) for place in sorted(last)],
        "changes_by_source": _by_source(changes),
    }


def _behaviours(texts: Sequence[Row], phrases: behaviours.Phrases) -> dict[str, dict[str, Any]]:
    """For each behaviour, the share of rollouts that show it by point, and the mean reward with and without it."""
    found = {}
    for name, patterns in phrases.items():
        shown = [bool(behaviours.count(patterns, row["thinking"])) for row in texts]
        by_bin: dict[int, list[bool]] = defaultdict(list)
        for row, one in zip(texts, shown, strict=True):
            by_bin[row["bin"]].append(one)
        rewards: dict[bool, list[float]] = {True: [], False: []}
        for row, one in zip(texts, shown, strict=True):
            if row["reward"] is not None:
                rewards[one].append(row["reward"])
        found[name] = {
            "shares": [rounded(fmean(by_bin[at])) for at in sorted(by_bin)],
            "share": rounded(fmean(shown)),
            "reward_with": _mean(rewards[True]),
            "reward_without": _mean(rewards[False]),
        }
    return found


def _mean(values: Sequence[float]) -> float | None:
    return rounded(fmean(values)) if values else None


def _lengths(rows: Sequence[Row]) -> dict[str, list[list[float]]]:
    """By source and difficulty, a list of [step, mean tokens]."""
    found: dict[str, list[list[float]]] = defaultdict(list)
    for row in rows:
        found[row["of"]].append([row["step"], round(row["tokens"], 2)])
    return dict(sorted(found.items()))


def _changes(
    texts: Sequence[Row], verifier: Spec | None, looking: Looking, judge: Judge
) -> Iterator[tuple[int, str, str]]:
    """(point, source, change) of each rollout whose thinking names an answer other than the final one."""
    items: list[Asked] = []
    place: dict[str, tuple[int, str]] = {}
    for row in texts:
        earlier = behaviours.earlier(row["thinking"], row["answer"], looking.candidates) if row["closed"] else None
        spec: Spec = row["verifier"] if verifier is None else verifier
        if earlier is None or verification.asks(spec):
            continue
        problem = problem_of(row)
        place[row["trace_key"]] = row["bin"], row["source"]
        items += [
            ((row["trace_key"], which), spec, problem, Response("", answer, True))
            for which, answer in (("before", earlier), ("after", row["answer"]))
        ]
    outcomes = {key: verdict.outcome for key, verdict in judge(items)} if items else {}
    for trace, (at, source) in place.items():
        pair = outcomes[trace, "before"], outcomes[trace, "after"]
        if pair in CHANGES:
            yield at, source, CHANGES[pair]


def _by_source(changes: Sequence[tuple[int, str, str]]) -> Mapping[str, Mapping[str, int]]:
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for _, source, change in changes:
        found[source][change] += 1
    return {source: dict(counts) for source, counts in sorted(found.items())}
