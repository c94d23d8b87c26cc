"""A model under training, whatever the loss: accumulate, update, checkpoint, resume.

Shared by supervised training (`distill.training.loop`) and GRPO (`rl.grpo`), which own the loops.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils import deterministic

from distill.training import checkpoint
from distill.training.batching import Example, micro_batches
from distill.training.forward import Pack, check_packing, logprobs, pack
from distill.training.lean import lean
from distill.training.optimizer import Optimizer, OptimizerSettings
from distill.training.ranks import Parallel, Ranks, alike, assembled, full
from distill.training.replicas import Replica, share
from pipeline.errors import InputError, Stopped


@dataclass(frozen=True)
class LearnerSettings:
    """``micro_batch_tokens`` bounds what is in memory at once; on CPU a few thousand also stays in cache.

    ``precision`` bf16 means autocast over fp32 weights. ``threads`` is the number of cores to use; the
    same number gives the same bits. ``devices`` processes share the work, each with a copy of the model (ddp) or
    a shard of it (fsdp), see `distill.training.ranks`; they are no part of a run's identity. Checkpoints are
    written after as many steps or seconds, whichever comes first (None: not for that reason), when asked to
    stop, and at the end.
    """

    optimizer: OptimizerSettings
    micro_batch_tokens: int = 2048
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int = 1
    checkpoint_steps: int | None = None
    checkpoint_seconds: float | None = 30.0
    devices: int = field(default=1, repr=False)
    parallel: Parallel = field(default="ddp", repr=False)


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
    idle: int = 0
    """So many of the runs, the last, are made for the other ranks' sake and count for nothing."""


