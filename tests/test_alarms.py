"""Alarms: each rule on made-up metrics, then a policy that really hacks its reward, is noticed and is rolled back."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

torch = pytest.importorskip("torch")

from test_rewards import made  # noqa: E402
from test_rl import policy, student, weights  # noqa: E402

from distill.keys import problem_key  # noqa: E402
from distill.prompting import plainly  # noqa: E402
from distill.randomness import generator  # noqa: E402
from distill.store import Store  # noqa: E402
from distill.store.records import problem_row  # noqa: E402
from distill.training.metrics import Recorder  # noqa: E402
from distill.training.optimizer import OptimizerSettings  # noqa: E402
from distill.types import Problem, Sampling  # noqa: E402
from distill.verifiers import VerifierPool  # noqa: E402
from pipeline.errors import InputError, PipelineError  # noqa: E402
from pipeline.events import Listener  # noqa: E402
from pipeline.fingerprint import FileHashes  # noqa: E402
from pipeline.workspace import StageContext  # noqa: E402
from rl import alarms, rewards  # noqa: E402
from rl.alarms import AlarmSettings, History, raised  # noqa: E402
from rl.draws import Draws, Preference, Task  # noqa: E402
from rl.grpo import GrpoSettings, train_grpo  # noqa: E402
from rl.guard import Guard, Watch, measuring  # noqa: E402
from rl.ledger import Ledger  # noqa: E402
from rl.stages import guarding  # noqa: E402
from rl.stages.grpo import GrpoSettings as StageSettings  # noqa: E402

# ------------------------------------------------------------------ rules

LIMITS = AlarmSettings(window=2)


def history(heldout: dict[int, dict[str, Sequence[float]]] | None = None, **metrics: Sequence[float]) -> History:
    found = History("verifier", ["format"], heldout=dict(heldout or {}))
    for name, values in metrics.items():
        for step, value in enumerate(values, 1):
            found.add(step, name.replace("__", "/"), value)
    return found


def names(found: History, step: int = 4, limits: AlarmSettings = LIMITS) -> list[str]:
    return [alarm.name for alarm in raised(found, step, limits)]


def shares(right: int) -> dict[str, Sequence[float]]:
    return {str(i): [float(i < right)] for i in range(100)}


UP, FLAT, DOWN = [0.2, 0.2, 0.8, 0.8], [0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 0.01, 0.01]


def test_a_reward_that_rises_without_the_heldout_score_raises_hacking() -> None:
    assert names(history({0: shares(20), 4: shares(20)}, reward=UP)) == ["hacking"]
    assert names(history({0: shares(20), 4: shares(10)}, reward=UP)) == ["hacking"]
    assert names(history({0: shares(20), 4: shares(60)}, reward=UP)) == []
    assert names(history({0: shares(20), 4: shares(20)}, reward=FLAT)) == []
    assert names(history({0: shares(20)}, reward=UP)) == []  # not measured at this step


def test_too_few_heldout_problems_raise_no_alarm() -> None:
    few = {"a": [0.0], "b": [1.0], "c": [0.0]}
    assert names(history({0: few, 4: few}, reward=UP)) == []


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"reward__format": UP, "reward__verifier": FLAT}, ["format_only"]),
        ({"reward__format": UP, "reward__verifier": UP}, []),
        ({"length": [40, 40, 90, 90]}, ["length"]),
        ({"length": [40, 40, 10, 10]}, ["length"]),
        ({"length": [40, 40, 60, 60]}, []),
        ({"entropy": DOWN, "reward": FLAT}, ["entropy"]),
        ({"entropy": DOWN, "reward": UP}, []),  # certain because it is right
        ({"entropy": [math.inf, 0.5, 0.5, 0.5], "reward": FLAT}, []),
        ({"distinct": [4, 4, 1, 1], "reward": FLAT}, ["diversity"]),
        ({"logprob_gap": [0.01, 0.01, 0.3, 0.3]}, ["logprob_gap"]),
        ({"logprob_gap": [0.01, 0.01, 0.01, math.inf]}, ["logprob_gap"]),  # the engine: p = 0 of what it sampled
        ({"kl": [0.0, 0.1, 2.0, 2.0]}, ["kl"]),
        ({"kl": [0.0, 0.1, math.nan, math.inf]}, ["kl"]),
        ({"kl": [0.0, 0.1, 0.2, 0.2]}, []),
        ({"entropy": DOWN[1:], "reward": FLAT[1:]}, []),  # too early to compare
        ({"grad_norm": [0.3, 0.2, 0.0, 0.0], "reward": FLAT}, ["no_gradient"]),
        ({"grad_norm": [0.0, 0.0]}, ["no_gradient"]),  # no reward at all: raised as soon as a window is full
        ({"grad_norm": [0.0, 0.0, 0.0, 1e-9]}, []),
        ({"grad_norm": [0.0]}, []),
    ],
)
def test_each_rule(metrics: dict[str, Sequence[float]], expected: list[str]) -> None:
    assert names(history(**metrics), min(map(len, metrics.values()))) == expected


def test_an_infinite_metric_raises_an_alarm_after_a_resume_and_is_not_shown(tmp_path: Path) -> None:
    @dataclass
    class StepMetrics:
        step: int
        total: int
        logprob_gap: float
        length: float = 7.0

    class Shown(Listener):
        def progress(self, stage: str, done: int, total: int | None, figures: Any) -> None:
            assert figures == {"length": 7.0}

    store = Store(tmp_path)
    context = StageContext(
        "grpo", "grpo", "run", tmp_path, {}, tmp_path, tmp_path, FileHashes(tmp_path / "hashes"), listener=Shown()
    )
    with Recorder(store, context, ("logprob_gap", "length")) as recorder:
        for step in (1, 2):
            recorder(StepMetrics(step, 9, math.inf))
    assert recorder.last() == {"length": 7.0}
    guard = Guard(store, "run", History(), LIMITS, tmp_path / "good", steps=9)
    assert not guard.over(SimpleNamespace(done=2))  # type: ignore[arg-type] - it needs no more of the learner
    assert (
        guard.alarms["logprob_gap"].value == math.inf and "differ by inf nats" in guard.alarms["logprob_gap"].evidence
    )


def test_the_evidence_claims_nothing_about_a_reward_that_is_unknown() -> None:
    """As when only a teacher gives credit."""
    (flat,), (none,) = (raised(history(entropy=DOWN, **reward), 4, LIMITS) for reward in ({"reward": FLAT}, {}))
    assert "the reward did not rise" in flat.evidence and "no reward is known" in none.evidence


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({}, "no reward could be told"),
        ({"reward": FLAT, "zero_variance": [1.0] * 4, "truncated": [0.5] * 4}, "alike within each group (0.2)"),
        ({"reward": FLAT, "zero_variance": [0.2] * 4, "truncated": [0.9] * 4}, "rewards differ, but"),
        ({"reward": FLAT, "truncated": [1.0] * 4}, "all responses are cut at max_tokens"),  # as in ppo
    ],
)
def test_the_no_gradient_alarm_names_the_cause(metrics: dict[str, Sequence[float]], expected: str) -> None:
    cause = alarms.no_gradient(history(grad_norm=[0.0] * 4, **metrics), 4, AlarmSettings(window=4))
    assert cause and expected in cause[0]


def test_a_raised_length_limit_does_not_count_as_drift() -> None:
    """If responses may be longer from step 3 on, they are compared only with those since then."""
    found = history(length=[40, 40, 90, 90, 95, 95, 200, 200])
    assert [step for step in range(1, 9) if names(found, step)] == [4, 5, 6, 7, 8]
    found.stages = (2,)
    assert [step for step in range(1, 9) if names(found, step)] == [8]


def test_a_reward_that_a_raised_length_limit_lifts_is_not_hacking() -> None:
    """Held-out answers always had the longest limit, so they gain nothing when training answers get more room."""
    rewards = [0.2, 0.2, 0.8, 0.8, 0.8, 0.8]
    measured = {0: shares(60), 2: shares(60), 4: shares(60), 6: shares(60)}
    found = history(measured, reward=rewards, reward__verifier=[0.5] * 6, reward__format=rewards)
    assert names(found, 4) == ["hacking", "format_only"]
    found.stages = (2,)
    assert [names(found, step) for step in range(1, 7)] == [[]] * 6
    for step, value in enumerate([0.8, 0.95, 0.95], 6):  # it still rises, and the held-out problems know nothing of it
        found.add(step, "reward", value)
    found.heldout[8] = shares(60)
    assert names(found, 8) == ["hacking"]


def test_a_heldout_score_that_falls_from_its_best_is_an_alarm_whatever_the_reward_does() -> None:
    measured = {0: shares(40), 4: shares(60), 8: shares(58), 12: shares(30)}
    for reward in ([0.5] * 12, [1 - step / 20 for step in range(12)], []):
        found = history(measured, reward=reward)
        assert [step for step in range(13) if "worse" in names(found, step)] == [12]
    (alarm,) = raised(history(measured), 12, LIMITS)
    assert alarm.evidence == "held-out pass@1 fell from 0.60 (step 4) to 0.30" and alarm.value < alarm.threshold == -0.1
    few = {"a": [1.0], "b": [1.0], "c": [1.0]}
    assert names(history({0: few, 4: {**few, "a": [0.0]}})) == []


@pytest.mark.parametrize(("problems", "runs"), [(40, 20), (10, 100)])
def test_luck_among_many_measurements_is_no_fall(problems: int, runs: int) -> None:
    """Problems that are solved half of the time, measured 30 times: the best score is far above the mean."""
    false = 0
    for run in range(runs):
        found = history()
        for step in range(30):
            drawn = generator("luck", run, step).random(problems)
            found.heldout[step] = {str(i): [float(x < 0.5)] for i, x in enumerate(drawn)}
        false += any("worse" in names(found, step) for step in range(30))
    assert false <= 0.05 * runs


def test_a_verifier_without_weight_cannot_be_what_was_learned_instead() -> None:
    components = [
        {"verifier": None, "name": "right"},
        {"verifier": {"format": {}}, "weight": 0.1, "name": "form"},
        {"verifier": {"regex": {"pattern": "a"}}, "weight": 0.0, "name": "seen"},
        {"verifier": {"regex": {"pattern": "b"}}, "weight": -1.0, "name": "punished"},
    ]
    found = guarding.history(StageSettings(student="embedded:student-base", problems="p", reward=components))
    assert found.judge == "right" and found.others == ["form"]
    for name in ("seen", "punished"):
        for step, value in enumerate(UP, 1):
            found.add(step, f"reward/{name}", value)
            found.add(step, "reward/right", 0.2)
    assert names(found) == []


def test_what_the_choice_of_problems_does_to_the_reward_is_not_hacking() -> None:
    """A policy that learns nothing: as hopeless problems are drawn less often, its mean reward rises all the same."""
    problems = [Problem(f"{i}", "", "", "exact", "test") for i in range(200)]
    settings = StageSettings(
        student="embedded:student-base", problems="p", pass_rate={"aim": 0.7}, alarms={"window": 20}
    )
    found, plain = guarding.history(settings), History("verifier")
    draws = Draws([Task(problems)], 20, 1, 0, Preference(0.7))
    chance = {problem.id: 0.05 if i % 3 else 0.6 for i, problem in enumerate(problems)}
    for step in range(1, 101):
        tried = [
            (p.id, bool(x < chance[p.id])) for p in draws(step - 1) for x in generator("try", step, p.id).random(8)
        ]
        draws.rates.add(step, tried)
        for known in (found, plain):
            known.add(step, "reward", sum(passed for _, passed in tried) / len(tried))
            known.add(step, "solved_without_preference", draws.solved(step))
    for known in (found, plain):
        known.heldout |= {0: shares(24), 100: shares(24)}
    assert names(plain, 100, settings.alarms) == ["hacking"]
    assert names(found, 100, settings.alarms) == []
    assert found.mean("solved_without_preference", 81, 100) == pytest.approx(0.05 + 0.55 / 3, abs=0.05)


def test_rollback_requires_watch_and_on_alarm_is_not_dumped() -> None:
    usual = {"student": "embedded:student-base", "problems": "p"}
    with pytest.raises(ValidationError, match="rollback needs `watch`"):
        StageSettings(**usual, on_alarm="rollback")
    dumps = StageSettings(**usual, on_alarm="stop").model_dump(), StageSettings(**usual).model_dump()
    assert dumps[0] == dumps[1]  # so that a stopped run can continue with another on_alarm


def test_the_store_documents_every_alarm(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append("alarms", [{"run": "a", "name": "kl"}])
    store.ingest()
    comments = store.rows("SELECT comment FROM duckdb_columns() WHERE table_name = 'alarms' AND column_name = 'name'")
    assert set(comments[0]["comment"].replace(" or ", ", ").split(", ")) == set(alarms.RULES)


# ------------------------------------------------------------------ a policy that hacks

HELDOUT = "name = 'heldout_pass_at_1'"
TRAIN = [Problem(f"t{i}", "abcd"[i % 4] * (1 + i), "", "exact", "test") for i in range(4)]
HELD = [(f"k{i}", Problem(f"h{i}", "efgh"[i % 4] * (1 + i // 4), "", "exact", "test")) for i in range(40)]
HELD = [(problem_key(problem), problem) for _, problem in HELD]
HACKABLE = made({"verifier": {"regex": {"pattern": "a", "search": True}}})
HONEST: Any = {"regex": {"pattern": "a", "search": True}}
OTHER: Any = {"regex": {"pattern": "^b", "search": True}}


def refined(place: Path, judge: Any, on_alarm: Any = "warn", steps: int = 9, die: Callable[[str], bool] | None = None, **more: Any) -> tuple[Any, Store, Guard, list[str]]:  # fmt: skip
    """Train a policy to write an "a" anywhere; on held-out problems ``judge`` decides what is right."""
    store, notes = Store(place), list[str]()
    if not store.path.exists():
        store.append("problems", [problem_row(p) for p in [*TRAIN, *(p for _, p in HELD)]])
        store.ingest()
    settings = GrpoSettings(
        optimizer=OptimizerSettings(3e-2, schedule="constant"), steps=steps, group=8, reward=HACKABLE,
        sampling=Sampling(max_tokens=6), **more,
    )  # fmt: skip
    model = student()
    engine = policy(model)
    context = StageContext(
        "grpo", "grpo", "run", place, {}, place / "artifact", place / "work", FileHashes(place / "hashes")
    )

    def note(text: str) -> None:
        notes.append(text)
        if die and die(text):
            os.kill(os.getpid(), signal.SIGKILL)

    with VerifierPool(workers=1) as pool, Recorder(store, context, ()) as recorder:
        ledger = Ledger(
            store, "run", settings.sampling_at, {p.id: problem_key(p) for p in TRAIN}, pool, rewards.verifiers(HACKABLE)
        )
        guard = Guard(
            store, "run", History("regex"), AlarmSettings(window=4), place / "good", on_alarm=on_alarm, steps=steps,
            updates=settings.updates, note=note,
            watch=Watch(measuring(context, store, engine, HELD, settings.sampling, 2, judge, plainly), 4),
        )  # fmt: skip
        train_grpo(
            model, engine, settings, sample=lambda step, draw: TRAIN, reward=ledger.reward,
            checkpoints=place / "checkpoints", recall=ledger.recall, on_rollouts=ledger.write,
            on_step=lambda metrics: (recorder(metrics), guard.record(metrics))[1], before_save=recorder.flush, over=guard.over,
        )  # fmt: skip
    store.ingest()
    return model, store, guard, notes


@pytest.fixture(scope="module")
def hacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Store, Guard, list[str]]:
    return refined(tmp_path_factory.mktemp("hacked"), OTHER, "rollback")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Store, Guard, list[str]]:
    return refined(tmp_path_factory.mktemp("honest"), HONEST, "rollback")


def test_a_hacked_reward_raises_the_alarm_and_is_rolled_back(hacked: Any, tmp_path: Path) -> None:
    model, store, guard, notes = hacked
    (row,) = store.rows("SELECT * FROM alarms")
    assert row["name"] == "hacking" and row["run"] == "run" and row["value"] < row["threshold"]
    assert any(f"alarm hacking at step {row['step']}: the training reward rose" in note for note in notes)
    measured = store.rows(f"SELECT step, value FROM metrics WHERE {HELDOUT} ORDER BY step")
    best = max(measured, key=lambda m: (m["value"], -m["step"]))["step"]
    assert guard.rolled_back_to == best < row["step"] == measured[-1]["step"]
    assert guard.figures() == {"alarms": f"hacking at step {row['step']}", "rolled_back_to": best, "steps": row["step"]}
    until, *_ = refined(tmp_path, HONEST, steps=best) if best else (student(),)
    assert torch.equal(weights(model), weights(until))


def test_an_honest_run_raises_no_alarm(honest: Any) -> None:
    _, store, guard, notes = honest
    measured = [r["value"] for r in store.rows(f"SELECT value FROM metrics WHERE {HELDOUT} ORDER BY step")]
    assert measured[-1] > measured[0] + 0.3
    assert store.rows("SELECT * FROM alarms") == [] and guard.figures() == {"steps": 9} and guard.card_entries() == {}
    assert not any("alarm" in note for note in notes)


def test_the_answers_to_heldout_problems_are_in_the_store(hacked: Any) -> None:
    _, store, _, _ = hacked
    (row,) = store.rows(
        "SELECT count(*) AS n, count(DISTINCT model) AS times, count(DISTINCT prompt_key) AS problems "
        "FROM traces JOIN verdicts USING (trace_key) WHERE trace_key NOT IN (SELECT trace_key FROM rollouts)"
    )
    assert row["problems"] == len(HELD) and row["n"] == 2 * row["times"] * len(HELD)


def test_heldout_problems_that_cannot_be_judged_are_refused_before_the_first_step(tmp_path: Path) -> None:
    """Their pass@1 would be undefined."""
    with pytest.raises(InputError, match=f"watch: none of the answers to {len(HELD)} held-out problems can be judged"):
        refined(tmp_path, {"exact": {}}, steps=1)
    assert Store(tmp_path).rows("SELECT * FROM rollouts") == []


@pytest.mark.parametrize("moment", ["pass@1 at step 4", "alarm hacking"])
def test_a_killed_run_ends_like_an_undisturbed_one(hacked: Any, tmp_path: Path, moment: str) -> None:
    model, store, guard, _ = hacked
    child = os.fork()
    if child == 0:
        try:
            refined(tmp_path, OTHER, "rollback", die=lambda text: moment in text)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    resumed, again, second, _ = refined(tmp_path, OTHER, "rollback")
    assert torch.equal(weights(resumed), weights(model)) and second.figures() == guard.figures()
    for table in ("alarms", "rollouts"):
        assert again.rows(f"SELECT * FROM {table} ORDER BY ALL") == store.rows(f"SELECT * FROM {table} ORDER BY ALL")


def test_a_stopped_run_stops_again_and_continues_with_on_alarm_warn(honest: Any, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(
            PipelineError, match=r"stopped at step \d+ by the alarm hacking: .* set `on_alarm: warn` to"
        ):
            refined(tmp_path, OTHER, "stop")
    model, store, guard, _ = refined(tmp_path, OTHER, "warn")
    assert guard.rolled_back_to is None and len(store.rows("SELECT * FROM alarms")) == 1
    assert torch.equal(weights(model), weights(honest[0]))  # being watched changes nothing
