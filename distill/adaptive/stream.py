"""Samples and judges at the same time: carries out a course and stores the rows.

The engine takes requests from a feed. Each answer is stored and judged. Each verdict, in whichever thread it arrives,
is passed to the course, which returns the samples that are wanted next, and these go into the feed. So there are no
rounds: a free slot is filled as long as anything is wanted at all.

There is no separate code to resume: the traces and verdicts that exist are passed to the course first. A verdict
becomes durable after its trace (`distill.store.appending`), so a kill never leaves a verdict without its trace.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from decimal import Decimal

from distill.adaptive.course import Course, Place
from distill.adaptive.judging import Judging
from distill.adaptive.known import Known
from distill.engines.base import Engine, PromptTooLong, response_of
from distill.engines.feed import Feed
from distill.generation import request_of, row_of
from distill.store import Store
from distill.store.appending import Appender
from distill.store.records import Row, verdict_row
from distill.types import Completion, Outcome, Verdict
from distill.verification import Attempts, Judgement, check_same, pool_of, responses_of
from pipeline.errors import InputError, PipelineError
from pipeline.stage import Context, stop_check

SHOWN_SECONDS = 0.5


class Stream:
    """Runs ``course`` to its end. ``verdicts`` are the keys of the verdicts that were made here."""

    def __init__(self, store: Store, course: Course, known: Known, context: Context) -> None:
        self._store, self._course, self._known, self._context = store, course, known, context
        self.verdicts: list[str] = []
        self._attempts = Attempts(known.verdicts, known.judged, known.alone)
        self._feed = Feed(self._stopping)
        self._appender = Appender(store, ("traces", "verdicts"))
        self._lock = threading.RLock()  # guards the course and what is wanted
        self._asked: dict[str, list[Place]] = {}
        """The places that wait for each trace being sampled: problems with the same prompt share it."""
        self._unread: list[Place] = []
        """Places whose traces are in the store, still to be read and judged."""
        self._judging: Judging
        self._failure: BaseException | None = None
        self._over = False
        self._begun = self._shown = time.monotonic()
        self._tokens, self._cost, self._made = 0, Decimal(0), 0

    def run(self, open_engine: Callable[[], Engine], workers: int) -> None:
        """Open the engine, if a sample is missing, and run to the end. If it ends early, what was made is kept."""
        with pool_of(self._store, self._context, workers) as pool:
            self._judging = Judging(pool, self._judged, lambda: self._over or self._context.stopping())
            try:
                with self._lock:
                    self._want(self._course.start())
                if self._feed.wait():
                    with closing(open_engine()) as engine:
                        self._sample(engine)
            finally:
                self._over = True
                self._judging.close()
                self._write(self._attempts.rest())
                self._appender.flush()
                self._store.ingest()
        if self._failure:
            raise self._failure
        stop_check(self._context.stopping)
        if not self._course.complete:
            raise PipelineError("the engine ended before all samples were made; run the same command again")
        self._attempts.check(self._context.name)

    def _sample(self, engine: Engine) -> None:
        try:
            for completion in engine.generate(self._feed, self._stopping):
                self._answered(completion, engine)
        except PromptTooLong as error:
            problem = self._known.wish(self._asked[error.key][0]).problem
            raise InputError(f"problem {problem.name}: {error}") from None
        finally:
            self._feed.end()  # else an engine that reads it in another thread might wait for ever

    def _answered(self, completion: Completion, engine: Engine) -> None:
        with self._lock:
            places = self._asked.pop(completion.key)
            row = row_of(self._known.wish(places[0]), completion, engine)
            self._appender.add("traces", row)
            to_judge = [place for place in places if self._taken(place, completion, row)]
        self._made, self._tokens = self._made + 1, self._tokens + completion.tokens
        self._cost += completion.cost
        response = response_of(completion)
        for place in to_judge:
            self._judging.begin(place, self._known.judgement(place), response)
        self._feed.answered()

    def _taken(self, place: Place, completion: Completion, row: Row) -> bool:
        """Whether the answer is to be judged; if not, this requests what follows from it."""
        done = self._known.take(place, completion, row)
        if done == "go on":
            self._want([place])
        elif done == "failed":
            self._want(self._course.judged(place, Outcome.INCORRECT))
        return done == "judge"

    def _judged(self, place: Place, wish: Judgement, found: Verdict | BaseException) -> None:
        """Called in any thread. An error here must not be lost, as it would be in a future's callback."""
        with self._lock:
            try:
                if not (self._over or self._failure):
                    self._keep(place, wish, found)
                elif isinstance(found, Verdict):  # a judge was paid for it
                    self._record(wish, found)
            except BaseException as error:
                self._failure = error
                self._feed.end()

    def _keep(self, place: Place, wish: Judgement, found: Verdict | BaseException) -> None:
        if isinstance(found, BaseException):
            raise found
        self._record(wish, found)
        self._want(self._course.judged(place, found.outcome, self._known.digest_of(place)))

    def _record(self, wish: Judgement, found: Verdict) -> None:
        check_same(wish, found)
        self._write(self._attempts.take(wish, found))

    def _write(self, ready: Iterable[tuple[str, Judgement, Verdict]]) -> None:
        for key, wish, verdict in ready:
            self._appender.add("verdicts", verdict_row(key, wish.trace_key, wish.problem_key, verdict, wish.settled))
            self.verdicts.append(key)

    def _want(self, wanted: list[Place]) -> None:
        for place in self._known.open(self._course, wanted):
            wish = self._known.wish(place)
            if wish.key in self._known.traces:
                self._unread.append(place)
                self._feed.notify()
            elif wish.key in self._asked:
                self._asked[wish.key].append(place)
            else:
                self._asked[wish.key] = [place]
                self._feed.put((*place, wish.sampling.max_tokens), request_of(wish))
        if self._course.complete:
            self._feed.end()

    def _stopping(self) -> bool:
        """Called about once a second by the engine, or by the feed while it waits; also does what is due by then."""
        self._appender.tick()
        while self._unread and not self._failure:
            self._read()
        if time.monotonic() - self._shown > SHOWN_SECONDS:
            self._show()
        return self._failure is not None or self._context.stopping()

    def _read(self) -> None:
        with self._lock:
            places, self._unread = self._unread, []
        wishes = {place: self._known.judgement(place) for place in places}
        responses = responses_of(self._store, list(wishes.values()))
        if any(wish.trace_key not in responses for wish in wishes.values()):  # made a moment ago
            self._appender.flush()
            self._store.ingest()
            responses = responses_of(self._store, list(wishes.values()))
        for place, wish in wishes.items():
            self._judging.begin(place, wish, responses[wish.trace_key])

    def _show(self) -> None:
        self._shown = now = time.monotonic()
        done, total = self._course.progress()
        figures = {"made": self._made, "tokens": self._tokens}
        cost = {"cost": float(round(self._cost, 4))} if self._cost else {}
        rate = round(self._tokens / max(now - self._begun, 1e-9))
        self._context.progress(done, total, **figures, **cost, tokens_per_second=rate)
