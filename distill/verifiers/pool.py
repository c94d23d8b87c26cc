"""A pool of killable processes that judge answers, with a deadline per verdict.

Nothing a verifier does inside a worker costs more than one verdict: a hang, a crash or running out of memory gives
`unverifiable` with the reason (`Verdict.failure` names the kind), and the worker is replaced. The limit is CPU time, so
a busy machine changes no verdict; a generous wall-clock deadline catches verifiers that sleep. The cheap and safe part
of a verifier (`quick`) runs in the calling thread, so ten thousand integers never cross a pipe.

Many threads (`verify`, `verify_many`, `submit`) and asyncio tasks (`averify`) may use one pool. Its dispatcher thread
starts, feeds and kills the workers. (The kernel ties a child's death signal to the *thread* that started it, so that
thread must stay alive.) Fast verdicts are sent to a worker in batches, slow ones one at a time. Items that wait behind
a slow one are given to another worker, so a hang holds nothing up.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Pipe, wait
from typing import TYPE_CHECKING, Any

from distill.machine import cores
from distill.thinking import Response
from distill.types import Failure, Problem, Verdict
from distill.verifiers import asking
from distill.verifiers.base import Key, Note, Session, Stopping, Verifier, never, silent
from distill.verifiers.compose import Spec, build
from distill.verifiers.process import LOOK_SECONDS, Job, WorkerProcess
from distill.verifiers.run import judge_quickly, posed, shown, signed
from distill.verifiers.worker import Limits
from pipeline.errors import PipelineError
from pipeline.fingerprint import FileHashes

if TYPE_CHECKING:
    from distill.spending import Spending

BATCH = 16
BATCH_SECONDS = 0.05
"""How long a batch should take: little compared with the limits, much compared with sending a message."""
HEARTBEAT_SECONDS = 0.5
IN_FLIGHT = 64
"""Items per worker that one `verify_many` submits before it waits for verdicts. Bounds memory."""
MOST_FAILED_STARTS = 3
DYING_SECONDS = 1.0
"""How long a worker whose pipe has closed may take to end by itself, so that its exit status shows the cause."""


def _next(replies: queue.SimpleQueue[Future[Verdict]], stopping: Stopping) -> Future[Verdict] | None:
    """The next future that is done; None once ``stopping`` returns True."""
    while not stopping():
        with suppress(queue.Empty):
            return replies.get(timeout=HEARTBEAT_SECONDS)
    return None


class VerifierPool:
    """A pool of ``workers`` processes, started on demand. A context manager; `close` kills them."""

    def __init__(
        self, workers: int | None = None, limits: Limits | None = None, *,
        note: Note = silent, hashes: FileHashes | None = None, spending: Spending | None = None,
    ) -> None:  # fmt: skip
        """``note`` receives the messages of opened verifiers, and each kind of failure once. ``hashes`` caches file
        hashes. ``spending`` is the account for what opened verifiers pay for."""
        self.workers = workers or cores()
        self.limits = limits or Limits()
        self.restarts = 0
        """How many workers had to be replaced so far; for the report."""
        self._waiting: deque[Job] = deque()
        self._note, self._hashes, self._spending = note, hashes or FileHashes(), spending
        self._built: dict[str, Verifier] = {}
        self._sessions: dict[str, Session] = {}
        self._reported: set[tuple[str, Failure]] = set()
        self._askers = ThreadPoolExecutor(1, "asking")  # one thread: a session serves one caller at a time
        self._lock = threading.Lock()
        self._opening = threading.Lock()  # a separate lock, because loading a model takes long
        self._wake_sender, self._wake_receiver = Pipe()
        self._woken = False
        self._thread: threading.Thread | None = None
        self._closing = False
        self._failed_starts = 0
        self._pace: dict[str, float] = {}

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def verify(self, spec: Spec, problem: Problem | str, trace: Response | str) -> Verdict:
        """One verdict. ``problem`` may be the reference answer alone, ``trace`` the raw text."""
        # In this thread: if it is already asking this judge, the session raises instead of deadlocking.
        if asking.holds_opened(self._verifier(spec)):
            return self._verify_opened(spec, problem, trace)
        future = self.submit(spec, problem, trace)
        # Not result() alone: a Ctrl-C that comes just before an unbounded wait would be noticed only after it.
        while not future.done():
            futures.wait([future], HEARTBEAT_SECONDS)
        return future.result()

    async def averify(self, spec: Spec, problem: Problem | str, trace: Response | str) -> Verdict:
        """One verdict, from asyncio. Any number of tasks may wait at once. Cancelling a task drops its verdict."""
        return await asyncio.wrap_future(self.submit(spec, problem, trace))

    def submit(self, spec: Spec, problem: Problem | str, trace: Response | str) -> Future[Verdict]:
        """The future of a verdict. ``cancel()`` works at any time; the worker is free again within a second.

        A wrong spec raises `InputError` here. The future raises `PipelineError` if the pool cannot start its workers, a
        verifier lacks its sandbox, or a judge cannot go on. A verifier that must be opened (a judge) takes these calls
        one at a time, so use `verify_many` for many answers.
        """
        if asking.holds_opened(self._verifier(spec)):
            if self._closing:
                raise PipelineError("the verifier pool is closed")
            return self._askers.submit(self._verify_opened, spec, problem, trace)
        found = self._quick_or_future(spec, posed(problem), trace)
        if isinstance(found, Future):
            return found
        done: Future[Verdict] = Future()
        done.set_result(found)
        return done

    def _verify_opened(self, spec: Spec, problem: Problem | str, trace: Response | str) -> Verdict:
        return dict(self.verify_many([(None, spec, problem, trace)]))[None]

    def verify_many(
        self, items: Iterable[tuple[Key, Spec, Problem | str, Response | str]], stopping: Stopping = never
    ) -> Iterator[tuple[Key, Verdict]]:
        """Yield (key, verdict) for every (key, spec, problem, trace), in order of completion.

        ``items`` is read lazily, never far ahead of the verdicts. Errors are those of `submit`. Once ``stopping``
        returns True (it is polled every half second), nothing more is started, and items in progress get no verdict.
        """
        whole = ((key, spec, posed(problem), trace) for key, spec, problem, trace in items)
        in_workers = partial(self._in_workers, stopping)
        for key, verdict in asking.verify_many(whole, self._verifier, self._session, in_workers, stopping):
            self._report_failure(verdict)
            yield key, verdict

    def _report_failure(self, verdict: Verdict) -> None:
        """Report each kind of failure when it first occurs: a bug in a user's own verifier affects every answer, and a
        training run would only see that it gets no reward."""
        if verdict.failure and (kind := (verdict.verifier, verdict.failure)) not in self._reported:
            self._reported.add(kind)
            self._note(f"{verdict.verifier} gave no verdict: {verdict.reason}; such answers are unverifiable")

    def _verifier(self, spec: Spec) -> Verifier:
        name = spec if isinstance(spec, str) else repr(spec)
        return self._built.get(name) or self._built.setdefault(name, build(spec, self._hashes))

    def _session(self, spec: Spec) -> Session:
        """An opened verifier, which stays open until the pool is closed."""
        with self._opening:
            if self._closing:
                raise PipelineError("the verifier pool is closed")
            if (name := repr(spec)) not in self._sessions:
                verifier: Any = self._verifier(spec)
                spending = (self._spending,) if getattr(verifier, "spends", False) else ()
                self._sessions[name] = verifier.open(self._note, *spending)
            return self._sessions[name]

    def _in_workers(
        self, stopping: Stopping, items: Iterable[tuple[Key, Spec, Problem, Response | str]]
    ) -> Iterator[tuple[Key, Verdict]]:
        replies: queue.SimpleQueue[Future[Verdict]] = queue.SimpleQueue()
        waiting: dict[Future[Verdict], Key] = {}
        try:
            for key, spec, problem, trace in items:
                found = self._quick_or_future(spec, problem, trace)
                if isinstance(found, Future):
                    waiting[found] = key
                    found.add_done_callback(replies.put)
                else:
                    yield key, found
                while waiting and (not replies.empty() or len(waiting) >= IN_FLIGHT * self.workers):
                    if (done := _next(replies, stopping)) is None:
                        return
                    yield waiting.pop(done), done.result()
            while waiting and (done := _next(replies, stopping)) is not None:
                yield waiting.pop(done), done.result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """Kill the workers and close the opened verifiers. Calls still in flight raise `PipelineError`."""
        with self._lock:
            self._closing, thread = True, self._thread
        self._askers.shutdown(wait=False, cancel_futures=True)
        with self._opening:
            sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            session.close()
        if thread:
            self._wake()
            thread.join()

    def _quick_or_future(self, spec: Spec, problem: Problem, trace: Response | str) -> Verdict | Future[Verdict]:
        """The verdict if the quick part can decide, otherwise the future of a worker's verdict."""
        verifier = self._verifier(spec)
        verdict = judge_quickly(verifier, problem, trace)
        if verdict is not None:
            return verdict
        job = Job(spec, verifier, problem, shown(verifier, trace), Future())
        with self._lock:
            if self._closing:
                raise PipelineError("the verifier pool is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._dispatch, name="verifiers", daemon=True)
                self._thread.start()
            self._waiting.append(job)
            news = len(self._waiting) == 1  # if others wait already, a worker's reply will wake the dispatcher
        job.future.add_done_callback(self._wake_if_cancelled)
        if news:
            self._wake()
        return job.future

    def _wake_if_cancelled(self, future: Future[Verdict]) -> None:
        if future.cancelled():
            self._wake()

    def _wake(self) -> None:
        """Wake the dispatcher, to look for waiting and cancelled items."""
        with self._lock:
            if not self._woken:
                self._woken = True
                self._wake_sender.send_bytes(b"x")

    # Everything below runs in the dispatcher's thread.

    def _dispatch(self) -> None:
        workers: list[WorkerProcess] = []
        try:
            while not self._closing:
                self._feed(workers)
                ready = wait([self._wake_receiver, *(worker.connection for worker in workers)], self._timeout(workers))
                if self._wake_receiver in ready:
                    self._on_wake(workers)
                for worker in list(workers):
                    worker.look()
                    if worker.connection in ready:
                        self._receive(worker, workers)
                    elif worker.busy and time.monotonic() >= worker.deadline:
                        self._on_lost(worker, workers, overdue=True)
                    elif self.workers > 1 and worker.holds_up and time.monotonic() >= worker.patience:
                        self._take_back(worker)
        finally:
            with self._lock:
                self._closing = True
            for worker in workers:
                worker.end()
            self._fail([job for worker in workers for job in worker.jobs if job], "the verifier pool was closed")

    def _timeout(self, workers: list[WorkerProcess]) -> float | None:
        """Seconds until a worker is overdue, has held up its batch for too long, or needs a look at its memory."""
        ends = [min(worker.deadline, time.monotonic() + LOOK_SECONDS) for worker in workers if worker.busy]
        if self.workers > 1:
            ends += [worker.patience for worker in workers if worker.holds_up]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _on_wake(self, workers: list[WorkerProcess]) -> None:
        with self._lock:
            self._wake_receiver.recv_bytes()
            self._woken = False
        for worker in workers:
            worker.hurry()

    def _feed(self, workers: list[WorkerProcess]) -> None:
        """Give every idle worker a batch; start another worker while there is work and room for it."""
        while self._waiting:
            idle = next((worker for worker in workers if not worker.busy), None)
            if idle is None:
                if len(workers) < self.workers and all(worker.ready for worker in workers):
                    workers.append(WorkerProcess.start(self.limits))
                return
            if not (batch := self._batch()):
                continue
            idle.send(batch, self.limits)

    def _batch(self) -> list[Job]:
        """The next items that should take `BATCH_SECONDS` together; a single one if their pace is unknown."""
        with self._lock:
            size = min(BATCH, -(-len(self._waiting) // self.workers))
            jobs, seconds = [self._waiting.popleft()], 0.0
            while len(jobs) < size:
                seconds += self._pace.get(jobs[-1].verifier.name, BATCH_SECONDS)
                if seconds >= BATCH_SECONDS:
                    break
                jobs.append(self._waiting.popleft())
        return [job for job in jobs if not job.future.cancelled()]

    def _take_back(self, worker: WorkerProcess) -> None:
        """Give the items behind a slow one to others. The worker reaches them too, but its replies are ignored."""
        first, *rest = worker.jobs
        worker.jobs = deque([first, *[None] * len(rest)])
        self._requeue(rest)

    def _requeue(self, jobs: Iterable[Job | None]) -> None:
        with self._lock:
            self._waiting.extendleft(reversed([job for job in jobs if job]))

    def _receive(self, worker: WorkerProcess, workers: list[WorkerProcess]) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            self._on_lost(worker, workers)
            return
        if not worker.ready:
            worker.ready, self._failed_starts = True, 0
            return
        job = worker.jobs.popleft()
        worker.begin(self.limits)
        if job is not None:
            self._update_pace(job.verifier.name, message)
            job.answer(message)
        if isinstance(message, Verdict) and message.failure is Failure.MEMORY:
            # A process that ran out of memory cannot be trusted any more.
            self._replace(worker, workers)

    def _update_pace(self, name: str, message: Verdict | PipelineError) -> None:
        """Update the moving average of the seconds that a verdict of this verifier takes."""
        if isinstance(message, Verdict):
            self._pace[name] = 0.8 * self._pace.get(name, message.seconds) + 0.2 * message.seconds

    def _on_lost(self, worker: WorkerProcess, workers: list[WorkerProcess], overdue: bool = False) -> None:
        """Handle a worker that hangs or died: the verdict in progress is lost, the rest of its batch is not."""
        job = worker.jobs.popleft() if worker.jobs else None
        self._replace(worker, workers, 0.0 if overdue else DYING_SECONDS)
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS:
                self._fail([], "the verifier workers do not start; their error is above")
        elif job is not None:
            late = Verdict.failed(Failure.TIMEOUT, f"no verdict within {self.limits.wall_seconds:g} s of wall time")
            verdict = late if overdue else worker.death(self.limits)
            job.answer(signed(job.verifier, job.trace, verdict, time.monotonic() - worker.began))

    def _replace(self, worker: WorkerProcess, workers: list[WorkerProcess], patience: float = 0.0) -> None:
        """End a worker and requeue what it had not begun. Its successor is started on demand."""
        workers.remove(worker)
        worker.end(patience)
        self.restarts += 1
        self._requeue(worker.jobs)
        worker.jobs.clear()

    def _fail(self, jobs: list[Job], reason: str) -> None:
        with self._lock:
            jobs = [*jobs, *self._waiting]
            self._waiting.clear()
        for job in jobs:
            job.answer(PipelineError(reason))
