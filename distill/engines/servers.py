"""The servers of one model, each with its own limits on calls, and how they share the requests of a run.

Every caller belongs to one server and takes the next request that waits, so a faster server gets more of them. A server
that fails after all tries, or asks for a long pause, rests for a while if another one still answers; its callers hand
their requests back. A pause that one server asks for is no pause of the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill.engines.concurrency import Concurrency
from distill.engines.endpoint import Endpoint
from distill.engines.options import OpenAIOptions
from distill.engines.pacing import Pace
from distill.types import Request, Sampling

if TYPE_CHECKING:
    import httpx2

REST_SECONDS = 60.0
HEARTBEAT_SECONDS = 0.5
ENDED = Request("", (), Sampling())
"""Marks the end of the requests."""


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


class Shared:
    """The requests of one run, which all callers take from. ``changed`` is set when there may be requests again: from
    the feed (`distill.engines.feed`), or handed back. Belongs to one event loop."""

    def __init__(self, servers: Sequence[Server], requests: Iterator[Request | None]) -> None:
        self.failure: BaseException | None = None
        self.changed = asyncio.Event()
        self._servers, self._requests = servers, requests
        self._handed_back: list[Request] = []
        self._failed_at: dict[str, set[str]] = {}
        """The addresses where a request failed, by its key: what fails everywhere may be the request's own fault."""
        self._open, self._ended = 0, False
        """The requests that were taken and not answered, and whether there are no others."""

    async def next(self, server: Server) -> Request | None:
        """The next request, or None once all are answered. Waits while the feed yields none, while the server rests,
        and at the end for the last answers: another server may hand its requests back."""
        while self.failure is None and (self._open or not self._ended):
            if server.resting:
                await asyncio.sleep(HEARTBEAT_SECONDS)
                continue
            if back := next((r for r in self._handed_back if self._may_take(server, r)), None):
                self._handed_back.remove(back)
                return back
            request = next(self._requests, ENDED)
            if request is ENDED:
                self._ended = True
            elif request:
                self._open += 1
                return request
            if self._open or not self._ended:
                self.changed.clear()
                await self.changed.wait()
        return None

    def answered(self) -> None:
        """A request that was taken is answered."""
        self._open -= 1
        if not self._open:
            self.changed.set()

    def hand_back(self, request: Request) -> None:
        self._handed_back.append(request)
        self.changed.set()

    def fail(self, error: BaseException) -> None:
        """End the run: no new call is made."""
        self.failure = self.failure or error
        self.changed.set()

    def failed(self, server: Server, request: Request) -> None:
        """The request failed at the server."""
        self._failed_at.setdefault(request.key, set()).add(server.url)

    def elsewhere(self, server: Server, request: Request) -> bool:
        """Whether another server may answer the request now: one that has not failed at it, and takes requests."""
        failed = self._failed_at.get(request.key, ())
        others = (other for other in self._servers if other is not server)
        return any(not (other.down or other.resting or other.url in failed) for other in others)

    def _may_take(self, server: Server, request: Request) -> bool:
        return server.url not in self._failed_at.get(request.key, ()) or not self.elsewhere(server, request)
