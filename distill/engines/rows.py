"""The state of each running row: its next token, its limits, its uniform numbers, and its tokens so far.

There is one tensor per quantity with one entry per slot, so a step takes a few tensor operations whatever the
number of rows, and a single transfer to the host. Empty slots stay at position 0. Owned by
`distill.engines.decode.Decoder`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.engines.budget import NOTHING
from distill.engines.groups import Beginning
from distill.engines.sampling import BELOW_ONE, draw
from distill.randomness import generator
from distill.tensors import put
from distill.types import Sampling


@dataclass(frozen=True, slots=True)
class Entry:
    """A job that enters a slot. ``logprobs`` are those of its given tokens."""

    slot: int
    key: str
    beginning: Beginning
    sampling: Sampling
    logprobs: Sequence[float]

    @property
    def start(self) -> int:
        """The position of the first token that the row stores itself."""
        return len(self.beginning.ids) - 1 if self.beginning.shared else 0


class Rows:
    """``token`` is fed next, at ``position``; a row's own tokens begin at position ``start``."""

    def __init__(self, slots: int, device: torch.device) -> None:
        def zeros(dtype: torch.dtype, width: int | None = None) -> Tensor:
            return torch.zeros((slots,) if width is None else (slots, width), dtype=dtype, device=device)

        self.token, self.position, self.start = zeros(torch.long), zeros(torch.long), zeros(torch.long)
        self._active, self._count, self._limit = zeros(torch.long), zeros(torch.long), zeros(torch.long)
        self._temperature, self._greedy = zeros(torch.float32) + 1, zeros(torch.bool)
        self._top_p, self._top_k = zeros(torch.float32) + 1, zeros(torch.long)
        self._forced = zeros(torch.long) + NOTHING
        self._uniforms = zeros(torch.float64, 0)
        self._tokens, self._logprobs = zeros(torch.long, 0), zeros(torch.float32, 0)
        self._greedy_slots: set[int] = set()
        self._truncated_slots: set[int] = set()
        self._forced_slots: set[int] = set()

    def enter(self, entries: Sequence[Entry]) -> None:
        """Start jobs in free slots. The uniform number for token t is number t of ("sample", seed, key)."""
        samplings, device = [entry.sampling for entry in entries], self.token.device
        longest = max(s.max_tokens for s in samplings)
        self._reserve(longest)
        uniforms = torch.zeros(len(entries), longest, dtype=torch.float64)
        for row, entry in zip(uniforms, entries, strict=True):
            limit, slot, given = entry.sampling.max_tokens, entry.slot, entry.beginning.given
            drawn = generator("sample", entry.sampling.seed, entry.key).random(limit)
            row[:limit] = torch.from_numpy(drawn.clip(max=BELOW_ONE))
            if given:
                self._tokens[slot, :given] = put(entry.beginning.ids[-given:], device)
                self._logprobs[slot, :given] = put(entry.logprobs, device)
        at = put([entry.slot for entry in entries], device)
        self._uniforms[at, :longest] = uniforms.to(device, non_blocking=True)

        def enter(target: Tensor, values: list[float]) -> None:
            target[at] = put(values, device, target.dtype)

        enter(self.token, [entry.beginning.ids[-1] for entry in entries])
        enter(self.position, [len(entry.beginning.ids) - 1 for entry in entries])
        enter(self.start, [entry.start for entry in entries])
        enter(self._active, [1] * len(entries))
        enter(self._count, [entry.beginning.given for entry in entries])
        enter(self._limit, [s.max_tokens for s in samplings])
        enter(self._temperature, [s.temperature or 1.0 for s in samplings])
        enter(self._greedy, [s.temperature == 0 for s in samplings])
        enter(self._top_p, [s.top_p for s in samplings])
        enter(self._top_k, [s.top_k for s in samplings])
        for entry, sampling in zip(entries, samplings, strict=True):
            if sampling.temperature == 0:
                self._greedy_slots.add(entry.slot)
            elif sampling.top_p < 1 or sampling.top_k > 0:
                self._truncated_slots.add(entry.slot)

    def advance(self, logits: Tensor, stop_ids: Tensor) -> list[int]:
        """Draw the next token of the first R rows from ``logits`` (R, V); returns the slots that finished."""
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
            forced=self._forced[rows] if self._forced_slots else None,
        )
        self._tokens[rows].scatter_(1, count[:, None], token[:, None])
        self._logprobs[rows].scatter_(1, count[:, None], logprob[:, None])
        self.token[rows] = token
        self.position[rows] += active
        count += active
        done = (torch.isin(token, stop_ids) | (count >= self._limit[rows])) & active.bool()
        return [slot for slot, ended in enumerate(done.tolist()) if ended]

    def last_tokens(self, slots: list[int]) -> list[int]:
        """The last token of each of ``slots``."""
        tokens: list[int] = self.token[put(slots, self.token.device)].tolist()
        return tokens

    def force(self, tokens: Mapping[int, int]) -> None:
        """Force the next token of these slots; `NOTHING` lets it be drawn."""
        changed = {s: t for s, t in tokens.items() if t != NOTHING or s in self._forced_slots}
        if changed:
            at = put(list(changed), self.token.device)
            self._forced[at] = put(list(changed.values()), self.token.device)
            self._forced_slots.difference_update(changed)
            self._forced_slots.update(slot for slot, token in changed.items() if token != NOTHING)

    def rewind(self, slot: int, taken_back: int, token: int) -> None:
        """Take back the last tokens of a row; ``token``, now its last, is fed once more."""
        self._count[slot] -= taken_back
        self.position[slot] -= taken_back
        self.token[slot] = token

    def results(self, slots: list[int], stop_ids: Tensor) -> Iterator[tuple[tuple[int, ...], tuple[float, ...], bool]]:
        """Token ids, log-probabilities and whether it stopped by itself, for each of ``slots``."""
        at = put(slots, self.token.device)
        counts = self._count[at].tolist()
        stopped = torch.isin(self.token[at], stop_ids).tolist()
        width = max(counts)
        tokens, logprobs = self._tokens[at, :width].tolist(), self._logprobs[at, :width].tolist()
        for count, ids, logs, stop in zip(counts, tokens, logprobs, stopped, strict=True):
            yield tuple(ids[:count]), tuple(logs[:count]), stop

    def release(self, slots: list[int]) -> None:
        at = put(slots, self.token.device, torch.long)
        for tensor in (self._active, self._count, self.position, self.start):
            tensor[at] = 0
        self.force(dict.fromkeys(slots, NOTHING))
        self._greedy_slots.difference_update(slots)
        self._truncated_slots.difference_update(slots)

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Move rows into free slots."""
        from_, to = (put(slots, self.token.device) for slots in (sources, targets))
        for tensor in vars(self).values():
            if isinstance(tensor, Tensor):
                tensor[to] = tensor[from_]
        for marked in (self._greedy_slots, self._truncated_slots, self._forced_slots):
            marked.update([t for s, t in zip(sources, targets, strict=True) if s in marked])
        self.release(sources)

    def _reserve(self, limit: int) -> None:
        width = self._tokens.shape[1]
        if limit > width:
            for name in ("_uniforms", "_tokens", "_logprobs"):
                setattr(self, name, torch.nn.functional.pad(getattr(self, name), (0, limit - width)))
