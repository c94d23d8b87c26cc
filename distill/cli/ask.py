"""``distill ask``: one question to a student (or any model), thinking hidden unless asked for."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

from distill import engines, keys, modelspec
from distill.cli.open import load, workspace_of
from distill.cli.traces import printable
from distill.engines.base import response_of
from distill.engines.options import TransformersOptions
from distill.modelspec import Model
from distill.types import Problem, Request, Sampling
from pipeline.errors import InputError


def ask(
    question: str, model: str | None, pipeline: Path, workspace: Path | None, show_thinking: bool,
    temperature: float, max_tokens: int, seed: int, as_json: bool,
) -> None:  # fmt: skip
    if not question.strip():
        raise InputError("the question is empty")
    found = find(model, pipeline, workspace)
    problem = Problem("ask", question, "", "exact", "ask")
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens, seed=seed)
    request = Request(keys.trace_key(problem, found.identity, sampling, 0), problem.messages, sampling)
    with closing(engines.open_engine(TransformersOptions(workers=1), found)) as engine:
        (completion,) = engine.generate([request])
    parts = response_of(completion)
    if as_json:
        print(json.dumps({"answer": parts.answer, "thinking": parts.thinking, "closed": parts.closed,
                          "tokens": len(completion.token_ids), "finish": str(completion.finish)}))  # fmt: skip
        return
    if show_thinking:
        print(f"{printable(parts.thinking)}\n")
    print(printable(parts.answer) if parts.closed else f"(no answer within {max_tokens} tokens: still thinking)")


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
