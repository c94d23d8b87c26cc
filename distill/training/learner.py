"""A model under training, for any loss: accumulate gradients, update, checkpoint, resume.

Shared by supervised training (`distill.training.loop`) and GRPO (`rl.grpo`), which own the loops. A single pass is in
`distill.training.passes`; `distill.training.session` sets a training up and ends it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from distill.training import checkpoint
from distill.training.batching import Example, micro_batches
from distill.training.forward import Pass, Scorer, score_tokens
from distill.training.optimizer import Optimizer, OptimizerSettings
from distill.training.passes import Objective, Row, RowScores, Work, accumulate
from distill.training.ranks import Parallel, Ranks, shard_like, unsharded
from distill.training.replicas import Replica, share
from pipeline.errors import PipelineError, Stopped


@dataclass(frozen=True)
class LearnerSettings:
    """``micro_batch_tokens`` bounds what is in memory at once; on CPU a few thousand also stay in cache.

    ``precision`` bf16 means autocast over fp32 weights. ``threads`` is the number of cores to use; the
    same number gives the same bits. ``devices`` processes share the work, each with a copy of the model (ddp) or
    a shard of it (fsdp), see `distill.training.ranks`; ``devices`` and ``parallel`` are not part of a
    run's identity. Checkpoints are written after ``checkpoint_steps`` steps or ``checkpoint_seconds`` seconds,
    whichever comes first (None: not for that reason; later if writing takes long, see `SAVING`), when asked to stop,
    and at the end.
    """

    optimizer: OptimizerSettings
    micro_batch_tokens: int = 2048
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int = 1
    checkpoint_steps: int | None = None
    checkpoint_seconds: float | None = 30.0
    devices: int = field(default=1, repr=False)
    parallel: Parallel = field(default="ddp", repr=False)


SAVING = 0.05
"""The share of a run's time that timed checkpoints may take: one of a large model, fully trained, is many gigabytes."""
BeforeSave = Callable[[], None]


def nothing() -> None:
    pass


