"""Prefill: computes prompts into the cache, each prompt once, in batches of similar length and in chunks.

All of a prompt but its last token is computed here; the first decoding step of its rows feeds that one. If a response
begins with given tokens, their log-probabilities are computed along the way. Called by `distill.engines.decode` when
rows enter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor

from distill.engines.cache import KeyValues, SlotCache
from distill.engines.groups import Beginning, granules
from distill.engines.sampling import logprobs_of
from distill.tensors import put

ROWS = 16
"""Decoding batches are multiples of this many rows. Below 4 rows (12 on two threads), MKL's kernels give other bits."""
PIECE = 128
"""On a CPU prompts are prefilled in pieces of at most this many tokens."""
TOKENS = 1024
"""Tokens per pass on a CPU: enough for fast matrix products, few enough that activations stay in cache."""
MANY = 16384
"""Most tokens per pass on a GPU. A pass there costs its kernel launches, and a piece may be as large as the pass."""
LARGE = 2**28
"""Most attention scores of a layer, or logits, per pass on a GPU: about 1.5 GB with the softmax in fp32."""
NEVER = 2**62
LOGITS = 2**24
"""Logits per pass on a CPU, where the log-probabilities of given tokens are needed."""


class Plan:
    """What to compute and what to copy before rows enter: long prompts by prompt slot, short ones by row.

    ``holders`` maps beginnings to rows that hold them already.
    """

    def __init__(self, holders: dict[Beginning, int]) -> None:
        self._holders = holders
        self.shared: dict[int, Beginning] = {}
        self.own: dict[int, Beginning] = {}
        self.shared_copies: dict[int, list[tuple[int, int]]] = {}
        self.own_copies: dict[int, list[tuple[int, int]]] = {}
        """(source, target) slots, by the length to copy."""
        self.longest = 0

    def share(self, beginning: Beginning, slot: int, source: int | None) -> None:
        self.longest = max(self.longest, granules(len(beginning.ids)))
        if source is None:
            self.shared[slot] = beginning
        elif source != slot:
            self.shared_copies.setdefault(granules(len(beginning.ids)), []).append((source, slot))

    def copy(self, beginning: Beginning, row: int) -> None:
        source = self._holders.setdefault(beginning, row)
        if source == row:
            self.own[row] = beginning
        else:
            self.own_copies.setdefault(granules(len(beginning.ids)), []).append((source, row))


def prefill(model: Any, cache: SlotCache, plan: Plan) -> dict[Beginning, tuple[float, ...]]:
    """Carry out the plan; returns the log-probabilities of given tokens, for the beginnings that have any."""
    logprobs: dict[Beginning, tuple[float, ...]] = {}
    for store, fill, copies in (
        (cache.prompts, plan.shared, plan.shared_copies),
        (cache.rows, plan.own, plan.own_copies),
    ):
        store.grow()
        logprobs |= _fill(model, cache, store, fill)
        for length, pairs in copies.items():
            store.copy([source for source, _ in pairs], [target for _, target in pairs], length)
    return logprobs


def _fill(
    model: Any, cache: SlotCache, store: KeyValues, prompts: dict[int, Beginning]
) -> dict[Beginning, tuple[float, ...]]:
    sizes = _sizes(model, max((len(begin.ids) for begin in prompts.values()), default=0))
    plain = [(slot, begin) for slot, begin in prompts.items() if not begin.given and len(begin.ids) > 1]
    for batch in _batches(plain, sizes.piece, sizes.tokens):
        for _ in _passes(model, cache, store, batch, sizes.piece):
            pass
    given = [(slot, begin) for slot, begin in prompts.items() if begin.given]
    found: dict[Beginning, tuple[float, ...]] = {begin: () for _, begin in given}
    size = max(PIECE, min(sizes.piece, sizes.logits))
    for batch in _batches(given, size, sizes.logits):
        first = min(len(begin.ids) - begin.given for _, begin in batch) - 1
        for piece, output in _passes(model, cache, store, batch, size, first):
            if piece.stop > first:
                for (_, begin), logits in zip(batch, output.logits, strict=True):
                    found[begin] += _given_logprobs(logits, piece, begin)
    return found


class _Sizes(NamedTuple):
    """Tokens per pass: of one prompt, of all prompts, and of all prompts if logits are needed."""

    piece: int
    tokens: int
    logits: int


def _sizes(model: Any, longest: int) -> _Sizes:
    """The sizes of passes over prompts of up to ``longest`` tokens."""
    config = model.config.get_text_config()
    if model.device.type == "cpu":
        return _Sizes(PIECE, TOKENS, min(TOKENS, max(1, LOGITS // config.vocab_size)))
    tokens = max(TOKENS, min(MANY, LARGE // (config.num_attention_heads * granules(longest))))
    return _Sizes(tokens, tokens, min(tokens, max(1, LARGE // config.vocab_size)))


def _batches(prompts: list[tuple[int, Beginning]], piece: int, tokens: int) -> Iterable[list[tuple[int, Beginning]]]:
    """Batches, long prompts first, of such a size that a ``piece`` of each prompt adds up to about ``tokens``."""
    left = sorted(prompts, key=lambda prompt: (len(prompt[1].ids), -prompt[0]))
    while left:
        rows = max(1, tokens // min(piece, len(left[-1][1].ids)))
        yield left[-rows:][::-1]
        del left[-rows:]


def _passes(
    model: Any, cache: SlotCache, store: KeyValues, batch: list[tuple[int, Beginning]], size: int, first: int = NEVER
) -> Iterable[tuple[range, Any]]:
    """(piece, output) for each piece of ``size`` tokens, with logits from the piece on that holds position ``first``.

    Padding comes after the prompt, where nothing attends to it.
    """
    length = max(ROWS, -(-max(len(begin.ids) - 1 for _, begin in batch) // 4) * 4)
    padded = [begin.ids[:-1] + (0,) * (length - len(begin.ids) + 1) for _, begin in batch]
    tokens = put(padded, model.device)
    limit = positions_limit(model) or length
    for start in range(0, length, size):
        piece = range(start, min(start + size, length))
        cache.fill(store, [slot for slot, _ in batch], piece)
        run = model if piece.stop > first else model.base_model
        yield (
            piece,
            run(
                input_ids=tokens[:, piece.start : piece.stop],
                position_ids=cache.positions.clamp(max=limit - 1),
                past_key_values=cache,
                use_cache=True,
            ),
        )


def _given_logprobs(logits: Tensor, piece: range, begin: Beginning) -> tuple[float, ...]:
    """Log-probabilities of the given ids that this piece predicts, by its ``logits`` (T, V); position p predicts the id
    after it."""
    behind = range(max(piece.start, len(begin.ids) - begin.given - 1), min(piece.stop, len(begin.ids) - 1))
    if not behind:
        return ()
    wanted = put(begin.ids[behind.start + 1 : behind.stop + 1], logits.device)
    predicting = logits[behind.start - piece.start : behind.stop - piece.start]
    return tuple(logprobs_of(predicting, wanted, begin.temperature).tolist())


def positions_limit(model: Any) -> int | None:
    """The number of positions that the model has, or None if it sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)
