"""Judges answers as they arrive, while others are still being sampled.

An answer for a rule-based verifier goes to the verifier pool by itself, so that one that hangs delays no other. A
verifier that has to be opened (a judge, `distill.verifiers.asking`) judges many answers at a time: it runs in its own
thread, on all that have arrived meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from queue import SimpleQueue

from distill import verifiers
from distill.adaptive.course import Place
from distill.thinking import Response
from distill.types import Verdict
from distill.verification import Judgement
from distill.verifiers import VerifierPool
from distill.verifiers.asking import holds_opened
from distill.verifiers.base import Stopping
from pipeline.fingerprint import canonical

Deliver = Callable[[Place, Judgement, Verdict | BaseException], None]
Item = tuple[Place, Judgement, Response]


class Judging:
    """``deliver`` gets each verdict, or what prevented it, in whichever thread it is made."""

    def __init__(self, pool: VerifierPool, deliver: Deliver, stopping: Stopping) -> None:
        self._pool, self._deliver, self._stopping = pool, deliver, stopping
        self._opened: dict[str, bool] = {}
        self._waiting: SimpleQueue[Item | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def begin(self, place: Place, wish: Judgement, response: Response) -> None:
        spec = canonical(wish.verifier)
        if spec not in self._opened:
            self._opened[spec] = holds_opened(verifiers.build(wish.verifier))
        if self._opened[spec]:
            self._waiting.put((place, wish, response))
            self._thread = self._thread or _started(self._judge_batches)
        else:
            future = self._pool.submit(wish.verifier, wish.problem, response)
            future.add_done_callback(partial(self._done, place, wish))

    def close(self) -> None:
        """Call this after ``stopping`` has become true; what is being judged in the thread is given up."""
        self._waiting.put(None)
        if self._thread:
            self._thread.join()

    def _done(self, place: Place, wish: Judgement, future: Future[Verdict]) -> None:
        try:
            found: Verdict | BaseException = future.result()
        except (Exception, CancelledError) as error:
            found = error
        self._deliver(place, wish, found)

    def _judge_batches(self) -> None:
        while batch := self._batch():
            wishes = {place: wish for place, wish, _ in batch}
            items = [(place, wish.verifier, wish.problem, response) for place, wish, response in batch]
            try:
                for place, verdict in self._pool.verify_many(items, self._stopping):
                    self._deliver(place, wishes[place], verdict)
            except Exception as error:
                self._deliver(batch[0][0], batch[0][1], error)
                return

    def _batch(self) -> list[Item]:
        """All items that wait, at least one; empty at the end."""
        batch: list[Item] = []
        while not batch or not self._waiting.empty():
            item = self._waiting.get()
            if item is None:
                return []
            batch.append(item)
        return batch


def _started(run: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=run, name="judging", daemon=True)
    thread.start()
    return thread
