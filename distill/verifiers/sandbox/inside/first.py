"""The processes around a candidate: process 1 of the box, and a launcher outside if a backend needs one.

Both run our code. Process 1 forks the candidate, waits for it or for the request to end the run, and reports how it
ended. When process 1 ends, the kernel kills everything in the box. Process 1 cannot be killed from inside.
"""

from __future__ import annotations

import json
import os
import select
import signal
from typing import Any, NoReturn

from .confine import confine
from .kernel import libc, live_without_parent, must

REPORT, FIRST_WIRE, LIFELINE, SERVER = 5, 6, 10, 11
"""Descriptors: 0 input, 1 output, 3 payload, 4 results, then these. The last two are the launcher's alone."""
UID = 61234
"""The candidate's uid if the verifier runs as root. Nobody else should have this uid."""


class Leave(Exception):
    """Raised only in the candidate's process, to unwind to the top and run the program in its message there."""


def report(message: dict[str, object]) -> None:
    os.write(REPORT, json.dumps(message).encode() + b"\n")


def become_ordinary() -> None:
    """Switch from root to the dedicated uid for good: kernel uid 0 is dangerous even inside a user namespace."""
    os.setgroups([])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)


def supervise(box: int) -> NoReturn:
    """The launcher's part: wait until the box ends, or kill it on request or if the verifier or the server is gone.

    It closes its copies of the pipes first, so that their other ends see when the candidate is gone.
    """
    os.closerange(0, REPORT)
    os.closerange(REPORT + 1, LIFELINE)
    if not wait_for(box):
        os.kill(box, signal.SIGKILL)
    os.waitpid(box, 0)
    _end_orphans()
    os._exit(0)


def take_charge() -> None:
    """Make this launcher the one that ends what it starts: it adopts what outlives the box, and kills it.

    So it must not die with the server, but notice its end. A process that bwrap has just created waits for bwrap's
    word without an end, and nothing else kills it if bwrap and its launcher die at that moment.
    """
    must("subreaper", libc.prctl(36, 1, 0, 0, 0))
    server = os.pidfd_open(os.getppid())
    os.dup2(server, SERVER, inheritable=False)
    os.close(server)
    live_without_parent()


def leave_charge() -> None:
    """In the box: drop what is the launcher's alone."""
    os.closerange(LIFELINE, SERVER + 1)


def _end_orphans() -> None:
    while True:
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                for child in file.read().split():
                    os.kill(int(child), signal.SIGKILL)
        except OSError:
            pass  # there is no /proc here; then everything ended with process 1
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def be_first(job: dict[str, Any], writable: str | None) -> NoReturn:
    """Act as process 1 of the box. Raises `Leave` in the candidate's process, and returns in neither."""
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
    """Wait for a process to end by itself; False if the run is to be ended first, or if the verifier is gone."""
    ended = os.pidfd_open(process)
    waiting = select.poll()
    for descriptor in (ended, LIFELINE, SERVER):
        waiting.register(descriptor, select.POLLIN)
    while True:
        ready = dict(waiting.poll())
        if ended in ready:
            return True
        for descriptor, event in ready.items():
            if event != select.POLLNVAL:
                return False
            waiting.unregister(descriptor)  # not open inside bwrap, where the launcher has it


def become_candidate(job: dict[str, Any], writable: str | None) -> NoReturn:
    try:
        os.setsid()
        confine(job["limits"], writable)
        report({"begun": True})
    except OSError as error:
        report({"failed": str(error)})
        os._exit(1)
    os.close(REPORT)
    leave_charge()
    raise Leave(job["program"])
