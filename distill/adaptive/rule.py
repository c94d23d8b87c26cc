"""Decides when one problem has enough samples: a pure function of the verdicts of its samples, in their order.

A sample is wanted if and only if the verdicts of the samples with lower indices do not end the problem. So the samples
that are made do not depend on timing, on the batch size or on where a run was killed, and raising a limit only adds
samples. `Rule.certain` returns how many are wanted whatever the open verdicts turn out to be: this many can be
requested at once without ever making one in vain.

Sampling until a number of samples is correct, up to a maximum, is the uniform form of difficulty-aware rejection
sampling (DART-Math, Tong et al. 2024, arXiv:2407.13690): hard problems get more tries. An unverifiable sample counts as
a try, but neither as correct nor as incorrect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from distill.types import Outcome

ERROR = 0.05
"""The maximum probability that a problem with a pass rate of ``hopeless`` or more is given up."""


class Repeat(StrEnum):
    """A correct sample that adds nothing, or may not, if accepted samples must be distinct."""

    REPEATED = "repeated"  # an earlier correct sample says the same
    OPEN = "open"  # an earlier sample whose verdict is open may turn out to say the same


Result = Outcome | Repeat
Verdicts = tuple[Result | None, ...]
"""Of samples 0, 1, 2...; None for one that is still open."""


class Fate(StrEnum):
    """How a problem ended."""

    SATISFIED = "satisfied"  # as many accepted as wanted
    TRIVIAL = "trivial"  # the first ones were all correct: no more are needed
    HOPELESS = "hopeless"  # too rarely correct, or never in all tries
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
    """``accepted`` correct samples are wanted, in at most ``most`` tries. A problem ends earlier if its first
    ``trivial`` samples are all correct, if its first ``unverifiable`` samples cannot be judged, or if its pass rate
    is below ``hopeless`` by the test of `given_up_at`; None turns each off. With ``distinct``, a repeat is not
    accepted again, but still counts as correct."""

    accepted: int
    most: int
    trivial: int | None = None
    hopeless: float | None = None
    unverifiable: int | None = None
    distinct: bool = False

    def fate(self, seen: Counts) -> Fate | None:
        """How the verdicts of the first samples end the problem; None if another sample is wanted."""
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
        """(how many samples were wanted, how the problem ended); None while that is open."""
        seen = Counts()
        for tries, outcome in enumerate([*verdicts, None]):
            if fate := self.fate(seen):
                return tries, fate
            if outcome is None:
                return None
            seen = seen.plus(outcome)
        return None

    def certain(self, verdicts: Sequence[Result | None]) -> int:
        """How many samples are wanted whatever the open verdicts turn out to be: the fewest that the problem can
        need. If it has ended, all that it needed."""
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
    """The number of correct samples among ``judged`` ones at or below which a problem is given up; -1 if it never is.

    An exact sequential test of "the pass rate is at least ``rate``": after each sample, problems with the smallest
    counts are given up as long as the probability of ever giving up, at exactly that rate, stays within `ERROR`
    (alpha spending, Lan and DeMets 1983, spent as early as possible). A confidence bound that is checked after
    every sample would exceed its stated error. At a higher rate, the probability is smaller.
    """
    return _limits(rate, max(64, 1 << judged.bit_length()))[judged]


@lru_cache(256)
def _limits(rate: float, most: int) -> tuple[int, ...]:
    limits, spent = [-1], 0.0
    going = [1.0]  # by number of correct samples: the probability of having that many and not being given up yet
    for _ in range(most):
        stay, step = [chance * (1 - rate) for chance in going], [chance * rate for chance in going]
        going = [a + b for a, b in zip([*stay, 0.0], [0.0, *step], strict=True)]
        limit = -1
        while limit + 1 < len(going) and spent + going[limit + 1] <= ERROR:
            limit += 1
            spent, going[limit] = spent + going[limit], 0.0
        limits.append(limit)
    return tuple(limits)
