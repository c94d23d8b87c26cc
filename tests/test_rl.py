"""GRPO: the laws of credit and loss, and the loop with the real engine, which learns and resumes exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from killed_trainings import killed_and_straight  # noqa: E402
from tiny import chat_tokenizer, tiny, weights  # noqa: E402

from distill.engines.transformers import TransformersEngine  # noqa: E402
from distill.randomness import generator  # noqa: E402
from distill.training.optimizer import OptimizerSettings  # noqa: E402
from distill.training.student import add_lora  # noqa: E402
from distill.types import Asked, Completion, Problem, Request, Sampling  # noqa: E402
from pipeline.errors import InputError, Stopped  # noqa: E402
from rl import credit, loss  # noqa: E402
from rl.grpo import GrpoSettings, train_grpo  # noqa: E402
from rl.monitors import GrpoMetrics  # noqa: E402
from rl.update import Rollout  # noqa: E402

# ------------------------------------------------------------------ credit

rewards_of_groups = st.lists(st.sampled_from([0.0, 0.5, 1.0, math.nan]), min_size=4, max_size=4).flatmap(
    lambda first: st.lists(st.lists(st.sampled_from([0.0, 1.0, math.nan]), min_size=4, max_size=4), max_size=4).map(
        lambda rest: torch.tensor([first, *rest], dtype=torch.float64)
    )
)


@given(
    rewards_of_groups, st.sampled_from(["group", "leave_one_out"]), st.sampled_from(["group", "batch", "mean", "none"])
)
def test_advantages_of_a_group_sum_to_zero_and_skip_the_unjudged(rewards: Any, baseline: Any, scale: Any) -> None:
    result = credit.advantages(rewards, baseline, scale)
    torch.testing.assert_close(result.sum(1), torch.zeros(len(rewards), dtype=torch.float64), atol=1e-9, rtol=0)
    assert (result[rewards.isnan()] == 0).all() and result.isfinite().all()
    assert ((result != 0).any(1) == credit.informative(rewards)).all()


@given(rewards_of_groups)
def test_an_unjudged_sample_changes_nothing_for_the_others(rewards: Any) -> None:
    longer = torch.cat([rewards, torch.full((len(rewards), 1), math.nan, dtype=torch.float64)], 1)
    for scale in ("group", "batch", "mean", "none"):
        torch.testing.assert_close(
            credit.advantages(longer, scale=scale)[:, :-1], credit.advantages(rewards, scale=scale)
        )


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    plain = torch.tensor([[0.75, -0.25, -0.25, -0.25], [0, 0, 0, 0]])
    torch.testing.assert_close(credit.advantages(rewards, scale="none"), plain)
    torch.testing.assert_close(credit.advantages(rewards), plain / (0.5 + credit.EPSILON))
    torch.testing.assert_close(credit.advantages(rewards, "leave_one_out", "none"), plain * 4 / 3)
    torch.testing.assert_close(credit.advantages(rewards, scale="mean"), plain / 0.25)


# ------------------------------------------------------------------ loss

ROWS = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2])


def draws(*names: str) -> list[Any]:
    return [torch.from_numpy(generator("loss", name).normal(-1, 0.4, len(ROWS))) for name in names]


def test_the_clip_stops_the_gradient_exactly_beyond_its_bounds() -> None:
    new, old, advantages = draws("new", "old", "advantages")
    advantages += 1
    new.requires_grad_()
    rho = loss.ratio(new, old, ROWS)
    loss.clipped(rho, advantages, 0.2, 0.28).sum().backward()
    beyond = ((rho < 0.8) & (advantages < 0)) | ((rho > 1.28) & (advantages > 0))
    assert beyond.any() and not beyond.all()
    expected = torch.where(beyond, 0.0, -rho * advantages)
    torch.testing.assert_close(new.grad, expected)


def test_the_dual_clip_cap_bounds_the_loss_of_a_bad_token() -> None:
    rho, advantages = torch.tensor([0.5, 1.0, 50.0]), torch.tensor([-1.0, -1.0, -1.0])
    assert loss.clipped(rho, advantages, 0.2, 0.2).tolist() == pytest.approx([0.8, 1.0, 50.0])
    assert loss.clipped(rho, advantages, 0.2, 0.2, cap=4.0).tolist() == pytest.approx([0.8, 1.0, 4.0])
    with pytest.raises(InputError, match=r"clip_cap \(1.1\) must be above 1"):
        loss.PolicyLoss(clip_cap=1.1)


@pytest.mark.parametrize(
    "policy",
    [loss.PolicyLoss(), loss.PolicyLoss(clip_cap=1.5), loss.PolicyLoss(level="sequence", clip_low=0.1)],
    ids=["clip", "cap", "sequence"],
)
def test_clip_fractions_are_the_shares_of_tokens_without_a_gradient(policy: Any) -> None:
    new, old, advantages, engine = draws("new", "old", "advantages", "engine")
    advantages = (advantages + 1)[ROWS] if policy.level == "sequence" else advantages + 1
    new.requires_grad_()
    streams = {"old": old, "advantage": advantages, "engine": engine, "weight": torch.ones_like(old), "row": ROWS}
    policy(new, streams).backward()
    low, high = loss.clip_fractions(loss.ratio(new, old, ROWS, policy.level), advantages, policy)
    assert low + high == pytest.approx((new.grad == 0).double().mean().item()) and low + high > 0


def test_clip_fractions_of_cispo_are_the_shares_of_bounded_weights() -> None:
    rho, advantages = torch.tensor([0.1, 0.9, 4.9, 5.1]), torch.tensor([-1.0, 1.0, 1.0, -1.0])
    policy = loss.PolicyLoss("cispo", clip_low=0.0, clip_high=5.0)
    assert loss.clip_fractions(rho, advantages, policy) == (0.0, 0.25)


@pytest.mark.parametrize("level", ["token", "sequence_token"])
def test_credit_by_token_reaches_its_own_token(level: Any) -> None:
    """Off-policy too, weighted by the ratio. A mean over the response would level it."""
    new, old, advantages = draws("new", "old", "advantages")
    new.requires_grad_()
    rho = loss.ratio(new, old, ROWS, level)
    (-rho * advantages).sum().backward()
    torch.testing.assert_close(new.grad, -rho.detach() * advantages)
    if level == "sequence_token":
        assert torch.equal(rho, loss.ratio(new, old, ROWS, "sequence"))


@pytest.mark.parametrize("level", ["token", "sequence", "sequence_token"])
def test_on_policy_the_gradient_is_the_policy_gradient(level: Any) -> None:
    """All tokens of a response have one advantage, so its mean ratio spreads the same gradient."""
    (new,) = draws("new")
    advantages = torch.tensor([0.7, -1.2, 0.4], dtype=torch.float64)[ROWS]
    new.requires_grad_()
    loss.clipped(loss.ratio(new, new.detach(), ROWS, level), advantages, 0.2, 0.2).sum().backward()
    torch.testing.assert_close(new.grad, -advantages)


def test_cispo_learns_from_every_token_with_a_bounded_weight() -> None:
    new, old, advantage, engine = draws("new", "old", "advantages", "engine")
    new.requires_grad_()
    ones = torch.ones_like(old)
    how = loss.PolicyLoss("cispo", clip_high=1.1, correction=loss.EngineCorrection("none"))
    how(new, {"old": old, "advantage": advantage, "engine": engine, "weight": ones, "row": ROWS.double()}).backward()
    torch.testing.assert_close(new.grad, -(new - old).exp().clamp(max=1.1).detach() * advantage)


def test_kl_estimates_have_the_divergence_as_their_mean() -> None:
    policy, reference = (t.reshape(3, 4).log_softmax(-1) for t in draws("p", "q"))
    exact = (policy.exp() * (policy - reference)).sum(-1)
    for kind in ("k1", "k3"):
        torch.testing.assert_close((policy.exp() * loss.kl_estimate(policy, reference, kind)).sum(-1), exact)
    assert (loss.kl_estimate(policy, reference) >= 0).all() and (loss.kl_estimate(policy, policy) == 0).all()
    near = policy + 1e-3 * reference
    torch.testing.assert_close(
        loss.kl_estimate(policy, near, "k2"), loss.kl_estimate(policy, near, "k3"), atol=1e-8, rtol=2e-3
    )


def test_engine_weights_are_bounded_and_have_no_gradient() -> None:
    old = torch.tensor([0.0, -1.0, -1.0], requires_grad=True)
    engine, rows = torch.tensor([-3.0, -1.0, 0.0]), torch.tensor([0, 0, 1])

    def of(*how: Any, **bounds: float) -> list[float]:
        found = loss.engine_weights(old, engine, rows, loss.EngineCorrection(*how, **bounds))
        assert not found.requires_grad
        return found.tolist()

    small = math.exp(-1)
    assert of("truncate") == pytest.approx([2.0, 1.0, small])
    assert of("mask") == pytest.approx([0.0, 1.0, small])
    assert of("mask", low=0.5, high=30.0) == pytest.approx([math.exp(3), 1.0, 0.0])
    engine[0] = -100.0  # a weight that overflows
    assert of("mask", "sequence") == pytest.approx([0.0, 0.0, small]) and of("truncate")[0] == 2.0
    engine[0] = -3.0
    assert of("truncate", "sequence", high=9.0) == pytest.approx([9.0, 9.0, small])
    assert of("none") == [1.0, 1.0, 1.0]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9))
def test_token_weights_are_means(lengths: list[int]) -> None:
    def total(kind: Any, cut: list[list[int]]) -> float:
        weights = loss.token_weights(lengths, kind, longest=30, micro_batches=cut)
        return math.fsum(w * n for w, n in zip(weights, lengths, strict=True))

    rows = list(range(len(lengths)))
    for cut in ([rows], [[row] for row in rows]):
        for kind in ("row_mean", "token_mean", "micro_batch_mean"):
            assert total(kind, cut) == pytest.approx(1)
        assert total("constant", cut) == pytest.approx(sum(lengths) / (30 * len(rows)))


def test_the_soft_overlong_penalty_by_hand() -> None:
    assert [credit.soft_overlong(n, 100, 20) for n in (10, 80, 90, 100, 120)] == [0, 0, -0.5, -1, -1]


# ------------------------------------------------------------------ the loop

LETTERS = "abcdefgh"


def problems(step: int, draw: int = 0) -> list[Problem]:
    name = f"{step}-{draw}" if draw else str(step)
    return [Problem(f"{name}-{i}", LETTERS[(step + i) % 8] * (i + 1), "a", "letters", "test") for i in range(4)]


def likes_a(pairs: Sequence[tuple[Problem, Completion]]) -> list[float | None]:
    """The share of "a" in the text; text with a "z" cannot be judged."""
    return [None if "z" in c.text else c.text.count("a") / len(c.token_ids) for _, c in pairs]


def policy(model: Any) -> TransformersEngine:
    return TransformersEngine(model, chat_tokenizer(), model_identity="tiny", slots=8)


def student() -> Any:
    return add_lora(tiny(initializer_range=0.1), rank=4, alpha=8, seed=0)


def grpo(model: Any, directory: Path, engine: Any = None, **changes: Any) -> tuple[list[GrpoMetrics], list[Rollout]]:
    hooks = {name: changes.pop(name) for name in ("stop", "recall", "ask", "mix") if name in changes}
    reward, sample = changes.pop("reward", likes_a), changes.pop("sample", problems)
    if mixture := changes.pop("mixture", ()):
        changes["reward"] = mixture
    metrics: list[GrpoMetrics] = []
    rollouts: list[Rollout] = []
    usual = {"optimizer": OptimizerSettings(2e-2, schedule="constant"), "steps": 6, "sampling": Sampling(max_tokens=8)}
    train_grpo(
        model, engine or policy(model), GrpoSettings(**(usual | changes)), sample=sample, reward=reward,
        checkpoints=directory, on_rollouts=lambda _, rows: rollouts.extend(rows), on_step=metrics.append, **hooks,
    )  # fmt: skip
    return metrics, rollouts


def test_grpo_learns_what_is_rewarded(tmp_path: Path) -> None:
    metrics, rollouts = grpo(student(), tmp_path, steps=25)
    assert metrics[-1].reward > 3 * metrics[0].reward
    assert len(rollouts) == 25 * 4 * 8 and {r.step for r in rollouts} == set(range(1, 26))
    assert all(m.logprob_gap < 1e-4 and abs(m.ratio_max - 1) < 1e-3 for m in metrics)
    assert metrics[0].entropy > metrics[-1].entropy > 0
    assert all((r.reward is None) == ("z" in r.completion.text) for r in rollouts)


def test_a_nan_reward_counts_as_no_reward(tmp_path: Path) -> None:
    """Otherwise its rollout would be learned from, with a credit of 0, and the step's mean reward would be NaN."""

    def nan_rewards(pairs: Any) -> Any:
        return [math.nan if reward is None else reward for reward in likes_a(pairs)]

    metrics, rollouts = grpo(student(), tmp_path / "nan", steps=1, reward=nan_rewards)
    expected, known = grpo(student(), tmp_path / "none", steps=1)
    unjudged = [r for r in rollouts if r.reward is None]
    assert unjudged and not any(r.trained for r in unjudged)
    assert [r.advantages for r in rollouts] == [r.advantages for r in known]
    assert (metrics[0].reward, metrics[0].unverifiable) == (expected[0].reward, expected[0].unverifiable)


