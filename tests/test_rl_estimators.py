"""The gradient estimators against policy gradients that can be computed exactly.

A bandit's arms are one-token responses, so the expectation over all groups is a finite sum: the mean of an
estimator is computed, not sampled. Sampling itself is checked once, on sixteen arms.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from distill.randomness import generator  # noqa: E402
from rl import credit, loss  # noqa: E402

BIASED = torch.tensor([0.3, -0.5], dtype=torch.float64)
PAYS = torch.tensor([1.0, 0.0], dtype=torch.float64)


def gradient(theta: Any, arms: Any, pays: Any, **how: Any) -> Any:
    """-d loss / d theta for groups of pulls (P, G): the direction of one update."""
    leaf = theta.clone().requires_grad_()
    rewards = pays[arms]
    advantages = credit.advantages(rewards, **how).flatten()
    logprobs = leaf.log_softmax(-1)[arms.flatten()]
    count = arms.numel()
    streams = {
        "advantage": advantages, "engine": logprobs.detach(), "row": torch.arange(count),
        "weight": torch.full((count,), 1 / count, dtype=torch.float64),
    }  # fmt: skip
    loss.PolicyLoss()(logprobs, streams).backward()
    return -leaf.grad


def exact(theta: Any, pays: Any) -> Any:
    """The gradient of the expected reward: p_a (r_a - mean r)."""
    p = theta.softmax(-1)
    return p * (pays - (p * pays).sum())


def expected(theta: Any, pays: Any, group: int, **how: Any) -> Any:
    """The mean of the estimator over all possible groups, weighted by their probabilities."""
    p = theta.softmax(-1)
    total = torch.zeros_like(theta)
    for arms in itertools.product(range(len(theta)), repeat=group):
        total += p[list(arms)].prod() * gradient(theta, torch.tensor([arms]), pays, **how)
    return total


@pytest.mark.parametrize("group", [2, 3, 5])
def test_leave_one_out_is_unbiased_and_the_group_mean_shrinks_the_gradient(group: int) -> None:
    """RLOO's baseline does not include the sample itself. GRPO's does, which costs a factor (G - 1) / G."""
    truth = exact(BIASED, PAYS)
    found = expected(BIASED, PAYS, group, baseline="leave_one_out", scale="none")
    torch.testing.assert_close(found, truth)
    found = expected(BIASED, PAYS, group, baseline="group", scale="none")
    torch.testing.assert_close(found, truth * (group - 1) / group)


def test_dividing_by_the_group_s_deviation_favours_easy_and_hard_problems() -> None:
    """The known bias (Dr. GRPO): relative to the truth, a problem solved 2% of the time weighs more than one
    solved half of the time, and without scaling both weigh the same."""
    even, hard = torch.zeros(2, dtype=torch.float64), torch.tensor([-4.0, 0.0], dtype=torch.float64)

    def weight(theta: Any, scale: Any) -> float:
        return float((expected(theta, PAYS, 6, scale=scale) / exact(theta, PAYS))[0])

    assert weight(hard, "none") == pytest.approx(weight(even, "none"))
    assert weight(hard, "group") > 1.2 * weight(even, "group")


@pytest.mark.parametrize("group", [2, 3, 5])
def test_dividing_by_the_group_s_mean_follows_the_log_of_the_chance_to_be_right(group: int) -> None:
    """MaxRL: the gradient of log p = -sum of (1 - p)^k / k, here up to k = G - 1. (Its paper says G, for the estimator
    without a baseline; the baseline is missing in groups without a right answer, which costs one order.)"""
    p = BIASED.softmax(-1)[0]
    orders = sum((1 - p) ** (k - 1) for k in range(1, group))
    torch.testing.assert_close(expected(BIASED, PAYS, group, scale="mean"), orders * exact(BIASED, PAYS))


def test_sampled_updates_average_to_the_policy_gradient() -> None:
    """Sixteen arms with different rewards, 20,000 groups: within three standard errors on every arm."""
    draw = generator("bandit")
    theta, pays = torch.from_numpy(draw.normal(0, 1, 16)), torch.from_numpy(draw.random(16))
    cumulative = theta.softmax(-1).cumsum(0)
    arms = torch.searchsorted(cumulative, torch.from_numpy(draw.random((20_000, 4)))).clamp(max=15)
    p = theta.softmax(-1)
    advantages = credit.advantages(pays[arms], "leave_one_out", "none")
    scores = torch.nn.functional.one_hot(arms, 16) - p  # d log p(arm) / d theta
    each = (advantages[..., None] * scores).mean(1)
    torch.testing.assert_close(each.mean(0), gradient(theta, arms, pays, baseline="leave_one_out", scale="none"))
    error = each.std(0) / len(each) ** 0.5
    assert ((each.mean(0) - exact(theta, pays)).abs() < 3 * error + 1e-4).all()


def test_the_expected_gradient_of_each_kl_estimator() -> None:
    """Differentiating a good estimate does not estimate the gradient: k1 has none, k3 has the forward divergence's;
    k2, and k1 and k3 times the ratio, have that of KL(policy, reference); k2 times the ratio has neither."""
    theta, reference = BIASED.clone().requires_grad_(), torch.tensor([-0.9, 0.8], dtype=torch.float64).log_softmax(-1)

    def of(divergence: Any) -> Any:
        return torch.autograd.grad(divergence, theta)[0]

    policy = theta.log_softmax(-1)
    reverse = of((policy.exp() * (policy - reference)).sum())
    policy = theta.log_softmax(-1)
    forward = of((reference.exp() * (reference - policy)).sum())
    found = {}
    for kind, corrected in itertools.product(("k1", "k2", "k3"), (False, True)):
        policy = theta.log_softmax(-1)
        streams = {"advantage": torch.zeros(2), "row": torch.arange(2), "reference": reference}
        streams |= {"engine": policy.detach(), "weight": policy.detach().exp()}  # each arm as often as it is sampled
        found[kind, corrected] = of(loss.PolicyLoss(kl=1.0, estimator=kind, kl_corrected=corrected)(policy, streams))  # type: ignore[arg-type]
    torch.testing.assert_close(found["k1", False], torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(found["k3", False], forward)
    for right in (("k2", False), ("k1", True), ("k3", True)):
        torch.testing.assert_close(found[right], reverse)
    assert not torch.allclose(found["k2", True], reverse, rtol=0.1)  # the settings refuse it


def test_the_mean_over_a_response_punishes_long_failures_less() -> None:
    """The length bias of GRPO's aggregation, and its absence with a constant divisor."""
    lengths, micro = [2, 20], [[0, 1]]
    short, long = loss.token_weights(lengths, "row_mean", longest=32, micro_batches=micro)
    assert short == pytest.approx(10 * long)
    for aggregation in ("constant", "token_mean"):
        short, long = loss.token_weights(lengths, aggregation, longest=32, micro_batches=micro)  # type: ignore[arg-type]
        assert short == long


def test_importance_weights_correct_for_a_hotter_engine() -> None:
    """The engine samples at a higher temperature than the policy. With the correction the estimator's mean is the
    policy's gradient; without it, it is not."""
    hot = BIASED / 3
    p, mu = BIASED.softmax(-1), hot.softmax(-1)
    means = {}
    for how in ("truncate", "none"):
        total = torch.zeros_like(BIASED)
        for arm, arm_p in enumerate(mu):
            leaf = BIASED.clone().requires_grad_()
            logprobs = leaf.log_softmax(-1)[[arm]]
            streams = {
                "advantage": PAYS[[arm]], "engine": mu.log()[[arm]], "row": torch.zeros(1),
                "weight": torch.ones(1, dtype=torch.float64),
            }  # fmt: skip
            loss.PolicyLoss(correction=loss.EngineCorrection(how, high=10.0))(logprobs, streams).backward()  # type: ignore[arg-type]
            total -= arm_p * leaf.grad
        means[how] = total
    torch.testing.assert_close(means["truncate"], exact(BIASED, PAYS))
    assert not torch.allclose(means["none"], exact(BIASED, PAYS), rtol=0.05)
    assert p[0] > mu[0]
