"""The stages that train on rewards, run with the embedded models: their rows, their alarms, and what they refuse."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("torch")

from pydantic import ValidationError
from recording import RecordingListener
from safetensors import safe_open
from typer.testing import CliRunner
from vllm_models import needs_teacher

from distill import catalog
from distill.cli.main import app
from distill.store import Store
from pipeline import config, runner
from pipeline.errors import InputError, PipelineError
from pipeline.events import Listener
from pipeline.workspace import Workspace
from rl.stages.gkd import GkdSettings
from rl.stages.grpo import GrpoSettings
from rl.stages.refining import loss_of

SMALL: dict[str, Any] = {
    "student": "embedded:student-base", "problems": "problems", "steps": 2, "prompts": 6, "group": 2,
    "sampling": {"max_tokens": 40}, "lora": {"rank": 4, "alpha": 8}, "learning_rate": 1e-3, "workers": 1, "threads": 1,
}  # fmt: skip
"""A run of a second or two."""
PRICED = {"reward": [{"verifier": None}, {"length": "target", "tokens": 20, "weight": 0.01}]}
"""Two responses are unlikely to get the same reward."""


def run(where: Path, kind: str, more: Sequence[Any] = (), **changes: Any) -> tuple[Store, dict[str, Any]]:
    stages = {
        "problems": {"sources": [{"family": "logic", "train": 24, "heldout": 6}, *more]},
        "refine": {"kind": kind, **SMALL, **changes},
    }
    (where / "p.yaml").write_text(yaml.safe_dump({"name": "p", "workspace": str(where / "w"), "stages": stages}))
    spec = config.load(where / "p.yaml", catalog.stage)
    result = runner.run(spec, Workspace(where / "w"), Listener(), lambda: False)[-1]
    return Store(where / "w"), dict(result.manifest.figures)


def test_a_step_has_a_rollout_for_every_prompt_when_problems_are_repeated(tmp_path: Path) -> None:
    """20 of 24 problems per step, without groups: a step with too few problems left once had fewer rollouts."""
    store, figures = run(tmp_path, "ppo", prompts=20, group=1, steps=4)
    rows = store.rows("SELECT step, count(*) AS n, count(DISTINCT problem_key) AS kinds FROM rollouts GROUP BY 1")
    assert figures["rollouts"] == 80 and {(row["n"], row["kinds"]) for row in rows} == {(20, 20)}


def test_a_source_too_small_for_its_share_of_a_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stage refine: 6 prompts per step of source 'calc' of problems, which has 5"):
        run(tmp_path, "ppo", [{"family": "calc", "train": 5}], problems=[{"stage": "problems", "source": "calc"}])


MISTAKEN = """
class Own:
    name, version = "own", "1"
    def verify(self, problem, trace):
        raise KeyError("solution")
