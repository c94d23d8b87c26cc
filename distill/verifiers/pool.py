"""A pool of killable processes that judge answers, with a deadline per verdict.

What a verifier does inside a worker costs at most one verdict: a hang, a crash, a memory bomb is
`unverifiable` with its reason, the worker is started anew, and the rest of its batch goes to the next.
The limit is CPU time, so that a busy machine changes no verdict; a generous wall deadline stands behind
it for what sleeps. The cheap and safe part of a verifier (`quick`) runs in the calling thread, so that
ten thousand integers never cross a pipe.

One thread of the pool's own, the dispatcher, owns the workers: starts, feeds and kills them. (The kernel
ties a child's death signal to the *thread* that started it, so it must be one that stays.) Callers talk
to it through queues, from as many threads as they like.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, Pipe, wait

from distill.thinking import Response
from distill.types import Problem, Verdict
from distill.verifiers import asking
from distill.verifiers.base import Key, Note, Session, Stopping, Verifier, never, silent
from distill.verifiers.compose import Spec, build
from distill.verifiers.run import OUT_OF_MEMORY, judge_quickly, shown
from distill.verifiers.worker import Limits
from pipeline.errors import PipelineError
from pipeline.fingerprint import FileHashes

BATCH = 16
IN_FLIGHT = 64
"""Items per worker that one `verify_many` hands in before it waits for verdicts: the memory bound."""
START_SECONDS = 120.0
WORKER = "from distill.verifiers.worker import main; main()"
MOST_FAILED_STARTS = 3


@dataclass(eq=False, slots=True)
class _Job:
    """One item on its way; its verdict, or the pool's failure, goes to ``replies``."""

    key: Hashable
    spec: Spec
    verifier: Verifier
    problem: Problem
    trace: Response
    replies: queue.SimpleQueue[tuple[_Job, Verdict | PipelineError]]
    cancelled: threading.Event


