"""SFT: our training loop against TRL's, packed and padded: same model, LoRA, rows, precision and tokens per pass.

All rows are trained on once, measured from when everything is ready for the first step to the end of the last. The
figures are real tokens per CPU-second of one thread (on a GPU: per second), and peak memory above what the process had
before the model. Every run has its own process, and the sides alternate.

The number of tokens per pass is part of the case, because it decides which side wins:

- 4,096 is the setting of the trial that our goals come from. TRL flattens 4 packs of 1,024 into one row and attends
  over all of it behind a mask; padded, it has 8 rows in their original order.
- 1,024 is TRL's best setting on a CPU: one pack per pass, and a sixteenth of that mask.

Our step takes as many rows as fill that number on average (32 and 8) and splits them into micro-batches of about as
many tokens. An update of TRL's is one pass. Ratios compare ours with the faster of TRL's sides in a case; "best of
each" compares our faster setting with TRL's fastest. The padded side is measured only at 3M; elsewhere it has about
half the speed of the packed one. bf16 is autocast over fp32 weights on both sides, and TRL's gradient checkpointing is
off.

On a GPU: Qwen3-0.6B with random weights, rows of up to 4,096 tokens, 16,384 per pass (TRL: 4 packs, or 4 padded rows),
bf16. TRL uses flash-attn if that is installed.

``--quick`` runs only 4,096 tokens in fp32 at 3M, without the padded side.

    python benchmarks/sft.py [--quick] [--device cpu] [--tiny]
"""

from __future__ import annotations

import math
import statistics
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from _apart import SECOND, Clock, NotMeasured, Place, apart, find_place
from _trl_models import (
    QWEN3_06B,
    QWEN3_TINY,
    SHAPE_3M,
    SHAPE_100M,
    WARM,
    Marks,
    Shape,
    arguments,
    begins,
    finish,
    has_trl,
    student,
    tokenizer,
    trl_settings,
)  # fmt: skip

from distill.randomness import generator
from distill.training.batching import Example, from_tokens
from distill.training.loop import TrainSettings, train
from distill.training.optimizer import OptimizerSettings

RATE = 1e-3


