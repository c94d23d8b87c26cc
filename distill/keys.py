"""Identity: the one module that makes the keys of all rows. Keys depend on content, never on position or time.

A trace's key does not depend on batch size, device, concurrency or row order. `pipeline.plan` makes the fingerprint of
a stage from digests that come from here.
"""

from __future__ import annotations

from typing import Any

from distill.types import Asked, Problem, Sampling
from pipeline.fingerprint import content_hash


def prompt_key(problem: Problem) -> str:
    """Key of what a model is asked. It leaves out how the answer is checked: another verifier or a corrected reference
    answer must not cost the teacher's tokens again."""
    return content_hash(["prompt", problem.messages])


def problem_key(problem: Problem) -> str:
    """Key of what is asked, how it is checked, and its attributes (source, difficulty, licence, structure).

    It leaves out the split and the name: the same problem may be used for training here and held out there.
    """
    attributes = [problem.source, problem.difficulty, problem.licence, problem.structure]
    return content_hash(["problem", *checked(problem), *attributes])


def checked(problem: Problem) -> list[Any]:
    """What is asked and how it is checked. Problems that agree in this are one problem, whichever source lists it."""
    return [problem.system, problem.prompt, problem.reference, problem.verifier, dict(problem.metadata)]


def trace_key(problem: Problem, model: str, sampling: Sampling, sample_index: int, asked: str = "") -> str:
    """Key of a sampled trace.

    ``model`` is the weights' identity (`distill.modelspec`), which covers the chat template. Together with the messages
    it therefore determines the rendered prompt, without rendering it. A greedy sample depends on neither the seed nor
    top_p and top_k, so its key does not either. ``asked`` is the problem's `asked_key`. The problem's own prompt stays
    in the key beside it: a trace belongs to one prompt, even if a template leaves out what distinguishes two problems.
    """
    how: list[Any] = [sampling.max_tokens, sampling.temperature]
    if sampling.temperature > 0:
        how += [sampling.top_p, sampling.top_k, sampling.seed]
    return content_hash(["trace", prompt_key(problem), model, how, sample_index, *([asked] if asked else [])])


def asked_key(problem: Problem, asked: Asked) -> str:
    """Key of what a model is asked beyond the problem itself; "" if that is nothing, so that settings without effect
    keep the old key."""
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
    """Key of a trace that continues the trace ``cut``, which ended at its limit, up to a larger limit. The key of the
    cut trace stands for everything up to there."""
    return content_hash(["continued", cut, max_tokens])


def imported_key(problem: Problem, model: str, text: str) -> str:
    """Key of a published trace. It depends on the text, because how it was sampled is unknown."""
    return content_hash(["imported", prompt_key(problem), model, text])


def rollout_key(run: str, step: int, problem: str, sample_index: int) -> str:
    """Key of a rollout, sampled with the weights of ``run`` (a fingerprint) after ``step`` optimizer steps."""
    return content_hash(["rollout", run, step, problem, sample_index])


def verdict_key(trace: str, problem: str, verifier: str, version: str, spec: str) -> str:
    """Key of a verdict. ``problem`` is the key of the problem whose reference was used; ``spec`` is the verifier as
    written in YAML, with its settings, in canonical form."""
    return content_hash(["verdict", trace, problem, verifier, version, spec])


def score_key(scorer: str, trace: str) -> str:
    """Key of the scores that a step scorer (given by identity) gives a trace. The key of a trace stands for its prompt
    and its text."""
    return content_hash(["scored", scorer, trace])


def failed_key(verdict: str) -> str:
    """The key that stores the first failure of a verdict. The verdict's own key stays free for the next run. (The view
    `judgements` relies on the suffix.)"""
    return f"{verdict}-failed"
