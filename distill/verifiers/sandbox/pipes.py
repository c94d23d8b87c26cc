"""Feeding and draining the pipes of one run, and the clock that ends it.

The clock is fair: it stops while a program that wants to run has to wait for a CPU (the kernel counts that,
per thread, in ``schedstat``), so that a busy machine ends nobody's run. What computes is ended by its limit on CPU
time, what sleeps by this clock.
"""

from __future__ import annotations

import json
import os
import selectors
import time
from collections.abc import Iterator
from contextlib import suppress

PATIENCE = 6
"""A run that the clock does not end is ended after this many times its time, and is nobody's fault."""
CHUNK = 1 << 16


class Talk:
    """One run's pipes: what to write to which, and which to read, the report last."""

    def __init__(self, writes: dict[int, bytes], reads: list[int], life: int) -> None:
        self._left = dict(writes)
        self._reads = reads
        self._life = life
        self._heard = {descriptor: bytearray() for descriptor in reads}
        self._selector = selectors.DefaultSelector()

    @property
    def heard(self) -> list[bytes]:
        return [bytes(self._heard[descriptor]) for descriptor in self._reads]

    def until_ended(self, seconds: float, most_bytes: int) -> str:
        """Talk until the run is over and its processes are gone: "exit", "output", "wall" or "busy".

        Pipes that something in the box still holds open are not waited for.
        """
        with self._selector:
            for descriptor in (*self._left, *self._reads):
                os.set_blocking(descriptor, False)
                reading = descriptor in self._heard
                self._selector.register(descriptor, selectors.EVENT_READ if reading else selectors.EVENT_WRITE)
            ended = self._talk(seconds, most_bytes)
        if ended != "exit":
            with suppress(BrokenPipeError):  # it has ended by itself just now
                os.write(self._life, b"x")
            os.set_blocking(self._reads[-1], True)
            while chunk := os.read(self._reads[-1], CHUNK):
                self._heard[self._reads[-1]] += chunk
        for descriptor in self._reads[:-1]:
            while len(self._heard[descriptor]) <= most_bytes and (left := _read(descriptor)):
                self._heard[descriptor] += left
        return ended

    def _talk(self, seconds: float, most_bytes: int) -> str:
        started = time.monotonic()
        deadline, last = started + seconds, started + PATIENCE * seconds
        while True:
            for key, _ in self._selector.select(max(0.0, min(deadline, last) - time.monotonic())):
                if key.fd in self._left:
                    self._write(key.fd)
                elif chunk := _read(key.fd):
                    self._heard[key.fd] += chunk
                elif chunk == b"":
                    self._selector.unregister(key.fd)
                    if key.fd == self._reads[-1]:
                        return "exit"
            if any(len(data) > most_bytes for data in self._heard.values()):
                return "output"
            if (now := time.monotonic()) >= deadline:
                deadline = started + seconds + self._waited()
                if now >= deadline:
                    return "wall"
            if now >= last:
                return "busy"

    def _write(self, descriptor: int) -> None:
        """Write what fits. A pipe that is done stays open until it is closed: the reader waits for its end."""
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

    def _waited(self) -> float:
        """Seconds that the run's processes have waited for a CPU so far."""
        line, end, _ = bytes(self._heard[self._reads[-1]]).partition(b"\n")
        return sum(map(_run_delay, _tree(json.loads(line)["launcher"]))) if end else 0.0


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
    """What is there: None for nothing yet, no bytes for the end."""
    try:
        return os.read(descriptor, CHUNK)
    except BlockingIOError:
        return None
