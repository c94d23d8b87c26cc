"""Sampling on several cores: a few forked processes, each with one decoder and one thread.

For a small model, two processes of one thread are faster than one process of two threads. Workers are
forked from this process after the model is loaded, so they start in milliseconds and share imports and
frozen weights. Trained weights are in shared memory (`distill.engines.weights`), so a refresh needs no
message. Forking is safe because a worker computes in one thread and uses nothing but torch and its pipe,
as torch's own data loaders do. Up to `GROUP` jobs with equal prompts go to the same worker. Samples do not
depend on their neighbours, so it makes no difference which worker draws one.

A worker ends with its parent, however that died; signals are the parent's to handle (`pipeline.forking`).
A worker that dies is an error of one line. Linux only, and only on a CPU.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any

from distill.engines.decode import Decoder, Job, Sample, order
from pipeline.errors import PipelineError
from pipeline.forking import ForkedWorker

GROUP = 16
"""Jobs of one prompt that travel together, at most."""
PATIENCE = 0.5
"""Seconds that `step` waits for a sample, so that its caller can check whether to stop."""
CLEAR = "clear"


class WorkerPool:
    """The same interface as a `Decoder`: `add`, `step`, `busy`, `waiting`, `clear`."""

    def __init__(self, decoder: Callable[[], Decoder], workers: int, slots: int) -> None:
        self._queue: list[list[Job]] = []
        self._share = slots + slots // 4  # what a worker holds: its rows, and the next to enter
        self._workers: list[_Worker] = []
        for _ in range(workers):
            self._workers.append(_Worker(decoder, self._workers))

    @property
    def busy(self) -> bool:
        return bool(self._queue) or any(worker.held for worker in self._workers)

    @property
    def waiting(self) -> int:
        return sum(map(len, self._queue))

    def add(self, jobs: Iterable[Job]) -> None:
        for _, same in groupby(sorted(jobs, key=order), key=lambda job: job.beginning):
            group = list(same)
            self._queue += [group[i : i + GROUP] for i in range(0, len(group), GROUP)]

    def step(self) -> list[Sample]:
        """The next samples from any worker; empty if none finishes for a while."""
        self._dispatch()
        held = {worker.pipe: worker for worker in self._workers if worker.held}
        return [sample for pipe in wait(list(held), PATIENCE) for sample in held[pipe].samples()]  # type: ignore[index]

    def clear(self) -> None:
        """Drop everything; afterwards no worker is computing."""
        self._queue.clear()
        busy = [worker for worker in self._workers if worker.held]
        for worker in busy:
            worker.send(CLEAR)
        for worker in busy:
            worker.settle()

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self._workers.clear()

    def _dispatch(self) -> None:
        while self._queue:
            worker = min(self._workers, key=lambda w: w.held)
            if worker.held >= self._share:
                return
            worker.take(self._queue.pop(0))


class _Worker(ForkedWorker):
    """The parent's end of one process. ``held`` is the number of jobs that were sent and have not come back."""

    def __init__(self, decoder: Callable[[], Decoder], others: Sequence[_Worker]) -> None:
        self.held = 0
        super().__init__("a sampling worker", "run again to go on from what was kept", partial(_work, decoder), others)

    def take(self, jobs: list[Job]) -> None:
        self.held += len(jobs)
        self.send(jobs)

    def samples(self) -> list[Sample]:
        """The next samples from it."""
        message: list[Sample] = self.receive()
        self.held -= len(message)
        return message

    def settle(self) -> None:
        """Wait for the answer to `CLEAR`, dropping the samples before it."""
        while self.receive() != CLEAR:
            pass
        self.held = 0

    def _died(self) -> PipelineError:
        self.held = 0
        return super()._died()


def _work(decoder: Callable[[], Decoder], pipe: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    _serve(decoder(), pipe)


def _serve(decoder: Decoder, pipe: Connection) -> None:
    answers: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_send, args=(answers, pipe), daemon=True).start()
    while True:
        while pipe.poll(0 if decoder.busy else None):
            message = pipe.recv()
            if message == CLEAR:
                decoder.clear()
                answers.put(CLEAR)
            else:
                decoder.add(message)
        if decoder.busy and (samples := decoder.step()):
            answers.put(samples)


def _send(answers: SimpleQueue[Any], pipe: Connection) -> None:
    """Runs in its own thread: if both ends blocked in sending, neither would ever read."""
    while True:
        try:
            pipe.send(answers.get())
        except OSError:
            os._exit(0)
