"""SFT: our training loop against TRL's, padded and packed: same model, LoRA, rows, precision, one thread.

Figures are real tokens per CPU-second, and peak memory above what the process had before the model. Ratios are
to the better of TRL's two. Every run is a process of its own, in which a tiny training has been before, so that
imports and first calls are in neither figure; nor is the start of a training. Ours and TRL's alternate. ``--quick``
leaves out what takes long: the model of 100M, and TRL's padded side, which is the slower one of the two, with a large
vocabulary.

    python benchmarks/sft.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from _trl_models import SHAPES, WARM, Clock, apart, student, tokenizer
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from distill.randomness import generator
from distill.training.batching import Example, from_tokens
from distill.training.loop import StepMetrics, TrainSettings, train
from distill.training.optimizer import OptimizerSettings

BATCH = 8
PACK = 1024


def rows(count: int, vocabulary: int) -> list[Example]:
    """Lengths are lognormal, as those of reasoning traces are; the first quarter is the prompt."""
    examples = []
    for i in range(count):
        draw = generator("benchmark", i)
        length = int(min(PACK, max(8, draw.lognormal(4.6, 0.8))))
        ids = [int(x) for x in draw.integers(1, vocabulary, length)]
        examples.append(from_tokens(str(i), ids[: length // 4], ids[length // 4 :]))
    return examples


def ours(shape: dict[str, int], count: int) -> list[float]:
    examples, model = rows(count, shape["vocab_size"]), student(shape)
    settings = TrainSettings(
        OptimizerSettings(1e-3),
        batch_size=BATCH,
        micro_batch_tokens=int(os.environ.get("MB", PACK)),
        checkpoint_seconds=None,
    )
    with tempfile.TemporaryDirectory() as directory:
        clock, tokens = Clock(), list[float]()

        def on_step(metrics: StepMetrics) -> None:
            clock()
            tokens.append(metrics.tokens)

        train(model, examples, settings, checkpoints=Path(directory), on_step=on_step)
    return [sum(clock.steps[1:]), sum(tokens[1:])]  # the first step has the start in it


def theirs(packed: bool, shape: dict[str, int], count: int) -> list[float]:
    table = [
        {"input_ids": list(e.input_ids), "completion_mask": [int(m) for m in e.labels_mask]}
        for e in rows(count, shape["vocab_size"])
    ]
    model = student(shape)
    with tempfile.TemporaryDirectory() as directory:
        batch = 1 if packed else BATCH
        settings = SFTConfig(
            output_dir=directory, num_train_epochs=1, per_device_train_batch_size=batch, learning_rate=1e-3,
            completion_only_loss=True, packing=packed, max_length=PACK, gradient_checkpointing=False,
            use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        clock = Clock()
        trainer = SFTTrainer(
            model, settings, train_dataset=Dataset.from_list(table), processing_class=tokenizer(),
            callbacks=[_Begins(clock)],
        )  # fmt: skip
        trainer.train()
        clock()
    return [sum(clock.steps), float(sum(map(len, rows(count, shape["vocab_size"]))))]


class _Begins(TrainerCallback):
    """Starts the clock when all is ready for the first step."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_begin(self, *arguments: Any, **rest: Any) -> None:
        self.clock.restart()


def measure(shape: dict[str, int], count: int, repeats: int, padded: bool = True) -> dict[str, Any]:
    """Tokens per CPU-second and peak memory (MB) of each."""
    sides: dict[str, Any] = {"ours": (ours,), "padded": (theirs, False), "packed": (theirs, True)}
    if not padded:
        del sides["padded"]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, (run, *how) in sides.items():
            (spent, tokens), peak = apart(run, *how, shape, count, warm=(*how, WARM, 2 * BATCH))
            found[name].append((tokens / spent, peak))
    return {
        name: {
            "tokens_per_cpu_second": round(statistics.median(rate for rate, _ in pairs)),
            "peak_mb": round(statistics.median(peak for _, peak in pairs)),
        }
        for name, pairs in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows, one repeat, no 100M model, within a minute")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    ratios: dict[str, float] = {}
    detail = {}
    for name, shape in SHAPES.items():
        if quick and name == "100M":
            continue
        count = {"3M": 160, "100M": 40}.get(name, 64) // (4 if quick else 1)
        padded = not (quick and shape["vocab_size"] > 1000)
        found = detail[name] = measure(shape, count, 1 if quick else 3, padded)
        print(f"{name}: {found}", flush=True)
        rates = {who: values["tokens_per_cpu_second"] for who, values in found.items()}
        best = max(found.keys() - {"ours"}, key=rates.__getitem__)
        ratios[name] = round(rates["ours"] / rates[best], 2)
        ratios[f"{name}, memory"] = round(found[best]["peak_mb"] / found["ours"]["peak_mb"], 2)
    print(json.dumps({"benchmark": "sft", "ratios": ratios, "detail": detail}))


if __name__ == "__main__":
    main()
