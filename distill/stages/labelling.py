"""Gathers a prm stage's step labels from their sources (`distill.stages.prm_labels`), sampling missing roll-outs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

from distill import engines, forecasts, generation, verification
from distill.engines.base import Engine
from distill.engines.options import OpenAIOptions
from distill.prm import exact, groups, imported, rollouts
from distill.prm.labels import Labelled
from distill.prm.rollouts import Prefix, Tried
from distill.prompting import Ask, plainly
from distill.stages.common import open_engine, resolved, sampler, store_of
from distill.stages.prm_labels import ExactLabels, FileLabels, GroupLabels, LabelSource, RolloutLabels, SlipLabels
from distill.steps import Split, split
from distill.store.records import Row, problem_of
from distill.store.records import problems as problems_of
from distill.thinking import join_thinking
from distill.types import Asked, Problem
from distill.verifiers import settled
from pipeline.errors import InputError
from pipeline.fingerprint import canonical, content_hash
from pipeline.stage import Context


def gather(
    context: Context, source: LabelSource, split: Split, seed: int, ask: Ask = plainly
) -> list[Labelled]:  # fmt: skip
    """All labelled responses of a source. Missing roll-outs are sampled, with prompts by ``ask``, and stored as they
    arrive."""
    if isinstance(source, FileLabels):
        return list(imported.read(Path(source.file), split, source.thinking))
    if isinstance(source, SlipLabels):
        rows = problems_of(store_of(context), context.inputs[source.slips].digest, "train")
        found = [problem for _, problem in rows]
        planted = exact.planted(exact.Checkers(), found, split, source.chance, source.each, seed)
        return _require_any(context, source.slips, list(planted))
    if isinstance(source, ExactLabels):
        checkers = exact.Checkers()
        checked = (
            exact.checked(checkers, t.key, t.problem, t.response, split, trace=t.key, correct=t.correct)
            for t in _judged_traces(context, source.exact)
        )
        return _require_any(context, source.exact, [one for one in checked if one is not None])
    if isinstance(source, GroupLabels):
        return _groups(context, source, split)
    return _rollouts(context, source, split, ask)


def _require_any(context: Context, stage: str, found: list[Labelled]) -> list[Labelled]:
    if not found:
        raise InputError(
            f"stage {context.name}: no problem of {stage} is of a family that can check its lines; use other labels"
        )
    return found


COMPLETED = (
    "SELECT verdict_key, outcome FROM verdicts SEMI JOIN wanted USING (verdict_key) JOIN traces USING (trace_key) "
    "WHERE cut IS NULL OR cut IS DISTINCT FROM prefix"
)
"""The outcomes of the wanted verdicts on traces that go beyond their prefix, or end with it."""
TEXT = "t.trace_key, t.prompt AS asked, t.thinking, t.answer, t.closed, t.cut"


def response_of(row: Row) -> str:
    """The text of a stored trace, nearly as it was generated; exactly, if it was truncated."""
    return row["cut"] or join_thinking(row["thinking"], row["answer"], row["closed"])


def _judged_traces(context: Context, stage: str) -> list[Tried]:
    """The traces of a verify stage that were judged correct or incorrect, in order."""
    rows = store_of(context).rows(
        f"SELECT m.position, v.outcome, {TEXT}, p.* FROM members m JOIN verdicts v ON m.row_key = v.verdict_key "
        "JOIN traces t ON t.trace_key = v.trace_key JOIN problems p ON p.problem_key = v.problem_key "
        "WHERE m.collection = ? AND v.outcome <> 'unverifiable'",
        [context.inputs[stage].digest],
    )
    return [_tried(row, row["outcome"] == "correct") for row in sorted(rows, key=lambda row: row["position"])]


def _tried(row: Row, correct: bool) -> Tried:
    return Tried(row["trace_key"], row["problem_key"], problem_of(row), response_of(row), correct, row["asked"])


# -- groups -----------------------------------------------------------------------------------


def _groups(context: Context, source: GroupLabels, split: Split) -> list[Labelled]:
    manifest = context.inputs[source.groups]
    judged = _judged_traces(context, source.groups) if manifest.identity.kind == "verify" else []
    members = [((one.problem_key, 0), one) for one in judged] or _judged_rollouts(context, source.groups)
    if not members:
        raise InputError(
            f"stage {context.name}: {source.groups} left no judged rollouts; name a grpo or a verify stage"
        )
    by_group: dict[tuple[str, int], list[Tried]] = defaultdict(list)
    for group, one in members:
        by_group[group].append(one)
    found: list[Labelled] = []
    for part in by_group.values():
        tree = {one.key: groups.Member(one.response, one.correct) for one in part}
        labels = groups.tree_labels(tree, split, source.kind, source.shared)
        found += [
            Labelled(one.key, one.problem, one.response, labels[one.key], "groups", one.key, one.correct)
            for one in part
        ]
    return found


def _judged_rollouts(context: Context, stage: str) -> list[tuple[tuple[str, int], Tried]]:
    """The judged rollouts of a grpo run, each with its group: a problem at a step, all sampled from one policy."""
    manifest = context.inputs[stage]
    rows = store_of(context).rows(
        f"SELECT r.step, r.group_index, v.settings AS judge, v.score, {TEXT}, p.* FROM rollouts r "
        "JOIN traces t USING (trace_key) JOIN problems p USING (problem_key) "
        "JOIN verdicts v USING (trace_key, problem_key) WHERE r.run = ? AND v.score IS NOT NULL",
        [manifest.fingerprint],
    )
    named = _judge_of(manifest.identity.settings)
    own = {row["verifier"] for row in rows}
    judges = {name: canonical(settled(name if named is None else named)) for name in own}
    counting = [row for row in rows if row["judge"] == judges[row["verifier"]]]
    return [
        ((row["problem_key"], row["step"]), _tried(row, row["score"] >= 0.5))
        for row in sorted(counting, key=lambda row: (row["step"], row["problem_key"], row["group_index"]))
    ]


def _judge_of(settings: Mapping[str, Any]) -> Any:
    """The verifier that decides what is correct, by a grpo stage's settings; None means each problem's own."""
    components = [c for c in settings.get("reward") or () if "verifier" in c]
    judging = next((c for c in components if c.get("weight", 1.0)), None)
    return judging["verifier"] if judging else settings.get("verifier")


# -- roll-outs --------------------------------------------------------------------------------


def _to_label(context: Context, source: RolloutLabels) -> list[Tried]:
    """The traces to label. If these are at most so many, they are drawn by their keys: the first ones would all be of
    the first source. A larger number draws the same traces and others."""
    tried = _judged_traces(context, source.rollouts)
    drawn = sorted(tried, key=lambda one: content_hash([source.seed, one.problem_key, one.key]))[: source.most]
    kept = {(one.problem_key, one.key) for one in drawn}
    return [one for one in tried if (one.problem_key, one.key) in kept]


def _rollouts(context: Context, source: RolloutLabels, split: Split, ask: Ask) -> list[Labelled]:
    tried = _to_label(context, source)
    problems = {one.problem_key: one.problem for one in tried}
    with ExitStack() as stack:
        outcomes = partial(_outcomes, context, source, problems, ask, _shared_engine(context, source, stack), count())
        if source.search == "first_error":
            return rollouts.first_error(tried, split, outcomes)
        return rollouts.every(tried, split, source.kind, outcomes)


def _shared_engine(context: Context, source: RolloutLabels, stack: ExitStack) -> Callable[[], Engine]:
    """The policy's engine, opened when it is first needed and kept for all rounds of a search."""

    @cache
    def engine() -> Engine:
        model = engines.model_of(source.policy, source.engine, context)
        return stack.enter_context(closing(open_engine(context, store_of(context), source.engine, model)))

    return engine


