"""select: choose the training set among the judged traces, and keep the reason for each rejection."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from distill import verification
from distill.stages.common import members_present, store_of
from distill.store import Store
from distill.store.records import Row, record_members
from pipeline.stage import Context, Forecast, Input, Output, Settings, Stage


class SelectSettings(Settings):
    verdicts: Annotated[str, Input(accepts=("verdicts",))]
    keep: Literal["correct", "all"] = "correct"
    """``all`` is the control: what would be learned had nothing been verified."""
    per_problem: Annotated[int | None, Field(ge=1)] = None
    prefer: Literal["first", "shortest"] = "first"
    """Which traces of a problem are taken first."""
    distinct: bool = True
    """One of several traces of a problem with the same text."""
    truncated: Literal["drop", "keep"] = "drop"
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    take: Annotated[int | None, Field(ge=1)] = None
    """At most so many in all, the first problems first."""


def run(context: Context, settings: SelectSettings) -> Output:
    store = store_of(context)
    rows = _candidates(store, context.inputs[settings.verdicts].digest)
    reasons = _reasons(rows, settings)
    members = [
        ("kept" if reason is None else "rejected", row["trace_key"]) for row, reason in zip(rows, reasons, strict=True)
    ]
    digest = record_members(store, members, reasons)
    rejected = Counter(reason for reason in reasons if reason)
    kept = len(rows) - rejected.total()
    context.progress(len(rows), len(rows), kept=kept)
    return Output(digest, {"members": len(rows), "kept": kept, "rejected": dict(sorted(rejected.items()))})


def _candidates(store: Store, collection: str) -> list[Row]:
    keys = [
        r["row_key"]
        for r in store.rows("SELECT row_key FROM members WHERE collection = ? ORDER BY position", [collection])
    ]
    order = {key: index for index, key in enumerate(keys)}
    found = sorted(verification.scores(store, keys), key=lambda row: order[row["verdict_key"]])
    texts = store.rows(
        "SELECT trace_key, hash(thinking, answer) AS text FROM traces SEMI JOIN "
        "(SELECT trace_key FROM verdicts JOIN members ON row_key = verdict_key WHERE collection = ?) USING (trace_key)",
        [collection],
    )
    text_of = {row["trace_key"]: row["text"] for row in texts}
    return [row | {"text": text_of[row["trace_key"]]} for row in found]


def _reasons(rows: list[Row], settings: SelectSettings) -> list[str | None]:
    """Why each trace is rejected, or None where it is kept; the first rule that applies is the reason."""
    reasons: list[str | None] = [_unfit(row, settings) for row in rows]
    by_prompt: dict[str, list[int]] = defaultdict(list)  # problems that ask the same share their traces
    for index, row in enumerate(rows):
        if reasons[index] is None:
            by_prompt[row["prompt_key"]].append(index)
    taken = 0
    for indices in by_prompt.values():
        if settings.prefer == "shortest":
            indices.sort(key=lambda index: (rows[index]["tokens"], index))
        texts: list[int] = []
        for index in indices:
            if settings.distinct and rows[index]["text"] in texts:
                reasons[index] = "duplicate"
            elif settings.per_problem is not None and len(texts) >= settings.per_problem:
                reasons[index] = f"more than {settings.per_problem} of its problem"
            elif settings.take is not None and taken >= settings.take:
                reasons[index] = f"more than {settings.take} in all"
            else:
                taken += 1
                texts.append(rows[index]["text"])
    return reasons


def _unfit(row: Row, settings: SelectSettings) -> str | None:
    if settings.truncated == "drop" and row["finish"] == "length":
        return "truncated"
    if settings.keep == "correct" and row["outcome"] != "correct":
        return str(row["outcome"])
    if settings.max_tokens is not None and row["tokens"] > settings.max_tokens:
        return f"longer than {settings.max_tokens} tokens"
    return None


def forecast(context: Context, settings: SelectSettings, expected: Mapping[str, Mapping[str, Any]]) -> Forecast:
    return Forecast("traces", expected.get(settings.verdicts, {}).get("verdicts"))


STAGE = Stage(
    kind="select",
    about="choose the training set among the verified traces",
    settings=SelectSettings,
    produces="selection",
    run=run,
    forecast=forecast,
    check=members_present,
)
