"""Tasks for lm-evaluation-harness: what is written, how it judges, and, if it is installed, how it scores a model."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from distill import catalog, harness, modelspec
from distill.cli.harness import lm_eval
from distill.prompting import PromptingSettings, asking, plainly
from distill.types import Problem
from pipeline import config, runner
from pipeline.errors import InputError
from pipeline.events import Listener
from pipeline.workspace import Workspace

CALC = [catalog.resolve("families", "calc")().generate(0, i, "heldout") for i in range(3)]
PUZZLE = Problem("p/1", "Which?", "B", "choice", "My puzzles: 2", metadata={"options": ["x", "y"]}, system="Be brief.")


def utils(directory: Path) -> ModuleType:
    """The code beside the tasks, loaded as the harness does: from the file."""
    spec = importlib.util.spec_from_file_location("utils", directory / "utils.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_one_task_per_source_and_a_group_of_all(tmp_path: Path) -> None:
    group, tasks = harness.write(tmp_path, "Mine", [*CALC, PUZZLE], plainly, 64)
    assert (group, tasks) == ("mine", {"mine_my_puzzles_2": 1, "mine_calc": 3})
    assert yaml.safe_load((tmp_path / "mine.yaml").read_text())["task"] == list(tasks)
    with_system, without = ((tmp_path / f"{task}.yaml").read_text() for task in tasks)
    assert 'description: "{{system}}"' in with_system and "description" not in without
    assert "max_gen_toks: 64" in without and "process_results: !function utils.judged" in without


def test_answers_are_judged_by_the_verifiers_of_the_problems(tmp_path: Path) -> None:
    harness.write(tmp_path, "mine", CALC, plainly, 64)
    judge = utils(tmp_path)
    docs = judge.dataset(problems="mine_calc.jsonl", version=1.0)["test"]
    assert [doc["prompt"] for doc in docs] == [problem.prompt for problem in CALC]
    assert judge.judged(docs[0], [CALC[0].reference]) == {"pass_at_1": 1.0}
    assert judge.judged(docs[0], [f"<think>\n{CALC[0].reference}\n</think>\n\n-1"]) == {"pass_at_1": 0.0}
    assert judge.judged({**docs[0], "reference": "\\frac{"}, ["7"]) == {}  # an invalid reference gives no score


def test_the_prompting_is_kept_and_a_prefill_is_refused(tmp_path: Path) -> None:
    ask = asking(PromptingSettings(template="{{ prompt }} Think.", system="Sys"))
    harness.write(tmp_path, "mine", CALC[:1], ask, 64)
    row = json.loads((tmp_path / "mine_calc.jsonl").read_text())
    assert (row["prompt"], row["system"]) == (f"{CALC[0].prompt} Think.", "Sys")
    with pytest.raises(InputError, match="its own options for few-shot examples and a prefill"):
        harness.write(tmp_path, "mine", CALC[:1], asking(PromptingSettings(prefill="<think>\nSo")), 64)


def test_verifiers_see_the_problem_without_its_prompting(tmp_path: Path) -> None:
    """As in `evaluate`: here the language that is wanted is that of the problem, not of a template's words."""
    problem = Problem("p/1", "请问十二加七等于多少", "19", {"format": {"language": "prompt"}}, "zh")
    ask = asking(
        PromptingSettings(template="{{ prompt }} Please think for as long as you want to, then give the answer.")
    )
    harness.write(tmp_path, "mine", [problem], ask, 64)
    judge = utils(tmp_path)
    (doc,) = judge.dataset(problems="mine_zh.jsonl")["test"]
    assert doc["prompt"].startswith(f"{problem.prompt} Please")
    said = {
        text: judge.judged(doc, [text])
        for text in ("答案是十九，因为十二加七等于十九", "It is nineteen, as you can see here")
    }
    assert [score["pass_at_1"] for score in said.values()] == [1.0, 0.0]


