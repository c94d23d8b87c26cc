"""Measures one model: makes and judges its samples, its greedy answers, and its samples under thinking budgets.

This is the part of `evaluate` that calls the engine. The engine is opened once per model, when the first missing sample
is needed, and not at all if every sample is in the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

from distill import budgets, verification
from distill.engines.options import USUAL
from distill.evaluation import payoff
from distill.generation import Wanted, missing_of, sample
from distill.modelspec import Model
from distill.stages.common import open_engine, resolved
from distill.store import Store
from distill.store.records import Row
from distill.types import Outcome
from pipeline.stage import Context, stop_check

if TYPE_CHECKING:
    from distill.engines.base import Engine
    from distill.stages.evaluate import EvaluateSettings

GREEDY = "greedy"
WRONG = str(Outcome.INCORRECT)


class Measure:
    """``stack`` closes the engine once the model has been measured."""

    def __init__(
        self, context: Context, settings: EvaluateSettings, store: Store, model: Model, label: str, stack: ExitStack
    ) -> None:
        self._context, self._settings, self._store, self._model = context, settings, store, model
        self._label, self._stack = label, stack
        self._engine: Engine | None = None
        self._sampled_anew: dict[int, int] = {}

    def sampled(self, wishes: Sequence[Wanted]) -> dict[str, list[Wanted]]:
        """The samples by kind: ``label``, ``label/greedy``, and ``label/thinking-N`` for those under a budget."""
        self._make(wishes)
        warm = self._settings.sampling.temperature
        kinds = {self._label: [wish for wish in wishes if wish.sampling.temperature == warm]}
        if greedy := [wish for wish in wishes if wish.sampling.temperature != warm]:
            kinds[f"{self._label}/{GREEDY}"] = greedy
        return kinds | self._under_budgets(kinds[self._label])

    def judged(self, kinds: Mapping[str, Sequence[Wanted]]) -> dict[str, list[str]]:
        """The keys of the samples' verdicts, by kind."""
        every = [(wish.key, wish.problem_key, wish.problem) for some in kinds.values() for wish in some]
        wishes = verification.judgements(every, resolved(self._context, self._settings.verifier), self._context.hashes)
        keys = verification.make_verdicts(self._store, wishes, self._context, self._settings.workers, self._label)
        verdicts = iter(keys)
        return {kind: [next(verdicts) for _ in some] for kind, some in kinds.items()}

    @property
    def _closing(self) -> str:
        return (self._settings.thinking or USUAL).closing

    def _under_budgets(self, samples: Sequence[Wanted]) -> dict[str, list[Wanted]]:
        if not self._settings.budgets:
            return {}
        standing = budgets.under(self._store, samples, self._settings.budgets, self._model.identity, self._closing)
        own = {wish.key for wish in samples}
        self._sampled_anew = {most: len({w.key for w in some} - own) for most, some in standing.items()}
        self._make(budgets.made_anew(standing, samples))
        return {kind_of(self._label, most): some for most, some in standing.items()}

    def _make(self, wishes: Sequence[Wanted]) -> None:
        """Sample what the store lacks of ``wishes``."""
        missing, done = missing_of(self._store, wishes)
        if not missing:
            return
        stop_check(self._context.stopping)
        if self._engine is None:
            opened = open_engine(self._context, self._store, self._settings.engine, self._model)
            self._engine = self._stack.enter_context(closing(opened))
        sample(self._store, self._engine, missing, done, self._context, self._label)

    def paid_off(self, rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
        """The figures of the thinking budgets, from the verdict rows of each kind of sample; empty without budgets."""
        wanted = self._settings.budgets
        if not wanted:
            return {}
        whole = rows[self._label]
        standing = {most: rows[kind_of(self._label, most)] for most in wanted}
        over = {most: self._over(most, some) for most, some in standing.items()}
        for most, some in standing.items():
            standing[most] = [{**row, "outcome": WRONG} if row["trace_key"] in over[most] else row for row in some]
        found: dict[str, Any] = {"by_budget": payoff.curve(standing, whole, self._sampled_anew, over)}
        return found | ({"against_no_thinking": payoff.against_none(whole, standing[0])} if 0 in standing else {})

    def _over(self, most: int, rows: Sequence[Row]) -> set[str]:
        """The samples that thought on when the budget was used up: they have no answer within it."""
        longer = [row["trace_key"] for row in rows if row["thinking_tokens"] > most]
        return budgets.went_on(self._store, longer, self._closing)


def kind_of(label: str, budget: int) -> str:
    return f"{label}/thinking-{budget}"
