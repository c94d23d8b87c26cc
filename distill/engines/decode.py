"""Continuous batching: token ids in, token ids out, rows leaving and entering as they please.

Every step feeds one token to each running row. Jobs wait in a queue, longest limit first; when enough
slots are free they enter: prompts are prefilled in batches, equal prompts once, all but their last
token, which the row's first step feeds. When nothing waits, the rows that are left move together and
the batch shrinks.

A row's tokens and log-probabilities are the same to the last bit whatever runs beside it, on a CPU in
float32: each draw has its own uniform number, fixed up front by (seed, key); padding adds exact zeros
(`distill.engines.cache`); and matrix products give a row the same bits in any batch of `ROWS` rows or
more, which `distill.engines.invariance` measures on the machine at hand rather than believing it.

`distill.engines.transformers` turns requests into jobs; `distill.engines.parallel` runs several decoders.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distill.engines.cache import SlotCache, granules
from distill.engines.rows import Rows
from distill.types import Sampling

ROWS = 16
"""The granule of batches. Below 4 rows (12 on two threads) MKL takes other paths, with other bits."""
PIECE = 128
"""Prompts are prefilled in pieces of at most this many tokens."""
TOKENS = 1024
"""Tokens prefilled at once: enough for matrix products, few enough that activations stay in cache."""
EAGER = 8
"""Waiting jobs enter when one slot in this many is free: a prefill costs about a step."""


@dataclass(frozen=True, slots=True)
class Job:
    """One sample wanted. ``key`` names it and, with the seed, fixes its draws."""

    key: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling

    @property
    def capacity(self) -> int:
        """Positions it may come to occupy."""
        return granules(len(self.prompt_ids) + self.sampling.max_tokens)


@dataclass(frozen=True, slots=True)
class Sample:
    """A finished job. ``seconds`` is the wall time from entering the batch to the last token."""

    key: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Running:
    """A job in a slot. At step ``n`` of the decoder its next token stands at position ``origin + n``."""

    job: Job
    origin: int
    begun: float


class Decoder:
    """Samples from ``model`` (a private one, plugged into slots) with up to ``slots`` rows at a time.

    ``memory`` bounds keys and values, in bytes; one row may always run.
    """

    def __init__(self, model: Any, *, stop_ids: Sequence[int], slots: int, memory: float = 2**31) -> None:
        self.model = model
        self.slots = _ceil(slots, ROWS)
        self._memory = memory / bytes_per_position(model)
        self._stop_ids = torch.tensor(list(stop_ids), device=model.device)
        self._cache = SlotCache(model.dtype, model.device)
        self._rows = Rows(self.slots, model.device)
        self._waiting: list[tuple[tuple[Any, ...], Job]] = []
        self._running: dict[int, Running] = {}
        self._steps = 0

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            heapq.heappush(self._waiting, (order(job), job))

    def clear(self) -> None:
        """Drop what waits and what runs."""
        self._waiting.clear()
        self._release(list(self._running))

    @torch.inference_mode()
    def step(self) -> list[Sample]:
        """One token for every running row; returns those that are finished."""
        self._admit()
        width = _ceil(max(self._running) + 1, ROWS)
        positions = self._rows.position[:width, None]
        self._cache.at(slice(width), positions, self._longest() + 1)
        logits = self.model(
            input_ids=self._rows.token[:width, None],
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]
        finished = self._rows.advance(logits, self._stop_ids)
        self._steps += 1
        return self._collect(finished) if finished else []

    def _longest(self) -> int:
        return max(running.origin for running in self._running.values()) + self._steps

    def _collect(self, finished: list[int]) -> list[Sample]:
        now, samples = time.perf_counter(), []
        for slot, (token_ids, logprobs, stopped) in zip(
            finished, self._rows.results(finished, self._stop_ids), strict=True
        ):
            running = self._running[slot]
            samples.append(Sample(running.job.key, token_ids, logprobs, stopped, now - running.begun))
        self._release(finished)
        if not self._waiting:
            self._compact()
        return samples

    def _release(self, slots: list[int]) -> None:
        self._rows.release(slots)
        for slot in slots:
            del self._running[slot]

    def _compact(self) -> None:
        """Move rows into low slots where that makes the batch noticeably smaller."""
        width = _ceil(len(self._running), ROWS)
        sources = [slot for slot in self._running if slot >= width]
        if not sources or EAGER * (max(sources) + 1 - width) < width:
            return
        targets = [slot for slot in range(width) if slot not in self._running][: len(sources)]
        self._cache.copy(sources, targets, self._longest())
        self._rows.move(sources, targets)
        for source, target in zip(sources, targets, strict=True):
            self._running[target] = self._running.pop(source)

    def _admit(self) -> None:
        if not self._waiting:
            return
        free = [slot for slot in range(self.slots) if slot not in self._running]
        if len(free) < min(len(self._waiting), self.slots // EAGER):
            return
        entering: list[tuple[int, Job]] = []
        capacity = self._cache.capacity
        for slot in free:
            if not self._waiting:
                break
            capacity = max(capacity, self._waiting[0][1].capacity)
            if (entering or self._running) and _ceil(slot + 1, ROWS) * capacity > self._memory:
                break
            entering.append((slot, heapq.heappop(self._waiting)[1]))
        if entering:
            self._cache.reserve(
                _ceil(max(slot for slot, _ in entering) + 1, ROWS), max(j.capacity for _, j in entering)
            )
            self._prefill(entering)
            self._enter(entering)

    def _enter(self, entering: list[tuple[int, Job]]) -> None:
        now = time.perf_counter()
        for slot, job in entering:
            self._running[slot] = Running(job, len(job.prompt_ids) - 1 - self._steps, now)
        self._rows.enter(
            [slot for slot, _ in entering],
            [job.key for _, job in entering],
            [job.prompt_ids for _, job in entering],
            [job.sampling for _, job in entering],
        )

    def _prefill(self, entering: list[tuple[int, Job]]) -> None:
        """Fill the slots with keys and values of all but the last token, computing each prompt once."""
        slot_of = {running.job.prompt_ids: slot for slot, running in self._running.items()}
        new: dict[tuple[int, ...], int] = {}
        shared: dict[int, list[tuple[int, int]]] = {}
        for slot, job in entering:
            source = slot_of.setdefault(job.prompt_ids, slot)
            if source == slot:
                new[job.prompt_ids] = slot
            else:
                shared.setdefault(granules(len(job.prompt_ids)), []).append((source, slot))
        prompts = sorted(((slot, ids[:-1]) for ids, slot in new.items() if len(ids) > 1), key=lambda p: len(p[1]))
        while prompts:
            rows = max(1, TOKENS // len(prompts[-1][1]))
            self._fill(prompts[-rows:])
            del prompts[-rows:]
        for length, pairs in shared.items():
            self._cache.copy([source for source, _ in pairs], [slot for _, slot in pairs], length)

    def _fill(self, prompts: list[tuple[int, tuple[int, ...]]]) -> None:
        """Prefill one batch of (slot, ids). Padding lies behind the prompt, where nothing looks at it."""
        length = max(ROWS, _ceil(max(len(ids) for _, ids in prompts), 4))
        tokens = torch.tensor([ids + (0,) * (length - len(ids)) for _, ids in prompts], device=self.model.device)
        slots = torch.tensor([slot for slot, _ in prompts], device=self.model.device)
        ordinals = torch.arange(length, device=self.model.device).expand(len(prompts), -1)
        limit = positions_limit(self.model) or length
        for start in range(0, length, PIECE):
            piece = slice(start, min(start + PIECE, length))
            self._cache.at(slots, ordinals[:, piece], piece.stop)
            self.model.base_model(
                input_ids=tokens[:, piece],
                position_ids=ordinals[:, piece].clamp(max=limit - 1),
                past_key_values=self._cache,
                use_cache=True,
            )


def order(job: Job) -> tuple[Any, ...]:
    """Long limits first, so that the end is not a few long rows; equal prompts side by side."""
    return -job.sampling.max_tokens, len(job.prompt_ids), job.prompt_ids, job.key


def bytes_per_position(model: Any) -> int:
    """Bytes of keys and values that one token occupies, over all layers."""
    config = model.config.get_text_config()
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * kv_heads * size * model.dtype.itemsize)


def positions_limit(model: Any) -> int | None:
    """Tokens the model has positions for, or None where it sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _ceil(length: int, step: int) -> int:
    return -(-length // step) * step
