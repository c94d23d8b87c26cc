"""How fast and how far an endpoint may be used: pauses, requests a minute, and a budget that holds.

Plain state for one event loop, used by `distill.engines.openai` alone. Left out: tokens a minute and a
concurrency that adapts itself; a 429's Retry-After holds back all requests, which serves for both.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from distill.randomness import generator

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 60.0
"""Seconds before the second try, doubling up to the longest; a server's Retry-After may be longer."""


class Pace:
    """Spaces the requests out to ``requests_per_minute``, and holds all back when the server asks."""

    def __init__(self, requests_per_minute: int | None) -> None:
        self._interval = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0

    async def turn(self) -> None:
        """Wait until one more request may be sent."""
        now = asyncio.get_running_loop().time()
        at = max(now, self._next)
        self._next = at + self._interval
        await asyncio.sleep(at - now)

    def hold(self, seconds: float) -> None:
        """Nobody sends anything for so long."""
        self._next = max(self._next, asyncio.get_running_loop().time() + seconds)


class Budget:
    """Money that is never exceeded: the most a call can cost is set aside before it is made.

    ``limit`` None is no limit. A call that does not fit waits for those in flight, which cost less
    than was set aside for them; where none is in flight it is refused.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit, self.spent = limit, 0.0
        self._aside, self._calls = 0.0, 0
        self._changed = asyncio.Event()

    async def reserve(self, most: float) -> bool:
        """Set ``most`` aside for one call; False where the limit leaves no room for it."""
        while self.limit is not None and self.spent + self._aside + most > self.limit:
            if not self._calls:
                return False
            self._changed.clear()
            await self._changed.wait()
        self._aside, self._calls = self._aside + most, self._calls + 1
        return True

    def settle(self, most: float, cost: float) -> None:
        """A call for which ``most`` was set aside is over and did cost ``cost``."""
        self._aside, self._calls = self._aside - most, self._calls - 1
        if not self._calls:
            self._aside = 0.0  # sums of floats do not return to zero by themselves
        self.spent += cost
        self._changed.set()


def pause(key: str, attempt: int, retry_after: float | None) -> float:
    """Seconds to wait after failed try number ``attempt`` (from 0): what the server asks, else doubling.

    The spread that keeps many requests from coming back at once is a function of the request.
    """
    longest = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE)
    spread = longest * (0.5 + 0.5 * float(generator("retry", key, attempt).random()))
    return spread if retry_after is None else max(retry_after, 0.0)


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds meant by a Retry-After header: a number or a date; None where it says neither."""
    if value is None:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max((parsedate_to_datetime(value) - (now or datetime.now(UTC))).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None