def how(name: str, **changes: Any) -> dict[str, Any]:
    """The settings of a published loss."""
    terms, aggregation = loss.RECIPES[name]
    return {"loss": replace(terms, **changes), "aggregation": aggregation}


class Lying:
    """A policy whose engine reports every second token's log-probability too low by ``nats``."""

    name = "transformers"

    def __init__(self, engine: TransformersEngine, nats: float) -> None:
        self.engine, self.nats = engine, nats
        self.refresh = engine.refresh

    def generate(self, requests: Iterable[Request], stopping: Callable[[], bool]) -> Iterator[Completion]:
        for made in self.engine.generate(list(requests), stopping):
            logprobs = tuple(p - self.nats * (t % 2) for t, p in enumerate(made.logprobs or ()))
            yield replace(made, logprobs=logprobs)


def metrics_of_a_gap(directory: Path, **correction: Any) -> tuple[GrpoMetrics, list[Rollout]]:
    """Every second token's ratio is 4."""
    model = student()
    terms = loss.PolicyLoss(correction=loss.EngineCorrection(**correction))
    (m,), rollouts = grpo(model, directory, Lying(policy(model), math.log(4)), steps=1, loss=terms)
    return m, rollouts


def test_metrics_report_a_gap_between_engine_and_trainer(tmp_path: Path) -> None:
    """Ratios before truncation, and what truncation leaves: half of the tokens weigh 2 in place of 4."""
    m, rollouts = metrics_of_a_gap(tmp_path)
    lengths = [len(r.completion.token_ids) for r in rollouts if r.trained]
    odd = sum(n // 2 for n in lengths) / sum(lengths)
    assert m.ratio_max == pytest.approx(4, rel=1e-3) and m.ratio_mean == pytest.approx(1 + 3 * odd, rel=1e-3)
    assert m.logprob_gap == pytest.approx(odd * math.log(4), rel=1e-3)
    assert m.effective_share == pytest.approx((1 + odd) ** 2 / (1 + 3 * odd), rel=1e-3)
    assert m.corrected == pytest.approx(odd) and m.ratio_corrected == pytest.approx(1 + odd, rel=1e-3)


@pytest.mark.parametrize("how", ["none", "mask"])
def test_metrics_report_ratios_as_the_correction_sees_them(how: Any, tmp_path: Path) -> None:
    """Without correction no ratio is changed. By sequence, products are compared with the bounds and reported."""
    model = student()
    policy_loss = replace(
        loss.RECIPES["dapo"][0], correction=loss.EngineCorrection(how, "token" if how == "none" else "sequence", 0, 2)
    )
    (m,), rollouts = grpo(model, tmp_path, Lying(policy(model), math.log(1.5)), steps=1, loss=policy_loss)
    lengths = [len(r.completion.token_ids) for r in rollouts if r.trained]
    if how == "none":
        assert m.corrected == 0 and m.ratio_corrected == m.effective_share == 1 and m.ratio_max > 1.4
        return
    products = [(n, 1.5 ** (n // 2)) for n in lengths]
    assert len({p > 2 for _, p in products}) == 2
    total = sum(lengths)
    assert m.ratio_max == pytest.approx(max(p for _, p in products), rel=1e-3)
    assert m.ratio_mean == pytest.approx(sum(n * p for n, p in products) / total, rel=1e-3)
    assert m.ratio_corrected == pytest.approx(sum(n * p for n, p in products if p <= 2) / total, rel=1e-3)
    assert m.corrected == pytest.approx(sum(n for n, p in products if p > 2) / total)


def test_without_bounded_weights_the_corrected_share_is_0(tmp_path: Path) -> None:
    assert metrics_of_a_gap(tmp_path, level="sequence", high=1e9)[0].corrected == 0


@pytest.mark.parametrize("name", [name for name in loss.RECIPES if name != "bnpo"])
def test_the_split_into_micro_batches_changes_no_update(tmp_path: Path, name: str) -> None:
    ends = []
    for limit in (1, 10_000):
        model = student()
        grpo(model, tmp_path / str(limit), steps=1, micro_batch_tokens=limit, **how(name, kl=0.1))
        ends.append(weights(model))
    torch.testing.assert_close(*ends, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "share"), [("dr_grpo", 0.5), ("dapo", 1.0)])
def test_zero_variance_groups_count_in_a_constant_divisor(tmp_path: Path, name: str, share: float) -> None:
    """Two of four problems are never solved. A divisor without them would weight a step by its own outcome."""

    def half(pairs: Sequence[tuple[Problem, Completion]]) -> list[float | None]:
        return [0.0 if p.id.endswith(("2", "3")) else likes_a([(p, c)])[0] for p, c in pairs]

    alone, _ = grpo(student(), tmp_path / "a", steps=1, sample=lambda *at: problems(*at)[:2], **how(name))
    beside, rollouts = grpo(student(), tmp_path / "b", steps=1, reward=half, **how(name))
    assert sum(r.trained for r in rollouts) <= 16
    assert beside[0].grad_norm == pytest.approx(share * alone[0].grad_norm, rel=1e-4)


def test_the_update_equals_a_plain_loop_over_padded_rows(tmp_path: Path) -> None:
    """The reference: each rollout alone through the model, with the loss and AdamW written out."""
    model, reference = student(), student()
    _, rollouts = grpo(model, tmp_path, steps=1, scale="none", optimizer=OptimizerSettings(1e-3, warmup=0))
    total = torch.zeros(())
    kept = [r for r in rollouts if r.trained]
    for r in kept:
        ids = torch.tensor([r.completion.prompt_ids + r.completion.token_ids])
        table = reference(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        logprobs = table.gather(1, ids[0, 1:, None]).squeeze(1)[-len(r.completion.token_ids) :]
        total = total - r.advantage * logprobs.sum()
    (total / sum(len(r.completion.token_ids) for r in kept)).backward()
    torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    trainable = [p for p in reference.parameters() if p.requires_grad]
    torch.optim.AdamW(trainable, lr=1e-3, betas=(0.9, 0.95), weight_decay=0).step()
    torch.testing.assert_close(weights(model), weights(reference), atol=5e-5, rtol=0)


def test_a_kl_term_keeps_the_policy_near_its_start(tmp_path: Path) -> None:
    free, _ = grpo(student(), tmp_path / "free", **how("dapo", kl=1e-9))
    held, _ = grpo(student(), tmp_path / "held", **how("dapo", kl=2.0))
    assert free[0].kl == pytest.approx(0, abs=1e-6)
    assert held[-1].kl < free[-1].kl / 2


def test_several_updates_are_off_policy_and_clipped(tmp_path: Path) -> None:
    """The first update of a step is on-policy. For the later ones the policy has moved, and the clip acts."""
    once, _ = grpo(student(), tmp_path / "once", steps=2)
    often, _ = grpo(student(), tmp_path / "often", steps=2, updates=4, **how("gspo"))
    assert [m.step for m in often] == [1, 2] and all(m.total == 2 for m in once + often)
    assert all(m.clip_low == m.clip_high == 0 for m in once)
    assert any(m.clip_low + m.clip_high > 0 for m in often)


@pytest.mark.parametrize("updates", [2, 3])
def test_several_updates_resume_exactly(tmp_path: Path, updates: int) -> None:
    straight, resumed = student(), student()
    grpo(straight, tmp_path / "a", steps=3, updates=updates)
    with pytest.raises(Stopped):
        grpo(resumed, tmp_path / "b", steps=3, updates=updates, stop=after(20))
    grpo(resumed := student(), tmp_path / "b", steps=3, updates=updates)
    assert torch.equal(weights(resumed), weights(straight))


def test_groups_without_a_gradient_are_refilled(tmp_path: Path) -> None:
    """Half of the problems always have the same reward, so twice as many problems are drawn."""

    def rarely(pairs: Sequence[tuple[Problem, Completion]]) -> list[float | None]:
        return [1.0 if p.id.endswith(("0", "1")) else likes_a([(p, c)])[0] for p, c in pairs]

    plain, few = grpo(student(), tmp_path / "plain", steps=2, reward=rarely)
    filled, more = grpo(student(), tmp_path / "filled", steps=2, reward=rarely, refills=3)
    assert {m.draws for m in plain} == {1} and all(1 < m.draws < 4 for m in filled)
    assert len(more) == sum(m.draws for m in filled) * 4 * 8

    def groups(rollouts: list[Rollout], step: int) -> int:
        return len({r.problem.id for r in rollouts if r.step == step and r.trained})

    assert groups(few, 1) == 2 and groups(more, 1) == 4


def test_refilling_stops_after_the_allowed_draws(tmp_path: Path) -> None:
    metrics, _ = grpo(student(), tmp_path, steps=1, refills=2, reward=lambda pairs: [1.0] * len(pairs))
    assert metrics[0].draws == 3 and metrics[0].zero_variance == 1


def test_overlong_responses_are_filtered_or_punished(tmp_path: Path) -> None:
    _, kept = grpo(student(), tmp_path / "keep", steps=1)
    _, filtered = grpo(student(), tmp_path / "filter", steps=1, overlong="filter")
    _, punished = grpo(student(), tmp_path / "punish", steps=1, overlong="punish", overlong_buffer=4)
    cut = [r.completion.finish.value == "length" for r in kept]
    assert any(cut) and not all(cut)
    for is_cut, before, without, lower in zip(cut, kept, filtered, punished, strict=True):
        assert without.trained == (before.trained and not is_cut) and without.advantage == before.advantage
        if before.reward is not None:
            fall = max(0.0, (len(before.completion.token_ids) - 4) / 4)
            assert lower.reward == pytest.approx(before.reward - fall)


def test_forced_tokens_are_context_and_not_learned(tmp_path: Path) -> None:
    """A policy that forces its first token: the update equals that of a plain loop over the other tokens."""
    model, reference = student(), student()
    first = policy(model)

    class Forcing:
        refresh = first.refresh

        def generate(self, requests: list[Request], stopping: Callable[[], bool]) -> Iterator[Completion]:
            for completion in first.generate(requests, stopping):
                yield replace(completion, forced=(0,))

    settings = {"steps": 1, "scale": "none", "optimizer": OptimizerSettings(1e-3, warmup=0)}
    _, rollouts = grpo(model, tmp_path, engine=Forcing(), **settings)
    total, tokens = torch.zeros(()), 0
    for r in (r for r in rollouts if r.trained):
        ids = torch.tensor([r.completion.prompt_ids + r.completion.token_ids])
        table = reference(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        sampled = table.gather(1, ids[0, 1:, None]).squeeze(1)[-len(r.completion.token_ids) :][1:]
        total, tokens = total - r.advantage * sampled.sum(), tokens + len(sampled)
    (total / tokens).backward()
    torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    trainable = [p for p in reference.parameters() if p.requires_grad]
    torch.optim.AdamW(trainable, lr=1e-3, betas=(0.9, 0.95), weight_decay=0).step()
    torch.testing.assert_close(weights(model), weights(reference), atol=5e-5, rtol=0)


def test_the_policy_gets_the_messages_that_ask_makes(tmp_path: Path) -> None:
    model, seen = student(), list[Request]()
    first = policy(model)

    class Hearing:
        refresh = first.refresh

        def generate(self, requests: list[Request], stopping: Callable[[], bool]) -> Iterator[Completion]:
            seen.extend(requests)
            yield from first.generate(requests, stopping)

    def ask(problem: Problem) -> Asked:
        return Asked(({"role": "user", "content": f"why {problem.prompt}"},))

    grpo(model, tmp_path, engine=Hearing(), ask=ask, steps=1)
    group = GrpoSettings(optimizer=OptimizerSettings(1e-2), steps=1).group
    assert [r.messages for r in seen] == [ask(problem).messages for problem in problems(0) for _ in range(group)]


def test_a_step_with_nothing_to_learn_counts_as_a_step(tmp_path: Path) -> None:
    model, engine = tiny(), policy(tiny())
    before, seen = weights(model), list[GrpoMetrics]()
    train_grpo(
        model, engine, GrpoSettings(optimizer=OptimizerSettings(1e-2), steps=2, sampling=Sampling(max_tokens=4)),
        sample=problems, reward=lambda pairs: [1.0] * len(pairs), checkpoints=tmp_path, on_step=seen.append,
    )  # fmt: skip
    assert torch.equal(weights(model), before) and [m.zero_variance for m in seen] == [1.0, 1.0]


# ------------------------------------------------------------------ stopping, killing, resuming


class Counting:
    """A policy that counts its requests."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.engine, self.asked = engine, 0
        self.refresh = engine.refresh

    def generate(self, requests: list[Request], stopping: Callable[[], bool]) -> Iterator[Completion]:
        self.asked += len(requests)
        return self.engine.generate(requests, stopping)


def after(calls: int) -> Callable[[], bool]:
    left = iter([False] * calls)
    return lambda: next(left, True)


def test_a_run_stopped_anywhere_and_resumed_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    straight = student()
    whole, every = grpo(straight, tmp_path / "a")
    stopped = 0
    for calls in (3, 40, 32, 60, 1000):  # inside the sampling of a step, and between steps
        resumed = student()
        try:
            metrics, rollouts = grpo(resumed, tmp_path / "b", stop=after(calls))
            break
        except Stopped:
            stopped += 1
    assert stopped > 1
    assert torch.equal(weights(resumed), weights(straight))
    texts = {(r.step, r.problem.id, r.index): r.completion.text for r in every}
    assert metrics[0].step > 1 and metrics[-1].reward == whole[-1].reward
    assert all(texts[r.step, r.problem.id, r.index] == r.completion.text for r in rollouts)


def test_a_repeated_problem_gets_new_samples(tmp_path: Path) -> None:
    """Randomness depends on the step; otherwise each epoch would learn from the samples of the first."""
    settings = {"steps": 2, "optimizer": OptimizerSettings(1e-9), "sample": lambda step, draw: problems(0)}
    _, rollouts = grpo(student(), tmp_path, **settings)
    first, second = rollouts[: len(rollouts) // 2], rollouts[len(rollouts) // 2 :]
    same = [a.completion.text == b.completion.text for a, b in zip(first, second, strict=True)]
    assert sum(same) < len(same) / 2


def test_rollouts_kept_by_the_caller_are_not_sampled_again(tmp_path: Path) -> None:
    first = student()
    _, rollouts = grpo(first, tmp_path / "a", steps=2)
    kept = [r.completion for r in rollouts][5:]
    second = student()
    counting = Counting(policy(second))
    grpo(second, tmp_path / "b", engine=counting, steps=2, recall=lambda step: kept)
    assert counting.asked == 5 and torch.equal(weights(first), weights(second))


def long(place: Path) -> tuple[int, Any]:
    model = student()
    metrics, _ = grpo(model, place, steps=12, checkpoint_steps=1)
    return metrics[0].step if metrics else 13, weights(model)


@pytest.mark.slow
def test_sigkill_at_random_moments_gives_equal_weights(tmp_path: Path) -> None:
    (resumed, found), (begun, expected) = killed_and_straight(tmp_path, long, kills=5, latest=0.5)
    assert begun == 1 < resumed and torch.equal(found, expected)
