"""generate: sample the teacher's answers to each problem; only the samples that are missing are made.

With ``until``, answers are judged as they arrive, and each problem gets as many as it needs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distill import engines, forecasts, truncation, verification, verifiers
from distill.adaptive.known import Cuts
from distill.adaptive.settings import UntilSettings
from distill.engines import dialects
from distill.engines.options import (
    EngineOptions,
    OpenAIOptions,
    SamplingSettings,
    Seed,
    Thinking,
    Tokens,
    TransformersOptions,
    check_model,
    check_samples,
    check_thinking,
)
from distill.generation import UNANSWERED, Wanted, request_of, wanted
from distill.lacking import lacking
from distill.modelspec import StageOrName
from distill.prompting import Prompting
from distill.spending import spent_on
from distill.stages import until
from distill.stages.common import ask_of, judged_as_now, open_engine, sampler, store_of
from distill.store import Store
from distill.store.records import problems, record_members
from distill.types import Request
from pipeline.errors import PipelineError
from pipeline.fingerprint import FileHashes
from pipeline.manifest import Manifest
from pipeline.stage import Context, Forecast, Input, Output, Settings, Stage


class GenerateSettings(Settings):
    problems: Annotated[str, Input(accepts=("problems",))]
    teacher: StageOrName
    engine: EngineOptions = TransformersOptions()
    sampling: SamplingSettings = SamplingSettings()
    samples: Annotated[int, Field(ge=1)] = 1
    """Samples per problem. If you raise it, only the new ones are generated."""
    until: Annotated[UntilSettings | None, Field(exclude_if=lambda until: until is None)] = None
    """Instead of `samples`: sample each problem until enough are correct (adaptive sampling)."""
    prompting: Prompting = None
    """How prompts are built for the teacher; a string is a template, or the name of one."""
    thinking: Thinking = None
    truncated: Annotated[Literal["keep", "drop", "continue"], Field(exclude_if=lambda value: value == "keep")] = "keep"
    """Whether to keep, drop or continue responses cut at `sampling.max_tokens`. With `until`, a dropped response is a
    failed try, and a continued one is judged when it is complete."""
    continue_tokens: Annotated[Tokens | list[Tokens] | None, Field(exclude_if=lambda value: value is None)] = None
    """The higher limit for `continue`. A rising list continues in several rounds."""
    split: Literal["train", "heldout"] = "train"
    """Which problems to sample."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _check(self) -> GenerateSettings:
        check_model(self.teacher, self.engine)
        check_samples(self.samples, self.sampling, self.engine)
        check_thinking(self.thinking, self.sampling)
        budget = self.thinking.thinking_budget() if self.thinking else None
        dialects.check_wished(self.engine, budget, begun=bool(self.prompting and self.prompting.prefill))
        if (self.truncated == "continue") != bool(self.limits):
            raise ValueError("truncated: continue and continue_tokens (the higher limit) need each other")
        if self.limits and isinstance(self.engine, OpenAIOptions) and (why := dialects.can_go_on(self.engine)):
            raise ValueError(why)
        if any(low >= high for low, high in pairwise([self.sampling.max_tokens, *self.limits])):
            raise ValueError(f"continue_tokens must rise from sampling.max_tokens, {self.sampling.max_tokens}")
        self._check_until()
        return self

    def _check_until(self) -> None:
        if self.until and "samples" in self.model_fields_set:
            raise ValueError("samples and until exclude each other: until.most sets the number of tries")
        if self.until and not self.sampling.temperature:
            raise ValueError("until needs sampling.temperature above 0: at 0 every try gives the same answer")

    @property
    def cuts(self) -> Cuts:
        return Cuts(self.truncated == "drop", self.limits)

    @property
    def limits(self) -> list[int]:
        """The rising limits, in tokens, up to which truncated responses are continued."""
        found = self.continue_tokens
        return [] if found is None else found if isinstance(found, list) else [found]


def run(context: Context, settings: GenerateSettings) -> Output:
    store = store_of(context)
    model = sampler(context, store, settings.teacher, settings.engine)
    tasks, wishes = _wishes(context, settings, store, model.identity)
    opening = partial(open_engine, context, store, settings.engine, model)
    if settings.until:
        digest, figures = until.make(context, store, settings.until, settings.cuts, tasks, wishes, opening)
        _check_any(context, settings, figures["members"], figures.get("left_out", 0))
        return Output(digest, {**_totals(store, digest), **figures})
    standing = truncation.make_whole(store, wishes, opening, context, settings.limits)
    cut = truncation.cut_among(store, [wish.key for wish in standing]) if settings.truncated == "drop" else set()
    members = [(wish.problem_key, wish.key) for wish in standing if wish.key not in cut]
    _check_any(context, settings, len(members), len(standing) - len(members))
    digest = record_members(store, members)
    left_out = {"truncated": len(cut), "left_out": len(standing) - len(members)} if cut else {}
    return Output(digest, {"members": len(members), **_totals(store, digest), **left_out})


