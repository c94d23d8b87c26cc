"""A reward model in a pipeline: labels of every kind, training, and its uses, with the embedded models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_server import serving, status

pytest.importorskip("torch")

from distill import catalog
from distill.prm import files
from distill.prm.labels import Labelled
from distill.prm.reading import load
from distill.stages.labelling import gather
from distill.stages.prm_labels import GroupLabels, RolloutLabels
from distill.steps import splitter
from distill.store import Store
from pipeline import config, runner
from pipeline.errors import InputError
from pipeline.events import Listener
from pipeline.fingerprint import FileHashes
from pipeline.plan import plan
from pipeline.workspace import StageContext, Workspace

JUDGE = {"prm": {"model": "prm:prm"}}
ALONE = {"kind": "transformers", "workers": 1}
HOT = {"temperature": 1.5, "max_tokens": 96}
STAGES: dict[str, Any] = {
    "problems": {"sources": [{"family": "calc", "train": 10, "heldout": 2}]},
    "generate": {"problems": "problems", "teacher": "embedded:teacher", "samples": 3, "sampling": HOT, "engine": ALONE},
    "verify": {"traces": "generate"},
    "prm": {
        "student": "embedded:teacher",
        "labels": [
            {"exact": "verify"},
            {"slips": "problems", "each": 2},
            {
                "rollouts": "verify", "policy": "embedded:teacher", "samples": 2, "search": "first_error", "most": 25,
                "sampling": HOT, "engine": ALONE,
            },
            {"groups": "verify", "shared": 1},
        ],
        "test": [{"exact": "verify"}],
        "body": "frozen",
        "threads": 1,
        "heldout": 0.2,
    },
    "scored": {"kind": "verify", "traces": "generate", "verifier": JUDGE},
    "search": {
        "problems": "problems", "model": "embedded:teacher", "split": "train", "engine": ALONE, "sampling": HOT,
        "scorers": {
            "mine": "prm:prm", "half": {"model": "prm:prm", "dtype": "bfloat16"},
            "teacher": {"likelihood": "embedded:teacher"},
        },
        "budgets": [1, 3], "strategies": ["best_of"], "stored": True,
    },
    "grpo": {
        "student": "embedded:teacher", "problems": "problems", "steps": 1, "prompts": 3, "group": 3,
        "sampling": HOT, "process": {"model": "prm:prm"}, "workers": 1, "threads": 1,
    },
}  # fmt: skip

ONCE = """
import os
from pathlib import Path
from distill import Verdict

class Once:
    name, version = "once", "1"

    def verify(self, problem, trace):
        with open(Path(__file__).parent / "workers", "a+") as workers:
            workers.write(f"{os.getpid()} ")
            workers.seek(0)
            first = workers.read().split()[0]
        if first != str(os.getpid()):
            raise OSError("gone")
        return Verdict.incorrect("so far")
