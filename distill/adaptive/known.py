"""What the store already holds of the samples that may be wanted: traces and their verdicts.

Each place is taken by one trace: the sample itself or, if truncated samples are continued, its latest continuation. If
truncated samples are dropped, such a try has failed and is not judged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from distill import keys, truncation
from distill.adaptive.course import Course, Place
from distill.generation import Wanted
from distill.store import Store
from distill.types import Completion, Finish, Outcome
from distill.verification import Judgement, Judges, of_one_problem

Distinct = Literal["answer", "text"]
TEXTS = {"answer": "answer", "text": "concat(thinking, chr(31), answer)"}


@dataclass(frozen=True, slots=True)
class Cuts:
    """What to do with truncated tries: ``drop`` them, or continue them up to ``limits``; else they are judged as is."""

    drop: bool = False
    limits: Sequence[int] = ()


class Known:
    """``wishes`` are all samples that may be wanted, ``most`` of each problem, problem by problem."""

    def __init__(
        self, store: Store, wishes: Sequence[Wanted], most: int, judges: Judges, cuts: Cuts = Cuts(),
        distinct: Distinct | None = None,
    ) -> None:  # fmt: skip
        self._wishes, self._most, self._judges, self._cuts = list(wishes), most, judges, cuts
        self._distinct = distinct
        for limit in cuts.limits:
            self._wishes = truncation.continued(store, self._wishes, limit)
        by_key = {wish.key: wish for wish in self._wishes}
        self.traces = store.present("traces", by_key)
        """Keys of the traces that are there."""
        self.cut = truncation.cut_among(store, self.traces) if cuts.drop else set[str]()
        """Keys of the truncated traces, if these are dropped."""
        missing = {key: wish for key, wish in by_key.items() if key not in self.traces and wish.continues}
        self._beginnings = {key: wish.asked.prefix for key, wish in truncation.begun(store, missing).items()}
        """The texts that missing continuations begin with, by key."""
        self._digests = _stored_digests(store, self.traces, distinct) if distinct else {}
        judged = {
            divmod(at, most): self.judgement(divmod(at, most))
            for at, wish in enumerate(self._wishes)
            if wish.key in self.traces and wish.key not in self.cut
        }
        found = _outcomes(store, judged.values())
        self.verdicts = set(found)
        """Keys of the verdicts that are there, first failures (`keys.failed_key`) among them."""
        self.outcomes = {place: found[j.key] for place, j in judged.items() if j.key in found}
        self.judged = {judged[place].by for place in self.outcomes}
        """The verifiers that have a verdict on any of them in the store."""
        self.alone = of_one_problem(self.judgement((at, 0)) for at in range(len(self._wishes) // most))
        """The verifiers that judge a single problem."""
        dropped = (divmod(at, most) for at, wish in enumerate(self._wishes) if wish.key in self.cut)
        self.outcomes |= dict.fromkeys(dropped, Outcome.INCORRECT)

    def wish(self, place: Place) -> Wanted:
        """The sample that takes the place now."""
        wish = self._wishes[place[0] * self._most + place[1]]
        if (beginning := self._beginnings.get(wish.key)) is None:
            return wish
        return replace(wish, asked=replace(wish.asked, prefix=beginning))

    def judgement(self, place: Place) -> Judgement:
        wish = self.wish(place)
        return self._judges.judgement(wish.key, wish.problem_key, wish.problem)

    def digest_of(self, place: Place) -> str | None:
        """The digest of what the trace there says, if accepted samples must be distinct."""
        return self._digests.get(self.wish(place).key)

    def open(self, course: Course, wanted: Iterable[Place]) -> list[Place]:
        """Pass the verdicts that exist to the course; returns the wanted places without a verdict."""
        left, open_ = list(wanted), []
        while left:
            place = left.pop()
            if outcome := self.outcomes.get(place):
                left += course.judged(place, outcome, self.digest_of(place))
            else:
                open_.append(place)
        return open_

    def take(self, place: Place, completion: Completion, row: Mapping[str, Any]) -> Literal["judge", "go on", "failed"]:
        """Take in a new trace, which is stored as ``row``. Returns what to do with it."""
        wish = self.wish(place)
        self.traces.add(wish.key)
        if completion.finish is Finish.LENGTH:
            if self._cuts.drop:
                self.cut.add(wish.key)
                return "failed"
            if (limit := self._next_limit(wish, completion)) is not None:
                self._go_on(place, wish, limit, row)
                return "go on"
        if self._distinct:
            self._digests[wish.key] = _digest(row, self._distinct)
        return "judge"

    def _next_limit(self, wish: Wanted, completion: Completion) -> int | None:
        """The next limit; None if limits or the model's positions are used up (`distill.truncation.CAN_GO_ON`)."""
        if completion.token_ids and len(completion.token_ids) < wish.sampling.max_tokens:
            return None
        return next((limit for limit in self._cuts.limits if limit > wish.sampling.max_tokens), None)

    def _go_on(self, place: Place, wish: Wanted, limit: int, row: Mapping[str, Any]) -> None:
        longer = truncation.longer(wish, limit)
        self._wishes[place[0] * self._most + place[1]] = longer
        self._beginnings[longer.key] = truncation.text_of(row)


def _digest(row: Mapping[str, Any], distinct: Distinct) -> str:
    text = row["answer"] if distinct == "answer" else f"{row['thinking']}\x1f{row['answer']}"
    return hashlib.md5(text.encode()).hexdigest()


def _stored_digests(store: Store, traces: Iterable[str], distinct: Distinct) -> dict[str, str]:
    """As `_digest`, for stored traces; computed in the database, so that texts stay there."""
    sql = f"SELECT trace_key, md5({TEXTS[distinct]}) AS digest FROM traces SEMI JOIN wanted USING (trace_key)"
    return {row["trace_key"]: row["digest"] for row in store.among("trace_key", traces, sql)}


def _outcomes(store: Store, wishes: Iterable[Judgement]) -> dict[str, Outcome]:
    wanted = [key for wish in wishes for key in (wish.key, keys.failed_key(wish.key))]
    sql = "SELECT verdict_key, outcome FROM verdicts SEMI JOIN wanted USING (verdict_key)"
    return {row["verdict_key"]: Outcome(row["outcome"]) for row in store.among("verdict_key", wanted, sql)}
