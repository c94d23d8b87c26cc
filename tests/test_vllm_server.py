"""`distill serve` on loopback: real servers of vLLM and transformers, sampled from through the openai engine.

All tests of the file share one vLLM server, which takes from half a minute to minutes to start.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from vllm_models import SMALL, TEACHER, needs_teacher, needs_vllm, requests, vllm_engine

from distill import engines
from distill.engines.base import response_of
from distill.engines.options import OpenAIOptions
from distill.modelspec import Model
from distill.thinking import CLOSE, OPEN
from distill.types import Completion, Finish, Request, Sampling
from pipeline.errors import InputError

pytestmark = [needs_vllm, needs_teacher]
KEY = "sk-vllm-0123456789"
UP_SECONDS = 600
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a vLLM server that needs a key."""
    directory = tmp_path_factory.mktemp("server")
    plain_tags(directory / "teacher")
    more = ["--api-key", KEY, "--dtype", "float32", "--max-model-len", "256", "--reasoning-parser", "deepseek_r1"]
    with serving(directory, "--model", "./teacher", "--", "--served-model-name", "teacher", *more) as url:
        yield url


@contextmanager
def serving(directory: Path, *asked: str) -> Iterator[str]:
    """Start a server, yield its base URL, and end it with all its processes."""
    log = directory / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "distill", "serve", "--port", str(port), *asked]
    environment = {**os.environ, **SMALL, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=directory, start_new_session=True
        )
    try:
        _wait_until_up(port, process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, 15)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


def plain_tags(directory: Path) -> Path:
    """The teacher with think tags that are not special tokens, as in reasoning models. A server leaves special tokens out
    of the text, and its reasoning parser would then find no end of the thinking."""
    shutil.copytree(TEACHER, directory)
    core, config = directory / "tokenizer.json", directory / "tokenizer_config.json"
    data = json.loads(core.read_text())
    for token in data["added_tokens"]:
        token["special"] = token["content"] not in (OPEN, CLOSE)
    core.write_text(json.dumps(data))
    settings = json.loads(config.read_text())
    settings["extra_special_tokens"] = ["<|im_start|>"]
    config.write_text(json.dumps(settings))
    return directory


def _wait_until_up(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + UP_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            pytest.fail(f"the server ended: {log.read_text()[-3000:]}")
        try:
            with socket.create_connection(("127.0.0.1", port), 1):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the server is not up after {UP_SECONDS} seconds: {log.read_text()[-3000:]}")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)


def drawn(url: str, wanted: list[Request], model: str = "teacher", **options: Any) -> dict[str, Completion]:
    how = OpenAIOptions.model_validate({"base_url": url, "key_from": "TEST_KEY", **options})
    notes: list[str] = []
    engine = engines.open_engine(how, Model(model, f"{url}#{model}"), notes.append)
    try:
        return {completion.key: completion for completion in engine.generate(wanted)}
    finally:
        engine.close()


def test_greedy_responses_and_counts_equal_those_of_the_in_process_engine(server: str) -> None:
    wanted = requests(8, temperature=0.0)
    served = drawn(server, wanted, concurrency=4)
    with vllm_engine(Model(str(TEACHER), "teacher")) as engine:
        inside = {completion.key: completion for completion in engine.generate(wanted)}
    assert set(served) == set(inside)
    for name, completion in served.items():
        other = inside[name]
        ours, theirs = response_of(completion), response_of(other)
        assert (ours.thinking, ours.answer, ours.closed) == (theirs.thinking, theirs.answer, theirs.closed)
        assert completion.finish is other.finish is Finish.STOP
        assert completion.tokens == other.tokens
        assert completion.prompt_tokens == len(other.prompt_ids)
        assert 0 < completion.thinking_tokens < completion.tokens


def test_a_response_cut_in_its_thinking_ends_by_length_without_an_answer(server: str) -> None:
    for completion in drawn(server, requests(4, temperature=0.0, max_tokens=10)).values():
        parts = response_of(completion)
        assert completion.finish is Finish.LENGTH and completion.tokens == 10
        assert parts.thinking and not parts.closed and parts.answer == ""
        assert completion.thinking_tokens >= 9  # the server does not count the opening tag


def test_equal_seeds_give_equal_responses(server: str) -> None:
    wanted = requests(8)
    texts = {name: c.text for name, c in drawn(server, wanted).items()}
    assert {name: c.text for name, c in drawn(server, wanted[::-1], concurrency=1).items()} == texts
    assert {name: c.text for name, c in drawn(server, requests(8, seed=1)).items()} != texts


def test_a_refusal_of_the_server_is_an_input_error(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="refuses the call for model other"):
        drawn(server, requests(1), model="other")
    long = [Request("long", ({"role": "user", "content": "1 + " * 300},), Sampling(max_tokens=8))]
    with pytest.raises(InputError, match=re.escape("(HTTP 400)")):
        drawn(server, long)
    (begun,) = requests(1, prefix="1 + ", max_tokens=300)
    with pytest.raises(InputError, match=re.escape("(HTTP 400)")):
        drawn(server, [begun], dialect="vllm")
    monkeypatch.setenv("TEST_KEY", "sk-another-9876543210")
    with pytest.raises(InputError, match="refuses the key in TEST_KEY") as caught:
        drawn(server, requests(1))
    assert "sk-" not in str(caught.value)


def test_a_beginning_that_fills_the_context_is_a_cut_response(server: str) -> None:
    for text in ("1 + " * 150, "1 + " * 3000):
        (completion,) = drawn(server, requests(1, prefix=text, max_tokens=8), dialect="vllm").values()
        assert (completion.text, completion.finish) == (text, Finish.LENGTH)


def test_the_transformers_server_gives_the_answers_of_vllm(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    wanted = requests(2, temperature=0.0)
    with serving(tmp_path, "--engine", "transformers", "--model", "embedded:teacher") as url:
        served = drawn(url, wanted, model=str(TEACHER))
    with vllm_engine(Model(str(TEACHER), "teacher")) as engine:
        for inside in engine.generate(wanted):
            assert response_of(served[inside.key]).answer.strip() == response_of(inside).answer.strip() != ""
