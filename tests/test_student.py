"""A student's weights and the end of its training: NF4, gradient checkpointing, early stopping, learning rates."""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tiny import chat_tokenizer, examples, tiny, weights  # noqa: E402

from distill.engines.transformers import TransformersEngine  # noqa: E402
from distill.modelspec import Model  # noqa: E402
from distill.training import student  # noqa: E402
from distill.training.batching import from_tokens  # noqa: E402
from distill.training.early_stopping import Heldout, heldout_loss  # noqa: E402
from distill.training.export import export_student, load_model  # noqa: E402
from distill.training.forward import check_packing, checkpoint_layers, logprobs, pack  # noqa: E402
from distill.training.lean import lean  # noqa: E402
from distill.training.learner import Learner  # noqa: E402
from distill.training.loop import StepMetrics, TrainResult, TrainSettings, train  # noqa: E402
from distill.training.optimizer import OptimizerSettings  # noqa: E402
from distill.training.passes import Row  # noqa: E402
from distill.training.session import learning, prepared  # noqa: E402
from distill.training.student import add_lora  # noqa: E402
from distill.types import Request, Sampling  # noqa: E402
from pipeline.errors import InputError, Stopped  # noqa: E402

ADAMW = OptimizerSettings(learning_rate=1e-2)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ------------------------------------------------------------------ learning rate


@pytest.mark.parametrize(
    ("kind", "hidden", "lora", "rate"),
    [("Qwen3", 1536, True, 5.1e-4), ("Llama", 4096, True, 2.9e-4), ("Llama", 4096, False, 2.9e-5)],
)
def test_the_default_learning_rate_falls_with_the_hidden_size(kind: str, hidden: int, lora: bool, rate: float) -> None:
    import transformers

    shape = {"hidden_size": hidden, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 8}
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{kind}Config")(**shape))
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    assert student.default_learning_rate(model) == rate


# ------------------------------------------------------------------ gradient checkpointing


@pytest.mark.parametrize("wrap", [False, True], ids=["full", "lora"])
def test_gradient_checkpointing_changes_no_bit(wrap: bool, tmp_path: Path) -> None:
    """In the model's gradients, and in a run shared by two processes."""
    ends, gradients = [], []
    for checkpointed in (False, True):
        model = tiny()
        if checkpointed:
            checkpoint_layers(model)
        model = add_lora(model, rank=4, alpha=8, seed=0) if wrap else model
        with prepared(model, 1):
            logprobs(model, pack(examples(6))).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        model.zero_grad()
        settings = TrainSettings(ADAMW, batch_size=4, micro_batch_tokens=30, threads=2)
        train(model, examples(12), settings, checkpoints=tmp_path / str(checkpointed))
        ends.append(weights(model))
    assert torch.equal(*gradients) and gradients[0].abs().max() > 0
    assert torch.equal(*ends)


# ------------------------------------------------------------------ frozen weights in bf16


def halved(base: Model) -> Any:
    return student.load(base, student.Adapter(8, 16), half=True, half_base=True)[0]


def fit_half(model: Any, directory: Path, stop: Any = lambda: False) -> TrainResult:
    settings = TrainSettings(ADAMW, batch_size=4, steps=12, precision="bf16")
    return train(model, examples(8), settings, checkpoints=directory, stop=stop)


def test_an_adapter_on_a_bf16_base_learns_resumes_samples_and_is_merged(base: Model, tmp_path: Path) -> None:
    """The adapter itself is kept in full precision."""
    straight, resumed = halved(base), halved(base)
    held = {p.requires_grad: p.dtype for p in straight.parameters()}
    assert held == {False: torch.bfloat16, True: torch.float32}
    result = fit_half(straight, tmp_path / "a")
    assert all(column[-1] < column[0] for column in result.losses.values())
    with pytest.raises(Stopped):
        fit_half(halved(base), tmp_path / "b", iter([False] * 3 + [True]).__next__)
    assert fit_half(resumed, tmp_path / "b").resumed_at == 4
    assert torch.equal(weights(straight), weights(resumed))
    export_student(straight, chat_tokenizer(), tmp_path / "out")
    assert load_model(tmp_path / "out/model", torch.bfloat16).dtype == torch.bfloat16
    asked = [Request(str(i), ({"role": "user", "content": "ab"},), Sampling(max_tokens=8)) for i in range(4)]
    completions = list(TransformersEngine(straight, chat_tokenizer(), model_identity="m").generate(asked))
    sampled = {c.key: c.logprobs for c in completions}
    rows = [Row(from_tokens(c.key, c.prompt_ids, c.token_ids), {}) for c in completions]
    settings = TrainSettings(ADAMW, precision="bf16")
    with learning(straight, settings, 1, tmp_path / "c", "run") as learner:
        for row, scored in zip(rows, learner.score(rows), strict=True):
            assert scored.logprobs == pytest.approx(sampled[row.example.key], abs=0.2)


