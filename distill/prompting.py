"""How a problem is put to a model: system prompt, template, exemplars, the beginning of the response.

What YAML says under ``prompting``, and the pure function it becomes: a problem to what is `Asked`. Rendering
draws nothing by chance and knows no other problem's turn, so a trace's key can be told before anything runs.
Exemplars stand in one order for all problems, so that engines share the prefix. An exemplar that is the
problem itself would give its answer away: it is passed over and the next one taken. Left out: exemplars chosen
by likeness to the problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from distill import columns, tables
from distill.published import TraceColumns
from distill.templates import FIELDS, Template, fields_of
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
    # as DeepSeek-R1 and Qwen2.5-Math are asked in their reports; problems of a published form ask for it themselves
    "boxed": "{{ prompt }}{% if '\\\\boxed' not in prompt %}"
    "\n\nPlease reason step by step, and put your final answer within \\boxed{}.{% endif %}",
}
"""Templates that go by a name."""


def plainly(problem: Problem) -> Asked:
    """What the problem asks, as it is."""
    return Asked(problem.messages)


# -- what YAML may say ------------------------------------------------------------------------


def _compiles(names: tuple[str, ...] = FIELDS) -> AfterValidator:
    def check(text: str) -> str:
        Template(text, names)
        return text

    return AfterValidator(check)


def _ready(text: Any) -> Any:
    """A template, or the name of one."""
    if not isinstance(text, str) or "{{" in text or "{%" in text:
        return text
    if text not in TEMPLATES:
        own = "one of your own has {{ prompt }} in it"
        raise ValueError(f"no template is called {text!r}{nearest(text, TEMPLATES)}; {own}")
    return TEMPLATES[text]


TemplateText = Annotated[str, _compiles()]


class Exemplar(Settings):
    """A question and how it is answered."""

    prompt: str
    answer: str
    thinking: str = ""


class FileExemplars(Settings):
    """Exemplars in a JSONL, JSON, CSV or Parquet file, the first ones first. ``prompt``, ``answer`` and
    ``thinking`` name columns, or are templates over them; an answer may also hold its thinking in think tags."""

    file: Annotated[str, File()]
    prompt: columns.Column = "prompt"
    answer: columns.Column = "answer"
    thinking: columns.Column | None = None
    count: Annotated[int | None, Field(ge=1)] = None
    """Examples per problem. Default: all in the file."""


class TrainingExemplars(Settings):
    """Exemplars among the training problems of the same ``problems`` stage, answered by their references."""

    count: Annotated[int, Field(ge=1)]
    """Examples per problem, taken from the training problems."""
    answer: Annotated[str, _compiles((*FIELDS, "reference"))] = "{{ reference }}"
    """The assistant's turn: a template over the problem's fields and its `reference`."""


def _form(value: Any) -> str:
    if isinstance(value, list):
        return "list"
    from_file = isinstance(value, FileExemplars) or (isinstance(value, dict) and "file" in value)
    return "of a file" if from_file else "of training"  # no key is called so: a mistake's place leaves it out


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
"""``prompting: boxed`` is short for ``prompting: {template: boxed}``. Unset, it is in no fingerprint."""


# -- what becomes of it -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Exemplar:
    """An exemplar as turns; ``asks`` is its question in the form in which questions are compared."""

    asks: str
    structure: str | None
    turns: tuple[Message, ...]


class _Asking:
    """The function that a problem is put through."""

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
            raise InputError(f"{key}.examples: {self._count} asked for, and there are {len(self._exemplars)}")

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
    """How each problem is asked. ``training`` gives the problems that exemplars may be taken from, if they are;
    ``key`` is where the settings stand in YAML."""
    if settings is None:
        return plainly if budget is None else lambda problem: replace(plainly(problem), budget=budget)
    pool = training() if isinstance(settings.examples, TrainingExemplars) else ()
    return _Asking(settings, budget, pool, key)


def exemplars(settings: Any, training: Sequence[Problem], key: str) -> Iterable[tuple[Problem, str]]:
    """(the exemplar's question as a problem, what the assistant says), in order."""
    if isinstance(settings, FileExemplars):
        return list(_in_file(settings))
    if isinstance(settings, TrainingExemplars):
        said = Template(settings.answer, (*FIELDS, "reference"))
        return [(problem, _said(said, problem, f"{key}.examples.answer")) for problem in training]
    return [(_question(e.prompt, "example"), join_thinking(e.thinking, e.answer)) for e in settings]


def _in_file(settings: FileExemplars) -> Iterator[tuple[Problem, str]]:
    said_in = TraceColumns(settings.answer, settings.thinking)
    for row in tables.read(settings.file):
        prompt, said = columns.text(row, settings.prompt), said_in.read(row)
        if not said.answer:
            raise InputError(f"{row.where}: an exemplar has to come to an answer; column {settings.answer!r} has none")
        yield replace(_question(prompt, row.stem), origin=row.where), join_thinking(said.thinking, said.answer)


def _said(template: Template, problem: Problem, key: str) -> str:
    try:
        return template.render({**fields_of(problem), "reference": problem.reference})
    except ValueError as error:
        raise InputError(f"{key}: does not fit problem {problem.name}: {error}") from None


def _question(prompt: str, source: str) -> Problem:
    return Problem(source, prompt, "", "", source)


def _same(exemplar: _Exemplar, asks: str, structure: str | None) -> bool:
    """Whether an exemplar is the problem: its words, with or without an instruction around them, or another
    instance of what is underneath (`Problem.structure`)."""
    if structure is not None and exemplar.structure == structure:
        return True
    return exemplar.asks in asks or asks in exemplar.asks


def _folded(text: str) -> str:
    """A question as its words, whatever their case and spacing; with a space at both ends, so that one is found in
    another by whole words."""
    return f" {' '.join(text.casefold().split())} "
