"""GRPO: credit and loss by their laws, and the loop with the real engine: it learns, and resumes exactly."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from tiny import chat_tokenizer, tiny, weights  # noqa: E402

from distill.engines.transformers import TransformersEngine  # noqa: E402
from distill.randomness import generator  # noqa: E402
from distill.training.lora import add_lora  # noqa: E402
from distill.training.optimizer import OptimizerSettings  # noqa: E402
from distill.types import Completion, Problem, Request, Sampling  # noqa: E402
from pipeline.errors import InputError, Stopped  # noqa: E402
from rl import credit, loss  # noqa: E402
from rl.grpo import GrpoMetrics, GrpoSettings, Rollout, train_grpo  # noqa: E402

# ------------------------------------------------------------------ credit

rewards_of_groups = st.lists(st.sampled_from([0.0, 0.5, 1.0, math.nan]), min_size=4, max_size=4).flatmap(
    lambda first: st.lists(st.lists(st.sampled_from([0.0, 1.0, math.nan]), min_size=4, max_size=4), max_size=4).map(
        lambda rest: torch.tensor([first, *rest], dtype=torch.float64)
    )
)


@given(rewards_of_groups, st.sampled_from(["group", "leave_one_out"]), st.sampled_from(["std", "none"]))
def test_advantages_of_a_group_sum_to_zero_and_skip_the_unjudged(rewards: Any, baseline: Any, scale: Any) -> None:
    result = credit.advantages(rewards, baseline, scale)
    torch.testing.assert_close(result.sum(1), torch.zeros(len(rewards), dtype=torch.float64), atol=1e-9, rtol=0)
    assert (result[rewards.isnan()] == 0).all() and result.isfinite().all()
    assert ((result != 0).any(1) == credit.informative(rewards)).all()


@given(rewards_of_groups)
def test_an_unjudged_sample_changes_nothing_for_the_others(rewards: Any) -> None:
    longer = torch.cat([rewards, torch.full((len(rewards), 1), math.nan, dtype=torch.float64)], 1)
    for scale in ("std", "none"):
        torch.testing.assert_close(
            credit.advantages(longer, scale=scale)[:, :-1], credit.advantages(rewards, scale=scale)
        )


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    plain = torch.tensor([[0.75, -0.25, -0.25, -0.25], [0, 0, 0, 0]])
    torch.testing.assert_close(credit.advantages(rewards, scale="none"), plain)
    torch.testing.assert_close(credit.advantages(rewards), plain / (0.5 + credit.EPSILON))
    torch.testing.assert_close(credit.advantages(rewards, "leave_one_out", "none"), plain * 4 / 3)
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    assert credit.broadcast(torch.tensor([2.0]), mask).tolist() == [[2.0, 2.0, 0.0]]


# ------------------------------------------------------------------ loss

SHAPE = (3, 5)


def draws(*names: str) -> list[Any]:
    return [torch.from_numpy(generator("loss", name).normal(-1, 0.4, SHAPE)) for name in names]


def test_the_clip_stops_the_gradient_exactly_where_it_says() -> None:
    new, old, advantages = draws("new", "old", "advantages")
    new.requires_grad_()
    rho = loss.ratio(new, old)
    loss.clipped_objective(rho, advantages, 0.2, 0.28).sum().backward()
    beyond = ((rho < 0.8) & (advantages < 0)) | ((rho > 1.28) & (advantages > 0))
    assert beyond.any() and not beyond.all()
    expected = torch.where(beyond, 0.0, -rho * advantages)
    torch.testing.assert_close(new.grad, expected)


def test_on_policy_the_gradient_is_the_policy_gradient() -> None:
    new, advantages = draws("new", "advantages")
    new.requires_grad_()
    loss.clipped_objective(loss.ratio(new, new.detach()), advantages, 0.2, 0.2).sum().backward()
    torch.testing.assert_close(new.grad, -advantages)


def test_k3_is_positive_and_estimates_the_divergence() -> None:
    policy, reference = (t.log_softmax(-1) for t in draws("p", "q"))
    exact = (policy.exp() * (policy - reference)).sum(-1)
    torch.testing.assert_close((policy.exp() * loss.k3(policy, reference)).sum(-1), exact)  # its mean is the KL
    assert (loss.k3(policy, reference) >= 0).all() and (loss.k3(policy, policy) == 0).all()


def test_engine_correction_is_truncated_and_has_no_gradient() -> None:
    old = torch.tensor([0.0, -1.0, -1.0], requires_grad=True)
    weights = loss.engine_correction(old, torch.tensor([-3.0, -1.0, 0.0]), cap=2.0)
    torch.testing.assert_close(weights, torch.tensor([2.0, 1.0, math.exp(-1)]))
    assert not weights.requires_grad


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9))
def test_token_weights_are_means(lengths: list[int]) -> None:
    def total(kind: Any, cut: list[list[int]]) -> float:
        weights = loss.token_weights(lengths, kind, longest=30, micro_batches=cut)
        return math.fsum(w * n for w, n in zip(weights, lengths, strict=True))

    rows = list(range(len(lengths)))
    for cut in ([rows], [[row] for row in rows]):
        for kind in ("grpo", "dapo", "bnpo"):
            assert total(kind, cut) == pytest.approx(1)
        assert total("dr_grpo", cut) == pytest.approx(sum(lengths) / (30 * len(rows)))


# ------------------------------------------------------------------ the loop

LETTERS = "abcdefgh"


def problems(step: int) -> list[Problem]:
    return [Problem(f"{step}-{i}", LETTERS[(step + i) % 8] * (i + 1), "a", "letters", "test") for i in range(4)]


def likes_a(pairs: Sequence[tuple[Problem, Completion]]) -> list[float | None]:
    """The share of "a" in the text; text with a "z" cannot be judged."""
    return [None if "z" in c.text else c.text.count("a") / len(c.token_ids) for _, c in pairs]


def policy(model: Any) -> TransformersEngine:
    return TransformersEngine(model, chat_tokenizer(), model_identity="tiny", slots=8)


def student() -> Any:
    return add_lora(tiny(initializer_range=0.1), rank=4, alpha=8, seed=0)


def grpo(model: Any, directory: Path, engine: Any = None, **changes: Any) -> tuple[list[GrpoMetrics], list[Rollout]]:
    hooks = {name: changes.pop(name) for name in ("stop", "recall") if name in changes}
    metrics: list[GrpoMetrics] = []
    rollouts: list[Rollout] = []
    usual = {"optimizer": OptimizerSettings(2e-2, schedule="constant"), "steps": 6, "sampling": Sampling(max_tokens=8)}
    train_grpo(
        model, engine or policy(model), GrpoSettings(**(usual | changes)), sample=problems, reward=likes_a,
        checkpoints=directory, on_rollouts=lambda _, rows: rollouts.extend(rows), on_step=metrics.append, **hooks,
    )  # fmt: skip
    return metrics, rollouts


def test_it_learns_what_is_rewarded(tmp_path: Path) -> None:
    metrics, rollouts = grpo(student(), tmp_path, steps=25)
    assert metrics[-1].reward > 3 * metrics[0].reward
    assert len(rollouts) == 25 * 4 * 8 and {r.step for r in rollouts} == set(range(1, 26))
    assert all(m.logprob_gap < 1e-4 and abs(m.ratio_max - 1) < 1e-3 for m in metrics)
    assert metrics[0].entropy > metrics[-1].entropy > 0
    assert all((r.reward is None) == ("z" in r.completion.text) for r in rollouts)


@pytest.mark.parametrize("aggregation", ["grpo", "dr_grpo", "dapo"])
def test_the_cut_into_micro_batches_changes_no_update(tmp_path: Path, aggregation: Any) -> None:
    ends = []
    for limit in (1, 10_000):
        model = student()
        grpo(model, tmp_path / str(limit), steps=1, micro_batch_tokens=limit, aggregation=aggregation, clip_low=0.1)
        ends.append(weights(model))
    torch.testing.assert_close(*ends, atol=1e-4, rtol=0)


def test_the_update_equals_a_plain_loop_over_padded_rows(tmp_path: Path) -> None:
    """The reference: each rollout alone through the model, the loss and AdamW written out."""
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


def test_a_kl_term_holds_the_policy_near_its_start(tmp_path: Path) -> None:
    free, _ = grpo(student(), tmp_path / "free", kl=1e-9)
    held, _ = grpo(student(), tmp_path / "held", kl=2.0)
    assert free[0].kl == pytest.approx(0, abs=1e-6)
    assert free[-1].kl is not None and held[-1].kl is not None and held[-1].kl < free[-1].kl / 2


def test_nothing_to_learn_is_a_step_too(tmp_path: Path) -> None:
    model, engine = tiny(), policy(tiny())
    before, seen = weights(model), list[GrpoMetrics]()
    train_grpo(
        model, engine, GrpoSettings(optimizer=OptimizerSettings(1e-2), steps=2, sampling=Sampling(max_tokens=4)),
        sample=problems, reward=lambda pairs: [1.0] * len(pairs), checkpoints=tmp_path, on_step=seen.append,
    )  # fmt: skip
    assert torch.equal(weights(model), before) and [m.zero_variance for m in seen] == [1.0, 1.0]


def test_settings_that_would_bias_the_ratios_are_refused() -> None:
    for sampling in (Sampling(temperature=0), Sampling(top_p=0.9), Sampling(top_k=5)):
        with pytest.raises(InputError, match="truncation biases"):
            GrpoSettings(optimizer=OptimizerSettings(1e-2), steps=1, sampling=sampling)


# ------------------------------------------------------------------ stopping, killing, resuming


class Counting:
    """A policy that counts what it is asked for."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.engine, self.asked = engine, 0
        self.refresh = engine.refresh

    def generate(self, requests: list[Request], stopping: Callable[[], bool]) -> Iterator[Completion]:
        self.asked += len(requests)
        return self.engine.generate(requests, stopping)


