"""Yield verdicts in the order in which they were requested, holding back a bounded number behind a slow one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from typing import TypeVar

from distill.types import Verdict

Key = TypeVar("Key")
WINDOW = 2048
STOP_SECONDS = 0.2
"""How long a slow verdict may delay a stop."""


def in_order(
    futures: Iterable[tuple[Key, Future[Verdict]]], stopping: Callable[[], bool] = lambda: False
) -> Iterator[tuple[Key, Verdict]]:
    """Yield (key, verdict) for each (key, future), reading at most `WINDOW` futures ahead.

    Ends early once ``stopping`` returns True. Futures that are open then, or when this is closed, are cancelled.
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
    """Wait until ``future`` is done. Returns False if ``stopping`` comes first."""
    while not stopping():
        if future.done():
            return True
        wait([future], timeout=STOP_SECONDS)
    return False
