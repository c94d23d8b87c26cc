"""generate: have the teacher answer each training problem; only the samples that are missing are made."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distill import engines, forecasts
from distill.engines.options import EngineOptions, OpenAIOptions, SamplingSettings, TransformersOptions, check_model
from distill.generation import make_traces, wanted
from distill.modelspec import StageOrName
from distill.spending import Spending, spent_on
from distill.stages.common import members_present, store_of
from distill.store.records import problems, record_members
from distill.types import Request
from pipeline.fingerprint import FileHashes
from pipeline.manifest import Manifest
from pipeline.stage import Context, Forecast, Input, Output, Settings, Stage


class GenerateSettings(Settings):
    problems: Annotated[str, Input(accepts=("problems",))]
    teacher: StageOrName
    engine: EngineOptions = TransformersOptions()
    sampling: SamplingSettings = SamplingSettings()
    samples: Annotated[int, Field(ge=1)] = 1
    """Samples a problem. Raising it makes just the new ones."""
    split: Literal["train", "heldout"] = "train"
    seed: int = 0

    @model_validator(mode="after")
    def _can_be_had(self) -> GenerateSettings:
        check_model(self.teacher, self.engine)
        return self


def run(context: Context, settings: GenerateSettings) -> Output:
    store = store_of(context)
    model = engines.model_of(settings.teacher, settings.engine, context)
    sampling = settings.sampling.sampling(settings.seed)
    tasks = problems(store, context.inputs[settings.problems].digest, settings.split)
    wishes = wanted(tasks, model.identity, sampling, settings.samples)
    open_engine = partial(engines.open_engine, settings.engine, model, context.note, Spending(store, context.name))
    make_traces(store, wishes, open_engine, context)
    digest = record_members(store, [(wish.problem_key, wish.key) for wish in wishes])
    return Output(digest, {"members": len(wishes), **_totals(context, digest)})


def _totals(context: Context, collection: str) -> dict[str, Any]:
    sql = (
        "SELECT count(*) AS traces, sum(thinking_tokens + answer_tokens)::BIGINT AS tokens, "
        "sum(thinking_tokens)::BIGINT AS thinking_tokens, sum(prompt_tokens)::BIGINT AS prompt_tokens, "
        "count(*) FILTER (finish = 'length') AS truncated "
        "FROM traces SEMI JOIN (SELECT row_key AS trace_key FROM members WHERE collection = ?) USING (trace_key)"
    )
    store = store_of(context)
    return {**store.rows(sql, [collection])[0], **spent_on(store, collection)}


def forecast(context: Context, settings: GenerateSettings, expected: Mapping[str, Mapping[str, Any]]) -> Forecast:
    upstream = context.inputs.get(settings.problems)
    missing: list[Request] | None = None
    if upstream is None:
        count = expected.get(settings.problems, {}).get(settings.split)
        total, done = (None if count is None else count * settings.samples), 0
    else:
        store = store_of(context)
        model = engines.model_of(settings.teacher, settings.engine, context)
        tasks = problems(store, upstream.digest, settings.split)
        sampling = settings.sampling.sampling(settings.seed)
        by_key = {wish.key: wish for wish in wanted(tasks, model.identity, sampling, settings.samples)}
        present = store.present("traces", by_key)
        missing = [Request(key, w.problem.messages, sampling) for key, w in by_key.items() if key not in present]
        total, done = len(by_key), len(present)
    figures: dict[str, Any] = {}
    if total is not None:
        calls = total - done
        figures = {"calls": calls, "max_tokens": calls * settings.sampling.max_tokens}
        if isinstance(settings.engine, OpenAIOptions):
            figures |= _foreseen(context, settings, settings.engine, calls, missing)
    return Forecast("traces", total, done, figures)


def _foreseen(
    context: Context, settings: GenerateSettings, options: OpenAIOptions, calls: int, missing: list[Request] | None
) -> dict[str, Any]:
    """What the calls to an endpoint will take; ``missing`` None while the problems are not there yet."""
    store, model = store_of(context), engines.model_of(settings.teacher, options, context)
    if missing is None:
        most = forecasts.bound_of_responses(options, calls * settings.sampling.max_tokens)
    else:
        most = forecasts.bound(options, missing)
    expected = forecasts.expected(options, store, context.name, model.identity, calls)
    return {**most, **expected, **forecasts.left_of_cap(options, store, context.name)}


def dependencies(settings: GenerateSettings, hashes: FileHashes, upstream: Mapping[str, Manifest]) -> Mapping[str, str]:
    return engines.model_dependency(settings.teacher, settings.engine, hashes)


STAGE = Stage(
    kind="generate",
    about="sample reasoning traces from a teacher",
    settings=GenerateSettings,
    produces="traces",
    run=run,
    forecast=forecast,
    dependencies=dependencies,
    check=members_present,
)
