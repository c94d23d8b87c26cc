"""The servers of one model: each address with its own limits on calls, and whether it is down.

Every caller belongs to one server and takes the next request that waits, so a faster server gets more of them. A server
that fails after all tries, or asks for a long pause, rests for a while if another one still answers; its callers hand
their requests back. A pause that one server asks for is no pause of the others.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill.engines.concurrency import Concurrency
from distill.engines.endpoint import Endpoint
from distill.engines.options import OpenAIOptions
from distill.engines.pacing import Pace

if TYPE_CHECKING:
    import httpx2

REST_SECONDS = 60.0


class Server:
    """One address. ``answers`` counts the calls that it answered; ``down``: it has failed after all tries, and has not
    answered since."""

    def __init__(self, endpoint: Endpoint, options: OpenAIOptions) -> None:
        self.endpoint, self.concurrency = endpoint, Concurrency(options.concurrency)
        self.pace = Pace(options.requests_per_minute, options.tokens_per_minute)
        self.answers, self.down = 0, False
        self._rests_until = self._paused_until = 0.0

    @property
    def url(self) -> str:
        return self.endpoint.url

    @property
    def resting(self) -> bool:
        """It takes no request now."""
        return time.monotonic() < max(self._paused_until, self._rests_until if self.down else 0.0)

    def rest(self) -> None:
        self.down, self._rests_until = True, time.monotonic() + REST_SECONDS

    def pause(self, seconds: float) -> None:
        """As it asked for."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    def answered(self) -> None:
        self.answers, self.down = self.answers + 1, False

    @asynccontextmanager
    async def line(self) -> AsyncIterator[Line]:
        async with self.endpoint.line() as connection:
            yield Line(self, connection)


@dataclass(frozen=True, slots=True)
class Line:
    """A caller's connection to its server."""

    server: Server
    connection: httpx2.AsyncHTTPTransport
