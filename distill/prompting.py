"""Build the prompt for a problem: system prompt, user template, few-shot examples, and the start of the response.

Holds the settings under ``prompting`` in YAML and the pure function that they define, from a problem to `Asked`.
Rendering involves no randomness and no other problem's turn, so a trace's key is known before anything runs. The
examples have the same order for all problems, so that engines can share the prefix. An example that is the problem
itself would give its answer away; it is skipped and the next one is used. Left out: choosing examples by similarity to
the problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from distill.sources import columns, tables
from distill.sources.published import TraceColumns
from distill.templates import FIELDS, Template
from distill.thinking import join_thinking
from distill.types import Asked, Message, Problem, ThinkingBudget
from pipeline.errors import InputError
from pipeline.mistakes import nearest
from pipeline.stage import File, Settings

Ask = Callable[[Problem], Asked]

TEMPLATES = {
    "plain": "{{ prompt }}",
    # Kojima et al., https://arxiv.org/abs/2205.11916
    "chain_of_thought": "{{ prompt }}\n\nLet's think step by step.",
    # as in the reports of DeepSeek-R1 and Qwen2.5-Math; problems of a published form already contain this instruction
    "boxed": "{{ prompt }}{% if '\\\\boxed' not in prompt %}"
    "\n\nPlease reason step by step, and put your final answer within \\boxed{}.{% endif %}",
}
"""The templates that have a name."""


def plainly(problem: Problem) -> Asked:
    """Ask the problem's own messages, unchanged."""
    return Asked(problem.messages)


# -- settings ---------------------------------------------------------------------------------


def _compiles(names: tuple[str, ...] = FIELDS) -> AfterValidator:
    def check(text: str) -> str:
        Template(text, names)
        return text

    return AfterValidator(check)


def _ready(text: Any) -> Any:
    """Replace the name of a template by the template."""
    if not isinstance(text, str) or "{{" in text or "{%" in text:
        return text
    if text not in TEMPLATES:
        own = "a template of your own must contain {{ prompt }}"
        raise ValueError(f"no template is called {text!r}{nearest(text, TEMPLATES)}; {own}")
    return TEMPLATES[text]


TemplateText = Annotated[str, _compiles()]


class Exemplar(Settings):
    """A question with its answer."""

    prompt: str
    answer: str
    thinking: str = ""


class FileExemplars(Settings):
    """Examples from a JSONL, JSON, CSV or Parquet file, in the file's order. ``prompt``, ``answer`` and ``thinking``
    name columns, or are templates over them. An answer may also contain its thinking, in think tags."""

    file: Annotated[str, File()]
    prompt: columns.Column = "prompt"
    answer: columns.Column = "answer"
    thinking: columns.Column | None = None
    count: Annotated[int | None, Field(ge=1)] = None
    """Examples per problem. Default: all in the file."""


class TrainingExemplars(Settings):
    """Examples from the training problems of the same ``problems`` stage, answered by their references."""

    count: Annotated[int, Field(ge=1)]
    """Examples per problem, taken from the training problems."""
    answer: Annotated[str, _compiles((*FIELDS, "reference"))] = "{{ reference }}"
    """The assistant's turn: a template over the problem's fields and its `reference`."""


def _form(value: Any) -> str:
    if isinstance(value, list):
        return "list"
    from_file = isinstance(value, FileExemplars) or (isinstance(value, dict) and "file" in value)
    return "of a file" if from_file else "of training"  # no YAML key has these names, so error messages leave them out


Exemplars = Annotated[
    Annotated[Annotated[list[Exemplar], Field(min_length=1)], Tag("list")]
    | Annotated[FileExemplars, Tag("of a file")]
    | Annotated[TrainingExemplars, Tag("of training")],
    Discriminator(_form),
]


class PromptingSettings(Settings):
    """Templates are Jinja over `prompt`, `system`, `source`, `difficulty` and `metadata` of the problem."""

    system: TemplateText | None = None
    """System prompt, a template. Default: the problem's own."""
    template: Annotated[TemplateText, BeforeValidator(_ready)] = TEMPLATES["plain"]
    """User turn: a template, or the name of one (`plain`, `chain_of_thought`, `boxed`)."""
    examples: Exemplars | None = None
    """Few-shot examples, as earlier user and assistant turns. A problem is never its own example."""
    prefill: TemplateText = ""
    """Start of the response, given and not sampled; a template: `"<think>\\nOkay"`."""

    @model_validator(mode="after")
    def _asks(self) -> PromptingSettings:
        if not Template(self.template).named:
            raise ValueError("template: names no field of the problem, so all problems would be asked the same")
        return self


def _expand(value: Any) -> Any:
    return {"template": value} if isinstance(value, str) else value


