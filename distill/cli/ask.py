"""``distill ask``: one question to a student (or any model), thinking hidden unless asked for."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

from distill import engines, keys, modelspec
from distill.cli.open import load, workspace_of
from distill.cli.options import Effort
from distill.cli.traces import printable
from distill.engines.base import response_of
from distill.engines.options import TransformersOptions
from distill.modelspec import Model
from distill.types import Problem, Request, Sampling, ThinkingBudget
from pipeline.errors import InputError

SHARES = {Effort.LOW: 8, Effort.MEDIUM: 2, Effort.HIGH: None}
"""Thinking may take so many times less than --max-tokens; None sets no bound."""


def ask(
    question: str, model: str | None, pipeline: Path, workspace: Path | None, show_thinking: bool,
    temperature: float, max_tokens: int, budget: int | None, effort: Effort | None, force_budget: int,
    seed: int, as_json: bool,
) -> None:  # fmt: skip
    if not question.strip():
        raise InputError("the question is empty")
    found = find(model, pipeline, workspace)
    problem = Problem("ask", question, "", "exact", "ask")
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens, seed=seed)
    thinking = bounds(max_tokens, budget, effort, force_budget)
    key = keys.trace_key(problem, found.identity, sampling, 0)
    request = Request(key, problem.messages, sampling, budget=thinking)
    with closing(engines.open_engine(TransformersOptions(workers=1), found)) as engine:
        (completion,) = engine.generate([request])
    parts = response_of(completion)
    if as_json:
        print(json.dumps({
            "answer": parts.answer, "thinking": parts.thinking, "closed": parts.closed,
            "tokens": len(completion.token_ids), "thinking_tokens": completion.thinking_tokens,
            "finish": str(completion.finish),
        }))  # fmt: skip
        return
    if show_thinking:
        print(f"{printable(parts.thinking)}\n")
    print(printable(parts.answer) if parts.closed else f"(no answer within {max_tokens} tokens: still thinking)")


def bounds(max_tokens: int, budget: int | None, effort: Effort | None, force_budget: int) -> ThinkingBudget | None:
    """How long the answer may and must think; None where nobody minds."""
    if budget is not None and effort is not None:
        raise InputError(f"--budget {budget} and --effort {effort} both say how long to think; give one of them")
    most = budget
    if effort is not None and (part := SHARES[effort]):
        most = max_tokens // part
    if most is not None and most < force_budget:
        raise InputError(f"--force-budget {force_budget} is more thinking than the {most} tokens there may be")
    if (bound := max(most or 0, force_budget)) >= max_tokens:
        raise InputError(
            f"{bound} tokens of thinking leave no room for the answer in --max-tokens {max_tokens}; raise that"
        )
    return ThinkingBudget(most, force_budget) if most is not None or force_budget else None


def find(name: str | None, pipeline: Path, workspace: Path | None) -> Model:
    """A stage's student by the stage's name, or any model by its own; the last student by default."""
    spec = load(pipeline, workspace=workspace)
    space = workspace_of(spec)
    name = name.removeprefix(modelspec.STAGE) if name else None
    students = [s.name for s in spec.stages.values() if s.stage.produces == "student"]
    made = {s: space.path / s / modelspec.MODEL for s in students if (space.path / s / modelspec.MODEL).is_dir()}
    if name is None:
        if not made:
            raise InputError(f"{space.path}: has no student yet; run the pipeline, or name a model with --model")
        name = next((s for s in reversed(list(made)) if "control" not in s), list(made)[-1])
    if name in made:
        return Model(str(made[name]), modelspec.identity_of(str(made[name].absolute()), space.hashes))
    if name in students:
        raise InputError(f"stage {name} has made no student yet; run it: distill run {name} --pipeline {pipeline}")
    return modelspec.find(name, space.path, {}, space.hashes)