@dataclass(eq=False, slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    deadline: float
    ready: bool = False
    jobs: deque[_Job] = field(default_factory=deque)


class VerifierPool:
    """``workers`` processes, started when first needed. A context manager; `close` kills them."""

    def __init__(
        self, workers: int | None = None, limits: Limits | None = None, *,
        note: Note = silent, hashes: FileHashes | None = None,
    ) -> None:  # fmt: skip
        """``note`` is told what an opened verifier has to say; ``hashes`` remembers what files hold."""
        self.workers = workers or max(1, len(os.sched_getaffinity(0)))
        self.limits = limits or Limits()
        self._note, self._hashes = note, hashes or FileHashes()
        self._built: dict[str, Verifier] = {}
        self._sessions: dict[str, Session] = {}
        self.restarts = 0
        """How many workers had to be replaced so far; for the report."""
        self._waiting: deque[_Job] = deque()
        self._lock = threading.Lock()
        self._opening = threading.Lock()  # one of its own, for loading a model takes long
        self._bell, self._ear = Pipe()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._failed_starts = 0

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def verify(self, spec: Spec, problem: Problem, trace: Response | str) -> Verdict:
        """One verdict."""
        ((_, verdict),) = self.verify_many([(None, spec, problem, trace)])
        return verdict

    def verify_many(
        self, items: Iterable[tuple[Key, Spec, Problem, Response | str]], stopping: Stopping = never
    ) -> Iterator[tuple[Key, Verdict]]:
        """Yield (key, verdict) for every (key, spec, problem, trace), as they are done.

        ``items`` is read as verdicts come out, never far ahead. A wrong spec raises `InputError` when
        it is reached; a pool that cannot start its workers, a verifier without its sandbox, or a judge
        that cannot go on (`distill.verifiers.asking`) raises `PipelineError`. Once ``stopping`` is true
        judges are asked nothing more, and what they were at gets no verdict.
        """
        return asking.verify_many(items, self._verifier, self._session, self._in_workers, stopping)

    def _verifier(self, spec: Spec) -> Verifier:
        name = spec if isinstance(spec, str) else repr(spec)
        return self._built.get(name) or self._built.setdefault(name, build(spec, self._hashes))

    def _session(self, spec: Spec) -> Session:
        """An opened verifier, which stays open until the pool is closed."""
        with self._opening:
            if self._closing:
                raise PipelineError("the verifier pool is closed")
            if (name := repr(spec)) not in self._sessions:
                self._sessions[name] = self._verifier(spec).open(self._note)  # type: ignore[attr-defined]
            return self._sessions[name]

    def _in_workers(self, items: Iterable[tuple[Key, Spec, Problem, Response | str]]) -> Iterator[tuple[Key, Verdict]]:
        replies: queue.SimpleQueue[tuple[_Job, Verdict | PipelineError]] = queue.SimpleQueue()
        cancelled = threading.Event()
        in_flight = 0
        try:
            for key, spec, problem, trace in items:
                verifier = self._verifier(spec)
                verdict = judge_quickly(verifier, problem, trace)
                if verdict is not None:
                    yield key, verdict
                else:
                    self._submit(_Job(key, spec, verifier, problem, shown(verifier, trace), replies, cancelled))
                    in_flight += 1
                while in_flight and (not replies.empty() or in_flight >= IN_FLIGHT * self.workers):
                    yield self._taken(replies)
                    in_flight -= 1
            while in_flight:
                yield self._taken(replies)
                in_flight -= 1
        finally:
            cancelled.set()

    def close(self) -> None:
        """Kill the workers, close what was opened. Calls still in flight raise `PipelineError`."""
        with self._lock:
            self._closing, thread = True, self._thread
        if thread:
            self._bell.send_bytes(b"x")
            thread.join()
        with self._opening:
            sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            session.close()

    @staticmethod
    def _taken(replies: queue.SimpleQueue[tuple[_Job, Verdict | PipelineError]]) -> tuple[Key, Verdict]:
        job, reply = replies.get()
        if isinstance(reply, PipelineError):
            raise reply
        return job.key, reply  # type: ignore[return-value]

    def _submit(self, job: _Job) -> None:
        with self._lock:
            if self._closing:
                raise PipelineError("the verifier pool is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._dispatch, name="verifiers", daemon=True)
                self._thread.start()
            self._waiting.append(job)
            if len(self._waiting) == 1:
                self._bell.send_bytes(b"x")

    # Everything below runs in the dispatcher's thread.

    def _dispatch(self) -> None:
        workers: list[_Worker] = []
        try:
            while not self._closing:
                self._feed(workers)
                nearest = min((w.deadline for w in workers if w.jobs or not w.ready), default=None)
                timeout = None if nearest is None else max(0.0, nearest - time.monotonic())
                heard = wait([self._ear, *(worker.connection for worker in workers)], timeout)
                if self._ear in heard:
                    self._ear.recv_bytes()
                for worker in list(workers):
                    if worker.connection in heard:
                        self._listen(worker, workers)
                    elif (worker.jobs or not worker.ready) and time.monotonic() >= worker.deadline:
                        self._lose(worker, workers, f"no verdict within {self.limits.wall_seconds:g} s of wall time")
        finally:
            for worker in workers:
                self._kill(worker)
            self._fail([job for worker in workers for job in worker.jobs], "the verifier pool was closed")

    def _feed(self, workers: list[_Worker]) -> None:
        """Give every idle worker a batch; start one more while there is work and room for it."""
        while self._waiting:
            idle = next((worker for worker in workers if worker.ready and not worker.jobs), None)
            if idle is None:
                if len(workers) < self.workers and not any(not worker.ready for worker in workers):
                    workers.append(self._start())
                return
            if not (batch := self._batch()):
                continue
            idle.jobs.extend(batch)
            idle.deadline = time.monotonic() + self.limits.wall_seconds
            with suppress(OSError):  # it is dead; reading from it says how
                idle.connection.send([(job.spec, job.problem, job.trace) for job in batch])

    def _batch(self) -> list[_Job]:
        with self._lock:
            size = min(BATCH, -(-len(self._waiting) // self.workers))
            jobs = [self._waiting.popleft() for _ in range(size)]
        return [job for job in jobs if not job.cancelled.is_set()]

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(theirs.fileno())],
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
            self._lose(worker, workers, "")
            return
        worker.deadline = time.monotonic() + self.limits.wall_seconds
        if not worker.ready:
            worker.ready, self._failed_starts = True, 0
        else:
            job = worker.jobs.popleft()
            job.replies.put((job, message))
            if isinstance(message, Verdict) and OUT_OF_MEMORY in message.reason:
                # What is left of that process is not to be trusted.
                self._replace(worker, workers)

    def _lose(self, worker: _Worker, workers: list[_Worker], reason: str) -> None:
        """A worker hangs or is dead: one verdict is lost, the rest of its batch goes back to the front."""
        if not worker.ready:
            self._replace(worker, workers)
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS:
                self._fail([], "the verifier workers do not start; their error is above")
            return
        job = worker.jobs.popleft() if worker.jobs else None
        self._replace(worker, workers)
        if job is not None:
            verdict = Verdict.unverifiable(reason or self._cause(worker.process.returncode))
            job.replies.put((job, replace(verdict, verifier=job.verifier.name, version=job.verifier.version)))

    def _replace(self, worker: _Worker, workers: list[_Worker]) -> None:
        """End a worker; what it had not begun goes back to the front. The next is started on demand."""
        workers.remove(worker)
        self._kill(worker)
        self.restarts += 1
        with self._lock:
            self._waiting.extendleft(reversed(worker.jobs))

    def _cause(self, code: int) -> str:
        if code == -signal.SIGPROF:
            return f"more than {self.limits.cpu_seconds:g} s of CPU time"
        if code < 0:
            return f"the verifier's process was killed by {signal.Signals(-code).name}"
        return f"the verifier's process ended with status {code}"

    def _kill(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.wait()
        worker.connection.close()

    def _fail(self, jobs: list[_Job], reason: str) -> None:
        with self._lock:
            jobs = [*jobs, *self._waiting]
            self._waiting.clear()
        for job in jobs:
            job.replies.put((job, PipelineError(reason)))
