"""vLLM in processes of its own, each with a copy of the model: for several GPUs, and beside a training on several.

`VllmReplicas` looks like one `VllmEngine` and deals requests out to several, which `distill.engines.vllm_worker` runs.
A seed belongs to its request, so it does not matter, but for rounding, which replica draws a sample. Samples of one
problem go to one replica, whose cache then holds their prompt once.

Torch has one process group per process and vLLM claims it, so a training on several devices can only sample from a vLLM
in another process. A replica ends when its pipe closes, however this process died; this process handles the signals
(`pipeline.forking`). Left out: replicas on other machines, and moving waiting requests between replicas.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from distill.engines.base import Stopping, never, wanted_now
from distill.engines.options import VllmOptions
from distill.engines.vllm_worker import DROPPED, END, NOW, Opening
from distill.machine import allowed_cores, cores
from distill.modelspec import Model
from distill.types import Completion, Request
from pipeline.errors import InputError, PipelineError
from pipeline.forking import ended, spawn
from pipeline.stage import stop_check

PATIENCE = 0.05
"""Seconds to wait for a completion before asking for new requests (verdicts in another thread may lead to some), and
whether to stop. About one step of vLLM, after which `VllmEngine` asks."""

GROUP = 16
"""The most consecutive samples of one problem that go to the same replica."""

GRACE = 30.0
"""Seconds a replica gets to free its GPU before it is killed."""

RANKS = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE",
    "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS",
)  # fmt: skip
"""Variables that torchrun sets for a rank. Replicas must not see them: they are not ranks of the training."""


@dataclass(frozen=True)
class Place:
    """Where a replica runs: on some GPUs, or on some CPU cores (empty: on any), with ``threads`` threads in torch."""

    gpus: tuple[str, ...] = ()
    threads: int = 1
    cores: tuple[int, ...] = ()


def open(model: Model, options: VllmOptions, lora_rank: int = 0, stopping: Stopping = never) -> VllmReplicas:
    """Load ``options.data_parallel`` copies of the model at the same time. `InputError` if there are too few GPUs;
    `Stopped` once ``stopping`` returns True."""
    from distill.tensors import give_back

    where = places(options)
    give_back()  # memory that torch still caches in this process would be missing on the first GPU
    opening = Opening(
        model, options.model_copy(update={"data_parallel": None, "first_gpu": 0}), lora_rank, sharing=len(where)
    )
    replicas = VllmReplicas([_Replica(place) for place in where], model)
    try:
        replicas.begin(opening, stopping)
    except BaseException:
        replicas.close(NOW)  # else those that still load would go on
        raise
    return replicas


def places(options: VllmOptions) -> list[Place]:
    """Where each replica runs."""
    import torch

    count, each, first = options.data_parallel or 1, options.gpus(), options.first_gpu
    if not torch.cuda.is_available():
        return _on_cores(count)
    gpus = _visible(torch.cuda.device_count())
    if first + count * each > len(gpus):
        raise InputError(
            f"engine vllm: {count} x {each} (data_parallel x tensor_parallel)"
            + (f" from GPU {first} on" if first else "")
            + f" needs {first + count * each} GPU(s), and {len(gpus)} can be seen here"
        )
    threads = max(1, cores() // (count * each))  # per worker of vLLM, each of which uses as many
    return [Place(tuple(gpus[first + i * each : first + (i + 1) * each]), threads) for i in range(count)]


def _visible(count: int) -> list[str]:
    """The entry of CUDA_VISIBLE_DEVICES for each of the ``count`` GPUs that torch sees. CUDA ignores the entries after
    an invalid one (such as -1). Of MIG slices it shows a process only one, but each replica can have another."""
    named = [entry.strip() for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if not named[0]:
        return [str(i) for i in range(count)]
    return [entry for entry in named if entry] if named[0].startswith("MIG-") else named[:count]


def _on_cores(count: int) -> list[Place]:
    """An equal share of the cores for each. If a cgroup limits CPU time, not cores, only the threads are shared out."""
    there, allowed = cores(), sorted(allowed_cores())
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]  # it may be a list, one number per nesting level
    threads = min(max(1, there // count), int(asked or there))
    if there < max(len(allowed), count):
        return [Place(threads=threads)] * count
    size = there // count
    return [Place(threads=threads, cores=tuple(allowed[i * size : (i + 1) * size])) for i in range(count)]


class VllmReplicas:
    """An engine with ``adopt`` and ``score`` of `distill.engines.vllm.VllmEngine`, made of ``copies`` replicas."""

    name = "vllm"
    batch_invariant = False

    def __init__(self, replicas: Sequence[_Replica], model: Model) -> None:
        self.model = model.identity
        self.copies = len(replicas)
        self._spec, self._replicas = model, list(replicas)
        self._last: tuple[Any, _Replica, int] | None = None  # (prompt of the last request, its replica, samples so far)
        self._turn = 0

    def begin(self, opening: Opening, stopping: Stopping = never) -> None:
        """Load the model everywhere. The first failure is raised at once: the others may take minutes, or hang."""
        for replica in self._replicas:
            replica.send("open", opening)
        for replica, ahead in self._answers(stopping):
            if isinstance(ahead, Exception):
                raise ahead
            replica.ahead = ahead

    @cached_property
    def tokenizer(self) -> Any:
        from distill.pretrained import tokenizer_of

        return tokenizer_of(self._spec)

    def generate(self, requests: Iterable[Request | None], stopping: Stopping = never) -> Iterator[Completion]:
        """Completions in the order they finish. `PromptTooLong` where a prompt leaves no room."""
        self._check()
        self._drop()
        self._turn = turn = self._turn + 1
        source = iter(requests)
        try:
            while not stopping():
                room = sum(max(0, replica.ahead - replica.held) for replica in self._replicas)
                self._hand_out(wanted_now(source, room))
                busy = {replica.pipe: replica for replica in self._replicas if replica.held}
                if not busy:
                    return
                for pipe in wait(list(busy), PATIENCE) or _silent(busy.values()):
                    yield from busy[pipe].completions()  # type: ignore[index]
        finally:
            if turn == self._turn:  # else this iterator was abandoned, and another one has started
                self._drop()

    def adopt(self, adapter: str | Path) -> None:
        """Sample with the LoRA adapter in that directory from now on, in place of any other."""
        self._ask("adopt", [str(adapter)] * self.copies)

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """As `VllmEngine.score`. Sequence i is scored by replica i modulo `copies`."""
        answers = self._ask("score", [list(sequences[i :: self.copies]) for i in range(self.copies)])
        return [answers[i % self.copies][i // self.copies] for i in range(len(sequences))]

    def close(self, how: tuple[str, None] = END) -> None:
        for replica in self._replicas:
            replica.dismiss(how)
        until = time.monotonic() + GRACE
        for replica in self._replicas:
            replica.end(until - time.monotonic())
        self._replicas.clear()

    def _hand_out(self, requests: Iterable[Request]) -> None:
        """Send each request to the replica with the fewest, samples of one problem together."""
        shares: dict[int, list[Request]] = {}
        for request in requests:
            problem, replica, count = self._last or (None, None, 0)
            if replica is None or problem != request.messages or count == GROUP:
                replica, count = min(self._replicas, key=lambda each: each.held), 0
            self._last = request.messages, replica, count + 1
            replica.held += 1
            shares.setdefault(self._replicas.index(replica), []).append(request)
        for index, share in shares.items():
            self._replicas[index].send("generate", share)

    def _drop(self) -> None:
        """Drop everything in flight, also from an abandoned iterator. Afterwards no replica samples."""
        self._last = None
        asked = [replica for replica in self._replicas if replica.sampling]
        for replica in asked:
            replica.send("drop", None)
        for replica in asked:
            replica.settle()

    def _check(self) -> None:
        """Raise if a replica is lost: the others may still send answers that nobody waits for."""
        for replica in self._replicas:
            if replica.lost:
                raise replica.lost

    def _ask(self, what: str, arguments: Sequence[Any]) -> list[Any]:
        """Ask every replica and return the answers. The first error is raised when all have answered, the loss of
        a replica at once."""
        self._check()
        self._drop()
        for replica, argument in zip(self._replicas, arguments, strict=True):
            replica.send(what, argument)
        found = dict(self._answers())
        for answer in found.values():
            if isinstance(answer, Exception):
                raise answer
        return [found[replica] for replica in self._replicas]

    def _answers(self, stopping: Stopping = never) -> Iterator[tuple[_Replica, Any]]:
        """One answer from each replica, as they arrive, so that a dead one ends the wait for the others."""
        waiting: dict[Any, _Replica] = {replica.pipe: replica for replica in self._replicas}
        while waiting:
            stop_check(stopping)
            for pipe in wait(list(waiting), 1.0) or _silent(waiting.values()):
                replica = waiting.pop(pipe)
                yield replica, replica.answer()


@dataclass(eq=False)
class _Replica:
    """The parent's side of one process. It has ``held`` requests, usually at most ``ahead``."""

    place: Place
    held: int = 0
    ahead: int = 1
    sampling: bool = False
    lost: PipelineError | None = None
    pipe: Connection = field(init=False)
    _process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in RANKS}
        if self.place.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.place.gpus)
            environment.setdefault("OMP_NUM_THREADS", str(self.place.threads))
        else:
            environment["OMP_NUM_THREADS"] = str(self.place.threads)
        self.pipe, theirs = multiprocessing.Pipe()
        fd = theirs.fileno()
        arguments = map(str, (fd, *self.place.cores))
        self._process = spawn("distill.engines.vllm_worker", arguments, environment, pass_fds=[fd], stdout=2)
        theirs.close()

    def send(self, what: str, argument: Any) -> None:
        self.sampling = self.sampling or what == "generate"
        try:
            self.pipe.send((what, argument))
        except OSError:
            raise self._gone() from None

    def answer(self) -> Any:
        """The next thing it sends, which may be an exception."""
        while not self.pipe.poll(1.0):
            if self.over() and not self.pipe.poll():
                raise self._gone()
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            raise self._gone() from None

    def over(self) -> bool:
        """Whether it has ended. Its pipe may still be open, in a process that another thread forked meanwhile."""
        return self._process.poll() is not None

    def completions(self) -> list[Completion]:
        found = self.answer()
        if isinstance(found, Exception):
            raise found
        self.held -= len(found)
        completions: list[Completion] = found
        return completions

    def settle(self) -> None:
        """Wait until it has dropped everything."""
        while self.answer() != DROPPED:
            pass
        self.held, self.sampling = 0, False

    def dismiss(self, how: tuple[str, None]) -> None:
        """Have it end. Closing the pipe is not enough: a forked process may hold this end open."""
        with suppress(OSError):
            self.pipe.send(how)
        self.pipe.close()

    def end(self, seconds: float) -> None:
        """Wait for its end, and kill it if that takes longer."""
        try:
            self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _gone(self) -> PipelineError:
        self.held, self.sampling = 0, False
        how = ended(self._process.wait())
        self.lost = PipelineError(f"a vllm replica {how}; run the same command again to go on from what was kept")
        return self.lost


def _silent(replicas: Iterable[_Replica]) -> list[Any]:
    """The pipes of the replicas whose process has ended."""
    return [replica.pipe for replica in replicas if replica.over()]