@dataclass(frozen=True)
class Case:
    """A model, a precision, and ``count`` rows of lognormal lengths, of which ``fill`` make a pack on average.

    ``pack`` is the largest length of a row and TRL's ``max_length``. ``tokens`` are the numbers of tokens per pass to
    measure.
    """

    model: str
    shape: Shape
    count: int
    precision: Literal["fp32", "bf16"] = "fp32"
    tokens: tuple[int, ...] = (4096, 1024)
    repeats: int = 3
    padded: bool = False
    pack: int = 1024
    fill: int = 8
    warm: Shape = field(default_factory=lambda: WARM)

    def rows(self) -> list[Example]:
        """Rows with lengths like those of reasoning traces; the first quarter of each is the prompt."""
        examples, middle = [], math.log(self.pack / self.fill) - 0.25
        for i in range(self.count):
            draw = generator("benchmark", i)
            length = int(min(self.pack, max(8, draw.lognormal(middle, 0.8))))
            ids = [int(x) for x in draw.integers(1, self.shape["vocab_size"], length)]
            examples.append(from_tokens(str(i), ids[: length // 4], ids[length // 4 :]))
        return examples


def cases(quick: bool) -> list[Case]:
    large = SHAPE_3M | {"vocab_size": 32_768}
    if quick:
        how: dict[str, Any] = {"tokens": (4096,), "repeats": 1}
        return [Case("3M", SHAPE_3M, 64, **how), Case("3M, vocabulary 32k", large, 18, **how)]
    return [
        Case("3M", SHAPE_3M, 96, padded=True),
        Case("3M, vocabulary 32k", large, 64),
        Case("100M", SHAPE_100M, 40, repeats=1),
        Case("3M", SHAPE_3M, 96, "bf16", padded=True),
        Case("100M", SHAPE_100M, 40, "bf16", repeats=1),
    ]


def on_gpu(quick: bool, tiny: bool) -> list[Case]:
    case = Case(
        "0.6B", QWEN3_06B, count=64 if quick else 256, precision="bf16", tokens=(16_384,), repeats=1 if quick else 3,
        padded=True, pack=4096, fill=4, warm=QWEN3_06B,
    )  # fmt: skip
    small = replace(case, model="tiny", shape=QWEN3_TINY, warm=QWEN3_TINY, count=64, tokens=(1024,), pack=256)
    return [small if tiny else case]


def ours(tokens: int, case: Case, device: str) -> list[float]:
    """The seconds of each step, with ``tokens`` tokens per pass."""
    examples, model, clock = case.rows(), student(case.shape, device), Clock(device)
    settings = TrainSettings(
        OptimizerSettings(RATE), batch_size=case.fill * tokens // case.pack, micro_batch_tokens=tokens,
        precision=case.precision, checkpoint_seconds=None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        train(model, examples, settings, checkpoints=Path(directory), on_step=clock, over=begins(clock))
    return clock.steps


def theirs(packs: int, case: Case, device: str) -> list[float]:
    """The same for TRL, with ``packs`` packs per pass; 0 means padded rows."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from transformers.utils import is_flash_attn_2_available
    from trl import SFTConfig, SFTTrainer

    table = [{"input_ids": list(e.input_ids), "completion_mask": [int(m) for m in e.labels_mask]} for e in case.rows()]
    model, clock = student(case.shape, device), Clock(device)
    model.get_base_model().set_attn_implementation("flash_attention_2" if is_flash_attn_2_available() else "sdpa")
    with tempfile.TemporaryDirectory() as directory:
        settings = SFTConfig(
            directory, num_train_epochs=1, per_device_train_batch_size=packs or case.fill, learning_rate=RATE,
            completion_only_loss=True, packing=packs > 0, packing_strategy="bfd", max_length=case.pack,
            **trl_settings(device, case.precision),
        )  # fmt: skip
        trainer = SFTTrainer(
            model, settings, train_dataset=Dataset.from_list(table), processing_class=tokenizer(),
            callbacks=[Marks(clock)],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.steps


def measure(case: Case, place: Place, peer: bool, lost: dict[str, str]) -> dict[str, dict[str, float]]:
    """Tokens per second and peak memory (MB) of each side, by name. ``lost`` receives the reasons of failed sides."""
    sides: dict[str, tuple[Any, int]] = {}
    for tokens in case.tokens:
        sides[f"ours, {tokens:,}"] = ours, tokens
        sides[f"packed, {tokens:,}"] = theirs, tokens // case.pack
    if case.padded:
        sides["padded"] = theirs, 0
    total = sum(map(len, case.rows()))
    warm = replace(case, shape=case.warm, count=case.fill * max(case.tokens) // case.pack)
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(case.repeats):
        for side, (run, size) in sides.items():
            if run is theirs and not peer:
                continue
            try:
                steps, peak = apart(place, run, (size, case, place.device), (size, warm, place.device))
            except NotMeasured as why:
                lost[f"{case.model}, {case.precision}: {side}"] = str(why)
            else:
                found.setdefault(side, []).append((total / sum(steps), peak))
    return {
        side: {
            f"tokens_per_{SECOND[place.device]}": round(statistics.median(rate for rate, _ in pairs)),
            "peak_mb": round(statistics.median(peak for _, peak in pairs)),
        }
        for side, pairs in found.items()
    }


def compared(case: Case, found: dict[str, dict[str, float]], rate: str) -> dict[str, float]:
    """The ratios of ours to TRL's fastest side: speed and memory for each number of tokens, and speed over all."""
    ratios = {}
    groups = {f"{tokens:,} tokens": (tokens,) for tokens in case.tokens}
    if len(groups) > 1:
        groups["best of each"] = case.tokens
    for name, all_tokens in groups.items():
        mine = [found[side] for tokens in all_tokens if (side := f"ours, {tokens:,}") in found]
        peers = [found[side] for side in ("padded", *(f"packed, {t:,}" for t in all_tokens)) if side in found]
        if mine and peers:
            own, best = (max(sides, key=lambda side: side[rate]) for sides in (mine, peers))
            title = f"{case.model}, {name}, {case.precision}"
            ratios[title] = round(own[rate] / best[rate], 2)
            if len(all_tokens) == 1:
                ratios[f"{title}, memory"] = round(best["peak_mb"] / own["peak_mb"], 2)
    return ratios


def main() -> None:
    asked = arguments(__doc__, "fewer cases and rows, one repeat: within a minute")
    place, peer = find_place(asked.device, spawn=asked.tiny), has_trl("SFTTrainer")
    chosen = on_gpu(asked.quick, asked.tiny) if asked.tiny or place.device == "cuda" else cases(asked.quick)
    ratios: dict[str, float] = {}
    detail: dict[str, Any] = {}
    lost: dict[str, str] = {}
    for case in chosen:
        name = f"{case.model}, {case.precision}"
        found = detail[name] = measure(case, place, peer, lost)
        print(f"{name}: {found}", flush=True)
        ratios |= compared(case, found, f"tokens_per_{SECOND[place.device]}")
    finish("sft", place, peer, ratios, detail, lost)


if __name__ == "__main__":
    main()
