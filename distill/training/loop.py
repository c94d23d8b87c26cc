"""Supervised training: one visible loop, exact when killed and resumed.

`train` knows examples, settings and callbacks; it knows nothing about stages, YAML or the store.
Everything a step does is a function of (settings, examples, step) and of the weights and moments, so
a checkpoint holds just these, and a resumed run on CPU ends with weights equal to the last bit. With held-out
data (`distill.training.early_stopping`) it also holds the best weights so far, with which the run ends.
What is shared with GRPO is in `distill.training.learner`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.training.batching import Example, Order
from distill.training.early_stopping import Best, Heldout
from distill.training.forward import Pass, score_tokens
from distill.training.learner import BeforeSave, Learner, LearnerSettings, nothing, run_identity
from distill.training.passes import Row
from distill.training.session import learning
from pipeline.errors import InputError, Stopped

BatchSource = Callable[[int], Sequence[Example]]
"""The examples of a global step, made on the fly: a pure function of the step (and of the weights)."""


@dataclass(frozen=True)
class TrainSettings(LearnerSettings):
    """``steps`` counts optimizer updates; None means ``epochs`` times the data."""

    batch_size: int = 16
    epochs: int = 1
    steps: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """After update ``step`` (from 1) of ``total``; step 0 is the start and has only held-out values.
    ``loss`` is the mean over supervised tokens, in nats.

    ``tokens`` counts all real tokens of the step, prompts included; ``grad_norm`` is before clipping.
    ``heldout_loss`` and ``heldout_pass_at_1`` are those of the weights after the update, NaN if not measured.
    """

    step: int
    total: int
    loss: float
    tokens: int
    grad_norm: float
    learning_rate: float
    seconds: float
    heldout_loss: float = math.nan
    heldout_pass_at_1: float = math.nan


@dataclass(frozen=True, slots=True)
class TrainResult:
    """``losses`` holds each example's mean loss in every epoch, before the update it took part in.

    It is empty for a batch source. ``steps`` were made, ``resumed_at`` of them by earlier attempts. The weights are
    those after ``best_step``: 0 if no later held-out measurement was as good as that of the start.
    """

    steps: int
    resumed_at: int
    losses: dict[str, list[float]]
    best_step: int


def train(
    model: Any,
    examples: Sequence[Example] | BatchSource,
    settings: TrainSettings,
    *,
    checkpoints: Path,
    stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[StepMetrics], None] = lambda metrics: None,
    before_save: BeforeSave = nothing,
    heldout: Heldout | None = None,
    measure: Pass = score_tokens,
    over: Callable[[Learner], bool] = lambda learner: False,
) -> TrainResult:
    """Fit the trainable parameters of ``model`` in place, continuing from ``checkpoints`` if there are any.

    ``checkpoints`` belongs to this one run: the same model, examples and settings. ``on_step`` may see
    a step again after a resume, with the same numbers; ``before_save`` is called before each checkpoint,
    after which steps are not seen again. With ``heldout`` the model ends with the weights that measured best.
    ``measure`` may replace the log-probabilities, whose weighted mean is maximised, by something else
    (`distill.training.divergence`). ``over`` is asked before each step and after the last whether the run ends here;
    it may set the learner back to an earlier step. Raises `Stopped`, after checkpointing, once ``stop()`` is true.
    """
    rows: Sequence[Example] = () if callable(examples) else examples
    order = None if callable(examples) else Order(tuple(map(len, rows)), settings.batch_size, settings.seed)
    total = settings.steps or (order.steps_per_epoch * settings.epochs if order else 0)
    if not total:
        raise InputError("there is nothing to train on: no example, or a batch source without `steps`")
    run = run_identity(settings, rows)
    with learning(model, settings, total, checkpoints, run, before_save, measure) as learner:
        found = learner.resume()
        losses = found.get("trace_losses", _empty_losses(order, total))
        best, resumed_at = Best(heldout, learner, found), learner.done

        def state() -> dict[str, Tensor]:
            return {"trace_losses": losses, **best.state()}

        if heldout and not learner.done:
            on_step(StepMetrics(0, total, math.nan, 0, math.nan, math.nan, 0.0, **best.measure_if_due()))
        while not over(learner) and learner.done < total and not best.over:
            step = learner.done
            chosen = order(step) if order else []
            try:
                batch = examples(step) if callable(examples) else [rows[i] for i in chosen]
            except Stopped:
                learner.save(state())  # otherwise the updates since the last checkpoint would be lost
                raise
            metrics, means = _step(learner, batch)
            if order:
                losses[step // order.steps_per_epoch, chosen] = torch.tensor(means)
            on_step(replace(metrics, **best.measure_if_due()))
            learner.save_if_due(state(), stop)
        if best.over:
            learner.save(state())
        best.restore()
        steps = learner.done
    columns = zip(rows, losses.T.tolist(), strict=True)
    seen = {e.key: [loss for loss in column if not math.isnan(loss)] for e, column in columns}
    kept = best.step if best.known else steps
    return TrainResult(steps, resumed_at, {key: column for key, column in seen.items() if column}, kept)


def _empty_losses(order: Order | None, total: int) -> Tensor:
    """An empty table for the loss of every example (columns) in every epoch (rows)."""
    shape = (math.ceil(total / order.steps_per_epoch), len(order.lengths)) if order else (0, 0)
    return torch.full(shape, math.nan)


def _step(learner: Learner, batch: Sequence[Example]) -> tuple[StepMetrics, list[float]]:
    """One update, and the mean loss of each example in the batch. An empty batch only counts as a step."""
    started = time.perf_counter()
    if not batch:
        learner.skip()
        return StepMetrics(learner.done, learner.total, math.nan, 0, 0.0, 0.0, 0.0), []
    total = sum(e.supervised for e in batch)
    rows = [Row(e, {"weight": [1 / total] * e.supervised}) for e in batch]
    means = [-math.fsum(scored.logprobs) / len(scored.logprobs) for scored in learner.gradients(rows, cross_entropy)]
    loss = math.fsum(mean * e.supervised for mean, e in zip(means, batch, strict=True)) / total
    norm, rate = learner.update()
    seconds = time.perf_counter() - started
    return StepMetrics(learner.done, learner.total, loss, sum(map(len, batch)), norm, rate, seconds), means


def cross_entropy(logprobs: Tensor, streams: Mapping[str, Tensor]) -> Tensor:
    """The weighted sum of -log p. An `Objective`."""
    return -(streams["weight"] * logprobs).sum()
