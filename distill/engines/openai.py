"""Any OpenAI-compatible endpoint as an engine: many calls at once, within its limits and a budget.

An event loop in a thread of its own keeps ``concurrency`` calls going; `generate` hands out what is done.
A try that failed for a passing reason (429, 5xx, a cut connection, a reply that is no chat completion) is
made again after a pause. When something ends the run (the cap on money, a refused key, an endpoint that
stays down), no new call is made, those in flight are still handed out, and then the reason is raised.

The key comes from the environment and goes into one header: error texts and replies are cleaned of it.
``max_cost`` bounds one run of one engine, as far as the endpoint keeps to ``max_tokens``; a call whose
reply was lost counts in full, for it may have been billed. Left out: tokens a minute, a concurrency that
adapts itself, streamed replies, token ids and logprobs. What a call says is `distill.engines.chat`; when
it may be made, `distill.engines.pacing`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import time
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from distill.engines import chat, pacing
from distill.engines.base import Stopping, never
from distill.engines.feed import Feed
from distill.engines.options import OpenAIOptions
from distill.modelspec import Model
from distill.types import Completion, Request, Sampling
from pipeline.errors import CapReached, InputError, PipelineError, Stopped

if TYPE_CHECKING:
    import httpx2

PASSING = {408, 409, 425, 429}
"""Statuses below 500 after which the same call may well succeed."""
CONNECT_SECONDS = 30.0
HEARTBEAT_SECONDS = 0.5
SECRET_LENGTH = 8
"""Shorter keys (``none``, ``EMPTY``) are stand-ins for local servers, and words that answers may hold."""

ENDED = Request("", (), Sampling())
"""Stands for the end of the requests."""

Note = Callable[[str], None]
Results = SimpleQueue[Completion | None]


def open(model: Model, options: OpenAIOptions, note: Note) -> OpenAIEngine:
    """The model called ``model.source`` at ``options.base_url``. Nothing is sent yet.

    Raises `InputError` for an address that is none, and for a key that is missing or cannot be one.
    """
    parts = urlsplit(options.base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"base_url {options.base_url!r}: expected http(s)://host/path")
    if parts.username or parts.password or parts.query:
        raise InputError(
            f"base_url (host {parts.hostname}): must hold no user, password or query; key_from is for keys"
        )
    if options.max_cost is not None and not (options.price_input or options.price_output):
        raise InputError("max_cost needs price_input and price_output (per million tokens) to reckon with")
    local = _is_loopback(parts.hostname)
    key = os.environ.get(options.key_from, "").strip()
    if not key and not local:
        raise InputError(f"{options.base_url}: needs a key; put it into the environment variable {options.key_from}")
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"environment variable {options.key_from}: holds characters that no key can have")
    if key and parts.scheme == "http" and not local:
        note(f"{options.base_url}: the key travels unencrypted; use https")
    return OpenAIEngine(model, options, key, note)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class TryAgain(Exception):
    """One try failed for a passing reason. ``billed``: the endpoint may have done the work all the same."""

    def __init__(self, reason: str, *, retry_after: float | None = None, billed: bool = False) -> None:
        super().__init__(reason)
        self.retry_after, self.billed = retry_after, billed


class OpenAIEngine:
    """See `distill.engines.base.Engine`. ``spent`` is the money spent so far, in the prices' currency."""

    name = "openai"
    batch_invariant = False

    def __init__(self, model: Model, options: OpenAIOptions, key: str, note: Note) -> None:
        self.model = model.identity
        self.url = f"{options.base_url.rstrip('/')}/chat/completions"
        self._model, self._options, self._key, self._note = model.source, options, key, note
        self._prices = chat.Prices(options.price_input, options.price_output)
        self._budget = pacing.Budget(options.max_cost)
        self._pace = pacing.Pace(options.requests_per_minute)
        # OpenAI's own newer models take the limit under this name only; everybody else knows the old one.
        own = urlsplit(options.base_url).hostname == "api.openai.com"
        self._limit_field = "max_completion_tokens" if own else "max_tokens"
        self._failure: BaseException | None = None
        self._news = asyncio.Event()
        """Set when requests may be had again (`distill.engines.feed`)."""
        self._estimating = False
        self._retries = 0
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="openai-engine", daemon=True)
        self._thread.start()

    @property
    def spent(self) -> float:
        return self._budget.spent

    def generate(self, requests: Iterable[Request | None], stopping: Stopping = never) -> Iterator[Completion]:
        """Completions in the order they finish; then whatever ended the run early is raised."""
        results: Results = SimpleQueue()
        self._failure = None
        if isinstance(requests, Feed):
            requests.listen(self._tell_of_news)
        run = asyncio.run_coroutine_threadsafe(self._drive(iter(requests), results), self._loop)
        made = 0
        try:
            while not stopping():
                try:
                    completion = results.get(timeout=HEARTBEAT_SECONDS)
                except Empty:
                    continue
                if completion is None:
                    run.result()
                    break
                made += 1
                yield completion
        finally:
            if isinstance(requests, Feed):
                requests.listen()
            run.cancel()
            cost = f", cost {self.spent:.4f}" if self.spent else ""
            self._note(f"{self.url}: {made} answers, {self._retries} calls made again{cost}")

    def close(self) -> None:
        """Drop what is in flight and end the thread."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _drive(self, requests: Iterator[Request | None], results: Results) -> None:
        """Keep the calls going until requests or a failure end them; None in ``results`` is the end."""
        import httpx2

        options = self._options
        client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(options.timeout, connect=min(CONNECT_SECONDS, options.timeout)),
            limits=httpx2.Limits(max_connections=options.concurrency),
            trust_env=not _is_loopback(urlsplit(self.url).hostname or ""),  # no proxy to one's own machine
        )
        try:
            async with client, asyncio.TaskGroup() as group:
                for _ in range(options.concurrency):
                    group.create_task(self._work(client, requests, results))
        finally:
            results.put(None)
        if self._failure:
            raise self._failure

    async def _work(self, client: httpx2.AsyncClient, requests: Iterator[Request | None], results: Results) -> None:
        """One of the ``concurrency`` callers: request after request from the shared supply."""
        try:
            while request := await self._next(requests):
                if completion := await self._sample(client, request):
                    results.put(completion)
        except Exception as error:
            self._failure = self._failure or error
            self._news.set()

    def _tell_of_news(self) -> None:
        self._loop.call_soon_threadsafe(self._news.set)

    async def _next(self, requests: Iterator[Request | None]) -> Request | None:
        """The next request; None at their end. Where nothing is wanted just now, it waits for news."""
        while self._failure is None and (request := next(requests, ENDED)) is not ENDED:
            if request:
                return request
            self._news.clear()
            await self._news.wait()
        return None

    async def _sample(self, client: httpx2.AsyncClient, request: Request) -> Completion | None:
        """Try until there is an answer; None where a failure elsewhere ended the run meanwhile."""
        for attempt in range(self._options.retries + 1):
            try:
                return await self._try(client, request)
            except TryAgain as problem:
                last = problem
            if self._failure:
                return None
            if attempt < self._options.retries:
                self._retries += 1
                await asyncio.sleep(self._pause(request, attempt, last))
        tries = self._options.retries + 1
        raise PipelineError(
            f"{self.url}: {last} ({tries} {'try' if tries == 1 else 'tries'}); "
            "what was made is kept, run the same command again to go on"
        )

    def _pause(self, request: Request, attempt: int, problem: TryAgain) -> float:
        wait = problem.retry_after
        if wait is not None and wait > self._options.timeout:
            raise Stopped(f"{self.url}: {problem}; asks to come back in {wait:.0f} seconds; run the same command then")
        if wait:
            self._pace.hold(wait)
        return pacing.pause(request.key, attempt, wait)

    async def _try(self, client: httpx2.AsyncClient, request: Request) -> Completion:
        """One call, paid for from the budget."""
        most = self._prices.most(request)
        if not await self._budget.reserve(most):
            raise CapReached(
                f"the cap of {self._budget.limit:g} is reached: {self.spent:.4f} spent, the next call may cost "
                f"{most:.4f}; what was made is kept, a higher max_cost goes on"
            )
        cost = 0.0
        try:
            await self._pace.turn()
            completion = await self._call(client, request)
            cost = completion.cost
            return completion
        except TryAgain as problem:
            cost = most if problem.billed else 0.0
            raise
        finally:
            self._budget.settle(most, cost)

    async def _call(self, client: httpx2.AsyncClient, request: Request) -> Completion:
        import httpx2

        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._options.timeout):
                response = await client.post(self.url, json=chat.body(request, self._model, self._limit_field))
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise TryAgain(f"cannot be reached ({self._clean(error)})") from None
        except TimeoutError:
            raise TryAgain(f"no answer within {self._options.timeout:g} seconds", billed=True) from None
        except httpx2.RequestError as error:
            raise TryAgain(f"the connection broke ({self._clean(error)})", billed=True) from None
        text = self._clean(response.text)
        if response.status_code != 200:
            return self._refusal(request, response, text)
        try:
            reply = chat.parsed(text)
            completion = chat.completion(request, reply, self._prices, time.monotonic() - begun)
        except chat.Malformed as error:
            raise TryAgain(str(error), billed=True) from None
        if completion.thinking_tokens and not chat.reported_thinking(reply.get("usage")):
            self._say_estimated()
        return completion

    def _refusal(self, request: Request, response: httpx2.Response, text: str) -> Completion:
        """What another status than 200 means: try again, an outcome of its own, or the end of the run."""
        status, said = response.status_code, _one_line(text)
        if status in PASSING or status >= 500:
            wait = pacing.retry_after(response.headers.get("retry-after"))
            raise TryAgain(f"answers HTTP {status}: {said}", retry_after=wait)
        if status in (401, 403):  # what the server says here may quote parts of the key
            what = "refuses the key in" if self._key else "asks for a key; put it into"
            raise InputError(f"{self.url}: {what} {self._options.key_from} (HTTP {status})")
        if status == 400 and "content_filter" in text:
            return chat.refused(request)
        raise InputError(f"{self.url}: refuses the call for model {self._model} (HTTP {status}): {said}")

    def _clean(self, said: object) -> str:
        """A text from outside without the key, should it hold it; an exception without text by its name."""
        text = str(said) or type(said).__name__
        return text.replace(self._key, "[key]") if len(self._key) >= SECRET_LENGTH else text

    def _say_estimated(self) -> None:
        if not self._estimating:
            self._estimating = True
            self._note(f"{self.url}: tells no count of thinking tokens; they are estimated from the text's length")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200] or "nothing"


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
