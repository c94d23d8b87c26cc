"""One query on the store explains an update: what was learned from which token, and how strongly."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from test_rewards import made  # noqa: E402
from test_rl import policy, student, weights  # noqa: E402

from distill.evaluation import behaviours  # noqa: E402
from distill.keys import problem_key  # noqa: E402
from distill.store import Store  # noqa: E402
from distill.store.records import problem_row  # noqa: E402
from distill.training.optimizer import OptimizerSettings  # noqa: E402
from distill.types import Problem, Sampling  # noqa: E402
from distill.verifiers import VerifierPool  # noqa: E402
from rl import loss, rewards  # noqa: E402
from rl.grpo import GrpoSettings, train_grpo  # noqa: E402
from rl.ledger import Ledger  # noqa: E402
from rl.monitors import GrpoMetrics  # noqa: E402

PROBLEMS = [Problem(f"{i}", "ab"[i % 2] * (1 + i), "a", "exact", "test") for i in range(4)]
HAS_A = made({"verifier": {"regex": {"pattern": "a", "search": True}}}, {"length": "linear", "weight": 0.5})
EXPLAINED = """
    SELECT t.prompt_ids, t.token_ids, t.logprobs AS engine, u.logprobs AS trainer, u.weight, r.advantage, u.optimizer_step
    FROM updates u JOIN rollouts r USING (run, trace_key) JOIN traces t USING (trace_key)
    WHERE u.optimizer_step = ? ORDER BY u.trace_key
