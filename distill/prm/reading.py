"""Load a process reward model from its directory, and score responses in packed passes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill import pretrained
from distill.engines.prefill import positions_limit
from distill.modelspec import MODEL, Model
from distill.prm import files
from distill.prm.examples import Encoded, encode, unlabelled
from distill.prm.head import NAME, StepHead, probabilities
from distill.prompting import Ask, PromptingSettings, asking, plainly
from distill.training.fixed import FixedNetwork
from distill.training.forward import causal_lm
from distill.turns import rendered
from distill.types import Message, Problem
from pipeline.errors import InputError, PipelineError

if TYPE_CHECKING:
    from distill.training.learner import Learner

BATCH_TOKENS = 8192
SURE = 30.0
"""Log-odds are clamped to this, so that no probability is rounded to exactly 0 or 1."""


class TooLong(InputError):
    """A prompt with its response is longer than the body's positions."""


class PrmScorer:
    """Implements `distill.prm.scorer.StepScorer`. ``network`` must have its head attached. Equal texts are scored
    once."""

    def __init__(
        self, network: Any, tokenizer: Any, rule: str, name: str = "", batch_tokens: int = BATCH_TOKENS,
        ask: Ask = plainly,
    ) -> None:  # fmt: skip
        self._fixed, self._tokenizer, self._batch_tokens = FixedNetwork(network, "process"), tokenizer, batch_tokens
        self.rule, self.name, self._ask = rule, name, ask
        self._limit = positions_limit(causal_lm(network))

    def attach(self, learner: Learner) -> None:
        """Score on every rank of ``learner``, as long as its training lasts."""
        self._fixed.attach(learner)

    def render(self, messages: Sequence[Message]) -> str:
        """Render a prompt with this model's template, up to where the response begins."""
        return rendered(self._tokenizer, messages)

    def prompt(self, problem: Problem) -> str:
        """Render a problem in the way the problems were asked in its training data."""
        return self.render(self._ask(problem).messages)

    def encoded(self, prompt: str, response: str) -> Encoded:
        found = encode(self._tokenizer, prompt, response, self.rule)
        if self._limit and len(found.ids) - 1 > self._limit:
            raise TooLong(f"prm {self.name}: {len(found.ids) - 1} tokens, but its body has {self._limit} positions")
        return found

    def score(self, asked: Sequence[tuple[str, str]]) -> list[list[float]]:
        """The probability of each step. Raises `TooLong`, and `PipelineError` if a score is NaN because the weights are
        broken."""
        encoded = {pair: self.encoded(*pair) for pair in dict.fromkeys(asked)}
        rows = {pair: unlabelled(str(n), found) for n, (pair, found) in enumerate(encoded.items()) if found.ends}
        found = self._fixed.scores(probabilities, list(rows.values()), self._batch_tokens, SURE)
        if any(p != p for row in found for p in row):
            raise PipelineError(f"prm {self.name}: its scores are NaN, so its weights are broken")
        known = dict(zip(rows, found, strict=True))
        return [known.get(pair, []) for pair in asked]


def load(directory: Path, name: str = "", device: str = "auto", dtype: str = "float32") -> PrmScorer:
    """Load the model in ``directory`` (`distill.prm.files`). Raises `InputError` if its parts do not fit together."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    name = name or str(directory)
    about = files.about(files.checked(directory, name), name)
    network, tokenizer = pretrained.load(Model(str((directory / MODEL).absolute()), ""), dtype, device)
    if (width := causal_lm(network).config.get_text_config().hidden_size) != about.width:
        raise InputError(
            f"prm {name}: its head needs hidden states of width {about.width}, but the body in {directory / MODEL} has "
            f"{width}, so it is not the one that it was trained with"
        )
    if files.tokenizer_identity(tokenizer) != about.tokenizer:
        raise InputError(f"prm {name}: the tokenizer in {directory / MODEL} is not the one that it was trained with")
    head = StepHead(about.width, about.likelihood)
    try:
        head.load_state_dict(load_file(directory / files.HEAD))
    except (RuntimeError, OSError, SafetensorError) as error:
        raise InputError(f"prm {name}: {directory / files.HEAD}: {str(error).strip().splitlines()[0]}") from None
    setattr(network, NAME, head.to(network.device))
    asked = PromptingSettings.model_validate(about.prompting) if about.prompting else None
    return PrmScorer(network, tokenizer, about.rule, name, ask=asking(asked, key=f"prm {name}"))
