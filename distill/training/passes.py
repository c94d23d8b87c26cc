"""Passes of one process over micro-batches: the scores of each row, and the gradient of a loss over them.

The caller (`distill.training.learner`) chooses the loss, and cuts and distributes the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill.tensors import put
from distill.training.batching import Example, micro_batches
from distill.training.forward import SHAPE_MULTIPLE, Scorer, logprobs, pack
from pipeline.errors import PipelineError


@dataclass(frozen=True, slots=True)
class Row:
    """An example and what its loss needs: for each stream, one value per supervised token."""

    example: Example
    streams: Mapping[str, Sequence[float]]


Objective = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
"""Log-probabilities (L,) and streams (L,) of the supervised tokens of a micro-batch -> loss (a scalar). The streams
include ``reference`` on request, and ``value``, with its gradient, if the model has a value head.

Losses of micro-batches are summed, so an objective must carry its normalisation by the whole step in
its streams. It is sent to other processes: a module's function, or a `functools.partial` of one.
"""


class RowScores(NamedTuple):
    """The results of a pass for one row's supervised tokens, before the update: `forward.TokenScores`, as lists.

    ``reference`` are the log-probabilities of the model without its adapter. What was not requested is empty.
    """

    logprobs: list[float]
    reference: list[float]
    entropy: list[float]
    values: list[float]


class Work(NamedTuple):
    """Micro-batches to pass over, and how: with an objective there is a backward pass, too."""

    micro_batches: list[list[Row]]
    objective: Objective | None
    temperature: float
    reference: bool
    entropy: bool
    idle: int = 0
    """This many, the last ones, only keep step with other ranks and count for nothing."""


def accumulate(work: Work, scorer: Scorer, model: Any, device: torch.device, half: bool) -> list[RowScores]:
    """Forward and backward over micro-batches; gradients add up in the parameters. ``scorer`` passes over ``model``."""
    rows: list[Row] = []
    columns: list[tuple[Tensor | None, ...]] = []
    for number, micro in enumerate(work.micro_batches):
        counts = number < len(work.micro_batches) - work.idle
        batch = pack([row.example for row in micro], device, SHAPE_MULTIPLE if half and device.type == "cpu" else 1)
        streams = {
            name: put([value for row in micro for value in row.streams[name]], device) for name in micro[0].streams
        }
        precision = partial(torch.autocast, device.type, torch.bfloat16) if half else nullcontext
        if work.reference:
            with torch.no_grad(), model.disable_adapter(), precision():
                streams["reference"] = scorer(batch, work.temperature, False).logprobs
        with torch.set_grad_enabled(work.objective is not None):
            with precision():
                scores = scorer(batch, work.temperature, work.entropy)
            if scores.values is not None:
                streams["value"] = scores.values
            if work.objective is not None:
                torch.autograd.backward(work.objective(scores.logprobs, streams) * (1.0 if counts else 0.0))
        if counts:
            rows += micro
            known = (scores.logprobs, streams.get("reference"), scores.entropy, scores.values)
            columns.append(tuple(None if values is None else values.detach() for values in known))
    # Read at the end: this waits for the GPU, and after each micro-batch it would leave the GPU idle.
    sizes = [row.example.supervised for row in rows]
    return [
        RowScores(*row) for row in zip(*(_by_row(column, sizes) for column in zip(*columns, strict=True)), strict=True)
    ]


@torch.no_grad()
def likelihoods(
    model: Any, examples: Sequence[Example], max_tokens: int, temperature: float = 1.0
) -> list[list[float]]:
    """The log-probabilities of each example's supervised tokens, in micro-batches; no logits are kept. Raises
    `PipelineError` if one is NaN, which would be taken for some likelihood. If the model is being trained (a weight
    requires a gradient), the error blames the training, otherwise the model's files."""
    order = micro_batches(examples, max_tokens)
    parts = [logprobs(model, pack([examples[i] for i in micro], model.device), temperature) for micro in order]
    found = in_order(parts, order, [example.supervised for example in examples])
    if any(map(math.isnan, chain.from_iterable(found))):
        if any(weight.requires_grad for weight in model.parameters()):
            raise PipelineError(
                "training diverged: the student's log-probabilities are no numbers any more; lower learning_rate"
            )
        name = model.config.name_or_path
        raise PipelineError(f"model {name}: gives log-probabilities that are no numbers: its weights are broken")
    return found


def in_order(
    parts: Sequence[Tensor], micro_batches: Sequence[Sequence[int]], sizes: Sequence[int]
) -> list[list[float]]:
    """The numbers of each row; each part has those of the rows of a run. Read at once, to wait for a GPU only once."""
    rows = list(chain.from_iterable(micro_batches))
    found = dict(zip(rows, _by_row(parts, [sizes[row] for row in rows]), strict=True))
    return [found[row] for row in range(len(sizes))]


def _by_row(parts: Sequence[Tensor | None], sizes: Sequence[int]) -> list[list[float]]:
    """The results of consecutive micro-batches, as a list for each of their rows."""
    if not (found := [part for part in parts if part is not None]):
        return [[] for _ in sizes]
    numbers = iter(torch.cat(found).tolist())
    return [[*islice(numbers, size)] for size in sizes]
