"""A search's world over stored traces: existing traces are read, missing ones are sampled and stored.

So a search has no resume path: run again, it asks for the same and finds it. Traces have the usual keys
(`distill.keys`), whole responses the same as those of `generate` and `evaluate`, so these are shared. Step scores and
verdicts are rows too, made once. New rows are durable at the end of each round, and ingested into the store when the
next verdicts are made: a round of a search step by step is short, and ingesting is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from distill import keys, verification
from distill.engines.base import Engine, PromptTooLong
from distill.generation import Wanted, request_of, row_of
from distill.prompting import Ask
from distill.store import Store
from distill.store.appending import Appender
from distill.types import Outcome, Problem, Sampling
from distill.verification import Judges
from pipeline.errors import InputError, PipelineError
from pipeline.stage import Context, stop_check
from rl.search import pieces
from rl.search.base import Draft, Piece
from rl.search.scoring import Scorer

PORTION = 256
"""Texts scored at a time; a kill loses no more than these."""


@dataclass
class StoredWorld:
    """A `rl.search.drive.World`. ``open_engine`` is None if only stored traces may be used."""

    store: Store
    context: Context
    tasks: Sequence[tuple[str, Problem]]
    model: str
    sampling: Sampling
    ask: Ask
    stop: str
    open_engine: Callable[[], Engine] | None
    scorers: Mapping[str, Scorer]
    judges: Judges
    workers: int
    rendered: bool = True
    """Whether traces hold the prompt as the model saw it; an endpoint's do not."""
    label: str = ""
    by: str = ""
    """The label of the current scorer."""
    verdicts: dict[tuple[str, str], str] = field(default_factory=dict)
    """The key of the current verdict, by (problem key, trace key)."""
    _pieces: dict[str, Piece] = field(default_factory=dict)
    _scores: dict[str, list[float]] = field(default_factory=dict)
    _outcomes: dict[str, Outcome] = field(default_factory=dict)
    _engine: Engine | None = None

    def close(self) -> None:
        if self._engine:
            self._engine.close()
            self._engine = None

    # -- samples ------------------------------------------------------------------------------

    def draw(self, wanted: Sequence[tuple[int, Draft]]) -> list[Piece]:
        wishes = [self.wish(number, draft) for number, draft in wanted]
        self._read(wish.key for wish in wishes)
        if missing := {wish.key: wish for wish in wishes if wish.key not in self._pieces}:
            self._sample(missing, len({wish.key for wish in wishes}) - len(missing))
        return [self._pieces[wish.key] for wish in wishes]

    def wish(self, number: int, draft: Draft) -> Wanted:
        problem_key, problem = self.tasks[number]
        asked = self.ask(problem)
        asked = replace(asked, prefix=draft.prefix or asked.prefix, stop=self.stop if draft.step else "")
        sampling = replace(self.sampling, temperature=0.0) if draft.greedy else self.sampling
        key = keys.trace_key(problem, self.model, sampling, draft.index, keys.asked_key(problem, asked))
        return Wanted(key, problem_key, problem, sampling, draft.index, asked)

    def _read(self, wanted: Iterable[str]) -> None:
        unknown = {key for key in wanted if key not in self._pieces}
        if unknown:
            sql = f"SELECT {pieces.COLUMNS} FROM traces SEMI JOIN wanted USING (trace_key)"
            rows = self.store.among("trace_key", unknown, sql)
            self._pieces |= {row["trace_key"]: pieces.of_row(row) for row in rows}

    def _sample(self, missing: dict[str, Wanted], present: int) -> None:
        if self.open_engine is None:
            wish = next(iter(missing.values()))
            raise InputError(f"problem {wish.problem.name}: {_missing_text(wish)}; leave out `stored` to sample it")
        stop_check(self.context.stopping)
        self._engine = self._engine or self.open_engine()
        appender, done = Appender(self.store), present

        def stopping() -> bool:
            appender.tick()
            return self.context.stopping()

        try:
            for completion in self._engine.generate(map(request_of, missing.values()), stopping):
                row = row_of(missing[completion.key], completion, self._engine)
                appender.add("traces", row)
                self._pieces[completion.key] = pieces.of_row(row)
                done += 1
                self.context.progress(done, present + len(missing), strategy=self.label)
        except PromptTooLong as error:
            raise InputError(f"problem {missing[error.key].problem.name}: {error}") from None
        finally:
            appender.flush()
        stop_check(self.context.stopping)
        if left := present + len(missing) - done:
            raise PipelineError(f"the engine ended {left} samples short; run the same command again")

    # -- scores -------------------------------------------------------------------------------

    def score(self, wanted: Sequence[tuple[int, Piece]]) -> list[list[float]]:
        scorer = self.scorers[self.by]
        by_key = {keys.score_key(scorer.identity, piece.key): (number, piece) for number, piece in wanted}
        unknown = {key: asked for key, asked in by_key.items() if key not in self._scores}
        if unknown:
            sql = "SELECT score_key, steps FROM step_scores SEMI JOIN wanted USING (score_key)"
            found = self.store.among("score_key", unknown, sql)
            self._scores |= {row["score_key"]: list(row["steps"]) for row in found}
            self._make_scores(scorer, {key: asked for key, asked in unknown.items() if key not in self._scores})
        return [self._scores[keys.score_key(scorer.identity, piece.key)] for _, piece in wanted]

    def _make_scores(self, scorer: Scorer, missing: dict[str, tuple[int, Piece]]) -> None:
        items = list(missing.items())
        for at in range(0, len(items), PORTION):
            stop_check(self.context.stopping)
            part = items[at : at + PORTION]
            found = scorer.open().score([self._asked(scorer, *asked) for _, asked in part])
            rows: list[dict[str, Any]] = [
                {"score_key": key, "scorer": scorer.identity, "trace_key": piece.key, "steps": steps}
                for (key, (_, piece)), steps in zip(part, found, strict=True)
            ]
            self.store.append("step_scores", rows)
            self._scores |= {row["score_key"]: row["steps"] for row in rows}
            self.context.progress(at + len(part), len(items), strategy=f"scores by {self.by}")

    def _asked(self, scorer: Scorer, number: int, piece: Piece) -> tuple[str, str]:
        messages = self.ask(self.tasks[number][1]).messages
        return scorer.prompt(piece, messages, self.rendered), piece.text

    # -- verdicts -----------------------------------------------------------------------------

    def judge(self, wanted: Sequence[tuple[int, Piece]]) -> list[bool]:
        return [outcome is Outcome.CORRECT for outcome in self.outcomes(wanted)]

    def outcomes(self, wanted: Sequence[tuple[int, Piece]]) -> list[Outcome]:
        """The verifier's outcome for each; those without a verdict are judged."""
        asked = [(piece.key, *self.tasks[number]) for number, piece in wanted]
        new = {(problem_key, trace): (trace, problem_key, problem) for trace, problem_key, problem in asked}
        unknown = [each for pair, each in new.items() if pair not in self.verdicts]
        if unknown:
            wishes = [self.judges.judgement(*each) for each in unknown]
            judged = bool(self.verdicts)  # for an earlier strategy: only a few answers may be new here
            stand = verification.make_verdicts(self.store, wishes, self.context, self.workers, self.label, judged)
            self.verdicts |= {(w.problem_key, w.trace_key): key for w, key in zip(wishes, stand, strict=True)}
            sql = "SELECT verdict_key, outcome FROM verdicts SEMI JOIN wanted USING (verdict_key)"
            rows = self.store.among("verdict_key", stand, sql)
            self._outcomes |= {row["verdict_key"]: Outcome(row["outcome"]) for row in rows}
        return [self._outcomes[self.verdicts[problem_key, trace]] for trace, problem_key, _ in asked]


def _missing_text(wish: Wanted) -> str:
    if wish.asked.stop:
        return "a search step by step needs a step that is not in the store"
    if not wish.sampling.temperature:
        return "its greedy response is not in the store"
    return f"sample {wish.sample_index + 1} is needed, but the store holds fewer; lower the budgets"
