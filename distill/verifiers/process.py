"""One worker process as the pool's dispatcher sees it: start it, send it a batch, watch it, end it.

`distill.verifiers.worker` runs in the process. `distill.verifiers.pool` acts when it is overdue, and decides what
happens to its batch. Everything here is called from one thread.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

from distill.thinking import Response
from distill.types import Failure, Problem, Verdict
from distill.verifiers.base import Verifier
from distill.verifiers.compose import Spec
from distill.verifiers.worker import Limits
from pipeline.errors import PipelineError

WORKER = "from distill.verifiers.worker import main; main()"
START_SECONDS = 120.0
GRACE_SECONDS = 1.0
"""How long a cancelled verdict may still take: less than starting a new worker costs."""
LOOK_SECONDS = 0.5
"""Interval between two looks at the memory of a worker whose verdict takes long."""
MUCH, MORE = 4, 1.1
"""A worker that exceeds its CPU limit counts as out of memory if it holds more than 1/MUCH of its memory limit, and its
memory has grown by the factor MORE in the second half of the time: much of that time went into allocating pages.
Memory that it holds from the beginning, such as a table of its own, costs no CPU time."""
PATIENCE_SECONDS = 0.25
"""How long an item may keep the rest of its batch waiting."""


@dataclass(frozen=True, eq=False, slots=True)
class Job:
    """One submitted item. ``future`` gets its verdict, or the error of the pool."""

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
class WorkerProcess:
    process: subprocess.Popen[bytes]
    connection: Connection
    deadline: float
    ready: bool = False
    began: float = 0.0
    jobs: deque[Job | None] = field(default_factory=deque)
    """Its batch, starting with the current item. None stands for an item that was given to another worker."""
    patience: float = 0.0
    """When the rest of the batch is taken from it (on the monotonic clock)."""
    looks: list[tuple[int, int]] = field(default_factory=list)
    """What was seen of it during the current item: ticks of CPU time since its start, and bytes of memory."""

    @property
    def busy(self) -> bool:
        return bool(self.jobs) or not self.ready

    @property
    def holds_up(self) -> bool:
        return any(self.jobs[index] for index in range(1, len(self.jobs)))

    def send(self, batch: Sequence[Job], limits: Limits) -> None:
        self.jobs.extend(batch)
        self.begin(limits)
        with suppress(OSError):  # it died; reading from it shows how
            self.connection.send([(job.spec, job.problem, job.trace) for job in batch])

    def begin(self, limits: Limits) -> None:
        """Start the clocks for the first of its jobs."""
        self.began = time.monotonic()
        self.deadline = self.began + limits.wall_seconds
        self.patience = time.monotonic() + PATIENCE_SECONDS
        self.looks.clear()
        self.hurry()

    def look(self) -> None:
        """Record its CPU time and memory if its item takes long, because they are unknown once it is dead."""
        if self.jobs and time.monotonic() - self.began >= LOOK_SECONDS:
            with suppress(OSError, IndexError, ValueError):
                fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
                user, system, pages = (int(fields[index]) for index in (11, 12, 21))
                if pages:  # 0 if it is dead
                    self.looks.append((user + system, pages * os.sysconf("SC_PAGESIZE")))

    @property
    def takes_more(self) -> int:
        """The bytes that it held last, if its memory was growing; else 0."""
        if not self.looks:
            return 0
        (first, _), (last, held) = self.looks[0], self.looks[-1]
        before = max(then for ticks, then in self.looks if ticks <= (first + last) / 2)
        return held if held > MORE * before else 0

    def hurry(self) -> None:
        """Shorten the deadline if the current item was cancelled."""
        if self.jobs and self.jobs[0] and self.jobs[0].future.cancelled():
            self.deadline = min(self.deadline, time.monotonic() + GRACE_SECONDS)

    @classmethod
    def start(cls, limits: Limits) -> WorkerProcess:
        ours, theirs = Pipe()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", WORKER, str(theirs.fileno())],  # -P: only the path that we set
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # only the parent handles Ctrl-C
        )
        theirs.close()
        ours.send((os.getpid(), limits))
        return cls(process, ours, time.monotonic() + START_SECONDS)

    def death(self, limits: Limits) -> Verdict:
        """The verdict on the item during which it died."""
        code = self.process.returncode
        much = limits.memory_bytes // MUCH
        if code == -signal.SIGPROF and self.takes_more > much:
            why = f"more than {much / (1 << 30):g} GiB of memory, and of {limits.cpu_seconds:g} s of CPU time"
            return Verdict.failed(Failure.MEMORY, why)
        if code == -signal.SIGPROF:
            return Verdict.failed(Failure.TIMEOUT, f"more than {limits.cpu_seconds:g} s of CPU time")
        if code < 0:
            known = {number.value: number.name for number in signal.Signals}  # real-time signals have no names
            return Verdict.failed(
                Failure.CRASH, f"the verifier's process was killed by {known.get(-code, f'signal {-code}')}"
            )
        return Verdict.failed(Failure.CRASH, f"the verifier's process ended with status {code}")

    def end(self, patience: float = 0.0) -> None:
        """Kill it, after giving it ``patience`` seconds to end by itself, so that its exit status shows the cause."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        self.process.kill()
        self.process.wait()
        self.connection.close()
