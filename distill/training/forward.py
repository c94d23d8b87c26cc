"""Log-probabilities of the supervised tokens of a packed micro-batch: all that a loss ever needs.

Hidden states are picked where a label exists before the output head runs, and the head runs in
chunks that are recomputed in the backward pass when the vocabulary is large: full logits never
exist. `check_packing` compares with the model's own forward on each document alone; it is called
once per run, and catches both contamination between documents and heads with extras of their own
(soft-capped or scaled logits).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from distill.training import attention
from distill.training.batching import Example
from pipeline.errors import InputError

CHUNK = 1 << 24
"""Logits held at once (elements): 64 MB in fp32."""


@dataclass(frozen=True)
class Pack:
    """Examples as one row. N tokens, L of them supervised, in the order of ``examples``.

    ``sources`` (L,) are the positions whose hidden state predicts ``targets`` (L,).
    """

    examples: tuple[Example, ...]
    input_ids: Tensor
    position_ids: Tensor
    documents: list[attention.Block]
    sources: Tensor
    targets: Tensor


def pack(examples: Sequence[Example], device: torch.device | str = "cpu") -> Pack:
    """Lay examples, shortest first, end to end with positions that restart."""
    ordered = tuple(sorted(examples, key=len))
    ids = torch.tensor([i for e in ordered for i in e.input_ids])
    positions = torch.cat([torch.arange(len(e)) for e in ordered])
    learned = torch.tensor([m for e in ordered for m in (False, *e.labels_mask[1:])])
    where = learned.nonzero().squeeze(1)
    return Pack(
        examples=ordered,
        input_ids=ids.unsqueeze(0).to(device),
        position_ids=positions.unsqueeze(0).to(device),
        documents=attention.blocks([len(e) for e in ordered], device),
        sources=(where - 1).to(device),
        targets=ids[where].to(device),
    )


def causal_lm(model: Any) -> Any:
    """The transformers model itself, out of a peft wrapper if there is one."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


@contextmanager
def _packed(config: Any) -> Iterator[None]:
    before = config._attn_implementation
    config._attn_implementation = attention.NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def states(model: Any, batch: Pack) -> Tensor:
    """Hidden states (L, D), before the output head, from which the supervised tokens are predicted."""
    causal = causal_lm(model)
    with _packed(causal.config):
        hidden = causal.base_model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,  # with a cache transformers lets packed documents see each other
            documents=batch.documents,
        ).last_hidden_state[0]
    picked: Tensor = hidden.index_select(0, batch.sources)
    return picked


def logprobs(model: Any, batch: Pack, temperature: float = 1.0) -> Tensor:
    """Natural log-probabilities (L,), fp32, of the supervised tokens, differentiable."""
    hidden = states(model, batch)
    head = causal_lm(model).get_output_embeddings()

    def of(states: Tensor, targets: Tensor) -> Tensor:
        return -F.cross_entropy(head(states).float() / temperature, targets, reduction="none")

    size = max(1, CHUNK // head.weight.shape[0])
    if len(hidden) <= size:
        return of(hidden, batch.targets)
    parts = zip(torch.split(hidden, size), torch.split(batch.targets, size), strict=True)
    return torch.cat([checkpoint(of, h, t, use_reentrant=False) for h, t in parts])


@torch.no_grad()
def check_packing(model: Any) -> None:
    """Raise unless a packed pass equals the model's own pass over each document alone."""
    device = next(model.parameters()).device
    vocabulary = causal_lm(model).get_output_embeddings().weight.shape[0]
    probes = [Example(str(n), tuple((7 * i + n) % vocabulary for i in range(n)), (True,) * n) for n in (5, 9, 9)]
    ours = torch.split(logprobs(model, pack(probes, device)), [len(p) - 1 for p in probes])
    exact = causal_lm(model).dtype == torch.float32
    for probe, got in zip(probes, ours, strict=True):
        ids = torch.tensor([probe.input_ids], device=device)
        alone = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        gap = (alone.gather(1, ids[0, 1:, None]).squeeze(1) - got).abs().max().item()
        if not gap < (1e-3 if exact else 0.3):
            raise InputError(
                f"{type(causal_lm(model)).__name__} cannot be trained on packed rows: log-probabilities differ by "
                f"{gap:.2g} from those of single documents (its attention or output head has extras of its own)"
            )
