"""Sample the traces that are missing and append them to the store.

This is the loop behind the generate and evaluate stages. It computes the wanted keys, asks the store which of them
exist, samples the others, and appends each batch durably as it finishes; a kill costs only what was in flight. There is
no resume path: a second call finds less to do. `distill.truncation` decides what happens to responses that were cut at
their limit.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
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
"""The names, in counts, of the outcomes other than an answer."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One sample that should exist. Problems with the same prompt share their samples, because their keys are equal.

    ``continues`` is the key of the cut trace that this one continues, if any.
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
    """Every wanted sample, problem by problem. ``problems`` are (key, problem) pairs."""
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


def missing_of(store: Store, wishes: Sequence[Wanted]) -> tuple[dict[str, Wanted], int]:
    """Those of ``wishes`` that the store lacks, by key, and the number that it has."""
    store.ingest()
    by_key = {wish.key: wish for wish in wishes}
    present = store.present("traces", by_key)
    return {key: wish for key, wish in by_key.items() if key not in present}, len(present)


def sample(
    store: Store, engine: Engine, missing: dict[str, Wanted], present: int, context: Context, label: str = ""
) -> None:
    """Sample all of ``missing`` and store each as it finishes. ``present`` counts those that exist already."""
    appender, tally = Appender(store), _Tally(present, present + len(missing), label)

    def stopping() -> bool:  # called about once a second, even while no sample finishes
        appender.tick()
        return context.stopping()

    try:
        for completion in engine.generate(map(request_of, missing.values()), stopping):
            appender.add("traces", row_of(missing[completion.key], completion, engine))
            tally.add(completion)
            context.progress(tally.done, tally.total, **tally.figures())
    except PromptTooLong as error:
        raise InputError(f"problem {missing[error.key].problem.name}: {error}") from None
    finally:  # finished samples are kept, even if a cap or a failing endpoint ended the loop
        appender.flush()
        store.ingest()
    stop_check(context.stopping)
    if left := tally.total - tally.done:
        raise PipelineError(f"the engine ended before the last {left} samples; run the same command again")


def row_of(wish: Wanted, completion: Completion, engine: Engine) -> Row:
    """The row of the table ``traces`` for a completion of a wish."""
    trace = trace_of(
        completion, wish.sampling,
        model=engine.model, engine=engine.name, sample_index=wish.sample_index, asked=wish.asked,
    )  # fmt: skip
    cut = completion.text if completion.finish in (Finish.LENGTH, Finish.STEP) else None
    return trace_row(replace(trace, cut=cut, continues=wish.continues), keys.prompt_key(wish.problem))


def trace_of(
    completion: Completion, sampling: Sampling, *,
    model: str, engine: str, sample_index: int, asked: Asked,
) -> Trace:  # fmt: skip
    """Make a trace of a completion."""
    parts = response_of(completion)
    return Trace(
        key=completion.key,
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
    """Counts what a run has made so far, for the progress display."""

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
        """The figures of the progress display. Outcomes other than an answer appear only if there are any."""
        figures: dict[str, Any] = {"model": self._label} if self._label else {}
        if self._cost:
            left = self._cost * (self.total - self.done) / (self.done - self._present)
            figures |= {"cost": float(round(self._cost, 4)), "cost_left": float(round(left, 4))}
        figures |= {name: n for finish, name in UNANSWERED.items() if (n := self._finishes[finish])}
        rate = self._tokens / max(time.monotonic() - self._begun, 1e-9)
        return {**figures, "tokens": self._tokens, "tokens_per_second": round(rate)}
