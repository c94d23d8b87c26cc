"""GRPO: our step against TRL's, sampling and training: 16 prompts of 70 tokens, 8 samples of up to 64, 3M parameters.

With a reference pass (beta 0.04) and without; TRL samples with transformers' own generate(). One thread each; CPU
seconds are medians over steps. An end token is sampled by both once in 128, so that lengths are alike; their means are
in the detail. Every run is a process of its own, in which a step of two prompts has been before, so
that imports and first calls are not measured; ours and TRL's alternate.

    python benchmarks/grpo.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from _trl_models import TINY, Clock, apart, student, tokenizer
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from distill.engines.transformers import TransformersEngine
from distill.randomness import generator
from distill.training.optimizer import OptimizerSettings
from distill.types import Problem, Sampling
from rl.grpo import GrpoSettings, train_grpo
from rl.loss import PolicyLoss

PROMPTS, GROUP, LENGTH, RATE = 16, 8, 64, 1e-5


def prompt(index: int) -> str:
    return "".join(chr(33 + int(i)) for i in generator("benchmark", "grpo", index).integers(2, 127, 70))


class Reward:
    """A coin by text. Remembers the lengths of what it saw, in tokens."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, texts: Sequence[str], tokens: Sequence[Sequence[int]]) -> list[float]:
        self.lengths += map(len, tokens)
        return [float(zlib.crc32(text.encode()) % 2) for text in texts]


def ours(beta: float, steps: int, prompts: int = PROMPTS) -> list[float]:
    """CPU-seconds of each step, and the mean length of the responses."""
    model = student(TINY)
    policy = TransformersEngine(model, tokenizer(), model_identity="benchmark")
    settings = GrpoSettings(
        optimizer=OptimizerSettings(RATE), steps=steps, group=GROUP, sampling=Sampling(max_tokens=LENGTH),
        loss=PolicyLoss(kl=beta), checkpoint_seconds=None, micro_batch_tokens=4096,
    )  # fmt: skip

    def problems(step: int, draw: int) -> Sequence[Problem]:
        return [
            Problem(str(i), prompt(i), "", "none", "benchmark") for i in range(step * prompts, (step + 1) * prompts)
        ]

    clock, reward = Clock(), Reward()
    with tempfile.TemporaryDirectory() as directory:
        train_grpo(
            model, policy, settings, sample=problems, checkpoints=Path(directory), on_step=clock,
            reward=lambda pairs: reward([c.text for _, c in pairs], [c.token_ids for _, c in pairs]),
        )  # fmt: skip
    return [*clock.steps, statistics.mean(reward.lengths)]


class _Marks(TrainerCallback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, *arguments: Any, **rest: Any) -> None:
        self.clock()


def theirs(beta: float, steps: int, prompts: int = PROMPTS) -> list[float]:
    """The same."""
    model, clock, reward = student(TINY), Clock(), Reward()
    table = Dataset.from_list([{"prompt": prompt(i)} for i in range(steps * prompts)])
    with tempfile.TemporaryDirectory() as directory:
        settings = GRPOConfig(
            output_dir=directory, max_steps=steps, per_device_train_batch_size=prompts * GROUP, beta=beta,
            num_generations=GROUP, max_completion_length=LENGTH, learning_rate=RATE, gradient_checkpointing=False,
            use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=model, args=settings, train_dataset=table, processing_class=tokenizer(), callbacks=[_Marks(clock)],
            reward_funcs=lambda completions, completion_ids, **_: reward(completions, completion_ids),
        )  # fmt: skip
        clock.restart()
        trainer.train()
    return [*clock.steps, statistics.mean(reward.lengths)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one step, one repeat, within a minute")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    ratios, detail = {}, {}
    for name, beta in (("no reference pass", 0.0), ("reference pass", 0.04)):
        seconds: dict[str, list[float]] = {"ours": [], "trl": []}
        peaks: dict[str, float] = {}
        lengths: dict[str, list[float]] = {"ours": [], "trl": []}
        for _ in range(1 if quick else 3):
            for side, run in (("ours", ours), ("trl", theirs)):
                (*steps, length), peaks[side] = apart(run, beta, 1 if quick else 3, warm=(beta, 1, 2))
                seconds[side] += steps
                lengths[side].append(length)
        spent = {side: round(statistics.median(times), 2) for side, times in seconds.items()}
        detail[name] = {
            "cpu_seconds_a_step": spent,
            "peak_mb": {side: round(mb) for side, mb in peaks.items()},
            "tokens_a_response": {side: round(statistics.mean(means), 1) for side, means in lengths.items()},
        }
        ratios[name] = round(spent["trl"] / spent["ours"], 2)
        print(f"{name}: {detail[name]}", flush=True)
    print(json.dumps({"benchmark": "grpo", "ratios": ratios, "detail": detail}))


if __name__ == "__main__":
    main()
