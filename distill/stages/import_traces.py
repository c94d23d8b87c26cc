"""import: read published traces from a file or a data set, as if a teacher had sampled them here; costs no tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from distill import keys
from distill.sources import forms, huggingface, tables
from distill.sources.columns import Column, Pattern, ProblemColumns, unreadable
from distill.sources.problems import NAMED, least, unreadable_set
from distill.sources.published import PublishedTrace, TraceColumns
from distill.stages.common import VerifierName, members_present, store_of
from distill.store.records import Row as StoreRow
from distill.store.records import batched, problem_row, record_members, trace_row, verdict_row
from distill.thinking import estimate_tokens
from distill.types import Finish, Problem, Sampling, Trace, Verdict
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes, canonical
from pipeline.manifest import Manifest
from pipeline.stage import Context, File, Forecast, Operational, Output, Settings, Stage, later, stop_check

BATCH = 2000
PUBLISHED = "published"
"""The verifier's name for verdicts that came with the traces."""
UNKNOWN = dict.fromkeys(("temperature", "top_p", "top_k", "max_tokens", "seed"))
"""The sampling settings of a published trace are not known, so they are null."""


def _check_dataset(name: str | None) -> str | None:
    return None if name is None else huggingface.check_name(name)


class ImportSettings(Settings):
    """Traces in the rows of a JSONL, JSON, CSV or Parquet file (also gzipped), or of a Hugging Face data set.

    Either ``messages`` names a column of conversations with think tags in the assistant's turn, or
    ``prompt`` and ``answer`` (and ``thinking``, if it is not inside the answer) name columns, or are Jinja
    templates over them; or ``prompt`` and ``generations`` do, where one row holds several traces.
    ``reference`` and ``reference_pattern`` are as in a file of problems.
    """

    form: Annotated[forms.TraceForm | None, Field(exclude=True)] = None
    """A published format, such as `openr1-math`, that fills in the keys you leave out (`distill list forms`)."""
    file: Annotated[str | None, File()] = None
    dataset: Annotated[str | None, AfterValidator(_check_dataset)] = later()
    """Instead of `file`: `org/name` on the hub, or a directory, as in a source of problems."""
    dataset_split: str = later("train")
    """The data set's own split to read."""
    config: str | None = later()
    """The data set's configuration."""
    revision: str | None = later()
    """A branch, tag or commit on the hub."""
    teacher: str
    """Who wrote the traces; recorded as the model `imported:NAME`."""
    prompt: Column | None = None
    """A column, or a Jinja template over columns."""
    thinking: Column | None = None
    """The column or template of the thinking, if it is not inside the answer."""
    answer: Column | None = None
    """The column or template of the response."""
    messages: str | None = None
    """Instead of `prompt` and `answer`: a column of conversations."""
    generations: str | None = later()
    """A column of lists of responses to `prompt`, think tags included. Each response is a trace."""
    flags: str | None = later()
    """A column of lists that say which `generations` the publisher found correct. They are kept as verdicts of
    `published`, to compare with our verifiers' (`distill traces diff-verifiers`)."""
    finish: Column | None = later()
    """The column that says how a response ended, of lists with `generations`. Those that ended by `length` (or
    `max_tokens`) were cut off, and `select` leaves them out. Without it, only thinking that never ends shows this."""
    tags: list[str] | None = later()
    """The two tags around the thinking, or four (around the answer too), if they are not `<think>`."""
    reference: Column | dict[str, Column] | None = None
    """The column or template of the right answer; a mapping combines several columns."""
    reference_pattern: Pattern | None = None
    """A regular expression with one group. The reference is the group's last match (`#### (.+)`)."""
    verifier: VerifierName = "math"
    difficulty: Column | None = None
    licence: str = "unknown"
    source: str | None = None
    take: Annotated[int | None, Field(ge=1)] = None
    """Maximum number of traces, the first ones."""
    on_bad_row: Annotated[Literal["stop", "skip"], Operational()] = "stop"
    limit: Annotated[int | None, Field(ge=1)] = None

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        return forms.fill("import", data)

    @model_validator(mode="after")
    def _one_form(self) -> ImportSettings:
        columns = (self.prompt, self.thinking, self.answer)
        if (self.file is None) == (self.dataset is None):
            raise ValueError("takes either file or dataset")
        if self.messages is not None and (any(columns) or self.generations):
            raise ValueError("takes either messages or prompt, thinking and answer, or prompt and generations")
        if self.generations is not None and (self.thinking or self.answer):
            raise ValueError("takes either generations, which hold thinking and answer, or thinking and answer")
        if self.messages is None and (self.prompt is None or (self.answer or self.generations) is None):
            raise ValueError("needs the columns prompt and answer, prompt and generations, or messages, or a form")
        if self.flags is not None and self.generations is None:
            raise ValueError("flags needs generations, which is not set")
        if self.tags is not None and len(self.tags) not in (2, 4):
            raise ValueError("tags: expected two (around the thinking) or four (around the answer too)")
        return self

    @property
    def columns(self) -> TraceColumns:
        return TraceColumns(
            self.answer, self.thinking, self.messages, self.tags or (), self.generations, self.flags, self.finish
        )

    @property
    def data(self) -> huggingface.DataSet | None:
        if self.dataset is None:
            return None
        return huggingface.DataSet(self.dataset, self.dataset_split, self.config, self.revision)

    def rows(self) -> Iterator[tables.Row]:
        return self.data.rows() if self.data else tables.read(str(self.file))

    def count(self) -> int | None:
        return self.data.count() if self.data else tables.count(str(self.file))


