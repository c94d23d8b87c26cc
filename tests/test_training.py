"""The training engine: what it learns, packing without contamination, exact resume, and export."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from killed_trainings import killed_and_straight  # noqa: E402
from tiny import VOCABULARY, chat_tokenizer, examples, tiny, weights  # noqa: E402

from distill.prompting import asking  # noqa: E402
from distill.stages import sft  # noqa: E402
from distill.stages.supervised import example_of  # noqa: E402
from distill.store.records import problem_row  # noqa: E402
from distill.tensors import copied  # noqa: E402
from distill.training import attention, checkpoint, export, gated, head, rectangles, rotary  # noqa: E402
from distill.training.adapted import adapted  # noqa: E402
from distill.training.batching import Example, Order, from_tokens, micro_batches  # noqa: E402
from distill.training.export import export_student, load_model  # noqa: E402
from distill.training.forward import SHAPE_MULTIPLE, check_packing, logprobs, pack  # noqa: E402
from distill.training.lean import lean  # noqa: E402
from distill.training.loop import StepMetrics, TrainSettings, train  # noqa: E402
from distill.training.optimizer import OptimizerSettings  # noqa: E402
from distill.training.passes import likelihoods  # noqa: E402
from distill.training.session import prepared  # noqa: E402
from distill.training.student import add_lora  # noqa: E402
from distill.types import Problem  # noqa: E402
from pipeline.errors import InputError, PipelineError, Stopped  # noqa: E402

ADAMW = OptimizerSettings(learning_rate=1e-2)


def single(model: Any, example: Example) -> torch.Tensor:
    """Log-probabilities of the supervised tokens of one document through the model's own forward."""
    ids = torch.tensor([example.input_ids])
    table = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
    every = table.gather(1, ids[0, 1:, None]).squeeze(1)
    return every[torch.tensor(example.labels_mask[1:])]


# ------------------------------------------------------------------ examples


def test_a_row_without_a_supervised_token_is_refused() -> None:
    with pytest.raises(InputError, match="no supervised token"):
        from_tokens("k", [1, 2, 3], [])
    with pytest.raises(InputError, match="no supervised token"):
        Example("k", (5, 6), (True, False))  # the first token has nothing before it


# ------------------------------------------------------------------ order and micro-batches

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=60)


@given(lengths, st.integers(1, 9), st.integers(0, 3))
def test_every_row_comes_once_per_epoch_in_a_reproducible_order(sizes: list[int], batch: int, epoch: int) -> None:
    order = Order(tuple(sizes), batch, seed=3)
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    rows = [row for step in steps for row in order(step)]
    assert sorted(rows) == list(range(len(sizes)))
    assert rows == [row for step in steps for row in Order(tuple(sizes), batch, seed=3)(step)]


@st.composite
def packs(draw: Any) -> list[Example]:
    """Rows with separate prompts, rows that share a prompt, and prompts that are the beginning of another."""
    ids = partial(st.lists, st.integers(0, VOCABULARY - 1))
    shown = draw(st.sampled_from([[], draw(ids(min_size=1, max_size=20))]))
    rows = []
    for prompt in draw(st.lists(ids(min_size=1, max_size=20), min_size=1, max_size=4)):
        for response in draw(st.lists(ids(min_size=1, max_size=12), min_size=1, max_size=4)):
            rows.append(from_tokens("row", [*shown, *prompt], response))
    return list(draw(st.permutations(rows)))


@given(packs(), st.integers(1, 100), st.integers(1, 3))
def test_micro_batches_contain_every_row_once_within_the_limit(rows: list[Example], limit: int, shares: int) -> None:
    runs = micro_batches(rows, limit, shares)
    assert sorted(row for run in runs for row in run) == list(range(len(rows)))
    sizes = [pack([rows[i] for i in run]).input_ids.shape[1] for run in runs]
    assert max(sizes) <= limit + 2 * max(map(len, rows))  # one row more, and a prompt repeated where it is split


def test_micro_batches_keep_a_prompt_s_rows_together_and_are_of_even_size() -> None:
    rows = [from_tokens(f"{p}-{i}", [p] * (20 + p), [i + 1] * (30 + i)) for i in range(8) for p in range(16)]
    for shares in (1, 2):
        runs = micro_batches(rows, 1000, shares)
        assert len(runs) % shares == 0
        sizes = [pack([rows[i] for i in run]).input_ids.shape[1] for run in runs]
        assert max(sizes) < 1.15 * min(sizes)
        parts = sum(len({rows[i].prompt for i in run}) for run in runs)
        assert parts < 16 + len(runs)  # at most one prompt is in two neighbouring runs


@given(lengths)
def test_rectangles_cover_the_pack_with_bounded_waste(sizes: list[int]) -> None:
    ends = list(accumulate(sorted(sizes)))
    cover = attention.blocks([[range(end - n, end)] for n, end in zip(sorted(sizes), ends, strict=True)])
    assert [b.start for b in cover] == [0, *(b.end for b in cover[:-1])] and cover[-1].end == sum(sizes)
    area = sum(b.rows * b.width**2 for b in cover)
    assert area <= attention.WASTE * sum(n**2 for n in sizes)


# ------------------------------------------------------------------ the forward pass


