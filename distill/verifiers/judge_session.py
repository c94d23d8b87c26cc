"""A session with a judge: its engine and the open requests.

Equal requests are sent once (samples of one problem are often identical), and a verdict is yielded as soon as its last
reply arrives. Exceptions of the engine (the endpoint is down, or a cap is reached) propagate, after the verdicts of the
replies before them.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from distill import engines
from distill.engines.base import Engine, PromptTooLong
from distill.engines.openai import OpenAIEngine
from distill.thinking import Response
from distill.types import Completion, Problem, Request, Verdict
from distill.verifiers.base import Key, Note, Stopping, never
from distill.verifiers.llm_judge import Judge
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from distill.spending import Spending


class JudgeSession:
    """A judge with its engine, which is loaded for the first request. One caller at a time; others wait."""

    def __init__(self, judge: Judge, note: Note, spending: Spending | None = None) -> None:
        self._judge, self._note = judge, note
        self._spending = spending.of(judge.account) if spending else None
        self._engine: Engine | None = None
        self._lock, self._owner = threading.Lock(), 0

    def judge(
        self, items: Sequence[tuple[Key, Problem, Response]], stopping: Stopping = never
    ) -> Iterator[tuple[Key, Verdict]]:
        """Yield verdicts as `distill.verifiers.base.Session` specifies."""
        if self._owner == threading.get_ident():
            raise PipelineError("this thread is already using this judge: exhaust or close its iterator first")
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield from self._ask(items, stopping)
            finally:
                self._owner = 0

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _ask(self, items: Sequence[tuple[Key, Problem, Response]], stopping: Stopping) -> Iterator[tuple[Key, Verdict]]:
        left = _OpenRequests()
        for n, (_, problem, trace) in enumerate(items):
            left.add(n, self._judge.requests(problem, trace))
        if self._engine is None:
            settings = self._judge.settings
            self._engine = engines.open_engine(settings.engine, self._judge.model, self._note, self._spending, stopping)
        try:
            yield from self._verdicts(self._engine, items, left, stopping)
        finally:
            if isinstance(self._engine, OpenAIEngine):
                self._engine.hand_back(left.unused())

    def _verdicts(
        self, engine: Engine, items: Sequence[tuple[Key, Problem, Response]], left: _OpenRequests, stopping: Stopping
    ) -> Iterator[tuple[Key, Verdict]]:
        while left.requests and not stopping():
            try:
                for completion in engine.generate(left.longest_first(), stopping):
                    for n, pending in left.answered(completion):
                        yield items[n][0], self._judge.verdict(pending.replies, pending.paid)
            except PromptTooLong as error:
                for n in left.hopeless(error.key):
                    yield items[n][0], Verdict.unverifiable(f"too long for the judge: {error}")
                continue
            if left.requests and not stopping():
                raise PipelineError(f"the judge's engine ended with {len(left.requests)} replies missing")


class _PendingVerdict:
    """The keys of one verdict's requests, in order. ``first`` are those that no earlier item needed."""

    def __init__(self, keys: Sequence[str], first: Collection[str]) -> None:
        self.keys, self.first = keys, first
        self.known: dict[str, Completion] = {}

    @property
    def replies(self) -> list[Completion]:
        return [self.known[key] for key in self.keys]

    @property
    def paid(self) -> list[Completion]:
        return [self.known[key] for key in self.known if key in self.first]


class _OpenRequests:
    """The open requests, each once, and the items that wait for each reply."""

    def __init__(self) -> None:
        self.requests: dict[str, Request] = {}
        self._pending: dict[int, _PendingVerdict] = {}
        self._waiting: dict[str, list[int]] = {}

    def add(self, n: int, requests: Sequence[Request]) -> None:
        by_key = {request.key: request for request in requests}
        self._pending[n] = _PendingVerdict([request.key for request in requests], by_key.keys() - self.requests.keys())
        self.requests |= by_key
        for key in by_key:
            self._waiting.setdefault(key, []).append(n)

    def answered(self, completion: Completion) -> Iterator[tuple[int, _PendingVerdict]]:
        """Yield the items that this reply completes."""
        del self.requests[completion.key]
        for n in self._waiting.pop(completion.key):
            pending = self._pending[n]
            pending.known[completion.key] = completion
            if pending.known.keys() == set(pending.keys):
                yield n, self._pending.pop(n)

    def longest_first(self) -> list[Request]:
        """The open requests, the longest prompts first. A prompt that is too long ends the engine's call and drops what
        is in flight, so it must come before any other request is begun."""
        return sorted(self.requests.values(), key=lambda request: -sum(len(m["content"]) for m in request.messages))

    def unused(self) -> set[str]:
        """The keys of received replies whose items still wait for others."""
        return {key for pending in self._pending.values() for key in pending.known}

    def hopeless(self, key: str) -> list[int]:
        """Drop the items that need the reply to ``key``, and every request that no other item needs."""
        given_up = self._waiting[key]
        for n in given_up:
            for other in set(self._pending.pop(n).keys) & self._waiting.keys():
                self._waiting[other] = [waiting for waiting in self._waiting[other] if waiting != n]
                if not self._waiting[other]:
                    del self._waiting[other], self.requests[other]
        return given_up
