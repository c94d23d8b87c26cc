"""A model under training, whatever the loss: accumulate, update, checkpoint, resume.

Shared by supervised training (`distill.training.loop`) and GRPO (`rl.grpo`), which own the loops.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils import deterministic

from distill.training import checkpoint
from distill.training.batching import Example, micro_batches
from distill.training.forward import Pack, logprobs, pack
from distill.training.lean import lean
from distill.training.optimizer import Optimizer, OptimizerSettings
from distill.training.replicas import Replica, share
from pipeline.errors import Stopped


@dataclass(frozen=True)
class LearnerSettings:
    """``micro_batch_tokens`` bounds what is in memory at once; on CPU a few thousand also stays in cache.

    ``precision`` bf16 means autocast over fp32 weights. ``threads`` is the number of cores to use; the
    same number gives the same bits. Checkpoints are written after as many steps or
    seconds, whichever comes first (None: not for that reason), when asked to stop, and at the end.
    """

    optimizer: OptimizerSettings
    micro_batch_tokens: int = 2048
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int = 1
    checkpoint_steps: int | None = None
    checkpoint_seconds: float | None = 30.0


@dataclass(frozen=True, slots=True)
class Row:
    """An example and what its loss needs: for each stream, one value per supervised token."""

    example: Example
    streams: Mapping[str, Sequence[float]]


Objective = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
"""Log-probabilities (L,) and streams (L,) of the supervised tokens of a micro-batch -> loss (a scalar).

Losses of micro-batches are summed, so an objective must carry its normalisation by the whole step in
its streams. It is sent to other processes: a module's function, or a `functools.partial` of one.
"""


Measure = Callable[[Any, Pack, float], Tensor]
"""What a pass makes of each supervised token of a pack at a temperature, (L,): what objectives are told as its
log-probability. By default it is that (`forward.logprobs`)."""


BeforeSave = Callable[[], None]


def nothing() -> None:
    pass


class Scored(NamedTuple):
    """What a pass made of one row: log-probabilities of its supervised tokens, before the update.

    ``reference`` are those of the model without its adapter, where asked for.
    """

    logprobs: list[float]
    reference: list[float]


class _Task(NamedTuple):
    runs: list[list[Row]]
    objective: Objective | None
    temperature: float
    reference: bool


class Learner:
    """A model under training: accumulate gradients, update, checkpoint. ``done`` counts updates.

    To be used inside `learning`, which readies the process and ends the replicas.
    """

    def __init__(
        self, model: Any, settings: LearnerSettings, total: int, directory: Path, run: str, before_save: BeforeSave,
        measure: Measure = logprobs,
    ) -> None:  # fmt: skip
        self._before_save, self._measure = before_save, measure
        self.model, self.settings, self.total, self.directory, self.run = model, settings, total, directory, run
        self.device = next(model.parameters()).device
        self.optimizer = Optimizer(model, settings.optimizer)
        self.done = 0
        self._last_save = time.monotonic()
        self._replicas: list[Replica] = []

    def fork(self, processes: int) -> None:
        """Share the work among so many processes, this one included."""
        if processes > 1:
            share(self.optimizer.parameters)
        for _ in range(processes - 1):
            self._replicas.append(Replica(self._accumulate, self.optimizer.parameters, self._replicas))

    def close(self) -> None:
        for replica in self._replicas:
            replica.close()
        self._replicas.clear()

    def cut(self, examples: Sequence[Example]) -> list[list[int]]:
        """The micro-batches (indices) that these rows are trained in."""
        return micro_batches(examples, self.settings.micro_batch_tokens, 1 + len(self._replicas))

    def gradients(
        self, rows: Sequence[Row], objective: Objective, *, temperature: float = 1.0, reference: bool = False
    ) -> list[Scored]:
        """Add the gradient of the objective over ``rows``, in any number of micro-batches and processes."""
        return self._share(rows, objective, temperature, reference)

    def score(self, rows: Sequence[Row], temperature: float = 1.0) -> list[list[float]]:
        """Log-probabilities of each row's supervised tokens under the present weights; nothing is learned."""
        return [scored.logprobs for scored in self._share(rows, None, temperature, False)]

    def _share(
        self, rows: Sequence[Row], objective: Objective | None, temperature: float, reference: bool
    ) -> list[Scored]:
        cut = self.cut([row.example for row in rows])
        shares = [cut[i :: 1 + len(self._replicas)] for i in range(1 + len(self._replicas))]
        tasks = [
            _Task([[rows[i] for i in run] for run in share], objective, temperature, reference) for share in shares
        ]
        for replica, task in zip(self._replicas, tasks[1:], strict=True):
            replica.send(task)
        answers = [self._accumulate(tasks[0]), *(replica.receive() for replica in self._replicas)]
        order = [row for share in shares for run in share for row in run]
        scored = dict(zip(order, chain.from_iterable(answers), strict=True))
        return [scored[i] for i in range(len(rows))]

    def _accumulate(self, task: _Task) -> list[Scored]:
        """Forward and backward over a share of the micro-batches, in this process."""
        scored = []
        for run in task.runs:
            batch = pack([row.example for row in run], self.device)
            streams = {
                name: torch.tensor([value for row in run for value in row.streams[name]], device=self.device)
                for name in run[0].streams
            }
            if task.reference:
                with torch.no_grad(), self.model.disable_adapter():
                    streams["reference"] = self._logprobs(batch, task.temperature)
            with torch.set_grad_enabled(task.objective is not None):
                values = self._logprobs(batch, task.temperature)
            if task.objective is not None:
                torch.autograd.backward(task.objective(values, streams))
            own = _by_row(values.detach(), run)
            other = _by_row(streams["reference"], run) if task.reference else [[]] * len(run)
            scored += [Scored(*pair) for pair in zip(own, other, strict=True)]
        return scored

    def _logprobs(self, batch: Pack, temperature: float) -> Tensor:
        half = self.settings.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext():
            return self._measure(self.model, batch, temperature)

    def update(self) -> tuple[float, float]:
        """Apply the gradients accumulated. Returns their norm and the learning rate used."""
        scale = self.settings.optimizer.scale(self.done, self.total)
        norm = self.optimizer.step(scale)
        self.done += 1
        return norm, self.settings.optimizer.learning_rate * scale

    def skip(self) -> tuple[float, float]:
        """Count a step that has nothing to learn from."""
        self.done += 1
        return 0.0, 0.0

    def resume(self) -> dict[str, Tensor]:
        """Load the newest checkpoint, if any, and return what was saved beside the weights."""
        found = checkpoint.latest(self.directory, self.run, self.device)
        if found is None:
            return {}
        self.done, state = found
        with torch.no_grad():
            for parameter, value in zip(self.optimizer.parameters, state["weights"], strict=True):
                parameter.copy_(value)
        self.optimizer.load(state["optimizer"])
        return state["extra"]

    def save(self, extra: dict[str, Tensor]) -> None:
        self._before_save()
        weights = [p.detach() for p in self.optimizer.parameters]
        state = {"weights": weights, "optimizer": self.optimizer.state(), "extra": extra}
        checkpoint.save(self.directory, self.done, self.run, state)
        self._last_save = time.monotonic()

    def save_if_due(self, extra: dict[str, Tensor], stop: Callable[[], bool]) -> None:
        """Checkpoint at the end, on time, or because asked to stop: then `Stopped` is raised."""
        steps, seconds = self.settings.checkpoint_steps, self.settings.checkpoint_seconds
        asked = self.done < self.total and stop()
        late = seconds is not None and time.monotonic() - self._last_save >= seconds
        if asked or late or self.done == self.total or (steps is not None and self.done % steps == 0):
            self.save(extra)
        if asked:
            raise Stopped(f"stopped after training step {self.done} of {self.total}; run again to go on")


