"""The forward pass over a packed micro-batch: log-probabilities of the supervised tokens, and on request entropies and
a value head's estimates. That is all that a loss needs.

Hidden states are picked where a label exists before the output head runs. The head runs in tiles
(`distill.training.head`), or, if it is trained or not a plain one, in chunks that are recomputed in the
backward pass when the vocabulary is large: full logits never exist. The last feed-forward block runs only
for the same tokens. `check_packing` compares the pass with the model's own forward on each document alone. It is
called once per run, and catches both contamination between documents and heads with extras
(soft-capped or scaled logits).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from distill.tensors import put
from distill.training import attention
from distill.training.adapted import precision
from distill.training.batching import Example, from_tokens
from distill.training.head import is_plain, through
from distill.training.prefixes import Segment, segments
from pipeline.errors import InputError

CHUNK = 1 << 24
"""Logits held at once (elements): 64 MB in fp32."""
LARGE_CHUNK = 1 << 27
"""The same on a GPU. Each chunk reads a trained head's weights and adds to its gradient, and with a vocabulary of 152k
a small chunk would have only a hundred rows."""
SHAPE_MULTIPLE = 64
"""Sizes are rounded up to a multiple of this in half precision on CPU: every new shape of a product costs a millisecond
and a megabyte there, because oneDNN builds a kernel for it."""
SPARSE = 0.95
"""The last feed-forward block runs only for the tokens that predict something, if they are at most this share."""


@dataclass(frozen=True)
class Pack:
    """Examples as one row. N tokens are computed; L are learned, in the order of ``examples``.

    ``sources`` (L,) are the positions in the row whose hidden states predict ``targets`` (L,). ``needed`` are the same
    positions, sorted and each once, filled up to the ``multiple`` of `pack`; or None if they are nearly all.
    """

    examples: tuple[Example, ...]
    input_ids: Tensor
    position_ids: Tensor
    documents: list[attention.Block]
    sources: Tensor
    targets: Tensor
    needed: Tensor | None


def pack(examples: Sequence[Example], device: torch.device | str = "cpu", multiple: int = 1) -> Pack:
    """Lay the segments of examples end to end, each with the position ids it has in its rows. The row is padded to a
    multiple of ``multiple``, and so are the rectangles of attention (`SHAPE_MULTIPLE`)."""
    spans: dict[Segment, range] = {}
    end = 0
    for segment in (found := segments(examples)):
        spans[segment] = range(end, end := end + len(segment.ids))
    places: list[list[int]] = [[] for _ in examples]  # where each position of an example is computed
    for segment in sorted(found, key=lambda segment: segment.first):
        for row in segment.rows:
            places[row].extend(spans[segment])
    learned = [[t for t, m in enumerate(e.labels_mask) if m and t] for e in examples]
    sources = [where[t - 1] for where, positions in zip(places, learned, strict=True) for t in positions]
    targets = [e.input_ids[t] for e, positions in zip(examples, learned, strict=True) for t in positions]
    fill = range(end, -(-end // multiple) * multiple)
    others = sorted(set(range(fill.stop)) - set(sources), reverse=True)
    needed = sorted({*sources, *others[: -len(set(sources)) % multiple]})
    seen = [[*(spans[b] for b in s.before), spans[s]] for s in found]
    ids, positions = (
        put([[*chain.from_iterable(parts), *[0] * len(fill)]], device)
        for parts in ((s.ids for s in found), (range(s.first, s.last) for s in found))
    )
    return Pack(
        examples=tuple(examples),
        input_ids=ids,
        position_ids=positions,
        documents=attention.blocks(seen, device, multiple, fill),
        sources=put(sources, device),
        targets=put(targets, device),
        needed=put(needed, device) if len(needed) <= SPARSE * end else None,
    )


def causal_lm(model: Any) -> Any:
    """The transformers model itself, without a peft wrapper."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


@contextmanager
def packed(causal: Any, needed: Tensor | None) -> Iterator[None]:
    """Within this context a causal LM attends to packed rows, and the feed-forward block of its last layer, after which
    no token sees another, computes only the ``needed`` tokens of the pack (None: all); the others get zero.

    Torch uses no cuDNN attention here. On Hopper and Blackwell that would be its first choice (torch 2.11, with cuDNN
    9.15 or later). But cuDNN plans for half a second, forward and backward each, for every new shape (measured by
    others on a B200, modelscope/FunASR#3704), and nearly every packed row has a new shape."""
    flags: Any = torch.backends.cuda  # they have no types
    block = getattr(next(reversed(getattr(causal.base_model, "layers", [])), None), "mlp", None)
    with ExitStack() as undo:
        undo.callback(_PASS.reset, _PASS.set((causal, needed)))
        undo.callback(setattr, causal.config, "_attn_implementation", causal.config._attn_implementation)
        causal.config._attn_implementation = attention.NAME
        undo.callback(flags.enable_cudnn_sdp, flags.cudnn_sdp_enabled())
        flags.enable_cudnn_sdp(False)
        if needed is not None and block is not None:
            own = vars(block)
            restore = partial(own.update, forward=own["forward"]) if "forward" in own else partial(own.pop, "forward")
            undo.callback(restore)
            own["forward"] = partial(_rows_only, needed, block.forward)
        yield


_PASS: ContextVar[tuple[Any, Tensor | None] | None] = ContextVar("pass", default=None)
"""What the innermost `packed` was called with."""


