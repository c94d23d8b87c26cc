"""Rollouts as rows: what is rewarded is what is stored, and it gets the same reward when it is read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

from distill.keys import problem_key
from distill.store import Store
from distill.store.records import problem_row
from distill.training.optimizer import OptimizerSettings
from distill.types import Asked, Completion, Finish, Problem, Sampling, ThinkingBudget
from distill.verifiers import VerifierPool
from rl.grpo import GrpoSettings, judge, request
from rl.ledger import Ledger
from rl.rewards import Mixed

PROBLEM = Problem("p/1", "6 * 7?", "42", "math", "test")
SETTINGS = GrpoSettings(optimizer=OptimizerSettings(1e-2), steps=1, group=2, sampling=Sampling(max_tokens=8))
OWN = {"verifier": None}
TEXTS = ("work\n</think>\n\\boxed{42}", "it could be \\boxed{42}, but let me check")


def completion(text: str, index: int) -> Completion:
    """A completion whose prompt already opens the thinking, as some templates do."""
    key = request(SETTINGS.sampling, 0, PROBLEM, index).key
    return Completion(key, "6 * 7?<think>\n", (1, 2), text, (3, 4), (-0.1, -0.2), Finish.LENGTH, thinking_tokens=1)


def test_a_rollout_cut_in_its_thinking_gets_no_reward_now_or_when_read_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append("problems", [problem_row(PROBLEM)])
    store.ingest()
    completions = [completion(text, index) for index, text in enumerate(TEXTS)]
    with VerifierPool(workers=1) as pool:
        ledger = Ledger(store, "run", SETTINGS.sampling_at, {PROBLEM.id: problem_key(PROBLEM)}, pool, OWN)
        rewards = ledger.reward([(PROBLEM, c) for c in completions])
        assert rewards == [{"verifier": 1.0}, {"verifier": 0.0}]
        ledger.write(1, judge(SETTINGS, 1, [PROBLEM], completions, [Mixed(r["verifier"]) for r in rewards]))
        store.ingest()
        again = Ledger(store, "run", SETTINGS.sampling_at, {PROBLEM.id: problem_key(PROBLEM)}, pool, OWN)
        kept = sorted(again.recall(0), key=lambda c: c.key)
        assert [c.key for c in kept] == [c.key for c in completions]
        assert again.reward([(PROBLEM, c) for c in kept]) == rewards
    rows = store.rows(
        "SELECT answer, closed, outcome FROM traces JOIN verdicts USING (trace_key) ORDER BY sample_index"
    )
    assert rows == [
        {"answer": "\\boxed{42}", "closed": True, "outcome": "correct"},
        {"answer": "", "closed": False, "outcome": "incorrect"},
    ]


WAVERING = """
from pathlib import Path
from distill import Verdict
class Own:
    name, version = "own", "1"
    def verify(self, problem, trace):
        asked = Path(__file__).with_name("asked")
        asked.write_text(asked.read_text() + "x" if asked.exists() else "x")
        return Verdict.correct("yes") if len(asked.read_text()) < 3 else Verdict.unverifiable("tired")
"""


def test_what_was_judged_before_a_run_was_killed_is_not_judged_again(tmp_path: Path) -> None:
    """A judge would be paid twice and might say something else, and the resumed run would learn from rewards that are
    not those in the store."""
    (tmp_path / "own.py").write_text(WAVERING)
    store, own = Store(tmp_path / "store"), {"own": f"{tmp_path / 'own.py'}:Own"}
    store.append("problems", [problem_row(PROBLEM)])
    completions = [completion(text, index) for index, text in enumerate(TEXTS)]
    with VerifierPool(workers=1) as pool:
        ledger = Ledger(store, "run", SETTINGS.sampling_at, {PROBLEM.id: problem_key(PROBLEM)}, pool, own)
        rewards = ledger.reward([(PROBLEM, c) for c in completions])
        assert rewards == [{"own": 1.0}, {"own": 1.0}]
        ledger.write(1, judge(SETTINGS, 1, [PROBLEM], completions, [Mixed(r["own"]) for r in rewards]))
        store.ingest()
        again = Ledger(store, "run", SETTINGS.sampling_at, {PROBLEM.id: problem_key(PROBLEM)}, pool, own)
        kept = list(again.recall(0))
        assert again.reward([(PROBLEM, c) for c in kept]) == rewards and (tmp_path / "asked").read_text() == "xx"
        again.write(1, [])
        assert again.reward([(PROBLEM, replace(c, key="grpo/1")) for c in kept[:1]]) == [{"own": None}]  # a later step


def test_two_components_with_the_same_settings_share_a_verdict(tmp_path: Path) -> None:
    """The store holds one. If they were judged apart, a resumed run would learn from other rewards."""
    (tmp_path / "own.py").write_text(WAVERING)
    own = f"{tmp_path / 'own.py'}:Own"
    with VerifierPool(workers=1) as pool:
        names = {PROBLEM.id: problem_key(PROBLEM)}
        ledger = Ledger(Store(tmp_path / "store"), "run", SETTINGS.sampling_at, names, pool, {"a": own, "b": own})
        rewards = ledger.reward([(PROBLEM, completion(text, index)) for index, text in enumerate(TEXTS)])
    assert rewards == [{"a": 1.0, "b": 1.0}] * 2 and (tmp_path / "asked").read_text() == "xx"


def test_a_rollout_s_prefix_and_forced_tokens_are_stored_and_read_back(tmp_path: Path) -> None:
    """Otherwise a resumed step, partly sampled before, would learn from forced tokens after all."""
    store = Store(tmp_path)
    store.append("problems", [problem_row(PROBLEM)])
    store.ingest()
    asked = Asked(PROBLEM.messages, "work", ThinkingBudget(most=9))
    assert request(SETTINGS.sampling, 0, PROBLEM, 1, lambda _: asked).prefix == "work"
    completions = [replace(completion(text, index), forced=(0,)) for index, text in enumerate(TEXTS)]
    with VerifierPool(workers=1) as pool:
        names = {PROBLEM.id: problem_key(PROBLEM)}
        ledger = Ledger(store, "run", SETTINGS.sampling_at, names, pool, OWN, ask=lambda _: asked)
        rewards = ledger.reward([(PROBLEM, c) for c in completions])
        ledger.write(1, judge(SETTINGS, 1, [PROBLEM], completions, [Mixed(r["verifier"]) for r in rewards]))
        store.ingest()
        again = Ledger(store, "run", SETTINGS.sampling_at, names, pool, OWN, ask=lambda _: asked)
    assert [c.forced for c in again.recall(0)] == [(0,), (0,)]
    rows = store.rows("SELECT DISTINCT prefix, budget, forced FROM traces")
    assert rows == [{"prefix": "work", "budget": '{"closing":"\\n</think>\\n\\n","most":9}', "forced": [0]}]
