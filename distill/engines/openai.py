"""Any OpenAI-compatible endpoint as an engine: many calls at once, within its limits and a budget.

An event loop in its own thread makes the calls; `generate` yields completions as they arrive. A call that failed for
a temporary reason is repeated after a pause. If something ends the run (a cap, a refused key, an endpoint that stays
down), no new call is made, the completions of those in flight are still yielded, and then the error is raised.

`distill.engines.endpoint` makes one call, `servers` knows the addresses, `concurrency` decides how many calls run at a
time, `pacing` limits rates and spending, and `calls` logs them. Caps hold across all runs that share a call log, as far
as the endpoint respects ``max_tokens``; a call whose reply was lost counts in full, since it may have been billed. A
reply that an earlier run paid for but did not store is used instead of a new call. Left out: token ids, logprobs,
several choices per call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from queue import Empty, SimpleQueue
from threading import Event, Thread

from distill.engines import chat, early_exit, pacing
from distill.engines.base import PromptTooLong, SoFar, Stopping, never
from distill.engines.calls import Call, CallEnd, CallLog, part_key
from distill.engines.chat import Reply
from distill.engines.dialects import DIALECTS, check_options, check_request
from distill.engines.endpoint import ContextFull, Endpoint, Progress, TryAgain, checked_secrets
from distill.engines.feed import Feed
from distill.engines.options import OpenAIOptions
from distill.engines.prices import NOTHING, Bill, money
from distill.engines.servers import REST_SECONDS, Line, Server, Shared
from distill.modelspec import Model
from distill.thinking import estimate_tokens, join_thinking
from distill.types import Completion, Request
from pipeline.errors import CapReached, InputError, PipelineError, Stopped

HEARTBEAT_SECONDS = 0.5
SHOWN_SECONDS = 0.05
"""Seconds between two updates of a response that is being streamed."""
HAND_OVER_SECONDS = 1.0
"""If a server asks for a longer pause, its calls go to the other addresses at once."""
ONE_TOKEN = 2
"""Added to the number of a response's part: the call that asks for one token only."""

Note = Callable[[str], None]
Results = SimpleQueue[Completion | None]


def open(model: Model, options: OpenAIOptions, note: Note, calls: Callable[[], CallLog] | None = None) -> OpenAIEngine:
    """The model called ``model.source`` at ``options.addresses``. Nothing is sent yet.

    Raises `InputError` if the key is missing or cannot be a key.
    """
    check_options(options)
    each = [options.model_copy(update={"base_url": address}) for address in options.addresses]
    servers = [Server(Endpoint(model.source, at, checked_secrets(at, note)), at) for at in each]
    return OpenAIEngine(model, options, servers, note, calls() if calls else CallLog())


class Abandoned(Exception):
    """A failure elsewhere ended the run meanwhile."""


class HandedBack(Exception):
    """The server of a call is down; another one takes the request."""


