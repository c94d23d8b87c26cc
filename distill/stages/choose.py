"""choose: what picking one of N stored samples buys, by majority and by whoever scores them.

Reads samples that were judged, has each scorer look at them once (verdicts like any others), and works every curve out
of what is stored: no sample is drawn. See `distill.choosing`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from distill import choosing, verification
from distill.scoring import samples
from distill.stages.common import RewardModel, VerifierSpec, members_present, resolved, store_of
from distill.store import Store
from distill.store.records import Row, record_members
from distill.types import Problem
from pipeline.errors import InputError, PipelineError
from pipeline.fingerprint import FileHashes
from pipeline.manifest import Manifest
from pipeline.stage import Context, Input, Operational, Output, Settings, Stage


class ChooseSettings(Settings):
    samples: Annotated[str, Input(accepts=("verdicts",))]
    """Judged traces, several a problem."""
    scorers: Annotated[dict[str, VerifierSpec], RewardModel, Field(min_length=1)]
    """A label for each verifier whose score chooses: `{mine: {prm: {model: prm:STAGE}}}`."""
    at: Annotated[list[Annotated[int, Field(ge=1)]] | None, Field(min_length=1)] = None
    """Numbers of samples; by default powers of two up to as many as every problem has."""
    workers: Annotated[int, Operational(), Field(ge=1)] = 2


def run(context: Context, settings: ChooseSettings) -> Output:
    store, digest = store_of(context), context.inputs[settings.samples].digest
    verdicts = [row["row_key"] for row in store.rows("SELECT row_key FROM members WHERE collection = ?", [digest])]
    rows = [row for row in verification.scores(store, verdicts, answers=True) if row["outcome"] != "unverifiable"]
    rows.sort(key=lambda row: (row["problem_key"], row["sample_index"], row["trace_key"]))
    asked = _asked(store, digest, {row["trace_key"] for row in rows})
    members: list[tuple[str, str]] = []
    scores: dict[str, dict[str, list[float]]] = {}
    for label, spec in settings.scorers.items():
        wishes = verification.judgements(asked, resolved(context, spec), context.hashes)
        made = verification.make_verdicts(store, wishes, context, settings.workers, label)
        members += [(label, key) for key in made]
        scores[label] = _scores(context, label, rows, {r["trace_key"]: r for r in verification.scores(store, made)})
    found = samples(rows)
    figures = choosing.compared(found, scores, _numbers(context, settings, found))
    for line in _lines(figures):
        context.note(line)
    return Output(record_members(store, members), {"members": len(members), **figures})


def _asked(store: Store, digest: str, wanted: set[str]) -> list[tuple[str, str, Problem]]:
    """(trace key, problem key, problem) of the judged traces."""
    rows = store.rows(
        "SELECT v.trace_key, v.problem_key FROM members m JOIN verdicts v ON m.row_key = v.verdict_key "
        "WHERE m.collection = ? ORDER BY m.position",
        [digest],
    )
    problems = verification.problems_of(store, sorted({row["problem_key"] for row in rows}))
    return [(r["trace_key"], r["problem_key"], problems[r["problem_key"]]) for r in rows if r["trace_key"] in wanted]


def _scores(context: Context, label: str, rows: Sequence[Row], said: Mapping[str, Row]) -> dict[str, list[float]]:
    """By problem one score a sample, in the order of ``rows``. A sample that a scorer could not score is not chosen."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        found[row["problem_key"]].append(said[row["trace_key"]]["score"] or 0.0)
    silent = sum(row["score"] is None for row in said.values())
    if said and silent == len(said):
        raise PipelineError(f"stage {context.name}: scorer {label} could score none of {len(said)} samples")
    if silent:
        context.note(f"{label}: could not score {silent} of {len(said)} samples; they are never chosen by it")
    return dict(found)


def _numbers(context: Context, settings: ChooseSettings, found: choosing.By) -> list[int]:
    most = min(map(len, found.values()), default=0)
    wanted = settings.at or [2**i for i in range(most.bit_length())]
    if not most or max(wanted) > most:
        raise InputError(
            f"stage {context.name}: a choice of {max(wanted, default=1)} samples needs as many judged ones of every "
            f"problem; {settings.samples} has {most}"
        )
    return sorted(set(wanted))


def _lines(figures: Mapping[str, Any]) -> list[str]:
    """The table for people: accuracy in percent, one line a strategy."""
    points = figures["points"]
    head = "samples".ljust(20) + "".join(f"{point['samples']:>8}" for point in points)
    lines = [head]
    for name in points[0]["strategies"]:
        shares = (point["strategies"][name]["accuracy"] for point in points)
        lines.append(name.ljust(20) + "".join(f"{100 * share:>8.1f}" for share in shares))
    for name, rank in figures["scorers"].items():
        lines.append(f"{name}: AUC of right against wrong samples {rank['auc']}, within a problem {rank['auc_within']}")
    return lines


def dependencies(settings: ChooseSettings, hashes: FileHashes, upstream: Mapping[str, Manifest]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for spec in settings.scorers.values():
        found |= verification.versions(spec, upstream[settings.samples], hashes)
    return {f"verifier {name}": version for name, version in found.items()}


STAGE = Stage(
    kind="choose",
    about="measure ways to choose one of several stored samples: majority, best of N, weighed votes",
    settings=ChooseSettings,
    produces="choice",
    run=run,
    dependencies=dependencies,
    check=members_present,
    again=verification.judged_again,
)
