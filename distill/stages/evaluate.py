"""evaluate: how often each model solves the held-out problems, with intervals clustered by problem.

Samples and verdicts go through the same loops as the teacher's, so an unchanged model is not sampled
again, and every score can be traced to its texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import permutations
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from distill import engines, forecasts, modelspec, verification, verifiers
from distill.engines import dialects
from distill.engines.options import (
    EngineOptions,
    OpenAIOptions,
    SamplingSettings,
    Seed,
    Thinking,
    ThinkingSettings,
    TransformersOptions,
    check_model,
    check_samples,
    check_thinking,
)
from distill.evaluation import comparison, scoring
from distill.evaluation.statistics import Estimate, clustered_mean
from distill.generation import Wanted, request_of, wanted
from distill.lacking import lacking
from distill.prompting import Ask, Prompting, plainly
from distill.report.data import RESERVED
from distill.stages.common import RewardModel, VerifierSpec, ask_of, members_present, protocol, sampler, store_of
from distill.stages.measuring import GREEDY, Measure
from distill.stages.seen import ContaminationSettings, exposure_of, figures_of
from distill.store.records import problems, record_members
from distill.types import Problem
from pipeline.fingerprint import FileHashes
from pipeline.manifest import Manifest
from pipeline.stage import Context, Forecast, Input, Operational, Output, Settings, Stage

PROTOCOL = ("sampling", "samples", "prompting", "thinking", "verifier", "split")
"""The settings that a score depends on, besides the problems and the versions of their verifiers."""


def _label(label: str) -> str:
    if label in RESERVED:
        raise ValueError(f"a model cannot be labelled {label!r}: report.json uses that word; rename it")
    return label


class EvaluateSettings(Settings):
    problems: Annotated[str, Input(accepts=("problems",))]
    models: Annotated[
        dict[Annotated[str, AfterValidator(_label)], str],
        Input(accepts=("student", "model"), prefix=modelspec.STAGE),
        Field(min_length=1),
    ]
    """The models, by label, in the order of the report."""
    engine: EngineOptions = TransformersOptions()
    sampling: SamplingSettings = SamplingSettings()
    samples: Annotated[int, Field(ge=1)] = 4
    """Samples per problem."""
    pass_at: Annotated[list[Annotated[int, Field(ge=1)]], Field(default_factory=lambda: [1])]
    """Values of k for pass@k."""
    greedy: bool = True
    """Also take one greedy sample per problem."""
    prompting: Prompting = None
    """How prompts are built for the models; a string is a template, or the name of one."""
    thinking: Thinking = None
    budgets: Annotated[list[Annotated[int, Field(ge=0)]] | None, Field(min_length=1)] = None
    """Also measure accuracy under these thinking budgets, such as `[0, 64, 256]`, from the same samples: longer
    thinking is cut and the answer asked for. 0 means no thinking."""
    contamination: ContaminationSettings | None = ContaminationSettings()
    """Check for overlap with the training problems; `null` turns it off."""
    verifier: Annotated[VerifierSpec | None, RewardModel] = None
    """Judges the answers. Default: each problem's own verifier."""
    split: Literal["train", "heldout"] = "heldout"
    """Which problems to measure on."""
    workers: Annotated[int, Operational(), Field(ge=1)] = 2
    """Processes that verify."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _check(self) -> EvaluateSettings:
        for a, b in permutations(self.models, 2):
            if b.startswith(f"{a}/"):  # the name of other samples of `a`
                raise ValueError(f"models: {b!r} would be taken for a part of {a!r}; rename it")
        for name in self.models.values():
            check_model(name, self.engine)
        check_samples(self.samples, self.sampling, self.engine)
        check_thinking(self.thinking, self.sampling)
        self._check_budgets()
        budget = self.thinking.thinking_budget() if self.thinking else None
        dialects.check_wished(self.engine, budget, begun=bool(self.prompting and self.prompting.prefill))
        return self

    def _check_budgets(self) -> None:
        if not self.budgets:
            return
        if sorted(set(self.budgets)) != self.budgets:
            raise ValueError("budgets: must be in rising order, each once")
        if self.prompting and self.prompting.prefill:
            raise ValueError("budgets and prompting.prefill exclude each other: a budget prefills what it cuts")
        if self.thinking and (self.thinking.least or self.budgets[-1] >= (self.thinking.budget or 2**31)):
            raise ValueError("budgets: must be below thinking.budget, and cannot be combined with thinking.least")
        check_thinking(ThinkingSettings(budget=self.budgets[-1]), self.sampling)
        if isinstance(self.engine, OpenAIOptions) and (why := dialects.no_beginning(self.engine)):
            raise ValueError(f"budgets: {why}, or leave them out")


def run(context: Context, settings: EvaluateSettings) -> Output:
    store = store_of(context)
    tasks = problems(store, context.inputs[settings.problems].digest, settings.split)
    ask = ask_of(context, settings.prompting, settings.thinking, settings.problems)
    members: list[tuple[str, str]] = []
    subjects: dict[str, Any] = {}
    by_problem: dict[str, dict[str, list[float]]] = {}
    for label, name in settings.models.items():
        model = sampler(context, store, name, settings.engine)
        with ExitStack() as stack:
            measure = Measure(context, settings, store, model, label, stack)
            sampled = measure.sampled(wishes_of(settings, tasks, model.identity, ask))
        kinds = measure.judged(sampled)
        members += [(kind, key) for kind, keys in kinds.items() for key in keys]
        rows = {kind: verification.scores(store, keys, answers=True) for kind, keys in kinds.items()}
        by_problem[label] = scoring.by_problem(rows[label])
        subjects[label] = scoring.summary(rows[label], settings.pass_at)
        if greedy := rows.get(f"{label}/{GREEDY}"):
            subjects[label]["greedy"] = scoring.mean(greedy)["pass_at_1"]
        subjects[label] |= measure.paid_off(rows)
        seen = exposure_of(context, settings.contamination, name, label, tasks)
        overlap = {**figures_of(seen, tasks), **scoring.apart(rows[label], seen.found)} if seen else None
        subjects[label]["contamination"] = overlap
        context.note(f"{label}: pass@1 {_percent(clustered_mean(by_problem[label]))}")
    digest = record_members(store, members)
    again = verification.failed_once([key for _, key in members])
    figures = {"members": len(members), "protocol": protocol(context, settings, PROTOCOL), "subjects": subjects}
    return Output(digest, {**figures, "pairs": comparison.every_pair(by_problem), **again})


def wishes_of(
    settings: EvaluateSettings, tasks: Sequence[tuple[str, Problem]], model: str, ask: Ask = plainly
) -> list[Wanted]:
    """All samples wanted of a model, except the continuations under budgets, which depend on these samples."""
    sampling = settings.sampling.sampling(settings.seed)
    wishes = wanted(tasks, model, sampling, settings.samples, ask)
    if settings.greedy and sampling.temperature > 0:
        wishes += wanted(tasks, model, replace(sampling, temperature=0.0), 1, ask)
    return wishes


def _percent(estimate: Estimate) -> str:
    if not estimate.problems:
        return "unknown, as no answer could be judged"
    return f"{100 * estimate.value:.1f}% (95%: {100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def refuse(settings: EvaluateSettings, figures: Mapping[str, Mapping[str, Any]]) -> str | None:
    if (highest := max(settings.pass_at, default=1)) > settings.samples:
        return f"pass@{highest} needs at least {highest} samples per problem; there are {settings.samples}"
    if settings.problems in figures and not figures[settings.problems].get(settings.split):
        return f"{settings.problems} holds no {settings.split} problem to measure on"
    return lacking(settings)


def forecast(context: Context, settings: EvaluateSettings, expected: Mapping[str, Mapping[str, Any]]) -> Forecast:
    """Counts continuations under budgets as an upper bound: how many there will be depends on the samples."""
    each = settings.samples + int(settings.greedy and settings.sampling.temperature > 0)
    count = expected.get(settings.problems, {}).get(settings.split)
    if count is None:
        return Forecast("answers")
    total, store, wishes = count * each * len(settings.models), store_of(context), _wanted_by_model(context, settings)
    by_key = {wish.key: wish for of_model in wishes.values() for wish in of_model}
    present = store.present("traces", by_key)
    missing = {model: [wish for wish in of_model if wish.key not in present] for model, of_model in wishes.items()}
    cut = count * settings.samples * len(settings.budgets or ())  # continuations of one model's samples, at most
    least, cuts = total - len(present), cut * len(settings.models)
    figures: dict[str, Any] = {"calls": least + cuts, "max_tokens": (least + cuts) * settings.sampling.max_tokens}
    if isinstance(settings.engine, OpenAIOptions):
        figures |= _endpoint_forecast(context, settings.engine, figures, missing, cut)
    if settings.verifier is not None:
        figures = forecasts.added(figures, _judges_forecast(context, settings, total, list(by_key.values())))
    return Forecast("answers", total + cuts, len(present), {**figures, "least_calls": least} if cuts else figures)


def _endpoint_forecast(
    context: Context, options: OpenAIOptions, figures: Mapping[str, Any], missing: Mapping[str, list[Wanted]],
    cut: int,
) -> dict[str, Any]:  # fmt: skip
    """What the missing answers will take. An endpoint's models all exist, so the requests are known once the problems
    are, except for the ``cut`` continuations of each model: these depend on how long it thinks."""
    store = store_of(context)
    cap = forecasts.left_of_cap(options, store, context.name)
    if not missing:
        return {**forecasts.bound_of_responses(options, figures["max_tokens"]), **cap}
    requests = [request_of(wish) for of_model in missing.values() for wish in of_model]
    of_models = (
        {"calls": calls, **forecasts.expected(options, store, context.name, model, calls)}
        for model, of_model in missing.items()
        if (calls := len(of_model) + cut)
    )
    usual, tokens = forecasts.added(*of_models), figures["max_tokens"]
    return {
        **(forecasts.bound_of_responses(options, tokens) if cut else forecasts.bound(options, requests, tokens)),
        **{name: value for name, value in usual.items() if name != "calls"},
        **cap,
    }


def _judges_forecast(
    context: Context, settings: EvaluateSettings, total: int, wishes: Sequence[Wanted]
) -> dict[str, Any]:
    """What the judges will take for the missing verdicts."""
    assert settings.verifier is not None
    store = store_of(context)
    judged = verification.judgements(
        [(wish.key, wish.problem_key, wish.problem) for wish in wishes], settings.verifier, context.hashes
    )
    missing = total - len(store.present("verdicts", {wish.key for wish in judged}))
    return forecasts.of_judges(verifiers.build(settings.verifier, context.hashes), store, context.name, missing)


def _wanted_by_model(context: Context, settings: EvaluateSettings) -> dict[str, list[Wanted]]:
    """The answers wanted of the models that exist already, by the models' identities; empty until the problems
    exist."""
    upstream = context.inputs.get(settings.problems)
    if upstream is None:
        return {}
    tasks = problems(store_of(context), upstream.digest, settings.split)
    ask = ask_of(context, settings.prompting, settings.thinking, settings.problems)
    found: dict[str, list[Wanted]] = {}
    for name in settings.models.values():
        stage = name.removeprefix(modelspec.STAGE)
        if stage == name or stage in context.inputs:
            model = engines.model_of(name, settings.engine, context)
            found[model.identity] = wishes_of(settings, tasks, model.identity, ask)
    return found


def dependencies(settings: EvaluateSettings, hashes: FileHashes, upstream: Mapping[str, Manifest]) -> Mapping[str, str]:
    versions = verification.versions(settings.verifier, upstream[settings.problems], hashes)
    found = {f"verifier {name}": version for name, version in versions.items()}
    for name in settings.models.values():
        found |= engines.model_dependency(name, settings.engine, hashes)
    return found


STAGE = Stage(
    kind="evaluate",
    version=5,
    about="measure each model on held-out problems, with intervals",
    settings=EvaluateSettings,
    produces="evaluation",
    run=run,
    forecast=forecast,
    dependencies=dependencies,
    refuse=refuse,
    check=members_present,
    again=verification.judged_again,
)
