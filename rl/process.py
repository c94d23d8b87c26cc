"""A process reward model in the loop: step rewards of rollouts, each at the last token of its step.

The model reads the prompt and the response as text, so its scores depend only on the rollout, and a killed step gets
the same rewards again. `rl.step_credit` turns the rewards into advantages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from distill.prm.scorer import StepScorer
from distill.steps import Span, last_tokens, spans_of, splitter
from distill.training.learner import Learner, OnAllRanks
from distill.types import Completion, Finish
from rl.step_credit import StepReward
from rl.update import Rollout


@dataclass(frozen=True)
class ProcessRewards:
    """An `rl.step_credit.StepRewards`; ``tokenizer`` is the policy's."""

    scorer: StepScorer
    tokenizer: Any

    def attach(self, learner: Learner) -> None:
        """Have the model score on every rank, if it can."""
        if isinstance(self.scorer, OnAllRanks):
            self.scorer.attach(learner)

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
        """The sampled text without the end of the turn, and the span of each token in it."""
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
    return text, list(pairwise(_token_ends(decoded, len(ids))))  # the tokenizer would split this text differently


def _token_ends(decoded: Callable[[int, int], str], count: int) -> Iterator[int]:
    """The end of each token in the text, by what it adds to the text of the few tokens before it. Decoding all of them
    for each token would take seconds per response. A character made of several tokens belongs to the last one."""
    begin = whole = known = edge = 0
    yield 0
    for end in range(1, count + 1):
        text = decoded(begin, end)
        if end == count or not text.endswith("\N{REPLACEMENT CHARACTER}"):
            edge += len(text) - known
            begin, whole = whole, end
            known = len(decoded(begin, whole))
        yield edge
