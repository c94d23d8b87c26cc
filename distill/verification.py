"""Judging the traces that have no verdict yet: from trace keys to rows in the store.

The one loop behind the verify and evaluate stages. Verifying again never generates again: a verdict's
key is the trace, the verifier, its version and settings, so a changed verifier finds all of its
verdicts missing and the old ones stay.

A failure (a timeout, a crash: `Verdict.failure`) may be the machine's fault, so the first one is no verdict
yet: it is kept under a key of its own, and the next run judges that trace once more. What comes of that,
a second failure too, is the verdict. See docs/design/007-failures.md.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from distill import keys, verifiers
from distill.store import Store
from distill.store.records import Row, verdict_row
from distill.thinking import Response
from distill.types import Outcome, Problem, Verdict
from distill.verifiers import VerifierPool
from distill.verifiers.compose import Spec
from distill.verifiers.run import reads_thinking
from pipeline.fingerprint import canonical
from pipeline.manifest import Manifest
from pipeline.stage import Context, stop_check

APPEND_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Judgement:
    """One verdict that should exist: of this trace by this verifier."""

    key: str
    trace_key: str
    problem_key: str
    problem: Problem
    verifier: Spec


def judgements(traces: Sequence[tuple[str, str, Problem]], verifier: Spec | None) -> list[Judgement]:
    """The verdicts wanted of (trace key, problem key, problem), by the problem's own verifier if none is named."""
    made: dict[str, tuple[Spec, str, str]] = {}
    found = []
    for trace, problem_key, problem in traces:
        spec = problem.verifier if verifier is None else verifier
        text = canonical(spec)
        if text not in made:
            built = verifiers.build(spec)
            made[text] = spec, built.name, built.version
        spec, name, version = made[text]
        key = keys.verdict_key(trace, problem_key, name, version, text)
        found.append(Judgement(key, trace, problem_key, problem, spec))
    return found


def used(wishes: Sequence[Judgement]) -> dict[str, str]:
    """The version of each verifier that judges, by its spec in canonical form."""
    return {text: version_of(text) for text in sorted({canonical(wish.verifier) for wish in wishes})}


def version_of(spec: str) -> str:
    """The version that a verifier has now; ``spec`` in canonical form."""
    return verifiers.build(json.loads(spec)).version


def versions(verifier: Spec | None, problems: Manifest) -> dict[str, str]:
    """What a stage that judges depends on: the version of the verifier named, or of those of its problems."""
    specs: list[Spec] = problems.figures["verifiers"] if verifier is None else [verifier]
    return {canonical(spec): verifiers.build(spec).version for spec in specs}


def make_verdicts(
    store: Store, wishes: Sequence[Judgement], context: Context, workers: int, label: str = ""
) -> list[str]:
    """Judge what the store lacks of ``wishes``; returns the key of the verdict that stands for each."""
    store.ingest()
    found = store.present("verdicts", [key for wish in wishes for key in (wish.key, keys.failed_key(wish.key))])
    missing = {wish.key: wish for wish in wishes if wish.key not in found}
    if not missing:
        return [wish.key for wish in wishes]
    stop_check(context.stopping)
    stands: dict[str, str] = {}
    tally: Counter[str] = Counter()
    rows: list[Row] = []
    appended = time.monotonic()
    with VerifierPool(workers=workers) as pool:
        for wish, verdict in _judged(store, missing, pool):
            failed = keys.failed_key(wish.key)
            key = stands[wish.key] = failed if verdict.failure and failed not in found else wish.key
            rows.append(verdict_row(key, wish.trace_key, wish.problem_key, verdict, wish.verifier))
            tally.update([verdict.outcome, *([verdict.failure] if verdict.failure else [])])
            if time.monotonic() - appended > APPEND_SECONDS:
                store.append("verdicts", rows)
                rows, appended = [], time.monotonic()
                done = len(wishes) - len(missing) + len(stands)
                context.progress(done, len(wishes), **({"model": label} if label else {}), **shares(tally))
                if context.stopping():
                    break
    store.append("verdicts", rows)
    store.ingest()
    stop_check(context.stopping)
    return [stands.get(wish.key, wish.key) for wish in wishes]


def _judged(store: Store, missing: Mapping[str, Judgement], pool: VerifierPool) -> Iterator[tuple[Judgement, Verdict]]:
    responses = _responses(store, list(missing.values()))
    items = ((w.key, w.verifier, w.problem, responses[w.trace_key]) for w in missing.values())
    for key, verdict in pool.verify_many(items):
        yield missing[key], verdict


def shares(tally: Mapping[str, int]) -> dict[str, float]:
    """The share of each outcome; and of each kind of failure that there was."""
    total = max(sum(tally.get(outcome, 0) for outcome in Outcome), 1)
    return {str(name): round(tally.get(name, 0) / total, 4) for name in dict.fromkeys([*Outcome, *tally])}


def failed_once(verdict_keys: Sequence[str]) -> dict[str, int]:
    """The figure for a manifest by which `judged_again` knows: how many verdicts may yet change."""
    count = sum(key.endswith(keys.failed_key("")) for key in verdict_keys)
    return {"failed_once": count} if count else {}


def judged_again(manifest: Manifest) -> str | None:
    """Why a stage whose record is whole runs again (`pipeline.stage.Stage.again`)."""
    count = manifest.figures.get("failed_once")
    return f"{count} verdict(s) failed, by a timeout or a crash: judged once more" if count else None


def _responses(store: Store, wishes: Sequence[Judgement]) -> dict[str, Response]:
    """What is to be judged, by trace key; without the thinking, which is long, unless a verifier reads it."""
    import pyarrow as pa

    specs = {canonical(wish.verifier): wish.verifier for wish in wishes}
    thinking = "thinking" if any(reads_thinking(verifiers.build(spec)) for spec in specs.values()) else "''"
    with store.reading() as connection:
        wanted = pa.array(sorted({wish.trace_key for wish in wishes}), pa.string())
        connection.register("wanted", pa.table({"trace_key": wanted}))
        rows = connection.execute(
            f"SELECT trace_key, {thinking}, answer, closed FROM traces SEMI JOIN wanted USING (trace_key)"
        ).fetchall()
    return {key: Response(*parts) for key, *parts in rows}


def scores(store: Store, verdict_keys: Sequence[str]) -> Iterator[Row]:
    """Trace and verdict side by side, without the long text, for estimators and selection."""
    import pyarrow as pa

    with store.reading() as connection:
        connection.register("wanted", pa.table({"verdict_key": pa.array(list(verdict_keys), pa.string())}))
        result = connection.execute(
            "SELECT v.verdict_key, v.outcome, v.score, v.problem_key, t.trace_key, t.prompt_key, t.sample_index, "
            "t.finish, t.closed, t.thinking_tokens, t.answer_tokens, t.thinking_tokens + t.answer_tokens AS tokens, "
            "p.problem_id, p.source, p.difficulty "
            "FROM verdicts v SEMI JOIN wanted USING (verdict_key) "
            "JOIN traces t USING (trace_key) JOIN problems p USING (problem_key)"
        )
        names = [column[0] for column in result.description or ()]
        yield from (dict(zip(names, row, strict=True)) for row in result.fetchall())
