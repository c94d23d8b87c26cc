"""Diverse verifier tree search: N/M independent trees, each following its best step.

Beam search spends its whole budget on whatever scores best early on. Here each tree keeps its own beginning, so the
answers differ, which a vote at the end needs (Beeching, Tunstall and Rush 2024, "Scaling test-time compute with open
models").
"""

from __future__ import annotations

from rl.search.base import Draft, Search
from rl.search.beam import Scored, Tree, next_steps


class Dvts(Tree):
    """Diverse beams: in each of N/M trees the best of M steps continues."""

    def search(self, samples: int) -> Search:
        trees, width = self.beams(samples)
        ended: list[Scored] = []
        going: dict[int, str] = dict.fromkeys(range(trees), "")
        while going:
            drafts: list[Draft] = []
            for tree, text in going.items():  # own indices: trees with equal texts continue differently
                drafts += next_steps(text, width, tree * width)
            grown = yield from self.grow(drafts)
            best = [max(grown[at : at + width], key=lambda scored: scored[1]) for at in range(0, len(grown), width)]
            ended += [scored for scored in best if scored[0].over]
            going = {tree: p.text for tree, (p, _) in zip(going, best, strict=True) if not p.over}
        return self.chosen(ended)
