"""Read published step labels from a JSON Lines file, in PRM800K's form or as prompts, completions and labels.

PRM800K (https://github.com/openai/prm800k) has one line per solution::

    {"question": {"problem": "...", "ground_truth_answer": "..."},
     "label": {"steps": [{"completions": [{"text": "...", "rating": 1}], "chosen_completion": 0}],
               "finish_reason": "solution"}}

A rating of 1 or 0 (neutral) means right and -1 wrong, as its authors count them (Lightman et al. 2023); null is no
label. Each completion that was rated but not chosen becomes a separate response that ends there. The simpler form is
that of stepwise supervision on the hub: ``{"prompt": "...", "completions": ["..."], "labels": [true]}``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from pydantic_core import from_json

from distill.prm.examples import Label
from distill.prm.labels import Labelled, Marked, of_steps
from distill.steps import Split
from distill.thinking import OPEN
from distill.types import Problem
from pipeline.errors import InputError
from pipeline.fingerprint import content_hash

RATINGS: dict[Any, Label] = {1: 1.0, 0: 1.0, -1: 0.0, None: None}
Rated = tuple[str, Label]
"""A step and its rating."""


def _rating(value: Any) -> Label:
    if isinstance(value, int | None) and value in RATINGS:
        return RATINGS[value]
    raise ValueError(f"should be 1, 0, -1 or null, found {value!r}")


def _label(value: Any) -> Label:
    if value is None or (isinstance(value, int | float) and 0 <= value <= 1):
        return None if value is None else float(value)
    raise ValueError(f"should be true, false, null or a share of 1, found {value!r}")


class _Row(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _Completion(_Row):
    text: str
    rating: Annotated[Label, BeforeValidator(_rating)] = None


class _Step(_Row):
    completions: list[_Completion] | None = None
    chosen_completion: int | None = None
    human_completion: _Completion | None = None

    @model_validator(mode="after")
    def _chosen_is_there(self) -> _Step:
        if self.chosen_completion is not None and not 0 <= self.chosen_completion < len(self.completions or ()):
            raise ValueError(
                f"chosen_completion: {self.chosen_completion} of {len(self.completions or ())} completions"
            )
        return self


class _Question(_Row):
    problem: str
    ground_truth_answer: str | None = None


class _Solution(_Row):
    steps: list[_Step]


class _Prm800k(_Row):
    question: _Question
    label: _Solution

    def read(self) -> tuple[str, str, list[list[Rated]]]:
        return self.question.problem, self.question.ground_truth_answer or "", list(_paths(self.label.steps))


class _Stepwise(_Row):
    prompt: str
    completions: list[str]
    labels: list[Annotated[Label, BeforeValidator(_label)]]

    @model_validator(mode="after")
    def _one_label_each(self) -> _Stepwise:
        if len(self.completions) != len(self.labels):
            raise ValueError(f"{len(self.completions)} completions have {len(self.labels)} labels")
        return self

    def read(self) -> tuple[str, str, list[list[Rated]]]:
        return self.prompt, "", [list(zip(self.completions, self.labels, strict=True))]


def read(path: Path, split: Split, thinking: bool = True) -> Iterator[Labelled]:
    """The labelled responses of a file. ``thinking`` puts the steps inside think tags, as reasoning models write them.
    Raises `InputError` with the line number for a line that cannot be read."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield from _labelled(_row(line, f"{path}:{number}"), f"{path}:{number}", split, thinking)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def _row(line: str, where: str) -> _Prm800k | _Stepwise:
    try:
        row = from_json(line)
    except ValueError:
        raise InputError(f"{where}: not JSON") from None
    if not isinstance(row, dict) or not ("question" in row or "prompt" in row):
        raise InputError(f"{where}: expected a row of PRM800K (question, label) or of prompt, completions, labels")
    try:
        return (_Prm800k if "question" in row else _Stepwise).model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        words = first["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
        words = words.replace("Field required", "is missing")
        raise InputError(f"{where}: {': '.join(filter(None, ['.'.join(map(str, first['loc'])), words]))}") from None


def _labelled(row: _Prm800k | _Stepwise, where: str, split: Split, thinking: bool) -> Iterator[Labelled]:
    prompt, reference, paths = row.read()
    name = content_hash(["imported", prompt])[:12]
    problem = Problem(f"{name}", prompt, reference, "math", "imported", origin=where)
    for path in paths:
        response, marked = _joined(path, thinking)
        labels = of_steps(response, split, marked)
        if any(label is not None for label in labels):
            yield Labelled(content_hash(["imported", prompt, response]), problem, response, labels, "imported")


def _paths(steps: Sequence[_Step]) -> Iterator[list[Rated]]:
    """The responses in a labelled solution: one ending with each rated completion that was not chosen and, if every
    step has a chosen or a human completion, these in order."""
    before: list[Rated] = []
    for step in steps:
        rated = [(each.text, each.rating) for each in step.completions or ()]
        chosen = step.chosen_completion
        yield from ([*before, other] for n, other in enumerate(rated) if n != chosen and other[1] is not None)
        if chosen is not None:
            before.append(rated[chosen])
        elif step.human_completion:
            before.append((step.human_completion.text, 1.0))
        else:
            break
    else:
        yield before


def _joined(path: Sequence[Rated], thinking: bool) -> tuple[str, list[Marked]]:
    response, marked = f"{OPEN}\n" if thinking else "", list[Marked]()
    for text, label in path:
        marked.append(((len(response), len(response) + len(text)), label))
        response += f"{text}\n"
    return response.rstrip("\n"), marked
