"""The memory pre-flight: exact where it can be, near what is measured elsewhere, and one line where it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tiny import tiny  # noqa: E402

from distill.training import forward, memory  # noqa: E402
from distill.training.lora import add_lora  # noqa: E402
from distill.training.memory import Training, check_fits, estimate, free_of_machine, weights_of  # noqa: E402
from pipeline.errors import InputError  # noqa: E402

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


def test_as_many_logits_are_reckoned_with_as_are_held() -> None:
    assert memory.CHUNK == forward.CHUNK


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
def test_what_the_refusal_advises_lowers_the_need(
    tokens: int, advice: str, change: dict[str, int], model: Path
) -> None:
    usual = replace(USUAL, half=True, micro_batch_tokens=tokens)
    with pytest.raises(InputError) as refused:
        check_fits(model, usual, "stage sft", 0)
    before, after = estimate(model, usual), estimate(model, replace(usual, **change))
    assert before and after and (after.total < before.total) == (advice in str(refused.value))


def test_a_teacher_beside_the_student_counts(model: Path) -> None:
    alone, beside = estimate(model, USUAL), estimate(model, replace(USUAL, teacher=weights_of(model, 4)))
    assert alone and beside and beside.total - alone.total == bytes_of(tiny())
    assert weights_of(model, 2) == bytes_of(tiny()) // 2 and weights_of(model / "nowhere", 4) == 0
    with pytest.raises(InputError, match=r"training needs about .*teacher"):
        check_fits(model, replace(USUAL, teacher=1 << 40), "stage opd", 1 << 30)


def test_what_cannot_fit_is_refused_with_the_numbers_and_what_to_change(model: Path) -> None:
    need = estimate(model, USUAL)
    assert need
    check_fits(model, USUAL, "stage sft", need.total)
    with pytest.raises(InputError, match=r"stage sft: training needs about .*activations .*free; lower micro_batch"):
        check_fits(model, USUAL, "stage sft", need.total // 2)


def test_a_model_that_cannot_be_looked_at_is_let_through(tmp_path: Path) -> None:
    assert estimate(tmp_path, USUAL) is None
    check_fits(tmp_path, USUAL, "stage sft", 0)
    check_fits(None, USUAL, "stage sft", 0)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("names", [("memory.max", "memory.current", "inactive_file", "0::"), ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "4:memory:")], ids=["v2", "v1"])  # fmt: skip
def test_a_cgroup_above_bounds_what_is_free(names: tuple[str, str, str, str], tmp_path: Path) -> None:
    limit, used, cached, line = names
    group = tmp_path / "groups" / ("memory" if "memory:" in line else "") / "job"
    write(tmp_path / "proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    write(tmp_path / "proc/self/cgroup", f"{line}/job/step\n")
    assert free_of_machine(tmp_path / "proc", tmp_path / "groups") == 8000 * 1024
    write(group / limit, "5000000")
    write(group / used, "3000000")
    write(group / "memory.stat", f"{cached} 1000000\n")
    assert free_of_machine(tmp_path / "proc", tmp_path / "groups") == 3_000_000
