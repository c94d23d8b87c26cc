"""Making the traces that are missing: from problems and a model to rows in the store.

The one loop behind the generate and evaluate stages. It computes the keys that are wanted, asks the
store which are there, samples just the others, and appends each batch durably as it finishes; being
killed costs what was in flight. It has no resume path: a second call finds less to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from distill import keys
from distill.engines.base import Engine, PromptTooLong, response_of
from distill.store import Store
from distill.store.records import Row, trace_row
from distill.types import Completion, Problem, Request, Sampling, Trace
from pipeline.errors import InputError, PipelineError
from pipeline.stage import Context, stop_check

APPEND_SECONDS = 0.5
APPEND_ROWS = 512
INGEST_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """One sample that should exist. Problems that ask the same share their samples: equal keys."""

    key: str
    problem_key: str
    problem: Problem
    sampling: Sampling
    sample_index: int


def wanted(problems: Sequence[tuple[str, Problem]], model: str, sampling: Sampling, samples: int) -> list[Wanted]:
    """Every sample asked for, problem by problem. ``problems`` are (key, problem) pairs."""
    return [
        Wanted(keys.trace_key(problem, model, sampling, index), key, problem, sampling, index)
        for key, problem in problems
        for index in range(samples)
    ]


def make_traces(
    store: Store,
    wishes: Sequence[Wanted],
    open_engine: Callable[[], Engine],
    context: Context,
    label: str = "",
) -> None:
    """Sample what the store lacks of ``wishes``. The engine is opened only if anything is missing."""
    store.ingest()
    by_key = {wish.key: wish for wish in wishes}
    present = store.present("traces", by_key)
    missing = {key: wish for key, wish in by_key.items() if key not in present}
    if not missing:
        return
    stop_check(context.stopping)
    with closing(open_engine()) as engine:
        requests = (Request(wish.key, wish.problem.messages, wish.sampling) for wish in missing.values())
        writer = _Writer(store)
        done, tokens, cost, begun = len(present), 0, Decimal(0), time.monotonic()
        figures: dict[str, Any] = {"model": label} if label else {}

        def stopping() -> bool:  # asked every second or so, also while no sample ends
            writer.tick()
            return context.stopping()

        try:
            for completion in engine.generate(requests, stopping):
                wish = missing[completion.key]
                trace = trace_of(
                    completion, wish.problem.id, wish.sampling,
                    model=engine.model, engine=engine.name, sample_index=wish.sample_index,
                )  # fmt: skip
                writer.add(trace_row(trace, keys.prompt_key(wish.problem)))
                done, tokens, cost = done + 1, tokens + trace.tokens, cost + completion.cost
                rate = tokens / max(time.monotonic() - begun, 1e-9)
                if cost:
                    left = cost * (len(by_key) - done) / (done - len(present))
                    figures |= {"cost": float(round(cost, 4)), "cost_left": float(round(left, 4))}
                context.progress(done, len(by_key), **figures, tokens=tokens, tokens_per_second=round(rate))
        except PromptTooLong as error:
            raise InputError(f"problem {missing[error.key].problem.name}: {error}") from None
        finally:  # whatever ended it, a cap or an endpoint that went down: what is finished is kept
            writer.flush()
            store.ingest()
    stop_check(context.stopping)
    if done < len(by_key):
        raise PipelineError(f"the engine ended {len(by_key) - done} samples short; run the same command again")


def trace_of(
    completion: Completion, problem_id: str, sampling: Sampling, *, model: str, engine: str, sample_index: int
) -> Trace:
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
    )


class _Writer:
    """Collects rows and makes them durable often enough that a crash costs about a second."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: list[Row] = []
        self._appended = self._ingested = time.monotonic()

    def add(self, row: Row) -> None:
        self._rows.append(row)
        self.tick()

    def tick(self) -> None:
        """Keep what has waited long enough; to be called also when nothing comes."""
        now = time.monotonic()
        if len(self._rows) >= APPEND_ROWS or now - self._appended >= APPEND_SECONDS:
            self.flush()
        if now - self._ingested >= INGEST_SECONDS:
            self._store.ingest_if_free()
            self._ingested = time.monotonic()

    def flush(self) -> None:
        self._store.append("traces", self._rows)
        self._rows = []
        self._appended = time.monotonic()
