"""Rows to records and back: the only place that knows both the types and the columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from distill import keys
from distill.store.store import Store
from distill.thinking import join_thinking
from distill.types import Completion, Finish, Outcome, Problem, Trace, Verdict
from pipeline.fingerprint import canonical, content_hash
from pipeline.manifest import Manifest

Row = dict[str, Any]


def problem_row(problem: Problem) -> Row:
    return {
        "problem_key": keys.problem_key(problem),
        "prompt_key": keys.prompt_key(problem),
        "problem_id": problem.id,
        "source": problem.source,
        "split": problem.split,
        "verifier": problem.verifier,
        "difficulty": problem.difficulty,
        "licence": problem.licence,
        "structure": problem.structure,
        "origin": problem.origin,
        "system": problem.system,
        "prompt": problem.prompt,
        "reference": problem.reference,
        "metadata": canonical(dict(problem.metadata)),
    }


def problem_of(row: Mapping[str, Any]) -> Problem:
    return Problem(
        id=row["problem_id"],
        prompt=row["prompt"],
        reference=row["reference"],
        verifier=row["verifier"],
        source=row["source"],
        split=row["split"],
        difficulty=row["difficulty"],
        licence=row["licence"],
        structure=row["structure"],
        system=row["system"],
        metadata=json.loads(row["metadata"]),
        origin=row["origin"],
    )


def trace_row(trace: Trace, prompt_key: str) -> Row:
    return {
        "trace_key": trace.key,
        "prompt_key": prompt_key,
        "model": trace.model,
        "engine": trace.engine,
        "temperature": trace.sampling.temperature,
        "top_p": trace.sampling.top_p,
        "top_k": trace.sampling.top_k,
        "max_tokens": trace.sampling.max_tokens,
        "seed": trace.sampling.seed,
        "sample_index": trace.sample_index,
        "finish": str(trace.finish),
        "closed": trace.closed,
        "prompt_tokens": len(trace.prompt_ids) if trace.prompt_tokens is None else trace.prompt_tokens,
        "thinking_tokens": trace.thinking_tokens,
        "answer_tokens": trace.answer_tokens,
        "seconds": trace.seconds,
        "created": datetime.now(UTC),
        "prompt": trace.prompt,
        "thinking": trace.thinking,
        "answer": trace.answer,
        "prompt_ids": list(trace.prompt_ids),
        "token_ids": list(trace.token_ids),
        "logprobs": None if trace.logprobs is None else list(trace.logprobs),
        "prefix": trace.prefix or None,
        "budget": canonical(trace.budget.settled) if trace.budget else None,
        "forced": list(trace.forced) or None,
        "cut": trace.cut,
        "continues": trace.continues,
    }


def completion_of(row: Mapping[str, Any], key: str) -> Completion:
    """A trace's row as the completion it came from, under the key of the request."""
    return Completion(
        key=key,
        prompt=row["prompt"],
        prompt_ids=tuple(row["prompt_ids"] or ()),
        text=join_thinking(row["thinking"], row["answer"], row["closed"]),
        token_ids=tuple(row["token_ids"] or ()),
        logprobs=None if row["logprobs"] is None else tuple(row["logprobs"]),
        finish=Finish(row["finish"]),
        seconds=row["seconds"],
        thinking_tokens=row["thinking_tokens"],
        answer_tokens=row["answer_tokens"],
        prompt_tokens=row["prompt_tokens"],
        forced=tuple(row["forced"] or ()),
    )


def verdict_row(key: str, trace_key: str, problem_key: str, verdict: Verdict, spec: Any) -> Row:
    return {
        "verdict_key": key,
        "trace_key": trace_key,
        "problem_key": problem_key,
        "verifier": verdict.verifier,
        "version": verdict.version,
        "settings": canonical(spec),
        "outcome": str(verdict.outcome),
        "score": verdict.score,
        "reason": verdict.reason,
        "evidence": json.dumps(verdict.evidence, ensure_ascii=False, default=str),
        "seconds": verdict.seconds,
        "created": datetime.now(UTC),
    }


def verdict_of(row: Mapping[str, Any]) -> Verdict:
    """The verdict in a row."""
    return Verdict(
        Outcome(row["outcome"]), row["score"], row["reason"], json.loads(row["evidence"]), row["verifier"],
        row["version"], row["seconds"],
    )  # fmt: skip


def record_members(store: Store, members: Sequence[tuple[str, str]]) -> str:
    """Store which rows (label, key) a stage's output consists of; returns their digest. It depends on their
    order, as training on them does."""
    collection = content_hash([list(member) for member in members])
    store.append(
        "members",
        [
            {"collection": collection, "position": i, "label": label, "row_key": key}
            for i, (label, key) in enumerate(members)
        ],
    )
    store.ingest()
    return collection


def record_rejections(store: Store, run: str, collection: str, reasons: Sequence[str | None]) -> None:
    """Store why members of a collection were rejected, by position. Different rules may choose the same
    collection for different reasons, so reasons belong to a run."""
    rows = [
        {"run": run, "collection": collection, "position": i, "reason": reason}
        for i, reason in enumerate(reasons)
        if reason is not None
    ]
    store.append("rejections", rows)
    store.ingest()


def record_losses(store: Store, run: str, losses: Mapping[str, Sequence[float]]) -> None:
    """Store the loss of each trace, by its key, in every epoch of a run."""
    rows = [
        {"run": run, "trace_key": key, "epoch": epoch, "loss": loss}
        for key, column in losses.items()
        for epoch, loss in enumerate(column, start=1)
    ]
    store.append("trace_losses", rows)
    store.ingest()


def problems(store: Store, collection: str, split: str | None = None) -> list[tuple[str, Problem]]:
    """(problem key, problem) of a problems stage's output, in its order. The split is the label:
    one problem may be training material in one collection and held out in another."""
    rows = store.rows(
        "SELECT p.* REPLACE (m.label AS split) FROM members m JOIN problems p ON m.row_key = p.problem_key "
        "WHERE m.collection = $collection AND ($split IS NULL OR m.label = $split) ORDER BY m.position",
        {"collection": collection, "split": split},
    )
    return [(row["problem_key"], problem_of(row)) for row in rows]


KEPT = (
    "WITH judged AS (SELECT trace_key, problem_key FROM members m JOIN verdicts ON m.row_key = verdict_key "
    "WHERE m.collection = $verdicts QUALIFY row_number() OVER "
    "(PARTITION BY trace_key ORDER BY outcome <> 'correct', m.position) = 1) "
    "SELECT {what} FROM members m JOIN traces t ON m.row_key = t.trace_key JOIN judged USING (trace_key) "
    "JOIN problems p ON p.problem_key = judged.problem_key WHERE m.collection = $collection AND m.label = 'kept'"
)


def of_kept(store: Store, selection: str, verdicts: str, what: str) -> list[Row]:
    """Query ``what`` (SQL) of the traces ``t`` (members ``m``) that a selection kept and the problems ``p`` by which
    they were judged. ``verdicts`` is the collection that the selection was made from: in others, the same prompt may
    have had another reference."""
    return store.rows(KEPT.format(what=what), {"collection": selection, "verdicts": verdicts})


def kept(store: Store, selection: Manifest) -> list[Row]:
    """The traces that a selection kept, in its order, with the problem that each was judged by. (Sorted here, since
    DuckDB would carry the texts through its sort.)"""
    what = "m.position, t.trace_key, t.thinking, t.answer, p.*"
    rows = of_kept(store, selection.digest, selection.identity.inputs["verdicts"], what)
    return sorted(rows, key=lambda row: row["position"])


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
