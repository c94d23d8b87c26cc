"""How likely a model finds each step, as a step scorer that nobody has to train.

The probability of a step is that of its least likely token, under the model at temperature 1: where a line of working
follows from those before it a good model is sure of every token, and a slip shows in one. (The product over the
tokens would punish long steps, the mean would hide the slip.) A larger model scores for a smaller one; it reads the
text with its own tokenizer, so the two need not share one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from distill.modelspec import Model
from distill.pretrained import load
from distill.steps import needs_tokens, split
from distill.turns import rendered
from distill.types import Message
from pipeline.errors import InputError

ROWS = 64
"""Responses read at a time."""
LEAST = 1e-6


class Likelihood:
    """A `distill.prm.scorer.StepScorer`."""

    def __init__(self, network: Any, tokenizer: Any, rule: str = "line") -> None:
        if not tokenizer.is_fast:
            raise InputError("the likelihood of steps needs a fast tokenizer, which tells where tokens stand")
        if needs_tokens(rule):
            raise InputError(f"the likelihood of steps needs a rule of text, not {rule}")
        self.rule = rule
        self._network, self._tokenizer = network.eval().requires_grad_(False), tokenizer

    def render(self, messages: Sequence[Message]) -> str:
        """A prompt as this model reads it."""
        return rendered(self._tokenizer, messages)

    def score(self, asked: Sequence[tuple[str, str]]) -> list[list[float]]:
        order = sorted(range(len(asked)), key=lambda at: len(asked[at][0]) + len(asked[at][1]))
        found: dict[int, list[float]] = {}
        for at in range(0, len(order), ROWS):
            numbers = order[at : at + ROWS]
            found |= dict(zip(numbers, self._portion([asked[n] for n in numbers]), strict=True))
        return [found[at] for at in range(len(asked))]

    def _portion(self, asked: Sequence[tuple[str, str]]) -> Iterator[list[float]]:
        prompts = [self._tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt, _ in asked]
        read = [self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True) for _, text in asked]
        logprobs = self._logprobs(prompts, [each["input_ids"] for each in read])
        for (_, text), tokens, row in zip(asked, read, logprobs, strict=True):
            yield [
                max(LEAST, min(1 - LEAST, min(_inside(tokens["offset_mapping"], row, step.start, step.end))))
                for step in split(text, self.rule)
            ]

    def _logprobs(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[list[float]]:
        """The probability of each token of the responses, after its prompt."""
        import torch

        rows = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=self._network.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=ids.device)
        with torch.inference_mode():
            logits = self._network(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
            each = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0].exp()
        begins = [len(prompt) - 1 for prompt in prompts]
        ends = [begin + len(response) for begin, response in zip(begins, responses, strict=True)]
        return [row[begin:end].tolist() for row, begin, end in zip(each, begins, ends, strict=True)]


def _inside(spans: Sequence[tuple[int, int]], values: Sequence[float], start: int, end: int) -> list[float]:
    """The values of the tokens that overlap a span; 1 where there is none."""
    return [value for (a, b), value in zip(spans, values, strict=True) if a < end and b > start] or [1.0]


def open_likelihood(model: Model, rule: str = "line") -> Likelihood:
    return Likelihood(*load(model), rule)
