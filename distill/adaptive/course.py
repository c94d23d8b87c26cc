"""Decides which samples of which problems are wanted next, for all problems together. In memory and pure.

Problems are taken in their order. A quota covers the problems that match it; a problem is sampled if and only if
the earlier problems of its quota yield fewer accepted samples than the quota asks for. This, too, depends on verdicts
alone: while outcomes are open, a problem is begun as soon as it is certain that those before it fall short even at
best. A quota is overshot by less than one problem's ``accepted``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from distill.adaptive.rule import Fate, Repeat, Result, Rule
from distill.types import Outcome, Problem

Place = tuple[int, int]
"""(number of the problem, index of its sample)."""


@dataclass(frozen=True, slots=True)
class Quota:
    """The number of accepted samples wanted from the problems of a source, a difficulty, both, or (both None) from
    all."""

    accepted: int
    source: str | None = None
    difficulty: int | None = None

    def covers(self, problem: Problem) -> bool:
        return self.source in (None, problem.source) and self.difficulty in (None, problem.difficulty)

    def __str__(self) -> str:
        named = {"source": self.source, "difficulty": self.difficulty}
        return ", ".join(f"{key} {value}" for key, value in named.items() if value is not None) or "all problems"


@dataclass(slots=True)
class Share:
    """The problems of one quota, in order; those before ``begun`` are sampled. ``promised`` is the most accepted
    samples that these can yield, ``accepted`` what those that have ended did yield."""

    quota: Quota | None
    problems: list[int] = field(default_factory=list)
    begun: int = 0
    promised: int = 0
    accepted: int = 0

    @property
    def open(self) -> bool:
        """Whether it is certain that one more problem is needed."""
        return self.begun < len(self.problems) and (self.quota is None or self.promised < self.quota.accepted)


@dataclass(slots=True)
class _Problem:
    share: Share
    best: int
    verdicts: list[Outcome | None] = field(default_factory=list)
    digests: list[str | None] = field(default_factory=list)
    wanted: int = 0
    fate: Fate | None = None

    def results(self, distinct: bool) -> list[Result | None]:
        """The verdicts; if accepted samples must be ``distinct``, correct ones that say the same are repeats."""
        if not distinct:
            return list(self.verdicts)
        found: list[Result | None] = []
        seen: set[str | None] = set()
        for verdict, digest in zip(self.verdicts, self.digests, strict=True):
            if verdict is not Outcome.CORRECT:
                found.append(verdict)
            else:
                new = Repeat.OPEN if None in found else Outcome.CORRECT
                found.append(Repeat.REPEATED if digest in seen else new)
                seen.add(digest)
        return found


class Course:
    """``start`` and ``judged`` return the samples that are newly wanted, each once. Without quotas, all problems
    are sampled; with quotas, a problem belongs to the first that covers it, and is not sampled if none does."""

    def __init__(self, problems: Sequence[Problem], rule: Rule, quotas: Sequence[Quota] = ()) -> None:
        self.rule = rule
        self.shares = [Share(quota) for quota in quotas] or [Share(None)]
        self._problems: list[_Problem] = []
        self._open = 0
        for number, problem in enumerate(problems):
            share = next((s for s in self.shares if s.quota is None or s.quota.covers(problem)), None)
            self._problems.append(_Problem(share or Share(None), rule.accepted))
            if share:
                share.problems.append(number)

    @property
    def complete(self) -> bool:
        """Whether every problem that was begun has ended, and no other is needed."""
        return not self._open and not any(share.open for share in self.shares)

    def progress(self) -> tuple[int, int]:
        """(done, total), in problems that have ended or, with quotas, in accepted samples."""
        if self.shares[0].quota is None:
            return len(self._problems) - self._open, len(self._problems)
        wanted = [share.quota.accepted for share in self.shares if share.quota]
        return sum(min(s.accepted, n) for s, n in zip(self.shares, wanted, strict=True)), sum(wanted)

    def start(self) -> list[Place]:
        return [place for share in self.shares for place in self._begin(share)]

    def judged(self, place: Place, outcome: Outcome, digest: str | None = None) -> list[Place]:
        """Take in a verdict. ``digest`` is that of what the sample says, if accepted samples must be distinct."""
        number, index = place
        problem = self._problems[number]
        new = index + 1 - len(problem.verdicts)
        problem.verdicts += [None] * new
        problem.digests += [None] * new
        problem.verdicts[index], problem.digests[index] = outcome, digest
        wanted = self._newly_wanted(number)
        if end := self.rule.ended(problem.results(self.rule.distinct)):
            problem.fate = end[1]
            problem.share.accepted += self.accepted(number)
            self._open -= 1
        before, problem.best = problem.best, self._best(problem)
        problem.share.promised += problem.best - before
        return wanted + self._begin(problem.share)

    def _best(self, problem: _Problem) -> int:
        """The most accepted samples that the problem can yield."""
        results = problem.results(self.rule.distinct)
        correct, out = results.count(Outcome.CORRECT), results.count(None) + results.count(Repeat.OPEN)
        if problem.fate:
            return correct
        return min(self.rule.accepted, correct + out + self.rule.most - len(results))

    def _begin(self, share: Share) -> list[Place]:
        wanted = []
        while share.open:
            number = share.problems[share.begun]
            share.begun += 1
            share.promised += self._problems[number].best
            self._open += 1
            wanted += self._newly_wanted(number)
        return wanted

    def _newly_wanted(self, number: int) -> list[Place]:
        problem = self._problems[number]
        before, problem.wanted = problem.wanted, max(problem.wanted, self._certain(problem))
        return [(number, index) for index in range(before, problem.wanted)]

    def _certain(self, problem: _Problem) -> int:
        return self.rule.certain(problem.results(self.rule.distinct))

    def fate(self, number: int) -> Fate | None:
        return self._problems[number].fate

    def accepted(self, number: int) -> int:
        return self._problems[number].results(self.rule.distinct).count(Outcome.CORRECT)

    def repeated(self, number: int) -> int:
        return self._problems[number].results(self.rule.distinct).count(Repeat.REPEATED)

    def members(self) -> Iterator[Place]:
        """Every sample that has been wanted, problem by problem."""
        for number, problem in enumerate(self._problems):
            yield from ((number, index) for index in range(problem.wanted))

    def may_want(self) -> Iterator[Place]:
        """Every sample that has been wanted, or may still be if verdicts turn out badly."""
        for share in self.shares:
            known = 0
            for number in share.problems:
                if share.quota and known >= share.quota.accepted:
                    break
                problem = self._problems[number]
                known += self.accepted(number)
                yield from ((number, i) for i in range(problem.wanted if problem.fate else self.rule.most))
