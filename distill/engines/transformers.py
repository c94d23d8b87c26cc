"""The embedded engine: any Hugging Face causal LM, sampled by our own continuous batching.

This module turns requests into token ids (chat template, tokenizer) and samples into text;
`distill.engines.decode` does the batching, in this process or in the workers of `distill.engines.parallel`. The
engine has a private copy of the model (`distill.engines.weights`), so a trainer can keep changing its own, with
LoRA or without, and call `refresh` to bring the copy up to date.

Left out: quantised loading, several devices, speculative decoding; use `vllm` for those.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from typing import Any

from distill.engines.base import PromptTooLong, SoFar, Stopping, never, wanted_now
from distill.engines.budget import Budget
from distill.engines.decode import Decoder, Job, Sample
from distill.engines.invariance import is_batch_invariant
from distill.engines.options import TransformersOptions
from distill.engines.parallel import WorkerPool
from distill.engines.prefill import positions_limit
from distill.engines.weights import InferenceCopy
from distill.machine import cores, free_of_machine
from distill.modelspec import Model
from distill.pretrained import load
from distill.tensors import free_of_gpu
from distill.thinking import CLOSE, OPEN, count_thinking_tokens, opened
from distill.turns import rendered, stop_ids
from distill.types import Completion, Finish, Message, Request, ThinkingBudget
from pipeline.errors import InputError

SLOTS = 256
"""Rows per process."""
AHEAD = 8
"""Requests taken in advance, as a multiple of the rows: enough to sort, few enough to stay a stream."""
SHOWN_SECONDS = 0.05
"""Seconds between two updates of a response that is being streamed; each decodes all of it."""
HALF_A_LETTER = "\ufffd"
"""The last bytes of a text decode to this while the other bytes of a character are still missing."""
SMALL = 50_000_000
"""Up to this many parameters, one process per core is fastest."""


class TransformersEngine:
    """Samples from a causal LM and its tokenizer; see `distill.engines.base.Engine`.

    ``model`` may be a peft model. ``workers`` above 1 are forked processes of one thread each (CPU only);
    the results are the same. As many as ``sharers`` engines, in as many processes, share the device's free memory.
    """

    name = "transformers"

    def __init__(
        self, model: Any, tokenizer: Any, *, model_identity: str, slots: int = SLOTS, workers: int = 1, sharers: int = 1
    ) -> None:
        self.model, self.tokenizer, self.workers = model_identity, tokenizer, workers
        self._copy = InferenceCopy(model)
        self._slots = slots
        self._limit = positions_limit(self._copy.model)
        config = getattr(model, "generation_config", None)
        self._stop_ids = stop_ids(config and config.eos_token_id, tokenizer)
        self._pieces = lru_cache(1024)(lambda text: tuple(tokenizer.encode(text, add_special_tokens=False)))
        decoder = partial(
            Decoder, self._copy.model, stop_ids=self._stop_ids, slots=slots,
            memory=memory_for(model) / workers / sharers,
            text_of=lru_cache(None)(lambda token: tokenizer.decode([token], clean_up_tokenization_spaces=False)),
        )  # fmt: skip
        self._decoder: Decoder | WorkerPool = decoder() if workers == 1 else WorkerPool(decoder, workers, slots)
        self._ahead = AHEAD * slots * workers
        self._encoded = lru_cache(self._ahead)(self._encode)

    @cached_property
    def batch_invariant(self) -> bool:
        """Measured when first asked for; only ever true on a CPU in float32."""
        return is_batch_invariant(self._copy.model, self._slots)

    def generate(self, requests: Iterable[Request | None], stopping: Stopping = never) -> Iterator[Completion]:
        """Completions in the order they finish. Keys must differ.

        Raises `PromptTooLong` for a prompt that fills the model's positions; a limit beyond them is lowered. A response
        whose prefix leaves no room, in ``max_tokens`` or in the positions, is returned as this prefix, with finish
        `Finish.LENGTH`. Its token ids are those that the positions hold.
        """
        source = iter(requests)
        asked: dict[str, tuple[Request, str, Job]] = {}
        try:
            while True:
                while self._decoder.waiting <= self._ahead // 2 and (batch := wanted_now(source, self._ahead)):
                    new = {request.key: (request, *self._job(request)) for request in batch}
                    asked |= new
                    self._decoder.add([job for _, _, job in new.values()])
                if not self._decoder.busy or stopping():
                    return
                for sample in self._decoder.step():
                    yield self._completion(sample, *asked.pop(sample.key))
        finally:
            self._decoder.clear()

    def stream(self, request: Request) -> Iterator[SoFar | Completion]:
        """See `distill.engines.base.Streaming`. With ``workers``, rows are in other processes: only the completion is
        yielded."""
        prompt, job = self._job(request)
        self._decoder.add([job])
        shown = time.monotonic()
        try:
            while True:
                if samples := self._decoder.step():
                    yield self._completion(samples[0], request, prompt, job)
                    return
                if isinstance(self._decoder, Decoder) and time.monotonic() - shown >= SHOWN_SECONDS:
                    shown, ids = time.monotonic(), self._decoder.so_far(job.key)
                    yield SoFar(prompt, self._text(ids).rstrip(HALF_A_LETTER), len(ids))
        finally:
            self._decoder.clear()

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt as the model sees it, up to where the assistant's turn begins."""
        return rendered(self.tokenizer, messages)

    def _job(self, request: Request) -> tuple[str, Job]:
        prompt, ids = self._encoded(tuple(tuple(message.items()) for message in request.messages))
        given, asked = self._tokens(request.prefix), request.sampling.max_tokens
        if not ids:
            raise InputError(f"request {request.key}: the prompt is empty")
        room = self._room(ids)
        if room < 1:
            raise PromptTooLong.of(request.key, len(ids), len(ids) + room)
        given, asked = given[:room], min(asked, room)
        if len(given) >= asked:  # a prefix that was sampled may have more tokens when it is encoded again
            asked = len(given) + 1  # every row has to draw a token; `_completion` drops this one
        sampling = replace(request.sampling, max_tokens=asked)
        budget = self._budget(request.budget, opened(prompt)) if request.budget else None
        return prompt, Job(request.key, ids, sampling, given, budget, request.stop)

    def _room(self, prompt_ids: tuple[int, ...]) -> int:
        """The model's positions behind a prompt."""
        return (self._limit or sys.maxsize) - len(prompt_ids)

    def _budget(self, budget: ThinkingBudget, opened: bool) -> Budget:
        closing, extension = self._tokens(budget.closing), self._tokens(budget.extension)
        if budget.most is not None and (not closing or budget.most < budget.least):
            raise InputError(
                f"a thinking budget of at most {budget.most} tokens needs a `closing`, and a `least` that is not larger"
            )
        if budget.least and not extension:
            raise InputError(f"a thinking budget of at least {budget.least} tokens needs an extension")
        return Budget(
            budget.most, budget.least, closing, extension, budget.extensions,
            open=self._tokens(OPEN), close=self._tokens(CLOSE), opened=opened,
        )  # fmt: skip

    def _tokens(self, text: str) -> tuple[int, ...]:
        """The ids of a piece of a response. They are cached, since requests mostly give the same pieces."""
        return self._pieces(text) if text else ()

    def _encode(self, items: tuple[tuple[tuple[str, str], ...], ...]) -> tuple[str, tuple[int, ...]]:
        prompt = self.render([dict(item) for item in items])
        return prompt, tuple(self.tokenizer.encode(prompt, add_special_tokens=False))

    def _completion(self, sample: Sample, request: Request, prompt: str, job: Job) -> Completion:
        full = len(job.given) >= min(request.sampling.max_tokens, self._room(job.prompt_ids))
        if full:
            given = len(job.given)
            ids, logprobs = sample.token_ids[:given], sample.logprobs[:given]
            forced = tuple(index for index in sample.forced if index < given)
            sample = replace(sample, token_ids=ids, logprobs=logprobs, stopped=False, stepped=False, forced=forced)
        shown = sample.token_ids[:-1] if sample.stopped else sample.token_ids
        text = request.prefix if full else self._text(shown)
        finish = Finish.STOP if text.strip() else Finish.EMPTY
        if not sample.stopped:
            room = len(sample.token_ids) < job.sampling.max_tokens
            finish = Finish.STEP if sample.stepped and room else Finish.LENGTH
        thinking, _ = count_thinking_tokens(sample.token_ids, self._tokens(CLOSE), self._tokens(OPEN), opened(prompt))
        return Completion(
            key=sample.key,
            prompt=prompt,
            prompt_ids=job.prompt_ids,
            text=text,
            token_ids=sample.token_ids,
            logprobs=sample.logprobs,
            finish=finish,
            seconds=sample.seconds,
            thinking_tokens=thinking,
            forced=sample.forced,
        )

    def refresh(self) -> None:
        """Sample with the model's current weights from now on. Not while generating."""
        if self._decoder.busy:
            raise RuntimeError("refresh while generating: exhaust or close the iterator first")
        self._copy.refresh()

    def close(self) -> None:
        if isinstance(self._decoder, WorkerPool):
            self._decoder.close()


def memory_for(model: Any) -> float:
    """Bytes that keys and values may take: half of what is free on the model's device."""
    return (free_of_gpu(model.device) if model.device.type == "cuda" else free_of_machine()) / 2


def workers_for(model: Any, asked: int) -> int:
    """The number of sampling processes: ``asked``, or for 0 one per core for a small model on a CPU, else one."""
    if asked:
        return asked
    small = sum(p.numel() for p in model.parameters()) <= SMALL
    return cores() if sys.platform == "linux" and model.device.type == "cpu" and small else 1


def open_engine(
    model: Model, options: TransformersOptions, note: Callable[[str], None] = lambda text: None
) -> TransformersEngine:
    """The engine's entry in `distill.catalog`. Raises the errors of `distill.pretrained.load`."""
    network, tokenizer = load(model, options.dtype, options.device)
    network.requires_grad_(False)  # frozen weights are shared with the engine's copy, not doubled
    workers = workers_for(network, options.workers)
    return TransformersEngine(network, tokenizer, model_identity=model.identity, workers=workers)
