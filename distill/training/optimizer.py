"""Optimizers and schedules. The learning rate is a function of the step; there is no scheduler state.

AdamW for everything, or Muon for hidden matrices and AdamW for the rest (embeddings, norms, heads),
which is how the embedded models are pretrained. Both are torch's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from distill.training.ranks import shard_like, unsharded
from pipeline.errors import InputError, PipelineError


@dataclass(frozen=True)
class OptimizerSettings:
    """``learning_rate`` is AdamW's; ``muon_learning_rate`` (None: no Muon) that of hidden matrices;
    ``norm_learning_rate`` (None: like the rest) AdamW's for vectors, the weights of norms.

    The schedule warms up linearly over ``warmup`` (a share of all steps). It then falls to ``final`` times
    the peak ("cosine", "linear") or stays ("constant"). ``clip`` bounds the norm of the whole gradient; 0 turns it off.
    ``own_rates`` lists (name prefix, AdamW learning rate) for parameters with a rate of their own (a fresh head beside
    pretrained weights).
    """

    learning_rate: float
    muon_learning_rate: float | None = None
    norm_learning_rate: float | None = None
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.03
    final: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    own_rates: tuple[tuple[str, float], ...] = ()

    def scale(self, step: int, total: int) -> float:
        """The factor on the peak learning rate for update ``step`` (from 0) of ``total``."""
        warm = round(self.warmup * total)
        if step < warm:
            return (step + 1) / (warm + 1)
        if self.schedule == "constant":
            return 1.0
        progress = (step - warm) / max(1, total - warm)
        left = 0.5 * (1 + math.cos(math.pi * progress)) if self.schedule == "cosine" else 1 - progress
        return self.final + (1 - self.final) * left


class Optimizer:
    """The torch optimizers of one model behind one `step`, and their state for checkpoints."""

    def __init__(self, model: Any, settings: OptimizerSettings) -> None:
        self.settings = settings
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise InputError("the model has no trainable parameter")
        self.parameters = [p for _, p in named]
        hidden = _hidden_matrices(model) if settings.muon_learning_rate is not None else set()
        own = [(rate, [p for name, p in named if name.startswith(start)]) for start, rate in settings.own_rates]
        taken = {id(p) for _, group in own for p in group}
        vectors = [p for p in self.parameters if p.dim() == 1] if settings.norm_learning_rate is not None else []
        own.append((settings.norm_learning_rate or 0.0, [p for p in vectors if id(p) not in taken]))
        apart = hidden | taken | {id(p) for p in vectors}
        rest = [p for p in self.parameters if id(p) not in apart]
        matrices = [p for p in self.parameters if id(p) in hidden - taken]
        self.parts: list[tuple[float, torch.optim.Optimizer]] = []
        for rate, group in ((settings.learning_rate, rest), *own):
            if group:
                adamw = torch.optim.AdamW(group, betas=settings.betas, weight_decay=settings.weight_decay, fused=True)
                self.parts.append((rate, adamw))
        if matrices:
            muon = torch.optim.Muon(matrices, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw")
            self.parts.append((settings.muon_learning_rate or 0.0, muon))

    def step(self, scale: float) -> float:
        """Clip, update at ``scale`` times the peak rates, clear. Returns the norm before clipping."""
        limit = self.settings.clip or math.inf
        norm = float(unsharded(nn.utils.clip_grad_norm_(self.parameters, limit)))
        if not math.isfinite(norm):
            raise PipelineError("training diverged: its gradients are no longer finite; lower learning_rate")
        for peak, optimizer in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = peak * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self, wanted: bool = True) -> list[dict[str, Any]]:
        """The whole state, also if the weights are sharded. Then all ranks must call this, including those where it is
        not ``wanted``. It is gathered piece by piece into main memory, because a GPU may have no room for all of it."""
        found: list[dict[str, Any]] = []
        for _, optimizer in self.parts:
            found.append({})
            for index, one in optimizer.state_dict()["state"].items():
                for name, value in one.items():
                    whole = unsharded(value)
                    if wanted:
                        found[-1].setdefault(index, {})[name] = whole if whole is value else whole.cpu()
        return found

    def load(self, states: list[dict[str, Any]]) -> None:
        for (_, optimizer), state in zip(self.parts, states, strict=True):
            own = optimizer.param_groups[0]["params"]
            cut = {
                i: {name: v if name == "step" else shard_like(v, own[i]) for name, v in moments.items()}
                for i, moments in state.items()
            }
            optimizer.load_state_dict({"state": cut, "param_groups": optimizer.state_dict()["param_groups"]})


def _hidden_matrices(model: Any) -> set[int]:
    """Weights of linear layers inside the network: neither embeddings nor the output head."""
    outer = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    return {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)} - outer
