"""Labels that others gave: a JSON Lines file in PRM800K's form, or one of prompts, completions and labels.

PRM800K (https://github.com/openai/prm800k), one line each::

    {"question": {"problem": "...", "ground_truth_answer": "..."},
     "label": {"steps": [{"completions": [{"text": "...", "rating": 1}], "chosen_completion": 0}],
               "finish_reason": "solution"}}

A rating of 1 and of 0 (neutral) is right and -1 is wrong, as its authors count them (Lightman et al. 2023);
null says nothing. The completions that were rated and not chosen are responses of their own that end there. The
plainer form is stepwise supervision, as on the hub: ``{"prompt": "...", "completions": ["..."], "labels": [true]}``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.prm.examples import Label
from distill.prm.labels import Labelled, Marked, of_steps
from distill.thinking import OPEN
from distill.types import Problem
from pipeline.errors import InputError
from pipeline.fingerprint import content_hash

RATINGS: Mapping[Any, Label] = {1: 1.0, 0: 1.0, -1: 0.0, None: None}
Rated = tuple[str, Label]
"""A step and what it was rated."""


def read(path: Path, rule: str, thinking: bool = True) -> Iterator[Labelled]:
    """The labelled responses of a file; ``thinking`` puts the steps into think tags, as reasoning models have them.
    A line that cannot be read is told with its number."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield from _labelled(_row(line, f"{path}:{number}"), f"{path}:{number}", rule, thinking)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def _row(line: str, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        raise InputError(f"{where}: not JSON") from None
    if not isinstance(row, dict) or not ("question" in row or "prompt" in row):
        raise InputError(f"{where}: expected a row of PRM800K (question, label) or of prompt, completions, labels")
    return row


def _labelled(row: Mapping[str, Any], where: str, rule: str, thinking: bool) -> Iterator[Labelled]:
    try:
        if "question" in row:
            prompt, reference = row["question"]["problem"], str(row["question"].get("ground_truth_answer") or "")
            paths = list(_paths(row["label"]["steps"]))
        else:
            prompt, reference = row["prompt"], ""
            rated = zip(row["completions"], row["labels"], strict=True)
            paths = [[(text, None if label is None else float(label)) for text, label in rated]]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"{where}: not in the form it seems to have: {type(error).__name__}: {error}") from None
    name = content_hash(["imported", prompt])[:12]
    problem = Problem(f"{name}", prompt, reference, "math", "imported", origin=where)
    for path in paths:
        response, marked = _joined(path, thinking)
        labels = of_steps(response, rule, marked)
        if any(label is not None for label in labels):
            yield Labelled(content_hash(["imported", prompt, response]), problem, response, labels, "imported")


def _paths(steps: Sequence[Mapping[str, Any]]) -> Iterator[list[Rated]]:
    """The responses that a labelled solution holds: the one that was gone on with, and each other completion."""
    before: list[Rated] = []
    for step in steps:
        rated = [(c["text"], RATINGS[c["rating"]]) for c in step["completions"] or ()]
        chosen = step.get("chosen_completion")
        yield from ([*before, other] for n, other in enumerate(rated) if n != chosen and other[1] is not None)
        if chosen is not None:
            before.append(rated[chosen])
        elif step.get("human_completion"):
            before.append((step["human_completion"]["text"], 1.0))
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
