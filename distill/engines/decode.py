"""Continuous batching: token ids in, token ids out, with rows entering and leaving the batch at any step.

Every step feeds one token to each running row. Jobs wait in a queue, longest limit first, and enter when
enough slots are free. Prompts are prefilled in batches, equal prompts once; rows share a long prompt
(`distill.engines.groups`) and get their own copy of a short one. When no job waits, the remaining rows are
compacted and the batch shrinks.

On a CPU in float32, a row's tokens and log-probabilities are the same to the last bit whatever runs beside
it. Each draw has its own uniform number, fixed up front by (seed, key). Padding adds exact zeros
(`distill.engines.cache`). And matrix products give a row the same bits in any batch of `ROWS` rows or more:
`distill.engines.invariance` measures this on the machine at hand instead of assuming it.

`distill.engines.transformers` turns requests into jobs; `distill.engines.parallel` runs several decoders.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distill.engines.budget import UNBOUNDED, Budget, Course, StepEnd
from distill.engines.cache import SlotCache
from distill.engines.groups import Beginning, Groups, Layout, granules
from distill.engines.prefill import ROWS, Plan, prefill
from distill.engines.rows import Entry, Rows
from distill.types import Sampling

EAGER = 8
"""Waiting jobs enter when one slot in this many is free: a prefill costs about a step."""


@dataclass(frozen=True, slots=True)
class Job:
    """One sample to draw. ``key`` names it and, with the seed, fixes its random numbers.

    ``given`` are the first tokens of the response; they count towards ``max_tokens``.
    """

    key: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    given: tuple[int, ...] = ()
    budget: Budget | None = None
    stop: str = ""
    """The text that ends a step, if the row is to end after one."""

    @property
    def beginning(self) -> Beginning:
        if not self.given:
            return Beginning(self.prompt_ids)
        return Beginning(self.prompt_ids + self.given, len(self.given), self.sampling.temperature or 1.0)

    @property
    def capacity(self) -> int:
        """The most positions that its row can occupy."""
        before = 0 if self.beginning.shared else len(self.prompt_ids) + len(self.given)
        return granules(before + self.sampling.max_tokens - len(self.given))


@dataclass(frozen=True, slots=True)
class Sample:
    """A finished job. ``seconds`` is the wall time from entering the batch to the last token.

    ``forced`` are the indices of the tokens that were not drawn. ``stepped``: it ended after a step and can go on.
    """

    key: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool
    seconds: float
    forced: tuple[int, ...] = ()
    stepped: bool = False


@dataclass(frozen=True, slots=True)
class Running:
    """A job in a slot. At step ``n`` of the decoder, its next token is number ``origin + n`` of the row's own ones."""

    job: Job
    origin: int
    begun: float
    course: Course | None


