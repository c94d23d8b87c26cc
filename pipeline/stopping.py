"""Clean stopping: SIGTERM, Ctrl-C, a closed terminal and --max-time all become one question, `stopping()`.

Stages ask it where they can stop without loss, commit what they have and raise `Stopped` (exit 75).
A second Ctrl-C stops at once, which is safe too: nothing relies on a clean end.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import InputError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopper:
    """Becomes true once asked to stop, and stays true. ``reason`` is the signal's name or ``--max-time``."""

    def __init__(self, max_seconds: float | None = None) -> None:
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self.reason: str | None = None

    def __call__(self) -> bool:
        if self.reason is None and self._deadline is not None and time.monotonic() >= self._deadline:
            self.reason = "--max-time"
        return self.reason is not None

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name

    @contextmanager
    def listening(self) -> Iterator[Stopper]:
        """Handle SIGTERM, SIGINT and SIGHUP for the duration of a run; under nohup, SIGHUP stays ignored."""
        handled = [n for n in STOP_SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._on_signal) for number in handled}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


_UNITS = {"h": 3600, "m": 60, "s": 1}


def parse_duration(text: str) -> float:
    """Seconds of ``3h50m``, ``90s``, ``15m`` or a bare number of seconds."""
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not re.fullmatch(r"(\d+(\.\d+)?[hms])+", text):
        raise InputError(f"{text!r} is not a time; write it as 3h50m, 15m or 90s")
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)([hms])", text))
