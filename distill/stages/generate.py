"""generate: have the teacher answer each training problem; only the samples that are missing are made."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distill import engines
from distill.engines.options import EngineOptions, SamplingSettings, TransformersOptions, check_model
from distill.generation import make_traces, wanted
from distill.modelspec import StageOrName
from distill.stages.common import members_present, store_of
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
    open_engine = partial(engines.open_engine, settings.engine, model, context.note)
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
    if upstream is None:
        count = expected.get(settings.problems, {}).get(settings.split)
        total, done = (None if count is None else count * settings.samples), 0
    else:
        store = store_of(context)
        model = engines.model_of(settings.teacher, settings.engine, context)
        tasks = problems(store, upstream.digest, settings.split)
        sampling = settings.sampling.sampling(settings.seed)
        keys = {wish.key for wish in wanted(tasks, model.identity, sampling, settings.samples)}
        total, done = len(keys), len(store.present("traces", keys))
    figures: dict[str, Any] = {}
    if total is not None:
        calls = total - done
        figures = {"calls": calls, "max_tokens": calls * settings.sampling.max_tokens}
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
    check=members_present,
)
