"""A queue of requests that an engine can iterate over while new ones are still being added.

The reader of the completions decides what else to request, so a feed can be empty without being at its end. It then
yields None, and the engine continues with what it has and asks again. It yields None only while some request is
unanswered; otherwise the feed itself waits, so that an engine never has to. Of the waiting requests, the one with
the lowest rank comes first.

Thread-safe: an engine may read it in one thread while verdicts arrive in another.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable

from distill.types import Request

HEARTBEAT_SECONDS = 0.5

Rank = tuple[int, ...]


class Feed:
    """``stopping`` is called every half second while the feed waits; once it returns true, the feed ends."""

    def __init__(self, stopping: Callable[[], bool]) -> None:
        self._stopping = stopping
        self._waiting: list[tuple[Rank, Request]] = []
        self._unanswered = 0
        self._ended = False
        self._changed = threading.Condition()
        self._wake: Callable[[], None] = lambda: None

    def put(self, rank: Rank, request: Request) -> None:
        """``rank`` must differ from that of any other request."""
        with self._changed:
            heapq.heappush(self._waiting, (rank, request))
            self.notify()

    def answered(self) -> None:
        """One of the requests has its completion, and the requests that follow directly from it have been put."""
        with self._changed:
            self._unanswered -= 1
            self.notify()

    def end(self) -> None:
        """No more requests will be put; those that wait are still yielded."""
        with self._changed:
            self._ended = True
            self.notify()

    def notify(self) -> None:
        """Wake the waiting reader, which looks for requests and calls ``stopping`` again."""
        with self._changed:
            self._changed.notify_all()
            self._wake()

    def listen(self, wake: Callable[[], None] = lambda: None) -> None:
        """Call ``wake``, from any thread, whenever the feed may yield something other than None."""
        with self._changed:
            self._wake = wake

    def wait(self) -> bool:
        """Wait for a request or the end; returns whether there is a request."""
        while not self._stopping():  # outside of the lock, as it may put requests
            with self._changed:
                if self._waiting or self._ended:
                    return bool(self._waiting)
                self._changed.wait(HEARTBEAT_SECONDS)
        return False

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Request | None:
        while True:
            with self._changed:
                if self._waiting:
                    self._unanswered += 1
                    return heapq.heappop(self._waiting)[1]
                if self._unanswered and not self._ended:
                    return None
            if not self.wait():
                raise StopIteration
