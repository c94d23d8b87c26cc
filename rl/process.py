"""A process reward model in the loop: step rewards of rollouts, each at the last token of its step.

The model reads the prompt and the response as text, so what it says depends on nothing but the rollout, and a killed
step is rewarded again to the same values. What becomes of the rewards is `rl.step_credit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from distill.prm.scorer import StepScorer
from distill.steps import Span, last_tokens, spans_of, splitter
from distill.types import Completion, Finish
from rl.step_credit import StepReward
from rl.update import Rollout


@dataclass(frozen=True)
class ProcessRewards:
    """An `rl.step_credit.StepRewards`; ``tokenizer`` is the policy's."""

    scorer: StepScorer
    tokenizer: Any

    def __call__(self, rollouts: Sequence[Rollout]) -> list[list[StepReward]]:
        texts = [self._text(rollout.completion) for rollout in rollouts]
        asked = [(r.completion.prompt, text) for r, (text, _) in zip(rollouts, texts, strict=True)]
        scores = self.scorer.score(asked)
        steps = splitter(self.scorer.rule, self.tokenizer)
        return [
            list(zip(last_tokens(steps(text), spans), row, strict=True))
            for (text, spans), row in zip(texts, scores, strict=True)
        ]

    def _text(self, completion: Completion) -> tuple[str, list[Span]]:
        """What was sampled, as text without the end of the turn, and where its tokens lie in it."""
        ended = completion.finish in (Finish.STOP, Finish.EMPTY)
        return text_of(self.tokenizer, completion.token_ids[:-1] if ended else completion.token_ids)


def text_of(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[Span]]:
    """The text of token ids, and the span of each in it."""

    def decoded(begin: int, end: int) -> str:
        text: str = tokenizer.decode(ids[begin:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    text = decoded(0, len(ids))
    again, spans = spans_of(tokenizer, text)
    if again == list(ids):
        return text, spans
    return text, list(pairwise(_edges(decoded, len(ids))))  # sampled otherwise than it is cut


def _edges(decoded: Callable[[int, int], str], count: int) -> Iterator[int]:
    """Where each token ends, by what it adds to the text of the few before it: to decode all of them for each would
    take seconds a response. A character of several tokens is the last one's."""
    begin = whole = known = edge = 0
    yield 0
    for end in range(1, count + 1):
        text = decoded(begin, end)
        if end == count or not text.endswith("\N{REPLACEMENT CHARACTER}"):
            edge += len(text) - known
            begin, whole = whole, end
            known = len(decoded(begin, whole))
        yield edge
