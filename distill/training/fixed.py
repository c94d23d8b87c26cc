"""A network that only scores: a teacher, a process reward model. The ranks of a training share its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import ref

from distill.training.forward import check_packing

if TYPE_CHECKING:
    from distill.training.learner import Learner

Scores = TypeVar("Scores")
Measure = Callable[..., Sequence[Scores]]
"""(network, rows, *settings) -> the scores of each row; a function of a module."""


def fixed(network: Any) -> Any:
    """Freeze a network that only scores. `InputError` if it cannot compute packed rows."""
    check_packing(network.requires_grad_(False).eval())
    return network


class FixedNetwork:
    """An `OnAllRanks`. ``name`` distinguishes it from others that are beside the same training."""

    def __init__(self, network: Any, name: str) -> None:
        self.network, self._name = fixed(network), name
        self._learner: Callable[[], Learner | None] = lambda: None

    def attach(self, learner: Learner) -> None:
        """Score on every rank of ``learner``, each of which gets a copy, as long as its training lasts. A network that
        was put on another device than rank 0 trains on scores there alone."""
        self._learner = lambda: None
        if learner.ranks and self.network.device == learner.device:
            self._learner = ref(learner)
            ranks = range(learner.ranks.size)
            learner.everywhere(_take, [(self._name, None if rank else self.network) for rank in ranks])

    def scores(self, measure: Measure[Scores], rows: Sequence[Any], *settings: Any) -> Sequence[Scores]:
        """``measure`` of the rows, in their order."""
        if not (learner := self._learner()) or not (ranks := learner.ranks):
            return measure(self.network, rows, *settings)
        shares = [rows[rank :: ranks.size] for rank in range(ranks.size)]
        found = learner.everywhere(_measure, [(self._name, measure, share, *settings) for share in shares])
        return [found[row % ranks.size][row // ranks.size] for row in range(len(rows))]


def _take(learner: Learner, name: str, network: Any) -> None:
    assert learner.ranks
    learner.beside[name] = learner.ranks.share(network, learner.device)


def _measure(
    learner: Learner, name: str, measure: Measure[Scores], rows: Sequence[Any], *settings: Any
) -> Sequence[Scores]:
    return measure(learner.beside[name], rows, *settings)
