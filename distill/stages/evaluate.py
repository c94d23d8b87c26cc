"""evaluate: how often each model solves the held-out problems, with intervals clustered by problem.

Samples and verdicts go through the same loops as the teacher's, so an unchanged model is not sampled
again, and every score can be traced to its texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from distill import engines, modelspec, scoring, verification
from distill.engines import dialects
from distill.engines.options import (
    EngineOptions,
    SamplingSettings,
    Seed,
    Thinking,
    TransformersOptions,
    check_model,
    check_thinking,
)
from distill.generation import Wanted, make_traces, wanted
from distill.prompting import Ask, Prompting, plainly
from distill.report.data import RESERVED
from distill.spending import Spending
from distill.stages.common import VerifierSpec, ask_of, members_present, store_of
from distill.statistics import Estimate, clustered_mean, paired_difference
from distill.store.records import problems, record_members
from distill.types import Problem
from pipeline.fingerprint import FileHashes, content_hash
from pipeline.manifest import Manifest
from pipeline.stage import Context, Forecast, Input, Operational, Output, Settings, Stage

PROTOCOL = ("sampling", "samples", "prompting", "thinking", "verifier", "split")
"""The settings that make a score what it is, beside the problems and the versions of their verifiers."""


def _label(label: str) -> str:
    why = "report.json uses that word" if label in RESERVED else "it holds a slash" if "/" in label else None
    if why:
        raise ValueError(f"a model cannot be labelled {label!r}: {why}; rename it")
    return label


class EvaluateSettings(Settings):
    problems: Annotated[str, Input(accepts=("problems",))]
    models: Annotated[
        dict[Annotated[str, AfterValidator(_label)], str],
        Input(accepts=("student", "model"), prefix=modelspec.STAGE),
        Field(min_length=1),
    ]
    """A label for each model, in the order of the report."""
    engine: EngineOptions = TransformersOptions()
    sampling: SamplingSettings = SamplingSettings()
    samples: Annotated[int, Field(ge=1)] = 4
    pass_at: Annotated[list[Annotated[int, Field(ge=1)]], Field(default_factory=lambda: [1])]
    greedy: bool = True
    """Also one greedy sample a problem."""
    prompting: Prompting = None
    """How each problem is put to the models; a string is a template, or the name of one."""
    thinking: Thinking = None
    verifier: VerifierSpec | None = None
    """Who judges; by default each problem's own."""
    split: Literal["train", "heldout"] = "heldout"
    workers: Annotated[int, Operational(), Field(ge=1)] = 2
    seed: Seed = 0

    @model_validator(mode="after")
    def _can_be_had(self) -> EvaluateSettings:
        for name in self.models.values():
            check_model(name, self.engine)
        check_thinking(self.thinking, self.sampling)
        budget = self.thinking.thinking_budget() if self.thinking else None
        dialects.check_wished(self.engine, budget, begun=bool(self.prompting and self.prompting.prefill))
        return self


def run(context: Context, settings: EvaluateSettings) -> Output:
    store = store_of(context)
    tasks = problems(store, context.inputs[settings.problems].digest, settings.split)
    ask = ask_of(context, settings.prompting, settings.thinking, settings.problems)
    members: list[tuple[str, str]] = []
    subjects: dict[str, Any] = {}
    by_problem: dict[str, dict[str, list[float]]] = {}
    for label, name in settings.models.items():
        model = engines.model_of(name, settings.engine, context)
        wishes = wishes_of(settings, tasks, model.identity, ask)
        spending = Spending(store, context.name)
        open_engine = partial(engines.open_engine, settings.engine, model, context.note, spending)
        make_traces(store, wishes, open_engine, context, label)
        judged = verification.judgements(
            [(wish.key, wish.problem_key, wish.problem) for wish in wishes], settings.verifier, context.hashes
        )
        verdicts = verification.make_verdicts(store, judged, context, settings.workers, label)
        labels = [
            label if wish.sampling.temperature == settings.sampling.temperature else f"{label}/greedy"
            for wish in wishes
        ]
        members += list(zip(labels, verdicts, strict=True))
        label_of = {key: name for name, key in members}
        rows = verification.scores(store, verdicts, answers=True)
        sampled = [row for row in rows if label_of[row["verdict_key"]] == label]
        by_problem[label] = scoring.by_problem(sampled)
        subjects[label] = scoring.summary(sampled, settings.pass_at)
        if greedy := [row for row in rows if label_of[row["verdict_key"]] != label]:
            subjects[label]["greedy"] = scoring.mean(greedy)["pass_at_1"]
        context.note(f"{label}: pass@1 {_percent(clustered_mean(by_problem[label]))}")
    digest = record_members(store, members)
    steps = _paired_steps(by_problem)
    again = verification.failed_once([key for _, key in members])
    figures = {"members": len(members), "protocol": protocol(context, settings), "subjects": subjects, "paired": steps}
    return Output(digest, {**figures, **again})


