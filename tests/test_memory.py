"""The memory pre-flight: exact where possible, elsewhere close to measurements; a refusal is one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from command import forked  # noqa: E402
from tiny import VOCABULARY, multimodal, tiny  # noqa: E402

from distill.modelspec import EMBEDDED, Model  # noqa: E402
from distill.pretrained import load  # noqa: E402
from distill.stages.devices import foreseen  # noqa: E402
from distill.stages.student import StudentSettings  # noqa: E402
from distill.training import forward, memory  # noqa: E402
from distill.training.allocator import KERNEL_LIMITS, KERNELS, limit_kernel_caches  # noqa: E402
from distill.training.memory import (  # noqa: E402
    TILE,
    Training,
    check_fits,
    estimate,
    weights_of,
)
from distill.training.session import reproducible  # noqa: E402
from distill.training.student import add_lora  # noqa: E402
from pipeline.errors import InputError  # noqa: E402

ROOT = str(Path(__file__).parent.parent)
USUAL = Training(micro_batch_tokens=512, rank=4)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny().save_pretrained(tmp_path)
    return tmp_path


def bytes_of(model: torch.nn.Module, trained: bool = False) -> int:
    return sum(4 * p.numel() for p in model.parameters() if p.requires_grad or not trained)


def test_weights_gradients_and_moments_are_those_of_the_model(model: Path) -> None:
    whole, adapted = tiny(), add_lora(tiny(), rank=4, alpha=8, seed=0)
    full, lora = estimate(model, replace(USUAL, rank=None)), estimate(model, USUAL)
    assert full and lora
    assert full.weights == full.gradients == full.moments // 2 == bytes_of(whole)
    assert lora.weights == bytes_of(adapted)
    assert lora.gradients == lora.moments // 2 == bytes_of(adapted, trained=True)


def test_the_estimate_for_a_multimodal_model_uses_its_language_model(tmp_path: Path) -> None:
    """Its sizes are in a separate section of the configuration, on the hub without those that are Gemma 3's defaults."""
    network = multimodal(VOCABULARY)
    network.save_pretrained(tmp_path / "gemma")
    whole = replace(USUAL, rank=None)
    found = estimate(tmp_path / "gemma", whole)
    assert found and found.weights == bytes_of(network)

    text = network.config.get_text_config()
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "head_dim", "num_attention_heads")
    alone = tiny(num_key_value_heads=text.num_key_value_heads, **{name: getattr(text, name) for name in sizes})
    alone.save_pretrained(tmp_path / "alone")
    beside = estimate(tmp_path / "alone", whole)
    assert beside and (found.activations, found.logits) == (beside.activations, beside.logits)

    config = tmp_path / "gemma" / "config.json"
    written = json.loads(config.read_text())
    written["text_config"] = {name: written["text_config"][name] for name in sizes[:3]}
    config.write_text(json.dumps(written))
    assert estimate(tmp_path / "gemma", whole) == found

    for odd in ({"intermediate_size": [64, 64]}, {"num_attention_heads": [4, 4]}):  # Gemma 3n, OpenELM
        config.write_text(json.dumps(written | {"text_config": written["text_config"] | odd}))
        assert estimate(tmp_path / "gemma", whole) is None


def test_the_estimate_assumes_the_chunk_sizes_that_the_forward_pass_uses() -> None:
    assert (memory.CHUNK, memory.LARGE_CHUNK) == (forward.CHUNK, forward.LARGE_CHUNK)


@pytest.mark.parametrize(
    ("advice", "change"),
    [
        ("lower micro_batch_tokens", {"micro_batch_tokens": 16}),
        ("gradient_checkpointing", {"checkpointing": True}),
        ("quantize: nf4", {"bits": 4}),
        ("base_precision: bf16", {"bits": 16}),
        ("fsdp", {"shards": 2}),
    ],
)
@pytest.mark.parametrize("tokens", [32, 4096], ids=["weights weigh", "activations weigh"])
def test_the_refusal_advises_just_the_changes_that_lower_the_need(
    tokens: int, advice: str, change: dict[str, int], model: Path
) -> None:
    usual = replace(USUAL, half=True, micro_batch_tokens=tokens)
    with pytest.raises(InputError) as refused:
        check_fits(model, usual, "stage sft", 0)
    before, after = estimate(model, usual), estimate(model, replace(usual, **change))
    assert before and after and (after.total < before.total) == (advice in str(refused.value))


def test_on_a_cpu_activations_and_memory_kept_by_the_allocator_are_per_process(model: Path) -> None:
    gpu, one, two = (estimate(model, replace(USUAL, rank=None, cores=cores)) for cores in (0, 1, 2))
    assert gpu and one and two
    assert (gpu.allocator, gpu.activations, gpu.logits) == (0, one.activations, one.logits) and one.allocator > 0
    assert two.gradients == 2 * one.gradients and two.weights == one.weights and two.moments == one.moments
    freed = one.allocator + one.moments  # the optimizer's moments are then allocated from it
    assert (two.activations, two.logits, two.allocator) == (
        2 * one.activations, 2 * one.logits, 2 * freed - one.moments,
    )  # fmt: skip
    half, halves = (estimate(model, replace(USUAL, half=True, cores=cores)) for cores in (1, 2))
    assert half and halves and halves.kernels == 2 * half.kernels > 0 == one.kernels
    for each in (replace(USUAL, cores=1), replace(USUAL, cores=1, half=True)):
        sizes = [estimate(model, replace(each, micro_batch_tokens=1 << n)) for n in range(6, 26)]
        needs = [found.total for found in sizes if found]
        assert len(needs) == 20 and needs == sorted(needs)
        assert sizes[-1] and sizes[-1].allocator == 0  # blocks this large go back to the system when they are freed