"""


def run(where: Path, stages: dict[str, Any] | None = None) -> dict[str, Any]:
    """The outcome of each stage by name."""
    text = yaml.safe_dump({"name": "p", "workspace": str(where / "w"), "stages": stages or STAGES}, sort_keys=False)
    (where / "p.yaml").write_text(text)
    spec = config.load(where / "p.yaml", catalog.stage)
    return {one.manifest.stage: one for one in runner.run(spec, Workspace(where / "w"), Listener(), lambda: False)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    where = tmp_path_factory.mktemp("prm-pipeline")
    yield where, run(where)


def rows(where: Path, sql: str) -> list[dict[str, Any]]:
    return Store(where / "w").rows(sql)


def test_the_prm_stage_learns_from_every_source_and_stores_the_labels(whole: Any) -> None:
    where, made = whole
    figures = made["prm"].manifest.figures
    assert set(figures["sources"]) == {"exact", "slips", "rollouts", "groups"}
    assert figures["heldout"]["by_source"].keys() <= figures["sources"].keys()
    kept = rows(where, "SELECT part, count(DISTINCT (source, example)) AS n FROM step_labels GROUP BY 1")
    assert {row["part"]: row["n"] for row in kept}["train"] == figures["examples"]
    assert (
        figures["heldout"]["step_auc"] > 0.65
    )  # the teacher's own likelihood reveals slips sampled at a high temperature
    # of this stage's traces just those to problems that were not learned from
    assert figures["test"]["responses"] == figures["heldout"]["by_source"]["exact"]["responses"] < 15
    assert load(where / "w" / made["prm"].manifest.artifact).rule == "line"


def test_rollouts_are_traces_and_no_prefix_is_rolled_out_twice(whole: Any, tmp_path: Path) -> None:
    where, _ = whole
    shutil.copytree(where / "w", tmp_path / "w", symlinks=True)
    count = "SELECT count(*) AS n FROM traces WHERE prefix IS NOT NULL"
    before = rows(tmp_path, count)[0]["n"]
    again = [source for source in STAGES["prm"]["labels"] if "rollouts" in source]
    prm = {**STAGES["prm"], "labels": again, "test": []}
    run(tmp_path, {**{name: STAGES[name] for name in ("problems", "generate", "verify")}, "prm": prm})
    assert before > 0 and rows(tmp_path, count)[0]["n"] == before


def test_a_round_without_any_verdict_does_not_lose_earlier_labels(whole: Any, tmp_path: Path) -> None:
    """Each round starts its own worker, and this verifier fails in all but the first."""
    where, made = whole
    shutil.copytree(where / "w", tmp_path / "w", symlinks=True)
    (tmp_path / "mine.py").write_text(ONCE)
    context = StageContext(
        "prm", "prm", "f", tmp_path / "w", {"verify": made["verify"].manifest}, tmp_path / "a", tmp_path / "b",
        FileHashes(),
    )  # fmt: skip
    (rollouts,) = (source for source in STAGES["prm"]["labels"] if "rollouts" in source)
    source = RolloutLabels(**rollouts | {"verifier": f"{tmp_path}/mine.py:Once", "workers": 1})
    found = [one.labels for one in gather(context, source, splitter("line"), 0) if not one.correct]
    assert any(labels[0] is None and len(labels) > 2 for labels in found)
    assert len(set((tmp_path / "workers").read_text().split())) > 1


def test_the_traces_that_are_labelled_are_drawn_from_all_problems(whole: Any, tmp_path: Path) -> None:
    """The first ones would be those of the first source. More of them are the same and others."""
    few, more = (
        {one.key: one.problem.id for one in rollouts_of(whole, tmp_path / str(most), most=most)} for most in (6, 12)
    )
    assert (len(few), len(more)) == (6, 12) and few.keys() < more.keys()
    assert len(set(few.values())) > 2, "the first six traces answer two problems"


def labels_of_rollouts(whole: Any, directory: Path, **changes: Any) -> list[bool | None]:
    """The labels of all steps but the last ones, whose prefix is a whole trace."""
    return [label for one in rollouts_of(whole, directory, **changes) for label in one.labels[:-1]]


def rollouts_of(whole: Any, directory: Path, **changes: Any) -> list[Labelled]:
    where, made = whole
    shutil.copytree(where / "w", directory / "w", symlinks=True)
    context = StageContext(
        "prm", "prm", "f", directory / "w", {"verify": made["verify"].manifest}, directory / "a", directory / "b",
        FileHashes(),
    )  # fmt: skip
    (rollouts,) = (source for source in STAGES["prm"]["labels"] if "rollouts" in source)
    source = RolloutLabels(**rollouts | {"search": "every"} | changes)
    return gather(context, source, splitter("line"), 0)


def test_a_step_behind_which_no_room_is_left_has_no_label(whole: Any, tmp_path: Path) -> None:
    """Nothing can be sampled behind it, so that nothing is known of it: it is not wrong."""
    labels = labels_of_rollouts(whole, tmp_path, sampling={**HOT, "max_tokens": 16})
    assert None in labels and set(labels) - {None}


def test_nor_has_one_behind_which_an_endpoint_has_no_room(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-test-0123456789abcdef")
    with serving() as server:
        server.otherwise = status(400, "This model's maximum context length is 8 tokens.")
        engine = {"kind": "openai", "base_url": server.url, "key_from": "TEST_KEY", "dialect": "vllm"}
        labels = labels_of_rollouts(whole, tmp_path, policy="tiny", engine=engine, most=1, samples=1)
    assert labels and set(labels) == {None}


def test_a_roll_out_is_judged_by_the_reference_of_the_problem_whose_response_it_completes(tmp_path: Path) -> None:
    """Problems with the same prompt share its traces, but not the verdicts."""
    asked = [{"q": "Compute left to right: 2 + 3 * 4 - 5", "a": answer} for answer in ("15", "16")]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    source = {"file": str(tmp_path / "two.jsonl"), "prompt": "q", "reference": "a", "verifier": "exact"}
    cool = {**HOT, "temperature": 0.1}
    stages = {
        "problems": {"sources": [source]},
        "generate": {**STAGES["generate"], "samples": 1, "sampling": cool},
        "verify": STAGES["verify"],
    }
    made = run(tmp_path, stages)
    labelled = rollouts_of((tmp_path, made), tmp_path / "copy", samples=1, sampling=cool)
    assert {one.problem.reference: (one.correct, {*one.labels[:-1]}) for one in labelled} == {
        "15": (True, {1.0}),
        "16": (False, {0.0}),
    }


def test_groups_of_a_grpo_run_are_labelled_only_by_the_run_s_own_verifier(whole: Any, tmp_path: Path) -> None:
    """Another verifier has since given each rollout the opposite verdict, which does not count."""
    where, made = whole
    shutil.copytree(where / "w", tmp_path / "w", symlinks=True)
    grpo = made["grpo"].manifest
    context = StageContext(
        "prm", "prm", "f", tmp_path / "w", {"grpo": grpo}, tmp_path / "a", tmp_path / "b", FileHashes()
    )

    def labels() -> dict[str, tuple[Any, ...]]:
        found = gather(context, GroupLabels(groups="grpo", shared=1), splitter("line"), 0)
        assert {one.source for one in found} == {"groups"}
        return {one.key: one.labels for one in found}

    before = labels()
    assert before and all(row[-1] in (0.0, 1.0) for row in before.values())
    store = Store(tmp_path / "w")
    known = "SELECT DISTINCT v.* FROM verdicts v JOIN rollouts USING (trace_key, problem_key) WHERE v.score IS NOT NULL"
    others = [
        {**row, "verdict_key": f"{row['verdict_key']}-2", "verifier": "other", "settings": '"other"',
         "score": 1 - row["score"]}
        for row in store.rows(known)
    ]  # fmt: skip
    store.append("verdicts", others)
    store.ingest()
    assert len(others) == len(before) and labels() == before


def test_a_moved_workspace_is_up_to_date(whole: Any, tmp_path: Path) -> None:
    where, made = whole
    shutil.copytree(where / "w", tmp_path / "w", symlinks=True)
    again = run(tmp_path)
    assert {name: one.manifest.fingerprint for name, one in again.items()} == {
        name: one.manifest.fingerprint for name, one in made.items()
    }
    assert [one.manifest.finished for one in again.values()] == [one.manifest.finished for one in made.values()]


def test_a_reward_model_of_the_pipeline_works_as_a_verifier(whole: Any) -> None:
    where, made = whole
    (row,) = rows(where, "SELECT * FROM verdicts WHERE verifier = 'prm' ORDER BY verdict_key LIMIT 1")
    evidence = json.loads(row["evidence"])
    product = 1.0
    for step in evidence["steps"]:
        product *= step["probability"]
    assert row["score"] == pytest.approx(product, abs=1e-4) and json.loads(row["settings"]) == {"prm": {}}
    prm = made["prm"].manifest
    assert row["version"] == f"2+{files.identity_of(where / 'w' / prm.artifact, FileHashes())[:12]}"
    assert made["scored"].manifest.identity.inputs["verifier.prm.model"] == prm.digest


def test_search_scores_stored_samples_with_reward_models_of_the_pipeline(whole: Any) -> None:
    where, made = whole
    search = made["search"].manifest
    inputs = {search.identity.inputs[name] for name in ("scorers.mine", "scorers.half.model")}
    assert inputs == {made["prm"].manifest.digest}
    assert list(search.figures["strategies"]) == ["best_of by mine", "best_of by half", "best_of by teacher"]
    (scored,) = rows(where, "SELECT count(*) AS n, count(DISTINCT scorer) AS who FROM step_scores")
    assert scored == {"n": 3 * 10 * 3, "who": 3}
    by_score = (
        "SELECT trace_key, list_product(steps) AS score FROM step_scores WHERE scorer SIMILAR TO 'prm:2:[0-9a-f]+'"
    )
    as_verdict = "SELECT trace_key, score AS said FROM verdicts WHERE verifier = 'prm'"
    both = rows(where, f"SELECT score, said FROM ({by_score}) JOIN ({as_verdict}) USING (trace_key)")
    assert len(both) == 30 and all(row["score"] == pytest.approx(row["said"]) for row in both)


def test_half_precision_scores_differ_but_only_slightly(whole: Any) -> None:
    where, _ = whole
    pairs = rows(
        where,
        "SELECT one.steps AS full, other.steps AS half FROM step_scores one JOIN step_scores other "
        "ON other.trace_key = one.trace_key AND other.scorer = one.scorer || ':bfloat16'",
    )
    assert len(pairs) == 30 and any(row["full"] != row["half"] for row in pairs)
    assert all(row["full"] == pytest.approx(row["half"], abs=0.15) for row in pairs)


def test_step_rewards_of_rollouts_are_stored(whole: Any) -> None:
    where, _ = whole
    found = rows(where, "SELECT r.step_rewards, r.used, t.token_ids FROM rollouts r JOIN traces t USING (trace_key)")
    assert len(found) == 9 and all(0 < p < 1 for row in found for p in row["step_rewards"] or [])
    assert any(row["step_rewards"] for row in found) and any(row["used"] for row in found)
    (metric,) = rows(where, "SELECT value FROM metrics WHERE name = 'worst_step'")
    assert 0 < metric["value"] < 1


OWN = [{"file": "own.jsonl"}]
HELD = {
    "held": {**STAGES["generate"], "kind": "generate", "split": "heldout", "samples": 1},
    "verify-held": {"kind": "verify", "traces": "held"},
}


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("search", {"budgets": [4]}, "sample 4 is needed, but the store holds fewer"),
        ("search", {"scorers": {"mine": "prm:verify"}}, "verify"),
        ("prm", {"labels": [{"exakt": "verify"}]}, "names no source of labels; set one of exact, slips"),
        ("prm", {"labels": [{"exact": "verify-held"}]}, "2 of 2 responses answer held-out problems"),
        ("prm", {"labels": OWN, "test": OWN}, "`test` labels only problems that are trained on"),
        ("prm", {"steps": "lines"}, "no rule for steps is called 'lines'"),
        ("prm", {"devices": 2}, "one device"),
    ],
)
def test_impossible_settings_are_an_error_of_one_line(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, changes: dict[str, Any], message: str
) -> None:
    where, _ = whole
    monkeypatch.chdir(tmp_path)
    shutil.copytree(where / "w", tmp_path / "w", symlinks=True)
    base = {name: STAGES[name] for name in ("problems", "generate", "verify")}
    row = {"prompt": "1 + 1?", "completions": ["It is 1 + 1.", "3"], "labels": [True, False]}
    (tmp_path / "own.jsonl").write_text(json.dumps(row))
    other = HELD if changes.get("labels") == [{"exact": "verify-held"}] else {}
    stages = {**base, **other, "prm": STAGES["prm"], stage: {**STAGES[stage], **changes}}
    with pytest.raises(InputError, match=message) as caught:
        run(tmp_path, stages)
    assert "\n" not in str(caught.value).strip()


def test_plan_forecasts_the_rollouts(whole: Any) -> None:
    where, _ = whole
    text = (where / "p.yaml").read_text()
    (where / "more.yaml").write_text(text.replace("samples: 2", "samples: 3"))
    spec = config.load(where / "more.yaml", catalog.stage)
    forecast = {one.spec.name: one.forecast for one in plan(spec, Workspace(where / "w"), ["prm"])}["prm"]
    assert (
        forecast
        and forecast.total
        and forecast.total % 3 == 0
        and forecast.figures["max_tokens"] == 96 * forecast.total
    )
    made = rows(where, "SELECT count(*) AS n FROM traces WHERE prefix IS NOT NULL")[0]["n"]  # two for each prefix
    assert 0 < made <= forecast.total * 2 / 3


def test_groups_of_a_student_without_rollouts_are_refused(whole: Any, tmp_path: Path) -> None:
    where, made = whole
    inputs = {"sft": made["generate"].manifest}
    context = StageContext("prm", "prm", "f", where / "w", inputs, tmp_path / "a", tmp_path / "b", FileHashes())
    with pytest.raises(InputError, match="sft left no judged rollouts; name a grpo or a verify stage"):
        gather(context, GroupLabels(groups="sft"), splitter("line"), 0)