def protocol(context: Context, settings: EvaluateSettings) -> str:
    """A name for how was measured: equal for scores that may be compared, of whatever model and day."""
    how = settings.model_dump(mode="json", include=set(PROTOCOL))
    verifiers = verification.versions(settings.verifier, context.inputs[settings.problems], context.hashes)
    return content_hash({"problems": context.inputs[settings.problems].digest, "verifiers": verifiers, **how})[:12]


def wishes_of(
    settings: EvaluateSettings, tasks: Sequence[tuple[str, Problem]], model: str, ask: Ask = plainly
) -> list[Wanted]:
    sampling = settings.sampling.sampling(settings.seed)
    wishes = wanted(tasks, model, sampling, settings.samples, ask)
    if settings.greedy and sampling.temperature > 0:
        wishes += wanted(tasks, model, replace(sampling, temperature=0.0), 1, ask)
    return wishes


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f}% (95%: {100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _paired_steps(by_problem: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """Each model against the one before it, on the same problems."""
    labels = list(by_problem)
    steps = []
    for before, after in pairwise(labels):
        difference = paired_difference(by_problem[before], by_problem[after])
        interval = [scoring.rounded(difference.low), scoring.rounded(difference.high)]
        steps.append({"from": before, "to": after, "difference": scoring.rounded(difference.value), "ci95": interval})
    return steps


def refuse(settings: EvaluateSettings, figures: Mapping[str, Mapping[str, Any]]) -> str | None:
    if (highest := max(settings.pass_at, default=1)) > settings.samples:
        return f"pass@{highest} needs at least {highest} samples a problem; there are {settings.samples}"
    if settings.problems in figures and not figures[settings.problems].get(settings.split):
        return f"{settings.problems} holds no {settings.split} problem to measure on"
    return None


def forecast(context: Context, settings: EvaluateSettings, expected: Mapping[str, Mapping[str, Any]]) -> Forecast:
    each = settings.samples + int(settings.greedy and settings.sampling.temperature > 0)
    count = expected.get(settings.problems, {}).get(settings.split)
    if count is None:
        return Forecast("answers")
    total, done = count * each * len(settings.models), _done(context, settings)
    calls = total - done
    return Forecast("answers", total, done, {"calls": calls, "max_tokens": calls * settings.sampling.max_tokens})


def _done(context: Context, settings: EvaluateSettings) -> int:
    """Answers there already, of the models that exist already."""
    upstream = context.inputs.get(settings.problems)
    if upstream is None:
        return 0
    store = store_of(context)
    tasks = problems(store, upstream.digest, settings.split)
    ask = ask_of(context, settings.prompting, settings.thinking, settings.problems)
    keys: list[str] = []
    for name in settings.models.values():
        stage = name.removeprefix(modelspec.STAGE)
        if stage == name or stage in context.inputs:
            model = engines.model_of(name, settings.engine, context)
            keys += [wish.key for wish in wishes_of(settings, tasks, model.identity, ask)]
    return len(store.present("traces", keys))


def dependencies(settings: EvaluateSettings, hashes: FileHashes, upstream: Mapping[str, Manifest]) -> Mapping[str, str]:
    versions = verification.versions(settings.verifier, upstream[settings.problems], hashes)
    found = {f"verifier {name}": version for name, version in versions.items()}
    for name in settings.models.values():
        found |= engines.model_dependency(name, settings.engine, hashes)
    return found


STAGE = Stage(
    kind="evaluate",
    version=2,
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
