"""The embedded engine: same bits alone or in a batch, greedy equal to generate(), live weights, workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_engine import build_model, build_tokenizer

from distill.engines.decode import Decoder
from distill.engines.options import TransformersOptions
from distill.engines.sampling import BELOW_ONE, draw
from distill.engines.transformers import TransformersEngine, open_engine
from distill.modelspec import Model
from distill.types import Completion, Finish, Request, Sampling
from pipeline.errors import InputError, PipelineError


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Two threads on a busy machine wait for each other. Their results would be the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def qwen3() -> Any:
    return build_model("Qwen3", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="module")
def engine(tokenizer: Any) -> TransformersEngine:
    return TransformersEngine(qwen3(), tokenizer, model_identity="tiny", slots=32)


def request(key: str, text: str = "2+2?", **sampling: Any) -> Request:
    return Request(key, ({"role": "user", "content": text},), Sampling(**({"max_tokens": 24} | sampling)))


def crowd(count: int) -> list[Request]:
    """Requests of many prompt lengths and limits: some with equal prompts, some greedy, some with top-k or top-p."""
    kinds: list[dict[str, Any]] = [{}, {"temperature": 0.0}, {"top_p": 0.8}, {"temperature": 0.7, "top_k": 9}]
    return [
        request(f"r{i}", f"{'why ' * (i * 5 % 23)}{i // 3}", max_tokens=1 + i * 11 % 37, seed=i % 2, **kinds[i % 4])
        for i in range(count)
    ]


def by_key(completions: Iterator[Completion]) -> dict[str, tuple[Any, ...]]:
    return {c.key: (c.prompt_ids, c.token_ids, c.logprobs, c.text, c.finish) for c in completions}


@pytest.fixture(scope="module")
def alone(engine: TransformersEngine) -> dict[str, tuple[Any, ...]]:
    return {r.key: by_key(engine.generate([r]))[r.key] for r in crowd(40)}


# Batch invariance: ids and log-probabilities to the last bit.


def test_samples_alone_and_in_a_batch_are_equal_to_the_last_bit(
    engine: TransformersEngine, alone: dict[str, Any]
) -> None:
    assert engine.batch_invariant
    assert by_key(engine.generate(crowd(40))) == alone


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(40)), count=st.integers(1, 40), slots=st.sampled_from([16, 48, 128]))
def test_order_neighbours_and_slots_change_no_bit(
    tokenizer: Any, alone: dict[str, Any], order: list[int], count: int, slots: int
) -> None:
    engine = TransformersEngine(qwen3(), tokenizer, model_identity="tiny", slots=slots)
    chosen = [crowd(40)[i] for i in order[:count]]
    assert by_key(engine.generate(chosen)) == {r.key: alone[r.key] for r in chosen}


@pytest.mark.parametrize("text", ["why not " * 5, "y" * 190])
def test_many_samples_of_one_prompt_are_equal_to_each_sampled_alone(engine: TransformersEngine, text: str) -> None:
    """Short prompts are copied. Long ones are shared, here by more rows than one copy serves, as others come and go."""
    group = [request(f"many {i}", text, max_tokens=3 + 7 * i % 30) for i in range(20)]
    lone = [request(f"lone {i}", "x" * (1 + 9 * i), max_tokens=2 + i) for i in range(22)]
    single = {r.key: by_key(engine.generate([r]))[r.key] for r in (group[0], group[7], group[19], lone[3], lone[21])}
    together = by_key(engine.generate([*group[:3], *lone, *group[3:]]))
    assert {key: together[key] for key in single} == single


@pytest.mark.parametrize("memory", [1.0, 3e6])
def test_too_little_memory_for_all_rows_at_once_changes_no_bit(
    alone: dict[str, Any], tokenizer: Any, memory: float
) -> None:
    """With one byte, one row runs at a time; with 3 MB, several do."""
    engine = TransformersEngine(qwen3(), tokenizer, model_identity="tiny", slots=32)
    decoder = Decoder(engine._copy.model, stop_ids=[1], slots=32, memory=memory)
    wanted = crowd(40)[::5]
    decoder.add(engine._job(r)[1] for r in wanted)
    samples = {}
    while decoder.busy:
        samples |= {sample.key: sample for sample in decoder.step()}
    for r in wanted:
        assert (samples[r.key].token_ids, samples[r.key].logprobs) == alone[r.key][1:3]


def test_two_threads_give_the_same_bits_as_one(engine: TransformersEngine) -> None:
    few = [request(f"t{i}", "x" * 9 * i, max_tokens=3) for i in range(4)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(by_key(engine.generate(few)))
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1]


def test_abandoned_requests_do_not_affect_later_ones(engine: TransformersEngine, alone: dict[str, Any]) -> None:
    completions = engine.generate(crowd(40))
    first = next(completions)
    completions.close()
    assert alone[first.key][1] == first.token_ids
    assert by_key(engine.generate(crowd(30))) == {r.key: alone[r.key] for r in crowd(30)}


def test_requests_are_taken_as_a_stream(tokenizer: Any) -> None:
    engine = TransformersEngine(qwen3(), tokenizer, model_identity="tiny", slots=16)
    taken: list[int] = []

    def endless() -> Iterator[Request]:
        for i in range(10**9):
            taken.append(i)
            yield request(f"s{i}", max_tokens=4)

    completions = engine.generate(endless())
    for _ in range(50):
        next(completions)
    assert len(taken) < 1000
    completions.close()


# Against transformers itself.


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Qwen3", {}),
        ("Llama", {}),
        ("Mistral", {"sliding_window": 16}),
        ("Gemma", {"num_key_value_heads": 1}),
        ("Gemma2", {"sliding_window": 16, "num_key_value_heads": 1}),
        ("GPT2", {"n_embd": 128, "n_head": 4, "n_layer": 3, "n_positions": 256, "num_key_value_heads": 4}),
    ],
)
def test_greedy_sampling_equals_generate_token_for_token(kind: str, settings: dict[str, Any], tokenizer: Any) -> None:
    model = build_model(kind, **settings)
    engine = TransformersEngine(model, tokenizer, model_identity=kind)
    texts = ["x" * (i * 7 % 40) + str(i) for i in range(9)] + ["y" * 180, "y" * 180, "y" * 179 + "z"]
    requests = [request(f"g{i}", text, temperature=0, max_tokens=40) for i, text in enumerate(texts)]
    ours = {c.key: c for c in engine.generate(requests)}
    for r in requests:
        prompt = torch.tensor([ours[r.key].prompt_ids])
        theirs = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=40)
        assert list(ours[r.key].token_ids) == theirs[0, prompt.shape[1] :].tolist()


def test_logprobs_are_those_of_the_model_at_the_temperature(engine: TransformersEngine) -> None:
    model = qwen3()
    for r in [
        request("hot", temperature=1.7),
        request("cut", temperature=0.8, top_k=5),
        request("greedy", temperature=0),
    ]:
        (c,) = engine.generate([r])
        with torch.no_grad():
            logits = model(torch.tensor([c.prompt_ids + c.token_ids])).logits[0]
        scale = r.sampling.temperature or 1.0
        expected = (
            (logits / scale).log_softmax(-1)[len(c.prompt_ids) - 1 : -1].gather(1, torch.tensor(c.token_ids)[:, None])
        )
        assert c.logprobs == pytest.approx(expected[:, 0].tolist(), abs=2e-5)


# Drawing.


def test_the_uniform_number_picks_the_token() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]])).repeat(5, 1)
    uniforms = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71], dtype=torch.float64)
    tokens, logprobs = draw(logits, uniforms, torch.ones(5))
    assert tokens.tolist() == [0, 0, 1, 1, 2]
    assert logprobs.exp().tolist() == pytest.approx([0.2, 0.2, 0.5, 0.5, 0.3])


@settings(max_examples=50, deadline=None)
@given(
    size=st.integers(1, 300),
    seed=st.integers(0, 2**31),
    u=st.floats(0, 1, exclude_max=True),
    steep=st.sampled_from([0.1, 3.0, 60.0]),
)
def test_drawing_by_blocks_equals_drawing_from_the_whole(size: int, seed: int, u: float, steep: float) -> None:
    logits = torch.randn(1, size, generator=torch.Generator().manual_seed(seed)) * steep
    uniform = torch.tensor([min(u, BELOW_ONE)], dtype=torch.float64)
    token, logprob = draw(logits, uniform, torch.ones(1))
    p = logits.double().softmax(-1)[0]
    below, upto = p[: token[0]].sum().item(), p[: token[0] + 1].sum().item()
    assert p[token[0]] > 0 and below - 1e-6 <= uniform.item() <= upto + 1e-6
    assert logprob.item() == pytest.approx(p[token[0]].log().item(), abs=1e-4)


@settings(deadline=None)
@given(u=st.floats(0, 1, exclude_max=True), top_k=st.integers(0, 6), top_p=st.floats(0.05, 1.0))
def test_top_k_and_top_p_keep_only_the_likeliest_tokens(u: float, top_k: int, top_p: float) -> None:
    p = [0.05, 0.4, 0.1, 0.3, 0.15]
    logits, uniform = torch.log(torch.tensor([p])), torch.tensor([u * (1 - 2**-50)], dtype=torch.float64)
    token, _ = draw(logits, uniform, torch.ones(1), None, torch.tensor([top_p]), torch.tensor([top_k]))
    ranked = sorted(range(5), key=lambda i: -p[i])[: top_k or 5]
    mass = sum(p[i] for i in ranked)
    nucleus = [i for n, i in enumerate(ranked) if sum(p[j] for j in ranked[:n]) < top_p * mass + 1e-6]
    assert token.item() in nucleus


def test_samples_follow_the_distribution(engine: TransformersEngine) -> None:
    first = [
        c.token_ids[0] for c in engine.generate(request(f"d{i}", max_tokens=1, temperature=0.3) for i in range(3000))
    ]
    with torch.no_grad():
        (c,) = engine.generate([request("d0", max_tokens=1)])
        p = (qwen3()(torch.tensor([c.prompt_ids])).logits[0, -1] / 0.3).softmax(-1)
    for token in p.topk(5).indices.tolist():
        expected = p[token].item()
        assert first.count(token) / 3000 == pytest.approx(expected, abs=4.5 * (expected / 3000) ** 0.5)


def test_samples_of_one_prompt_differ_and_repeat(engine: TransformersEngine) -> None:
    group = [request(f"group {i}") for i in range(8)]
    once, again = by_key(engine.generate(group)), by_key(engine.generate(group))
    assert once == again
    assert len({value[1] for value in once.values()}) == 8


# The fields of a completion.


def test_completion_fields(engine: TransformersEngine, tokenizer: Any) -> None:
    completions = list(engine.generate(crowd(40)))
    assert {c.finish for c in completions} >= {Finish.STOP, Finish.LENGTH}
    for c in completions:
        assert c.prompt == engine.render(({"role": "user", "content": _content(c.prompt)},))
        assert list(c.prompt_ids) == tokenizer.encode(c.prompt, add_special_tokens=False)
        assert c.logprobs is not None and len(c.logprobs) == len(c.token_ids)
        assert (c.token_ids[-1] == 1) == (c.finish is not Finish.LENGTH)
        text_ids = c.token_ids if c.finish is Finish.LENGTH else c.token_ids[:-1]
        assert c.text == "".join(tokenizer.convert_ids_to_tokens(text_ids))


def _content(prompt: str) -> str:
    return prompt.removeprefix("<|im_start|>user\n").split("<|im_end|>")[0]


def test_a_response_that_ends_at_once_finishes_as_empty(tokenizer: Any) -> None:
    model = build_model("Qwen3", tie_word_embeddings=False)
    model.lm_head.weight.data.zero_()
    model.lm_head.bias = torch.nn.Parameter(torch.nn.functional.one_hot(torch.tensor(1), 512) * 100.0)
    engine = TransformersEngine(model, tokenizer, model_identity="mute")
    (c,) = engine.generate([request("mute")])
    assert (c.finish, c.text, c.token_ids) == (Finish.EMPTY, "", (1,))


def test_a_prompt_that_is_too_long_is_bad_input(engine: TransformersEngine) -> None:
    with pytest.raises(InputError, match=r"318 tokens.*256"):
        list(engine.generate([request("long", "x" * 300)]))
    (c,) = engine.generate([request("tight", "x" * 200, max_tokens=500, temperature=0)])
    assert len(c.prompt_ids) + len(c.token_ids) <= 256


# Weights that change: full and LoRA.


@pytest.mark.parametrize("lora", [False, True])
def test_refresh_takes_over_the_trained_weights_and_does_not_change_them(tokenizer: Any, lora: bool) -> None:
    model = qwen3()
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    engine = TransformersEngine(model, tokenizer, model_identity="policy")
    before = by_key(engine.generate(crowd(8)))
    torch.manual_seed(1)
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data += 0.05 * torch.randn_like(parameter)
    kept = [p.detach().clone() for p in model.parameters()]

    assert by_key(engine.generate(crowd(8))) == before
    engine.refresh()
    (c,) = engine.generate([request("after")])
    with torch.no_grad():
        logits = model(torch.tensor([c.prompt_ids + c.token_ids])).logits[0].log_softmax(-1)
    expected = logits[len(c.prompt_ids) - 1 : -1].gather(1, torch.tensor(c.token_ids)[:, None])[:, 0]
    assert c.logprobs == pytest.approx(expected.tolist(), abs=1e-5)
    assert by_key(engine.generate(crowd(8))) != before
    assert all(torch.equal(p, k) for p, k in zip(model.parameters(), kept, strict=True))
    assert all(p.requires_grad for p in trained)


# Workers.


@pytest.fixture
def opened(tokenizer: Any) -> Iterator[Callable[..., TransformersEngine]]:
    engines = []

    def open_(model: Any = None, workers: int = 2) -> TransformersEngine:
        engines.append(TransformersEngine(model or qwen3(), tokenizer, model_identity="t", slots=32, workers=workers))
        return engines[-1]

    yield open_
    for engine in engines:
        engine.close()


def test_workers_give_the_same_bits_as_one_process(opened: Any, alone: dict[str, Any]) -> None:
    engine = opened()
    assert by_key(engine.generate(crowd(40))) == alone
    completions = engine.generate(crowd(40))
    next(completions)
    completions.close()
    assert by_key(engine.generate(crowd(40))) == {r.key: alone[r.key] for r in crowd(40)}


def test_refresh_reaches_the_workers(opened: Any) -> None:
    model = qwen3()
    both, single = opened(model), opened(model, workers=1)
    model.model.embed_tokens.weight.data *= 1.5
    stale = by_key(both.generate(crowd(20)))
    both.refresh()
    single.refresh()
    assert by_key(both.generate(crowd(20))) == by_key(single.generate(crowd(20))) != stale


def test_a_dead_worker_is_a_one_line_error(opened: Any) -> None:
    engine = opened()
    (first, *_) = multiprocessing.active_children()
    completions = engine.generate(request(f"w{i}", max_tokens=200, temperature=5.0) for i in range(500))
    next(completions)
    os.kill(first.pid or 0, signal.SIGKILL)
    with pytest.raises(PipelineError, match="sampling worker was killed by SIGKILL"):
        list(completions)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_ignore_sigint_and_sigterm(opened: Any, alone: dict[str, Any], number: signal.Signals) -> None:
    engine = opened()
    for worker in multiprocessing.active_children():
        os.kill(worker.pid or 0, number)
    assert by_key(engine.generate(crowd(20))) == {r.key: alone[r.key] for r in crowd(20)}


@pytest.mark.parametrize("working", [False, True])
def test_workers_die_with_their_parent(tokenizer: Any, working: bool) -> None:
    ours, theirs = multiprocessing.Pipe()

    def parent() -> None:
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork, and its pool would wait for them
        engine = TransformersEngine(qwen3(), tokenizer, model_identity="t", slots=32, workers=2)
        completions = engine.generate(request(f"p{i}", max_tokens=200, temperature=5.0) for i in range(10**6))
        if working:
            next(completions)
        theirs.send([child.pid for child in multiprocessing.active_children()])
        time.sleep(60)

    process = multiprocessing.get_context("fork").Process(target=parent)
    process.start()
    workers = ours.recv()
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# Loading.


def test_a_model_is_loaded_from_a_directory(tmp_path: Path, tokenizer: Any, alone: dict[str, Any]) -> None:
    qwen3().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = open_engine(Model(str(tmp_path), "sha"), TransformersOptions(workers=1))
    assert engine.model == "sha"
    assert by_key(engine.generate(crowd(5))) == {r.key: alone[r.key] for r in crowd(5)}


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer*"])
def test_an_incomplete_directory_is_bad_input(tmp_path: Path, tokenizer: Any, missing: str) -> None:
    qwen3().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for path in tmp_path.glob(missing):
        path.unlink()
    with pytest.raises(InputError, match=r"config.json|weights|tokenizer"):
        open_engine(Model(str(tmp_path), "sha"), TransformersOptions())


def test_a_truncated_weight_file_is_bad_input(tmp_path: Path, tokenizer: Any) -> None:
    qwen3().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be loaded"):
        open_engine(Model(str(tmp_path), "sha"), TransformersOptions())


def test_a_tokenizer_without_a_chat_template_is_bad_input(engine: TransformersEngine, tokenizer: Any) -> None:
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    with pytest.raises(InputError, match="chat template"):
        list(TransformersEngine(qwen3(), bare, model_identity="bare").generate([request("a")]))


def test_recurrent_models_are_refused(tokenizer: Any) -> None:
    config = transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=512)
    with pytest.raises(InputError, match="Mamba"):
        TransformersEngine(transformers.MambaForCausalLM(config), tokenizer, model_identity="m")
