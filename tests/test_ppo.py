"""PPO: generalised advantages against their definition, the policy gradient against enumeration, a value head that
learns a known function, and the loop with the real engine: its update against a plain loop, and exact after a kill."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from test_rl import after, grpo, problems, student  # noqa: E402
from tiny import weights  # noqa: E402

from distill.randomness import generator  # noqa: E402
from distill.training.optimizer import OptimizerSettings  # noqa: E402
from distill.types import Completion, Problem, Sampling  # noqa: E402
from pipeline.errors import Stopped  # noqa: E402
from rl import loss  # noqa: E402
from rl.critic import ActorCritic, Critic, generalised_advantages, value_errors, whitened  # noqa: E402

# ------------------------------------------------------------------ generalised advantages


def rows(lengths: Sequence[int], name: str) -> Any:
    return torch.from_numpy(generator("gae", name).normal(0, 1, (len(lengths), max(lengths))))


def mask(lengths: Sequence[int]) -> Any:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def by_definition(rewards: Sequence[float], values: Sequence[float], discount: float, decay: float, t: int) -> float:
    """Schulman et al. 2016, eq. 11 to 16, written out: the mean of the k-step advantages, each with weight
    (1 - decay) decay^(k - 1). All that reach beyond the end are equal, and share the remaining weight."""
    left = len(rewards) - t
    steps = []
    for k in range(1, left + 1):
        ahead = sum(discount**i * rewards[t + i] for i in range(k))
        steps.append(ahead + (discount**k * values[t + k] if k < left else 0.0) - values[t])
    return sum((1 - decay) * decay ** (k - 1) * steps[k - 1] for k in range(1, left)) + decay ** (left - 1) * steps[-1]


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.floats(0, 1), st.floats(0, 1))
def test_advantages_equal_the_definition(lengths: list[int], discount: float, decay: float) -> None:
    rewards, values = rows(lengths, "rewards"), rows(lengths, "values")
    found = generalised_advantages(rewards, values, mask(lengths), discount, decay)
    for row, length in enumerate(lengths):
        own = rewards[row, :length].tolist(), values[row, :length].tolist()
        expected = [by_definition(*own, discount, decay, t) for t in range(length)]
        assert found[row].tolist() == pytest.approx([*expected, *[0.0] * (max(lengths) - length)])


def test_with_decay_1_advantages_are_return_minus_value_and_with_0_one_step_errors() -> None:
    lengths = [5, 3, 1]
    rewards, values, kept = rows(lengths, "r"), rows(lengths, "v"), mask(lengths)
    rewards, values = rewards * kept, values * kept
    returns = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(generalised_advantages(rewards, values, kept, 1, 1), (returns - values) * kept)
    following = torch.cat([values[:, 1:], torch.zeros(3, 1, dtype=torch.float64)], 1)
    one_step = (rewards + 0.9 * following - values) * kept
    torch.testing.assert_close(generalised_advantages(rewards, values, kept, 0.9, 0), one_step)


def test_whitened_advantages_have_mean_0_and_deviation_1_over_real_tokens() -> None:
    kept = mask([5, 2])
    found = whitened(rows([5, 2], "w") + 3, kept)
    assert found[kept].mean().item() == pytest.approx(0) and found[kept].std().item() == pytest.approx(1)
    assert (found[~kept] == 0).all() and (whitened(torch.ones(2, 5), kept) == 0).all()


# ------------------------------------------------------------------ the policy gradient, by enumeration

POLICY = torch.from_numpy(generator("ppo", "policy").normal(0, 1, (4, 3)))
"""Logits of three tokens in four states: at the start, and after each first token."""
PAYS = torch.from_numpy(generator("ppo", "pays").random((3, 3)))
VALUES = torch.from_numpy(generator("ppo", "values").normal(0, 1, 4))
"""An arbitrary baseline: no baseline biases the gradient."""


def exact() -> Any:
    """The gradient of the mean reward of two-token responses."""
    leaf = POLICY.clone().requires_grad_()
    p = leaf.softmax(-1)
    (p[0, :, None] * p[1:] * PAYS).sum().backward()
    return leaf.grad


def gradient(first: Any, second: Any, decay: float = 1.0) -> Any:
    """-d loss / d policy of each response: (N, 4, 3)."""
    leaf = POLICY.expand(len(first), 4, 3).clone().requires_grad_()
    every, states = torch.arange(len(first)), torch.stack([torch.zeros_like(first), first + 1], 1)
    logprobs = leaf.log_softmax(-1)[every[:, None], states, torch.stack([first, second], 1)]
    rewards = torch.stack([torch.zeros(len(first), dtype=torch.float64), PAYS[first, second]], 1)
    values = VALUES[states]
    advantages = generalised_advantages(rewards, values, torch.ones_like(rewards).bool(), 1.0, decay).flatten()
    flat, ones = logprobs.flatten(), torch.ones_like(advantages)
    streams = {
        "advantage": advantages, "engine": flat.detach(), "row": every.repeat_interleave(2), "weight": ones,
        "value": values.flatten(), "expected": values.flatten(), "target": advantages + values.flatten(),
    }  # fmt: skip
    ActorCritic(loss.PolicyLoss(), 0.5, None)(flat, streams).backward()
    return -leaf.grad


def test_any_value_function_leaves_the_policy_gradient_unbiased() -> None:
    """The mean over all responses, weighted by their probabilities. With decay below 1 it depends on the values."""
    first, second = (torch.tensor(x) for x in zip(*itertools.product(range(3), repeat=2), strict=True))
    p = POLICY.softmax(-1)
    chances = (p[0, first] * p[first + 1, second])[:, None, None]
    torch.testing.assert_close((chances * gradient(first, second)).sum(0), exact())
    assert not torch.allclose((chances * gradient(first, second, 0.5)).sum(0), exact(), rtol=0.05)


def test_sampled_gradients_average_to_the_policy_gradient() -> None:
    draw, p = generator("ppo", "draws"), POLICY.softmax(-1)
    first = torch.from_numpy(draw.choice(3, 20_000, p=p[0].numpy()))
    second = torch.searchsorted(p.cumsum(-1)[first + 1], torch.from_numpy(draw.random((20_000, 1)))).clamp(max=2)[:, 0]
    found = gradient(first, second)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - exact()).abs() < 3 * error + 1e-12).all()


def test_values_clipped_for_moving_too_far_have_no_gradient() -> None:
    values = torch.tensor([0.1, 0.5, -0.5, 0.5], requires_grad=True)
    targets = torch.tensor([1.0, 1.0, 1.0, 0.4])
    errors = value_errors(values, torch.zeros(4), targets, 0.2)
    assert errors.tolist() == pytest.approx([0.81 / 2, 0.64 / 2, 2.25 / 2, 0.04 / 2])
    errors.sum().backward()
    assert values.grad.tolist() == pytest.approx([-0.9, 0.0, -1.5, 0.0])
    assert value_errors(values, torch.zeros(4), targets, None)[1].item() == pytest.approx(0.125)


# ------------------------------------------------------------------ the loop

CRITIC = Critic(learning_rate=0.1)


def state(directory: Path) -> Any:
    """The newest checkpoint, with value head and moments, as one flat list of tensors."""
    newest = max(directory.glob("step-*"))
    found = torch.load(newest / "state.pt", weights_only=True)
    moments = [m for part in found["optimizer"] for one in part.values() for m in one.values()]
    return [*found["weights"], *moments]


def head_of(directory: Path) -> Any:
    newest = max(directory.glob("step-*"))
    return torch.load(newest / "state.pt", weights_only=True)["weights"][-2:]


def same(one: Path, other: Path) -> bool:
    return all(torch.equal(a, b) for a, b in zip(state(one), state(other), strict=True))


def known(pairs: Sequence[tuple[Problem, Completion]]) -> list[float | None]:
    """Two problems of a step are always rewarded, two never are, whatever the response."""
    return [float(p.id.endswith(("0", "1"))) for p, _ in pairs]


def test_the_head_learns_a_known_value_function(tmp_path: Path) -> None:
    metrics, rollouts = grpo(
        student(), tmp_path, reward=known, sample=lambda step, draw: problems(0), steps=15, group=1, passes=3,
        optimizer=OptimizerSettings(1e-9, schedule="constant"), sampling=Sampling(max_tokens=3),
        critic=Critic(learning_rate=0.5, clip=None),
    )  # fmt: skip
    assert metrics[0].value_explained == 0
    assert sum(m.value_explained for m in metrics[-5:]) / 5 > 0.8 and metrics[-1].value_error < 0.05
    for r in rollouts[-4:]:
        assert r.assessment and r.trained
        assert r.assessment.values == pytest.approx([r.reward] * len(r.advantages), abs=0.6)
        assert r.assessment.targets == pytest.approx([r.reward] * len(r.advantages), abs=1e-5)


def test_ppo_learns_what_is_rewarded(tmp_path: Path) -> None:
    metrics, rollouts = grpo(student(), tmp_path, steps=12, critic=CRITIC)
    first, last = (sum(m.reward for m in part) for part in (metrics[:2], metrics[-2:]))
    assert last > 3 * first
    judged = [r for r in rollouts if r.reward is not None]
    assert all(r.trained and r.assessment for r in judged) and len(judged) < len(rollouts)
    assert not any(r.trained or r.assessment for r in rollouts if r.reward is None)
    assert all(m.entropy_exact > 0 and m.value_error > 0 for m in metrics)


def test_a_filtered_rollout_gets_no_advantage_at_all(tmp_path: Path) -> None:
    """Not even the one from its group, which a value head does not use."""
    _, rollouts = grpo(student(), tmp_path, steps=1, group=4, overlong="filter", critic=CRITIC)
    left = [r for r in rollouts if not r.trained]
    assert any(r.reward for r in left) and not any(r.assessment or r.advantage for r in left)


def test_the_update_equals_a_plain_loop(tmp_path: Path) -> None:
    """The oracle, since TRL has no PPO any more: each rollout alone through the model, with values, advantages, losses and
    AdamW written out. The head moves the student too, from the second update on: in the first its weights are 0."""
    critic = Critic(learning_rate=1e-2, discount=0.9, decay=0.8, kl=0.05, weight=0.3, detached=False)
    model, reference = student(), student()
    how = {"steps": 2, "group": 2, "optimizer": OptimizerSettings(1e-3, warmup=0, schedule="constant")}
    metrics, rollouts = grpo(model, tmp_path, critic=critic, **how)
    assert (
        metrics[0].kl == pytest.approx(0, abs=1e-6) and metrics[1].kl > 1e-6
    )  # reported, though it only enters the reward
    head = torch.nn.Linear(32, 1)
    torch.nn.init.zeros_(head.weight), torch.nn.init.zeros_(head.bias)
    body = [p for p in reference.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(
        [{"params": body}, {"params": list(head.parameters()), "lr": 1e-2}], lr=1e-3, betas=(0.9, 0.95), weight_decay=0
    )
    for step in (1, 2):
        total, tokens = plain_loss(reference, head, [r for r in rollouts if r.step == step and r.trained], critic)
        (total / tokens).backward()
        torch.nn.utils.clip_grad_norm_([*body, *head.parameters()], 1.0)
        adam.step()
        adam.zero_grad()
    torch.testing.assert_close(weights(model), torch.cat([p.detach().flatten() for p in body]), atol=5e-5, rtol=0)
    learned = torch.cat([w.flatten() for w in head_of(tmp_path)])
    torch.testing.assert_close(learned, torch.cat([head.weight.flatten(), head.bias]).detach(), atol=5e-5, rtol=0)


def plain_loss(model: Any, head: Any, rollouts: Sequence[Any], critic: Critic) -> tuple[Any, int]:
    found = []
    for r in rollouts:
        count, ids = len(r.completion.token_ids), torch.tensor([r.completion.prompt_ids + r.completion.token_ids])
        out = model(input_ids=ids, use_cache=False, output_hidden_states=True)
        own = out.logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[-count:, 0]
        with torch.no_grad(), model.disable_adapter():
            base = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        gap = own.detach() - base.gather(1, ids[0, 1:, None])[-count:, 0]
        rewards = (-critic.kl * gap).tolist()
        rewards[-1] += r.reward
        values = head(out.hidden_states[-1][0, :-1] / 32)[-count:, 0]
        own_values = values.tolist()
        advantages = [by_definition(rewards, own_values, critic.discount, critic.decay, t) for t in range(count)]
        found.append((own, values, torch.tensor(advantages)))
    every = torch.cat([a for _, _, a in found])
    total = torch.zeros(())
    for own, values, advantages in found:
        credit = (advantages - every.mean()) / every.std()
        total = total - (credit * own).sum()
        total = total + critic.weight * ((values - (advantages + values.detach())) ** 2 / 2).sum()
    return total, len(every)


def test_no_value_head_is_left_in_the_student(tmp_path: Path) -> None:
    """With a detached head and a tiny learning rate of the policy only the head moves, and it is removed at the end."""
    model, before = student(), student()
    grpo(model, tmp_path, steps=2, optimizer=OptimizerSettings(1e-30), critic=Critic(learning_rate=0.5))
    torch.testing.assert_close(weights(model), weights(before), atol=1e-28, rtol=0)
    assert not hasattr(model, "value_head")
    assert max(w.abs().max().item() for w in head_of(tmp_path)) > 0.1


def test_a_run_stopped_anywhere_and_resumed_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    how = {"steps": 3, "group": 2, "passes": 2, "updates": 2, "critic": CRITIC}
    straight = student()
    grpo(straight, tmp_path / "a", **how)
    stopped = 0
    for calls in (12, 9, 1000):
        resumed = student()
        try:
            grpo(resumed, tmp_path / "b", stop=after(calls), **how)
            break
        except Stopped:
            stopped += 1
    assert stopped and torch.equal(weights(resumed), weights(straight)) and same(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("update", [3, 5])
def test_a_run_killed_within_a_step_and_resumed_equals_an_uninterrupted_one(tmp_path: Path, update: int) -> None:
    """SIGKILL after some updates of a step, which no checkpoint holds yet."""
    how = {"steps": 2, "group": 2, "passes": 2, "updates": 2, "critic": CRITIC, "checkpoint_steps": 1}
    straight, resumed = student(), student()
    grpo(straight, tmp_path / "a", **how)
    child = os.fork()
    if child == 0:
        from distill.training.learner import Learner

        applied = Learner.update

        def dying(learner: Learner) -> tuple[float, float]:
            found = applied(learner)
            if learner.done == update:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        Learner.update = dying  # type: ignore[method-assign]
        try:
            grpo(student(), tmp_path / "b", **how)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    metrics, _ = grpo(resumed, tmp_path / "b", **how)
    assert metrics[0].step == (1 if update <= 4 else 2)
    assert torch.equal(weights(resumed), weights(straight)) and same(tmp_path / "a", tmp_path / "b")


def test_a_later_pass_shuffles_problems_and_keeps_their_rollouts_together() -> None:
    from rl.update import Rollout, _shares

    rollouts = [
        Rollout(1, p, i, Completion("k", "", (), "", (), (), None), 1.0, (), True)  # type: ignore[arg-type]
        for p in problems(0)
        for i in range(2)
    ]
    orders = [[[r.problem.id for r in part] for part in _shares(rollouts, 2, 0, 1, number)] for number in range(4)]
    assert orders[0] == [["0-0"] * 2 + ["0-1"] * 2, ["0-2"] * 2 + ["0-3"] * 2]
    assert len({str(order) for order in orders}) > 1 and orders[1] == [
        [r.problem.id for r in part] for part in _shares(rollouts, 2, 0, 1, 1)
    ]
    for order in orders:
        assert all(len(part) == 4 and len(set(part)) == 2 for part in order)
        assert sorted(itertools.chain(*order)) == sorted(itertools.chain(*orders[0]))
