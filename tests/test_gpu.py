"""The training engine on a device: the same code paths on CPU and, where there is one, on a GPU (`make gpu`).

What runs on CUDA is marked ``gpu`` and skipped with its reason elsewhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from ranks_run import ROWS, STEPS, model  # noqa: E402
from tiny import chat_tokenizer, weights  # noqa: E402

from distill.modelspec import Model  # noqa: E402
from distill.training import student  # noqa: E402
from distill.training.export import export_student  # noqa: E402
from distill.training.forward import check_packing  # noqa: E402
from distill.training.loop import TrainSettings, train  # noqa: E402
from distill.training.optimizer import OptimizerSettings  # noqa: E402

GPUS = torch.cuda.device_count()
cuda = [pytest.mark.gpu, pytest.mark.skipif(GPUS < 1, reason="no GPU here")]
several = [pytest.mark.gpu, pytest.mark.skipif(GPUS < 2, reason=f"needs two GPUs, {GPUS} here")]
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=cuda)]
HERE = Path(__file__).parent


def trained(device: str, directory: Path, lora: bool = True, **changes: Any) -> tuple[Any, list[float]]:
    """The weights and losses of a short training on a device."""
    made, metrics = model(lora).to(device), list[Any]()
    settings = TrainSettings(OptimizerSettings(1e-3), batch_size=4, steps=STEPS, micro_batch_tokens=30, **changes)
    train(made, ROWS, settings, checkpoints=directory, on_step=metrics.append)
    return weights(made).cpu(), [m.loss for m in metrics]


@pytest.mark.parametrize("device", DEVICES)
def test_packed_rows_see_only_themselves(device: str) -> None:
    check_packing(model(lora=True).to(device))


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_device_learns_what_a_cpu_does(device: str, lora: bool, tmp_path: Path) -> None:
    found, losses = trained(device, tmp_path / "there", lora)
    expected, known = trained("cpu", tmp_path / "here", lora)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert losses == pytest.approx(known, abs=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_stays_near_full_precision(device: str, tmp_path: Path) -> None:
    half, full = (trained(device, tmp_path / p, precision=p)[1] for p in ("bf16", "fp32"))
    assert half == pytest.approx(full, rel=0.05)


@pytest.mark.parametrize("device", DEVICES)
def test_nf4_learns_and_is_merged_as_it_was_trained(device: str, tmp_path: Path) -> None:
    """QLoRA; what is written is compared with what was trained by `export_student`."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra: qlora)")
    model(lora=False).save_pretrained(tmp_path / "base")
    chat_tokenizer().save_pretrained(tmp_path / "base")
    base = Model(str(tmp_path / "base"), "base")
    made, tokenizer = student.load(base, student.Adapter(8, 16), quantize="nf4", device=device)
    settings, metrics = TrainSettings(OptimizerSettings(1e-2), batch_size=4, steps=12), list[Any]()
    train(made, ROWS, settings, checkpoints=tmp_path / "checkpoints", on_step=metrics.append)
    assert made.device.type == device and metrics[-1].loss < metrics[0].loss
    export_student(made, tokenizer, tmp_path / "out")


@pytest.mark.parametrize("parallel", [pytest.param("ddp", marks=several), pytest.param("fsdp", marks=several)])
def test_two_gpus_learn_what_one_does(parallel: Any, tmp_path: Path) -> None:
    """By NCCL; ranks that the run starts itself."""
    made = partial(trained, "cuda" if parallel == "ddp" else "cpu")
    found, losses = made(tmp_path / "two", devices=2, parallel=parallel)
    expected, known = trained("cuda", tmp_path / "one")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert losses == pytest.approx(known, abs=1e-4)


@pytest.mark.parametrize("launcher", [pytest.param("torchrun", marks=several)])
def test_torchrun_on_two_gpus(launcher: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", HERE / "ranks_run.py", tmp_path]
    env = os.environ | {"PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
