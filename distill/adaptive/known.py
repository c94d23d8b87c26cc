"""What the store holds already of the samples that may be wanted: traces, and their verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from distill import keys
from distill.adaptive.course import Course, Place
from distill.generation import Wanted
from distill.store import Store
from distill.types import Outcome
from distill.verification import Judgement, Judges


class Known:
    """``wishes`` are all samples that may be wanted, ``most`` of each problem, problem by problem."""

    def __init__(self, store: Store, wishes: Sequence[Wanted], most: int, judges: Judges) -> None:
        self._wishes, self._most, self._judges = wishes, most, judges
        self.traces = store.present("traces", {wish.key for wish in wishes})
        """Keys of the traces that are there."""
        judged = {
            divmod(at, most): self.judgement(divmod(at, most))
            for at, wish in enumerate(wishes)
            if wish.key in self.traces
        }
        found = _outcomes(store, judged.values())
        self.verdicts = set(found)
        """Keys of the verdicts that are there, first failures (`keys.failed_key`) among them."""
        self.outcomes = {place: found[j.key] for place, j in judged.items() if j.key in found}

    def wish(self, place: Place) -> Wanted:
        return self._wishes[place[0] * self._most + place[1]]

    def judgement(self, place: Place) -> Judgement:
        wish = self.wish(place)
        return self._judges.judgement(wish.key, wish.problem_key, wish.problem)

    def open(self, course: Course, wanted: Iterable[Place]) -> list[Place]:
        """Tell the course the verdicts that are there; returns what is wanted and has none."""
        left, open_ = list(wanted), []
        while left:
            place = left.pop()
            if outcome := self.outcomes.get(place):
                left += course.judged(place, outcome)
            else:
                open_.append(place)
        return open_


def _outcomes(store: Store, wishes: Iterable[Judgement]) -> dict[str, Outcome]:
    wanted = [key for wish in wishes for key in (wish.key, keys.failed_key(wish.key))]
    sql = "SELECT verdict_key, outcome FROM verdicts SEMI JOIN wanted USING (verdict_key)"
    return {row["verdict_key"]: Outcome(row["outcome"]) for row in store.among("verdict_key", wanted, sql)}
