"""PPO's credit: a value head as the baseline, generalised advantages, and the loss of the head.

GRPO compares a response with others to the same problem; PPO compares each token with what was expected before it.
A state is what the model has seen before a token, and the action is the token; forced tokens are part of the state.
The reward comes with the last sampled token, and every token may pay a KL penalty. A response cut at its limit ends
there like any other: its reward is what its text earned, and nothing is expected after it.

The head is one linear function of the states that the output head reads, so policy and value come out of one pass
(`distill.training.forward.score_tokens`). `assess` is called by `rl.grpo` between sampling and learning. Its results
are stored in the rollout's row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.training.learner import Learner
from rl.loss import PolicyLoss
from rl.update import Assessment, Rollout, aligned, row_of

HEAD = "value_head"


@dataclass(frozen=True, slots=True)
class Critic:
    """``discount`` is gamma, ``decay`` lambda. With 1 and 1, the actual return is compared with the estimate: unbiased,
    with all the noise of what came later. A lower decay relies on the head's own later estimates
    (https://arxiv.org/abs/1506.02438; for long chains of thought 1 and 1, https://arxiv.org/abs/2503.24290).

    ``whiten`` gives the advantages of a step mean 0 and deviation 1. ``kl`` weighs the penalty in the reward.
    ``weight`` is that of the head's loss, which gains nothing by moving an estimate more than ``clip`` from its value
    before the step (None: no limit). ``learning_rate`` is the head's own. With ``detached``, the gradient of its loss
    ends at the head.
    """

    learning_rate: float
    discount: float = 1.0
    decay: float = 1.0
    whiten: bool = True
    kl: float = 0.0
    weight: float = 0.1
    clip: float | None = 0.2
    detached: bool = True


class ValueHead(nn.Module):
    """The reward that a student can still expect, from the hidden state before each token: (L, D) -> (L,), in fp32,
    w h / D + b. Because of the division by D, a step of Adam moves an estimate by about its learning rate, whatever the
    model's width. It starts at zero, which is no baseline at all. With ``detached`` the gradient ends here: values do
    not change the student."""

    def __init__(self, size: int, detached: bool, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, size, device=device))
        self.bias = nn.Parameter(torch.zeros(1, device=device))
        self.detached = detached

    def forward(self, hidden: Tensor) -> Tensor:
        states = hidden.detach() if self.detached else hidden
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(states.float() / states.shape[-1], self.weight, self.bias).squeeze(-1)


@contextmanager
def value_head(model: Any, detached: bool) -> Iterator[None]:
    """Give ``model`` (a causal LM, with or without peft) a value head within this context: it is among the model's
    parameters, so the optimizer, checkpoints and other ranks have it; a model that is sampled from, exported or served
    does not."""
    head = ValueHead(model.config.get_text_config().hidden_size, detached, next(model.parameters()).device)
    setattr(model, HEAD, head)
    try:
        yield
    finally:
        delattr(model, HEAD)


@dataclass(frozen=True, slots=True)
class ActorCritic:
    """The policy's loss plus the head's: an `Objective`. Its streams are the policy's, ``value`` (the head's current
    estimate), ``expected`` (its estimate before the step) and ``target``."""

    policy: PolicyLoss
    weight: float
    clip: float | None

    def __call__(self, logprobs: Tensor, streams: Mapping[str, Tensor]) -> Tensor:
        errors = value_errors(streams["value"], streams["expected"], streams["target"], self.clip)
        return self.policy(logprobs, streams) + self.weight * (streams["weight"] * errors).sum()


def value_errors(values: Tensor, before: Tensor, targets: Tensor, clip: float | None) -> Tensor:
    """Half the squared error, or half that of the values clipped to ``clip`` around their old ones if it is larger
    (PPO's value clipping, see https://arxiv.org/abs/2005.12729)."""
    errors = (values - targets).square()
    if clip is not None:
        errors = torch.max(errors, (before + (values - before).clamp(-clip, clip) - targets).square())
    return errors / 2


def generalised_advantages(rewards: Tensor, values: Tensor, mask: Tensor, discount: float, decay: float) -> Tensor:
    """(B, T) each -> (B, T): sum over k of (discount decay)^k d_{t+k}, where d_t = r_t + discount V_{t+1} - V_t
    (Schulman et al. 2016, eq. 16). Rows begin at 0; ``mask`` marks how far each goes, and V is 0 beyond."""
    values = values * mask
    result = torch.zeros_like(values)
    after = value_after = values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        after = (rewards[:, t] + discount * value_after - values[:, t] + discount * decay * after) * mask[:, t]
        result[:, t], value_after = after, values[:, t]
    return result


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """(B, T) with mean 0 and deviation 1 over ``mask``, and 0 beyond it. Equal values are only centred."""
    kept = values[mask]
    deviation = kept.std() if len(kept) > 1 else kept.new_zeros(())
    return torch.where(mask, (values - kept.mean()) / (deviation + 1e-8), 0.0)


def assess(learner: Learner, critic: Critic, temperature: float, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts of a step with an advantage for each sampled token, under the weights that sampled them."""
    kept = [rollout for rollout in rollouts if rollout.trained]
    if not kept:
        return list(rollouts)
    found = learner.score([row_of(r) for r in kept], temperature, reference=critic.kl > 0)
    mask = _padded([[1.0] * len(scored.values) for scored in found]) > 0
    values, own = _padded([scored.values for scored in found]), _padded([scored.logprobs for scored in found])
    rewards = torch.zeros_like(values)
    if critic.kl:
        rewards -= critic.kl * (own - _padded([scored.reference for scored in found]))
    ends = mask.sum(1) - 1
    rewards[torch.arange(len(kept)), ends] += torch.tensor([r.reward or 0.0 for r in kept], dtype=rewards.dtype)
    advantages = generalised_advantages(rewards, values, mask, critic.discount, critic.decay)
    targets = advantages + values
    credit = whitened(advantages, mask) if critic.whiten else advantages
    assessed = {}
    for r, s, advantage, target in zip(kept, found, credit.tolist(), targets.tolist(), strict=True):
        assessment = Assessment(s.logprobs, s.reference, s.values, target[: len(s.values)])
        spread = tuple(aligned(r.completion, advantage, 0.0))
        assessed[id(r)] = replace(r, advantages=spread, assessment=assessment)
    return [assessed.get(id(rollout), rollout) for rollout in rollouts]


def _padded(rows: Sequence[Sequence[float]]) -> Tensor:
    """(B, T), padded with zeros."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows], dtype=torch.float64)
