"""The settings under ``until`` of a `generate` stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from distill.adaptive.course import Course, Quota
from distill.adaptive.rule import Rule
from distill.stages.common import RewardModel, VerifierSpec
from distill.types import Problem
from pipeline.errors import InputError
from pipeline.stage import Operational, Settings, later

Count = Annotated[int, Field(ge=1)]


class QuotaSettings(Settings):
    """The number of accepted traces wanted from the problems of a source, a difficulty, both, or (neither) from all."""

    accepted: Count
    """Correct traces wanted in total. The last problem may add up to its `accepted` less one."""
    source: str | None = None
    difficulty: int | None = None


class UntilSettings(Settings):
    """Sample each problem until enough of its traces are correct, judging them as they come.

    A problem belongs to the first quota that covers it. With quotas, problems that none covers are not sampled, nor
    those that are left when their quota is full. A later `verify` stage reuses the verdicts made here, if it names
    the same verifier.
    """

    accepted: Count
    """Correct traces wanted per problem."""
    most: Annotated[int, Field(ge=1, le=1024)]
    """Maximum number of tries per problem."""
    trivial: Count | None = None
    """A problem ends at this many samples if all of them are correct."""
    hopeless: Annotated[float | None, Field(gt=0, lt=1)] = None
    """A problem is given up early if its pass rate is below this. One above it is given up with a probability of at
    most 5%."""
    unverifiable: Count | None = 4
    """A problem ends at this many samples if none of them can be judged."""
    distinct: Literal["answer", "text"] | None = later()
    """Count correct traces with the same `answer`, or the same thinking and answer (`text`), only once."""
    verifier: Annotated[VerifierSpec | None, RewardModel] = None
    """As in `verify`. Default: each problem's own verifier."""
    quotas: list[QuotaSettings] = Field(default_factory=list)
    """Traces wanted per source and difficulty, filled in the order of the problems. Default: all problems are
    sampled."""
    workers: Annotated[int, Operational(), Field(ge=1)] = 2
    """Processes that verify."""

    @model_validator(mode="after")
    def _fits(self) -> UntilSettings:
        if self.accepted > self.most:
            raise ValueError(f"accepted: {self.accepted} correct traces cannot come from most: {self.most} tries")
        if self.trivial and self.trivial >= self.accepted:
            raise ValueError(f"trivial: {self.trivial} must be less than accepted: {self.accepted} to save anything")
        return self

    def rule(self) -> Rule:
        return Rule(self.accepted, self.most, self.trivial, self.hopeless, self.unverifiable, self.distinct is not None)

    def course(self, problems: Sequence[Problem]) -> Course:
        """Raises `InputError` for a quota that covers no problem: a source's name is easily misspelled."""
        quotas = [Quota(quota.accepted, quota.source, quota.difficulty) for quota in self.quotas]
        course = Course(problems, self.rule(), quotas)
        for number, share in enumerate(course.shares):
            if share.quota and not share.problems:
                sources = ", ".join(sorted({problem.source for problem in problems}))
                raise InputError(
                    f"until.quotas.{number} ({share.quota}): covers no problem that earlier quotas leave; "
                    f"the sources are {sources}"
                )
        return course