"""


def refined(directory: Path, die_at: int = 0, **changes: Any) -> tuple[Any, Store, list[GrpoMetrics]]:
    """Train three steps with a store; killed at ``die_at``, when an update is stored that no checkpoint holds."""
    store = Store(directory)
    store.append("problems", [problem_row(p) for p in PROBLEMS])
    settings = GrpoSettings(
        optimizer=OptimizerSettings(2e-2),
        steps=3,
        group=6,
        sampling=Sampling(max_tokens=6),
        reward=HAS_A,
        **changes,
    )
    model, metrics = student(), list[GrpoMetrics]()
    with VerifierPool(workers=1) as pool:
        names = {p.id: problem_key(p) for p in PROBLEMS}
        ledger = Ledger(store, "run", settings.sampling_at, names, pool, rewards.verifiers(HAS_A))

        def learned(used: Any) -> None:
            ledger.learned(used)
            if any(one.update == die_at for one in used):
                os.kill(os.getpid(), signal.SIGKILL)

        train_grpo(
            model, policy(model), settings, sample=lambda step, draw: PROBLEMS, reward=ledger.reward,
            checkpoints=directory / "checkpoints", recall=ledger.recall, on_rollouts=ledger.write, on_updates=learned,
            on_step=metrics.append,
        )  # fmt: skip
    store.ingest()
    return model, store, metrics


def gradient_norm(rows: list[dict[str, Any]]) -> float:
    """The gradient norm of the sum over ``rows`` of weight times advantage times log-probability."""
    model = student()
    total = torch.zeros(())
    for row in rows:
        ids = [*row["prompt_ids"], *row["token_ids"]]
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        start = len(row["prompt_ids"])
        logprobs = torch.stack([logits[start + t - 1, token] for t, token in enumerate(row["token_ids"])])
        torch.testing.assert_close(logprobs.detach(), torch.tensor(row["trainer"]), atol=1e-5, rtol=0)
        total = total - row["weight"] * row["advantage"] * logprobs.sum()
    total.backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    return float(torch.stack([g.square().sum() for g in found]).sum().sqrt())


def test_the_gradient_of_an_update_follows_from_its_rows(tmp_path: Path) -> None:
    _, store, metrics = refined(tmp_path)
    rows = store.rows(EXPLAINED, [1])
    assert sum(row["weight"] * len(row["token_ids"]) for row in rows) == pytest.approx(1)
    assert gradient_norm(rows) == pytest.approx(metrics[0].grad_norm, rel=1e-4)
    assert metrics[0].logprob_gap == pytest.approx(
        sum(abs(a - b) for row in rows for a, b in zip(row["engine"], row["trainer"], strict=True))
        / sum(len(row["engine"]) for row in rows),
        abs=1e-6,
    )
    assert metrics[0].ratio_mean == pytest.approx(1, abs=1e-4) and metrics[0].effective_share == pytest.approx(
        1, abs=1e-4
    )


def test_the_rows_hold_the_logprobs_that_later_updates_are_compared_with(tmp_path: Path) -> None:
    """Ratios compare with the weights that sampled, a KL term with the student without its adapter."""
    terms = replace(loss.RECIPES["dapo"][0], kl=0.1)
    _, store, _ = refined(tmp_path, updates=2, loss=terms)
    rows = store.rows(f"{EXPLAINED.replace('WHERE u.optimizer_step = ?', '')}")
    rows = [row | more for row, more in zip(rows, store.rows("SELECT * FROM updates ORDER BY trace_key"), strict=True)]
    moved = {0: 0.0, 1: 0.0}
    for row in rows:
        old, engine, present = (torch.tensor(row[name]) for name in ("old_logprobs", "engine", "logprobs"))
        torch.testing.assert_close(old, engine, atol=1e-5, rtol=0)
        second = row["optimizer_step"] % 2 == 0
        moved[second] = max(moved[second], float((present - old).abs().max()))
    assert moved[0] < 1e-5 and moved[1] > 1e-3
    first = [row for row in rows if row["optimizer_step"] == 1]  # when the adapter still changes nothing
    assert first and all(row["reference_logprobs"] == pytest.approx(row["logprobs"], abs=1e-5) for row in first)
    last = [row for row in rows if row["optimizer_step"] == max(row["optimizer_step"] for row in rows)]
    assert any(
        abs(a - b) > 1e-2 for row in last for a, b in zip(row["reference_logprobs"], row["logprobs"], strict=True)
    )


def test_the_query_in_the_documentation_works(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs/store.md").read_text()
    (query,) = (
        part.partition("```")[0] for part in page.split("```sql\n") if "FROM updates" in part.partition("```")[0]
    )
    _, store, _ = refined(tmp_path)
    answered, rows = store.rows(query), store.rows(EXPLAINED, [1])
    assert len(answered) == len(rows) > 0 and {row["problem_id"] for row in answered} <= {p.id for p in PROBLEMS}
    assert sorted(row["advantage"] for row in answered) == sorted(row["advantage"] for row in rows)


def test_each_rollout_joins_the_updates_that_used_it(tmp_path: Path) -> None:
    _, store, _ = refined(tmp_path, updates=2)
    rows = store.rows(
        "SELECT r.trace_key, r.step, r.used, list(u.optimizer_step) AS found FROM rollouts r LEFT JOIN updates u USING (trace_key) "
        "GROUP BY ALL ORDER BY 1"
    )
    for row in rows:
        first = 2 * row["step"] - 1
        assert set(row["found"]) <= {first, first + 1} if row["used"] else row["found"] == [None]


def test_an_update_repeated_after_a_kill_gives_the_same_rows(tmp_path: Path) -> None:
    whole, store, metrics = refined(tmp_path / "whole")
    child = os.fork()
    if child == 0:
        try:
            refined(tmp_path / "killed", die_at=2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    resumed, again, _ = refined(tmp_path / "killed")
    every = "SELECT * FROM updates ORDER BY ALL"
    assert again.rows(every) == store.rows(every) != []
    assert torch.equal(weights(resumed), weights(whole))
    assert len({row["optimizer_step"] for row in store.rows(every)}) == len([m for m in metrics if m.tokens])


def test_reward_components_are_stored_with_their_rollout(tmp_path: Path) -> None:
    _, store, _ = refined(tmp_path, overlong="punish", overlong_buffer=2)
    rows = store.rows("SELECT reward, components, advantages FROM rollouts")
    for row in rows:
        part = json.loads(row["components"])
        assert row["reward"] == pytest.approx(part["regex"] + 0.5 * part["linear"] + part["overlong"])
    assert {row["advantages"] for row in rows} == {None}  # an outcome reward gives every token the same advantage


def test_phrases_of_backtracking_and_verification_are_counted() -> None:
    text = "12 + 7 = 20. Wait, that's wrong. Let me check: 12 + 7 = 19. Waiting is no correction."
    counts = [behaviours.count(behaviours.shipped()[name], text) for name in ("backtracking", "verification")]
    assert counts == [2, 1]
