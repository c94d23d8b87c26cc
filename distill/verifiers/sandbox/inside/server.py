"""The server that creates boxes: one small interpreter that forks for every run, so that no run has to start one.

It has one thread, only modules of the standard library and of this package, and a minimal environment. It never sees a
candidate's program, inputs or expected answers: they go through pipes that it passes on unread. Its fork finally
becomes the candidate's process, once everything that confines it is in place (`first.become_candidate`). The fork
inherits this file and the modules below, which are loaded here so that no candidate has to load them.

It ends with the verifier, which it notices by the verifier's pidfd or by the end of their socket.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import json
import os
import select
import socket
import sys
from contextlib import suppress
from typing import Any, NoReturn

from . import bubblewrap, namespaces, unsafe
from .data import send
from .first import FIRST_WIRE, LIFELINE, REPORT, Leave, report
from .kernel import die_with_parent

BACKENDS = {"namespaces": namespaces, "bubblewrap": bubblewrap, "unsafe": unsafe}
"""The ``fork`` of a backend creates the process, and its ``launch`` turns that into a box."""
LOADED = (  # not threading: what it does after a fork costs as much as the fork
    "atexit", "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "fractions", "functools", "heapq",
    "io", "itertools", "math", "operator", "random", "re", "statistics", "string", "time", "types", "typing",
)  # fmt: skip
PROGRAMS = (".calls", ".candidate", ".stdio", ".tests")
MESSAGE_BYTES = 1 << 17
PLACES = (0, 1, 3, 4, REPORT, LIFELINE, FIRST_WIRE, FIRST_WIRE + 1)
"""The numbers for a run's descriptors, in the order in which they arrive. The wires may be missing."""

__all__ = ["Leave", "main"]


def main() -> NoReturn:
    """Serve runs. Raises `Leave` in a candidate's process, and never returns."""
    control, verifier = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    alive, server = os.pidfd_open(verifier), os.getpid()
    if os.getppid() != verifier:
        os._exit(1)
    for name in (*LOADED, *PROGRAMS):
        importlib.import_module(name, __package__)
    gc.freeze()
    waiting = select.poll()
    waiting.register(control, select.POLLIN)
    waiting.register(alive, select.POLLIN)
    while True:
        if any(descriptor == alive for descriptor, _ in waiting.poll()):
            os._exit(0)  # the boxes die with this process
        message, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES, len(PLACES))
        if not message:
            _finish()
        job, report_to = json.loads(message), descriptors[PLACES.index(REPORT)]
        try:
            launcher, failure = BACKENDS[job["backend"]].fork(), {}
        except OSError as error:
            launcher, failure = -1, {"failed": str(error)}
        if launcher == 0:
            control.detach()
            _launch(job, descriptors, server)
        with suppress(OSError):  # the verifier is gone
            send(report_to, failure or {"launcher": launcher})
        for descriptor in descriptors:
            os.close(descriptor)
        _reap()


def _launch(job: dict[str, Any], descriptors: list[int], server: int) -> NoReturn:
    """The launcher of one run."""
    try:
        die_with_parent()
    except OSError:
        os._exit(1)
    if os.getppid() not in (0, server):  # the parent died before die_with_parent; 0 in a new pid namespace
        os._exit(1)
    _place(descriptors)
    try:
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # if memory runs out, the kernel kills the box first, not the verifier
        BACKENDS[job["backend"]].launch(job)
    except OSError as error:
        report({"failed": str(error)})
    os._exit(1)


def _place(descriptors: list[int]) -> None:
    """Move a run's descriptors to their numbers, and close all others except standard error."""
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 64) for descriptor in descriptors]
    os.closerange(3, 64)
    for place, descriptor in zip(PLACES, high, strict=False):
        os.dup2(descriptor, place)
    os.closerange(64, 4096)


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _finish() -> NoReturn:
    """The verifier has closed its end: wait for the launchers, which end when their own pipes are closed."""
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    os._exit(0)
