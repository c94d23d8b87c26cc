"""Turn a labelled response into a training row, with the token at which each step ends.

A reward model reads a response as text with its own chat template and tokenizer, whichever model sampled it. Prompt and
response are tokenized separately, as in sampling, so that the steps of a response are the same after any prompt. If the
template has already opened the thinking, the opening tag is not repeated. The score of a step is read at the last token
that holds a character of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill.steps import last_tokens, spans_of, split
from distill.thinking import opened_twice
from distill.training.batching import Example

Label = float | None
"""The probability that a step is right, 0 or 1 if that is known; None if the step has no label."""


@dataclass(frozen=True, slots=True)
class StepExample(Example):
    """``ends[k]`` is the last token of step k. A labelled step is marked in ``labels_mask`` at the next token, which is
    predicted from that last token. ``start`` is the first token of the response."""

    start: int
    ends: tuple[int, ...]
    labels: tuple[Label, ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of prompt and response, with one more token at the end that predicts nothing, and the ends of steps."""

    ids: tuple[int, ...]
    start: int
    ends: tuple[int, ...]
    texts: tuple[str, ...]
    """The texts of the steps."""


def encode(tokenizer: Any, prompt: str, response: str, rule: str) -> Encoded:
    """Tokenize a rendered prompt and a response, and find the steps of the response by ``rule``."""
    before, _ = spans_of(tokenizer, prompt)
    ids, spans = spans_of(tokenizer, response)
    steps, again = split(response, rule, spans), opened_twice(prompt, response)
    skipped = sum(end <= again for _, end in spans)
    start = len(before)
    ends = [start + at - skipped for at in last_tokens(steps, spans)]
    closing = tokenizer.eos_token_id or 0
    return Encoded((*before, *ids[skipped:], closing), start, tuple(ends), tuple(step.text for step in steps))


def example_of(key: str, encoded: Encoded, labels: Sequence[Label]) -> StepExample | None:
    """A row for training; None if no step is labelled. If several steps end in one token, only the last is used."""
    last = {end: k for k, end in enumerate(encoded.ends)}
    kept = tuple(
        label if last[end] == k else None for k, (end, label) in enumerate(zip(encoded.ends, labels, strict=True))
    )
    marked = {end + 1 for end, label in zip(encoded.ends, kept, strict=True) if label is not None}
    if not marked:
        return None
    mask = tuple(t in marked for t in range(len(encoded.ids)))
    return StepExample(key, encoded.ids, mask, encoded.start, encoded.ends, kept)


def unlabelled(key: str, encoded: Encoded) -> StepExample:
    """A row for scoring, with all of its steps marked."""
    found = example_of(key, encoded, [0.0] * len(encoded.ends))
    assert found is not None
    return found
