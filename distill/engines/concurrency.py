"""How many calls run at a time: the number rises while calls succeed, and is halved when the endpoint is overloaded.

Additive increase, multiplicative decrease, as in TCP. Until the first overload, every successful call adds one (the
number doubles per round); afterwards a whole round adds one. 429, 503, 529 and timeouts are signs of overload, except
for calls that started before the number was last halved. If calls get much slower, the number stays, as the server is
queueing them. It never falls below one, and callers are served in order, so none starves. Plain state for one event
loop, without a clock: callers pass the time that a call took.
"""

from __future__ import annotations

import asyncio
from collections import deque

FIRST = 4
SLOWER = 4.0
"""If calls are this many times slower than the quickest, the server is queueing them."""
SLOW_SECONDS = 1.0
"""Calls that take less time than this never count as queued: their times are noise."""
WEIGHT = 0.2


class Concurrency:
    """At most ``most`` calls at a time; ``limit`` is the current number."""

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
        """Wait for a place. Pass the returned number to `leave`."""
        if self._waiting or self._calls >= int(self.limit):
            place = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():  # cancelled just as the place was granted
                    self._calls -= 1
                    self._admit()
                raise
        else:
            self._calls += 1
        return self._round

    def leave(self, entered: int, *, too_much: bool = False, pace: float | None = None, seconds: float = 0.0) -> None:
        """A call is over. If it succeeded, ``pace`` is how slow it was, in a unit of the caller's choice."""
        used = 2 * self._calls >= int(self.limit)  # if most places are unused, success proves nothing
        self._calls -= 1
        if too_much:
            if entered == self._round:
                self.limit, self._round, self._starting = max(self.limit / 2, 1.0), self._round + 1, False
        elif pace is not None:
            queued = self._is_queued(pace, seconds)
            if used and not queued:
                self.limit = min(self.limit + (1.0 if self._starting else 1.0 / self.limit), float(self._most))
        self._admit()

    def _is_queued(self, pace: float, seconds: float) -> bool:
        self._recent = pace if self._quickest is None else (1 - WEIGHT) * self._recent + WEIGHT * pace
        self._quickest = pace if self._quickest is None else min(self._quickest, pace)
        return seconds >= SLOW_SECONDS and self._recent > SLOWER * self._quickest

    def _admit(self) -> None:
        while self._waiting and self._calls < int(self.limit):
            place = self._waiting.popleft()
            if not place.done():
                self._calls += 1
                place.set_result(None)
