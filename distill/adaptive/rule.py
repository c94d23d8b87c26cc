"""When one problem has had enough samples: a pure function of the verdicts of its samples, in their order.

A sample is wanted if and only if the verdicts of those with lower index do not end the problem. So which
samples are made depends neither on time nor on batch size nor on where a run was killed; and raising a limit
adds samples to those that are there. `Rule.certain` says how many are wanted whatever the verdicts that are
still out may be: so many can be asked for at once without ever making one in vain.

Sampling until so many are correct, up to a maximum, is the uniform form of difficulty-aware rejection sampling
(DART-Math, Tong et al. 2024, arXiv:2407.13690): hard problems get more tries. An unverifiable sample is a
try, and neither right nor wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from distill.types import Outcome

ERROR = 0.05
"""The chance, at most, that a problem with a pass rate of ``hopeless`` or more is given up."""


class Repeat(StrEnum):
    """A correct sample that brings nothing new, where the accepted ones are to be distinct."""

    REPEATED = "repeated"  # an earlier correct sample says the same
    OPEN = "open"  # a sample before it whose verdict is out may yet say the same


Result = Outcome | Repeat
Verdicts = tuple[Result | None, ...]
"""Of samples 0, 1, 2...; None where it is still out."""


class Fate(StrEnum):
    """How a problem ended."""

    SATISFIED = "satisfied"  # as many accepted as wanted
    TRIVIAL = "trivial"  # the first ones all correct: left at these
    HOPELESS = "hopeless"  # too seldom correct, or never in all tries
    UNVERIFIABLE = "unverifiable"  # none of the first ones, or of all, could be judged
    SHORT = "short"  # all tries made, some accepted, fewer than wanted


@dataclass(frozen=True, slots=True)
class Counts:
    correct: int = 0
    incorrect: int = 0
    unverifiable: int = 0
    repeated: int = 0

    def plus(self, result: Result) -> Counts:
        return Counts(
            self.correct + (result is Outcome.CORRECT),
            self.incorrect + (result is Outcome.INCORRECT),
            self.unverifiable + (result is Outcome.UNVERIFIABLE),
            self.repeated + (result is Repeat.REPEATED),
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """``accepted`` correct samples are wanted, in ``most`` tries. Left earlier is a problem of which the
    first ``trivial`` are all correct or the first ``unverifiable`` cannot be judged, and one whose pass rate
    is below ``hopeless`` by the test of `given_up_at`; each None for never. With ``distinct`` a repeat is not
    accepted once more; it is correct all the same."""

    accepted: int
    most: int
    trivial: int | None = None
    hopeless: float | None = None
    unverifiable: int | None = None
    distinct: bool = False

    def fate(self, seen: Counts) -> Fate | None:
        """What such verdicts of the first samples decide; None where another sample is wanted."""
        right, wrong, unknown = seen.correct + seen.repeated, seen.incorrect, seen.unverifiable
        if seen.correct >= self.accepted:
            return Fate.SATISFIED
        if self.trivial and right >= self.trivial and not wrong + unknown:
            return Fate.TRIVIAL
        if self.unverifiable and unknown >= self.unverifiable and not right + wrong:
            return Fate.UNVERIFIABLE
        if self.hopeless and right <= given_up_at(self.hopeless, right + wrong):
            return Fate.HOPELESS
        if right + wrong + unknown < self.most:
            return None
        return Fate.SHORT if right else Fate.HOPELESS if wrong else Fate.UNVERIFIABLE

    def ended(self, verdicts: Sequence[Result | None]) -> tuple[int, Fate] | None:
        """(how many samples were wanted, how the problem ended); None where that is open."""
        seen = Counts()
        for tries, outcome in enumerate([*verdicts, None]):
            if fate := self.fate(seen):
                return tries, fate
            if outcome is None:
                return None
            seen = seen.plus(outcome)
        return None

    def certain(self, verdicts: Sequence[Result | None]) -> int:
        """How many samples, the first ones, are wanted whatever the verdicts that are out will be: the fewest
        that the problem can come to. All of them where it has ended."""
        return _certain(self, tuple(verdicts))


@lru_cache(1 << 16)
def _certain(rule: Rule, verdicts: Verdicts) -> int:
    possible, tries = {Counts()}, 0
    while not any(map(rule.fate, possible)):
        result = verdicts[tries] if tries < len(verdicts) else None
        possible = {seen.plus(each) for seen in possible for each in _may_be(result, rule.distinct)}
        tries += 1
    return tries


def _may_be(result: Result | None, distinct: bool) -> Sequence[Result]:
    if result is None:
        return [*Outcome, Repeat.REPEATED] if distinct else [*Outcome]
    return [Outcome.CORRECT, Repeat.REPEATED] if result is Repeat.OPEN else [result]


def given_up_at(rate: float, judged: int) -> int:
    """At so many judged samples, or fewer correct, a problem is given up; -1 where it never is.

    An exact sequential test of "the pass rate is at least ``rate``": after each sample the smallest counts
    are given up as long as the chance of ever having done so, at exactly that rate, stays within `ERROR`
    (alpha spending, Lan and DeMets 1983, spent as early as possible). A confidence bound looked at after
    every sample would promise less than it says. With a higher rate the chance is smaller.
    """
    return _limits(rate, max(64, 1 << judged.bit_length()))[judged]


@lru_cache(256)
def _limits(rate: float, most: int) -> tuple[int, ...]:
    limits, spent = [-1], 0.0
    going = [1.0]  # by number of correct ones: the chance of being there, not given up so far
    for _ in range(most):
        stay, step = [chance * (1 - rate) for chance in going], [chance * rate for chance in going]
        going = [a + b for a, b in zip([*stay, 0.0], [0.0, *step], strict=True)]
        limit = -1
        while limit + 1 < len(going) and spent + going[limit + 1] <= ERROR:
            limit += 1
            spent, going[limit] = spent + going[limit], 0.0
        limits.append(limit)
    return tuple(limits)
