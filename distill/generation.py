"""Making the traces that are missing: from problems and a model to rows in the store.

The one loop behind the generate and evaluate stages. It computes the keys that are wanted, asks the
store which are there, samples just the others, and appends each batch durably as it finishes; being
killed costs what was in flight. It has no resume path: a second call finds less to do. What is done with
responses that were cut at their limit is `distill.truncation`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from distill import keys
from distill.engines.base import Engine, PromptTooLong, response_of
from distill.prompting import Ask, plainly
from distill.store import Store
from distill.store.appending import Appender
from distill.store.records import Row, trace_row
from distill.types import Asked, Completion, Finish, Problem, Request, Sampling, Trace
from pipeline.errors import InputError, PipelineError
from pipeline.stage import Context, stop_check

UNANSWERED = {Finish.LENGTH: "truncated", Finish.REFUSED: "refused", Finish.EMPTY: "empty"}
"""What the outcomes other than an answer are called in counts."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One sample that should exist. Problems that ask the same share their samples: equal keys.

    ``continues`` is the key of the cut trace that it goes on from, if it does.
    """

    key: str
    problem_key: str
    problem: Problem
    sampling: Sampling
    sample_index: int
    asked: Asked
    continues: str | None = None


def wanted(
    problems: Sequence[tuple[str, Problem]], model: str, sampling: Sampling, samples: int, ask: Ask = plainly
) -> list[Wanted]:
    """Every sample asked for, problem by problem. ``problems`` are (key, problem) pairs."""
    wishes = []
    for key, problem in problems:
        asked = ask(problem)
        beyond = keys.asked_key(problem, asked)
        for index in range(samples):
            trace = keys.trace_key(problem, model, sampling, index, beyond)
            wishes.append(Wanted(trace, key, problem, sampling, index, asked))
    return wishes


def request_of(wish: Wanted) -> Request:
    asked = wish.asked
    return Request(wish.key, asked.messages, wish.sampling, asked.prefix, asked.budget, asked.stop)


def make_traces(
    store: Store,
    wishes: Sequence[Wanted],
    open_engine: Callable[[], Engine],
    context: Context,
    label: str = "",
) -> None:
    """Sample what the store lacks of ``wishes``. The engine is opened only if anything is missing."""
    missing, done = missing_of(store, wishes)
    if not missing:
        return
    stop_check(context.stopping)
    with closing(open_engine()) as engine:
        sample(store, engine, missing, done, context, label)


def missing_of(store: Store, wishes: Sequence[Wanted]) -> tuple[dict[str, Wanted], int]:
    """What the store lacks of ``wishes``, by key, and how many of them it has."""
    store.ingest()
    by_key = {wish.key: wish for wish in wishes}
    present = store.present("traces", by_key)
    return {key: wish for key, wish in by_key.items() if key not in present}, len(present)


def sample(
    store: Store, engine: Engine, missing: dict[str, Wanted], present: int, context: Context, label: str = ""
) -> None:
    """Sample all of ``missing``, each kept as it comes. ``present`` others are there already."""
    appender, tally = Appender(store), _Tally(present, present + len(missing), label)

    def stopping() -> bool:  # asked every second or so, also while no sample ends
        appender.tick()
        return context.stopping()

    try:
        for completion in engine.generate(map(request_of, missing.values()), stopping):
            appender.add("traces", row_of(missing[completion.key], completion, engine))
            tally.add(completion)
            context.progress(tally.done, tally.total, **tally.figures())
    except PromptTooLong as error:
        raise InputError(f"problem {missing[error.key].problem.name}: {error}") from None
    finally:  # whatever ended it, a cap or an endpoint that went down: what is finished is kept
        appender.flush()
        store.ingest()
    stop_check(context.stopping)
    if left := tally.total - tally.done:
        raise PipelineError(f"the engine ended {left} samples short; run the same command again")


def row_of(wish: Wanted, completion: Completion, engine: Engine) -> Row:
    """What is kept of the answer to a wish."""
    trace = trace_of(
        completion, wish.problem.id, wish.sampling,
        model=engine.model, engine=engine.name, sample_index=wish.sample_index, asked=wish.asked,
    )  # fmt: skip
    cut = completion.text if completion.finish in (Finish.LENGTH, Finish.STEP) else None
    return trace_row(replace(trace, cut=cut, continues=wish.continues), keys.prompt_key(wish.problem))


def trace_of(
    completion: Completion, problem_id: str, sampling: Sampling, *,
    model: str, engine: str, sample_index: int, asked: Asked,
) -> Trace:  # fmt: skip
    """A completion as a trace."""
    parts = response_of(completion)
    return Trace(
        key=completion.key,
        problem_id=problem_id,
        model=model,
        engine=engine,
        sampling=sampling,
        sample_index=sample_index,
        prompt=completion.prompt,
        thinking=parts.thinking,
        answer=parts.answer,
        closed=parts.closed,
        thinking_tokens=completion.thinking_tokens,
        answer_tokens=completion.tokens - completion.thinking_tokens,
        prompt_ids=completion.prompt_ids,
        token_ids=completion.token_ids,
        logprobs=completion.logprobs,
        finish=completion.finish,
        seconds=completion.seconds,
        prompt_tokens=completion.prompt_tokens,
        prefix=asked.prefix,
        budget=asked.budget,
        forced=completion.forced,
    )


class _Tally:
    """What a run has made so far, for whoever watches."""

    def __init__(self, done: int, total: int, label: str) -> None:
        self.done, self.total = done, total
        self._label, self._tokens, self._cost, self._begun = label, 0, Decimal(0), time.monotonic()
        self._present = done
        self._finishes: Counter[Finish] = Counter()

    def add(self, completion: Completion) -> None:
        self.done += 1
        self._tokens += completion.tokens
        self._cost += completion.cost
        self._finishes[completion.finish] += 1

    def figures(self) -> dict[str, Any]:
        """The outcomes that are no answer are told where there are any."""
        figures: dict[str, Any] = {"model": self._label} if self._label else {}
        if self._cost:
            left = self._cost * (self.total - self.done) / (self.done - self._present)
            figures |= {"cost": float(round(self._cost, 4)), "cost_left": float(round(left, 4))}
        figures |= {name: n for finish, name in UNANSWERED.items() if (n := self._finishes[finish])}
        rate = self._tokens / max(time.monotonic() - self._begun, 1e-9)
        return {**figures, "tokens": self._tokens, "tokens_per_second": round(rate)}
