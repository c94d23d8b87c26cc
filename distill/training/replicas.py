"""Gradients on several cores: forked copies of the trainer, each with a share of the micro-batches.

For a small model, processes of one thread each beat one process of many threads. They are forked once
per run, after the libraries are loaded. Trained weights are in memory that all of them share, so an
update needs no message; each process writes its gradient into its own piece of shared memory. The parent
adds the gradients up in a fixed order, so for a given number of processes the bits are always the same. A
replica ends with its parent (`pipeline.forking`). Linux only, and only on a CPU.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from distill.engines.weights import shared
from pipeline.errors import PipelineError
from pipeline.forking import ended, fork


def share(parameters: Sequence[Tensor]) -> None:
    """Move parameters into shared memory, keeping their identity and values."""
    for parameter in parameters:
        parameter.data = shared(parameter).copy_(parameter.data)


class Replica:
    """One forked process that runs ``work`` on what it is sent, for its gradient and its answer."""

    def __init__(self, work: Callable[[Any], Any], parameters: Sequence[Tensor], others: Sequence[Replica]) -> None:
        self._parameters = parameters
        self._gradient = [shared(p) for p in parameters]
        self._pipe, theirs = multiprocessing.Pipe()
        inherited = [self._pipe, *(other._pipe for other in others)]
        self._process = fork(_serve, (work, parameters, self._gradient, theirs, inherited))
        theirs.close()

    def send(self, message: Any) -> None:
        try:
            self._pipe.send(message)
        except OSError:
            raise self._died() from None

    def receive(self) -> Any:
        """The answer; its gradient has been added to that of the parameters."""
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if isinstance(answer, Exception):
            raise answer
        for parameter, gradient in zip(self._parameters, self._gradient, strict=True):
            parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _died(self) -> PipelineError:
        self._process.join(1)
        return PipelineError(f"a training process {ended(self._process.exitcode)}; run again to go on")


def _serve(
    work: Callable[[Any], Any],
    parameters: Sequence[Tensor],
    gradient: Sequence[Tensor],
    pipe: Connection,
    inherited: Sequence[Connection],
) -> None:
    """A replica's life, from fork to exit."""
    for other in inherited:  # else this process would keep its siblings' pipes open when the parent dies
        other.close()
    torch.set_num_threads(1)
    for parameter, flat in zip(parameters, gradient, strict=True):
        parameter.grad = flat  # backward accumulates in place
    try:
        while True:
            message = pipe.recv()
            for flat in gradient:
                flat.zero_()
            pipe.send(work(message))
    except (EOFError, OSError):
        pass  # the parent is gone
    except Exception as error:
        pipe.send(PipelineError(f"a training process failed: {type(error).__name__}: {error}"))
    finally:
        os._exit(0)
