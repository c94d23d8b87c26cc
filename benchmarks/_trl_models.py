"""What the benchmarks against TRL share: models, a tokenizer, and runs in processes of their own."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from distill.training.lora import add_lora

WARM = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 128}
TINY = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "vocab_size": 128}
SHAPES: dict[str, dict[str, int]] = {
    "3M": TINY,
    "3M, vocabulary 32k": TINY | {"vocab_size": 32768},
    "100M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 16, "vocab_size": 128},
}
END = 0


def student(shape: dict[str, int]) -> Any:
    torch.manual_seed(0)
    heads = {
        "num_attention_heads": shape["hidden_size"] // 64,
        "num_key_value_heads": max(1, shape["hidden_size"] // 128),
    }
    config = Qwen3Config(**shape, **heads, head_dim=64, eos_token_id=END, pad_token_id=END)
    return add_lora(Qwen3ForCausalLM(config), rank=16, alpha=32, seed=0)


def tokenizer() -> Any:
    """One character a token; the first id ends a text."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    characters = ["<end>", *(chr(33 + i) for i in range(127))]
    core = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="!"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"<end>|[\s\S]"), "isolated")
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>")
    made.chat_template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}"
    )
    return made


def apart(
    run: Callable[..., list[float]], *arguments: Any, warm: Sequence[Any] | None = None
) -> tuple[list[float], float]:
    """What ``run`` measured in a forked process, and its peak memory above what was there, in MB.

    With ``warm`` it has run before, with these arguments: imports and first calls are in neither figure.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child() -> None:
        if warm is not None:
            run(*warm)
            gc.collect()
            Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
        before = _memory("VmRSS")
        theirs.send((run(*arguments), _memory("VmHWM") - before))

    process = context.Process(target=child)
    process.start()
    theirs.close()
    try:
        measured: tuple[list[float], float] = ours.recv()
    except EOFError:
        raise SystemExit(f"{run.__name__}{arguments} failed") from None
    process.join()
    return measured


def _memory(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


class Clock:
    """CPU seconds of each step, by the marks between them."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.marks = [time.process_time()]

    def __call__(self, *_: Any) -> None:
        self.marks.append(time.process_time())

    @property
    def steps(self) -> list[float]:
        return [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]
