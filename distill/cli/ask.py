"""``distill ask``: ask a student (or any model) one question. The thinking is hidden unless asked for.

A single response is shown while it is sampled (`distill.cli.speaking`). With a strategy, several are sampled and one is
chosen (`rl.search`, through the catalog).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distill import catalog, engines, keys
from distill.cli import students
from distill.cli.open import load, workspace_of
from distill.cli.options import Dtype, Effort
from distill.cli.speaking import Aside, Speaker, speak
from distill.cli.traces import printable
from distill.engines.base import NoSteps, response_of, streamed
from distill.engines.options import OpenAIOptions, TransformersOptions, VllmOptions
from distill.modelspec import Model
from distill.prm import files
from distill.thinking import Response, opened, split_thinking
from distill.types import Completion, Finish, Problem, Request, Sampling, ThinkingBudget
from pipeline.document import parse_value
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes
from pipeline.mistakes import nearest

MAX_TOKENS = 512
"""The default limit for thinking and answer together, or for the answer alone if more thinking is asked for."""
SAMPLES = 8
"""The default number of samples of a strategy."""
SHARES = {Effort.LOW: 8, Effort.MEDIUM: 2, Effort.HIGH: None}
"""--max-tokens is divided by this to bound the thinking; None sets no bound."""


@dataclass(frozen=True)
class Where:
    """The model that answers, and its engine."""

    model: str | None
    pipeline: Path
    workspace: Path | None
    engine: str = "transformers"
    base_url: str | None = None
    key_from: str | None = None
    dialect: str | None = None

    def options(self) -> engines.Options:
        options = {"key_from": self.key_from, "dialect": self.dialect}
        given = {name: value for name, value in options.items() if value is not None}
        if self.base_url is not None:
            return self._endpoint(given)
        if self.engine == "openai":
            raise InputError("--engine openai needs the endpoint's address: --base-url http://host/v1")
        if given:
            option = "--" + next(iter(given)).replace("_", "-")
            raise InputError(f"{option} is about an endpoint; name it: --base-url http://host/v1")
        if self.engine == "transformers":
            return TransformersOptions(workers=1)
        if self.engine == "vllm":
            return VllmOptions()
        raise InputError(f"--engine {self.engine}: there are transformers, vllm and openai (with --base-url)")

    def _endpoint(self, given: Mapping[str, str]) -> OpenAIOptions:
        if self.engine == "vllm":
            raise InputError("--engine vllm runs here and --base-url elsewhere; give one of them (--dialect vllm?)")
        if not self.model:
            raise InputError("--base-url needs the model's name there: --model NAME")
        if self.key_from and not os.environ.get(self.key_from):
            raise InputError(f"--key-from {self.key_from}: there is no such environment variable")
        return _checked(OpenAIOptions, base_url=self.base_url, retries=1, **given)


@dataclass(frozen=True)
class Search:
    """How several samples become one answer."""

    strategy: str | None = None
    samples: int | None = None
    prm: str | None = None
    likelihood: str | None = None
    dtype: Dtype | None = None
    """Of the model that scores steps, ``prm`` or ``likelihood``; None means float32."""


def ask(
    question: str, where: Where, search: Search, show_thinking: bool, temperature: float | None,
    max_tokens: int | None, budget: int | None, effort: Effort | None, force_budget: int, seed: int, as_json: bool,
) -> None:  # fmt: skip
    if not question.strip():
        raise InputError("the question is empty")
    max_tokens = max_tokens or room(max(budget or 0, force_budget))
    problem = Problem("ask", question, "", "exact", "ask")
    thinking, options = bounds(max_tokens, budget, effort, force_budget), where.options()
    model = _model(where, options)
    strategy = _strategy(search, where, None if isinstance(options, OpenAIOptions) else model)
    usual = 1.0 if strategy and strategy.samples_at_random else 0.0
    sampling = Sampling(temperature=usual if temperature is None else temperature, max_tokens=max_tokens, seed=seed)
    if strategy:
        _check(strategy, sampling, options)
    aside = Aside(sys.stderr)
    if options.kind == "transformers" and sys.stderr.isatty():  # vllm says so itself
        aside.show(f"loading {model.source}")
    with closing(engines.open_engine(options, model, aside.show)) as engine:
        if strategy:
            _print_result(
                strategy.answer(engine, problem, sampling, thinking), strategy.label, max_tokens, show_thinking, as_json
            )
            return
        key = keys.trace_key(problem, engine.model, sampling, 0)
        request = Request(key, problem.messages, sampling, budget=thinking)
        if as_json:
            (completion,) = engine.generate([request])
            _print(completion)
        else:
            with aside.waiting():
                completion = speak(streamed(engine, request, _note), Speaker(sys.stdout, show_thinking))
            _warn_of_gaps(response_of(completion), completion.finish, max_tokens)


def _check(strategy: Any, sampling: Sampling, options: engines.Options) -> None:
    if strategy.samples_at_random and not sampling.temperature:
        raise InputError(f"--strategy {strategy.label} needs a --temperature above 0: at 0 all samples are one")
    if strategy.needs_steps and options.kind == "openai":
        raise NoSteps(options.kind)


def _print(completion: Completion) -> None:
    parts = response_of(completion)
    print(json.dumps({
        "answer": parts.answer, "thinking": parts.thinking, "closed": parts.closed,
        "tokens": completion.tokens, "thinking_tokens": completion.thinking_tokens,
        "finish": str(completion.finish),
    }))  # fmt: skip


def _warn_of_gaps(parts: Response, finish: Finish, max_tokens: int) -> None:
    """Report a missing or incomplete answer, so that silence or a part does not pass for the answer."""
    if finish is Finish.LENGTH:
        what = "the answer" if parts.closed else "the thinking"
        _note(f"cut off at {max_tokens} tokens, before {what} was complete; raise --max-tokens, or set a --budget")
    elif not parts.closed:
        _note("no answer: the model stopped inside its thinking")
    elif not parts.answer:
        _note("no answer: the model said nothing after its thinking")


def _print_result(result: Any, label: str, max_tokens: int, show_thinking: bool, as_json: bool) -> None:
    """Print the answer of a search and what it took. ``result`` is a `rl.search.drive.Result`."""
    piece, weights, score, usage = result.choice.piece, result.choice.weights, result.choice.score, result.usage
    parts = split_thinking(piece.text, opened=opened(piece.prompt))
    if as_json:
        print(json.dumps({
            "answer": parts.answer, "thinking": parts.thinking, "closed": parts.closed, "finish": str(piece.finish),
            "strategy": label, "weights": dict(weights), "score": score, "calls": usage.calls,
            "prompt_tokens": usage.prompt, "sampled_tokens": usage.sampled, "scored_tokens": usage.scored,
        }))  # fmt: skip
        return
    if show_thinking:
        print(f"{printable(parts.thinking)}\n")
    if parts.closed and parts.answer:
        print(printable(parts.answer))
    _warn_of_gaps(parts, piece.finish, max_tokens)
    chosen = "no vote" if score is None else f"score {score:.2g}"
    if weights:
        chosen = f"{weights[0][1] / sum(weight for _, weight in weights):.0%} of the weight"
    scored = f", {usage.scored:,} scored" if usage.scored else ""
    _note(f"{label}, {chosen}: {usage.calls} calls, {usage.sampled:,} tokens sampled{scored}")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _checked(kind: type[OpenAIOptions], **settings: Any) -> OpenAIOptions:
    try:
        return kind(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + "-".join(str(first["loc"][0]).split("_"))
        raise InputError(f"{option}: {first['msg'].removeprefix('Value error, ')}") from None


def _model(where: Where, options: engines.Options) -> Model:
    if isinstance(options, OpenAIOptions):
        assert where.model
        return engines.standing_model(where.model, options, FileHashes())
    return students.find(where.model, where.pipeline, where.workspace)


def _strategy(search: Search, where: Where, policy: Model | None) -> Any:
    """The search that the options ask for (`rl.search.live.LiveSearch`), or None without a strategy. ``policy`` is the
    model that answers; None for one at an endpoint, whose tokenizer is not here."""
    if search.dtype and not (search.prm or search.likelihood):
        raise InputError("--scorer-dtype is about the model that scores steps; name it: --prm or --likelihood")
    if search.strategy is None:
        if search.prm or search.likelihood:
            raise InputError("--prm and --likelihood score the steps of a search: name a --strategy too")
        if search.samples:
            raise InputError("--samples is how many a strategy may take: name a --strategy too (majority?)")
        return None
    if search.prm and search.likelihood:
        raise InputError("--prm and --likelihood both say who scores steps; give one of them")
    spec = parse_value(search.strategy) if search.strategy.lstrip().startswith("{") else search.strategy
    likelihood = students.find(search.likelihood, where.pipeline, where.workspace) if search.likelihood else None
    prm = _directory(search.prm, where) if search.prm else None
    dtype = search.dtype or Dtype.FLOAT32
    return catalog.resolve("doors", "search")(spec, search.samples or SAMPLES, prm, likelihood, policy, str(dtype))


def _directory(prm: str, where: Where) -> Path:
    """The directory of a process reward model, which is given as that or as ``prm:STAGE``."""
    stage = prm.removeprefix(files.PREFIX)
    if stage == prm:
        if not Path(prm).is_dir():
            raise InputError(f"--prm {prm}: {prm} is no directory; what a stage made is {files.PREFIX}STAGE")
        return Path(prm)
    spec = load(where.pipeline, workspace=where.workspace)
    makers = [s.name for s in spec.stages.values() if s.stage.produces == "prm"]
    if stage not in makers:
        raise InputError(
            f"--prm {prm}: no stage of {where.pipeline} that trains one is called so{nearest(stage, makers)}"
        )
    if not (found := workspace_of(spec).path / stage).is_dir():
        raise InputError(f"--prm {prm}: not trained yet; run it: distill run {stage} --pipeline {where.pipeline}")
    return found


def room(thinking: int) -> int:
    """The default of --max-tokens, which is higher for a large thinking budget."""
    return MAX_TOKENS if thinking < MAX_TOKENS else thinking + MAX_TOKENS


def bounds(max_tokens: int, budget: int | None, effort: Effort | None, force_budget: int) -> ThinkingBudget | None:
    """The thinking budget that the options ask for, or None."""
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
