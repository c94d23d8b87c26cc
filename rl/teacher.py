"""A teacher's log-probability of each token that a student sampled.

The teacher scores the same ids that the student saw and sampled, so the two must share a tokenizer, which is checked.
`TransformersTeacher` runs packed passes like the trainer's, on every rank of the training, and keeps no logits;
`VllmTeacher` uses vLLM's `prompt_logprobs`. Scores are a pure function of the ids, so a killed step is scored again to
the same values (with vLLM up to rounding, because its batches change the order of sums).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distill.training.batching import from_tokens
from distill.training.fixed import FixedNetwork
from distill.training.passes import likelihoods
from distill.turns import turn_end
from distill.types import Completion
from pipeline.errors import InputError, PipelineError

if TYPE_CHECKING:
    from distill.engines.vllm import VllmEngine
    from distill.engines.vllm_replicas import VllmReplicas
    from distill.training.learner import Learner

TEACHER = "teacher"
PROBE = (
    "Let x = 3.14: 12 + 7*x <= 40?\n\n<think>\nfirst, naïve – 你好\n</think>\n\n"
    "\\boxed{\\frac{1}{2}}  def f(a):\n\treturn a"
)
"""A text that different tokenizers would encode differently: numbers, spaces, markup, several scripts."""


@dataclass
class TransformersTeacher:
    """A causal LM in transformers, scoring at ``temperature``. ``micro_batch_tokens`` bounds the memory."""

    network: Any
    temperature: float = 1.0
    micro_batch_tokens: int = 4096

    def __post_init__(self) -> None:
        self._fixed = FixedNetwork(self.network, TEACHER)

    def attach(self, learner: Learner) -> None:
        """Score on every rank of ``learner``, as long as its training lasts."""
        self._fixed.attach(learner)

    def __call__(self, completions: Sequence[Completion]) -> list[Sequence[float]]:
        rows = [from_tokens(c.key, c.prompt_ids, c.token_ids) for c in completions if c.token_ids]
        logprobs = iter(self._fixed.scores(likelihoods, rows, self.micro_batch_tokens, self.temperature))
        return [next(logprobs) if c.token_ids else [] for c in completions]


@dataclass
class VllmTeacher:
    """A model in vLLM, scoring at temperature 1, the only one that its `prompt_logprobs` support."""

    engine: VllmEngine | VllmReplicas

    def __call__(self, completions: Sequence[Completion]) -> list[list[float]]:
        logprobs = self.engine.score([(*c.prompt_ids, *c.token_ids) for c in completions])
        scores = [row[len(c.prompt_ids) :] for row, c in zip(logprobs, completions, strict=True)]
        if any(math.isnan(value) for row in scores for value in row):
            raise PipelineError("vllm scored a response with something that is no number: the teacher is broken")
        return scores


def _end(tokenizer: Any) -> str | None:
    """The token that ends a turn; the tokenizer's end token if the template has none."""
    found = turn_end(tokenizer)
    return tokenizer.eos_token if found is None else str(tokenizer.convert_ids_to_tokens(found))


def check_same_tokenizer(student: Any, teacher: Any, name: str) -> None:
    """`InputError` unless ids mean the same to both: equal vocabularies, equal ids for `PROBE`, equal ends of turns."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        differing = sorted({t for t, _ in ours.items() ^ theirs.items()})
        what = f"{len(differing)} of their tokens differ, {differing[0]!r} for one"
    elif student.encode(PROBE, add_special_tokens=False) != teacher.encode(PROBE, add_special_tokens=False):
        what = "they cut one text into different tokens"
    elif (own := _end(student)) != (other := _end(teacher)):
        what = f"turns end with {own!r} for one and {other!r} for the other"
    else:
        return
    raise InputError(
        f"teacher {name}: its tokenizer is not the student's ({what}), so it cannot score the student's tokens; "
        "take a teacher of the same family, or learn from its traces (generate, select, sft)"
    )
