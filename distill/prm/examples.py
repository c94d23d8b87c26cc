"""From a labelled response to a row for the trainer: where each step ends among the tokens.

A reward model reads a response as text, in its own chat template and tokens, whoever sampled it. Prompt and response
are cut into tokens apart, as whoever samples sees them, so the steps of a response are the same behind any prompt; a
tag that the template has opened already is not opened again. The score of a step is read at the last token that holds
a character of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill.steps import last_tokens, spans_of, split
from distill.thinking import opened_twice
from distill.training.batching import Example

Label = float | None
"""The chance that a step is right, 0 or 1 where that is known; None where nothing is said of it."""


@dataclass(frozen=True, slots=True)
class StepExample(Example):
    """``ends[k]`` is the last token of step k. A labelled step is marked in ``labels_mask`` at the token after it,
    whose source it is. ``start`` is the first token of the response."""

    start: int = 0
    ends: tuple[int, ...] = ()
    labels: tuple[Label, ...] = ()


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of prompt and response, one more at the end that predicts nothing, and where steps end."""

    ids: tuple[int, ...]
    start: int
    ends: tuple[int, ...]
    texts: tuple[str, ...]
    """The steps themselves."""


def encode(tokenizer: Any, prompt: str, response: str, rule: str) -> Encoded:
    """``prompt`` is rendered, up to where the response begins."""
    before, _ = spans_of(tokenizer, prompt)
    ids, spans = spans_of(tokenizer, response)
    steps, again = split(response, rule, spans), opened_twice(prompt, response)
    skipped = sum(end <= again for _, end in spans)
    start = len(before)
    ends = [start + at - skipped for at in last_tokens(steps, spans)]
    closing = tokenizer.eos_token_id or 0
    return Encoded((*before, *ids[skipped:], closing), start, tuple(ends), tuple(step.text for step in steps))


def example_of(key: str, encoded: Encoded, labels: Sequence[Label]) -> StepExample | None:
    """A row to learn from; None where no step is labelled. Of steps that end in one token the last is learned."""
    last = {end: k for k, end in enumerate(encoded.ends)}
    kept = tuple(
        label if last[end] == k else None for k, (end, label) in enumerate(zip(encoded.ends, labels, strict=True))
    )
    marked = {end + 1 for end, label in zip(encoded.ends, kept, strict=True) if label is not None}
    if not marked:
        return None
    mask = tuple(t in marked for t in range(len(encoded.ids)))
    return StepExample(key, encoded.ids, mask, 1.0, encoded.start, encoded.ends, kept)


def unlabelled(key: str, encoded: Encoded) -> StepExample:
    """A row to be scored: all of its steps are asked for."""
    found = example_of(key, encoded, [0.0] * len(encoded.ends))
    assert found is not None
    return found
