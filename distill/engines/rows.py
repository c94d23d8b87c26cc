"""What each running row is at: its next token, its limits, its uniform numbers, what it has said so far.

One tensor per quantity and one entry per slot, so that a step is a few tensor operations whatever the
number of rows, with a single transfer to the host. Empty slots stand still at position 0. Owned by
`distill.engines.decode.Decoder`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from distill.engines.sampling import draw
from distill.randomness import generator
from distill.types import Sampling

BELOW_ONE = 1 - 2.0**-50
"""Uniform numbers are capped here, so that none rounds up to the end of a cumulative sum."""


class Rows:
    def __init__(self, slots: int, device: torch.device) -> None:
        def zeros(dtype: torch.dtype, width: int | None = None) -> Tensor:
            return torch.zeros((slots,) if width is None else (slots, width), dtype=dtype, device=device)

        self.token, self.position = zeros(torch.long), zeros(torch.long)
        self._active, self._count, self._limit = zeros(torch.long), zeros(torch.long), zeros(torch.long)
        self._temperature, self._greedy = zeros(torch.float32) + 1, zeros(torch.bool)
        self._top_p, self._top_k = zeros(torch.float32) + 1, zeros(torch.long)
        self._uniforms = zeros(torch.float64, 0)
        self._tokens, self._logprobs = zeros(torch.long, 0), zeros(torch.float32, 0)
        self._greedy_slots: set[int] = set()
        self._truncated_slots: set[int] = set()

    def enter(
        self,
        slots: list[int],
        keys: Sequence[str],
        prompts: Sequence[Sequence[int]],
        samplings: Sequence[Sampling],
    ) -> None:
        """Begin jobs in free slots. The uniform for token t is number t of ("sample", seed, key)."""
        at = torch.tensor(slots, device=self.token.device)
        self._reserve(max(s.max_tokens for s in samplings))
        for slot, key, sampling in zip(slots, keys, samplings, strict=True):
            uniforms = generator("sample", sampling.seed, key).random(sampling.max_tokens)
            self._uniforms[slot, : sampling.max_tokens] = torch.from_numpy(uniforms.clip(max=BELOW_ONE))

        def put(target: Tensor, values: list[float]) -> None:
            target[at] = torch.tensor(values, dtype=target.dtype, device=target.device)

        put(self.token, [prompt[-1] for prompt in prompts])
        put(self.position, [len(prompt) - 1 for prompt in prompts])
        put(self._active, [1] * len(slots))
        put(self._limit, [s.max_tokens for s in samplings])
        put(self._temperature, [s.temperature or 1.0 for s in samplings])
        put(self._greedy, [s.temperature == 0 for s in samplings])
        put(self._top_p, [s.top_p for s in samplings])
        put(self._top_k, [s.top_k for s in samplings])
        for slot, sampling in zip(slots, samplings, strict=True):
            if sampling.temperature == 0:
                self._greedy_slots.add(slot)
            elif sampling.top_p < 1 or sampling.top_k > 0:
                self._truncated_slots.add(slot)

    def advance(self, logits: Tensor, stop_ids: Tensor) -> list[int]:
        """Draw the next token of the first R rows from ``logits`` (R, V); the slots that finished."""
        rows = slice(len(logits))
        active, count = self._active[rows], self._count[rows]
        truncated = bool(self._truncated_slots)
        token, logprob = draw(
            logits,
            self._uniforms[rows].gather(1, count[:, None])[:, 0],
            self._temperature[rows],
            greedy=self._greedy[rows] if self._greedy_slots else None,
            top_p=self._top_p[rows] if truncated else None,
            top_k=self._top_k[rows] if truncated else None,
        )
        self._tokens[rows].scatter_(1, count[:, None], token[:, None])
        self._logprobs[rows].scatter_(1, count[:, None], logprob[:, None])
        self.token[rows] = token
        self.position[rows] += active
        count += active
        done = (torch.isin(token, stop_ids) | (count >= self._limit[rows])) & active.bool()
        return done.nonzero()[:, 0].tolist()

    def results(self, slots: list[int], stop_ids: Tensor) -> Iterator[tuple[tuple[int, ...], tuple[float, ...], bool]]:
        """Token ids, log-probabilities and whether it stopped by itself, for each of ``slots``."""
        at = torch.tensor(slots, device=self.token.device)
        counts = self._count[at].tolist()
        stopped = torch.isin(self.token[at], stop_ids).tolist()
        width = max(counts)
        tokens, logprobs = self._tokens[at, :width].tolist(), self._logprobs[at, :width].tolist()
        for count, ids, logs, stop in zip(counts, tokens, logprobs, stopped, strict=True):
            yield tuple(ids[:count]), tuple(logs[:count]), stop

    def release(self, slots: list[int]) -> None:
        at = torch.tensor(slots, dtype=torch.long, device=self.token.device)
        for tensor in (self._active, self._count, self.position):
            tensor[at] = 0
        self._greedy_slots.difference_update(slots)
        self._truncated_slots.difference_update(slots)

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Rows change their slots, free ones being the targets."""
        from_, to = (torch.tensor(slots, device=self.token.device) for slots in (sources, targets))
        for tensor in vars(self).values():
            if isinstance(tensor, Tensor):
                tensor[to] = tensor[from_]
        for marked in (self._greedy_slots, self._truncated_slots):
            marked.update([t for s, t in zip(sources, targets, strict=True) if s in marked])
        self.release(sources)

    def _reserve(self, limit: int) -> None:
        width = self._tokens.shape[1]
        if limit > width:
            for name in ("_uniforms", "_tokens", "_logprobs"):
                setattr(self, name, torch.nn.functional.pad(getattr(self, name), (0, limit - width)))