"""


def test_a_run_ends_after_a_first_step_without_any_verdict(tmp_path: Path) -> None:
    """Such a run once continued to its end after one line about the first failure, and learned nothing."""
    (tmp_path / "own.py").write_text(MISTAKEN)
    with pytest.raises(PipelineError, match="stage refine: of the first 12 rollouts no verifier could judge any"):
        run(tmp_path, "grpo", verifier=f"{tmp_path / 'own.py'}:Own")


def test_a_run_ends_after_a_first_step_without_the_verdict_that_every_reward_needs(tmp_path: Path) -> None:
    """A format verifier can always judge; but a sum that lacks a term is no reward, so nothing would be learned."""
    (tmp_path / "own.py").write_text(MISTAKEN)
    own = {"verifier": f"{tmp_path / 'own.py'}:Own"}
    with pytest.raises(
        PipelineError, match=r"first 12 rollouts .*own.py:Own, which every reward needs, could judge none"
    ):
        run(tmp_path, "grpo", reward=[own, {"verifier": {"format": {}}, "weight": 0.1}])


@needs_teacher
def test_ppo_stores_what_explains_its_updates(tmp_path: Path) -> None:
    store, figures = run(tmp_path, "ppo", passes=2, kl_in_reward=0.01, **PRICED)
    rows = store.rows(
        "SELECT r.*, t.engine, t.logprobs, count(u.optimizer_step) AS times, list(u.logprobs ORDER BY u.optimizer_step) "
        "AS seen FROM rollouts r JOIN traces t USING (trace_key) JOIN updates u USING (run, trace_key) GROUP BY ALL"
    )
    assert len(rows) == figures["rollouts"] == 24 and {row["times"] for row in rows} == {2}  # once in each pass
    for step in (1, 2):
        own = [row for row in rows if row["step"] == step]
        credit = [t - v for r in own for t, v in zip(r["value_targets"], r["state_values"], strict=True)]
        mean = math.fsum(credit) / len(credit)
        deviation = math.sqrt(math.fsum((c - mean) ** 2 for c in credit) / (len(credit) - 1))
        advantages = [a for r in own for a in (r["advantages"] or [r["advantage"]] * len(r["state_values"]))]
        assert advantages == pytest.approx([(c - mean) / deviation for c in credit], abs=1e-4)
    assert {row["engine"] for row in rows} == {"transformers"}
    assert all(row["seen"][0] == pytest.approx(row["logprobs"], abs=1e-3) for row in rows if row["step"] == 1)
    assert figures["value_error"] > 0 and "reward/verifier" in figures and figures["entropy_exact"] > 0
    assert not list((tmp_path / "w/refine").rglob("*value_head*"))
    with safe_open(tmp_path / "w/refine/adapter/adapter_model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "value" in name and "v_proj" not in name]  # noqa: SIM118


def accumulated(place: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(place)).Reload()  # type: ignore[no-untyped-call]


@needs_teacher
@pytest.mark.parametrize("kind", ["grpo", "opd"])
def test_an_alarm_rolls_back_a_real_run(tmp_path: Path, kind: str) -> None:
    """Engine and trainer always differ by some rounding, which triggers an alarm at 1e-12."""
    own: dict[str, Any] = {"teacher": "embedded:teacher"} if kind == "opd" else PRICED
    logged = kind == "opd" and find_spec("tensorboard") is not None
    own = own | {"log_to": ["tensorboard"] if logged else []}
    store, figures = run(
        tmp_path, kind, steps=3, learning_rate=1.0, watch={"problems": "problems", "every": 1, "samples": 2},
        alarms={"window": 1, "logprob_gap": 1e-12}, on_alarm="rollback", **own,
    )  # fmt: skip
    assert list(figures)[:3] == ["steps", "rolled_back_to", "alarms"]
    assert figures["alarms"] == "logprob_gap at step 1" and figures["steps"] == 1 and figures["rolled_back_to"] == 0
    assert "reward" not in figures and "heldout_pass_at_1" in figures  # those of the student, not of the step undone
    named = store.rows("SELECT DISTINCT name FROM metrics WHERE name = 'reward/verifier'")
    assert bool(named) == (kind == "grpo")  # one component alone is the reward
    assert [row["name"] for row in store.rows("SELECT name FROM alarms")] == ["logprob_gap"]
    measured = store.rows("SELECT step, value FROM metrics WHERE name = 'heldout_pass_at_1' ORDER BY step")
    assert [row["step"] for row in measured] == [0, 1] and measured[0]["value"] >= measured[1]["value"]
    if logged:
        found = accumulated(next(tmp_path.glob("w/logs/refine-*/tensorboard")))
        assert [(e.step, e.value) for e in found.Scalars("heldout_pass_at_1")] == [
            (row["step"], pytest.approx(row["value"])) for row in measured
        ]
    (counts,) = store.rows(
        "SELECT count(*) FILTER (used) AS used, count(u.trace_key) AS updates, max(abs(len(u.logprobs) - len(t.token_ids))) "
        "AS short FROM rollouts r JOIN traces t USING (trace_key) LEFT JOIN updates u USING (run, trace_key)"
    )
    assert counts["updates"] == counts["used"] > 0 and counts["short"] == 0
    engines = store.rows("SELECT DISTINCT engine FROM traces")
    assert engines == [{"engine": "transformers"}]  # the held-out answers too
    with safe_open(tmp_path / "w/refine/adapter/adapter_model.safetensors", "pt") as file:
        moved = [name for name in file.keys() if "lora_B" in name and file.get_tensor(name).any()]  # noqa: SIM118
    assert moved == []  # the state before the first step


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kl_in_reward": 0.1, "lora": None}, "needs `lora`"),
        ({"decay": 1.5}, "decay"),
        ({"baseline": "group"}, "baseline"),
        ({"on_alarm": "rollback"}, "rollback needs `watch`"),
    ],
)
def test_impossible_ppo_settings_are_refused_when_the_yaml_is_read(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:  # fmt: skip
    with pytest.raises(InputError, match=message) as caught:
        run(tmp_path, "ppo", **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", ["vllm", {"kind": "vllm"}])
def test_gkd_says_why_its_teacher_cannot_be_in_vllm(engine: Any) -> None:
    usual = {"data": "select", "student": "stage:sft", "teacher": "embedded:teacher"}
    assert GkdSettings(**usual, teacher_engine="transformers") == GkdSettings(**usual)
    with pytest.raises(ValidationError, match="no whole distributions: take transformers, or learn from it by `opd`"):
        GkdSettings(**usual, teacher_engine=engine)


def test_gspo_does_not_spread_token_credit_over_the_response() -> None:
    def level(**changes: Any) -> str:
        settings = GrpoSettings(student="embedded:student-base", problems="problems", **changes)
        return loss_of(settings)[0].level

    teacher = {"model": "embedded:teacher"}
    assert level(loss="gspo") == "sequence" and level(loss="dapo", teacher=teacher) == "token"
    assert level(loss="gspo", teacher=teacher) == level(loss="gspo", process={"model": "prm:prm"}) == "sequence_token"


@pytest.mark.parametrize(
    ("changes", "limit", "message"),
    [
        ({}, 5, "refine: 6 prompts per step, but only 5 problems to train on in late; lower `prompts`, or take"),
        ({"problems": "rare"}, 5, "refine: 6 prompts per step, but only 5 problems to train on in rare; lower `prompts`"),
        (
            {"problems": [{"stage": "late", "source": "logi"}]}, None,
            "refine: problems: late has no problem of source 'logi'; did you mean 'logic'?",
        ),
        ({"problems": [{"stage": "rare", "source": "calc"}]}, None, "rare has no problem of source 'calc'; valid: logic"),
        ({"watch": {"problems": "late"}}, None, "refine: watch: late holds out no problem"),
        ({"watch": {"problems": "rare"}}, None, "refine: watch: rare holds out no problem"),
    ],
)  # fmt: skip
def test_too_few_problems_are_reported_before_any_stage_runs(
    tmp_path: Path, changes: dict[str, Any], limit: int | None, message: str
) -> None:
    sources = {"sources": [{"family": "logic", "train": 24}]}
    stages = {
        "problems": sources,
        "first": {"kind": "generate", "problems": "problems", "teacher": "embedded:teacher"},
        "late": {"kind": "problems", "seed": 1, **sources},
        "curated": {"kind": "curate", "problems": "late"},
        "rare": {"kind": "curate", "problems": "curated", "near": None},
        "refine": {"kind": "ppo", **SMALL, "problems": "late", **changes},
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"name": "p", "workspace": str(tmp_path / "w"), "stages": stages}))
    spec, listener = config.load(tmp_path / "p.yaml", catalog.stage, limit=limit), RecordingListener()
    with pytest.raises(InputError, match=message):
        runner.run(spec, Workspace(tmp_path / "w"), listener, lambda: False)
    assert listener.ran == []


def test_an_unknown_source_of_cached_problems_is_reported(tmp_path: Path) -> None:
    rows = [{"q": f"{n} + {n}", "a": str(2 * n)} for n in range(8)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sums = {"file": str(tmp_path / "sums.jsonl"), "prompt": "q", "reference": "a"}
    run(tmp_path, "grpo", [sums], steps=1, problems=[{"stage": "problems", "source": "sums"}])
    with pytest.raises(InputError, match=r"has no problem of source 'sumz'; did you mean 'sums'\?"):
        run(tmp_path, "grpo", [sums], steps=1, problems=[{"stage": "problems", "source": "sumz"}])


def test_too_few_problems_after_curation_are_reported_with_the_reason(tmp_path: Path) -> None:
    """Before the stage in between would run, and by `plan`."""
    rows = [{"question": f"What is {n // 4} and {' ' * (n % 4)}7?", "answer": f"#### {n // 4 + 7}"} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stages = {
        "problems": {"sources": [{"file": str(tmp_path / "rows.jsonl"), "form": "gsm8k"}]},
        "curate": {"problems": "problems", "near": None},
        "first": {"kind": "generate", "problems": "problems", "teacher": "embedded:teacher"},
        "refine": {"kind": "ppo", **SMALL, "problems": "curate"},
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"name": "p", "workspace": str(tmp_path / "w"), "stages": stages}))
    message = "refine: 6 prompts per step, but only 5 problems to train on in curate, which removed 15 "
    spec, listener = config.load(tmp_path / "p.yaml", catalog.stage), RecordingListener()
    with pytest.raises(InputError, match=message):
        runner.run(spec, Workspace(tmp_path / "w"), listener, lambda: False)
    assert listener.ran == ["problems", "curate"]
    error = CliRunner().invoke(app, ["plan", "-p", str(tmp_path / "p.yaml")]).exception
    assert isinstance(error, InputError) and message in str(error)