def _by_row(values: Tensor, run: Sequence[Row]) -> list[list[float]]:
    return [part.tolist() for part in torch.split(values, [row.example.supervised for row in run])]


def run_identity(settings: LearnerSettings, examples: Sequence[Example] = ()) -> str:
    """Names a run in its checkpoints: the settings it is about, and the rows in their order.

    Left out is what only the machine at hand decides, so that a run may go on elsewhere: when to
    checkpoint, cores, micro-batches. (The last bits of the weights do depend on the latter two.)
    """
    timeless = replace(settings, checkpoint_steps=None, checkpoint_seconds=None, threads=1, micro_batch_tokens=1)
    digest = hashlib.blake2b(repr(timeless).encode(), digest_size=16)
    for example in examples:
        digest.update(repr((example.key, example.input_ids, example.labels_mask, example.weight)).encode())
    return digest.hexdigest()


SMALL = 50_000_000
"""Parameters up to which a process for each core is faster than threads."""


@contextmanager
def learning(
    model: Any, settings: LearnerSettings, total: int, directory: Path, run: str, before_save: BeforeSave = nothing,
    measure: Measure = logprobs,
) -> Iterator[Learner]:  # fmt: skip
    """A learner in a process made ready for it: see `prepared`. ``settings.threads`` cores compute:
    processes of one thread each for a small model on Linux and CPU, threads of one process otherwise.

    ``before_save`` is called ahead of each checkpoint: what a step has reported must be durable before the
    step counts as done.
    """
    small = sum(p.numel() for p in model.parameters()) <= SMALL
    processes = settings.threads if small and model.device.type == "cpu" and sys.platform == "linux" else 1
    learner = Learner(model, settings, total, directory, run, before_save, measure)
    with prepared(model, settings.threads // processes):
        try:
            learner.fork(processes)
            yield learner
        finally:
            learner.close()


@contextmanager
def prepared(model: Any, threads: int) -> Iterator[None]:
    """Training mode, lean layers, a fixed number of threads, deterministic kernels; undone afterwards."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), model.training
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    setattr(deterministic, "fill_uninitialized_memory", False)  # noqa: B010  (a costly debugging aid)
    model.train()
    try:
        with lean(model):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        model.train(before[2])
