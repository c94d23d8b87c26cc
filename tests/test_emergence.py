"""How thinking changes in training: behaviours, corrections and lengths, computed from made-up rollouts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from distill import catalog, keys, verifiers
from distill.evaluation import behaviours, emergence
from distill.stages.report import EmergenceSettings
from distill.store import Store
from distill.store.records import problem_row, trace_row
from distill.types import Finish, Problem, Sampling, Trace, Verdict
from pipeline.manifest import Identity, Manifest

Sample = tuple[int, str, str]
"""The step of a rollout, its thinking, and its answer; ``{right}`` stands for the right one."""

CHECKING: list[Sample] = [
    (1, "12 + 7 = 20", "{right}"),
    (1, "12 + 7 = 20", "0"),
    (2, "The answer is 0. Wait, let me check: it is {right}.", "{right}"),
    (2, "So the answer is 1. Hmm. To verify, once more.", "{right}"),
]


def keep_rollouts(store: Store, run: str, samples: Sequence[Sample], family: str = "calc") -> None:
    """Store rollouts of one family, each of a different problem."""
    problems = [catalog.resolve("families", family)().generate(9, i, "train") for i in range(len(samples))]
    rows = [_rollout(run, at, problem, one) for at, (problem, one) in enumerate(zip(problems, samples, strict=True))]
    store.append("problems", [problem_row(problem) for problem in problems])
    store.append("traces", [trace for trace, _ in rows])
    store.append("rollouts", [rollout for _, rollout in rows])
    store.ingest()


def _rollout(run: str, at: int, problem: Problem, sample: Sample) -> tuple[dict[str, Any], dict[str, Any]]:
    step, thinking, answer = sample[0], *(text.replace("{right}", problem.reference) for text in sample[1:])
    key = keys.rollout_key(run, step, keys.problem_key(problem), at)
    trace = Trace(
        key, run, "transformers", Sampling(), at, problem.prompt, thinking, answer, True,
        10 * step, 2, (1,), (), None, Finish.STOP,
    )  # fmt: skip
    fact = {
        "trace_key": key, "problem_key": keys.problem_key(problem), "run": run, "step": step, "group_index": at,
        "reward": float(answer == problem.reference), "advantage": 0.0, "used": True, "teacher_logprobs": None,
        "components": None, "advantages": None,
    }  # fmt: skip
    return trace_row(trace, keys.prompt_key(problem)), fact


def judge(asked: Iterable[emergence.Asked]) -> Iterator[tuple[Any, Verdict]]:
    return ((key, verifiers.judge(verifiers.build(spec), problem, response)) for key, spec, problem, response in asked)


def observed(where: Path, samples: Sequence[Sample], **looking: Any) -> dict[str, Any]:
    store = Store(where)
    keep_rollouts(store, "run", samples)
    made = Manifest("grpo", "run", Identity("grpo", 1, {"verifier": None}, {}, {}), "", {}, 0.0, "")
    found = emergence.observe(store, made, emergence.Looking(**looking), judge)
    assert found is not None
    return found


def test_behaviours_are_shares_of_rollouts_with_what_they_earn(tmp_path: Path) -> None:
    found = observed(tmp_path, CHECKING)
    assert found["steps"] == [1, 2] and found["looked_at"] == 4
    checks, looks_back = found["behaviours"]["verification"], found["behaviours"]["backtracking"]
    assert checks == {"shares": [0.0, 1.0], "share": 0.5, "reward_with": 1.0, "reward_without": 0.5}
    assert looks_back["shares"] == [0.0, 1.0]
    assert found["behaviours"]["subgoals"]["reward_with"] is None


def test_a_correction_is_classified_by_its_effect(tmp_path: Path) -> None:
    samples = [
        (1, "The answer is 0. Wait.", "{right}"),
        (1, "The answer is {right}. Wait.", "0"),
        (1, "The answer is 0. Wait.", "1"),
        (1, "The answer is {right}.0.", "{right}"),
        (1, "The answer is {right}.", "{right}"),  # an answer is named and not changed
        (1, "12 + 7 = 20", "{right}"),  # no answer is named
    ]
    found = observed(tmp_path, samples)
    every = {"wrong to right": 1, "right to wrong": 1, "wrong to wrong": 1, "right in other words": 1}
    assert found["changes"] == [every] and found["changes_by_source"] == {"calc": every}


def test_lengths_are_grouped_by_difficulty_and_cover_all_rollouts(tmp_path: Path) -> None:
    found = observed(tmp_path, [(step, "x", "0") for step in (1, 1, 2, 2)], each=1)
    assert found["looked_at"] == 2
    for line in found["lengths"].values():
        assert all(tokens == 10 * step + 2 for step, tokens in line)
    assert all(name.startswith("calc/") for name in found["lengths"])


def test_many_steps_are_binned_into_few_points(tmp_path: Path) -> None:
    found = observed(tmp_path, [(step, "x", "0") for step in range(1, 91)])
    assert len(found["steps"]) == emergence.BINS and found["steps"][-1] == 90


def test_a_run_without_rollouts_has_no_emergence(tmp_path: Path) -> None:
    keep_rollouts(store := Store(tmp_path), "other", CHECKING)
    made = Manifest("sft", "run", Identity("sft", 1, {}, {}, {}), "", {}, 0.0, "")
    assert emergence.observe(store, made, emergence.Looking(), judge) is None


@pytest.mark.parametrize(
    ("thinking", "named"),
    [
        (r"so \boxed{12}. No: \boxed{13}", ["12", "13"]),
        ("The answer is 5*x + 2. Wait, the result should be 3.5, no", ["5*x + 2", "3.5"]),
        ("12 + 7 = 19", []),
    ],
)
def test_candidate_answers_in_the_thinking_are_found_in_order(thinking: str, named: list[str]) -> None:
    assert list(behaviours.candidates(thinking)) == named


def test_a_users_phrases_extend_or_replace_the_shipped_ones() -> None:
    looking = EmergenceSettings(phrases={"verification": ["prüfe"], "doubt": ["vielleicht"]}).looking()
    assert set(looking.phrases) == {"verification", "backtracking", "subgoals", "doubt"}
    assert behaviours.count(looking.phrases["verification"], "Ich PRÜFE es. Let me check.") == 1


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"phrases": {"a": ["("]}}, "not a regular expression"), ({"candidates": ["is .+"]}, "has 0 groups")],
)
def test_invalid_patterns_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        EmergenceSettings(**settings)