@pytest.mark.parametrize("wrap", [False, True], ids=["full", "lora"])
def test_packed_rows_equal_single_documents(wrap: bool) -> None:
    model = tiny()
    if wrap:
        model = add_lora(model, rank=4, alpha=8, seed=1)
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.data.uniform_(-0.3, 0.3)
    rows = examples(12)
    batch = pack(rows)
    with torch.no_grad(), lean(model):
        got = logprobs(model, batch).split([e.supervised for e in batch.examples])
    for example, values in zip(batch.examples, got, strict=True):
        torch.testing.assert_close(values, single(model, example).detach(), atol=1e-5, rtol=0)


def alone(model: Any, rows: list[Example], weigh: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of rows side by side, padded at the end, and the gradient of their weighted sum."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row.input_ids, *[0] * (longest - len(row))] for row in rows])
    learned = torch.tensor([[*row.labels_mask[1:], *[False] * (longest - len(row))] for row in rows])
    model.zero_grad()
    table = model(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
    values = table.gather(2, ids[:, 1:, None]).squeeze(2)[learned]
    (values * weigh).sum().backward()
    return values.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


MODELS = {
    "Qwen3": tiny(initializer_range=0.1),
    "heads of their own": tiny(num_key_value_heads=4, initializer_range=0.1),
}


@settings(max_examples=12)
@given(packs(), st.sampled_from(sorted(MODELS)))
def test_a_shared_prefix_is_computed_once_with_the_same_gradient(rows: list[Example], kind: str) -> None:
    model = MODELS[kind]
    weigh = torch.randn(sum(row.supervised for row in rows), generator=torch.Generator().manual_seed(0))
    values, gradient = alone(model, rows, weigh)
    batch = pack(rows)
    assert batch.input_ids.shape[1] <= sum(len(row) - 1 for row in rows)
    model.zero_grad()
    ours = logprobs(model, batch)
    (ours * weigh).sum().backward()
    torch.testing.assert_close(ours.detach(), values, atol=1e-5, rtol=0)
    difference = torch.cat([p.grad.flatten() for p in model.parameters()]) - gradient
    assert difference.norm() <= 1e-5 * gradient.norm()


@settings(max_examples=12)
@given(packs(), st.sampled_from([8, 64]))
def test_padding_changes_no_value_or_gradient(rows: list[Example], multiple: int) -> None:
    model, found = MODELS["Qwen3"], []
    for batch in (pack(rows), pack(rows, multiple=multiple)):
        model.zero_grad()
        values = logprobs(model, batch)
        values.sum().backward()
        found.append((values.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    assert batch.input_ids.shape[1] % multiple == 0 and all(b.width % multiple == 0 for b in batch.documents)
    assert batch.needed is None or len(batch.needed) % multiple == 0
    assert [b.start for b in batch.documents] + [batch.input_ids.shape[1]] == [0] + [b.end for b in batch.documents]
    for plain, filled in zip(*found, strict=True):
        assert (filled - plain).norm() <= 1e-5 * plain.norm()


def test_a_pack_contains_shared_prompts_and_system_prompts_once() -> None:
    system, prompts, responses = [1] * 40, ([2] * 10, [3] * 10), ([4] * 5, [5] * 6, [6] * 7)
    rows = [from_tokens("row", [*system, *prompt], response) for prompt in prompts for response in responses]
    computed = 40 + 2 * (10 + (4 + 5 + 6))  # the last token of a row predicts nothing
    assert pack(rows).input_ids.shape[1] == computed
    assert pack([from_tokens("row", [1], [i] * 60) for i in range(9)]).input_ids.shape[1] == 9 * 60  # not worth it


@pytest.mark.parametrize("skip", [0, 6])
def test_half_precision_products_agree_with_sdpa(skip: int) -> None:
    q, k, v = (torch.randn(3, heads, 17, 8) for heads in (4, 2, 2))
    q = q[:, :, skip:]
    torch.testing.assert_close(
        rectangles.Products.forward(q, k, v, 0.3)[0], attention._sdpa(q, k, v, 0.3), atol=1e-5, rtol=0
    )


WRONG: dict[str, Callable[[list[list[range]]], list[list[range]]]] = {
    "all documents are one": lambda documents: [[range(documents[-1][-1].stop)]],
    "the shared beginning is lost": lambda documents: [spans[-1:] for spans in documents],
    "siblings see each other": lambda documents: [
        [*documents[i - 1], spans[-1]] if i and len(spans) > 1 else spans for i, spans in enumerate(documents)
    ],
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_the_guard_notices_contamination(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    check_packing(model)
    whole = attention.blocks

    def wrongly(documents: list[list[range]], *rest: Any) -> list[attention.Block]:
        return whole(wrong(documents), *rest)

    monkeypatch.setattr(attention, "blocks", wrongly)
    with pytest.raises(InputError, match="cannot be trained on packed rows"):
        check_packing(model)


def test_transformers_own_packing_with_a_cache_contaminates() -> None:
    """The trap that `use_cache=False` and the guard exist for: the same row through the stock forward pass."""
    model, batch = tiny().eval(), pack(examples(4))
    rows = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
    with torch.no_grad():
        stock = model(**rows, use_cache=True).logits[0].log_softmax(-1)
        ours = logprobs(model, batch)
    assert (stock[batch.sources].gather(1, batch.targets[:, None]).squeeze(1) - ours).abs().max() > 0.1


def test_the_guard_notices_contamination_through_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own packing is right without a cache, and off by more than a nat with one."""
    model = tiny()
    batch = pack(examples(3))  # without a shared prefix, which transformers could not compute once
    ours = logprobs(model, batch)
    monkeypatch.setattr(attention, "NAME", "sdpa")
    torch.testing.assert_close(logprobs(model, batch), ours, atol=1e-4, rtol=0)
    forward = model.model.forward

    def cached(**settings: Any) -> Any:
        return forward(**{**settings, "use_cache": True})

    monkeypatch.setattr(model.model, "forward", cached)
    assert (logprobs(model, batch) - ours).abs().max() > 1
    with pytest.raises(InputError, match=r"differ by [1-9][.\d]* from those of single documents"):
        check_packing(model)


def test_rows_longer_than_a_sliding_window_are_refused() -> None:
    windowed = tiny(use_sliding_window=True, sliding_window=4, max_window_layers=0)
    with pytest.raises(InputError, match="sliding window"):
        logprobs(windowed, pack(examples(3)))


@pytest.mark.parametrize("window", [20, 70], ids=["less than the filling", "no multiple of it"])
@pytest.mark.parametrize("multiple", [1, SHAPE_MULTIPLE])
def test_documents_within_a_sliding_window_equal_transformers(window: int, multiple: int) -> None:
    model = tiny(use_sliding_window=True, sliding_window=window, max_window_layers=0)
    rows = [from_tokens("row", [1, 2], [(3 * i + n) % VOCABULARY for n in range(i)]) for i in (5, 16, window - 1)]
    found = []
    for values in (
        lambda: torch.cat([single(model, row) for row in rows]),
        lambda: logprobs(model, pack(rows, multiple=multiple)),
    ):
        model.zero_grad()
        (made := values()).sum().backward()
        found.append((made.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    for exact, ours in zip(*found, strict=True):
        assert (ours - exact).norm() <= 1e-5 * exact.norm()
    with pytest.raises(InputError, match=f"longer than the model's sliding window of {window} tokens"):
        logprobs(model, pack([*rows, from_tokens("row", [1, 2], [3] * window)], multiple=multiple))


def test_chunked_logprobs_and_gradients_equal_unchunked_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.training import forward

    model, batch = tiny(), pack(examples(6))
    whole = logprobs(model, batch)
    whole.sum().backward()
    gradient = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    monkeypatch.setattr(forward, "CHUNK", 7 * VOCABULARY)
    chunked = logprobs(model, batch)
    chunked.sum().backward()
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=1e-6)
    for expected, p in zip(gradient, model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [7 * VOCABULARY, 1 << 24], ids=["chunked", "whole"])
def test_entropies_equal_those_of_full_logits_and_change_nothing_else(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distill.training import forward

    monkeypatch.setattr(forward, "CHUNK", chunk)
    model, batch = tiny(), pack(examples(6))
    found = []
    for entropy in (False, True):
        model.zero_grad()
        result = forward.score_tokens(model, batch, 0.7, entropy)
        result.logprobs.sum().backward()
        found.append([result.logprobs.detach(), *(p.grad.clone() for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert result.entropy is not None and not result.entropy.requires_grad
    for example, values in zip(
        batch.examples, result.entropy.split([e.supervised for e in batch.examples]), strict=True
    ):
        logits = model(input_ids=torch.tensor([example.input_ids]), use_cache=False).logits[0, :-1] / 0.7
        own = torch.distributions.Categorical(logits=logits).entropy()[torch.tensor(example.labels_mask[1:])]
        torch.testing.assert_close(values, own, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 8], ids=["small rank", "large rank"])
def test_lean_layers_have_the_values_and_gradients_of_peft_and_autograd(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gated, "TILE", 16)  # the pack is two tiles and a half
    model = add_lora(tiny(attention_bias=True), rank=rank, alpha=2 * rank, seed=1, final_norm=True)
    for name, p in model.named_parameters():
        if "lora_B" in name or "norm" in name or "bias" in name:
            p.data.uniform_(-0.2, 0.2)
    batch, found = pack(examples(5)), []
    for context in (torch.enable_grad(), lean(model)):
        with context:
            model.zero_grad()
            values = logprobs(model, batch)
            values.sum().backward()
            with torch.no_grad(), model.disable_adapter():
                reference = logprobs(model, batch)
        found.append(
            (values.detach(), reference, torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
        )
    for plain, ours in zip(*found, strict=True):
        assert (ours - plain).norm() <= 1e-5 * plain.norm()
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("rank", [1, 8], ids=["small rank", "large rank"])
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16], ids=["fp32 base", "bf16 base"])
def test_half_precision_lean_layers_are_as_accurate_as_peft_under_autocast(
    base: torch.dtype, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gated, "TILE", 16)
    plain_model = tiny(initializer_range=0.2, attention_bias=True).to(torch.bfloat16).to(base)
    model = add_lora(plain_model, rank=rank, alpha=2 * rank, seed=1)
    for name, p in model.named_parameters():
        if "bias" in name:
            p.data.uniform_(-0.2, 0.2)
        if p.requires_grad:
            p.data = p.data.float().uniform_(-0.2, 0.2) if "lora_B" in name else p.data.float()
    batch = pack(examples(8))

    def passed(half: bool) -> list[torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            values = logprobs(model, batch)
            with torch.no_grad(), model.disable_adapter():
                reference = logprobs(model, batch)
        values.sum().backward()
        return [
            values.detach(),
            reference,
            torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]),
        ]

    plain = passed(True)
    with lean(model):
        ours = passed(True)
    with lean(model, sharded=True):  # weights are cast for each pass
        assert all(map(torch.equal, passed(True), ours))
    model.to(torch.float32)
    for exact, eager, written_out in zip(passed(False), plain, ours, strict=True):
        error = (written_out - exact).norm()
        assert 0 < error <= 1.5 * (eager - exact).norm() and error <= 0.1 * exact.norm()


@pytest.mark.parametrize("part", [1e-2, 1e-3, 1e-4])
def test_small_lora_updates_are_not_lost_beside_half_precision_weights(part: float) -> None:
    """Rounded into the weight, or added to a rounded product, an update of 1 / 1000 would half be lost; backward too."""
    torch.manual_seed(0)
    x, weight = torch.randn(4000, 64).bfloat16().requires_grad_(), torch.randn(64, 64).bfloat16()
    a, b, g = torch.randn(4, 64), torch.randn(64, 4) * part / 2, torch.randn(4000, 64).bfloat16()
    found = []
    for factor in (b, torch.zeros_like(b)):
        made = adapted(x, None, weight, a, factor, 1.0)
        found.append((made.detach().float(), torch.autograd.grad(made, x, g)[0].float()))
    for with_it, without, true in zip(*found, (x.float() @ (b @ a).t(), g.float() @ (b @ a)), strict=True):
        seen = ((with_it - without) * true).sum() / true.square().sum()
        assert abs(seen - 1) < 0.2


def test_a_block_with_another_activation_is_left_alone() -> None:
    model = add_lora(tiny(hidden_act="gelu"), rank=2, alpha=2, seed=1)
    plain = logprobs(model, pack(examples(3)))
    with lean(model):
        torch.testing.assert_close(logprobs(model, pack(examples(3))), plain, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:.*merging LoRA weights")
@pytest.mark.parametrize("more", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_an_adapter_beyond_plain_lora_is_left_to_peft(more: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules="all-linear", **more)
    model = get_peft_model(tiny(attention_bias=True), config).train()  # type: ignore[arg-type]
    for name, p in model.named_parameters():
        if p.requires_grad or "bias" in name:
            p.data.uniform_(-0.3, 0.3)
    batch, found = pack(examples(3)), []
    for context in (torch.enable_grad(), lean(model)):
        with context:
            model.zero_grad()
            torch.manual_seed(1)  # for dropout
            logprobs(model, batch).sum().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    for name, plain in found[0].items():
        assert plain.norm() > 0 and (found[1][name] - plain).norm() <= 1e-5 * plain.norm(), name


@pytest.mark.parametrize("rows", ["alone", "ragged", "sharing a beginning"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_written_out_attention_has_the_values_and_gradients_of_autograd(
    dtype: torch.dtype, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"alone": (50, 61, 61), "ragged": (3, 9, 4, 40)}.get(rows)
    made = [from_tokens("row", [1, 2], [i] * n) for i, n in enumerate(sizes or ())]
    batch = pack(made or [from_tokens("row", [1] * 20, [i] * (5 + i)) for i in range(4)])
    found = []
    for written_out in (True, False):
        monkeypatch.setattr(attention, "_written_out", lambda q, v, ours=written_out: ours)
        torch.manual_seed(0)
        width = batch.input_ids.shape[1]
        sides = [torch.randn(1, heads, width, 8).to(dtype).requires_grad_() for heads in (4, 2, 2)]
        out, _ = attention.packed_attention(torch.nn.Module(), *sides, None, 0.6, documents=batch.documents)
        found.append((out, *torch.autograd.grad(out, sides, torch.randn_like(out))))
    for ours, plain in zip(*found, strict=True):
        close = {"atol": 2e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.02}
        torch.testing.assert_close(ours, plain, **close)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("dtype", "spread", "gap"), [(torch.float32, 30, 1e-5), (torch.bfloat16, 1, 0.02)])
def test_a_tiled_frozen_head_has_the_values_and_gradients_of_autograd(
    dtype: torch.dtype, spread: float, gap: float, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "ROWS", 5)
    monkeypatch.setattr(head, "WIDTH", 16)  # 40 tokens are two and a half tiles
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, VOCABULARY, bias=False).requires_grad_(False)
    layer.weight.mul_(spread)  # with 30 logits reach 100: without subtracting the largest they overflow
    hidden, weigh = torch.randn(13, 8, requires_grad=True), torch.randn(13)
    targets = torch.randint(0, VOCABULARY, (13,))
    assert head.is_plain(layer) and not head.is_plain(layer.requires_grad_(True))
    exact = (layer(hidden) / temperature).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    ours, entropy = head.through(hidden, layer.weight.detach(), targets, temperature, True, dtype)
    torch.testing.assert_close(ours, exact, atol=gap, rtol=1e-6)
    table = torch.distributions.Categorical(logits=layer(hidden) / temperature)
    torch.testing.assert_close(entropy, table.entropy().detach(), atol=10 * gap, rtol=0)
    gradients = [torch.autograd.grad((values * weigh).sum(), hidden)[0] for values in (exact, ours)]
    torch.testing.assert_close(gradients[1], gradients[0], atol=gap, rtol=1e-5)


@pytest.mark.parametrize("sure", [False, True])
def test_a_half_precision_head_gives_valid_probabilities_and_entropies(sure: bool) -> None:
    """A label's logit is rounded like the others: no probability is above 1, no entropy below 0."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32), torch.randn(VOCABULARY, 32) * 3
    targets = (hidden @ weight.t()).argmax(-1) if sure else torch.randint(0, VOCABULARY, (64,))
    values, entropy = head.through(hidden, weight, targets, 1.0, True, torch.bfloat16)
    assert values.max() <= 1e-5 and entropy.min() >= -1e-5


@pytest.mark.parametrize("unsure", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("grid", [False, True], ids=["fp32 weights", "bf16 weights"])
def test_a_half_precision_head_keeps_the_gradient_of_nearly_certain_labels(grid: bool, unsure: float) -> None:
    """Each label has one rival, so the gradient is (1 - p) (W[label] - W[rival]), and otherwise hardly more than rounding."""
    torch.manual_seed(0)
    weight = torch.linalg.qr(torch.randn(64, 64))[0][:VOCABULARY]
    weight = weight.bfloat16().float() if grid else weight
    labels, gap = torch.arange(0, VOCABULARY, 2), math.log((1 - unsure) / unsure)
    hidden = ((30 + gap) * weight[labels] + 30 * weight[labels + 1]).requires_grad_()
    half = hidden.detach().bfloat16().float().requires_grad_()
    (exact,) = torch.autograd.grad((half @ weight.t()).log_softmax(-1).gather(1, labels[:, None]).sum(), half)
    values = head.through(hidden, weight, labels, 1.0, False, torch.bfloat16)[0]
    (ours,) = torch.autograd.grad(values.sum(), hidden)
    assert torch.cosine_similarity(ours, exact, dim=-1).min() > 0.99
    assert (ours.norm(dim=-1) / exact.norm(dim=-1)).log().abs().max() < 0.3  # a logit of 30 is rounded by up to 1 / 16


def test_the_last_block_computes_only_the_positions_that_predict() -> None:
    model = tiny()
    rows = [from_tokens("row", [1, 2, 3, 4, 5, i], [7, 8, i]) for i in range(6)]
    batch, seen = pack(rows), list[int]()
    counting = model.model.layers[-1].mlp.gate_proj.register_forward_hook(lambda m, x, y: seen.append(y.shape[1]))
    gradients = []
    for needed in (batch.needed, None):
        model.zero_grad()
        values = logprobs(model, replace(batch, needed=needed))
        values.sum().backward()
        gradients.append(torch.cat([values.detach(), *(p.grad.flatten() for p in model.parameters())]))
    counting.remove()
    assert seen == [6 * 3, batch.input_ids.shape[1]] and seen[0] < seen[1]
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)
    assert "forward" not in vars(model.model.layers[-1].mlp)


def test_rotary_has_the_values_and_gradients_of_the_models_own() -> None:
    from transformers.models.gptj import modeling_gptj
    from transformers.models.qwen3 import modeling_qwen3

    own, interleaved = modeling_qwen3.apply_rotary_pos_emb, modeling_gptj.apply_rotary_pos_emb
    assert rotary._is_plain(own) and not rotary._is_plain(interleaved)
    angles = torch.randn(1, 7, 4).repeat(1, 1, 2)
    q, k = (torch.randn(1, heads, 7, 8, requires_grad=True) for heads in (4, 2))
    found = []
    for turn in (own, rotary.rotate):
        turned = turn(q, k, angles.cos(), angles.sin())
        found.append((*turned, *torch.autograd.grad(turned, (q, k), [x.detach().cos() for x in turned])))
    for exact, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact, atol=1e-6, rtol=1e-6)
    with rotary.quick_rotary(tiny()):
        assert modeling_qwen3.apply_rotary_pos_emb is not own
    assert modeling_qwen3.apply_rotary_pos_emb is own


def test_lora_s_initial_weights_depend_only_on_the_seed() -> None:
    first, again, other = (weights(add_lora(tiny(), rank=4, alpha=8, seed=s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


# ------------------------------------------------------------------ training


def run(model: Any, rows: Any, directory: Path, **changes: Any) -> tuple[Any, list[StepMetrics]]:
    callbacks = {k: changes.pop(k) for k in ("stop",) if k in changes}
    metrics: list[StepMetrics] = []
    how = TrainSettings(**({"optimizer": ADAMW, "batch_size": 4} | changes))
    return train(model, rows, how, checkpoints=directory, on_step=metrics.append, **callbacks), metrics


def test_a_diverging_training_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"training diverged: .*; lower learning_rate"):
        run(tiny(), examples(8), tmp_path, epochs=4, optimizer=OptimizerSettings(1e30, warmup=0))


def test_nan_logprobs_are_blamed_on_training_and_those_of_the_base_on_its_file() -> None:
    model = add_lora(tiny(), rank=4, alpha=8, seed=0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(math.nan)
    with pytest.raises(PipelineError, match=r"training diverged: .*; lower learning_rate"):
        likelihoods(model, examples(2), 64)
    model.get_input_embeddings().weight.data.fill_(math.nan)
    with model.disable_adapter(), pytest.raises(PipelineError, match="its weights are broken"):
        likelihoods(model, examples(2), 64)


def test_training_learns_and_reports_each_example(tmp_path: Path) -> None:
    rows, model = examples(16), add_lora(tiny(), rank=8, alpha=16, seed=0)
    result, metrics = run(model, rows, tmp_path, epochs=25)
    assert result.steps == len(metrics) == 100 and metrics[-1].step == metrics[-1].total == 100
    assert metrics[-1].loss < metrics[0].loss / 3
    assert set(result.losses) == {e.key for e in rows}
    with torch.no_grad():
        now = -single(model, rows[0]).mean().item()
    assert len(result.losses[rows[0].key]) == 25 and result.losses[rows[0].key][-1] == pytest.approx(now, rel=0.5)


def test_a_stop_while_a_batch_is_made_loses_no_step_before_it(tmp_path: Path) -> None:
    """For instance while a student samples its rows, which may take minutes."""
    rows, settings = examples(4), TrainSettings(OptimizerSettings(1e-3), steps=4, checkpoint_seconds=None)

    def stopped(step: int) -> list[Example]:
        if step == 2:
            raise Stopped("stopped")
        return rows

    with pytest.raises(Stopped):
        train(tiny(), stopped, settings, checkpoints=tmp_path)
    assert train(tiny(), lambda step: rows, settings, checkpoints=tmp_path).resumed_at == 2


def test_the_split_into_micro_batches_changes_no_gradient(tmp_path: Path) -> None:
    ends = []
    for limit in (1, 30, 10_000):
        model = tiny()
        run(model, examples(8), tmp_path / str(limit), micro_batch_tokens=limit, steps=3)
        ends.append(weights(model))
    torch.testing.assert_close(ends[0], ends[2], atol=1e-4, rtol=0)
    torch.testing.assert_close(ends[1], ends[2], atol=1e-4, rtol=0)


def test_one_step_equals_a_plain_loop(tmp_path: Path) -> None:
    """The reference: padded rows, torch's AdamW, and the loss written out."""
    rows, model, reference = examples(4), tiny(), tiny()
    run(model, rows, tmp_path, steps=1, optimizer=OptimizerSettings(1e-3, warmup=0, weight_decay=1))
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=1)
    total = sum(e.supervised for e in rows)
    loss = -sum((single(reference, e).sum() for e in rows), torch.zeros(())) / total
    loss.backward()
    torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    optimizer.step()
    torch.testing.assert_close(weights(model), weights(reference), atol=2e-5, rtol=0)


@pytest.mark.skipif(sys.platform != "linux", reason="replicas are forked on Linux only")
def test_two_cores_learn_the_same_as_one_and_reproduce_every_bit(tmp_path: Path) -> None:
    ends = []
    for name, threads in (("one", 1), ("two", 2), ("again", 2)):
        model = add_lora(tiny(), rank=4, alpha=8, seed=0)
        result, _ = run(model, examples(10), tmp_path / name, epochs=2, threads=threads, micro_batch_tokens=30)
        ends.append((weights(model), result.losses))
    torch.testing.assert_close(ends[0][0], ends[1][0], atol=1e-4, rtol=0)
    assert all(ends[1][1][key] == pytest.approx(column, abs=1e-4) for key, column in ends[0][1].items())
    assert torch.equal(ends[1][0], ends[2][0]) and ends[1][1] == ends[2][1]


@pytest.mark.parametrize("muon", [None, 2e-2])
def test_full_training_with_muon_and_a_batch_source(tmp_path: Path, muon: float | None) -> None:
    rows = examples(4)
    settings = OptimizerSettings(5e-3, muon_learning_rate=muon, schedule="linear", final=0.0)
    _, metrics = run(tiny(), lambda step: rows, tmp_path, steps=30, optimizer=settings)
    assert metrics[-1].loss < metrics[0].loss / 2


def test_bf16_autocast_learns_with_fp32_weights(tmp_path: Path) -> None:
    model = add_lora(tiny(), rank=8, alpha=16, seed=0)
    _, metrics = run(model, examples(8), tmp_path, epochs=10, precision="bf16")
    assert metrics[-1].loss < metrics[0].loss and weights(model).dtype == torch.float32


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_warm_up_and_reach_their_final_value(schedule: Any) -> None:
    settings = OptimizerSettings(1.0, schedule=schedule, warmup=0.1, final=0.2)
    scales = [settings.scale(step, 1000) for step in range(1000)]
    assert scales[0] < 0.02 and max(scales) == pytest.approx(1.0)
    assert scales[-1] == pytest.approx(1.0 if schedule == "constant" else 0.2, abs=2e-3)


# ------------------------------------------------------------------ stopping, killing, resuming


@pytest.mark.parametrize("muon", [None, 2e-2])
def test_a_stopped_and_resumed_training_equals_an_uninterrupted_one(tmp_path: Path, muon: float | None) -> None:
    optimizer = OptimizerSettings(1e-2, muon_learning_rate=muon)
    straight = tiny()
    whole, seen = run(straight, examples(13), tmp_path / "a", epochs=3, optimizer=optimizer)
    replayed: dict[int, float] = {}
    for attempt in range(20):
        model, left = tiny(), iter([False] * (attempt % 3) + [True])
        try:
            result, metrics = run(
                model, examples(13), tmp_path / "b", epochs=3, optimizer=optimizer, stop=partial(next, left)
            )
        except Stopped:
            continue
        break
    assert torch.equal(weights(model), weights(straight))
    assert result.losses == whole.losses and result.resumed_at > 0
    replayed |= {m.step: m.loss for m in metrics}
    assert replayed.items() <= {m.step: m.loss for m in seen}.items()


def test_a_finished_run_is_loaded_not_repeated(tmp_path: Path) -> None:
    first, second = tiny(), tiny()
    run(first, examples(6), tmp_path)
    result, metrics = run(second, examples(6), tmp_path)
    assert torch.equal(weights(first), weights(second)) and metrics == [] and result.resumed_at == result.steps


def test_torn_checkpoints_are_ignored_and_two_are_kept(tmp_path: Path) -> None:
    model = tiny()
    run(model, examples(6), tmp_path, steps=6, checkpoint_steps=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000005", "step-00000006"]
    (tmp_path / "step-00000009").mkdir()
    (tmp_path / "step-00000009" / "state.pt").write_bytes(b"torn")
    again = tiny()
    run(again, examples(6), tmp_path, steps=6, checkpoint_steps=1)
    assert torch.equal(weights(model), weights(again))


@pytest.mark.parametrize(("takes", "most"), [(0.0, 50), (10.0, 3)])
def test_slow_checkpoints_are_written_less_often(takes: float, most: int, tmp_path: Path, monkeypatch: Any) -> None:
    """By a simulated clock: each of 50 steps takes 5 seconds, and each checkpoint as many as given."""
    now, saved = [0.0], list[float]()

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    def save() -> None:
        saved.append(now[0])
        pass_by(takes)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    settings = TrainSettings(OptimizerSettings(1e-3), batch_size=4, steps=50, checkpoint_seconds=1.0)
    train(tiny(), examples(4), settings, checkpoints=tmp_path, on_step=lambda _: pass_by(5.0), before_save=save)
    assert len(saved) == most


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda b: bytes(len(b)), lambda b: b"torn", lambda b: b[: len(b) // 2], flipped, None]
)
def test_a_damaged_checkpoint_is_ignored_and_written_again(damage: Any, tmp_path: Path) -> None:
    model, again = tiny(), tiny()
    run(model, examples(6), tmp_path, steps=6, checkpoint_steps=1)
    state = tmp_path / "step-00000006" / "state.pt"
    if damage is None:
        state.unlink()
    else:
        state.write_bytes(damage(state.read_bytes()))
    result, _ = run(again, examples(6), tmp_path, steps=6, checkpoint_steps=1)
    assert result.resumed_at == 5
    assert torch.equal(weights(model), weights(again))
    found = checkpoint.latest(tmp_path, json.loads((state.parent / "COMPLETE").read_text())["run"])
    assert found is not None and found[0] == 6


def test_what_a_step_reports_is_durable_before_it_counts_as_done(tmp_path: Path) -> None:
    durable: list[int] = []

    class Dies(Exception):
        pass

    def attempt(last: int) -> None:
        pending: list[int] = []

        def on_step(metrics: Any) -> None:
            if metrics.step == last:
                raise Dies
            pending.append(metrics.step)

        def before_save() -> None:
            durable.extend(pending)
            pending.clear()

        settings = TrainSettings(OptimizerSettings(1e-2), batch_size=2, steps=9, checkpoint_steps=2)
        train(tiny(), examples(6), settings, checkpoints=tmp_path, on_step=on_step, before_save=before_save)

    with pytest.raises(Dies):
        attempt(last=6)
    attempt(last=0)
    assert durable == list(range(1, 10))


def test_checkpoints_of_another_run_are_refused(tmp_path: Path) -> None:
    run(tiny(), examples(6), tmp_path)
    with pytest.raises(InputError, match=r"another run .* start over with another seed or directory"):
        run(tiny(), examples(7), tmp_path)


def long(place: Path) -> tuple[int, Any]:
    model = add_lora(tiny(), rank=4, alpha=8, seed=0)
    settings = TrainSettings(OptimizerSettings(1e-2), batch_size=2, steps=60, checkpoint_steps=2)
    return train(model, examples(50), settings, checkpoints=place).resumed_at, weights(model)


@pytest.mark.slow
def test_sigkill_at_random_moments_gives_equal_weights(tmp_path: Path) -> None:
    (resumed, found), (begun, expected) = killed_and_straight(tmp_path, long, kills=4, latest=0.5)
    assert begun == 0 < resumed and torch.equal(found, expected)


def test_a_failed_write_is_reported_and_the_last_checkpoint_survives(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, "r", {"weights": [torch.ones(10)]})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(InputError, match=r"over your quota or file size limit \(File too large\)"):
            checkpoint.save(tmp_path, 2, "r", {"weights": [torch.ones(1_000_000)]})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    step, state = checkpoint.latest(tmp_path, "r") or (0, {})
    assert step == 1 and torch.equal(state["weights"][0], torch.ones(10))


def test_a_checkpoint_s_marker_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(json, "dump", full_disk)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, 1, "run", {"x": torch.zeros(3)})
    assert checkpoint.latest(tmp_path, "run") is None


# ------------------------------------------------------------------ export


@pytest.mark.parametrize("wrap", [False, True], ids=["full", "lora"])
def test_exported_student_loads_in_plain_transformers(tmp_path: Path, wrap: bool) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = add_lora(tiny(), rank=4, alpha=8, seed=0) if wrap else tiny()
    run(model, examples(8), tmp_path / "checkpoints", epochs=3)
    tokenizer = chat_tokenizer()
    export_student(model, tokenizer, tmp_path / "student")
    assert (tmp_path / "student/adapter/adapter_model.safetensors").exists() == wrap
    if wrap:  # peft writes sets in the order of the process's hash seed, so equal runs would write different files
        targets = json.loads((tmp_path / "student/adapter/adapter_config.json").read_text())["target_modules"]
        assert targets == sorted(targets) and len(targets) == 2 * 7
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student/model")
    with torch.no_grad():
        torch.testing.assert_close(single(loaded, examples(1)[0]), single(model, examples(1)[0]), atol=1e-4, rtol=0)
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    assert AutoTokenizer.from_pretrained(tmp_path / "student/model").chat_template == tokenizer.chat_template
    assert load_model(tmp_path / "student/model").dtype == torch.float32


def test_an_export_that_differs_from_the_trained_model_is_refused(tmp_path: Path) -> None:
    model = add_lora(tiny(), rank=4, alpha=8, seed=0)
    model.get_output_embeddings().register_forward_hook(lambda module, seen, made: 1.01 * made)  # not part of any file
    with pytest.raises(PipelineError, match=r"logits differ from the trained model's by 0\.0099"):
        export_student(model, chat_tokenizer(), tmp_path / "out")


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_an_adapter_lost_in_the_export_is_noticed_in_half_precision_too(
    half: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here its effect is smaller than the rounding to bf16 may be."""
    model = add_lora(tiny(), rank=4, alpha=8, seed=0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight.data, std=1e-3, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(export, "_merged", lambda trained: copied(trained).unload())
    with pytest.raises(PipelineError, match=r"logits differ from the trained model's by 0\.00"):
        export_student(model, chat_tokenizer(), tmp_path / "out", half)


def test_settings_of_the_process_are_restored() -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    model = tiny()
    with prepared(model, threads=1):
        assert torch.are_deterministic_algorithms_enabled()
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_the_final_norm_is_trained_saved_merged_and_followed_by_the_engine(tmp_path: Path) -> None:
    from distill.engines.weights import InferenceCopy

    model = add_lora(tiny(), rank=4, alpha=8, seed=0, final_norm=True)
    before = model.get_base_model().model.norm.weight.detach().clone()
    follower = InferenceCopy(model)
    optimizer = OptimizerSettings(1e-3, norm_learning_rate=0.1)
    train(model, examples(8), TrainSettings(optimizer, batch_size=4, steps=3), checkpoints=tmp_path / "c")
    after = model.get_base_model().model.norm.weight
    assert (after - before).abs().max() > 0.05  # the norm moved at its own rate
    export_student(model, chat_tokenizer(), tmp_path / "out")
    loaded = load_model(tmp_path / "out/model")
    assert torch.equal(loaded.model.norm.weight, after)
    follower.refresh()
    ids = torch.arange(10).unsqueeze(0)
    assert torch.allclose(loaded(input_ids=ids).logits, model.eval()(input_ids=ids).logits, atol=1e-5)
    assert torch.equal(follower.model.model.norm.weight, after)


# ------------------------------------------------------------------ prompts of a student


def test_a_student_is_trained_on_the_prompt_of_its_settings() -> None:
    """Without such settings, on the problem's own prompt, whatever prompt its teacher got."""
    problem = Problem("x/1", "what is two", "4", "math", "x")
    row = problem_row(problem) | {"trace_key": "k", "thinking": "", "answer": "four"}
    ways: list[tuple[Any, str]] = [
        (None, "<user>what is two<end>\n"),
        (
            {"system": "be brief", "template": "{{ prompt }} or so"},
            "<bot>be brief<end>\n<user>what is two or so<end>\n",
        ),
    ]
    for said, prompt in ways:
        settings = sft.SftSettings(data="select", student="embedded:student-base", prompting=said)
        example = example_of(chat_tokenizer(), row, asking(settings.prompting))
        first = example.labels_mask.index(True)
        assert "".join(chat_tokenizer().convert_ids_to_tokens(example.input_ids[:first])) == f"{prompt}<bot>"
        assert not any(example.labels_mask[:first]) and all(example.labels_mask[first:-1])
    with pytest.raises(ValueError, match="learns to answer by itself"):
        sft.SftSettings(
            data="select", student="embedded:student-base", prompting={"template": "boxed", "prefill": "so"}
        )


def test_a_step_without_rows_learns_nothing_but_counts(tmp_path: Path) -> None:
    """A source may have no rows, for instance when all samples of a student were empty."""
    model, metrics = tiny(), list[Any]()
    before = weights(model)
    settings = TrainSettings(OptimizerSettings(1e-2), steps=2)
    train(model, lambda step: [], settings, checkpoints=tmp_path, on_step=metrics.append)
    assert torch.equal(weights(model), before) and [m.step for m in metrics] == [1, 2]
