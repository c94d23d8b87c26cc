"""A pool of killable processes that judge answers, with a deadline per verdict.

What a verifier does inside a worker costs at most one verdict: a hang, a crash, a memory bomb is
`unverifiable` with its reason (`Verdict.failure` tells which), and the worker is started anew. The limit
is CPU time, so that a busy machine changes no verdict; a generous wall deadline stands behind it for what
sleeps. The cheap and safe part of a verifier (`quick`) runs in the calling thread, so that ten thousand
integers never cross a pipe.

Callers may be many threads (`verify`, `verify_many`, `submit`) and asyncio tasks (`averify`). One thread
of the pool's own, the dispatcher, owns the workers: starts, feeds and kills them. (The kernel ties a
child's death signal to the *thread* that started it, so it must be one that stays.) A worker has one item
at a time, so that nothing waits behind one that hangs.
"""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe, wait
from typing import TypeVar

from distill.thinking import Response
from distill.types import Failure, Problem, Verdict
from distill.verifiers.base import Verifier
from distill.verifiers.compose import Spec, build
from distill.verifiers.run import judge_quickly, posed, shown
from distill.verifiers.worker import Limits
from pipeline.errors import PipelineError

Key = TypeVar("Key", bound=Hashable)
IN_FLIGHT = 64
"""Items per worker that one `verify_many` hands in before it waits for verdicts: the memory bound."""
START_SECONDS = 120.0
GRACE_SECONDS = 1.0
"""What a verdict that nobody waits for any more may still take: less than a new worker costs."""
WORKER = "from distill.verifiers.worker import main; main()"
MOST_FAILED_STARTS = 3


@dataclass(frozen=True, eq=False, slots=True)
class _Job:
    """One item on its way; its verdict, or the pool's failure, becomes ``future``'s."""

    spec: Spec
    verifier: Verifier
    problem: Problem
    trace: Response
    future: Future[Verdict]

    def answer(self, reply: Verdict | PipelineError) -> None:
        with suppress(InvalidStateError):  # cancelled meanwhile
            if isinstance(reply, PipelineError):
                self.future.set_exception(reply)
            else:
                self.future.set_result(reply)


