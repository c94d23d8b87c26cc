"""Identity: the one module that makes every key of a row. Keys are of content, never of position or time.

Not in a trace's key: batch size, device, concurrency, row order. The fingerprint of a stage is made
by `pipeline.plan` from digests that come from here.
"""

from __future__ import annotations

from typing import Any

from distill.types import Asked, Problem, Sampling
from pipeline.fingerprint import content_hash


def prompt_key(problem: Problem) -> str:
    """What a model is asked. How the answer is checked is not in it: another verifier or a mended
    reference answer must not cost the teacher's tokens again."""
    return content_hash(["prompt", problem.messages])


def problem_key(problem: Problem) -> str:
    """What is asked, how it is checked, and what is said of it (source, difficulty, licence, structure).
    Not the split, and not the name: one problem may be training material here and held out there."""
    said = [problem.source, problem.difficulty, problem.licence, problem.structure]
    return content_hash(["problem", *checked(problem), *said])


def checked(problem: Problem) -> list[Any]:
    """What is asked and how it is checked: problems alike in this are one problem, whoever lists it."""
    return [problem.system, problem.prompt, problem.reference, problem.verifier, dict(problem.metadata)]


def trace_key(problem: Problem, model: str, sampling: Sampling, sample_index: int, asked: str = "") -> str:
    """``model`` is the weights' identity (`distill.modelspec`), which covers the chat template, so
    that messages and model together stand for the rendered prompt without rendering it.

    A greedy sample depends on neither seed nor truncation, so its key does not. ``asked`` is the problem's
    `asked_key`. The problem's own prompt stays in the key beside it: a trace belongs to one prompt, also where a
    template leaves out what tells two problems apart.
    """
    how: list[Any] = [sampling.max_tokens, sampling.temperature]
    if sampling.temperature > 0:
        how += [sampling.top_p, sampling.top_k, sampling.seed]
    return content_hash(["trace", prompt_key(problem), model, how, sample_index, *([asked] if asked else [])])


def asked_key(problem: Problem, asked: Asked) -> str:
    """What a model is asked beyond what the problem asks; empty where that is nothing, so that settings which
    change nothing cost nothing."""
    found: dict[str, Any] = {}
    if asked.messages != problem.messages:
        found["messages"] = asked.messages
    if asked.prefix:
        found["prefix"] = asked.prefix
    if asked.budget and (budget := asked.budget.settled):
        found["budget"] = budget
    if asked.stop:
        found["stop"] = asked.stop
    return content_hash(["asked", found]) if found else ""


def continued_key(cut: str, max_tokens: int) -> str:
    """A trace that goes on where the trace ``cut`` ended at its limit, up to a larger one. The key of the cut
    trace stands for all that was asked and said until then."""
    return content_hash(["continued", cut, max_tokens])


def imported_key(problem: Problem, model: str, text: str) -> str:
    """A published trace is known by what it says: how it was sampled, nobody can tell."""
    return content_hash(["imported", prompt_key(problem), model, text])


def rollout_key(run: str, step: int, problem: str, sample_index: int) -> str:
    """A rollout's weights are those of ``run`` (a fingerprint) after ``step`` optimizer steps."""
    return content_hash(["rollout", run, step, problem, sample_index])


def verdict_key(trace: str, problem: str, verifier: str, version: str, spec: str) -> str:
    """``problem`` is the key of the problem whose reference it was judged by; ``spec`` is the verifier as
    it stands in YAML, settings and all, in canonical form."""
    return content_hash(["verdict", trace, problem, verifier, version, spec])


def score_key(scorer: str, trace: str) -> str:
    """What a step scorer (by identity) says of a trace. The key of a trace stands for its prompt and its text."""
    return content_hash(["scored", scorer, trace])


def failed_key(verdict: str) -> str:
    """Where the first failure to come to a verdict is kept; the verdict's own key stays free for the next
    run. (The view `judgements` relies on the ending.)"""
    return f"{verdict}-failed"