# ------------------------------------------------------------------ QLoRA


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tmp_path_factory.mktemp("base")
    tiny(hidden_size=64, intermediate_size=128).save_pretrained(directory)
    chat_tokenizer().save_pretrained(directory)
    return Model(str(directory), "base")


def quantised(base: Model, **changes: Any) -> Any:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra: qlora)")
    return student.load(base, student.Adapter(8, 16), quantize="nf4", **changes)[0]


def fit(model: Any, directory: Path, stop: Any = lambda: False, steps: int = 6) -> TrainResult:
    settings = TrainSettings(ADAMW, batch_size=4, steps=steps)
    return train(model, examples(8), settings, checkpoints=directory, stop=stop)


def test_nf4_keeps_the_base_in_four_bits_and_trains_the_adapter(base: Model, tmp_path: Path) -> None:
    model = quantised(base)
    frozen = [p for name, p in model.named_parameters() if "base_layer" in name]
    assert {p.dtype for p in frozen} == {torch.uint8}
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    check_packing(model)
    before = [p.clone() for p in frozen]
    result = fit(model, tmp_path, steps=20)
    assert all(column[-1] < column[0] for column in result.losses.values())
    assert all(map(torch.equal, frozen, before))


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_written_out_layers_over_nf4_have_the_same_values_and_gradients(base: Model, half: bool) -> None:
    model = quantised(base)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.uniform_(-0.2, 0.2)
    batch, found, asked = pack(examples(5)), [], []
    bases = [module for name, module in model.named_modules() if name.endswith("base_layer")]
    for base_layer in bases:
        base_layer.register_forward_hook(lambda *_: asked.append(1))
    for written_out in (False, True):
        model.zero_grad()
        with lean(model) if written_out else nullcontext(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            asked.clear()  # `lean` tries out the layers that it replaces
            values = logprobs(model, batch)
            with torch.no_grad(), model.disable_adapter():
                reference = logprobs(model, batch)
        values.sum().backward()
        assert len(asked) == (0 if written_out else 2 * len(bases))
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
        found.append((values.detach(), reference, gradient))
    for plain, ours in zip(*found, strict=True):
        assert (ours - plain).norm() <= (0.05 if half else 1e-5) * plain.norm()


def test_a_stopped_and_resumed_nf4_training_equals_an_uninterrupted_one(base: Model, tmp_path: Path) -> None:
    straight, resumed = quantised(base), quantised(base, gradient_checkpointing=True)
    fit(straight, tmp_path / "a")
    with pytest.raises(Stopped):
        fit(quantised(base), tmp_path / "b", stop=iter([False, True]).__next__)
    assert fit(resumed, tmp_path / "b").resumed_at == 2
    assert torch.equal(weights(straight), weights(resumed))


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_a_quantised_student_is_merged_onto_its_dequantised_base(base: Model, half: bool, tmp_path: Path) -> None:
    from peft import PeftModel

    model = quantised(base)
    fit(model, tmp_path / "checkpoints")
    export_student(model, chat_tokenizer(), tmp_path / "out", half=half)
    merged = load_model(tmp_path / "out/model", torch.bfloat16 if half else torch.float32)
    ids = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        trained, written = (m.eval()(input_ids=ids, use_cache=False).logits.float() for m in (model, merged))
        plain = PeftModel.from_pretrained(load_model(Path(base.source)), tmp_path / "out/adapter")
        unquantised = plain.eval()(input_ids=ids, use_cache=False).logits
    gap = (written - trained).abs().max() / trained.abs().max()
    assert gap < (0.05 if half else 1e-4)
    assert (
        unquantised - trained
    ).abs().max() > 0.1  # NF4 does round: merged onto the unquantised base it is another model
    assert "quantization_config" not in (tmp_path / "out/model/config.json").read_text()


def test_nf4_without_bitsandbytes_or_over_an_adapter_is_refused(
    base: Model, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    from distill import pretrained

    if pretrained.find_spec("bitsandbytes"):
        with pytest.raises(InputError, match="cannot be folded into 4 bits; merge it first"):
            student.load(Model(base.source, "x", adapter="somewhere"), quantize="nf4")
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"quantize: nf4 needs bitsandbytes; pip install .*qlora"):
        student.load(base, quantize="nf4")


def test_the_engine_samples_from_a_quantised_student(base: Model) -> None:
    model = quantised(base)
    tokenizer = chat_tokenizer()
    engine = TransformersEngine(model, tokenizer, model_identity="q")
    request = Request("k", ({"role": "user", "content": "abc"},), Sampling(0.0, max_tokens=12))
    (completion,) = engine.generate([request])
    ids = torch.tensor([[*completion.prompt_ids, *completion.token_ids]])
    with torch.no_grad():
        table = model.eval()(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    own = table[len(completion.prompt_ids) - 1 : -1]
    assert own.argmax(-1).tolist() == list(completion.token_ids)


# ------------------------------------------------------------------ early stopping


def watched(
    directory: Path, stop: Any = lambda: False, patience: int | None = 2, **changes: Any
) -> tuple[Any, TrainResult, dict[int, float]]:
    """A run that soon overfits its few rows, and so gets worse on others."""
    model, losses, others = add_lora(tiny(), rank=8, alpha=16, seed=0), {}, examples(6, seed=9)

    def measure(learner: Learner) -> tuple[float, dict[str, float]]:
        value = heldout_loss(learner, others)
        return value, {"heldout_loss": value}

    def on_step(metrics: StepMetrics) -> None:
        if not math.isnan(metrics.heldout_loss):
            losses[metrics.step] = metrics.heldout_loss

    settings = TrainSettings(ADAMW, batch_size=4, epochs=20, **changes)
    watch = Heldout(measure, every=3, patience=patience)
    result = train(model, examples(8), settings, checkpoints=directory, stop=stop, on_step=on_step, heldout=watch)
    return model, result, losses


def test_early_stopping_ends_with_the_best_weights(tmp_path: Path) -> None:
    model, result, losses = watched(tmp_path)
    assert result.steps == max(losses) == result.best_step + 2 * 3 < 40
    assert losses[result.best_step] == min(losses.values())
    table = model.eval()
    total = count = 0.0
    for row in examples(6, seed=9):
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            every = table(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        total -= every[torch.tensor(row.labels_mask[1:])].sum().item()
        count += row.supervised
    assert total / count == pytest.approx(min(losses.values()), abs=1e-4)


def test_an_equal_measurement_is_not_an_improvement(tmp_path: Path) -> None:
    """A pass rate over few problems often repeats."""
    settings = TrainSettings(ADAMW, batch_size=4, epochs=20)
    watch = Heldout(lambda learner: (-0.5, {}), every=2, patience=3)
    result = train(tiny(), examples(8), settings, checkpoints=tmp_path, heldout=watch)
    assert (result.best_step, result.steps) == (2, 8)


def test_a_training_that_only_hurts_ends_with_its_initial_weights(tmp_path: Path) -> None:
    model, losses = tiny(), dict[int, float]()
    start, others = weights(model).clone(), examples(6, seed=9)
    settings = TrainSettings(OptimizerSettings(1.0), batch_size=4, epochs=20)
    watch = Heldout(
        lambda learner: (heldout_loss(learner, others), {"heldout_loss": heldout_loss(learner, others)}), 2, 2
    )

    def on_step(metrics: StepMetrics) -> None:
        losses.update({metrics.step: metrics.heldout_loss} if metrics.heldout_loss < math.inf else {})

    result = train(model, examples(8), settings, checkpoints=tmp_path, on_step=on_step, heldout=watch)
    assert (
        (result.best_step, result.steps) == (0, 4) and list(losses) == [0, 2, 4] and losses[0] == min(losses.values())
    )
    assert torch.equal(weights(model), start)


def test_without_patience_all_steps_are_made_and_the_best_weights_are_kept(tmp_path: Path) -> None:
    _, result, losses = watched(tmp_path, patience=None)
    assert result.steps == 40 and set(losses) == {*range(0, 40, 3), 40}
    assert losses[result.best_step] == min(losses.values())


def test_early_stopping_is_exact_when_stopped_anywhere(tmp_path: Path) -> None:
    straight, whole, losses = watched(tmp_path / "a")
    again: dict[int, float] = {}
    for attempt in range(30):
        left = iter([False] * (attempt % 3) + [True])
        try:
            model, result, seen = watched(tmp_path / "b", stop=partial(next, left))
        except Stopped:
            continue
        again = seen
        break
    assert torch.equal(weights(model), weights(straight))
    assert (result.steps, result.best_step, result.losses) == (whole.steps, whole.best_step, whole.losses)
    assert again.items() <= losses.items() and result.resumed_at > 0
    model, result, seen = watched(tmp_path / "b")  # already finished: nothing is trained or measured again
    assert torch.equal(weights(model), weights(straight)) and seen == {} and result.resumed_at == whole.steps


def test_measuring_does_not_change_training(tmp_path: Path) -> None:
    """The steps before and after a measurement equal those of a run without measurements."""
    losses = []
    for watch in (None, Heldout(lambda learner: (heldout_loss(learner, examples(6, seed=9)), {}), every=2)):
        model = add_lora(tiny(), rank=8, alpha=16, seed=0)
        settings = TrainSettings(ADAMW, batch_size=4, epochs=3)
        result = train(model, examples(8), settings, checkpoints=tmp_path / str(watch is None), heldout=watch)
        losses.append(result.losses)
    assert losses[0] == losses[1]
