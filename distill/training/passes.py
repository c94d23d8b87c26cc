"""Passes of one process over micro-batches: what each row is told, and the gradient of a loss over them.

What the loss is, and how rows are cut and shared out, is the caller's (`distill.training.learner`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill.tensors import put
from distill.training.batching import Example, micro_batches
from distill.training.forward import FEW, Scorer, logprobs, pack


@dataclass(frozen=True, slots=True)
class Row:
    """An example and what its loss needs: for each stream, one value per supervised token."""

    example: Example
    streams: Mapping[str, Sequence[float]]


Objective = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
"""Log-probabilities (L,) and streams (L,) of the supervised tokens of a micro-batch -> loss (a scalar). Among the
streams are ``reference`` where asked for, and ``value``, with its gradient, where the model has a value head.

Losses of micro-batches are summed, so an objective must carry its normalisation by the whole step in
its streams. It is sent to other processes: a module's function, or a `functools.partial` of one.
"""


class Scored(NamedTuple):
    """What a pass made of one row's supervised tokens, before the update: `forward.Told`, as lists.

    ``reference`` are the log-probabilities of the model without its adapter. Empty is what was not asked for.
    """

    logprobs: list[float]
    reference: list[float]
    entropy: list[float]
    values: list[float]


class Task(NamedTuple):
    """Micro-batches to be passed over, and what for: with an objective there is a backward pass, too."""

    runs: list[list[Row]]
    objective: Objective | None
    temperature: float
    reference: bool
    entropy: bool
    idle: int = 0
    """So many of the runs, the last, are made for the other ranks' sake and count for nothing."""


def accumulate(task: Task, ask: Scorer, model: Any, device: torch.device, half: bool) -> list[Scored]:
    """Forward and backward over micro-batches; gradients add up in the parameters. ``ask`` passes over ``model``."""
    rows: list[Row] = []
    columns: list[tuple[Tensor | None, ...]] = []
    for number, run in enumerate(task.runs):
        counts = number < len(task.runs) - task.idle
        batch = pack([row.example for row in run], device, FEW if half and device.type == "cpu" else 1)
        streams = {name: put([value for row in run for value in row.streams[name]], device) for name in run[0].streams}
        precision = partial(torch.autocast, device.type, torch.bfloat16) if half else nullcontext
        if task.reference:
            with torch.no_grad(), model.disable_adapter(), precision():
                streams["reference"] = ask(batch, task.temperature, False).logprobs
        with torch.set_grad_enabled(task.objective is not None):
            with precision():
                told = ask(batch, task.temperature, task.entropy)
            if told.values is not None:
                streams["value"] = told.values
            if task.objective is not None:
                torch.autograd.backward(task.objective(told.logprobs, streams) * (1.0 if counts else 0.0))
        if counts:
            rows += run
            known = (told.logprobs, streams.get("reference"), told.entropy, told.values)
            columns.append(tuple(None if values is None else values.detach() for values in known))
    # Read at the end: a GPU is waited for here, not after each micro-batch, whose successor would find it idle.
    return [Scored(*row) for row in zip(*(_by_row(column, rows) for column in zip(*columns, strict=True)), strict=True)]


@torch.no_grad()
def likelihoods(model: Any, examples: Sequence[Example], max_tokens: int, temperature: float = 1.0) -> list[Tensor]:
    """The log-probabilities of each example's supervised tokens, in micro-batches; no logits are kept."""
    found: dict[int, Tensor] = {}
    for run in micro_batches(examples, max_tokens):
        batch = pack([examples[i] for i in run], model.device)
        parts = torch.split(logprobs(model, batch, temperature), [example.supervised for example in batch.examples])
        found |= zip(run, parts, strict=True)
    return [found[i] for i in range(len(examples))]


def _by_row(parts: Sequence[Tensor | None], rows: Sequence[Row]) -> list[list[float]]:
    """What micro-batches were told, one after the other, as a list for each of their rows."""
    if not (found := [part for part in parts if part is not None]):
        return [[] for _ in rows]
    numbers = iter(torch.cat(found).tolist())
    return [[*islice(numbers, row.example.supervised)] for row in rows]
