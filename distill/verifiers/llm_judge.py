"""`judge`: a language model judges the answer by a reference or a rubric, or compares it with the reference.

    judge:
      model: deepseek-chat
      engine: {kind: openai, base_url: https://api.deepseek.com/v1, key_from: DEEPSEEK_API_KEY, max_cost: 5.0, ...}
      mode: reference            # or `rubric` (grades from 0 to 10), or `pairwise` (against the reference response)

It judges many answers at a time through any engine, in the caller's process (`distill.verifiers.asking`). A reply that
cannot be read, a judge that was cut off, votes that disagree and a preference that changes with the order are all
`unverifiable`, with the texts in the evidence. The version covers the model's identity, so after a change of model,
rubric or weights everything is judged again.

A judge's verdict is an opinion, and the text it reads may manipulate it (`distill.verifiers.judge_prompt`). Check
it with a second `verify` stage that applies rules to the same traces. Not supported: few-shot examples, several turns,
pairs of two traces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from distill import engines
from distill.engines.options import EngineOptions, SamplingSettings, TransformersOptions
from distill.modelspec import Model
from distill.thinking import Response
from distill.types import Completion, Outcome, Problem, Request, Verdict
from distill.verifiers import judge_votes
from distill.verifiers.base import Note, silent
from distill.verifiers.judge_prompt import PAIRWISE, REFERENCE, Grades, Rubric, Words
from distill.verifiers.settings import settings_of
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes, content_hash
from pipeline.stage import Operational, Settings, marked

if TYPE_CHECKING:
    from distill.spending import Spending
    from distill.verifiers.judge_session import JudgeSession

PIECES = {
    "reference": ("problem", "reference", "answer", "thinking"),
    "rubric": ("problem", "reference", "answer", "thinking"),
    "pairwise": ("problem", "first", "second"),
}
"""The material of each mode, in the order in which it is shown."""
UNASKED = {"reference": {"thinking"}, "rubric": {"reference", "thinking"}}
"""The material that is shown only if the rubric uses it."""
RUBRICS = {"reference": REFERENCE, "pairwise": PAIRWISE, "rubric": ""}
WORDS = {"reference": ("correct", "incorrect", "unsure"), "pairwise": ("first", "second", "tie")}


class JudgeSampling(SamplingSettings):
    """Greedy by default. ``max_tokens`` includes the judge's thinking."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    max_tokens: Annotated[int, Field(ge=1)] = 1024


class JudgeSettings(Settings):
    model: str
    """A directory, a hub id, `embedded:NAME`, or the model's name at the endpoint."""
    engine: EngineOptions = TransformersOptions()
    mode: Literal["reference", "rubric", "pairwise"] = "reference"
    """`reference`: does the answer have the same result? `rubric`: grades from 0 to 10. `pairwise`: is it no worse than
    the reference, asked in both orders?"""
    rubric: str = ""
    """What to look at: a Jinja template over problem, reference, answer and thinking (pairwise: problem, first and
    second). Fields it does not use are appended, except the thinking and, in mode `rubric`, the reference."""
    criteria: Annotated[dict[str, str], Field(default_factory=dict)]
    """For `rubric`: criteria by name, each with its question. Each gets a grade; the score is their mean."""
    threshold: Annotated[float, Field(ge=0, le=10)] = 7.0
    """For `rubric`: the minimum mean grade of a correct answer."""
    samples: Annotated[int, Field(ge=1)] = 1
    """Number of votes. More than half must agree; several need a temperature above 0."""
    sampling: JudgeSampling = JudgeSampling()
    longest: Annotated[int, Field(ge=1)] = 20_000
    """Maximum characters of an answer (and of its thinking, if shown). A longer one is unverifiable, without a call."""
    seed: int = 0

    @model_validator(mode="after")
    def _fits(self) -> JudgeSettings:
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError("samples above 1 need a sampling.temperature above 0: greedy votes are all the same")
        if self.mode == "rubric" and not self.rubric and not self.criteria:
            raise ValueError("mode rubric needs a rubric or criteria")
        if self.criteria and self.mode != "rubric":
            raise ValueError("criteria need mode rubric")
        if any(":" in name or not name.strip() for name in self.criteria):
            raise ValueError("a criterion's name must not be empty or contain a colon")
        return self