class OpenAIEngine:
    """A `distill.engines.base.Engine` that calls an endpoint."""

    name = "openai"
    batch_invariant = False

    def __init__(
        self, model: Model, options: OpenAIOptions, servers: Sequence[Server], note: Note, calls: CallLog
    ) -> None:
        self.model = model.identity
        self.url = servers[0].url + (f" and {len(servers) - 1} more" if len(servers) > 1 else "")
        self._servers, self._options, self._note, self._calls = servers, options, note, calls
        self._budget = pacing.SpendingCap(options.max_cost, options.max_total_tokens, calls.spent)
        self._usual = pacing.Usual()
        self._shared: Shared
        """The requests of the present run."""
        self._estimates_noted = self._hides_thinking = False
        self._retries = 0
        self._latest = "", Progress()
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="openai-engine", daemon=True)
        self._thread.start()

    @property
    def spent(self) -> Bill:
        """Tokens and cost of all calls of the account so far, including earlier runs."""
        return self._budget.spent

    def generate(self, requests: Iterable[Request | None], stopping: Stopping = never) -> Iterator[Completion]:
        """Yield completions in the order they finish, then raise whatever ended the run early."""
        results: Results = SimpleQueue()
        self._shared = shared = Shared(self._servers, iter(requests))

        def wake() -> None:
            self._loop.call_soon_threadsafe(shared.changed.set)

        if isinstance(requests, Feed):
            requests.listen(wake)
        run = asyncio.run_coroutine_threadsafe(self._run_callers(shared, results), self._loop)
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
                self._calls.handed_out(completion.key)
                yield completion
        finally:
            if isinstance(requests, Feed):
                requests.listen()
            run.cancel()
            if account := self._summary(made):
                self._note(account)

    def stream(self, request: Request) -> Iterator[SoFar | Completion]:
        """See `distill.engines.base.Streaming`. If the endpoint does not stream, only the completion is yielded."""
        over, shown = Event(), ""
        with ThreadPoolExecutor(1) as pool:
            made = pool.submit(lambda: list(self.generate([request], over.is_set)))
            try:
                while not wait([made], SHOWN_SECONDS).done:
                    text = asyncio.run_coroutine_threadsafe(self._text_so_far(), self._loop).result()
                    if text != shown:
                        shown = text
                        yield SoFar("", text, estimate_tokens(text))
                yield from made.result()
            finally:
                over.set()

    async def _text_so_far(self) -> str:
        """The text of the newest call so far. Runs in the loop's thread, which owns the stream."""
        begun, progress = self._latest
        if progress.stream is None:
            return begun
        try:
            thinking, answer = progress.stream.texts()
        except chat.Malformed:
            return begun  # raised where the reply is awaited
        return (
            begun + thinking + answer if begun else join_thinking(thinking, answer, closed=bool(answer or not thinking))
        )

    def hand_back(self, keys: Iterable[str]) -> None:
        """Return completions that were not stored, such as votes without a verdict: the next run gets them for free."""
        self._calls.handed_back(keys)

    def close(self) -> None:
        """Drop what is in flight and end the thread. Completions that were yielded must be durable by now."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._calls.close()

    def _summary(self, made: int) -> str:
        """One line about the answers and their cost; empty after a single answer at most, without retries and cost."""
        spent, before, cap = self.spent, self._calls.spent, self._options.max_cost
        if made <= 1 and not self._retries and not spent.cost:
            return ""
        text = f"{self.url}: {made} answers, {self._retries} calls repeated"
        if not spent.cost:
            return text
        total = f", {money(spent.cost)} with earlier runs" if before.cost else ""
        return f"{text}, cost {money(spent.cost - before.cost)}{total}" + (f", cap {money(cap)}" if cap else "")

    async def _run_callers(self, shared: Shared, results: Results) -> None:
        """Run the calls until the requests end or something fails; None in ``results`` marks the end."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._options.concurrency):
                    for server in self._servers:
                        group.create_task(self._caller(server, shared, results))
        finally:
            results.put(None)
        if shared.failure:
            raise shared.failure

    async def _caller(self, server: Server, shared: Shared, results: Results) -> None:
        """One of the ``concurrency`` callers of a server: takes request after request."""
        try:
            async with server.line() as line:
                while request := await shared.next(server):
                    check_request(request, self._options)
                    try:
                        results.put(await self._respond(line, request))
                    except HandedBack:
                        shared.hand_back(request)
                    else:
                        shared.answered()
        except Abandoned:
            pass
        except Exception as error:
            shared.fail(error)

    async def _respond(self, line: Line, request: Request) -> Completion:
        """The response to a request, by one call, or by two if we have to close its thinking."""
        begun = early_exit.first(request, DIALECTS[self._options.dialect])
        reply = await self._part(line, begun, 0)
        parts = [(begun.prefix, reply)]
        if rest := early_exit.rest(request, begun, reply):
            try:
                parts.append((rest.prefix, await self._part(line, rest, 1)))
            except HandedBack:
                self._calls.replies[part_key(request.key, 0)] = reply  # the next server goes on from here
                raise
        if not self._estimates_noted and chat.estimates_thinking(reply):
            self._estimates_noted = True
            self._note(f"{self.url}: reports no thinking tokens; they are estimated from the length of the text")
        return chat.completion(request, parts)

    async def _part(self, line: Line, request: Request, part: int) -> Reply:
        """The reply to a call; a cut one if the prefix leaves no room in the model's context. If the prompt itself
        leaves none, raises `PromptTooLong`.

        A refusal does not tell whether ``max_tokens`` alone is too large, so the call is tried with one token."""
        try:
            return await self._reply(line, request, part_key(request.key, part))
        except ContextFull:
            try:
                one = replace(request, sampling=replace(request.sampling, max_tokens=1))
                await self._reply(line, one, part_key(request.key, ONE_TOKEN + part))
            except ContextFull as error:
                if request.prefix:
                    return chat.cut_off()
                raise PromptTooLong(request.key, str(error)) from None
            raise

    async def _reply(self, line: Line, request: Request, key: str) -> Reply:
        """Try until there is a reply. If an earlier run paid for one, use that. Raises `HandedBack` if the server is
        down and another one is not."""
        server, attempt = line.server, 0
        if paid := self._calls.replies.pop(key, None):
            return paid
        while True:
            answers = server.answers
            try:
                return await self._try(line, request, key)
            except TryAgain as problem:
                last = problem
            if self._shared.failure:
                raise Abandoned
            # An overloaded server that answers other calls is not down, so this does not count as a try.
            attempt += not (last.too_much and not last.billed and server.answers > answers)
            if attempt > self._options.retries:
                break
            if server.down and attempt:  # hand it back at once if another server may take it
                self._leave(server, request, str(last))
            wait = self._pause(server, request, attempt, last)
            self._retries += 1
            await asyncio.sleep(wait)
        tries = "1 try" if attempt == 1 else f"{attempt} tries"
        self._leave(server, request, f"{last} ({tries})")
        kept = "; what was made is kept; run the same command again to continue" if self._calls.durable else ""
        raise PipelineError(f"{server.url}: {last} ({tries}){kept}")

    def _leave(self, server: Server, request: Request, why: str) -> None:
        """Raise `HandedBack` if another server may answer the request; this one then rests."""
        self._shared.failed(server, request)
        if self._shared.elsewhere(server, request):
            if not server.down:
                self._note(f"{server.url}: {why}; the other addresses take its calls")
            server.rest()
            raise HandedBack

    def _pause(self, server: Server, request: Request, attempt: int, problem: TryAgain) -> float:
        wait = problem.retry_after
        if wait is not None and wait > min(HAND_OVER_SECONDS, self._options.timeout):
            why = f"{problem}; asks to wait {wait:.0f} seconds"
            if self._shared.elsewhere(server, request):
                if wait >= REST_SECONDS and not server.resting:  # shorter pauses are usual
                    self._note(f"{server.url}: {why}; the other addresses take its calls")
                server.pause(wait)
                raise HandedBack
            if wait > self._options.timeout:
                raise Stopped(f"{server.url}: {why}; run the same command again then")
        if wait:
            server.pace.hold(wait)
        return pacing.pause(request.key, max(attempt - 1, 0), wait)

    async def _try(self, line: Line, request: Request, key: str) -> Reply:
        """Make one call, once concurrency, rates and budget allow it. Its bill is recorded whatever happens."""
        server = line.server
        most = server.endpoint.most(request)
        entered = await server.concurrency.enter()
        too_much, pace, seconds, bill, estimate = False, None, 0.0, NOTHING, 0.0
        try:
            if not await self._budget.reserve(most):
                raise self._cap(most)
            try:
                estimate = self._usual.estimate(most.total_tokens)
                await server.pace.turn(estimate)
                if self._shared.failure:
                    raise Abandoned
                call, progress = self._calls.begin(key, most), Progress()
                self._latest = request.prefix, progress
                try:
                    reply = await self._call(line, request, call, progress)
                finally:
                    bill = call.bill
                self._usual.add(bill.total_tokens)
                server.answered()
                self._hides_thinking = self._hides_thinking or chat.hides_thinking(reply)
                seconds = reply.seconds
                pace = seconds / max(bill.tokens, 1) if progress.first is None else progress.first
                return reply
            finally:
                self._budget.settle(most, bill)
                server.pace.settle(estimate, bill.total_tokens)
        except TryAgain as problem:
            too_much = problem.too_much
            raise
        finally:
            server.concurrency.leave(entered, too_much=too_much, pace=pace, seconds=seconds)

    async def _call(self, line: Line, request: Request, call: Call, progress: Progress) -> Reply:
        """Make the call and log how it ended, before anybody gets its reply."""
        begun, endpoint = time.monotonic(), line.server.endpoint
        try:
            reply = await endpoint.call(line.connection, request, progress)
        except TryAgain as problem:
            bill = endpoint.most(request) if problem.billed else NOTHING
            self._calls.end(call, CallEnd.LOST, bill, time.monotonic() - begun)
            raise
        except asyncio.CancelledError:
            # If thinking is hidden, what has arrived does not show how much was generated.
            bill = call.bill if self._hides_thinking else endpoint.so_far(request, progress)
            self._calls.end(call, CallEnd.ENDED, bill, time.monotonic() - begun)
            raise
        except Exception:
            self._calls.end(call, CallEnd.LOST, NOTHING, time.monotonic() - begun)
            raise
        try:
            self._calls.end(call, CallEnd.ANSWERED, reply.bill, reply.seconds, reply)
        except InputError as error:  # a full disk: the reply is paid for, so it is handed out all the same
            self._shared.fail(error)
        return reply

    def _cap(self, most: Bill) -> CapReached:
        """The error that names the cap that is reached, and the setting that raises it."""
        budget, spent = self._budget, self.spent
        where = (
            f"{self.url}, model {self._servers[0].endpoint.model}"  # a stage's teacher and its judge have a cap each
        )
        earlier = " in all runs of this stage" if self._calls.spent.total_tokens else ""
        if budget.cost is not None and spent.cost + most.cost > budget.cost:
            return CapReached(
                f"{where}: the cap of {money(budget.cost)} is reached: {money(spent.cost)} spent{earlier}, the next "
                f"call may cost {money(most.cost)}; what was made is kept; raise max_cost to continue"
            )
        return CapReached(
            f"{where}: the cap of {budget.tokens:,} tokens is reached: {spent.total_tokens:,} used{earlier}, the next "
            f"call may take {most.total_tokens:,}; what was made is kept; raise max_total_tokens to continue"
        )


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