class Learner:
    """A model under training: accumulate gradients, update, checkpoint. ``done`` counts updates.

    Use it inside `distill.training.session.learning`, which prepares the process and ends the replicas.
    """

    def __init__(
        self, model: Any, settings: LearnerSettings, total: int, directory: Path, run: str,
        before_save: BeforeSave, ranks: Ranks | None = None, measure: Pass = score_tokens,
    ) -> None:  # fmt: skip
        self._before_save = before_save
        self.settings, self.total, self.directory, self.run = settings, total, directory, run
        self.done = 0
        self._last_save, self._saving = time.monotonic(), 0.0
        self._replicas: list[Replica] = []
        self.ranks = ranks
        self.beside: dict[str, Any] = {}
        """What this rank has beside the model for the use of `OnAllRanks`."""
        self._scorer: Scorer
        trained, self._scorer = ranks.module(model, settings.parallel) if ranks else (model, partial(measure, model))
        self.model, self._trained = trained if model is None else model, trained
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        """The trained parameters, whole. With fsdp they are those of the last `gather`."""
        self.device = ranks.device if ranks else next(model.parameters()).device
        self.optimizer = Optimizer(trained, settings.optimizer)

    @property
    def sharded(self) -> bool:
        """Whether each rank has only a part of the weights (fsdp)."""
        return self.ranks is not None and self.settings.parallel == "fsdp"

    @property
    def _workers(self) -> int:
        return self.ranks.size if self.ranks else 1 + len(self._replicas)

    def fork(self, processes: int) -> None:
        """Share the work among this many processes, this one included."""
        if processes > 1:
            share(self.optimizer.parameters)
        for _ in range(processes - 1):
            self._replicas.append(Replica(self._accumulate, self.optimizer.parameters, self._replicas))

    def close(self) -> None:
        for replica in self._replicas:
            replica.close()
        self._replicas.clear()
        if self.ranks:
            self.ranks.dismiss()
        self.ranks, self.beside = None, {}

    def micro_batches(self, examples: Sequence[Example]) -> list[list[int]]:
        """The micro-batches (indices) that these rows are trained in, shared among the workers."""
        return micro_batches(examples, self.settings.micro_batch_tokens, self._workers)

    def gradients(
        self, rows: Sequence[Row], objective: Objective, *,
        temperature: float = 1.0, reference: bool = False, entropy: bool = False,
    ) -> list[RowScores]:  # fmt: skip
        """Add the gradient of the objective over ``rows``, in any number of micro-batches and processes."""
        return self._distribute(rows, Work([], objective, temperature, reference, entropy))

    def score(self, rows: Sequence[Row], temperature: float = 1.0, reference: bool = False) -> list[RowScores]:
        """Score each row under the current weights; nothing is learned."""
        return self._distribute(rows, Work([], None, temperature, reference, False))

    def _distribute(self, rows: Sequence[Row], work: Work) -> list[RowScores]:
        """Run ``work`` over ``rows``, each worker with a share of the micro-batches. Shards have to keep step: a rank
        with fewer of them repeats the first, for nothing."""
        cut = self.micro_batches([row.example for row in rows])
        parts = [cut[i :: self._workers] for i in range(self._workers)]
        tasks = []
        for part in parts:
            idle = len(parts[0]) - len(part) if self.sharded else 0
            chosen = [[rows[i] for i in micro] for micro in [*part, *cut[:1] * idle]]
            tasks.append(work._replace(micro_batches=chosen, idle=idle))
        if self.ranks:
            answers = self.ranks.call(self, "_accumulate", [(own,) for own in tasks])
        else:
            for replica, own in zip(self._replicas, tasks[1:], strict=True):
                replica.send(own)
            answers = [self._accumulate(tasks[0]), *(replica.receive() for replica in self._replicas)]
        order = [row for part in parts for micro in part for row in micro]
        scored = dict(zip(order, chain.from_iterable(answers), strict=True))
        return [scored[i] for i in range(len(rows))]

    def _accumulate(self, work: Work) -> list[RowScores]:
        """Run a share of the micro-batches in this process."""
        return accumulate(work, self._scorer, self._trained, self.device, self.settings.precision == "bf16")

    def update(self) -> tuple[float, float]:
        """Apply the accumulated gradients. Returns their norm and the learning rate used."""
        scale = self.settings.optimizer.scale(self.done, self.total)
        norm = self._everywhere("_apply", scale)
        self.done += 1
        return norm, self.settings.optimizer.learning_rate * scale

    def skip(self) -> None:
        """Count a step that has nothing to learn from."""
        self.done += 1

    def resume(self, directory: Path | None = None) -> dict[str, Tensor]:
        """Load the newest checkpoint, if any, and return what was saved beside the weights."""
        found = checkpoint.latest(directory or self.directory, self.run)
        if found is None:
            return {}
        self.done, state = found
        whole = {"weights": state["weights"], "optimizer": state["optimizer"]}
        if self.ranks:
            self.ranks.call(self, "_load", [(whole,), *[(None,)] * (self.ranks.size - 1)])
        else:
            self._load(whole)
        self.gather()
        return state["extra"]

    def gather(self) -> None:
        """Bring ``model`` up to date before it is sampled from or saved; with fsdp it does not follow by itself."""
        if self.sharded:
            self._everywhere("_gather")

    def everywhere(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a function of a module on every rank with its learner and its own arguments; the results by rank. Raises
        the `PipelineError` of any rank, and the ranks can still be called."""
        assert self.ranks
        return _checked(self.ranks.call(self, "_run", [(function, *own) for own in arguments]))

    @contextmanager
    def elsewhere(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[None]:
        """Call a function on the ranks above 0, as `everywhere` does, while this one does its own part inside. If that
        fails or is given up, the others are waited for all the same."""
        assert self.ranks
        given_up: BaseException | None = None
        with self.ranks.calling("_run", [(function, *own) for own in arguments]) as others:
            try:
                yield
            except (PipelineError, GeneratorExit) as error:
                given_up = error
        if given_up:
            raise given_up
        _checked(others)

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(self, *arguments)
        except PipelineError as error:
            return error

    def _everywhere(self, name: str, *arguments: Any) -> Any:
        """Call a method of this learner on every rank; returns this rank's result."""
        if self.ranks is None:
            return getattr(self, name)(*arguments)
        return self.ranks.call(self, name, [arguments] * self.ranks.size)[0]

    def _apply(self, scale: float) -> float:
        if self.ranks and not self.sharded:  # shards add their gradients up in the backward pass
            self.ranks.sum(self.optimizer.parameters)
        return self.optimizer.step(scale)

    @torch.no_grad()
    def _load(self, state: Any) -> None:
        """Load rank 0's checkpoint. Sharded weights go through main memory: a GPU has no room for all of them."""
        if self.ranks:
            state = self.ranks.share(state, torch.device("cpu") if self.sharded else self.device)
        for parameter, value in zip(self.optimizer.parameters, state["weights"], strict=True):
            parameter.copy_(shard_like(value, parameter))
        self.optimizer.load(state["optimizer"])

    @torch.no_grad()
    def _gather(self) -> None:
        for parameter, own in zip(self.optimizer.parameters, self.weights, strict=True):
            value = unsharded(parameter)
            if self.ranks and self.ranks.rank == 0:
                own.copy_(value)

    def _moments(self) -> Any:
        wanted = self.ranks is None or self.ranks.rank == 0
        state = self.optimizer.state(wanted)
        return state if wanted else None

    def save(self, extra: dict[str, Tensor], directory: Path | None = None) -> None:
        """Write a checkpoint. With a ``directory``, it is kept apart from those that `resume` continues from."""
        started = time.monotonic()
        self._before_save()
        self.gather()
        weights = [p.detach() for p in self.weights]
        state = {"weights": weights, "optimizer": self._everywhere("_moments"), "extra": extra}
        checkpoint.save(directory or self.directory, self.done, self.run, state)
        self._last_save = time.monotonic()
        self._saving = self._last_save - started

    def save_if_due(self, extra: dict[str, Tensor], stop: Callable[[], bool]) -> None:
        """Checkpoint at the end, when it is time, or when asked to stop; then also raise `Stopped`."""
        steps, seconds = self.settings.checkpoint_steps, self.settings.checkpoint_seconds
        asked = self.done < self.total and stop()
        late = seconds is not None and time.monotonic() - self._last_save >= max(seconds, self._saving / SAVING)
        if asked or late or self.done == self.total or (steps is not None and self.done % steps == 0):
            self.save(extra)
        if asked:
            raise Stopped(f"stopped after training step {self.done} of {self.total}; run again to continue")


def _checked(found: list[Any]) -> list[Any]:
    for error in found:
        if isinstance(error, PipelineError):
            raise error
    return found


@runtime_checkable
class OnAllRanks(Protocol):
    """Something beside the model that can work on every rank: a sampler, a teacher."""

    def attach(self, learner: Learner) -> None:
        """Use the ranks of ``learner`` from now on, as long as its training lasts."""


def run_identity(settings: LearnerSettings, examples: Sequence[Example] = ()) -> str:
    """Identifies a run in its checkpoints: a hash of its settings, and of the rows in their order.

    Settings that depend on the machine (when to checkpoint, cores, micro-batches) are left out, so that a run may
    continue elsewhere. (The last bits of the weights do depend on the latter two.)
    """
    timeless = replace(settings, checkpoint_steps=None, checkpoint_seconds=None, threads=1, micro_batch_tokens=1)
    digest = hashlib.blake2b(repr(timeless).encode(), digest_size=16)
    for example in examples:
        digest.update(repr((example.key, example.input_ids, example.labels_mask)).encode())
    return digest.hexdigest()
