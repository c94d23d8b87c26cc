"""GRPO: our step against TRL's, sampling and training, with a reference pass (beta 0.04) and without; LoRA.

On a CPU: CPU-seconds per step, for 16 prompts of 70 tokens with 8 samples of up to 64 tokens each, 3M parameters, fp32,
one thread. On a GPU: seconds per step, for Qwen3-0.6B with random weights, samples of up to 256 tokens, bf16 autocast
in training. The figures are medians over steps, from when everything is ready for the first step to the end of the
last. TRL samples with transformers' own generate(), not with vLLM. Both sides sample the end token with a probability
of one in the size of the vocabulary, so that lengths are similar; their means are in the detail. Every run has its own
process, and ours and TRL's alternate.

    python benchmarks/grpo.py [--quick] [--device cpu] [--tiny]
"""

from __future__ import annotations

import statistics
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from _apart import SECOND, Clock, NotMeasured, Place, apart, find_place
from _trl_models import (
    QWEN3_06B,
    QWEN3_TINY,
    SHAPE_3M,
    Marks,
    Shape,
    arguments,
    begins,
    finish,
    has_trl,
    student,
    tokenizer,
    trl_settings,
)

from distill.engines.transformers import TransformersEngine
from distill.randomness import generator
from distill.training.optimizer import OptimizerSettings
from distill.types import Completion, Problem, Sampling
from rl.grpo import GrpoSettings, train_grpo
from rl.loss import PolicyLoss

GROUP, RATE = 8, 1e-5


@dataclass(frozen=True)
class Case:
    """A model and a step with ``prompts`` and samples of at most ``length`` tokens. Our micro-batches have ``tokens``
    tokens, TRL's ``rows`` rows."""

    shape: Shape
    precision: Literal["fp32", "bf16"]
    length: int
    tokens: int
    rows: int
    steps: int
    prompts: int = 16

    def warm(self) -> Case:
        """A small step of the same kind."""
        return replace(self, steps=1, prompts=4, length=min(self.length, 16))


ON_CPU = Case(SHAPE_3M, "fp32", length=64, tokens=4096, rows=4 * GROUP, steps=3)
ON_GPU = Case(QWEN3_06B, "bf16", length=256, tokens=10_432, rows=4 * GROUP, steps=3)
TINY = replace(ON_GPU, shape=QWEN3_TINY, length=32, tokens=1024)


def prompt(index: int) -> str:
    return "".join(chr(33 + int(i)) for i in generator("benchmark", "grpo", index).integers(2, 127, 70))


class Reward:
    """A coin flip that depends on the tokens. Remembers the lengths of the samples."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, samples: Iterable[Sequence[int]]) -> list[float]:
        samples = [list(ids) for ids in samples]
        self.lengths += map(len, samples)
        return [float(zlib.crc32(repr(ids).encode()) % 2) for ids in samples]


def ours(beta: float, case: Case, device: str) -> list[float]:
    """The seconds of each step, and the mean length of the responses."""
    model, clock, reward = student(case.shape, device), Clock(device), Reward()
    policy = TransformersEngine(model, tokenizer(), model_identity="benchmark")
    settings = GrpoSettings(
        optimizer=OptimizerSettings(RATE), steps=case.steps, group=GROUP, sampling=Sampling(max_tokens=case.length),
        loss=PolicyLoss(kl=beta), precision=case.precision, micro_batch_tokens=case.tokens, checkpoint_seconds=None,
    )  # fmt: skip

    def problems(step: int, draw: int) -> Sequence[Problem]:
        wanted = range(step * case.prompts, (step + 1) * case.prompts)
        return [Problem(str(i), prompt(i), "", "none", "benchmark") for i in wanted]

    def judge(pairs: Sequence[tuple[Problem, Completion]]) -> list[float]:
        return reward(completion.token_ids for _, completion in pairs)

    with tempfile.TemporaryDirectory() as directory:
        train_grpo(
            model, policy, settings, sample=problems, reward=judge, checkpoints=Path(directory), on_step=clock,
            over=begins(clock),
        )  # fmt: skip
    return [*clock.steps, statistics.mean(reward.lengths)]


def theirs(beta: float, case: Case, device: str) -> list[float]:
    """The same for TRL."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    model, clock, reward = student(case.shape, device), Clock(device), Reward()
    table = Dataset.from_list([{"prompt": prompt(i)} for i in range(case.steps * case.prompts)])
    with tempfile.TemporaryDirectory() as directory:
        settings = GRPOConfig(
            directory, max_steps=case.steps, per_device_train_batch_size=case.rows, beta=beta, num_generations=GROUP,
            gradient_accumulation_steps=case.prompts * GROUP // case.rows, max_completion_length=case.length,
            learning_rate=RATE, **trl_settings(device, case.precision),
        )  # fmt: skip
        trainer = GRPOTrainer(
            model, args=settings, train_dataset=table, processing_class=tokenizer(), callbacks=[Marks(clock)],
            reward_funcs=lambda completion_ids, **_: reward(completion_ids),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [*clock.steps, statistics.mean(reward.lengths)]


def measure(beta: float, case: Case, place: Place, repeats: int, peer: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Seconds per step, peak memory (MB) and tokens per response of each side, and why a side could not be measured."""
    sides = {"ours": ours, "trl": theirs} if peer else {"ours": ours}
    found: dict[str, list[tuple[list[float], float, float]]] = {}
    lost: dict[str, str] = {}
    for _ in range(repeats):
        for side, run in sides.items():
            try:
                (*steps, length), peak = apart(
                    place, run, (beta, case, place.device), (beta, case.warm(), place.device)
                )
            except NotMeasured as why:
                lost[side] = str(why)
            else:
                found.setdefault(side, []).append((steps, peak, length))
    measured = {
        side: {
            f"{SECOND[place.device]}s_a_step": round(statistics.median(s for steps, _, _ in runs for s in steps), 2),
            "peak_mb": round(statistics.median(peak for _, peak, _ in runs)),
            "tokens_a_response": round(statistics.mean(length for _, _, length in runs), 1),
        }
        for side, runs in found.items()
    }
    return measured, lost


def main() -> None:
    asked = arguments(__doc__, "one step, one repeat: within a minute")
    place, peer = find_place(asked.device, spawn=asked.tiny), has_trl("GRPOTrainer")
    case = TINY if asked.tiny else ON_GPU if place.device == "cuda" else ON_CPU
    case, repeats = (replace(case, steps=1), 1) if asked.quick else (case, 3)
    ratios: dict[str, float] = {}
    detail: dict[str, Any] = {}
    lost: dict[str, str] = {}
    for name, beta in (("no reference pass", 0.0), ("reference pass", 0.04)):
        found, failed = measure(beta, case, place, repeats, peer)
        lost |= {f"{name}: {side}": why for side, why in failed.items()}
        if len(found) == 2:
            spent = f"{SECOND[place.device]}s_a_step"
            ratios[name] = round(found["trl"][spent] / found["ours"][spent], 2)
            ratios[f"{name}, memory"] = round(found["trl"]["peak_mb"] / found["ours"]["peak_mb"], 2)
        detail[name] = found
        print(f"{name}: {found}", flush=True)
    finish("grpo", place, peer, ratios, detail, lost)


if __name__ == "__main__":
    main()
