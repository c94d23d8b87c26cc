"""Credit: from rewards to advantages. Pure functions on tensors.

Shapes: P prompts, G samples of each, B = P G rows, T tokens. An advantage is a (B, T) tensor from the
start, so that outcome rewards, step rewards and a teacher's log-ratios can be added up per token. A
reward of NaN means that no verifier could judge the sample. It is neither reward nor punishment: it is
left out of its group's baseline, and its own advantage is 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Baseline = Literal["group", "leave_one_out"]
Scale = Literal["group", "batch", "mean", "none"]

EPSILON = 1e-4
"""Added to the standard deviation (TRL's value, so that the two can be compared)."""


def advantages(rewards: Tensor, baseline: Baseline = "group", scale: Scale = "group") -> Tensor:
    """Rewards (P, G) -> advantages (P, G): r - mean of the group, optionally divided by a scale.

    Baseline ``group`` is GRPO's mean (DeepSeekMath, eq. 3), ``leave_one_out`` RLOO's mean of the others
    (https://arxiv.org/abs/2402.14740). Scale ``group`` divides by the group's standard deviation, which
    gives easy and hard problems more weight (Dr. GRPO argues for ``none``); ``batch`` divides by that of all
    rewards (https://arxiv.org/abs/2508.08221). Both have ddof 1. ``mean`` divides by the group's mean reward, which has
    to be at least 0: for rewards of 0 and 1, that is MaxRL, an estimate of the gradient of log p(right) rather than of
    p(right), truncated at order G - 1 (https://arxiv.org/abs/2602.02710). Groups with fewer than two judged samples get
    0.
    """
    judged = ~rewards.isnan()
    count = judged.sum(1, keepdim=True)
    values = rewards.nan_to_num(0.0)
    mean = values.sum(1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(judged, values - mean, 0.0)
    result = centred
    if baseline == "leave_one_out":  # r - mean of the others = (r - mean of all) n / (n - 1)
        result = centred * count / (count - 1).clamp(min=1)
    if scale == "group":
        deviation = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
        result = result / (deviation + EPSILON)
    elif scale == "batch" and judged.sum() > 1:
        result = result / (rewards[judged].std() + EPSILON)
    elif scale == "mean":
        result = torch.where(mean > 0, result / mean, 0.0)
    return torch.where(judged & (count > 1), result, 0.0)


def informative(rewards: Tensor) -> Tensor:
    """Groups (P,) whose judged rewards differ. The others have no gradient and are dropped whole."""
    low = rewards.nan_to_num(torch.inf).amin(1)
    high = rewards.nan_to_num(-torch.inf).amax(1)
    return high > low


def soft_overlong(length: int, longest: int, buffer: int) -> float:
    """DAPO's soft overlong punishment (eq. 13), added to the reward: 0 up to ``longest - buffer`` tokens, then falling
    linearly to -1 at ``longest``."""
    return -min(1.0, max(0.0, (length - (longest - buffer)) / buffer)) if buffer else 0.0