def _rows_only(rows: Tensor, forward: Callable[..., Any], hidden_states: Tensor, *rest: Any, **settings: Any) -> Any:
    """Run a block for ``rows`` only, (1, N, D) -> (1, N, D). A block that takes or returns more runs whole."""
    if rest or settings:
        return forward(hidden_states, *rest, **settings)
    made = forward(hidden_states.index_select(1, rows))
    if not isinstance(made, Tensor):
        return forward(hidden_states)
    return made.new_zeros(hidden_states.shape).index_copy(1, rows, made)


def checkpoint_layers(model: Any) -> None:
    """Turn on gradient checkpointing. The recomputation, outside of `states`, repeats the first pass exactly."""
    causal = causal_lm(model)
    causal.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": _contexts})
    causal.disable_input_require_grads()  # a hook that only reentrant checkpoints need, not picklable


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts for the first pass over a layer and for its recomputation."""
    current = _PASS.get()
    return nullcontext(), packed(*current) if current else nullcontext()


def states(model: Any, batch: Pack) -> Tensor:
    """The hidden states (L, D), before the output head, that predict the supervised tokens."""
    causal = causal_lm(model)
    with packed(causal, batch.needed):
        hidden = causal.base_model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,  # with a cache transformers lets packed documents see each other
            documents=batch.documents,
        ).last_hidden_state[0]
    picked: Tensor = hidden.index_select(0, batch.sources)
    return picked


class TokenScores(NamedTuple):
    """For each supervised token, (L,): its natural log-probability, fp32, differentiable; on request the ``entropy`` of
    the whole distribution at its position (nats, no gradient); and, if the model has a value head
    (PPO's, `rl.critic`), its estimate from the state before the token."""

    logprobs: Tensor
    entropy: Tensor | None = None
    values: Tensor | None = None


Pass = Callable[[Any, Pack, float, bool], TokenScores]
"""A model's pass over a pack, at a temperature, with or without entropies. The default is `score_tokens`; another may
give the objective something else in place of a token's log-probability."""
Scorer = Callable[[Pack, float, bool], TokenScores]
"""A `Pass` bound to one model."""


def score_tokens(model: Any, batch: Pack, temperature: float = 1.0, entropy: bool = False) -> TokenScores:
    """The default `Pass`: log-probabilities, and entropies and values where there are any."""
    hidden = states(model, batch)
    scores = TokenScores(*score_states(model, hidden, batch.targets, temperature, entropy))
    head = getattr(model, "value_head", None)
    return scores if head is None else scores._replace(values=head(hidden))


def logprobs(model: Any, batch: Pack, temperature: float = 1.0) -> Tensor:
    """Natural log-probabilities (L,), fp32, of the supervised tokens, differentiable."""
    return score_tokens(model, batch, temperature).logprobs


def score_states(
    model: Any, hidden: Tensor, targets: Tensor, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, ...]:
    """Log-probabilities (L,) of ``targets`` (L,) from the hidden states (L, D) that predict them, and with ``entropy``
    the entropies (L,) of the distributions: a by-product that briefly needs one more chunk of probabilities."""
    head = causal_lm(model).get_output_embeddings()
    if is_plain(head):
        return through(hidden, head.weight, targets, temperature, entropy, precision(hidden))

    def of(states: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        logits = head(states).float() / temperature
        if not entropy:
            return (-F.cross_entropy(logits, targets, reduction="none"),)
        table = logits.log_softmax(-1)
        logprobs = -F.nll_loss(table, targets, reduction="none")
        with torch.no_grad():  # last, so that recomputing the chunk for its gradient skips this
            return logprobs, -table.exp().mul_(table).sum(-1)

    return in_chunks(of, head.weight.shape[0], hidden, targets)


def in_chunks(of: Callable[..., tuple[Tensor, ...]], width: int, *rows: Tensor) -> tuple[Tensor, ...]:
    """Apply ``of`` to ``rows``, each with ``width`` logits, for `CHUNK` logits at once (`LARGE_CHUNK` on a GPU). If
    there are more, each chunk is recomputed in the backward pass."""
    size = max(1, (CHUNK if rows[0].device.type == "cpu" else LARGE_CHUNK) // width)
    if len(rows[0]) <= size:
        return of(*rows)
    parts = zip(*(torch.split(each, size) for each in rows), strict=True)
    found: list[tuple[Tensor, ...]] = [checkpoint(of, *part, use_reentrant=False) for part in parts]
    return tuple(map(torch.cat, zip(*found, strict=True)))


@torch.no_grad()
def check_packing(model: Any) -> None:
    """Raise `InputError` unless a packed pass equals the model's own pass over each document alone."""
    device = next(model.parameters()).device
    vocabulary = causal_lm(model).get_output_embeddings().weight.shape[0]
    rows = [[(7 * i + n) % vocabulary for i in range(n)] for n in (5, 9, 9, 6)]
    probes = [from_tokens("alone", row[:1], row[1:]) for row in rows]
    probes += [from_tokens("sharing", rows[1], row) for row in rows]
    ours = torch.split(logprobs(model, pack(probes, device)), [p.supervised for p in probes])
    kind = causal_lm(model).device.type
    exact = causal_lm(model).dtype == torch.float32 and not torch.is_autocast_enabled(kind)
    for probe, got in zip(probes, ours, strict=True):
        ids = torch.tensor([probe.input_ids], device=device)
        alone = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        gap = (alone.gather(1, ids[0, 1:, None]).squeeze(1)[-len(got) :] - got).abs().max().item()
        if not gap < (1e-3 if exact else 0.3):
            raise InputError(
                f"{type(causal_lm(model)).__name__} cannot be trained on packed rows: log-probabilities differ by "
                f"{gap:.2g} from those of single documents (its attention or output head has extras)"
            )