def run(context: Context, settings: ImportSettings) -> Output:
    store = store_of(context)
    members: dict[str, str] = {}
    thoughtless = 0
    tally: Counter[str] = Counter()
    context.note("there are no token counts; they are estimated from the texts, at four characters per token")
    for batch in batched(_traces(context, settings, tally), BATCH):
        store.append("problems", list({row["problem_key"]: row for row, *_ in batch}.values()))
        store.append("traces", [row for _, row, _ in batch])
        store.append("verdicts", [row for *_, row in batch if row])
        members |= {row["trace_key"]: of_problem["problem_key"] for of_problem, row, _ in batch}
        thoughtless += sum(not row["thinking"] for _, row, _ in batch)
        context.progress(len(members), None)
        stop_check(context.stopping)
    if not members:
        raise InputError(f"{settings.file or settings.dataset}: holds no trace that can be used")
    if tally["skipped"] > NAMED:
        context.note(f"skipped {tally['skipped']:,} in all; the first {NAMED} are named")
    if thoughtless:
        context.note(
            f"{thoughtless} of {len(members)} traces hold no thinking (no <think> in the text), so only their answers "
            "are learned; if they do have some, set `thinking` (its column) or `tags` (what encloses it)"
        )
    digest = record_members(store, [(problem, key) for key, problem in members.items()])
    return Output(digest, {"members": len(members), "traces": len(members), **tally})


def _traces(
    context: Context, settings: ImportSettings, tally: Counter[str]
) -> Iterator[tuple[StoreRow, StoreRow, StoreRow | None]]:
    """(problem row, trace row, row of the publisher's verdict) of each usable trace; repeated texts are skipped and
    counted."""
    seen: set[str] = set()
    samples: Counter[str] = Counter()
    take = least(settings.take, settings.limit)
    for problem, published in _responses(context, settings, tally):
        of_problem = problem_row(problem)
        asked = of_problem["prompt_key"]
        trace = _trace(published, problem, f"imported:{settings.teacher}", samples[asked])
        if trace.key in seen:
            tally["repeats"] += 1
            continue
        seen.add(trace.key)
        samples[asked] += 1
        flag, problem_key = published.flag, of_problem["problem_key"]
        flagged = None if flag is None else _published(trace.key, problem_key, flag, settings)
        yield of_problem, trace_row(trace, asked) | UNKNOWN, flagged
        if len(seen) >= take:
            return


def _responses(
    context: Context, settings: ImportSettings, tally: Counter[str]
) -> Iterator[tuple[Problem, PublishedTrace]]:
    """Every trace of every row, with the problem that it answers. One that cannot be used is skipped with a note, or
    raises an error (``on_bad_row``)."""
    mapping = ProblemColumns(settings.prompt, settings.reference, settings.reference_pattern, settings.difficulty)
    for row in settings.rows():
        for published in settings.columns.each(row):
            try:
                if isinstance(published, InputError):
                    raise published
                problem = mapping.problem(
                    row, settings.verifier, settings.source or row.stem, "train", settings.licence, published.prompt,
                    published.system,
                )  # fmt: skip
            except InputError as error:
                if settings.on_bad_row == "stop":
                    raise
                tally["skipped"] += 1
                if tally["skipped"] <= NAMED:
                    context.note(f"skipped {error}")
                if error is not published:
                    break  # the problem cannot be used, so no trace of the row can
            else:
                yield problem, published


def _published(trace_key: str, problem_key: str, right: bool, settings: ImportSettings) -> StoreRow:
    """The publisher's opinion of a trace, as a verdict: never taken for one of ours, and older than ours."""
    make = Verdict.correct if right else Verdict.incorrect
    verdict = replace(make(f"the set says so in {settings.flags}"), verifier=PUBLISHED, version="1")
    spec = {PUBLISHED: {"flags": settings.flags}}
    key = keys.verdict_key(trace_key, problem_key, PUBLISHED, "1", canonical(spec))
    return verdict_row(key, trace_key, problem_key, verdict, spec)


def _trace(published: PublishedTrace, problem: Problem, model: str, sample_index: int) -> Trace:
    return Trace(
        key=keys.imported_key(problem, model, published.text),
        model=model,
        engine="imported",
        sampling=Sampling(),
        sample_index=sample_index,
        prompt=problem.prompt,
        thinking=published.thinking,
        answer=published.answer,
        closed=published.closed,
        thinking_tokens=estimate_tokens(published.thinking),
        answer_tokens=estimate_tokens(published.answer),
        prompt_ids=(),
        token_ids=(),
        logprobs=None,
        finish=Finish.LENGTH if published.cut or not published.closed else Finish.STOP,
        prompt_tokens=estimate_tokens(problem.prompt),
    )


def forecast(context: Context, settings: ImportSettings, _: Mapping[str, Mapping[str, Any]]) -> Forecast:
    found = settings.take if settings.generations else settings.take or settings.count()
    return Forecast("traces", settings.limit if found is None else least(found, settings.limit))


def dependencies(settings: ImportSettings, hashes: FileHashes, _: Mapping[str, Manifest]) -> dict[str, str]:
    return {f"data set {settings.dataset}": settings.data.identity(hashes)} if settings.data else {}


def refuse(settings: ImportSettings, _: Mapping[str, Mapping[str, Any]]) -> str | None:
    texts = (settings.thinking, settings.answer, settings.messages, settings.generations)
    others = (settings.flags, settings.finish, settings.reference, settings.difficulty)
    columns, skip = (settings.prompt, *texts, *others), settings.on_bad_row == "skip"
    if settings.data:
        return unreadable_set(settings.data, columns, skip)
    return unreadable(settings.rows(), columns, skip)


STAGE = Stage(
    kind="import",
    about="import published traces from a file or a Hugging Face data set, without a teacher",
    settings=ImportSettings,
    produces="traces",
    run=run,
    forecast=forecast,
    dependencies=dependencies,
    check=members_present,
    refuse=refuse,
)
