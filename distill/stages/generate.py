"""generate: have the teacher answer each training problem; only the samples that are missing are made.

With ``until`` the answers are judged as they come, and each problem gets as many as it needs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distill import engines, verification
from distill.adaptive.settings import UntilSettings
from distill.engines.options import EngineOptions, SamplingSettings, TransformersOptions, check_model
from distill.generation import make_traces, wanted
from distill.modelspec import StageOrName
from distill.stages import until
from distill.stages.common import judged_as_now, store_of
from distill.store.records import problems, record_members
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
    until: Annotated[UntilSettings | None, Field(exclude_if=lambda until: until is None)] = None
    """In place of ``samples``: until so many are correct (adaptive sampling)."""
    split: Literal["train", "heldout"] = "train"
    seed: int = 0

    @model_validator(mode="after")
    def _can_be_had(self) -> GenerateSettings:
        check_model(self.teacher, self.engine)
        if self.until and "samples" in self.model_fields_set:
            raise ValueError("samples and until exclude each other: until.most says how many tries there are")
        if self.until and not self.sampling.temperature:
            raise ValueError("until needs sampling.temperature above 0: at 0 every try gives the same answer")
        return self


def run(context: Context, settings: GenerateSettings) -> Output:
    store = store_of(context)
    model = engines.model_of(settings.teacher, settings.engine, context)
    sampling = settings.sampling.sampling(settings.seed)
    tasks = problems(store, context.inputs[settings.problems].digest, settings.split)
    open_engine = partial(engines.open_engine, settings.engine, model, context.note)
    if settings.until:
        digest, figures = until.make(context, store, settings.until, tasks, model.identity, sampling, open_engine)
        return Output(digest, {**_totals(context, digest), **figures})
    wishes = wanted(tasks, model.identity, sampling, settings.samples)
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
    return store_of(context).rows(sql, [collection])[0]


def forecast(context: Context, settings: GenerateSettings, expected: Mapping[str, Mapping[str, Any]]) -> Forecast:
    upstream = context.inputs.get(settings.problems)
    figures: dict[str, Any] = {}
    if upstream is None:
        count = expected.get(settings.problems, {}).get(settings.split)
        tries = settings.until.most if settings.until else settings.samples
        total, done = (None if count is None else count * tries), 0
    else:
        store = store_of(context)
        model = engines.model_of(settings.teacher, settings.engine, context)
        tasks = problems(store, upstream.digest, settings.split)
        sampling = settings.sampling.sampling(settings.seed)
        if settings.until:
            total, done, least = until.bounds(context, store, settings.until, tasks, model.identity, sampling)
            figures["least_calls"] = least
            return _priced(settings, total, done, figures)
        keys = {wish.key for wish in wanted(tasks, model.identity, sampling, settings.samples)}
        total, done = len(keys), len(store.present("traces", keys))
    return _priced(settings, total, done, figures)


def _priced(settings: GenerateSettings, total: int | None, done: int, figures: dict[str, Any]) -> Forecast:
    if total is not None:
        calls = total - done
        figures |= {"calls": calls, "max_tokens": calls * settings.sampling.max_tokens}
        if cost := engines.max_cost(settings.engine, figures["max_tokens"]):
            figures["max_cost"] = cost
    return Forecast("traces", total, done, figures)


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
    check=judged_as_now,
    again=verification.judged_again,
)
