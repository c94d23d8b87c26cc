"""Drawing tokens from logits: inverse transform sampling, with one uniform number per token.

Each row depends only on its own logits, uniform number and settings; the settings of other rows change no bit of
it. Called by `distill.engines.rows`.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64
"""Tokens per block: a draw first finds the block, by the sums of blocks, and then the token in it."""
BELOW_ONE = 1 - 2.0**-50
"""Uniform numbers are capped here, so that none rounds up to the end of a cumulative sum."""


def draw(
    logits: Tensor,
    uniforms: Tensor,
    temperature: Tensor,
    greedy: Tensor | None = None,
    top_p: Tensor | None = None,
    top_k: Tensor | None = None,
    forced: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Token ids (R,) and their log-probabilities (R,) in nats, float32.

    ``logits`` (R, V), ``uniforms`` (R,) in [0, 1) double, ``temperature`` (R,) above 0. The token is the
    first whose cumulative probability exceeds the uniform. ``greedy`` rows take the largest logit;
    ``top_p`` and ``top_k`` (1.0 and 0 keep all) restrict what may be drawn; a ``forced`` token of at
    least 0 is taken whatever was drawn. Log-probabilities are those of the whole distribution at this
    temperature, whether or not it was truncated.
    """
    scaled = logits.float() / temperature[:, None]
    scaled -= scaled.amax(-1, keepdim=True)
    weights = _padded(scaled.exp())
    sums = _block_sums(weights)
    total = sums.sum(-1, keepdim=True)
    if top_p is not None and top_k is not None:
        weights = weights * kept(weights / total, top_p, top_k)
        sums = _block_sums(weights)
    tokens = _inverse_transform(weights, sums, uniforms[:, None])
    if greedy is not None:
        tokens = torch.where(greedy[:, None], logits.argmax(-1, keepdim=True), tokens)
    if forced is not None:
        tokens = torch.where(forced[:, None] >= 0, forced[:, None], tokens)
    return tokens[:, 0], (scaled.gather(1, tokens) - total.log())[:, 0].float()


def logprobs_of(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Log-probabilities (N,) of ``tokens`` (N,) that were not drawn, by the same definition."""
    return (logits.float() / temperature).log_softmax(-1).gather(1, tokens[:, None])[:, 0]


def _padded(weights: Tensor) -> Tensor:
    """``weights`` padded with tokens of weight 0, so that the vocabulary is a whole number of blocks."""
    missing = -weights.shape[1] % BLOCK
    return torch.nn.functional.pad(weights, (0, missing)) if missing else weights


def _block_sums(weights: Tensor) -> Tensor:
    """(R, V) to the sums of its blocks (R, B), in double."""
    return weights.view(len(weights), -1, BLOCK).sum(-1).double()


def _inverse_transform(weights: Tensor, sums: Tensor, uniforms: Tensor) -> Tensor:
    """The first token whose cumulative weight exceeds ``uniforms`` (R, 1) of the total: first its block, then it."""
    cumulative = sums.cumsum(-1)
    target = uniforms * cumulative[:, -1:]
    block = torch.searchsorted(cumulative, target, right=True)
    begin = block * BLOCK
    inside = weights.gather(1, begin + torch.arange(BLOCK, device=begin.device)).cumsum(-1, dtype=torch.float64)
    rest = target - cumulative.gather(1, block) + sums.gather(1, block)
    # A block's sum and the last of its cumulative sums differ in the last bits; never draw a token of weight 0.
    rest = torch.minimum(rest.clamp_(min=0.0), inside[:, -1:] * BELOW_ONE)
    return begin + torch.searchsorted(inside, rest, right=True)


def kept(probabilities: Tensor, top_p: Tensor, top_k: Tensor) -> Tensor:
    """Which tokens (R, V) survive: the ``top_k`` likeliest and of those the smallest set of mass ``top_p``.

    Tokens that tie with the last survivor survive too.
    """
    sizes = torch.where(top_k > 0, top_k, probabilities.shape[1])
    ranked = probabilities.sort(-1, descending=True).values
    rank = torch.arange(ranked.shape[1], device=ranked.device)
    ranked = ranked * (rank < sizes[:, None])
    mass = ranked.cumsum(-1, dtype=torch.float64)
    within = (mass - ranked < top_p[:, None] * mass[:, -1:]) & (rank < sizes[:, None])
    last = within.sum(-1, keepdim=True) - 1
    floor = ranked.gather(1, last)
    everything = ((top_p >= 1) & (top_k <= 0))[:, None]
    return (probabilities >= floor) | everything
