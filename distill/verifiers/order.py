"""Verdicts in the order they were asked for, a bounded number of them held back behind a slow one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from typing import TypeVar

from distill.types import Verdict

Key = TypeVar("Key")
WINDOW = 2048
STOP_SECONDS = 0.2
"""How long a slow verdict may keep a stop waiting."""


def in_order(
    futures: Iterable[tuple[Key, Future[Verdict]]], stopping: Callable[[], bool] = lambda: False
) -> Iterator[tuple[Key, Verdict]]:
    """(key, verdict) of each (key, future), which are read at most `WINDOW` ahead of what is yielded.

    Ends early once ``stopping`` says so. What is still open then, or when it is closed, is cancelled.
    """
    window: deque[tuple[Key, Future[Verdict]]] = deque()
    try:
        for item in futures:
            window.append(item)
            while window and (window[0][1].done() or len(window) >= WINDOW):
                if not _awaited(window[0][1], stopping):
                    return
                key, future = window.popleft()
                yield key, future.result()
        while window and _awaited(window[0][1], stopping):
            key, future = window.popleft()
            yield key, future.result()
    finally:
        for _, future in window:
            future.cancel()


def _awaited(future: Future[Verdict], stopping: Callable[[], bool]) -> bool:
    """Wait until ``future`` is done; False if asked to stop before that."""
    while not stopping():
        if future.done():
            return True
        wait([future], timeout=STOP_SECONDS)
    return False
