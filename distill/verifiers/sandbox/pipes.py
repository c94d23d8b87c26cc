"""Feed and drain the pipes of one run, and enforce its limit on wall-clock time.

The clock starts when the box is built. It stops while a program that could run has to wait for a CPU (the kernel counts
that time per thread, in ``schedstat``), or while one that it depends on has to wait for a CPU or its box. So a busy
machine ends no run. A program that computes is ended by its CPU limit, one that sleeps by this clock.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

PATIENCE = 6
"""A run that the clock has not ended is ended after this many times its limit, as "busy": not the program's fault."""
LOOK = 0.25
"""Seconds between two looks at how long runs that share a `Waiting` have waited; of one that has ended nobody knows."""
CHUNK = 1 << 16


class Waiting:
    """Seconds for which one run could not go on through no fault of its program, or several runs that wait for each
    other: while one has no CPU, or no box yet, the other cannot go on either."""

    def __init__(self) -> None:
        self.runs: list[Run] = []

    def seconds(self) -> float:
        """The sum so far. Of a run that has ended, what was known when this was last called."""
        return sum(run.waited() for run in self.runs)


@dataclass
class Run:
    """``asked`` and ``begun`` are when the box was asked for, and when the program was about to start in it."""

    asked: float
    begun: float | None = None
    launcher: int | None = None
    delay: float = 0.0

    def waited(self) -> float:
        """Seconds before it began, and those in which its processes waited for a CPU."""
        if self.launcher is not None:
            self.delay = max(self.delay, sum(map(_run_delay, _tree(self.launcher))))
        return (time.monotonic() if self.begun is None else self.begun) - self.asked + self.delay

    def learn(self, report: bytes) -> None:
        """Take what the report says so far. A last line may be unfinished."""
        for line in report.splitlines(keepends=True):
            if line.endswith(b"\n"):
                message = json.loads(line)
                self.launcher = message.get("launcher", self.launcher)
                self.begun = time.monotonic() if self.begun is None and "begun" in message else self.begun


class Talk:
    """The pipes of one run: the data to write to each descriptor, and the descriptors to read, the report last. Runs
    that depend on each other share a ``waiting``."""

    def __init__(self, writes: dict[int, bytes], reads: list[int], life: int, waiting: Waiting | None = None) -> None:
        self._left = dict(writes)
        self._reads = reads
        self._life = life
        self._waiting, self._look = waiting or Waiting(), LOOK if waiting else math.inf
        self._run = Run(time.monotonic())
        self._waiting.runs.append(self._run)
        self._received = {descriptor: bytearray() for descriptor in reads}
        self._selector = selectors.DefaultSelector()

    @property
    def received(self) -> list[bytes]:
        return [bytes(self._received[descriptor]) for descriptor in self._reads]

    def until_ended(self, seconds: float, most_bytes: int) -> str:
        """Serve the pipes until the run has ended and its processes are gone: "exit", "output", "wall" or "busy".

        Does not wait for pipes that something in the box still holds open.
        """
        with self._selector:
            for descriptor in (*self._left, *self._reads):
                os.set_blocking(descriptor, False)
                reading = descriptor in self._received
                self._selector.register(descriptor, selectors.EVENT_READ if reading else selectors.EVENT_WRITE)
            ended = self._talk(seconds, most_bytes)
            self._run.begun = self._run.begun or time.monotonic()  # if not, nobody waits for it any longer
        if ended != "exit":
            with suppress(BrokenPipeError):  # it has just ended by itself
                os.write(self._life, b"x")
            os.set_blocking(self._reads[-1], True)
            while chunk := os.read(self._reads[-1], CHUNK):
                self._received[self._reads[-1]] += chunk
        for descriptor in self._reads[:-1]:
            while len(self._received[descriptor]) <= most_bytes and (left := _read(descriptor)):
                self._received[descriptor] += left
        return ended

    def _talk(self, seconds: float, most_bytes: int) -> str:
        deadline, last = self._run.asked + seconds, self._run.asked + PATIENCE * seconds
        while True:
            left = max(0.0, min(deadline, last) - time.monotonic())
            ready = self._selector.select(min(left, self._look))
            for key, _ in ready:
                if key.fd in self._left:
                    self._write(key.fd)
                elif chunk := _read(key.fd):
                    self._received[key.fd] += chunk
                    if key.fd == self._reads[-1]:
                        self._run.learn(bytes(self._received[key.fd]))
                elif chunk == b"":
                    self._selector.unregister(key.fd)
                    if key.fd == self._reads[-1]:
                        return "exit"
            if any(len(data) > most_bytes for data in self._received.values()):
                return "output"
            now = time.monotonic()
            if now >= deadline or not ready:
                deadline = self._run.asked + seconds + self._waiting.seconds()
                if now >= deadline:
                    return "wall"
            if now >= last:
                return "busy"

    def _write(self, descriptor: int) -> None:
        """Write what fits. When all is written, end the pipe by putting /dev/null at its descriptor number."""
        try:
            written = os.write(descriptor, self._left[descriptor][:CHUNK])
            self._left[descriptor] = self._left[descriptor][written:]
        except BlockingIOError:
            return
        except OSError:
            self._left[descriptor] = b""
        if not self._left[descriptor]:
            self._selector.unregister(descriptor)
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, descriptor, inheritable=False)
            os.close(null)


def _tree(process: int) -> Iterator[int]:
    yield process
    with suppress(OSError), open(f"/proc/{process}/task/{process}/children") as file:
        for child in file.read().split():
            yield from _tree(int(child))


def _run_delay(process: int) -> float:
    total = 0
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{process}/task"):
            with suppress(OSError), open(f"/proc/{process}/task/{thread}/schedstat") as file:
                total += int(file.read().split()[1])
    return total / 1e9


def _read(descriptor: int) -> bytes | None:
    """The available bytes: None if there are none yet, empty at the end of the pipe."""
    try:
        return os.read(descriptor, CHUNK)
    except BlockingIOError:
        return None
