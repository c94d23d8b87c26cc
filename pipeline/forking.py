"""Forked processes that compute for this one: what signals mean to them, and that none outlives it.

Ctrl-C reaches every process of the terminal's group, a terminal that closes too, and SIGTERM every process of a job
where timeout, Slurm or systemd stop one. The parent heeds them and stops in order, for which it needs its children;
so these ignore them, and are killed when the parent is done with them, or ends. Its sudden death they see
at a pipe, which is the caller's to watch.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

from pipeline.stopping import HEEDED


@contextmanager
def held_back() -> Iterator[None]:
    """Block the signals in `HEEDED` for a process that is started here, until it has set its own handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent() -> None:
    """For a child, forked or spawned: ignore the signals in `HEEDED`, which the parent handles."""
    for number in HEEDED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)


def fork(work: Callable[..., None], arguments: Sequence[Any]) -> BaseProcess:
    """A started child that runs ``work(*arguments)``."""
    child = multiprocessing.get_context("fork").Process(target=_child, args=(work, *arguments), daemon=True)
    with held_back():  # else the parent's handlers could run in the child
        child.start()
    Finalize(None, _kill, (weakref.ref(child),), exitpriority=0)  # else the interpreter's end would wait for it
    return child


def _kill(reference: weakref.ReferenceType[BaseProcess]) -> None:
    child = reference()
    if child is not None:
        child.kill()


def _child(work: Callable[..., None], *arguments: Any) -> None:
    leave_to_parent()
    work(*arguments)


def spawn(module: str, arguments: Iterable[str], environment: Mapping[str, str], **how: Any) -> subprocess.Popen[bytes]:
    """Start a child that runs ``python -m module`` and can import what this process can. It must `leave_to_parent`."""
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with held_back():  # it imports for seconds before it can set its signal handlers
        return subprocess.Popen([sys.executable, "-m", module, *arguments], env={**environment, **paths}, **how)


def ended(code: int | None) -> str:
    """How a child ended, by its exit code: "was killed by SIGKILL (out of memory?)"."""
    if not code or code > 0:
        return f"ended with exit code {code}"
    why = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{why}"
