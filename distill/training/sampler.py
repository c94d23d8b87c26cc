"""Sample from a student on every rank of its training, where each has a copy of it (ddp).

Rank 0 deals a step's requests out, completes its own share, and passes on the others' completions as they are made. On
a CPU, where samples do not depend on their neighbours, the completions are those of one rank. Requests go through the
ranks' calls; completions and the flag to stop go through the store that the ranks met in, so neither waits for the
longest response.

Left out: shards (fsdp), of which no rank can sample, and engines with worker processes, which have all cores already.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any
from weakref import ref

from distill.engines.transformers import TransformersEngine
from distill.training.learner import Learner
from distill.training.ranks import Ranks
from distill.training.trials import open_engine
from distill.types import Completion, Request

ENGINE = "engine"
CALLS = count(1)
"""Numbers the calls of this process, because trainings one after another share the store that torchrun has."""
POLL = 0.01
"""Seconds between two looks of rank 0 at whether it is to stop, while it waits for the others."""


class StudentSampler:
    """A `rl.grpo.Policy`, on the ranks of the learner that it is attached to. ``engine`` is that of rank 0; the others
    open their own."""

    name = TransformersEngine.name

    def __init__(self, engine: TransformersEngine) -> None:
        self._engine = engine
        self._learner: Callable[[], Learner | None] = lambda: None

    def attach(self, learner: Learner) -> None:
        """Sample on the ranks of ``learner``, too, as long as its training lasts."""
        if self._learner() is learner:
            return
        self._learner = lambda: None
        if learner.ranks and not learner.sharded and self._engine.workers == 1:
            self._learner, learner.beside[ENGINE] = ref(learner), self._engine
            learner.everywhere(_open, [(self._engine.tokenizer, self._engine.model)] * learner.ranks.size)

    def refresh(self) -> None:
        """Sample with the current weights from now on."""
        if (learner := self._learner()) and learner.ranks:
            learner.everywhere(_refresh, [()] * learner.ranks.size)
        else:
            self._engine.refresh()

    def generate(
        self, requests: Iterable[Request], stopping: Callable[[], bool]
    ) -> Generator[Completion, None, None]:  # fmt: skip
        """With several ranks, these cannot be called otherwise until all completions are taken, or it is closed."""
        if not (learner := self._learner()) or not (ranks := learner.ranks):
            yield from self._engine.generate(requests, stopping)
            return
        asked, exchange = list(requests), _Exchange(ranks, f"sampling/{next(CALLS)}")
        most = -(-len(asked) // ranks.size)  # neighbours share a prompt, which is then read once
        shares = [asked[i * most : (i + 1) * most] for i in range(ranks.size)]

        def stops() -> bool:
            if stopping():
                exchange.stop()
            return exchange.stopped()

        with learner.elsewhere(_complete, [(share, exchange.key) for share in shares[1:]]), exchange.ended_by_error():
            for completion in self._engine.generate(shares[0], stops):
                yield completion
                yield from exchange.received()
            # Once the others are to stop, their call is waited for, which notices if one of them is gone.
            while not stops() and not exchange.over():
                yield from exchange.received()
                time.sleep(POLL)
        yield from exchange.received()

    def close(self) -> None:
        self._engine.close()


def _open(learner: Learner, tokenizer: Any, identity: str) -> None:
    if ENGINE not in learner.beside:  # above rank 0
        assert learner.ranks
        sharers = learner.ranks.size if learner.device.type == "cpu" else 1
        learner.beside[ENGINE] = open_engine(learner.model, tokenizer, identity, workers=1, sharers=sharers)


def _refresh(learner: Learner) -> None:
    learner.beside[ENGINE].refresh()


def _complete(learner: Learner, share: Sequence[Request], key: str) -> None:
    """A share of the requests, on a rank above 0."""
    assert learner.ranks
    exchange = _Exchange(learner.ranks, key)
    with exchange.ended_by_error():
        for completion in learner.beside[ENGINE].generate(share, exchange.stopped):
            exchange.send(completion)
    exchange.end()


class _Exchange:
    """What the ranks tell each other, through the store that they met in, while they complete the requests of a call:
    what the others have made for rank 0, and whether all are to stop."""

    def __init__(self, ranks: Ranks, key: str) -> None:
        self.key, self._store, self._rank = key, ranks.store, ranks.rank
        self._passed_on = dict.fromkeys(range(1, ranks.size), 0)

    def stop(self) -> None:
        self._store.set(f"{self.key}/stop", b"1")

    def stopped(self) -> bool:
        return bool(self._store.check([f"{self.key}/stop"]))

    @contextmanager
    def ended_by_error(self) -> Iterator[None]:
        """Stop all ranks if one gives up."""
        try:
            yield
        except BaseException:
            self.stop()
            raise

    def send(self, completion: Completion) -> None:
        self._store.set(self._place(self._rank), pickle.dumps(completion))
        self._passed_on[self._rank] += 1

    def received(self) -> Iterator[Completion]:
        """What has come since the last look."""
        for rank in self._passed_on:
            while self._store.check([place := self._place(rank)]):
                completion = pickle.loads(self._store.get(place))
                self._store.delete_key(place)
                self._passed_on[rank] += 1
                yield completion

    def _place(self, rank: int) -> str:
        return f"{self.key}/{rank}/{self._passed_on[rank]}"

    def end(self) -> None:
        """This rank has completed its share."""
        self._store.add(f"{self.key}/ended", 1)

    def over(self) -> bool:
        """Whether all ranks above 0 have completed theirs."""
        return bool(self._store.add(f"{self.key}/ended", 0) == len(self._passed_on))
