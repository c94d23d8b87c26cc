"""SFT: our training loop against a plain padded one, same model, LoRA, rows and batches, one thread.

The peer is what most scripts do: peft's forward, rows padded to the longest of the batch, logits of every
position. Ours and the peer alternate in one process; figures are medians of CPU seconds. The last line is
one JSON object in which a ratio above 1 means that ours is faster.

    python benchmarks/sft.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from transformers import Qwen3Config, Qwen3ForCausalLM

from distill.randomness import generator
from distill.training.batching import Example, Order, from_tokens
from distill.training.loop import TrainSettings, train
from distill.training.lora import add_lora
from distill.training.optimizer import OptimizerSettings

BATCH = 8
SHAPES: dict[str, dict[str, int]] = {
    "embedded": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "vocab_size": 512},
    "3M": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "vocab_size": 128},
    "3M, vocabulary 32k": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "vocab_size": 32768},
}


def student(shape: dict[str, int], rank: int) -> Any:
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": shape["hidden_size"] // 4}
    return add_lora(Qwen3ForCausalLM(Qwen3Config(**shape, **heads)), rank=rank, alpha=2 * rank, seed=0)


def rows(count: int, vocabulary: int) -> list[Example]:
    """Lengths are lognormal, as those of reasoning traces are; the first quarter is the prompt."""
    examples = []
    for i in range(count):
        draw = generator("benchmark", i)
        length = int(min(1024, max(8, draw.lognormal(4.6, 0.8))))
        ids = [int(x) for x in draw.integers(0, vocabulary, length)]
        examples.append(from_tokens(str(i), ids[: length // 4], ids[length // 4 :]))
    return examples


def ours(model: Any, examples: list[Example]) -> None:
    settings = TrainSettings(OptimizerSettings(1e-3), batch_size=BATCH, checkpoint_seconds=None)
    with tempfile.TemporaryDirectory() as directory:
        train(model, examples, settings, checkpoints=Path(directory))


def padded(model: Any, examples: list[Example]) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    order = Order(tuple(map(len, examples)), BATCH, 0)
    for step in range(order.steps_per_epoch):
        batch = [examples[i] for i in sorted(order(step))]
        width = max(map(len, batch))
        ids = torch.tensor([[*e.input_ids, *[0] * (width - len(e))] for e in batch])
        mask = torch.tensor([[1] * len(e) + [0] * (width - len(e)) for e in batch])
        learned = torch.tensor([[*e.labels_mask, *[False] * (width - len(e))] for e in batch])
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        labels = torch.where(learned, ids, -100)[:, 1:]
        F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def measure(shape: dict[str, int], rank: int, count: int, repeats: int) -> dict[str, float]:
    """Tokens per CPU second of each."""
    examples = rows(count, shape["vocab_size"])
    seconds: dict[str, list[float]] = {"ours": [], "padded": []}
    for _ in range(repeats):
        for name, run in (("ours", ours), ("padded", padded)):
            model = student(shape, rank)
            started = time.process_time()
            run(model, examples)
            seconds[name].append(time.process_time() - started)
    tokens = sum(map(len, examples))
    return {name: round(tokens / statistics.median(spent)) for name, spent in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows, one repeat, within a minute")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    ratios, detail = {}, {}
    for name, shape in SHAPES.items():
        count = (24 if shape["vocab_size"] > 1000 else 64) * (1 if quick else 2)
        found = measure(shape, 32 if name == "embedded" else 16, count, 1 if quick else 3)
        detail[name] = {f"{who}_tokens_per_cpu_second": value for who, value in found.items()}
        ratios[name] = round(found["ours"] / found["padded"], 2)
        print(f"{name}: ours {found['ours']}, padded {found['padded']} tokens per CPU second", flush=True)
    print(json.dumps({"benchmark": "sft", "ratios": ratios, "detail": detail}))


if __name__ == "__main__":
    main()