def test_sources_with_the_same_task_name_are_refused(tmp_path: Path) -> None:
    twins = [Problem(str(i), "?", "1", "math", name) for i, name in enumerate(("a-b", "a b"))]
    with pytest.raises(InputError, match="both become task mine_a_b"):
        harness.write(tmp_path, "mine", twins, plainly, 64)


def test_the_end_of_thinking_is_a_token_id_or_the_tag(tmp_path: Path) -> None:
    assert harness.end_of_thinking(modelspec.EMBEDDED / "teacher") == 4
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": []}))
    assert harness.end_of_thinking(tmp_path) == "</think>"
    assert harness.end_of_thinking(tmp_path / "nowhere") is None


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of which only the problems are made."""
    where = tmp_path_factory.mktemp("harness")
    families = [{"family": name, "train": 1, "heldout": 4} for name in ("calc", "code")]
    evaluate = {
        "problems": "problems", "models": {"teacher": "embedded:teacher", "mine": "stage:sft"},
        "sampling": {"max_tokens": 96},
    }  # fmt: skip
    sft = {"data": "select", "student": "embedded:student-base"}
    stages: dict[str, Any] = {
        "problems": {"sources": families}, "generate": {"problems": "problems", "teacher": "embedded:teacher"},
        "verify": {"traces": "generate"}, "select": {"verdicts": "verify"}, "sft": sft, "evaluate": evaluate,
    }  # fmt: skip
    (where / "p.yaml").write_text(yaml.safe_dump({"name": "p", "workspace": str(where / "w"), "stages": stages}))
    spec = config.load(where / "p.yaml", catalog.stage)
    runner.run(spec, Workspace(where / "w"), Listener(), lambda: False, ["problems"])
    return where


def written(workspace: Path, capsys: pytest.CaptureFixture[str], *model: str) -> dict[str, Any]:
    lm_eval(workspace / "tasks", *(model or (None,)), workspace / "p.yaml", None, None, True)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_command_writes_the_heldout_problems_and_prints_how_to_run_them(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = written(workspace, capsys, "teacher")
    assert found["tasks"] == {"p_calc": 4, "p_code": 4}
    assert "think_end_token=4" in found["command"] and "--tasks p --apply_chat_template" in found["command"]
    assert "pretrained=MODEL" in written(workspace, capsys)["command"]


@pytest.mark.parametrize(
    ("model", "why"),
    [("mien", "evaluates no model 'mien'; did you mean 'mine'?"), ("mine", "mine: has no directory here")],
)
def test_an_unknown_or_unmade_model_is_refused(
    workspace: Path, capsys: pytest.CaptureFixture[str], model: str, why: str
) -> None:
    with pytest.raises(InputError, match=why):
        written(workspace, capsys, model)


def test_thinking_budgets_are_refused_because_the_harness_has_none(workspace: Path) -> None:
    text = (workspace / "p.yaml").read_text().replace("evaluate:\n", "evaluate:\n    thinking: {budget: 8}\n")
    (workspace / "bounded.yaml").write_text(text)
    with pytest.raises(InputError, match="stage evaluate sets `thinking`, but the harness has no thinking budgets"):
        lm_eval(workspace / "tasks", None, workspace / "bounded.yaml", None, None, True)


def test_the_harness_runs_the_model_unchanged(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (extra: lm-eval)")
    monkeypatch.delitem(sys.modules, "utils", raising=False)
    from lm_eval.tasks import TaskManager

    written(workspace, capsys, "teacher")
    model = f"pretrained={modelspec.EMBEDDED / 'teacher'},dtype=float32,think_end_token=4"
    found = evaluator.simple_evaluate(
        model="hf", model_args=model, tasks=["p"], apply_chat_template=True, batch_size=8, device="cpu",
        task_manager=TaskManager(include_path=str(workspace / "tasks")),
    )  # fmt: skip
    assert found["results"]["p_calc"]["pass_at_1,none"] == 1.0 == found["results"]["p_code"]["pass_at_1,none"]