@dataclass(eq=False, slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    deadline: float
    ready: bool = False
    job: _Job | None = None

    @property
    def busy(self) -> bool:
        return self.job is not None or not self.ready


class VerifierPool:
    """``workers`` processes, started when first needed. A context manager; `close` kills them."""

    def __init__(self, workers: int | None = None, limits: Limits | None = None) -> None:
        self.workers = workers or max(1, len(os.sched_getaffinity(0)))
        self.limits = limits or Limits()
        self.restarts = 0
        """How many workers had to be replaced so far; for the report."""
        self._waiting: deque[_Job] = deque()
        self._verifiers: dict[str, Verifier] = {}
        self._lock = threading.Lock()
        self._bell, self._ear = Pipe()
        self._rung = False
        self._thread: threading.Thread | None = None
        self._closing = False
        self._failed_starts = 0

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def verify(self, spec: Spec, problem: Problem | str, trace: Response | str) -> Verdict:
        """One verdict. ``problem`` may be the reference answer alone, ``trace`` the raw text."""
        return self.submit(spec, problem, trace).result()

    async def averify(self, spec: Spec, problem: Problem | str, trace: Response | str) -> Verdict:
        """One verdict, from asyncio: as many at once as there are tasks. Cancelling the task gives it up."""
        return await asyncio.wrap_future(self.submit(spec, problem, trace))

    def submit(self, spec: Spec, problem: Problem | str, trace: Response | str) -> Future[Verdict]:
        """The verdict to come. ``cancel()`` works at any time: the worker is then free in a second.

        A wrong spec raises `InputError` here; a pool that cannot start its workers, or a verifier without
        its sandbox, raises `PipelineError` from the future.
        """
        found = self._begin(spec, posed(problem), trace)
        if isinstance(found, Future):
            return found
        done: Future[Verdict] = Future()
        done.set_result(found)
        return done

    def verify_many(
        self, items: Iterable[tuple[Key, Spec, Problem | str, Response | str]]
    ) -> Iterator[tuple[Key, Verdict]]:
        """Yield (key, verdict) for every (key, spec, problem, trace), as they are done.

        ``items`` is read as verdicts come out, never far ahead. Errors are those of `submit`.
        """
        replies: queue.SimpleQueue[Future[Verdict]] = queue.SimpleQueue()
        waiting: dict[Future[Verdict], Key] = {}
        try:
            for key, spec, problem, trace in items:
                found = self._begin(spec, posed(problem), trace)
                if isinstance(found, Future):
                    waiting[found] = key
                    found.add_done_callback(replies.put)
                else:
                    yield key, found
                while waiting and (not replies.empty() or len(waiting) >= IN_FLIGHT * self.workers):
                    done = replies.get()
                    yield waiting.pop(done), done.result()
            while waiting:
                done = replies.get()
                yield waiting.pop(done), done.result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """Kill the workers. Calls still in flight raise `PipelineError`."""
        with self._lock:
            self._closing, thread = True, self._thread
        if thread:
            self._ring()
            thread.join()

    def _begin(self, spec: Spec, problem: Problem, trace: Response | str) -> Verdict | Future[Verdict]:
        """The verdict, where the quick part can tell; the future of what a worker says, elsewhere."""
        name = spec if isinstance(spec, str) else repr(spec)
        verifier = self._verifiers.get(name) or self._verifiers.setdefault(name, build(spec))
        verdict = judge_quickly(verifier, problem, trace)
        if verdict is not None:
            return verdict
        job = _Job(spec, verifier, problem, shown(verifier, trace), Future())
        with self._lock:
            if self._closing:
                raise PipelineError("the verifier pool is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._dispatch, name="verifiers", daemon=True)
                self._thread.start()
            self._waiting.append(job)
        job.future.add_done_callback(self._perhaps_cancelled)
        self._ring()
        return job.future

    def _perhaps_cancelled(self, future: Future[Verdict]) -> None:
        if future.cancelled():
            self._ring()

    def _ring(self) -> None:
        """Have the dispatcher look at what is waiting, and at what is given up."""
        with self._lock:
            if not self._rung:
                self._rung = True
                self._bell.send_bytes(b"x")

    # Everything below runs in the dispatcher's thread.

    def _dispatch(self) -> None:
        workers: list[_Worker] = []
        try:
            while not self._closing:
                self._feed(workers)
                nearest = min((worker.deadline for worker in workers if worker.busy), default=None)
                timeout = None if nearest is None else max(0.0, nearest - time.monotonic())
                heard = wait([self._ear, *(worker.connection for worker in workers)], timeout)
                if self._ear in heard:
                    self._answer_bell(workers)
                for worker in list(workers):
                    if worker.connection in heard:
                        self._listen(worker, workers)
                    elif worker.busy and time.monotonic() >= worker.deadline:
                        self._lose(worker, workers, overdue=True)
        finally:
            with self._lock:
                self._closing = True
            for worker in workers:
                self._kill(worker)
            self._fail([worker.job for worker in workers if worker.job], "the verifier pool was closed")

    def _answer_bell(self, workers: list[_Worker]) -> None:
        with self._lock:
            self._ear.recv_bytes()
            self._rung = False
        for worker in workers:
            if worker.job and worker.job.future.cancelled():
                worker.deadline = min(worker.deadline, time.monotonic() + GRACE_SECONDS)

    def _feed(self, workers: list[_Worker]) -> None:
        """Give every idle worker an item; start one more while there is work and room for it."""
        while self._waiting:
            idle = next((worker for worker in workers if not worker.busy), None)
            if idle is None:
                if len(workers) < self.workers and all(worker.ready for worker in workers):
                    workers.append(self._start())
                return
            with self._lock:
                job = self._waiting.popleft()
            if job.future.cancelled():
                continue
            idle.job = job
            idle.deadline = time.monotonic() + self.limits.wall_seconds
            with suppress(OSError):  # it is dead; reading from it says how
                idle.connection.send((job.spec, job.problem, job.trace))

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", WORKER, str(theirs.fileno())],  # -P: no other path than ours
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        theirs.close()
        ours.send((os.getpid(), self.limits))
        return _Worker(process, ours, time.monotonic() + START_SECONDS)

    def _listen(self, worker: _Worker, workers: list[_Worker]) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            self._lose(worker, workers)
            return
        if worker.job is None:
            worker.ready, self._failed_starts = True, 0
            return
        job, worker.job = worker.job, None
        job.answer(message)
        if isinstance(message, Verdict) and message.failure is Failure.MEMORY:
            # What is left of that process is not to be trusted.
            self._replace(worker, workers)

    def _lose(self, worker: _Worker, workers: list[_Worker], overdue: bool = False) -> None:
        """A worker hangs or is dead: the verdict it was at is lost."""
        self._replace(worker, workers)
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS:
                self._fail([], "the verifier workers do not start; their error is above")
        elif worker.job is not None:
            late = Verdict.failed(Failure.TIMEOUT, f"no verdict within {self.limits.wall_seconds:g} s of wall time")
            verdict = late if overdue else self._death(worker.process.returncode)
            verifier = worker.job.verifier
            worker.job.answer(replace(verdict, verifier=verifier.name, version=verifier.version))

    def _death(self, code: int) -> Verdict:
        if code == -signal.SIGPROF:
            return Verdict.failed(Failure.TIMEOUT, f"more than {self.limits.cpu_seconds:g} s of CPU time")
        if code < 0:
            cause = f"the verifier's process was killed by {signal.Signals(-code).name}"
            return Verdict.failed(Failure.CRASH, cause)
        return Verdict.failed(Failure.CRASH, f"the verifier's process ended with status {code}")

    def _replace(self, worker: _Worker, workers: list[_Worker]) -> None:
        """End a worker. The next is started on demand."""
        workers.remove(worker)
        self._kill(worker)
        self.restarts += 1

    def _kill(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.wait()
        worker.connection.close()

    def _fail(self, jobs: list[_Job], reason: str) -> None:
        with self._lock:
            jobs = [*jobs, *self._waiting]
            self._waiting.clear()
        for job in jobs:
            job.answer(PipelineError(reason))
