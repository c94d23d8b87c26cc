"""select: choose the training set among the judged traces, and keep the reason for each rejection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from distill import selection, verification
from distill.evaluation import difficulty
from distill.stages.common import members_present, store_of
from distill.store import Store
from distill.store.records import Row, of_kept, record_members, record_rejections
from distill.verifiers.language import SCRIPTS
from pipeline.mistakes import nearest
from pipeline.stage import Context, Forecast, Input, Output, Settings, Stage, later


def _known_language(name: str | None) -> str | None:
    if name is not None and name not in SCRIPTS:
        raise ValueError(f"language is one of {', '.join(SCRIPTS)}, not {name!r}")
    return name


Quota = Annotated[int, Field(ge=0)]


class PassRate(Settings):
    """A range for the share of a problem's judged traces that is correct, both ends included."""

    least: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    most: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0

    @model_validator(mode="after")
    def _in_order(self) -> PassRate:
        if self.least > self.most:
            raise ValueError(f"least ({self.least}) is more than most ({self.most})")
        return self


class SelectSettings(Settings):
    verdicts: Annotated[str, Input(accepts=("verdicts",))]
    keep: Literal["correct", "all"] = "correct"
    """`all` also keeps what is not verified as correct: as a control, or for your own conversations without a
    reference."""
    per_problem: Annotated[int | None, Field(ge=1)] = None
    """Maximum number of traces per problem."""
    prefer: Literal["first", "shortest"] = "first"
    """Which traces of a problem to take first."""
    distinct: bool = True
    """Keep only one of several traces of a problem with the same text."""
    truncated: Literal["drop", "keep"] = "drop"
    """What to do with responses cut at the token limit."""
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    """Maximum length of thinking and answer together."""
    min_tokens: Annotated[int | None, Field(ge=1)] = later()
    """Minimum length of thinking and answer together."""
    pass_rate: PassRate | None = later()
    """Keep only problems within this range, neither too hard nor too easy for the teacher: `{least: 0.1, most:
    0.9}`."""
    language: Annotated[str | None, AfterValidator(_known_language)] = later()
    """Keep only traces in the script of this language, such as `en` (as in the verifier `format`)."""
    language_share: Annotated[float, Field(gt=0.0, le=1.0)] = later(0.9)
    """Minimum share of words in that script."""
    max_similarity: Annotated[float | None, Field(ge=0.0, lt=1.0)] = later()
    """Keep only the first of a problem's traces that are more similar than this (Jaccard, estimated by MinHash)."""
    per_source: Quota | dict[str, Quota] | None = later()
    """Maximum number of traces per source, or for each of the sources named."""
    per_difficulty: Annotated[int | None, Field(ge=1)] = later()
    """Maximum number of traces per difficulty (or per bin of pass rates, if unknown). Counters the bias to easy
    problems."""
    take: Annotated[int | None, Field(ge=1)] = None
    """Maximum number of traces in total, in the order of the problems."""


def run(context: Context, settings: SelectSettings) -> Output:
    store = store_of(context)
    verdicts = context.inputs[settings.verdicts].digest
    rows = _candidates(store, verdicts)
    if isinstance(settings.per_source, dict):
        sources = sorted({row["source"] for row in rows})
        for name in sorted(settings.per_source.keys() - set(sources)):
            context.note(f"per_source: no trace is of source {name!r}{nearest(name, sources)}")
    reasons = selection.reasons(store, rows, settings)
    members = [
        ("kept" if reason is None else "rejected", row["trace_key"]) for row, reason in zip(rows, reasons, strict=True)
    ]
    digest = record_members(store, members)
    record_rejections(store, context.fingerprint, digest, reasons)
    rejected = Counter(reason for reason in reasons if reason)
    kept = len(rows) - rejected.total()
    context.progress(len(rows), len(rows), kept=kept)
    figures: dict[str, Any] = {"members": len(rows), "kept": kept, "rejected": dict(sorted(rejected.items()))}
    if kept:
        figures["bias"] = difficulty.bias(rows, [reason is None for reason in reasons])
        judges = of_kept(store, digest, verdicts, "DISTINCT p.verifier AS name")  # for stages that judge the student
        figures["verifiers"] = sorted(row["name"] for row in judges)
        context.note(figures["bias"]["says"])
    return Output(digest, figures)


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
    for row in found:
        row["text"] = text_of[row["trace_key"]]
    return found


def forecast(context: Context, settings: SelectSettings, expected: Mapping[str, Mapping[str, Any]]) -> Forecast:
    return Forecast("traces", expected.get(settings.verdicts, {}).get("verdicts"))


STAGE = Stage(
    kind="select",
    about="select the training set from the verified traces",
    settings=SelectSettings,
    produces="selection",
    run=run,
    version=2,
    forecast=forecast,
    check=members_present,
)