class Learner:
    """A model under training: accumulate gradients, update, checkpoint. ``done`` counts updates.

    To be used inside `learning`, which readies the process and ends the replicas.
    """

    def __init__(
        self, model: Any, settings: LearnerSettings, total: int, directory: Path, run: str,
        before_save: BeforeSave, ranks: Ranks | None = None, measure: Measure = logprobs,
    ) -> None:  # fmt: skip
        self._before_save = before_save
        self.settings, self.total, self.directory, self.run = settings, total, directory, run
        self.done = 0
        self._last_save = time.monotonic()
        self._replicas: list[Replica] = []
        self._ranks = ranks
        self._score: Callable[[Pack, float], Tensor]
        trained, self._score = ranks.module(model, settings.parallel) if ranks else (model, partial(measure, model))
        self.model, self._trained = trained if model is None else model, trained
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        """What is trained, whole. With fsdp it is as old as the last `gather`."""
        self.device = ranks.device if ranks else next(model.parameters()).device
        self.optimizer = Optimizer(trained, settings.optimizer)

    @property
    def _sharded(self) -> bool:
        return self._ranks is not None and self.settings.parallel == "fsdp"

    @property
    def _workers(self) -> int:
        return self._ranks.size if self._ranks else 1 + len(self._replicas)

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
        if self._ranks:
            self._ranks.dismiss()

    def cut(self, examples: Sequence[Example]) -> list[list[int]]:
        """The micro-batches (indices) that these rows are trained in."""
        return micro_batches(examples, self.settings.micro_batch_tokens, self._workers)

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
        shares = [cut[i :: self._workers] for i in range(self._workers)]
        idle = [len(shares[0]) - len(share) if self._sharded else 0 for share in shares]
        made = [[*share, *cut[:1] * more] for share, more in zip(shares, idle, strict=True)]
        tasks = [
            _Task([[rows[i] for i in run] for run in runs], objective, temperature, reference, more)
            for runs, more in zip(made, idle, strict=True)
        ]
        if self._ranks:
            answers = self._ranks.call(self, "_accumulate", tasks)
        else:
            for replica, task in zip(self._replicas, tasks[1:], strict=True):
                replica.send(task)
            answers = [self._accumulate(tasks[0]), *(replica.receive() for replica in self._replicas)]
        order = [row for share in shares for run in share for row in run]
        scored = dict(zip(order, chain.from_iterable(answers), strict=True))
        return [scored[i] for i in range(len(rows))]

    def _accumulate(self, task: _Task) -> list[Scored]:
        """Forward and backward over a share of the micro-batches, in this process."""
        scored = []
        for number, run in enumerate(task.runs):
            counts = number < len(task.runs) - task.idle
            batch = pack([row.example for row in run], self.device)
            streams = {
                name: torch.tensor([value for row in run for value in row.streams[name]], device=self.device)
                for name in run[0].streams
            }
            if task.reference:
                with torch.no_grad(), self._trained.disable_adapter():
                    streams["reference"] = self._logprobs(batch, task.temperature)
            with torch.set_grad_enabled(task.objective is not None):
                values = self._logprobs(batch, task.temperature)
            if task.objective is not None:
                torch.autograd.backward(task.objective(values, streams) * (1.0 if counts else 0.0))
            if not counts:
                continue
            own = _by_row(values.detach(), run)
            other = _by_row(streams["reference"], run) if task.reference else [[]] * len(run)
            scored += [Scored(*pair) for pair in zip(own, other, strict=True)]
        return scored

    def _logprobs(self, batch: Pack, temperature: float) -> Tensor:
        half = self.settings.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext():
            return self._score(batch, temperature)

    def update(self) -> tuple[float, float]:
        """Apply the gradients accumulated. Returns their norm and the learning rate used."""
        scale = self.settings.optimizer.scale(self.done, self.total)
        norm = self._everywhere("_apply", scale)
        self.done += 1
        return norm, self.settings.optimizer.learning_rate * scale

    def skip(self) -> tuple[float, float]:
        """Count a step that has nothing to learn from."""
        self.done += 1
        return 0.0, 0.0

    def resume(self, directory: Path | None = None) -> dict[str, Tensor]:
        """Load the newest checkpoint, if any, and return what was saved beside the weights."""
        found = checkpoint.latest(directory or self.directory, self.run, self.device)
        if found is None:
            return {}
        self.done, state = found
        with torch.no_grad():
            for parameter, value in zip(self.weights, state["weights"], strict=True):
                parameter.copy_(value)
        self._everywhere("_load", {"weights": state["weights"], "optimizer": state["optimizer"]})
        return state["extra"]

    def gather(self) -> None:
        """Bring ``model`` up to date, as whoever samples from it or saves it needs; with fsdp it is not by itself."""
        if self._sharded:
            self._everywhere("_gather", None)

    def _everywhere(self, name: str, argument: Any) -> Any:
        """Call a method of this learner on every rank; what it returns here."""
        if self._ranks is None:
            return getattr(self, name)(argument)
        return self._ranks.call(self, name, [argument] * self._ranks.size)[0]

    def _apply(self, scale: float) -> float:
        if self._ranks and not self._sharded:  # shards add their gradients up in the backward pass
            self._ranks.sum(self.optimizer.parameters)
        return self.optimizer.step(scale)

    @torch.no_grad()
    def _load(self, state: Any) -> None:
        if self._ranks:
            state = self._ranks.share(state, self.device)
        for parameter, value in zip(self.optimizer.parameters, state["weights"], strict=True):
            parameter.copy_(alike(value, parameter))
        self.optimizer.load(state["optimizer"])

    @torch.no_grad()
    def _gather(self, _: None) -> None:
        for parameter, own in zip(self.optimizer.parameters, self.weights, strict=True):
            value = full(parameter)
            if self._ranks and self._ranks.rank == 0:
                own.copy_(value)

    def _moments(self, _: None) -> Any:
        state = self.optimizer.state()
        return state if self._ranks is None or self._ranks.rank == 0 else None

    def save(self, extra: dict[str, Tensor], directory: Path | None = None) -> None:
        """Write a checkpoint; in a ``directory`` of its own it is kept beside those that `resume` goes on from."""
        self._before_save()
        self.gather()
        weights = [p.detach() for p in self.weights]
        state = {"weights": weights, "optimizer": self._everywhere("_moments", None), "extra": extra}
        checkpoint.save(directory or self.directory, self.done, self.run, state)
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
    with assembled(settings.devices) as ranks:
        if ranks and measure is not logprobs:
            raise InputError("what a measure of its own makes of a pass can be learned on one device only (devices: 1)")
        processes = 1 if ranks else _processes(model, settings)
        with prepared(model, max(1, settings.threads // (ranks.size if ranks else processes))):
            check_packing(model)
            if ranks:
                ranks.begin({"settings": settings, "total": total})
            learner = Learner(model, settings, total, directory, run, before_save, ranks, measure)
            try:
                learner.fork(processes)
                yield learner
            finally:
                learner.close()


def _processes(model: Any, settings: LearnerSettings) -> int:
    small = sum(p.numel() for p in model.parameters()) <= SMALL
    return settings.threads if small and model.device.type == "cpu" and sys.platform == "linux" else 1


def follow(ranks: Ranks, settings: LearnerSettings, total: int) -> None:
    """What a rank above 0 does for one training: what rank 0's learner asks of all, until it is over."""
    with steady(max(1, settings.threads // ranks.size)):
        learner = Learner(None, settings, total, Path(), "", nothing, ranks)
        while (asked := ranks.told()) is not None:
            name, argument = asked
            ranks.answer(getattr(learner, name)(argument))


@contextmanager
def prepared(model: Any, threads: int) -> Iterator[None]:
    """Training mode and lean layers, in a process made `steady`; undone afterwards."""
    before = model.training
    model.train()
    try:
        with steady(threads), lean(model):
            yield
    finally:
        model.train(before)


@contextmanager
def steady(threads: int) -> Iterator[None]:
    """A fixed number of threads, deterministic kernels; undone afterwards."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    setattr(deterministic, "fill_uninitialized_memory", False)  # noqa: B010  (a costly debugging aid)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