class Decoder:
    """Samples from ``model``, a private copy prepared by `distill.engines.attention.plug_in`, with up to ``slots``
    rows at a time.

    ``memory`` limits keys and values, in bytes; one row may always run. ``text_of`` decodes a token; jobs that
    end after a step need it.
    """

    def __init__(
        self, model: Any, *, stop_ids: Sequence[int], slots: int, memory: float = 2**31,
        text_of: Callable[[int], str] = lambda token: "",
    ) -> None:  # fmt: skip
        self.model, self._text_of = model, text_of
        self.slots = _ceil(slots, ROWS)
        self._memory = memory / bytes_per_position(model)
        self._stop_set = frozenset(stop_ids)
        self._stop_ids = torch.tensor(list(stop_ids), device=model.device)
        self._cache = SlotCache(model.dtype, model.device)
        self._rows = Rows(self.slots, model.device)
        self._groups = Groups(queries_per_head(model))
        self._last_layout: tuple[int, Layout | None] | None = None
        self._given_logprobs: dict[Beginning, tuple[float, ...]] = {}
        self._waiting: list[tuple[tuple[Any, ...], Job]] = []
        self._running: dict[int, Running] = {}
        self._courses: dict[int, Course] = {}
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
        """Drop all jobs. On a GPU, also free keys and values, as a trainer on the same GPU needs their memory."""
        self._waiting.clear()
        self._release(list(self._running))
        self._last_layout = None
        if self.model.device.type != "cpu":
            self._cache.empty()

    def so_far(self, key: str) -> tuple[int, ...]:
        """The tokens of a running job so far; none if it is waiting or has ended."""
        slot = next((slot for slot, running in self._running.items() if running.job.key == key), None)
        return () if slot is None else next(self._rows.results([slot], self._stop_ids))[0]

    @torch.inference_mode()
    def step(self) -> list[Sample]:
        """Draw one token for every running row; returns the finished samples."""
        self._admit()
        width, layout = self._layout()
        position = self._rows.position[:width]
        self._cache.step(layout, self._rows.start[:width], position, self._longest())
        logits = self.model(
            input_ids=self._rows.token[:width, None],
            position_ids=position[:, None],
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]
        finished = self._rows.advance(logits, self._stop_ids)
        self._steps += 1
        if self._courses:
            finished = self._steer(finished)
        return self._collect(finished) if finished else []

    def _layout(self) -> tuple[int, Layout | None]:
        """(number of rows to compute, which of them share which prompt)."""
        width = _ceil(max(self._running) + 1, ROWS)
        if self._last_layout is None or self._last_layout[0] != width:
            self._last_layout = (width, self._groups.layout(width, self.model.device))
        return self._last_layout

    def _longest(self) -> int:
        """The most own tokens of any row, including the one about to be fed; after a rewind, an upper bound."""
        return max(running.origin for running in self._running.values()) + self._steps + 1

    def _steer(self, finished: list[int]) -> list[int]:
        """Pass the new tokens to the rows' courses: a row rewinds, has its next token forced, or ends."""
        ended, following = set(finished), {}
        tokens = self._rows.last_tokens(list(self._courses))
        for (slot, course), token in zip(self._courses.items(), tokens, strict=True):
            before = course.length
            stands = course.take(token)
            if stands is not None:
                self._rows.rewind(slot, before + 1 - stands, course.last(self._running[slot].job.prompt_ids[-1]))
                ended.discard(slot)
            if course.over:
                ended.add(slot)
            following[slot] = course.next
        self._rows.force(following)
        return sorted(ended)

    def _collect(self, finished: list[int]) -> list[Sample]:
        now, samples = time.perf_counter(), []
        for slot, (token_ids, logprobs, stopped) in zip(
            finished, self._rows.results(finished, self._stop_ids), strict=True
        ):
            running = self._running[slot]
            forced = (*range(len(running.job.given)), *(running.course.forced if running.course else ()))
            stepped = bool(running.course and running.course.stepped)
            samples.append(Sample(running.job.key, token_ids, logprobs, stopped, now - running.begun, forced, stepped))
        self._release(finished)
        if not self._waiting:
            self._compact()
        return samples

    def _release(self, slots: list[int]) -> None:
        self._rows.release(slots)
        if self._groups.leave(slots):
            self._last_layout = None
        for slot in slots:
            del self._running[slot]
            self._courses.pop(slot, None)

    def _compact(self) -> None:
        """Move rows and prompts into low slots, if that makes the batch noticeably smaller."""
        width = _ceil(len(self._running), ROWS)
        sources = [slot for slot in self._running if slot >= width]
        if not sources or EAGER * (max(sources) + 1 - width) < width:
            return
        targets = [slot for slot in range(width) if slot not in self._running][: len(sources)]
        self._cache.rows.copy(sources, targets, granules(self._longest()))
        self._rows.move(sources, targets)
        self._groups.move_rows(sources, targets)
        for source, target in zip(sources, targets, strict=True):
            self._running[target] = self._running.pop(source)
            if source in self._courses:
                self._courses[target] = self._courses.pop(source)
        self._cache.prompts.copy(*self._groups.compact(), self._cache.prompts.capacity)
        self._last_layout = None

    def _admit(self) -> None:
        if not self._waiting:
            return
        free = [slot for slot in range(self.slots) if slot not in self._running]
        if len(free) < min(len(self._waiting), self.slots // EAGER):
            return
        entering: list[tuple[int, Job]] = []
        plan = Plan({running.job.beginning: slot for slot, running in self._running.items()})
        for slot in free:
            if not self._waiting or not self._fits(slot, self._waiting[0][1], bool(entering)):
                break
            job = heapq.heappop(self._waiting)[1]
            if job.beginning.shared:
                plan.share(job.beginning, *self._groups.enter(slot, job.beginning))
            else:
                plan.copy(job.beginning, slot)
            self._cache.rows.wish(_ceil(slot + 1, ROWS), job.capacity)
            self._cache.prompts.wish(_ceil(self._groups.width, ROWS), plan.longest)
            entering.append((slot, job))
        if entering:
            self._given_logprobs |= prefill(self.model, self._cache, plan)
            self._enter(entering)
            self._last_layout = None

    def _course(self, job: Job) -> Course | None:
        if not (job.budget or job.stop):
            return None
        step = StepEnd(job.stop, self._text_of) if job.stop else None
        return Course(job.budget or UNBOUNDED, job.sampling.max_tokens, job.given, self._stop_set, step)

    def _fits(self, slot: int, job: Job, entering: bool) -> bool:
        """Whether keys and values still fit into memory with this job; one row may always run."""
        if not entering and not self._running:
            return True
        rows, prompts, beginning = self._cache.rows, self._cache.prompts, job.beginning
        wanted = _ceil(slot + 1, ROWS) * max(rows.capacity, job.capacity)
        if beginning.shared:
            width = _ceil(self._groups.would_need(beginning), ROWS)
            wanted += width * max(prompts.capacity, granules(len(beginning.ids)))
        else:
            wanted += prompts.slots * prompts.capacity
        return wanted <= self._memory

    def _enter(self, entering: list[tuple[int, Job]]) -> None:
        now, entries = time.perf_counter(), []
        for slot, job in entering:
            course = self._course(job)
            entry = Entry(slot, job.key, job.beginning, job.sampling, self._given_logprobs.get(job.beginning, ()))
            own = len(job.beginning.ids) - 1 - entry.start
            self._running[slot] = Running(job, own - self._steps, now, course)
            entries.append(entry)
            if course:
                self._courses[slot] = course
        self._rows.enter(entries)
        self._rows.force({slot: course.next for slot, course in self._courses.items()})
        if self._given_logprobs:
            there = {running.job.beginning for running in self._running.values()}
            self._given_logprobs = {
                beginning: known for beginning, known in self._given_logprobs.items() if beginning in there
            }


def order(job: Job) -> tuple[Any, ...]:
    """Sort key of a job: long limits first, to avoid ending with a few long rows; equal prompts together."""
    return -job.sampling.max_tokens, len(job.prompt_ids), job.prompt_ids, job.given, job.key


def bytes_per_position(model: Any) -> int:
    """Bytes of keys and values that one token occupies, over all layers."""
    config = model.config.get_text_config()
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * kv_heads * size * model.dtype.itemsize)


def queries_per_head(model: Any) -> int:
    """Query heads per key-value head; 1 if the configuration does not say."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 1
    return max(1, heads // (getattr(config, "num_key_value_heads", None) or heads))


def _ceil(length: int, step: int) -> int:
    return -(-length // step) * step
