"""verify: judge every trace. A changed verifier judges again; nothing is generated again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from distill import forecasts, verification, verifiers
from distill.lacking import lacking_judges
from distill.stages.common import RewardModel, VerifierSpec, judged_as_now, resolved, store_of
from distill.store import Store
from distill.store.records import record_members
from distill.types import Problem
from distill.verification import Judgement
from distill.verifiers.run import unusable
from pipeline.errors import InputError
from pipeline.fingerprint import canonical
from pipeline.stage import Context, Forecast, Input, Operational, Output, Settings, Stage


class VerifySettings(Settings):
    traces: Annotated[str, Input(accepts=("traces",))]
    verifier: Annotated[VerifierSpec | None, RewardModel] = None
    """A name, a name with settings, a composition, or `file.py:Class`. Default: each problem's own verifier."""
    workers: Annotated[int, Operational(), Field(ge=1)] = 2
    """Processes that verify."""


def run(context: Context, settings: VerifySettings) -> Output:
    store = store_of(context)
    traces = traces_of(store, context.inputs[settings.traces].digest)
    wishes = verification.judgements(traces, resolved(context, settings.verifier), context.hashes)
    _report_unusable(context, wishes)
    keys = verification.make_verdicts(store, wishes, context, settings.workers)
    digest = record_members(store, [("verdict", key) for key in keys])
    judges = _judges(store, digest) if settings.verifier and verification.asks(settings.verifier) else {}
    figures = {"members": len(keys), **_totals(store, digest), **verification.failed_once(keys), **judges}
    return Output(digest, {**figures, "versions": _versions(context, settings, wishes)})


def _versions(context: Context, settings: VerifySettings, wishes: list[verification.Judgement]) -> dict[str, str]:
    """The versions of the verifiers. One that the settings name is listed as they write it, since the directory of a
    reward model may change."""
    if settings.verifier is None:
        return verification.used(wishes)
    named = canonical(settings.verifier)
    return {named: verification.version_of(named, context.hashes)}


def _report_unusable(context: Context, wishes: Sequence[Judgement]) -> None:
    """Report problems of which the verifier can judge no answer, before it says so for every trace."""
    specs = {canonical(wish.verifier): wish.verifier for wish in wishes}
    built = {text: verifiers.build(spec, context.hashes) for text, spec in specs.items()}
    asked = {(wish.problem_key, canonical(wish.verifier)): wish.problem for wish in wishes}
    found = {at: why for at, problem in asked.items() if (why := unusable(built[at[1]], problem))}
    if not found:
        return
    (at, why), *_ = found.items()
    note = f"{len(found)} of {len(asked)} problems have no answer that {built[at[1]].name} could judge; "
    note += f"{asked[at].name}: {why}"
    if len(found) == len(asked):
        raise InputError(f"stage {context.name}: {note}")
    context.note(f"{context.name}: {note}")


def traces_of(store: Store, collection: str) -> list[tuple[str, str, Problem]]:
    """(trace key, problem key, problem) of a generate or import stage's output, in order: each member is a trace,
    labelled with the problem by which to judge it."""
    rows = store.rows("SELECT row_key, label FROM members WHERE collection = ? ORDER BY position", [collection])
    problems = verification.problems_of(store, sorted({row["label"] for row in rows}))
    return [(row["row_key"], row["label"], problems[row["label"]]) for row in rows]


def _totals(store: Store, collection: str) -> dict[str, int]:
    """The number of verdicts by outcome and, among the unverifiable, by kind of failure."""
    rows = store.rows(
        "WITH found AS (SELECT j.* FROM members m JOIN judgements j ON m.row_key = j.verdict_key "
        "WHERE m.collection = $collection) "
        "SELECT outcome AS what, count(*) AS n FROM found GROUP BY 1 UNION ALL "
        "SELECT failure, count(*) FROM found WHERE failure IS NOT NULL GROUP BY 1 ORDER BY 1",
        {"collection": collection},
    )
    return {row["what"]: row["n"] for row in rows}


def _judges(store: Store, collection: str) -> dict[str, float]:
    """What judges took for these verdicts, including those made by earlier runs."""
    rows = store.rows(
        "SELECT v.evidence FROM members m JOIN verdicts v ON m.row_key = v.verdict_key WHERE m.collection = ?",
        [collection],
    )
    spent: Counter[str] = Counter()
    for row in rows:
        spent.update(verification.spent_in(json.loads(row["evidence"])))
    return verification.judge_figures(spent)


def forecast(context: Context, settings: VerifySettings, expected: Mapping[str, Mapping[str, Any]]) -> Forecast:
    verifier = None if settings.verifier is None else verifiers.build(settings.verifier, context.hashes)
    if verifier is not None:
        _ = verifier.version  # raises now if a model is missing
    upstream = context.inputs.get(settings.traces)
    total, done = expected.get(settings.traces, {}).get("traces"), 0
    if upstream is not None:
        store = store_of(context)
        spec = resolved(context, settings.verifier)
        wishes = verification.judgements(traces_of(store, upstream.digest), spec, context.hashes)
        total, done = len(wishes), len(store.present("verdicts", [wish.key for wish in wishes]))
    if verifier is None or total is None:
        return Forecast("verdicts", total, done)
    figures = forecasts.of_judges(verifier, store_of(context), context.name, total - done)
    return Forecast("verdicts", total, done, figures)


def refuse(settings: VerifySettings, _figures: Mapping[str, Mapping[str, Any]]) -> str | None:
    return lacking_judges(verifiers.build(settings.verifier)) if settings.verifier is not None else None


STAGE = Stage(
    kind="verify",
    about="judge every trace, with its problem's verifier or one named here",
    settings=VerifySettings,
    produces="verdicts",
    run=run,
    forecast=forecast,
    refuse=refuse,
    check=judged_as_now,
    again=verification.judged_again,
)
