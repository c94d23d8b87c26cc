"""One worker process as the pool's dispatcher sees it: started, given a batch, waited for, ended.

`distill.verifiers.worker` is what runs in it; when it is late, and what becomes of its batch, is decided in
`distill.verifiers.pool`. All of this is called from one thread.
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
"""What a verdict that nobody waits for any more may still take: less than a new worker costs."""
LOOK_SECONDS = 0.5
"""From one look at how much memory a long verdict has taken to the next."""
MUCH = 4
"""The part of its memory limit with which a worker that dies otherwise is said to have died of memory: much of the CPU
time goes into making the pages that are asked for."""
PATIENCE_SECONDS = 0.25
"""So long may an item keep the rest of its batch waiting."""


@dataclass(frozen=True, eq=False, slots=True)
class Job:
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
class WorkerProcess:
    process: subprocess.Popen[bytes]
    connection: Connection
    deadline: float
    ready: bool = False
    began: float = 0.0
    jobs: deque[Job | None] = field(default_factory=deque)
    """Its batch, the one it is at first; None stands for one that another worker got meanwhile."""
    patience: float = 0.0
    """When the rest of the batch is taken from it."""
    held: int = 0
    """The most bytes of memory that it was seen to hold at its item."""

    @property
    def busy(self) -> bool:
        return bool(self.jobs) or not self.ready

    @property
    def holds_up(self) -> bool:
        return any(self.jobs[index] for index in range(1, len(self.jobs)))

    def send(self, batch: Sequence[Job], limits: Limits) -> None:
        self.jobs.extend(batch)
        self.begin(limits)
        with suppress(OSError):  # it is dead; reading from it says how
            self.connection.send([(job.spec, job.problem, job.trace) for job in batch])

    def begin(self, limits: Limits) -> None:
        """It starts on the first of its jobs."""
        self.began = time.monotonic()
        self.deadline = self.began + limits.wall_seconds
        self.patience = time.monotonic() + PATIENCE_SECONDS
        self.held = 0
        self.hurry()

    def look(self) -> None:
        """Note how much memory it holds, where its item takes long: once it is dead nobody can tell."""
        if self.jobs and time.monotonic() - self.began >= LOOK_SECONDS:
            with suppress(OSError, IndexError, ValueError):
                pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
                self.held = max(self.held, pages * os.sysconf("SC_PAGESIZE"))

    def hurry(self) -> None:
        """Allow little time for what nobody waits for any more."""
        if self.jobs and self.jobs[0] and self.jobs[0].future.cancelled():
            self.deadline = min(self.deadline, time.monotonic() + GRACE_SECONDS)

    @classmethod
    def start(cls, limits: Limits) -> WorkerProcess:
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
        ours.send((os.getpid(), limits))
        return cls(process, ours, time.monotonic() + START_SECONDS)

    def death(self, limits: Limits) -> Verdict:
        """What to say of a verdict at which it died."""
        code = self.process.returncode
        much = limits.memory_bytes // MUCH
        if code == -signal.SIGPROF and self.held > much:
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
        """Kill it, after waiting a little for its own end where its pipe is closed already: how it ended is told."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        self.process.kill()
        self.process.wait()
        self.connection.close()
