"""`distill serve`: which student it serves, and one line for what it cannot serve, before any server starts.

Real servers are in test_vllm_server.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from distill import engines, modelspec
from distill.cli import serve, students
from distill.cli.main import app
from distill.engines.options import OpenAIOptions
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes

PIPELINE = "name: p\nstages:\n  problems: {sources: [{family: calc, train: 2}]}\n"
QUICKSTART = Path(students.__file__).parents[2] / "configs/quickstart.yaml"


@pytest.mark.parametrize(
    ("engine", "name", "installed", "message"),
    [
        (None, "embedded:teacher", (), "the server of vllm or transformers is not installed; pip install"),
        ("vllm", "embedded:teacher", ("fastapi", "uvicorn"), "the server of vllm is not installed"),
        ("transformers", "embedded:teacher", ("vllm", "uvicorn"), "the server of transformers is not installed"),
        (None, "embedded:teacher", ("fastapi", "uvicorn"), "the server of vllm or transformers is not installed"),
        ("sglang", "embedded:teacher", ("vllm",), "--engine sglang: the servers are vllm and transformers"),
        (None, None, ("vllm",), "has no student yet"),
        (None, "./adapter", ("vllm",), "./adapter: an adapter cannot be served alone"),
    ],
)
def test_a_model_or_engine_that_cannot_be_served_is_an_error_of_one_line(
    engine: str | None, name: str | None, installed: tuple[str, ...], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serve, "find_spec", lambda package: package in installed or None)
    (tmp_path / "p.yaml").write_text(PIPELINE)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "student-base"}'
    )
    (tmp_path / "adapter/adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        serve.serve(name, Path("p.yaml"), None, engine, "127.0.0.1", 8000, [])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_options_after_a_double_dash_are_passed_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(serve, "find_spec", lambda package: package == "vllm")
    monkeypatch.setattr(serve.os, "execv", lambda path, words: started.append(words))
    words = [
        "serve",
        "--model",
        "embedded:teacher",
        "--port",
        "81",
        "--",
        "--gpu-memory-utilization=0.5",
        "--dtype",
        "half",
    ]
    assert CliRunner().invoke(app, words).exit_code == 0
    command = " ".join(started[0])
    assert command.endswith("--host 127.0.0.1 --port 81 --gpu-memory-utilization=0.5 --dtype half")
    assert "kv-cache-memory-bytes" not in command  # the user's own memory setting is respected


@pytest.mark.parametrize(
    ("name", "engine", "called"),
    [
        ("sft", "vllm", "sft"),
        ("stage:sft", "vllm", "sft"),
        ("embedded:teacher", "vllm", "teacher"),
        ("sft", "transformers", "made/sft/model"),
    ],
)
def test_it_says_at_which_address_and_by_which_name_requests_call_the_model(
    name: str,
    engine: str,
    called: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The server of transformers knows no other name than the directory. Our openai engine accepts the names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serve, "find_spec", lambda package: True)
    monkeypatch.setattr(serve.os, "execv", lambda path, words: None)
    Path("made/sft").mkdir(parents=True)
    Path("made/sft/model").symlink_to(modelspec.EMBEDDED / "student-base")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    serve.serve(name, QUICKSTART, Path("made"), engine, "::1", 8000, [])
    assert Path("hub").is_dir() == (engine == "transformers")  # without it, GET /v1/models fails
    assert capsys.readouterr().err.endswith(f"at http://[::1]:8000/v1 as model {called}\n")
    engines.standing_model(called, OpenAIOptions(base_url="http://[::1]:8000/v1"), FileHashes())


def test_without_a_name_the_last_student_that_is_no_control_is_served(tmp_path: Path) -> None:
    """The quickstart trains its controls last."""
    for stage, asked in (
        ("sft-unverified", "sft-unverified"),
        ("sft", "sft"),
        ("sft-answers", "sft"),
        ("grpo", "grpo"),
    ):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "model").symlink_to(modelspec.EMBEDDED / "student-base")
        assert students.find(None, QUICKSTART, tmp_path).source == str(tmp_path / asked / "model")
