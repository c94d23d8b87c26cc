"""`distill serve`: which student it serves, and one line for what it cannot serve, before any server starts.

Real servers are in test_vllm_server.py.
"""

from __future__ import annotations

import socket
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


def free_port(host: str = "127.0.0.1") -> int:
    try:
        with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
            return int(server.getsockname()[1])
    except OSError:
        pytest.skip(f"this machine has no {host}")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::1"])
def test_a_port_in_use_is_an_error_of_one_line_before_the_model_is_loaded(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda package: True)
    monkeypatch.setattr(serve.os, "execv", lambda path, words: pytest.fail("a server was started"))
    family, *_, address = socket.getaddrinfo(host, free_port(host), type=socket.SOCK_STREAM)[0]
    with socket.create_server(address[:2], family=family):
        done = CliRunner().invoke(
            app, ["serve", "--model", "embedded:teacher", "--host", host, "--port", str(address[1])]
        )
    assert isinstance(done.exception, InputError) and str(done.exception) == (
        f"cannot listen at {host}, port {address[1]}: Address already in use; choose another --host or --port"
    )


def test_a_host_that_does_not_exist_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda package: True)
    with pytest.raises(
        InputError, match=r"^cannot listen at no\.such\.host\.invalid, port 8000: .*choose another --host"
    ):
        serve.serve("embedded:teacher", QUICKSTART, None, "vllm", "no.such.host.invalid", 8000, [])


def test_options_after_a_double_dash_are_passed_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    port = str(free_port())
    monkeypatch.setattr(serve, "find_spec", lambda package: package == "vllm")
    monkeypatch.setattr(serve.os, "execv", lambda path, words: started.append(words))
    words = [
        "serve",
        "--model",
        "embedded:teacher",
        "--port",
        port,
        "--",
        "--gpu-memory-utilization=0.5",
        "--dtype",
        "half",
    ]
    assert CliRunner().invoke(app, words).exit_code == 0
    command = " ".join(started[0])
    assert command.endswith(f"--host 127.0.0.1 --port {port} --gpu-memory-utilization=0.5 --dtype half")
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
    port = free_port("::1")
    serve.serve(name, QUICKSTART, Path("made"), engine, "::1", port, [])
    assert Path("hub").is_dir() == (engine == "transformers")  # without it, GET /v1/models fails
    assert capsys.readouterr().err.endswith(f"at http://[::1]:{port}/v1 as model {called}\n")
    engines.standing_model(called, OpenAIOptions(base_url=f"http://[::1]:{port}/v1"), FileHashes())


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
