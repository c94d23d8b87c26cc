"""Lookahead search: beam search in which a step is worth what it leads to.

Before a step is scored, the response is continued greedily for some steps, and the scorer reads the result. These
steps are then discarded, but paid for (Snell et al. 2024, https://arxiv.org/abs/2408.03314, section 5.1).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Annotated, Any

from pydantic import Field

from rl.search.base import Draft, Need, Piece, draw, score
from rl.search.beam import Beam


class Lookahead(Beam):
    """Beam search that scores each step by where it leads."""

    ahead: Annotated[int, Field(ge=1)] = 2
    """How many steps to look ahead, greedily, before a step is scored."""

    def values(self, pieces: Sequence[Piece]) -> Generator[Need, Any, list[float]]:
        seen = list(pieces)
        for _ in range(self.ahead):
            open_ = [at for at, piece in enumerate(seen) if not piece.over]
            if not open_:
                break
            further = yield from draw([Draft(0, seen[at].text, step=True, greedy=True) for at in open_])
            for at, piece in zip(open_, further, strict=True):
                seen[at] = piece
        return (yield from score(seen, self.aggregate))