def _outcomes(
    context: Context, source: RolloutLabels, problems: Mapping[str, Problem], ask: Ask, engine: Callable[[], Engine],
    rounds: Iterator[int], prefixes: Sequence[Prefix],
) -> dict[Prefix, list[bool]]:  # fmt: skip
    """Complete prefixes and judge the completions, reusing those in the store. A prefix that leaves no room is not
    completed, which says nothing of its steps. Late in a search, a round may consist of
    the completions of one prefix, none of which can be judged."""
    store = store_of(context)
    model = sampler(context, store, source.policy, source.engine)
    sampling = source.sampling.sampling(source.seed)
    wishes = {
        (key, prefix): generation.wanted(
            [(key, problems[key])], model.identity, sampling, source.samples, partial(_with_prefix, ask, prefix)
        )
        for key, prefix in dict.fromkeys(prefixes)
    }
    every = [wish for part in wishes.values() for wish in part]
    missing, there = generation.missing_of(store, every)
    if missing:
        generation.sample(store, engine(), missing, there, context, "roll-outs")
    asked = [(wish.key, wish.problem_key, wish.problem) for wish in every]
    judged = verification.judgements(asked, resolved(context, source.verifier), context.hashes)
    verdicts = verification.make_verdicts(store, judged, context, source.workers, "roll-outs", next(rounds) > 0)
    rows = store.among("verdict_key", verdicts, COMPLETED)
    right = {row["verdict_key"]: row["outcome"] == "correct" for row in rows if row["outcome"] != "unverifiable"}
    verdict = dict(zip(((wish.problem_key, wish.key) for wish in every), verdicts, strict=True))
    return {
        prefix: [right[v] for w in part if (v := verdict[w.problem_key, w.key]) in right]
        for prefix, part in wishes.items()
    }


