"""Sample from a student on every rank of its training, where each has a copy of it (ddp).

Rank 0 deals a step's requests out, completes its own share, and collects the others'. On a CPU, where samples do not
depend on their neighbours, the completions are those of one rank. Requests and completions go through the ranks' calls,
and the flag to stop through the store that the ranks met in, so a stop does not wait for the longest response.

Left out: shards (fsdp), of which no rank can sample, and engines with worker processes, which have all cores already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, count
from typing import Any
from weakref import ref

from distill.engines.transformers import TransformersEngine
from distill.training.learner import Learner
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

    def generate(self, requests: Iterable[Request], stopping: Callable[[], bool]) -> Iterator[Completion]:
        """See `distill.engines.base.Engine`. With several ranks, all completions come at the end."""
        if not (learner := self._learner()) or not (ranks := learner.ranks):
            yield from self._engine.generate(requests, stopping)
            return
        asked, key = list(requests), f"sampling/{next(CALLS)}"
        most = -(-len(asked) // ranks.size)  # neighbours share a prompt, which is then read once
        shares = [asked[i * most : (i + 1) * most] for i in range(ranks.size)]
        arguments = [(share, key, None if rank else stopping) for rank, share in enumerate(shares)]
        yield from chain.from_iterable(learner.everywhere(_complete, arguments))

    def close(self) -> None:
        self._engine.close()


def _open(learner: Learner, tokenizer: Any, identity: str) -> None:
    if ENGINE not in learner.beside:  # above rank 0
        assert learner.ranks
        sharers = learner.ranks.size if learner.device.type == "cpu" else 1
        learner.beside[ENGINE] = open_engine(learner.model, tokenizer, identity, workers=1, sharers=sharers)


def _refresh(learner: Learner) -> None:
    learner.beside[ENGINE].refresh()


def _complete(
    learner: Learner, share: Sequence[Request], key: str, stopping: Callable[[], bool] | None
) -> list[Completion]:
    """This rank's completions, fewer if the run is to stop. Rank 0, which has ``stopping``, waits for the others. Once
    they are to stop, it does so in the call's own way, where it notices if one of them is gone."""
    assert learner.ranks
    store, stop, ended = learner.ranks.store, f"{key}/stop", f"{key}/ended"

    def stops() -> bool:
        if stopping and stopping():
            store.set(stop, b"1")
        return bool(store.check([stop]))

    try:
        found = list(learner.beside[ENGINE].generate(share, stops))
    except BaseException:
        store.set(stop, b"1")
        raise
    store.add(ended, 1)
    while stopping and not stops() and store.add(ended, 0) < learner.ranks.size:
        time.sleep(POLL)
    return found
