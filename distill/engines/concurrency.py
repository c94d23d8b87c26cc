"""How many calls go on at a time: from a few upwards while all goes well, half as many when it is too much.

Additive increase, multiplicative decrease, as TCP does it: until the first sign of too much, every call that
went well adds one (the number doubles in a round), later a whole round adds one. Too much are 429, 503 and
timeouts; calls that were begun before the number was halved say nothing new. Where calls get much slower, the
number stands still: the server queues them. It never falls below one, and callers wait in the order of asking,
so nobody starves. Plain state for one event loop, and no clock: what a call took is told.
"""

from __future__ import annotations

import asyncio
from collections import deque

FIRST = 4
SLOWER = 4.0
"""So many times the quickest pace seen is a queue at the server,"""
SLOW_SECONDS = 1.0
"""if the calls take that long at all: below it is noise."""
WEIGHT = 0.2


class Concurrency:
    """At most ``most`` calls at a time; ``limit`` is how many it is just now."""

    def __init__(self, most: int, first: int = FIRST) -> None:
        self._most = most
        self.limit = float(min(first, most))
        self._calls = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._round = 0
        self._starting = True
        self._quickest: float | None = None
        self._recent = 0.0

    async def enter(self) -> int:
        """Wait for a place; what is returned is to be handed to `leave`."""
        if self._waiting or self._calls >= int(self.limit):
            place = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():  # it was given up just as it was reached
                    self._calls -= 1
                    self._let_in()
                raise
        else:
            self._calls += 1
        return self._round

    def leave(self, entered: int, *, too_much: bool = False, pace: float | None = None, seconds: float = 0.0) -> None:
        """A call is over. ``pace`` is how slow it was, in a unit of the caller's, where it went well."""
        used = 2 * self._calls >= int(self.limit)  # of places that nobody wants nothing is known
        self._calls -= 1
        if too_much:
            if entered == self._round:
                self.limit, self._round, self._starting = max(self.limit / 2, 1.0), self._round + 1, False
        elif pace is not None:
            queued = self._is_queued(pace, seconds)
            if used and not queued:
                self.limit = min(self.limit + (1.0 if self._starting else 1.0 / self.limit), float(self._most))
        self._let_in()

    def _is_queued(self, pace: float, seconds: float) -> bool:
        self._recent = pace if self._quickest is None else (1 - WEIGHT) * self._recent + WEIGHT * pace
        self._quickest = pace if self._quickest is None else min(self._quickest, pace)
        return seconds >= SLOW_SECONDS and self._recent > SLOWER * self._quickest

    def _let_in(self) -> None:
        while self._waiting and self._calls < int(self.limit):
            place = self._waiting.popleft()
            if not place.done():
                self._calls += 1
                place.set_result(None)
