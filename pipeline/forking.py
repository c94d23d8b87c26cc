"""Forked processes that compute for this one: what signals mean to them, and that none outlives it.

Ctrl-C reaches every process of the terminal's group, and SIGTERM every process of a job where timeout,
Slurm or systemd stop one. The parent heeds them and stops in order, for which it needs its children;
so these ignore both, and are killed when the parent is done with them, or ends. Its sudden death they see
at a pipe, which is the caller's to watch.
"""

from __future__ import annotations

import multiprocessing
import signal
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

HEEDED = (signal.SIGINT, signal.SIGTERM)


def fork(work: Callable[..., None], arguments: Sequence[Any]) -> BaseProcess:
    """A started child that runs ``work(*arguments)``."""
    child = multiprocessing.get_context("fork").Process(target=_child, args=(work, *arguments), daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)  # else the parent's handlers could run in the child
    try:
        child.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    Finalize(None, _kill, (weakref.ref(child),), exitpriority=0)  # else the interpreter's end would wait for it
    return child


def _kill(reference: weakref.ReferenceType[BaseProcess]) -> None:
    child = reference()
    if child is not None:
        child.kill()


def _child(work: Callable[..., None], *arguments: Any) -> None:
    for number in HEEDED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)
    work(*arguments)
