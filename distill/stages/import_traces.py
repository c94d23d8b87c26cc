"""import: take published traces from a file, as if a teacher had made them here; costs no tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distill import keys, tables
from distill.published import Said, TraceColumns
from distill.stages.common import VerifierName, members_present, store_of
from distill.store.records import batched, problem_row, record_members, trace_row
from distill.thinking import estimate_tokens
from distill.types import Finish, Problem, Sampling, Trace
from pipeline.errors import InputError
from pipeline.stage import Context, File, Forecast, Operational, Output, Settings, Stage, stop_check

BATCH = 2000
UNKNOWN = dict.fromkeys(("temperature", "top_p", "top_k", "max_tokens", "seed"))
"""How a published trace was sampled is not known: null, not a guess."""


class ImportSettings(Settings):
    """One trace a row, in a JSONL, JSON, CSV or Parquet file (also gzipped).

    Either ``messages`` names a column of conversations with think tags in the assistant's turn, or
    ``prompt`` and ``answer`` (and ``thinking``, where it is not inside the answer) name columns.
    ``reference`` and ``reference_pattern`` are as in a file of problems.
    """

    file: Annotated[str, File()]
    teacher: str
    """Who wrote the traces: recorded as the model ``imported:NAME``."""
    prompt: str | None = None
    thinking: str | None = None
    answer: str | None = None
    messages: str | None = None
    reference: str | dict[str, str] | None = None
    reference_pattern: tables.Pattern | None = None
    verifier: VerifierName = "math"
    difficulty: str | None = None
    licence: str = "unknown"
    source: str | None = None
    take: Annotated[int | None, Field(ge=1)] = None
    on_bad_row: Annotated[Literal["stop", "skip"], Operational()] = "stop"
    limit: Annotated[int | None, Field(ge=1)] = None

    @model_validator(mode="after")
    def _one_form(self) -> ImportSettings:
        columns = (self.prompt, self.thinking, self.answer)
        if self.messages is not None and any(columns):
            raise ValueError("takes either messages or prompt, thinking and answer")
        if self.messages is None and (self.prompt is None or self.answer is None):
            raise ValueError("needs the columns prompt and answer, or messages")
        return self


def run(context: Context, settings: ImportSettings) -> Output:
    store = store_of(context)
    members: dict[str, str] = {}
    tally: Counter[str] = Counter()
    context.note("import: the file tells no token counts; they are estimated from the texts, four letters to a token")
    for batch in batched(_traces(context, settings, tally), BATCH):
        store.append("problems", list({row["problem_key"]: row for row, _ in batch}.values()))
        store.append("traces", [row for _, row in batch])
        members |= {row["trace_key"]: of_problem["problem_key"] for of_problem, row in batch}
        context.progress(len(members), None)
        stop_check(context.stopping)
    if not members:
        raise InputError(f"{settings.file}: holds no trace that can be used")
    digest = record_members(store, [(problem, key) for key, problem in members.items()])
    return Output(digest, {"members": len(members), "traces": len(members), **tally})


def _traces(
    context: Context, settings: ImportSettings, tally: Counter[str]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(problem row, trace row) of each usable row; a text that was there before is passed over."""
    columns = TraceColumns(settings.answer, settings.thinking, settings.messages)
    mapping = tables.ProblemColumns(
        settings.prompt, settings.reference, settings.reference_pattern, settings.difficulty
    )
    seen: set[str] = set()
    samples: Counter[str] = Counter()
    take = min(n for n in (settings.take, settings.limit, 10**12) if n is not None)
    for row in tables.read(settings.file):
        if len(seen) >= take:
            break
        source = settings.source or row.stem
        try:
            said = columns.read(row)
            problem = mapping.problem(
                row, settings.verifier, source, "train", settings.licence, prompt=said.prompt, system=said.system
            )
        except InputError as error:
            if settings.on_bad_row == "stop":
                raise
            tally["skipped"] += 1
            context.note(f"skipped {error}")
            continue
        of_problem = problem_row(problem)
        asked = of_problem["prompt_key"]
        trace = _trace(said, problem, f"imported:{settings.teacher}", samples[asked])
        if trace.key in seen:
            tally["repeats"] += 1
            continue
        seen.add(trace.key)
        samples[asked] += 1
        yield of_problem, trace_row(trace, asked) | UNKNOWN


def _trace(said: Said, problem: Problem, model: str, sample_index: int) -> Trace:
    return Trace(
        key=keys.imported_key(problem, model, said.text),
        problem_id=problem.id,
        model=model,
        engine="imported",
        sampling=Sampling(),
        sample_index=sample_index,
        prompt=problem.prompt,
        thinking=said.thinking,
        answer=said.answer,
        closed=said.closed,
        thinking_tokens=estimate_tokens(said.thinking),
        answer_tokens=estimate_tokens(said.answer),
        prompt_ids=(),
        token_ids=(),
        logprobs=None,
        finish=Finish.STOP if said.closed else Finish.LENGTH,
        prompt_tokens=estimate_tokens(problem.prompt),
    )


def forecast(context: Context, settings: ImportSettings, _: Mapping[str, Mapping[str, Any]]) -> Forecast:
    found = settings.take or tables.count(settings.file)
    return Forecast("traces", min(found, settings.limit or found))


STAGE = Stage(
    kind="import",
    about="take published traces from a file, without a teacher",
    settings=ImportSettings,
    produces="traces",
    run=run,
    forecast=forecast,
    check=members_present,
)
