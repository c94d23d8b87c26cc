"""Several devices learn what one learns: two real processes, started by torchrun or by the run itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from ranks_run import HALF, LEG, ROWS, STEPS, model, refined, supervised, valued  # noqa: E402
from test_sampler import requests, two_ranks  # noqa: E402
from tiny import weights  # noqa: E402

from distill.training.learner import run_identity  # noqa: E402
from distill.training.loop import TrainSettings, train  # noqa: E402
from distill.training.optimizer import OptimizerSettings  # noqa: E402
from pipeline.errors import InputError, PipelineError  # noqa: E402

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks under torchrun left what they learned, after one process had begun a run of several legs."""
    directory = tmp_path_factory.mktemp("together")
    supervised(directory / "legs", False, LEG)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", HERE / "ranks_run.py", directory],
        env=os.environ | {"PYTHONPATH": str(HERE.parent), "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return directory


ALONE: dict[str, Callable[[Path], Any]] = {
    "lora": lambda place: supervised(place, True),
    "full": lambda place: supervised(place, False),
    "half": lambda place: supervised(place, True, **HALF),
    "grpo": refined,
    "ppo": valued,
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What one process learns, computed once for both kinds of parallelism."""
    return cache(lambda name: ALONE[name](tmp_path_factory.mktemp(name)))


def close(found: Any, expected: Any) -> None:
    alike(found[0], expected[0])
    assert found[1] == pytest.approx(expected[1], rel=1e-6, abs=1e-6)


def alike(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for sums rounded in another order. Where a weight's gradients nearly cancel, AdamW, which divides by their
    size, turns that rounding into up to a few per cent of an update."""
    apart = (found - expected).abs()
    assert apart.quantile(0.999) < 1e-6
    assert apart.max() < 1e-4


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_learn_what_one_process_does(parallel: str, lora: bool, together: Path, alone: Any) -> None:
    close(torch.load(together / "found.pt")[f"{parallel} {lora}"], alone("lora" if lora else "full"))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_half_precision_with_checkpointed_layers_learns_on_all_ranks(parallel: str, together: Path, alone: Any) -> None:
    (found, losses), (expected, own) = torch.load(together / "found.pt")[f"{parallel} half"], alone("half")
    assert losses == pytest.approx(own, abs=0.02) and losses[-1] < losses[0]
    assert (found - expected).norm() <= 0.05 * (expected - weights(model(True))).norm()


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_grpo_samples_once_and_learns_on_all_ranks(parallel: str, together: Path, alone: Any) -> None:
    close(torch.load(together / "found.pt")[f"grpo {parallel}"], alone("grpo"))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_value_head_is_learned_on_all_ranks(parallel: str, together: Path, alone: Any) -> None:
    close(torch.load(together / "found.pt")[f"ppo {parallel}"], alone("ppo"))


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_computes_layers_in_the_same_written_out_way(rank: int, together: Path) -> None:
    """Rotary embeddings, norms and LoRA layers: otherwise the last bits would depend on the rank that computes a row."""
    written = json.loads((together / f"written-{rank}.json").read_text())
    assert written.pop("in training") == 0
    assert len(written) == 3 and all(written.values()), written  # and the counter does count


def test_a_run_resumes_with_another_number_of_ranks(together: Path, alone: Any) -> None:
    """One process, then two with copies, then two with shards, then one again: the result is that of one process."""
    last, losses = supervised(together / "legs", False)
    whole = alone("full")
    assert len(losses) == STEPS - 3 * LEG
    alike(last, whole[0])


def test_weights_and_moments_are_not_sent_in_one_message(together: Path) -> None:
    """Those of a large model would not fit, not on resuming either. They are sent one by one, by NCCL where available."""
    longest = json.loads((together / "longest-message-0.json").read_text())
    assert 0 < longest < sum(weight.nbytes for weight in model(lora=False).parameters())


def test_the_number_of_devices_is_no_part_of_a_runs_identity() -> None:
    one = TrainSettings(OptimizerSettings(1e-3))
    assert run_identity(one) == run_identity(TrainSettings(OptimizerSettings(1e-3), devices=4, parallel="fsdp"))


@pytest.mark.skipif(sys.platform != "linux", reason="finds the rank in /proc")
def test_a_killed_rank_ends_the_run_which_then_resumes_exactly(together: Path, tmp_path: Path) -> None:
    """These ranks are started by the run itself; undisturbed ones under torchrun give the same bits."""
    steps = count(1)

    def kill_in_step_4(_: Any) -> None:
        if next(steps) == 4:
            os.kill(rank_1(), signal.SIGKILL)

    settings = TrainSettings(
        OptimizerSettings(1e-3), batch_size=4, steps=STEPS, micro_batch_tokens=30, devices=2, checkpoint_steps=2
    )
    with pytest.raises(PipelineError, match="run the same command again"):
        train(model(True), ROWS, settings, checkpoints=tmp_path, on_step=kill_in_step_4)
    made = model(True)
    assert train(made, ROWS, settings, checkpoints=tmp_path).resumed_at == 2
    assert torch.equal(weights(made), torch.load(together / "found.pt")["ddp True"][0])


@pytest.mark.skipif(sys.platform != "linux", reason="finds the rank in /proc")
def test_a_rank_lost_while_others_sample_ends_a_run_that_is_to_stop(tmp_path: Path) -> None:
    """So it is under torchrun, which tells the other ranks to stop and kills them half a minute later."""
    looks = count()

    def stopping() -> bool:
        if next(looks) == 2:
            os.kill(rank_1(), signal.SIGKILL)
        return next(looks) > 2

    with pytest.raises(PipelineError, match="run the same command again"), two_ranks(tmp_path) as (sampler, _):
        list(sampler.generate(requests("a", "b", tokens=100_000), stopping))


def rank_1() -> int:
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        if b"distill.training.launch" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise AssertionError("no rank was started")


def test_more_devices_than_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"2 asked for, but 1 GPU"):
        train(model(True), ROWS, TrainSettings(OptimizerSettings(1e-3), devices=2), checkpoints=tmp_path)
