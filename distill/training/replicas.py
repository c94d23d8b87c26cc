"""Gradients on several cores: forked copies of the trainer, each with a share of the micro-batches.

For a small model, processes of one thread each beat one process of many threads. They are forked once
per run, after the libraries are loaded. Trained weights are in memory that all of them share, so an
update needs no message; each process writes its gradient into its own piece of shared memory. The parent
adds the gradients up in a fixed order, so for a given number of processes the bits are always the same. A
replica ends with its parent (`pipeline.forking`). Linux only, and only on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from distill.engines.weights import shared
from pipeline.forking import ForkedWorker


def share(parameters: Sequence[Tensor]) -> None:
    """Move parameters into shared memory, keeping their identity and values."""
    for parameter in parameters:
        parameter.data = shared(parameter).copy_(parameter.data)


class Replica(ForkedWorker):
    """One forked process that runs ``work`` on what it is sent, for its gradient and its answer."""

    def __init__(self, work: Callable[[Any], Any], parameters: Sequence[Tensor], others: Sequence[Replica]) -> None:
        self._parameters = parameters
        self._gradient = [shared(p) for p in parameters]
        serve = partial(_serve, work, parameters, self._gradient)
        super().__init__("a training process", "run again to go on", serve, others)

    def receive(self) -> Any:
        """The answer; its gradient has been added to that of the parameters."""
        answer = super().receive()
        for parameter, gradient in zip(self._parameters, self._gradient, strict=True):
            parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)
        return answer


def _serve(
    work: Callable[[Any], Any], parameters: Sequence[Tensor], gradient: Sequence[Tensor], pipe: Connection
) -> None:
    torch.set_num_threads(1)
    for parameter, flat in zip(parameters, gradient, strict=True):
        parameter.grad = flat  # backward accumulates in place
    while True:
        message = pipe.recv()
        for flat in gradient:
            flat.zero_()
        pipe.send(work(message))
