"""A step scorer that needs no training: how likely a model finds each step.

The probability of a step is that of its least likely token, under the model at temperature 1. Where a line of working
follows from those before it, a good model is sure of every token, and a mistake shows in a single one. (The product
over the tokens would punish long steps; the mean would hide the mistake.) A larger model can score for a smaller one:
it reads the text with its own tokenizer, so the two need not share one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from math import exp
from typing import Any

from distill.steps import Span, needs_tokens, spans_of, split
from distill.thinking import opened_twice
from distill.training.batching import Example, from_tokens
from distill.training.fixed import fixed
from distill.training.passes import likelihoods
from distill.turns import rendered
from distill.types import Message
from pipeline.errors import InputError

BATCH_TOKENS = 8192
LEAST = 1e-6


class Likelihood:
    """A `distill.prm.scorer.StepScorer`."""

    def __init__(self, network: Any, tokenizer: Any, rule: str = "line") -> None:
        if needs_tokens(rule):
            raise InputError(f"the likelihood of steps needs a rule that splits text, not {rule}")
        self.rule = rule
        self._network, self._tokenizer = fixed(network), tokenizer

    def render(self, messages: Sequence[Message]) -> str:
        """A prompt as this model reads it."""
        return rendered(self._tokenizer, messages)

    def score(self, asked: Sequence[tuple[str, str]]) -> list[list[float]]:
        """Score in packed passes, equal texts once, without ever holding the logits of all of them."""
        read = {pair: self._read(str(n), *pair) for n, pair in enumerate(dict.fromkeys(asked))}
        rows = [row for row, _ in read.values() if row]
        logprobs = likelihoods(self._network, rows, BATCH_TOKENS)
        known = {row.key: logs for row, logs in zip(rows, logprobs, strict=True)}
        steps = {pair: self._steps(pair[1], spans, known[row.key]) for pair, (row, spans) in read.items() if row}
        return [steps.get(pair, []) for pair in asked]

    def _read(self, key: str, prompt: str, text: str) -> tuple[Example | None, list[Span]]:
        """A row, or None if there is no token, and the spans of the response's tokens. A tag that both prompt and text
        open is read only once."""
        before, _ = spans_of(self._tokenizer, prompt)
        ids, spans = spans_of(self._tokenizer, text)
        twice = opened_twice(prompt, text)
        again = sum(end <= twice for _, end in spans)
        return from_tokens(key, before, ids[again:]) if ids[again:] else None, spans[again:]

    def _steps(self, text: str, spans: Sequence[Span], logs: Sequence[float]) -> list[float]:
        """The lowest probability among the tokens that overlap each step; 1 for a step without tokens."""
        starts, ends = [start for start, _ in spans], [end for _, end in spans]
        steps = split(text, self.rule)
        inside = [logs[bisect_right(ends, step.start) : bisect_left(starts, step.end)] for step in steps]
        return [max(LEAST, min(1 - LEAST, exp(min(part, default=0.0)))) for part in inside]
