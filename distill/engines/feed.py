"""Requests that come to be wanted while others are being answered: what an engine may be given for a list.

Whoever reads the completions decides what else to ask. So a feed can be out of requests and not at its end:
then it gives None, and the engine goes on with what it has and asks again. It gives None just while something
that it gave is unanswered; else it waits, so that an engine never has to. Of those waiting, the request with
the lowest rank is given first.

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
    """``stopping`` is asked every half second while it waits; once it is true, the feed has ended."""

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
            self.tell()

    def answered(self) -> None:
        """One of the requests given has its completion, and all that follows from it at once has been put."""
        with self._changed:
            self._unanswered -= 1
            self.tell()

    def end(self) -> None:
        """Nothing more will be put; what waits is still given."""
        with self._changed:
            self._ended = True
            self.tell()

    def tell(self) -> None:
        """Have whoever waits look again, and ask `stopping`."""
        with self._changed:
            self._changed.notify_all()
            self._wake()

    def listen(self, wake: Callable[[], None] = lambda: None) -> None:
        """Have ``wake`` called, from any thread, whenever another answer than None may be had."""
        with self._changed:
            self._wake = wake

    def wait(self) -> bool:
        """Wait for a request, or for the end: whether there is one."""
        while not self._stopping():  # asked outside of the lock: it may well put something
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
