"""Display a run: live on a terminal, as plain lines elsewhere, as JSON lines for programs.

All three receive the same events (`pipeline.events`). Plain lines report progress at most every few seconds, so that
the log of a night stays short.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from distill.cli.dated import dated
from distill.cli.open import aside
from distill.cli.table import as_line
from pipeline.events import Listener

if TYPE_CHECKING:
    from pipeline.manifest import Manifest
    from pipeline.plan import StagePlan
    from pipeline.stopping import Stopper

PLAIN_SECONDS = 5.0
TOLD = 8
"""The most figures of a stage on one line; GRPO has thirty."""
CHANGES = 3
"""The most reasons on one line; an edit may change thirty settings at once."""


def choose(as_json: bool, stopper: Stopper) -> Listener:
    if as_json:
        return JsonLines()
    if sys.stdout is not None and sys.stdout.isatty():
        from distill.cli.live import Live

        return Live(stopper)
    return PlainLines()


@contextmanager
def unheard() -> Iterator[None]:
    """Wrap the printing of a run, so that it does not end if nobody can read its output any more.

    That happens if a reader goes away (``| head``), a terminal closes or the disk of a log is full. The run goes on
    without output, and `distill status` shows its progress.
    """
    try:
        yield
    except OSError as error:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        if not isinstance(error, BrokenPipeError):
            with suppress(OSError):
                aside(
                    f"nothing more can be printed ({error.strerror}); the run goes on, `distill status` shows how far"
                )


def say(line: str) -> None:
    """Print a line of a run."""
    with unheard():
        print(line, flush=True)


class Steady:
    """A stream for rich that, like `say`, survives the loss of its reader."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)

    def write(self, text: str) -> int:
        with unheard():
            self._out.write(text)
        return len(text)

    def flush(self) -> None:
        with unheard():
            self._out.flush()


def duration(seconds: float) -> str:
    """``4.2s``, ``3m12s``, ``2h05m``."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def number(value: Any) -> str:
    """A figure for people: 12,345 or 0.0312."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or value.is_integer():
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def phrase(figures: Mapping[str, Any]) -> str:
    """``kept 62, rejected duplicate 54, …``: the first few plain figures. `distill status --json` has all of them."""
    plain = list(_plain(figures))
    shown = [f"{name.replace('pass_at_', 'pass@').replace('_', ' ')} {number(value)}" for name, value in plain[:TOLD]]
    return ", ".join([*shown, "…"] if len(plain) > TOLD else shown)


def because(reasons: Sequence[str]) -> str:
    """``epochs: 1 -> 2; seed: 0 -> 7; and 12 more``. `distill plan --json` has all of them."""
    shown, more = reasons[:CHANGES], len(reasons) - CHANGES
    return "; ".join([*shown, f"and {more} more"] if more > 0 else shown)


def _plain(figures: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The numbers and texts among the figures, and the counts in nested ones."""
    for name, value in figures.items():
        if isinstance(value, dict) and all(isinstance(count, int) for count in value.values()):
            yield from ((f"{name} {what}", count) for what, count in value.items())
        elif isinstance(value, int | float | str) and name != "members":
            yield name, value


class Rate:
    """Estimates the seconds left from the pace since the stage's first progress event; cached work does not count."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None

    def left(self, done: int, total: int | None) -> float | None:
        now = time.monotonic()
        if self._start is None or done < self._start[1]:
            self._start = (now, done)
        begun, at = self._start
        if total is None or done <= at:
            return None
        return (total - done) * (now - begun) / (done - at)


class PlainLines(Listener):
    """One line per event; for logs, pipes and schedulers."""

    def __init__(self) -> None:
        self._printed_at = 0.0
        self._rate = Rate()
        self._width = 14

    def begin(self, stages: Sequence[str]) -> None:
        self._width = max(self._width, *map(len, stages))

    def cached(self, stage: str, manifest: Manifest) -> None:
        self._say(stage, "cached")

    def start(self, stage: str, plan: StagePlan) -> None:
        self._rate, self._printed_at = Rate(), time.monotonic()
        self._say(stage, f"{'going on' if plan.status == 'partly done' else 'running'} ({because(plan.reasons)})")

    def progress(self, stage: str, done: int, total: int | None, figures: Mapping[str, Any]) -> None:
        left = self._rate.left(done, total)
        now = time.monotonic()
        if now - self._printed_at < PLAIN_SECONDS:
            return
        self._printed_at = now
        share = f"{done:,}/{total:,} ({100 * done / max(total, 1):.0f}%)" if total else f"{done:,} so far"
        eta = f", {duration(left)} left" if left is not None else ""
        self._say(stage, ", ".join(part for part in (share + eta, phrase(figures)) if part))

    def note(self, stage: str, text: str) -> None:
        self._say(stage, text)

    def finish(self, stage: str, manifest: Manifest) -> None:
        self._say(stage, f"done in {duration(manifest.seconds)}: {phrase(manifest.figures)}".rstrip(": "))

    def _say(self, stage: str, text: str) -> None:
        say(dated(f"{stage:<{self._width}} {text}"))


class JsonLines(Listener):
    """One JSON object per event."""

    def begin(self, stages: Sequence[str]) -> None:
        self._say("begin", stages=list(stages))

    def cached(self, stage: str, manifest: Manifest) -> None:
        self._say("cached", stage=stage, seconds=manifest.seconds, figures=manifest.figures)

    def start(self, stage: str, plan: StagePlan) -> None:
        self._say("start", stage=stage, status=str(plan.status), reasons=list(plan.reasons))

    def progress(self, stage: str, done: int, total: int | None, figures: Mapping[str, Any]) -> None:
        self._say("progress", stage=stage, done=done, total=total, figures=dict(figures))

    def note(self, stage: str, text: str) -> None:
        self._say("note", stage=stage, text=text)

    def finish(self, stage: str, manifest: Manifest) -> None:
        self._say("finish", stage=stage, seconds=manifest.seconds, figures=manifest.figures)

    def _say(self, event: str, **what: Any) -> None:
        say(as_line({"event": event, "time": round(time.time(), 3), **what}))
