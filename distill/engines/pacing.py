"""Limits on the use of an endpoint: pauses between tries, requests and tokens per minute, and a hard budget.

Plain state for one event loop, used by `distill.engines.openai` only. `distill.engines.concurrency` decides how many
calls run at a time.
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
    """Spaces out amounts so that they never exceed ``per_minute``, not even in bursts.

    An estimated amount is taken when a call starts; `settle` corrects it once the real one is known. Pure
    arithmetic on the times that callers pass.
    """

    def __init__(self, per_minute: int | None) -> None:
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self.free_at = 0.0
        """The time from which on something may be taken."""

    def take(self, now: float, amount: float) -> None:
        self.free_at = max(now, self.free_at) + amount * self._interval

    def settle(self, estimate: float, real: float) -> None:
        self.free_at += (real - estimate) * self._interval


class Pace:
    """Limits requests and tokens per minute, over all addresses together."""

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        self._requests, self._tokens = Meter(requests_per_minute), Meter(tokens_per_minute)
        self._turn = asyncio.Lock()  # first come, first served: no caller starves
        self._changed = asyncio.Event()

    async def turn(self, tokens: float) -> None:
        """Wait until one more request, of about ``tokens`` tokens, may be sent."""
        time = asyncio.get_running_loop().time
        async with self._turn:
            while (wait := max(self._requests.free_at, self._tokens.free_at) - time()) > 0:
                self._changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), wait)
            self._requests.take(time(), 1)
            self._tokens.take(time(), tokens)

    def settle(self, estimate: float, tokens: float) -> None:
        """A request is over and took ``tokens``."""
        self._tokens.settle(estimate, tokens)
        self._changed.set()


class Usual:
    """The tokens that a call usually takes: a moving average over the calls so far."""

    WEIGHT = 0.1

    def __init__(self) -> None:
        self._mean: float | None = None

    def add(self, tokens: int) -> None:
        self._mean = tokens if self._mean is None else (1 - self.WEIGHT) * self._mean + self.WEIGHT * tokens

    def estimate(self, most: int) -> float:
        return most if self._mean is None else min(self._mean, most)


class SpendingCap:
    """A limit on money and tokens that is never exceeded: the most a call can take is reserved before it is made.

    None means no limit. A call that does not fit waits for those in flight, which usually take less than they
    reserved; if none is in flight, it is refused. ``spent`` is what all calls took so far.
    """

    def __init__(self, cost: Decimal | None, tokens: int | None, spent: Bill = NOTHING) -> None:
        self.cost, self.tokens, self.spent = cost, tokens, spent
        self._reserved, self._calls = NOTHING, 0
        self._changed = asyncio.Event()

    async def reserve(self, most: Bill) -> bool:
        """Reserve ``most`` for one call; False if a limit leaves no room for it."""
        while not self._fits(most):
            if not self._calls:
                return False
            self._changed.clear()
            await self._changed.wait()
        self._reserved, self._calls = self._reserved + most, self._calls + 1
        return True

    def settle(self, most: Bill, bill: Bill) -> None:
        """A call that reserved ``most`` is over and took ``bill``."""
        self._reserved, self._calls = self._reserved - most, self._calls - 1
        self.spent += bill
        self._changed.set()

    def _fits(self, most: Bill) -> bool:
        if self.cost is not None and self.spent.cost + self._reserved.cost + most.cost > self.cost:
            return False
        total = self.spent.total_tokens + self._reserved.total_tokens + most.total_tokens
        return self.tokens is None or total <= self.tokens


def pause(key: str, attempt: int, retry_after: float | None) -> float:
    """Seconds to wait after failed try number ``attempt`` (from 0): exponential backoff, or longer if the server asks
    for that. (Some ask for no time at all, and refuse again.)

    The jitter, which keeps many requests from coming back at once, is a function of the request.
    """
    longest = min(FIRST_PAUSE * 2 ** min(attempt, 60), LONGEST_PAUSE)
    spread = longest * (0.5 + 0.5 * float(generator("retry", key, attempt).random()))
    return max(retry_after or 0.0, spread)


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """The seconds that a Retry-After header asks for, as a number or a date; None if it is neither."""
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
