"""grpo: refine a student on verifiable rewards; every rollout is stored before the update that it feeds.

This file holds the stage's own settings and what is known before it runs; `rl.stages.refining` runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from distill import modelspec, verification
from distill.lacking import lacking
from distill.stages.devices import foreseen, too_large
from pipeline.fingerprint import FileHashes, content_hash
from pipeline.manifest import Manifest
from pipeline.mistakes import nearest
from pipeline.stage import Context, Forecast, Output, Settings, Stage, later
from rl import rewards
from rl.clips import CLIPS
from rl.draws import most
from rl.rewards import Verified
from rl.stages import refining
from rl.stages.beside import TeacherSettings, check_teacher, process_dependency
from rl.stages.options import ProcessSettings, RewardedSettings

Own = TypeVar("Own", bound=Settings)

ABOUT = "A student refined by group-relative policy optimisation (GRPO) on verifiable rewards."


class GrpoSettings(RewardedSettings):
    """Defaults are for a LoRA on a model of 0.5 to 8B parameters; sources in ``docs/design/012-training.md``."""

    group: Annotated[int, Field(ge=2)] = 8
    """Samples per problem; they are compared with each other."""
    baseline: Literal["group", "leave_one_out"] = "group"
    """Compare a reward with the mean of its group, or of the others in its group (RLOO)."""
    scale: Literal["group", "batch", "mean", "none"] = "group"
    """Divide advantages by the standard deviation of the group, by that of the whole step (`batch`), by the mean reward
    of the group (`mean`: hard problems count for more, as in MaxRL), or not at all."""
    loss: Literal["grpo", "dapo", "dr_grpo", "bnpo", "gspo", "cispo"] = "dapo"
    """Clipping and averaging as published (`rl.loss.RECIPES`). Groups with equal rewards are left out of the means; the
    divisor of `dr_grpo` counts every rollout. With `teacher` or `process`, `gspo` is its variant with credit per
    token."""
    refills: Annotated[int, Field(ge=0)] = 0
    """How many times to draw new problems in place of groups without a gradient (DAPO's dynamic sampling)."""
    teacher: TeacherSettings | None = later()
    """Add a teacher's log-ratio to the advantage of every token (a reverse KL term), so that every group teaches."""

    process: ProcessSettings | None = later()
    """A process reward model that rewards each step of a rollout, beside the outcome (dense rewards)."""

    @field_validator("loss", mode="before")
    @classmethod
    def _is_a_loss(cls, value: Any) -> Any:
        if value == "rloo":
            raise ValueError("rloo is a baseline: set `baseline: leave_one_out` and, as published, `scale: none`")
        return value

    @model_validator(mode="after")
    def _clips(self) -> GrpoSettings:
        if self.loss == "cispo" and (self.clip_low is not None or self.clip_cap is not None):
            raise ValueError("cispo has one bound, clip_high (of the weight itself): leave clip_low and clip_cap out")
        if self.loss == "cispo" and self.clip_high is not None and self.clip_high < 1:
            raise ValueError(
                f"clip_high ({self.clip_high}) bounds the weight itself with `loss: cispo`, which is 1 on-policy: take "
                f"1 or more, or leave it out ({CLIPS['cispo'][1]:g})"
            )
        own = CLIPS[self.loss][1]
        if self.clip_cap is not None and self.clip_high is None and self.clip_cap <= 1 + own:
            raise ValueError(
                f"clip_cap ({self.clip_cap}) must be above 1 + clip_high, which is {own} for `loss: {self.loss}`: "
                "raise clip_cap, or set a lower clip_high"
            )
        return self

    @model_validator(mode="after")
    def _has_a_mean(self) -> GrpoSettings:
        weighted = [c for c in self.components if c.weight]
        positive = all(isinstance(c, Verified) and c.weight > 0 and c.values[0] >= 0 for c in weighted)
        if self.scale == "mean" and not (positive and self.overlong != "punish"):
            raise ValueError(
                "scale: mean divides by the mean reward, so no reward may be negative: take verifiers with a weight "
                "and `values` above 0 alone, and not `overlong: punish`"
            )
        return self

    @model_validator(mode="after")
    def _can_be_taught(self) -> GrpoSettings:
        if self.teacher:
            check_teacher(self.teacher, self.sampling.temperature)
        if self.teacher and self.refills:
            raise ValueError("refills and teacher exclude each other: with a teacher no group is without a gradient")
        if self.process and self.refills:
            raise ValueError("refills and process exclude each other: steps differ where outcomes do not")
        return self


def run(context: Context, settings: GrpoSettings) -> Output:
    return refining.refine(context, settings, about=ABOUT, card_settings=settings)


def _rollouts(settings: GrpoSettings) -> int:
    """The largest possible number of rollouts."""
    return settings.steps * settings.prompts * settings.group * (1 + settings.refills)


def refuse(settings: GrpoSettings, figures: Mapping[str, Mapping[str, Any]]) -> str | None:
    every = most([task.weight for task in settings.tasks], settings.prompts, 1 + settings.refills)
    for task, wanted in zip(settings.tasks, every, strict=True):
        known = figures.get(task.stage, {"train": wanted})
        names = known.get("train_sources")
        if names is not None and task.source not in (None, *names):
            return f"problems: {task.stage} has no problem of source {task.source!r}{nearest(task.source, names)}"
        there, removed = known.get("train", 0), known.get("removed")
        if there < wanted:
            left = f", which removed {removed} (why: table `curation`, `distill traces sql`)" if removed else ""
            return (
                f"{wanted} prompts per step, but only {there} problems to train on in {task.stage}{left}; lower "
                f"`prompts`{' or `refills`' if settings.refills else ''}, or take more problems (`train`, --limit)"
            )
    return settings.unwatchable(figures) or lacking(settings) or too_large(settings, samples=True)


def forecast(context: Context, settings: GrpoSettings, expected: Mapping[str, Mapping[str, Any]]) -> Forecast:
    each, begun, tokens = _rollouts(settings) // settings.steps, 0, 0
    for until, longest in [(s.until, s.max_tokens) for s in settings.lengths or ()] + [
        (settings.steps, settings.sampling.max_tokens)
    ]:
        steps = max(0, min(until, settings.steps) - begun)
        tokens, begun = tokens + steps * each * longest, begun + steps
    figures = {"calls": _rollouts(settings), "max_tokens": tokens, **foreseen(settings, samples=True)}
    return Forecast("steps", settings.steps, 0, figures)


def dependencies(settings: GrpoSettings, hashes: FileHashes, upstream: Mapping[str, Manifest]) -> Mapping[str, str]:
    named = rewards.verifiers(settings.components).values()
    every = [
        verification.versions(spec, upstream[task.stage], hashes)
        for spec in named
        for task in (settings.tasks if spec is None else settings.tasks[:1])
    ]
    versions = {name: version for found in every for name, version in found.items()}
    teacher = modelspec.dependency(settings.teacher.model, hashes) if settings.teacher else {}
    process = process_dependency(settings.process, hashes)
    return {**modelspec.dependency(settings.student, hashes), **teacher, **process, "verifiers": content_hash(versions)}


VERSION = 2
"""Of all stages in this loop."""

STAGE = Stage(
    kind="grpo",
    about="refine a student on verifiable rewards",
    settings=GrpoSettings,
    produces="student",
    run=run,
    forecast=forecast,
    dependencies=dependencies,
    refuse=refuse,
    version=VERSION,
)


def relative(
    kind: str,
    about: str,
    settings: type[Own],
    as_grpo: Callable[[Own], GrpoSettings],
    run: Callable[[Context, Own], Output],
) -> Stage:
    """A stage in GRPO's loop whose ``settings`` map to grpo's, which forecast, refuse and fingerprint it."""
    return Stage(
        kind=kind,
        about=about,
        settings=settings,
        produces="student",
        run=run,
        forecast=lambda context, own, expected: forecast(context, as_grpo(own), expected),
        dependencies=lambda own, hashes, upstream: dependencies(as_grpo(own), hashes, upstream),
        refuse=lambda own, figures: refuse(as_grpo(own), figures),
        version=VERSION,
    )
