"""The processes around a candidate: process 1 of the box, and a launcher outside where a backend needs one.

Both are ours. Process 1 forks the candidate, waits for it or for the word to end the run, and reports how it
ended; when process 1 ends, the kernel ends everything in the box, and from inside it cannot be killed.
"""

from __future__ import annotations

import json
import os
import select
import signal
from typing import Any, NoReturn

from .confine import confine
from .kernel import libc, must

REPORT, FIRST_WIRE, LIFELINE = 5, 6, 10
"""Descriptors: 0 input, 1 output, 3 payload, 4 results, then these. The last is the launcher's alone."""
UID = 61234
"""Whom the candidate runs as when the verifier is root; nobody else should own this uid."""


class Leave(Exception):
    """Raised in the candidate's process alone: unwind to the top, and run this program there."""


def report(message: dict[str, object]) -> None:
    os.write(REPORT, json.dumps(message).encode() + b"\n")


def become_ordinary() -> None:
    """From root to the dedicated uid, for good: kernel uid 0 is dangerous even inside a user namespace."""
    os.setgroups([])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)


def supervise(box: int) -> NoReturn:
    """The launcher's part: wait until the box has ended, or end it when told to, or when nobody is left to tell.

    It lets go of the pipes first, so that their other ends see when the candidate is gone.
    """
    os.closerange(0, REPORT)
    os.closerange(REPORT + 1, LIFELINE)
    if not wait_for(box):
        os.kill(box, signal.SIGKILL)
    os.waitpid(box, 0)
    _end_orphans()
    os._exit(0)


def adopt_orphans() -> None:
    """Where no namespace ends them: what is left of a box becomes this launcher's child, and ends with the box."""
    must("subreaper", libc.prctl(36, 1, 0, 0, 0))


def _end_orphans() -> None:
    while True:
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                for child in file.read().split():
                    os.kill(int(child), signal.SIGKILL)
        except OSError:
            pass  # no /proc in here: then process 1 has taken all with it
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def be_first(job: dict[str, Any], writable: str | None) -> NoReturn:
    """Process 1 of the box. In the candidate's process it raises `Leave`, and returns in neither."""
    candidate = os.fork()
    if candidate == 0:
        become_candidate(job, writable)
    try:
        os.closerange(0, REPORT)
        os.closerange(REPORT + 1, LIFELINE)
        if wait_for(candidate):
            _, status, usage = os.wait4(candidate, 0)
            cpu = usage.ru_utime + usage.ru_stime
            report({"code": os.waitstatus_to_exitcode(status), "cpu": cpu, "kib": usage.ru_maxrss})
    except OSError as error:
        report({"failed": str(error)})
    os._exit(0)


def wait_for(process: int) -> bool:
    """Whether it ended by itself. Told to end the run, or with nobody left to tell, it is not waited for."""
    ended = os.pidfd_open(process)
    waiting = select.poll()
    waiting.register(ended, select.POLLIN)
    waiting.register(LIFELINE, select.POLLIN)  # inside bwrap there is none, and its launcher has it
    while True:
        ready = dict(waiting.poll())
        if ended in ready:
            return True
        if ready.get(LIFELINE) == select.POLLNVAL:
            waiting.unregister(LIFELINE)
        elif LIFELINE in ready:
            return False


def become_candidate(job: dict[str, Any], writable: str | None) -> NoReturn:
    try:
        os.setsid()
        confine(job["limits"], writable)
    except OSError as error:
        report({"failed": str(error)})
        os._exit(1)
    os.close(REPORT)
    os.closerange(LIFELINE, LIFELINE + 1)
    raise Leave(job["program"])
