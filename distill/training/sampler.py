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

from distill.engines.transformers import TransformersEngine
from distill.training.learner import Learner
from distill.training.trials import open_engine
from distill.types import Completion, Request
from pipeline.errors import PipelineError

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
        self._learner: Learner | None = None

    def attach(self, learner: Learner) -> None:
        """Sample on the ranks of ``learner``, too, as long as its training lasts."""
        if self._learner is learner or learner.ranks is None or learner.sharded or self._engine.workers > 1:
            return
        self._learner, learner.beside[ENGINE] = learner, self._engine
        learner.everywhere(_open, [(self._engine.tokenizer, self._engine.model)] * learner.ranks.size)

    def refresh(self) -> None:
        """Sample with the current weights from now on."""
        if self._learner is None or self._learner.ranks is None:
            self._engine.refresh()
        else:
            self._learner.everywhere(_refresh, [()] * self._learner.ranks.size)

    def generate(self, requests: Iterable[Request], stopping: Callable[[], bool]) -> Iterator[Completion]:
        """See `distill.engines.base.Engine`. With several ranks, all completions come at the end."""
        if self._learner is None or (ranks := self._learner.ranks) is None:
            yield from self._engine.generate(requests, stopping)
            return
        asked, key = list(requests), f"sampling/{next(CALLS)}"
        most = -(-len(asked) // ranks.size)  # neighbours share a prompt, which is then read once
        shares = [asked[i * most : (i + 1) * most] for i in range(ranks.size)]

        def stop_all() -> bool:
            if asked_to := stopping():
                ranks.store.set(f"{key}/stop", b"1")
            return asked_to

        found = self._learner.everywhere(
            _complete, [(share, key, None if rank else stop_all) for rank, share in enumerate(shares)]
        )
        for made in found:
            if isinstance(made, PipelineError):
                raise made
        yield from chain.from_iterable(found)

    def close(self) -> None:
        self._engine.close()


def _open(learner: Learner, tokenizer: Any, identity: str) -> None:
    if ENGINE not in learner.beside:  # above rank 0
        learner.beside[ENGINE] = open_engine(learner.model, tokenizer, identity, workers=1)


def _refresh(learner: Learner) -> None:
    learner.beside[ENGINE].refresh()


def _complete(
    learner: Learner, share: Sequence[Request], key: str, stop_all: Callable[[], bool] | None
) -> list[Completion] | PipelineError:
    """This rank's completions, fewer if the run is to stop. On rank 0, which has ``stop_all``, when all ranks ended."""
    assert learner.ranks
    store = learner.ranks.store
    found: list[Completion] | PipelineError
    try:
        found = list(learner.beside[ENGINE].generate(share, stop_all or (lambda: store.check([f"{key}/stop"]))))
    except PipelineError as error:
        found = error  # for rank 0 to raise
        store.set(f"{key}/stop", b"1")
    store.add(f"{key}/ended", 1)
    while stop_all and store.add(f"{key}/ended", 0) < learner.ranks.size:
        stop_all()
        time.sleep(POLL)
    return found
