"""A policy that samples with vLLM while the trainer holds the weights: the adapter is handed over at each step.

`VllmPolicy.refresh` writes the trainer's LoRA adapter and has vLLM load it under a fresh id. Sampling from weights that
never arrived would silently spoil a run (vLLM has ways to do that), so after each refresh the trainer and every replica
of the engine compute the log-probabilities of one fixed text. The run stops if they differ by more than rounding, which
is measured before there is any adapter, or if a replica's stand still while the trainer's move.

Left out: full fine-tuning (`grpo` on vLLM needs an adapter; a trained norm is not something that vLLM can apply), and
engines on other machines.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.engines.base import Stopping, never
from distill.engines.options import VllmOptions
from distill.modelspec import Model
from distill.training.batching import from_tokens
from distill.training.passes import likelihoods
from distill.turns import rendered
from distill.types import Completion, Problem, Request
from pipeline.errors import InputError, PipelineError

if TYPE_CHECKING:
    from distill.engines.vllm import Note, VllmEngine
    from distill.engines.vllm_replicas import VllmReplicas

TOLERANCE = 0.05
"""The mean difference, in nats per token, that may be rounding; or three times the difference of the bases, if that is
more: bfloat16 alone causes 0.02 to 0.06 on the embedded teacher's prompts, whose tokens nobody sampled."""

OTHER = 0.3
"""A mean difference of the bases that cannot be rounding."""

STILL = 0.1
"""An engine whose log-probabilities change by less than this share of the trainer's change still has the old weights.
On a GPU they change a little even then: vLLM's LoRA kernels sum in another order each time (split_k, atomic_add)."""

PROBE = 256
"""The most tokens of the fixed text."""


class VllmPolicy:
    """See `rl.grpo.Policy`. ``model`` is the peft model under training, ``engine`` samples from its base with room
    for an adapter (`distill.engines.vllm.open`); ``probe`` are the ids of the fixed text; ``directory`` is ours."""

    name = "vllm"

    def __init__(self, model: Any, engine: VllmEngine | VllmReplicas, directory: Path, probe: Sequence[int]) -> None:
        self._model, self._engine, self._directory = model, engine, directory
        self._probe, self._noise = list(probe), math.nan
        self._before: tuple[list[float], list[list[float]]] | None = None

    def generate(self, requests: Iterable[Request], stopping: Callable[[], bool]) -> Iterator[Completion]:
        yield from self._engine.generate(requests, stopping)

    def close(self) -> None:
        self._engine.close()

    def refresh(self) -> None:
        """Hand over the trainer's adapter as it is now, and check that vLLM samples from it."""
        if math.isnan(self._noise):
            self._noise = self._gap_of_bases()
        shutil.rmtree(self._directory, ignore_errors=True)
        self._model.save_pretrained(self._directory, safe_serialization=True)
        self._engine.adopt(self._directory)
        trainer, engine = self._trainer_logprobs(), self._engine_logprobs()
        gap, allowed = _largest_gap(trainer, engine), max(TOLERANCE, 3 * self._noise)
        before, there = self._before or (trainer, engine)
        moved = _mean_gap(trainer, before)
        if moved > 2 * self._noise and min(map(_mean_gap, engine, there)) < STILL * moved:
            raise PipelineError("vllm goes on with the weights of the step before: the new adapter did not arrive")
        if not gap <= allowed:
            raise PipelineError(
                "vllm samples from other weights than the trainer's: log-probabilities of one text differ by "
                f"{gap:.3g} nats per token, {allowed:.2g} may be rounding; use engine: transformers"
            )
        self._before = trainer, engine

    def _gap_of_bases(self) -> float:
        """The gap without any adapter, which is the engine's rounding alone."""
        with self._model.disable_adapter():
            gap = _largest_gap(self._trainer_logprobs(), self._engine_logprobs())
        if not gap <= OTHER:
            raise PipelineError(
                "vllm has another model than the trainer: before any training the log-probabilities of one text differ "
                f"by {gap:.3g} nats per token, {OTHER} may be rounding; use engine: transformers"
            )
        return gap

    def _engine_logprobs(self) -> list[list[float]]:
        """The log-probabilities of the fixed text, from each replica."""
        return [row[1:] for row in self._engine.score([self._probe] * self._engine.copies)]

    def _trainer_logprobs(self) -> list[float]:
        (found,) = likelihoods(self._model, [from_tokens("probe", self._probe[:1], self._probe[1:])], PROBE)
        return found


def open_policy(
    model: Any,
    tokenizer: Any,
    start: Model,
    options: VllmOptions,
    directory: Path,
    probe: Problem,
    note: Note,
    stopping: Stopping = never,
) -> VllmPolicy:
    """A policy for ``model``, a LoRA on top of ``start``; ``probe`` is the problem that weights are compared on."""
    from distill.engines import vllm

    if start.adapter:
        raise InputError(f"grpo with engine vllm starts from a whole model; merge the adapter {start.adapter} first")
    ids = tokenizer.encode(rendered(tokenizer, probe.messages), add_special_tokens=False)[:PROBE]
    rank = max(config.r for config in model.peft_config.values())
    return VllmPolicy(model, vllm.open(start, options, note, rank, stopping), directory, ids)


def _largest_gap(trainer: Sequence[float], engine: Sequence[Sequence[float]]) -> float:
    """Over the copies of the model; NaN where any is."""
    gaps = [_mean_gap(trainer, each) for each in engine]
    return math.nan if math.isnan(math.fsum(gaps)) else max(gaps)


def _mean_gap(one: Sequence[float], other: Sequence[float]) -> float:
    return math.fsum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)
