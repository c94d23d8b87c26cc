"""Run by the test of speculation, in a process of its own: on a CPU vLLM 0.32 starts no further engine in a process
that has loaded what ngrams need (numba). Prints what it saw as JSON."""

from __future__ import annotations

import json
from typing import Any

from vllm_models import TEACHER, logprobs_by_transformers, requests, vllm_engine

from distill.modelspec import Model
from distill.types import ThinkingBudget
from pipeline.errors import InputError

MODEL = Model(str(TEACHER), "teacher")
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4, "prompt_lookup_min": 1}


def main() -> None:
    notes: list[str] = []
    with vllm_engine(MODEL, notes, speculative=NGRAM) as engine:
        greedy = {c.key: c.token_ids for c in engine.generate(requests(8, temperature=0.0))}
        budget = ThinkingBudget(most=16)
        put_in = list(engine.generate(requests(6, "<think>\n7 + ", budget, temperature=0.0)))
        try:
            refused = str(list(engine.generate(requests(1))))
        except InputError as error:
            refused = str(error)
    scores = logprobs_by_transformers(MODEL, put_in, 1.0)
    seen: dict[str, Any] = {
        "notes": notes,
        "greedy": greedy,
        "forced": [c.forced for c in put_in],
        "logprobs": [c.logprobs for c in put_in],
        "by transformers": scores,
        "refused": refused,
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