def _check_any(context: Context, settings: GenerateSettings, members: int, left_out: int) -> None:
    if left_out and not members:
        raise PipelineError(
            f"stage {context.name}: every response was cut at {settings.sampling.max_tokens} tokens, and `drop` "
            "leaves none; they are kept in the store; raise sampling.max_tokens, or set truncated: continue"
        )


def _wishes(context: Context, settings: GenerateSettings, store: Store, model: str) -> tuple[until.Tasks, list[Wanted]]:
    """The problems, and all samples that may be wanted of them."""
    tasks = problems(store, context.inputs[settings.problems].digest, settings.split)
    ask = ask_of(context, settings.prompting, settings.thinking, settings.problems)
    tries = settings.until.most if settings.until else settings.samples
    return tasks, wanted(tasks, model, settings.sampling.sampling(settings.seed), tries, ask)


def _totals(store: Store, collection: str) -> dict[str, Any]:
    """Counts over the members, including each outcome that is not an answer."""
    outcomes = ", ".join(f"count(*) FILTER (finish = '{finish}') AS {name}" for finish, name in UNANSWERED.items())
    sql = (
        "SELECT count(*) AS traces, sum(thinking_tokens + answer_tokens)::BIGINT AS tokens, "
        "sum(thinking_tokens)::BIGINT AS thinking_tokens, sum(prompt_tokens)::BIGINT AS prompt_tokens, "
        f"{outcomes}, count(continues) AS continued "
        "FROM traces SEMI JOIN (SELECT row_key AS trace_key FROM members WHERE collection = ?) USING (trace_key)"
    )
    found = {**store.rows(sql, [collection])[0], **spent_on(store, collection)}
    return {name: value for name, value in found.items() if value or name not in ("refused", "empty", "continued")}


def refuse(settings: GenerateSettings, figures: Mapping[str, Mapping[str, Any]]) -> str | None:
    if settings.problems in figures and not figures[settings.problems].get(settings.split):
        return f"{settings.problems} holds no {settings.split} problem to answer"
    return lacking(settings)


def forecast(context: Context, settings: GenerateSettings, expected: Mapping[str, Mapping[str, Any]]) -> Forecast:
    upstream = context.inputs.get(settings.problems)
    figures: dict[str, Any] = {}
    most = max([settings.sampling.max_tokens, *settings.limits])
    missing: list[Request] | None = None
    if upstream is None:
        count = expected.get(settings.problems, {}).get(settings.split)
        tries = settings.until.most if settings.until else settings.samples
        total, done = (None if count is None else count * tries), 0
        tokens = (total or 0) * most
    else:
        store = store_of(context)
        model = engines.model_of(settings.teacher, settings.engine, context)
        tasks, wishes = _wishes(context, settings, store, model.identity)
        if settings.until:
            total, done, least = until.bounds(context, store, settings.until, settings.cuts, tasks, wishes)
            figures, tokens = {"least_calls": least}, (total - done) * most
        else:
            total, done, tokens = truncation.foreseen(store, wishes, settings.limits)
        missing = _missing(store, settings, wishes)
    if total is not None:
        figures |= {"calls": total - done, "max_tokens": tokens}
        if isinstance(settings.engine, OpenAIOptions):
            figures |= _endpoint_forecast(context, settings, settings.engine, figures, missing)
        if settings.until and settings.until.verifier:
            judge = verifiers.build(settings.until.verifier, context.hashes)
            figures = forecasts.added(
                figures, forecasts.of_judges(judge, store_of(context), context.name, total - done)
            )
    return Forecast("traces", total, done, figures)


def _missing(store: Store, settings: GenerateSettings, wishes: list[Wanted]) -> list[Request]:
    """The requests that an endpoint may still get, except continuations of responses that do not exist yet."""
    if not isinstance(settings.engine, OpenAIOptions):
        return []
    by_key = {wish.key: wish for wish in wishes}
    present = store.present("traces", by_key)
    return [request_of(wish) for key, wish in by_key.items() if key not in present]


def _endpoint_forecast(
    context: Context, settings: GenerateSettings, options: OpenAIOptions, figures: Mapping[str, Any],
    missing: list[Request] | None,
) -> dict[str, Any]:  # fmt: skip
    """What the calls to an endpoint will take. ``missing`` is None until the problems exist."""
    store, model = store_of(context), engines.model_of(settings.teacher, options, context)
    if missing is None or settings.limits:  # which responses will be continued, and from where, is not known either
        most = forecasts.bound_of_responses(options, figures["max_tokens"])
    else:
        most = forecasts.bound(options, missing, figures["max_tokens"])
    expected = forecasts.expected(options, store, context.name, model.identity, figures["calls"])
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
    refuse=refuse,
    check=judged_as_now,
    again=verification.judged_again,
)