def _with_prefix(ask: Ask, prefix: str, problem: Problem) -> Asked:
    return replace(ask(problem), prefix=prefix)


def label_rows(run: str, labelled: Sequence[Labelled], part: str) -> list[Row]:
    """The rows in which labels are stored."""
    return [
        {
            "run": run,
            "example": one.key,
            "step": step,
            "label": label,
            "source": one.source,
            "part": part,
            "trace_key": one.trace,
        }
        for one in labelled
        for step, label in enumerate(one.labels)
        if label is not None
    ]


def foresee(context: Context, sources: Sequence[LabelSource], rule: str) -> dict[str, Any]:
    """An upper bound of the roll-outs: their ``total`` number, and what they take. Empty if there are none, or if it is
    not known yet (the traces are not judged, or steps are split by a tokenizer)."""
    wanted = [source for source in sources if isinstance(source, RolloutLabels)]
    if not wanted or rule.startswith("tokens") or any(source.rollouts not in context.inputs for source in wanted):
        return {}
    bills = [_bill(source, _prefixes(context, source, rule) * source.samples) for source in wanted]
    return {"total": sum(bill["calls"] for bill in bills), **forecasts.added(*bills)}


def _prefixes(context: Context, source: RolloutLabels, rule: str) -> int:
    """The number of prefixes to complete: all but the whole response, or those that a binary search for the first error
    of a wrong response tries."""
    tried = _to_label(context, source)
    steps = [(len(split(one.response, rule)), one.correct) for one in tried]
    if source.search == "every":
        return sum(count - 1 for count, _ in steps if count)
    return sum((count - 1).bit_length() for count, correct in steps if count and not correct)


def _bill(source: RolloutLabels, calls: int) -> dict[str, Any]:
    tokens, engine = calls * source.sampling.max_tokens, source.engine
    money = forecasts.bound_of_responses(engine, tokens) if isinstance(engine, OpenAIOptions) else {}
    return {"calls": calls, "max_tokens": tokens, **money}
