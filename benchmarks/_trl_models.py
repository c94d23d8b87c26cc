"""Shared by the benchmarks against TRL: models, a tokenizer, TRL's settings, arguments and the last line of output."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

import torch
from _apart import Clock, Place, machine
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, TrainerCallback

from distill.training.student import add_lora

Shape = Mapping[str, Any]
WARM: Shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 128}
SHAPE_3M: Shape = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "vocab_size": 128}
SHAPE_100M: Shape = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 16, "vocab_size": 128}
QWEN3_06B: Shape = {
    "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "vocab_size": 151_936,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
}  # fmt: skip
"""https://huggingface.co/Qwen/Qwen3-0.6B, config.json"""
QWEN3_TINY = QWEN3_06B | {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 4096}
"""A tiny version of it, for machines without a GPU."""
END = 0


def student(shape: Shape, device: str) -> Any:
    """A model with random fp32 weights and a LoRA adapter, on a device."""
    torch.manual_seed(0)
    heads = {
        "num_attention_heads": shape["hidden_size"] // 64,
        "num_key_value_heads": max(1, shape["hidden_size"] // 128),
        "head_dim": 64,
    }
    config = Qwen3Config(**(heads | shape), eos_token_id=END, pad_token_id=END)
    with torch.device(device):
        model = Qwen3ForCausalLM(config)
    return add_lora(model, rank=16, alpha=32, seed=0)


def tokenizer() -> Any:
    """A tokenizer with one token per character; the first id is the end token."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    characters = ["<end>", *(chr(33 + i) for i in range(127))]
    core = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="!"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"<end>|[\s\S]"), "isolated")
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>")
    made.chat_template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}"
    )
    return made


def trl_settings(device: str, precision: str) -> dict[str, Any]:
    """Settings for every Trainer: no saving and no logging. bf16 is autocast over fp32 weights, like ours."""
    return {
        "use_cpu": device == "cpu", "bf16": precision == "bf16", "gradient_checkpointing": False, "report_to": "none",
        "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip


class Marks(TrainerCallback):
    """Starts the clock when everything is ready for the first step, and marks the end of each step."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_train_begin(self, *arguments: Any, **rest: Any) -> None:
        self._clock.restart()

    def on_step_end(self, *arguments: Any, **rest: Any) -> None:
        self._clock()


def begins(clock: Clock) -> Any:
    """Start the clock for our loop, which calls ``over`` before each step and ``on_step`` after it."""

    def over(learner: Any) -> bool:
        if not learner.done:
            clock.restart()
        return False

    return over


def arguments(about: str | None, quick: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU, else cpu")
    parser.add_argument(
        "--tiny", action="store_true",
        help="what is measured on a GPU, with a tiny model and short rows: whether it runs, also on a CPU",
    )  # fmt: skip
    return parser.parse_args()


def has_trl(trainer: str) -> bool:
    """Whether TRL is installed. Imports it here, so that forked processes have it."""
    try:
        getattr(import_module("trl"), trainer)
    except (ImportError, RuntimeError) as error:
        print(f"TRL cannot be imported ({str(error).splitlines()[0]}): ours alone is measured, there is no ratio")
        return False
    return True


def finish(
    name: str, place: Place, peer: bool, ratios: Mapping[str, float], detail: dict[str, Any], lost: Mapping[str, str]
) -> None:
    """Print the last line and exit. The exit code is 1 if anything was ``lost``, which maps names to reasons."""
    about = {"machine": machine(place), "trl": version("trl") if peer else None}
    if lost:
        about["not_measured"] = dict(lost)
    print(json.dumps({"benchmark": name, "ratios": ratios, "detail": about | detail}), flush=True)
    sys.exit(1 if lost else 0)
