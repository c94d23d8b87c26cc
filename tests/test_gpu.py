"""The training engine on a device: the same code paths on CPU and, where there is one, on a GPU (`make gpu`).

What runs on CUDA is marked ``gpu`` and skipped with its reason elsewhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import test_rl  # noqa: E402
from ranks_run import ROWS, model  # noqa: E402
from tiny import chat_tokenizer, tiny, weights  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

from distill.modelspec import Model  # noqa: E402
from distill.training import student  # noqa: E402
from distill.training.batching import Example, from_tokens  # noqa: E402
from distill.training.export import export_student  # noqa: E402
from distill.training.forward import check_packing, checkpoint_layers, logprobs, pack  # noqa: E402
from distill.training.loop import TrainSettings, train  # noqa: E402
from distill.training.optimizer import OptimizerSettings  # noqa: E402
from distill.training.sampler import StudentSampler  # noqa: E402
from distill.training.student import add_lora  # noqa: E402
from pipeline.errors import Stopped  # noqa: E402
from rl.loss import PolicyLoss  # noqa: E402

GPUS = torch.cuda.device_count()
cuda = [pytest.mark.gpu, pytest.mark.skipif(GPUS < 1, reason="no GPU here")]
several = [pytest.mark.gpu, pytest.mark.skipif(GPUS < 2, reason=f"needs two GPUs, {GPUS} here")]
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=cuda)]
HERE = Path(__file__).parent
STEPS = 5


def trained(device: str, directory: Path, kind: str = "lora", stop_at: int = 0, **changes: Any) -> tuple[Any, Any]:
    """The weights and losses of a short training on a device, stopped early after step ``stop_at`` if that is not 0."""
    made, metrics = made_of(kind).to(device), list[Any]()
    settings = TrainSettings(OptimizerSettings(1e-3), batch_size=4, steps=STEPS, micro_batch_tokens=30, **changes)
    with suppress(Stopped):
        train(
            made, ROWS, settings, checkpoints=directory, on_step=metrics.append,
            stop=lambda: len(metrics) == stop_at > 0,
        )  # fmt: skip
    return weights(made).cpu(), [m.loss for m in metrics]


def made_of(kind: str) -> Any:
    if kind != "checkpointing":
        return model(kind == "lora")
    network = tiny()
    checkpoint_layers(network)
    return add_lora(network, rank=4, alpha=8, seed=0)


def probes(*lengths: int) -> list[Example]:
    return [from_tokens(str(n), [n % 40], [(7 * i + n) % 40 for i in range(n)]) for n in lengths]


@pytest.mark.parametrize("device", DEVICES)
def test_packed_rows_see_only_themselves(device: str) -> None:
    check_packing(model(lora=True).to(device))


@pytest.mark.parametrize("kind", ["lora", "full", "checkpointing"])
@pytest.mark.parametrize("device", DEVICES)
def test_training_on_a_device_equals_training_on_a_cpu(device: str, kind: str, tmp_path: Path) -> None:
    """Also with gradient checkpointing, whose second pass runs in another thread on a GPU."""
    found, losses = trained(device, tmp_path / "there", kind)
    expected, known = trained("cpu", tmp_path / "here", "full" if kind == "full" else "lora")
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert losses == pytest.approx(known, abs=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_a_stopped_run_resumes_on_a_device(device: str, tmp_path: Path) -> None:
    _, first = trained(device, tmp_path / "run", stop_at=2)
    found, rest = trained(device, tmp_path / "run")
    expected, losses = trained(device, tmp_path / "whole")
    assert len(first) == 2 and first + rest == pytest.approx(losses, abs=1e-4)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_half_precision_attention_uses_a_fused_kernel(device: str) -> None:
    """With only one kernel allowed, torch raises if it cannot serve the inputs: few key-value heads, packed rows."""
    network = tiny(head_dim=64, max_position_embeddings=512).to(device)
    packed = pack(probes(300, 310, 400), device)
    found = []
    for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        with sdpa_kernel(kernel):
            with torch.autocast(device, torch.bfloat16):
                found.append(logprobs(network, packed))
            found[-1].sum().backward()
    fused, plain = found
    torch.testing.assert_close(fused, plain, atol=0.1, rtol=0.05)


class Planned(TorchFunctionMode):
    """Records for each call of attention whether cuDNN may serve it."""

    def __init__(self) -> None:
        super().__init__()
        self.used: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.used.append(torch.backends.cuda.cudnn_sdp_enabled())
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=cuda)])
def test_no_kernel_is_planned_for_each_shape_of_a_pack(device: str) -> None:
    """cuDNN plans a kernel per shape, half a second each; also in the second pass of gradient checkpointing."""
    network, batch = made_of("checkpointing").to(device).train(), pack(probes(20, 23, 31), device)
    with Planned() as planned:
        logprobs(network, batch).sum().backward()
    assert len(planned.used) >= 2 and not any(planned.used)
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_samples_from_the_weights_it_trains(device: str, tmp_path: Path) -> None:
    """GRPO: the engine's log-probabilities equal the trainer's, after updates too, and the student moves away from its
    reference, which is how it began."""
    made = test_rl.student().to(device)
    metrics, _ = test_rl.grpo(made, tmp_path, steps=3, loss=PolicyLoss(kl=0.1))
    assert max(m.logprob_gap for m in metrics) < 1e-4
    assert metrics[0].kl == pytest.approx(0, abs=1e-6) and metrics[-1].kl > 1e-3 and made.device.type == device


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_losses_stay_close_to_full_precision(device: str, tmp_path: Path) -> None:
    half, full = (trained(device, tmp_path / p, precision=p)[1] for p in ("bf16", "fp32"))
    assert half == pytest.approx(full, rel=0.05)


@pytest.mark.parametrize("device", DEVICES)
def test_nf4_learns_and_is_merged_as_it_was_trained(device: str, tmp_path: Path) -> None:
    """QLoRA; `export_student` itself compares the exported weights with the trained ones."""
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
def test_two_gpus_learn_the_same_as_one(parallel: Any, tmp_path: Path) -> None:
    """Over NCCL, with ranks that the run starts itself."""
    made = partial(trained, "cuda" if parallel == "ddp" else "cpu")
    found, losses = made(tmp_path / "two", devices=2, parallel=parallel)
    expected, known = trained("cuda", tmp_path / "one")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert losses == pytest.approx(known, abs=1e-4)


@pytest.mark.parametrize("sampling", [pytest.param("both", marks=several)])
def test_two_gpus_sample_for_one_step(sampling: str, tmp_path: Path) -> None:
    made = test_rl.student().to("cuda")
    metrics, rollouts = test_rl.grpo(made, tmp_path, StudentSampler(test_rl.policy(made)), steps=3, devices=2)
    assert len(rollouts) == 3 * 4 * 8 and max(m.logprob_gap for m in metrics) < 1e-4


@pytest.mark.parametrize("launcher", [pytest.param("torchrun", marks=several)])
def test_torchrun_on_two_gpus(launcher: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", HERE / "ranks_run.py", tmp_path]
    env = os.environ | {"PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