class Judge:
    """The `judge` verifier, with `JudgeSettings`. `distill.verifiers.base` describes the protocol."""

    name: ClassVar[str] = "judge"
    reads_files: ClassVar[bool] = True
    spends: ClassVar[bool] = True
    settings_model: ClassVar[type[JudgeSettings]] = JudgeSettings

    def __init__(self, hashes: FileHashes | None = None, **settings: Any) -> None:
        self.settings = settings_of(self.name, JudgeSettings, settings)
        mode = self.settings.mode
        try:
            self.rubric = Rubric(self.settings.rubric or RUBRICS[mode], PIECES[mode])
        except InputError as error:
            raise InputError(f"verifier 'judge': {error}") from None
        self.form = Grades(self.settings.criteria) if mode == "rubric" else Words(*WORDS[mode])
        self._hashes = hashes or FileHashes()

    @cached_property
    def model(self) -> Model:
        return engines.standing_model(self.settings.model, self.settings.engine, self._hashes)

    @cached_property
    def version(self) -> str:
        return f"2+{content_hash(self.model.identity)[:12]}"

    @property
    def reads_thinking(self) -> bool:
        return "thinking" in self.rubric.named

    @cached_property
    def settled(self) -> dict[str, Any]:
        """The settings that can change a verdict, without defaults and operational settings."""
        data = self.settings.model_dump(mode="json", exclude_defaults=True)
        for path, _, _ in marked(self.settings, Operational):
            data.get(str(path[0]), {}).pop(path[-1], None)
        if "engine" in data:
            data["engine"]["kind"] = self.settings.engine.kind
        return data

    @property
    def most(self) -> Mapping[str, float]:
        calls = self.settings.samples * (2 if self.settings.mode == "pairwise" else 1)
        tokens = calls * self.settings.sampling.max_tokens
        return {"calls": calls, "max_tokens": tokens}

    @property
    def account(self) -> str:
        """The name of its spending account within that of the stage that asks it (`distill.spending`)."""
        return f"judge-{content_hash(self.settled)[:12]}"

    def quick(self, problem: Problem, trace: Response) -> Verdict | None:
        """The verdict on an answer that does not need the judge, or None."""
        settings = self.settings
        if not problem.reference.strip() and (settings.mode != "rubric" or "reference" in self.rubric.named):
            return Verdict.unverifiable("there is no reference")
        if not trace.answer.strip() and not self.reads_thinking:
            return Verdict.incorrect("the answer is empty")
        longest = max(len(trace.answer), len(trace.thinking))
        if longest > settings.longest:
            return Verdict.unverifiable(f"too long to be judged: {longest} characters, at most {settings.longest}")
        if settings.mode == "pairwise" and trace.answer.strip() == problem.reference.strip():
            return Verdict(Outcome.CORRECT, 0.5, "the same text as the reference response")
        return None

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        """One verdict, with an engine opened for it alone."""
        if quick := self.quick(problem, trace):
            return quick
        with closing(self.open()) as session:
            ((_, verdict),) = session.judge([(None, problem, trace)])
        return verdict

    def open(self, note: Note = silent, spending: Spending | None = None) -> JudgeSession:
        from distill.verifiers.judge_session import JudgeSession

        return JudgeSession(self, note, spending)

    def requests(self, problem: Problem, trace: Response) -> tuple[Request, ...]:
        """All requests about one answer, vote by vote. Equal questions have equal keys."""
        sampling = self.settings.sampling.sampling(self.settings.seed)
        prompts = [self.rubric.prompt(pieces, self.form.question) for pieces in self._materials(problem, trace)]
        return tuple(
            Request(content_hash(["judge", self.version, prompt, n]), ({"role": "user", "content": prompt},), sampling)
            for n in range(self.settings.samples)
            for prompt in prompts
        )

    def _materials(self, problem: Problem, trace: Response) -> list[dict[str, str]]:
        """The pieces to show, one dict per question. `pairwise` shows the candidate first, then second."""
        mode, answer, reference = self.settings.mode, trace.answer, problem.reference
        if mode == "pairwise":
            orders = ((answer, reference), (reference, answer))
            return [{"problem": problem.prompt, "first": first, "second": second} for first, second in orders]
        texts = (problem.prompt, reference, answer, trace.thinking)
        unasked = UNASKED[mode] - self.rubric.named
        return [{name: text for name, text in zip(PIECES[mode], texts, strict=True) if name not in unasked}]

    def verdict(self, completions: Sequence[Completion], paid: Sequence[Completion]) -> Verdict:
        """The verdict from the replies to `requests`. ``paid`` are the replies whose cost counts for this answer."""
        settings = self.settings
        each = len(completions) // settings.samples
        groups = [completions[n : n + each] for n in range(0, len(completions), each)]
        votes = [judge_votes.vote(group, self.form, settings.threshold) for group in groups]
        evidence = {"model": settings.model, "mode": settings.mode, "spent": judge_votes.spent_on(paid)}
        return judge_votes.verdict(votes, evidence, sum(completion.seconds for completion in paid))
