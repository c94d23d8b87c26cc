"""Drawing tokens from logits: inverse transform sampling, one uniform number a token.

Each row is a function of its own logits, uniform and settings alone; which branches the neighbours
need changes no bit of it. Called by `distill.engines.decode`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw(
    logits: Tensor,
    uniforms: Tensor,
    temperature: Tensor,
    greedy: Tensor | None = None,
    top_p: Tensor | None = None,
    top_k: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Token ids (R,) and their log-probabilities (R,) in nats, float32.

    ``logits`` (R, V), ``uniforms`` (R,) in [0, 1) double, ``temperature`` (R,) above 0. The token is the
    first whose cumulative probability exceeds the uniform. ``greedy`` rows take the largest logit;
    ``top_p`` and ``top_k`` (1.0 and 0 keep all) restrict what may be drawn. Log-probabilities are those
    of the whole distribution at this temperature, whether or not it was truncated.
    """
    scaled = logits.float() / temperature[:, None]
    scaled -= scaled.amax(-1, keepdim=True)
    weights = scaled.exp()
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    if top_p is not None and top_k is not None:
        allowed = weights * kept(weights / total, top_p, top_k)
        cumulative = allowed.cumsum(-1, dtype=torch.float64)
    tokens = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
    if greedy is not None:
        tokens = torch.where(greedy[:, None], logits.argmax(-1, keepdim=True), tokens)
    return tokens[:, 0], (scaled.gather(1, tokens) - total.log())[:, 0].float()


def kept(probabilities: Tensor, top_p: Tensor, top_k: Tensor) -> Tensor:
    """Which tokens (R, V) survive: the ``top_k`` likeliest and of those the smallest set of mass ``top_p``.

    Ties with the last one that survives do too.
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
