"""Prompts into the cache: in batches of like length, in pieces, each prompt once.

All of a prompt but its last token is computed here; that one is fed by the first step of its rows. Of
tokens that a response begins with, the log-probabilities are taken on the way. Called by
`distill.engines.decode` when rows enter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from distill.engines.cache import SlotCache
from distill.engines.groups import Beginning
from distill.engines.sampling import logprobs_of

ROWS = 16
"""The granule of batches. Below 4 rows (12 on two threads) MKL takes other paths, with other bits."""
PIECE = 128
"""Prompts are prefilled in pieces of at most this many tokens."""
TOKENS = 1024
"""Tokens prefilled at once: enough for matrix products, few enough that activations stay in cache."""
LOGITS = 2**24
"""Logits computed at once, where the log-probabilities of given tokens are wanted."""


def prefill(model: Any, cache: SlotCache, prompts: dict[int, Beginning]) -> dict[int, tuple[float, ...]]:
    """Fill the prompt slots; the log-probabilities of the given tokens, by slot, where there are any."""
    logprobs: dict[int, tuple[float, ...]] = {}
    plain = [(slot, begin) for slot, begin in prompts.items() if not begin.given and len(begin.ids) > 1]
    given = [(slot, begin) for slot, begin in prompts.items() if begin.given]
    for batch in _batches(plain, TOKENS):
        for _ in _passes(model.base_model, model, cache, batch):
            pass
    vocabulary = model.config.get_text_config().vocab_size
    for batch in _batches(given, max(1, min(TOKENS, LOGITS // vocabulary))):
        logits = [output.logits for output in _passes(model, model, cache, batch)]
        for row, (slot, begin) in enumerate(batch):
            logprobs[slot] = _given_logprobs(torch.cat([piece[row] for piece in logits]), begin)
    return logprobs


def _batches(prompts: list[tuple[int, Beginning]], tokens: int) -> Iterable[list[tuple[int, Beginning]]]:
    """Long ones first; so many that a piece of each makes about so many ``tokens``."""
    left = sorted(prompts, key=lambda prompt: (len(prompt[1].ids), -prompt[0]))
    while left:
        rows = max(1, tokens // min(PIECE, len(left[-1][1].ids)))
        yield left[-rows:][::-1]
        del left[-rows:]


def _passes(run: Any, model: Any, cache: SlotCache, batch: list[tuple[int, Beginning]]) -> Iterable[Any]:
    """The outputs, piece by piece. Padding lies behind the prompt, where nothing looks at it."""
    length = max(ROWS, -(-max(len(begin.ids) - 1 for _, begin in batch) // 4) * 4)
    padded = [begin.ids[:-1] + (0,) * (length - len(begin.ids) + 1) for _, begin in batch]
    tokens = torch.tensor(padded, device=model.device)
    limit = positions_limit(model) or length
    for start in range(0, length, PIECE):
        piece = range(start, min(start + PIECE, length))
        cache.fill([slot for slot, _ in batch], piece)
        yield run(
            input_ids=tokens[:, piece.start : piece.stop],
            position_ids=cache.positions.clamp(max=limit - 1),
            past_key_values=cache,
            use_cache=True,
        )


def _given_logprobs(logits: Tensor, begin: Beginning) -> tuple[float, ...]:
    """Of the last ``given`` ids, from the ``logits`` (T, V) at all ids but the last."""
    first = len(begin.ids) - begin.given
    wanted = torch.tensor(begin.ids[first:], device=logits.device)
    found = logprobs_of(logits[first - 1 : len(begin.ids) - 1], wanted, begin.temperature)
    return tuple(found.tolist())


def positions_limit(model: Any) -> int | None:
    """Tokens the model has positions for, or None where it sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)
