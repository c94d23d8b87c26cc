"""How fast and how far an endpoint may be used: pauses, requests and tokens a minute, a budget that holds.

Plain state for one event loop, used by `distill.engines.openai` alone. How many calls go on at a time is
`distill.engines.concurrency`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime

from distill.engines.prices import NOTHING, Bill
from distill.randomness import generator

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 60.0
"""Seconds before the second try, doubling up to the longest; a server's Retry-After may be longer."""


class Meter:
    """Spaces out what is taken so that it never comes to more than ``per_minute``, bursts included.

    Something is taken when it is begun, by an estimate; `settle` puts that right when it is known. Pure
    arithmetic on the times it is told.
    """

    def __init__(self, per_minute: int | None) -> None:
        self._each = 60.0 / per_minute if per_minute else 0.0
        self.free_at = 0.0
        """From when on something may be taken."""

    def take(self, now: float, amount: float) -> None:
        self.free_at = max(now, self.free_at) + amount * self._each

    def settle(self, estimate: float, real: float) -> None:
        self.free_at += (real - estimate) * self._each


class Pace:
    """Requests and tokens a minute; and a server that asks for a rest gets it from all calls."""

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        self._requests, self._tokens = Meter(requests_per_minute), Meter(tokens_per_minute)
        self._rest_until = 0.0
        self._turn = asyncio.Lock()  # in the order of asking: nobody is overtaken for ever
        self._changed = asyncio.Event()

    async def turn(self, tokens: float) -> None:
        """Wait until one more request, of about so many tokens, may be sent."""
        time = asyncio.get_running_loop().time
        async with self._turn:
            while (wait := max(self._requests.free_at, self._tokens.free_at, self._rest_until) - time()) > 0:
                self._changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), wait)
            self._requests.take(time(), 1)
            self._tokens.take(time(), tokens)

    def settle(self, estimate: float, tokens: float) -> None:
        """A request is over and took ``tokens``."""
        self._tokens.settle(estimate, tokens)
        self._changed.set()

    def hold(self, seconds: float) -> None:
        """Nobody sends anything for so long."""
        self._rest_until = max(self._rest_until, asyncio.get_running_loop().time() + seconds)


class Usual:
    """The tokens that a call usually takes, by the calls so far; recent ones count more."""

    WEIGHT = 0.1

    def __init__(self) -> None:
        self._mean: float | None = None

    def add(self, tokens: int) -> None:
        self._mean = tokens if self._mean is None else (1 - self.WEIGHT) * self._mean + self.WEIGHT * tokens

    def estimate(self, most: int) -> float:
        return most if self._mean is None else min(self._mean, most)


class Budget:
    """Money and tokens that are never exceeded: the most a call can take is set aside before it is made.

    None is no limit. A call that does not fit waits for those in flight, which take less than was set
    aside for them; where none is in flight it is refused. ``spent`` is what all calls took so far.
    """

    def __init__(self, cost: Decimal | None, tokens: int | None, spent: Bill = NOTHING) -> None:
        self.cost, self.tokens, self.spent = cost, tokens, spent
        self._aside, self._calls = NOTHING, 0
        self._changed = asyncio.Event()

    async def reserve(self, most: Bill) -> bool:
        """Set ``most`` aside for one call; False where a limit leaves no room for it."""
        while not self._fits(most):
            if not self._calls:
                return False
            self._changed.clear()
            await self._changed.wait()
        self._aside, self._calls = self._aside + most, self._calls + 1
        return True

    def settle(self, most: Bill, bill: Bill) -> None:
        """A call for which ``most`` was set aside is over and did take ``bill``."""
        self._aside, self._calls = self._aside - most, self._calls - 1
        self.spent += bill
        self._changed.set()

    def _fits(self, most: Bill) -> bool:
        if self.cost is not None and self.spent.cost + self._aside.cost + most.cost > self.cost:
            return False
        total = self.spent.total_tokens + self._aside.total_tokens + most.total_tokens
        return self.tokens is None or total <= self.tokens


def pause(key: str, attempt: int, retry_after: float | None) -> float:
    """Seconds to wait after failed try number ``attempt`` (from 0): what the server asks, else doubling.

    The spread that keeps many requests from coming back at once is a function of the request.
    """
    longest = min(FIRST_PAUSE * 2 ** min(attempt, 60), LONGEST_PAUSE)
    spread = longest * (0.5 + 0.5 * float(generator("retry", key, attempt).random()))
    return spread if retry_after is None else max(retry_after, 0.0)


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds meant by a Retry-After header: a number or a date; None where it says neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        pass
    else:
        return max(seconds, 0.0) if seconds < float("inf") else None
    try:
        at = parsedate_to_datetime(value)
        return max((at.replace(tzinfo=at.tzinfo or UTC) - (now or datetime.now(UTC))).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None
