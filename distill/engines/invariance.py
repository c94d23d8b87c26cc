"""Batch invariance: whether a row gets the same bits alone and in a full batch, on this machine with this model.

It depends on which kernels the matrix library chooses, so it is measured, not assumed: a few samples drawn alone
must have the same tokens and log-probabilities as when drawn among many others of all lengths, some of which
share their prompts.
"""

from __future__ import annotations

from typing import Any

import torch

from distill.engines.decode import Decoder, Job, Sample
from distill.engines.groups import LONG
from distill.engines.prefill import positions_limit
from distill.randomness import generator
from distill.types import Sampling

LENGTHS = (2, 23, 70, LONG + 5)
"""Prompt lengths to probe: less than a granule of keys, more than one, several, and long enough to be shared."""

TOKENS = 3


def is_batch_invariant(model: Any, slots: int) -> bool:
    """True on a CPU in float32 if the probes agree. ``model`` must attend through slots (`plug_in`)."""
    if model.device.type != "cpu" or model.dtype is not torch.float32:
        return False
    vocabulary = model.config.get_text_config().vocab_size

    def job(name: str, length: int, prompt: str = "") -> Job:
        ids = generator("invariance", prompt or name).integers(vocabulary, size=length)
        return Job(name, tuple(int(i) for i in ids), Sampling(max_tokens=TOKENS))

    lengths = [length for length in LENGTHS if length + TOKENS <= (positions_limit(model) or length + TOKENS)]
    probes = [job(f"probe {length}", length) for length in lengths]
    siblings = [job(f"sibling {length}.{i}", length, f"probe {length}") for length in lengths[1:] for i in range(3)]
    crowd = siblings + [job(f"crowd {i}", 1 + i * 7 % 90) for i in range(max(0, slots - len(probes) - len(siblings)))]
    alone = [sample for probe in probes for sample in _drawn(model, slots, [probe])]
    together = {sample.key: sample for sample in _drawn(model, slots, probes + crowd)}
    return all(_same(sample, together[sample.key]) for sample in alone)


def _drawn(model: Any, slots: int, jobs: list[Job]) -> list[Sample]:
    decoder, samples = Decoder(model, stop_ids=(), slots=slots), []
    decoder.add(jobs)
    while decoder.busy:
        samples += decoder.step()
    return samples


def _same(one: Sample, other: Sample) -> bool:
    return one.token_ids == other.token_ids and one.logprobs == other.logprobs
