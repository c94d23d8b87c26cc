"""evaluate: how often each model solves the held-out problems, with intervals clustered by problem.

Samples and verdicts go through the same loops as the teacher's, so an unchanged model is not sampled
again, and every score can be traced to its texts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distill import engines, modelspec, verification
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
from distill.spending import Spending
from distill.stages.common import VerifierSpec, ask_of, members_present, store_of
from distill.statistics import Estimate, clustered_mean, paired_difference, pass_at_k
from distill.store.records import Row, problems, record_members
from distill.types import Problem
from pipeline.fingerprint import FileHashes
from pipeline.manifest import Manifest
from pipeline.stage import Context, Forecast, Input, Operational, Output, Settings, Stage


class EvaluateSettings(Settings):
    problems: Annotated[str, Input(accepts=("problems",))]
    models: Annotated[dict[str, str], Input(accepts=("student", "model"), prefix=modelspec.STAGE), Field(min_length=1)]
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
        rows = list(verification.scores(store, verdicts))
        sampled = [row for row in rows if label_of[row["verdict_key"]] == label]
        by_problem[label] = _scores(sampled)
        subjects[label] = summary(sampled, settings.pass_at)
        if greedy := [row for row in rows if label_of[row["verdict_key"]] != label]:
            subjects[label]["greedy"] = _mean(greedy)["pass_at_1"]
        context.note(f"{label}: pass@1 {_percent(clustered_mean(by_problem[label]))}")
    digest = record_members(store, members)
    steps = _paired_steps(by_problem)
    again = verification.failed_once([key for _, key in members])
    return Output(digest, {"members": len(members), "subjects": subjects, "paired": steps, **again})


def wishes_of(
    settings: EvaluateSettings, tasks: Sequence[tuple[str, Problem]], model: str, ask: Ask = plainly
) -> list[Wanted]:
    sampling = settings.sampling.sampling(settings.seed)
    wishes = wanted(tasks, model, sampling, settings.samples, ask)
    if settings.greedy and sampling.temperature > 0:
        wishes += wanted(tasks, model, replace(sampling, temperature=0.0), 1, ask)
    return wishes


def summary(rows: Sequence[Row], pass_at: Sequence[int]) -> dict[str, Any]:
    """Everything the report says of one model, from its verdict rows."""
    by_family: dict[str, list[Row]] = defaultdict(list)
    by_difficulty: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_family[row["source"]].append(row)
        if row["difficulty"] is not None:
            by_difficulty[f"{row['source']}/{row['difficulty']}"].append(row)
    return {
        **_mean(rows),
        **{f"pass_at_{k}": _pass_at(rows, k) for k in pass_at if k > 1},
        "tokens_per_answer": round(fmean(row["tokens"] for row in rows), 2),
        "thinking_tokens_per_answer": round(fmean(row["thinking_tokens"] for row in rows), 2),
        "problems": len({row["problem_key"] for row in rows}),
        "samples": len(rows),
        "truncated": round(fmean(row["finish"] == "length" for row in rows), 4),
        **{name: n for name in ("refused", "empty") if (n := sum(row["finish"] == name for row in rows))},
        "unverifiable": sum(row["outcome"] == "unverifiable" for row in rows),
        "by_source": {name: _mean(part) for name, part in sorted(by_family.items())},
        "by_difficulty": {name: _mean(part) for name, part in sorted(by_difficulty.items())},
    }


def _scores(rows: Sequence[Row]) -> dict[str, list[float]]:
    """0 or 1 for each verifiable sample, by problem."""
    by_problem: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["outcome"] != "unverifiable":
            by_problem[row["problem_key"]].append(float(row["outcome"] == "correct"))
    return by_problem


def _mean(rows: Sequence[Row]) -> dict[str, Any]:
    estimate = clustered_mean(_scores(rows))
    return {"pass_at_1": _rounded(estimate.value), "ci95": [_rounded(estimate.low), _rounded(estimate.high)]}


def _rounded(value: float) -> float | None:
    return None if value != value else round(value, 4)


def _pass_at(rows: Sequence[Row], k: int) -> float | None:
    """Mean over the problems with at least ``k`` samples that could be judged."""
    judged = [scores for scores in _scores(rows).values() if len(scores) >= k]
    return round(fmean(pass_at_k(len(s), round(sum(s)), k) for s in judged), 4) if judged else None


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f}% (95%: {100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _paired_steps(by_problem: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """Each model against the one before it, on the same problems."""
    labels = list(by_problem)
    steps = []
    for before, after in pairwise(labels):
        difference = paired_difference(by_problem[before], by_problem[after])
        interval = [_rounded(difference.low), _rounded(difference.high)]
        steps.append({"from": before, "to": after, "difference": _rounded(difference.value), "ci95": interval})
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