def after(calls: int) -> Callable[[], bool]:
    left = iter([False] * calls)
    return lambda: next(left, True)


def test_stopped_anywhere_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
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


def test_rollouts_kept_by_the_caller_are_not_sampled_again(tmp_path: Path) -> None:
    first = student()
    _, rollouts = grpo(first, tmp_path / "a", steps=2)
    kept = [r.completion for r in rollouts][5:]
    second = student()
    counting = Counting(policy(second))
    grpo(second, tmp_path / "b", engine=counting, steps=2, recall=lambda step: kept)
    assert counting.asked == 5 and torch.equal(weights(first), weights(second))


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
root, here = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, here)
import peft, torch
from test_rl import grpo, student, weights

def child(name, seconds=None):
    process = os.fork()
    if process == 0:
        try:
            model = student()
            metrics, _ = grpo(model, root / name, steps=12, checkpoint_steps=1)
            torch.save(weights(model), root / f"{name}.pt")
            print(name, "from", metrics[0].step if metrics else "the end", flush=True)
        finally:
            os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)

started = time.monotonic()
child("straight")
whole = time.monotonic() - started
for kill in range(5):
    child("killed", whole * random.Random(kill).uniform(0.1, 0.5))
child("killed")
"""


@pytest.mark.slow
def test_sigkill_at_random_moments_gives_equal_weights(tmp_path: Path) -> None:
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": str(here.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(here)]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "straight from 1\n" in printed and "killed from 1\n" not in printed
    assert torch.equal(torch.load(tmp_path / "killed.pt"), torch.load(tmp_path / "straight.pt"))