def test_ranks_on_a_cpu_share_its_memory_and_a_small_model_is_sampled_from_by_one(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "has_gpu", lambda: False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    usual = replace(USUAL, cores=1, samples=True, others=12345)
    one, two = estimate(model, usual), estimate(model, replace(usual, ranks=2))
    assert one and two and one.sampling == two.sampling > 0
    assert two.total - two.sampling == 2 * (one.total - one.sampling)
    with pytest.raises(InputError, match=r"use fewer devices \(2\)"):
        check_fits(model, replace(usual, ranks=2), "stage sft", 0)

    alone = StudentSettings(student="embedded:student-base", threads=1)
    both = alone.model_copy(update={"devices": 2})
    memory_of_two = foreseen(both)["memory"]
    assert memory_of_two == 2 * foreseen(alone)["memory"] > 0
    monkeypatch.setenv("WORLD_SIZE", "6")  # set by torchrun, on two machines
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert 2 * foreseen(alone)["memory"] == 3 * memory_of_two
    monkeypatch.setattr(memory, "has_gpu", lambda: True)  # each rank then has a GPU of its own
    assert foreseen(both) == foreseen(alone)


def test_the_logits_of_a_frozen_head_are_estimated_by_tile(model: Path) -> None:
    from distill.training import forward, head

    assert head.ROWS * head.WIDTH == TILE and head.MANY_ROWS * head.WIDTH == forward.CHUNK
    config = model / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 40', '"vocab_size": 150000'))
    frozen, trained = (estimate(model, replace(USUAL, rank=rank, cores=1)) for rank in (4, None))
    assert frozen and trained and frozen.logits < 1 << 24 < trained.logits


def test_few_half_precision_kernels_are_kept_unless_the_user_sets_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = KERNEL_LIMITS
    monkeypatch.setenv(first, "7")
    monkeypatch.setenv(second, "7")  # so that monkeypatch restores it afterwards
    del os.environ[second]
    limit_kernel_caches()
    assert os.environ[first] == "7" and os.environ[second] == str(KERNELS)


def taken() -> int:
    """Bytes of this process's own memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if "RssAnon" in line)


def products(said: Connection, student: str | None) -> None:
    """Send how much more memory is taken after 700 more shapes. A stage may have sampled from ``student`` before."""
    if student:
        sampler, _ = load(Model(student, ""), "bfloat16", "cpu")
        sampler(torch.tensor([[1, 2, 3]]))
    with reproducible(1):
        for n in range(1, 1000):
            torch.zeros(n, 64, dtype=torch.bfloat16) @ torch.zeros(64, 64, dtype=torch.bfloat16)
            if n == 300:
                before = taken()
        said.send(taken() - before)


@pytest.mark.skipif(sys.platform != "linux", reason="as Linux tells what is taken")
@pytest.mark.parametrize("student", [None, str(EMBEDDED / "student-base")], ids=["first", "after sampling"])
def test_products_of_ever_new_shapes_take_no_more_memory(student: str | None) -> None:
    """By default they would take half a gigabyte, where a CPU computes in bf16."""
    told, says = Pipe(duplex=False)
    process = forked(products, says, student)  # from one that has computed nothing
    says.close()
    assert told.recv() < 50 << 20
    process.join()


def test_a_teacher_beside_the_student_counts(model: Path) -> None:
    alone, beside = estimate(model, USUAL), estimate(model, replace(USUAL, others=weights_of(model, 4)))
    assert alone and beside and beside.total - alone.total == bytes_of(tiny())
    assert weights_of(model, 2) == bytes_of(tiny()) // 2 and weights_of(model / "nowhere", 4) == 0
    with pytest.raises(InputError, match=r"training needs about .*others"):
        check_fits(model, replace(USUAL, others=1 << 40), "stage opd", 1 << 30)


def test_a_training_that_cannot_fit_is_refused_with_numbers_and_advice(model: Path) -> None:
    need = estimate(model, USUAL)
    assert need
    check_fits(model, USUAL, "stage sft", need.total)
    with pytest.raises(InputError, match=r"stage sft: training needs about .*activations .*free; lower micro_batch"):
        check_fits(model, USUAL, "stage sft", need.total // 2)


def test_a_model_that_cannot_be_inspected_is_let_through(tmp_path: Path) -> None:
    assert estimate(tmp_path, USUAL) is None
    check_fits(tmp_path, USUAL, "stage sft", 0)
    check_fits(None, USUAL, "stage sft", 0)


def test_free_memory_prints_no_warnings_of_libraries() -> None:
    """When every stage before `sft` is cached, the pre-flight is what imports peft, and with it bitsandbytes."""
    pytest.importorskip("bitsandbytes")
    code = "from distill.training.memory import free_memory; free_memory()"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
