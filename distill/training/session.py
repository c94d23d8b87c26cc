"""Set a training up and take it down again: process settings, ranks, replicas.

Loops use `learning`; `follow` is its counterpart on the ranks above 0.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils import deterministic

from distill.training.allocator import keep_freed_memory, limit_kernel_caches
from distill.training.forward import Pass, check_packing, score_tokens
from distill.training.launch import assembled
from distill.training.lean import lean
from distill.training.learner import BeforeSave, Learner, LearnerSettings, nothing
from distill.training.memory import SMALL
from distill.training.ranks import Ranks
from distill.training.rotary import quick_rotary
from pipeline.errors import InputError


@contextmanager
def learning(
    model: Any, settings: LearnerSettings, total: int, directory: Path, run: str, before_save: BeforeSave = nothing,
    measure: Pass = score_tokens,
) -> Iterator[Learner]:  # fmt: skip
    """A learner in a `prepared` process. It computes on ``settings.threads`` cores: in processes of one thread each for
    a small model on CPU and Linux, otherwise in threads of one process.

    ``before_save`` is called before each checkpoint: what a step has reported must be durable before the step counts as
    done.
    """
    with assembled(settings.devices) as ranks:
        if ranks and measure is not score_tokens:
            raise InputError("what a measure of its own makes of a pass can be learned on one device only (devices: 1)")
        processes = 1 if ranks else _processes(model, settings)
        sharded = ranks is not None and settings.parallel == "fsdp"
        with prepared(model, max(1, settings.threads // (ranks.size if ranks else processes)), sharded):
            check_packing(model)
            if settings.precision == "bf16":  # before forking, so that the processes share the cast weights
                with torch.autocast(model.device.type, torch.bfloat16):
                    check_packing(model)
            if ranks:
                ranks.begin({"settings": settings, "total": total})
            learner = Learner(model, settings, total, directory, run, before_save, ranks, measure)
            try:
                learner.fork(processes)
                yield learner
            finally:
                learner.close()


def _processes(model: Any, settings: LearnerSettings) -> int:
    small = sum(p.numel() for p in model.parameters()) <= SMALL
    return settings.threads if small and model.device.type == "cpu" and sys.platform == "linux" else 1


def follow(ranks: Ranks, settings: LearnerSettings, total: int) -> None:
    """Take part in one training on a rank above 0: run what rank 0's learner calls on every rank, until it ends. The
    model arrives as rank 0 has `prepared` it, lean layers included; what is replaced in the library's own modules is
    replaced here."""
    with reproducible(max(1, settings.threads // ranks.size)):
        learner = Learner(None, settings, total, Path(), "", nothing, ranks)
        with quick_rotary(learner.model):
            while (call := ranks.receive()) is not None:
                name, arguments = call
                ranks.reply(getattr(learner, name)(*arguments))


@contextmanager
def prepared(model: Any, threads: int, sharded: bool = False) -> Iterator[None]:
    """Training mode and lean layers, in a `reproducible` process; undone afterwards."""
    before = model.training
    model.train()
    try:
        with reproducible(threads), lean(model, sharded), quick_rotary(model):
            yield
    finally:
        model.train(before)


@contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """A fixed number of threads, deterministic kernels, a bounded kernel cache and kept memory; undone afterwards.

    On a GPU, torch may choose any kernel: equal bits are promised on CPUs only, and deterministic GPU kernels are slow
    where a sampler writes keys and values (index_put sorts) and missing for some operations."""
    limit_kernel_caches()
    products: Any = torch.backends.cuda.matmul
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    rounds = products.allow_bf16_reduced_precision_reduction
    torch.set_num_threads(threads)
    products.allow_bf16_reduced_precision_reduction = False  # by default cuBLAS may round partial sums
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    setattr(deterministic, "fill_uninitialized_memory", False)  # noqa: B010  (a costly debugging aid)
    try:
        with keep_freed_memory():
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        products.allow_bf16_reduced_precision_reduction = rounds
