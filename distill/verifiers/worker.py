"""The worker process of the pool. Its one argument is the file descriptor of its end of the pipe.

It receives batches of (spec, problem, trace) and sends each verdict at once, so that the parent knows which item is in
progress. A profiling timer limits the CPU time of each verdict: its signal kills this process, whether it is in Python
or in C. The limit is CPU time, not wall time, so that a busy machine changes no verdict. The worker dies with its
parent, even if the parent is killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from typing import NamedTuple

from distill.thinking import Response
from distill.types import Failure, Problem, Verdict
from distill.verifiers.base import Verifier
from distill.verifiers.compose import Spec, build
from distill.verifiers.run import judge, prepare
from pipeline.errors import PipelineError

PR_SET_PDEATHSIG = 1


class Limits(NamedTuple):
    """Limits per verdict. Only ``memory_bytes``, the address space, is per worker."""

    cpu_seconds: float = 5.0
    wall_seconds: float = 120.0
    memory_bytes: int = 4 << 30


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    parent, limits = connection.recv()
    die_with_parent(parent)
    _silence()
    _limit(resource.RLIMIT_AS, limits.memory_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    connection.send("ready")
    verifiers: dict[str, Verifier] = {}
    try:
        while True:
            for spec, problem, trace in connection.recv():
                connection.send(_reply(spec, problem, trace, verifiers, limits))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _reply(
    spec: Spec, problem: Problem, trace: Response, verifiers: dict[str, Verifier], limits: Limits
) -> Verdict | PipelineError:
    """The verdict, or the error that the caller must get instead of one."""
    try:
        verifier = _prepared(spec, verifiers)
        signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds)
        return judge(verifier, problem, trace)
    except PipelineError as error:
        return error
    except KeyboardInterrupt:  # raised by the verifier itself: Ctrl-C does not reach this process
        return Verdict.failed(Failure.ERROR, "the verifier failed: it raised KeyboardInterrupt")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; end now if it has ended already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _prepared(spec: Spec, verifiers: dict[str, Verifier]) -> Verifier:
    key = json.dumps(spec, sort_keys=True)
    if key not in verifiers:
        verifiers[key] = build(spec)
        prepare(verifiers[key])
    return verifiers[key]


def _silence() -> None:
    """Redirect the standard streams, so that nothing a verifier prints reaches the terminal or a ``--json`` output."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