Prompting = Annotated[
    Annotated[PromptingSettings | None, BeforeValidator(_expand)], Field(exclude_if=lambda value: value is None)
]
"""``prompting: boxed`` is short for ``prompting: {template: boxed}``. If unset, it is not part of the fingerprint."""


# -- rendering --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Exemplar:
    """An example as turns; ``asks`` is its question, normalised for comparison (`_folded`)."""

    asks: str
    structure: str | None
    turns: tuple[Message, ...]


class _Asking:
    """The function from a problem to what is asked."""

    def __init__(
        self, settings: PromptingSettings, budget: ThinkingBudget | None, training: Sequence[Problem], key: str
    ) -> None:  # fmt: skip
        self._template, self._budget, self._key = Template(settings.template), budget, key
        self._system = None if settings.system is None else Template(settings.system)
        self._prefill = Template(settings.prefill)
        examples = settings.examples
        pool = () if examples is None else exemplars(examples, training, key)
        self._exemplars = [
            _Exemplar(_folded(problem.prompt), problem.structure, self._turns(problem, answer))
            for problem, answer in pool
        ]
        self._count = len(self._exemplars) if isinstance(examples, list | None) else examples.count
        if self._count is not None and self._count > len(self._exemplars):
            raise InputError(f"{key}.examples: {self._count} asked for, but there are only {len(self._exemplars)}")

    def __call__(self, problem: Problem) -> Asked:
        system = problem.system if self._system is None else self._system.of(problem, f"{self._key}.system")
        first: tuple[Message, ...] = ({"role": "system", "content": system},) if system else ()
        shots = [turn for exemplar in self._shown(problem) for turn in exemplar.turns]
        prefix = self._prefill.of(problem, f"{self._key}.prefill")
        return Asked((*first, *shots, self._turn(problem)), prefix, self._budget)

    def _shown(self, problem: Problem) -> Iterator[_Exemplar]:
        asks = _folded(problem.prompt)
        fit = (e for e in self._exemplars if not _same(e, asks, problem.structure))
        return islice(fit, self._count)

    def _turn(self, problem: Problem) -> Message:
        return {"role": "user", "content": self._template.of(problem, f"{self._key}.template")}

    def _turns(self, problem: Problem, answer: str) -> tuple[Message, ...]:
        return self._turn(problem), {"role": "assistant", "content": answer}


def asking(
    settings: PromptingSettings | None,
    budget: ThinkingBudget | None = None,
    training: Callable[[], Sequence[Problem]] = tuple,
    key: str = "prompting",
) -> Ask:
    """The function from a problem to what is asked.

    ``training`` returns the problems for examples from the training problems; it is called only if the settings ask for
    those. ``key`` is the place of the settings in YAML, for error messages.
    """
    if settings is None:
        return plainly if budget is None else lambda problem: replace(plainly(problem), budget=budget)
    pool = training() if isinstance(settings.examples, TrainingExemplars) else ()
    return _Asking(settings, budget, pool, key)


def exemplars(settings: Any, training: Sequence[Problem], key: str) -> Iterable[tuple[Problem, str]]:
    """(question as a problem, assistant's turn) of each example, in order."""
    if isinstance(settings, FileExemplars):
        return list(_in_file(settings))
    if isinstance(settings, TrainingExemplars):
        template = Template(settings.answer, (*FIELDS, "reference"))
        where = f"{key}.examples.answer"
        return [(problem, template.of(problem, where, reference=problem.reference)) for problem in training]
    return [(_question(e.prompt, "example"), join_thinking(e.thinking, e.answer)) for e in settings]


def _in_file(settings: FileExemplars) -> Iterator[tuple[Problem, str]]:
    trace_columns = TraceColumns(settings.answer, settings.thinking)
    for row in tables.read(settings.file):
        prompt, trace = columns.text(row, settings.prompt), trace_columns.read(row)
        if not trace.answer:
            raise InputError(f"{row.where}: an example needs an answer, and column {settings.answer!r} has none")
        yield replace(_question(prompt, row.stem), origin=row.where), join_thinking(trace.thinking, trace.answer)


def _question(prompt: str, source: str) -> Problem:
    return Problem(source, prompt, "", "", source)


def _same(exemplar: _Exemplar, asks: str, structure: str | None) -> bool:
    """Whether an example is the problem itself: the same words, with or without an instruction around them, or another
    instance of the same structure (`Problem.structure`)."""
    if structure is not None and exemplar.structure == structure:
        return True
    return exemplar.asks in asks or asks in exemplar.asks


def _folded(text: str) -> str:
    """A question with case and white space normalised, and a space at both ends, so that one is found in another only
    as whole words."""
    return f" {' '.join(text.casefold().split())} "
