"""What a training will need of memory, told before the model is loaded; and what there is.

Arithmetic on the shapes in the headers of the weight files and on config.json: no torch, so `distill plan` can
tell it too. Weights, gradients and AdamW's two moments are exact. What a micro-batch keeps for its backward pass
was measured on Qwen3 (tensors saved by autograd, in units of fp32): for each token and layer some times the hidden
size, the intermediate size, and the widths of queries and of keys (`KEPT`); models of another build differ. Left out:
the interpreter and its libraries, allocators' waste, the sampling engine's cache (it takes what is free), and models
whose files are not here yet: nothing is told of these.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import InputError

MARGIN = 0.9
"""A run is refused when this share of its estimate is more than what is free. On CPU the estimate for LoRA at 100M
parameters and 4,096 tokens was 1.0 (fp32) and 0.82 (bf16) of the measured peak (benchmarks/sft.py), at 15M and 2,048
tokens 0.5 to 0.7, all weights trained or not: what is left out weighs more there. The tenth is for models of another
build: what would fit must not be refused."""
KEPT = {
    ("all", False): (4, 4, 3),
    ("all", True): (4.5, 2, 1.5),
    ("lora", False): (4, 2, 3),
    ("lora", True): (3, 1, 1.5),
    ("base", True): (2, 1, 1.5),
}
"""By what is trained (all, an adapter, one over a base in bf16) and whether in half precision."""
CHUNK = 1 << 24
"""`distill.training.forward.CHUNK`, without torch."""
HEAD = 3
"""Copies of a chunk of logits at once: they, their softmax, their gradient."""
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Training:
    """The settings that memory depends on. ``rank`` None trains all weights; ``bits`` of a frozen weight;
    over ``shards`` devices weights, gradients and moments are cut up. ``teacher``: bytes of a model that is held
    beside the student."""

    micro_batch_tokens: int
    rank: int | None
    bits: int = 32
    checkpointing: bool = False
    half: bool = False
    samples: bool = False
    shards: int = 1
    teacher: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes, by what they are for."""

    weights: int
    gradients: int
    moments: int
    activations: int
    logits: int
    sampling: int = 0
    teacher: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, name) for name in self.__slots__)

    def __str__(self) -> str:
        named = {name: getattr(self, name) for name in self.__slots__}
        return ", ".join(f"{name} {size(value)}" for name, value in named.items() if value)


def size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / (1 << 20):.0f} MiB"


def estimate(directory: Path, training: Training) -> Estimate | None:
    """What training the model in ``directory`` takes of the fullest device; None where the files do not tell."""
    shapes = _shapes(directory)
    try:
        config = json.loads((directory / "config.json").read_text())
        hidden, inner, layers = (config[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
        heads, vocabulary = config["num_attention_heads"], config["vocab_size"]
    except (OSError, ValueError, KeyError):
        return None
    if not shapes:
        return None
    width = config.get("head_dim") or hidden // heads
    queries, keys = heads * width, (config.get("num_key_value_heads") or heads) * width
    linear = [s for s in shapes if len(s) == 2 and vocabulary not in s]
    matrices, every = sum(a * b for a, b in linear), sum(map(math.prod, shapes))
    trained = every if training.rank is None else sum(training.rank * (a + b) for a, b in linear)
    outside = 2 if training.bits == 16 else 4  # bytes of an embedding's or norm's weight
    frozen = 0 if training.rank is None else outside * (every - matrices) + training.bits * matrices // 8
    kind = "all" if training.rank is None else "base" if training.bits == 16 else "lora"
    per_layer = sum(
        n * size for n, size in zip(KEPT[kind, training.half], (hidden, inner, queries + keys), strict=True)
    )
    cast = training.half and training.bits == 32 and (training.rank is None or training.shards == 1)
    kept = layers * hidden + per_layer if training.checkpointing else layers * per_layer
    tokens = training.micro_batch_tokens
    return Estimate(
        weights=(frozen + 4 * trained) // training.shards + 2 * matrices * cast,
        gradients=4 * trained // training.shards,
        moments=8 * trained // training.shards,
        activations=round(4 * tokens * kept),
        logits=4 * HEAD * min(CHUNK, tokens * vocabulary),
        sampling=(4 * every if training.rank is None else outside * matrices) if training.samples else 0,
        teacher=training.teacher,
    )


def weights_of(directory: Path, size: int) -> int:
    """Bytes of a model's weights at ``size`` bytes each; 0 where the files do not tell."""
    return size * sum(map(math.prod, _shapes(directory)))


def _shapes(directory: Path) -> list[list[int]]:
    """The shapes of all tensors in a model's safetensors files: their headers, no more, are read. Empty where there are
    no such files, or one is damaged."""
    try:
        headers = [_header(file) for file in directory.glob("*.safetensors")]
        return [entry["shape"] for header in headers for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, struct.error):
        return []


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header: dict[str, Any] = json.loads(opened.read(length))
    return header


def check_fits(directory: Path | None, training: Training, where: str, free: int) -> None:
    """Refuse, in one line, what cannot fit into ``free`` bytes."""
    if directory is None or (need := estimate(directory, training)) is None or need.total * MARGIN <= free:
        return
    changes: dict[str, dict[str, Any]] = {
        f"lower micro_batch_tokens ({training.micro_batch_tokens})": {
            "micro_batch_tokens": training.micro_batch_tokens // 2
        },
        "set gradient_checkpointing": {"checkpointing": True},
        "train an adapter (lora)": {"rank": 16} if training.rank is None else {},
        "set quantize: nf4": {"bits": 4} if training.rank is not None else {},
        "set base_precision: bf16": {"bits": 16, "half": True}
        if training.rank is not None and training.bits == 32
        else {},
        "use more devices with parallel: fsdp": {"shards": 2 * training.shards},
    }
    needs = {advice: estimate(directory, replace(training, **change)) for advice, change in changes.items()}
    helps = [advice for advice, less in needs.items() if less and less.total < need.total]
    raise InputError(
        f"{where}: training needs about {size(need.total)} ({need}), but {size(free)} are free; " + ", or ".join(helps)
    )


def free_memory() -> int:
    """Bytes that a process may still take: of the GPU where there is one, else of the machine or its cgroup."""
    import torch

    return int(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else free_of_machine()


def free_of_machine(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """What Linux calls available, less where a cgroup (v1 or v2, or one above) allows less; elsewhere no bound."""
    bounds = []
    try:
        lines = dict(line.split(":") for line in (proc / "meminfo").read_text().splitlines())
        bounds.append(int(lines["MemAvailable"].split()[0]) * 1024)
        for line in (proc / "self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds in ("", "memory"):
                bounds += _left(groups / kinds, path, v1=kinds == "memory")
    except (OSError, ValueError, KeyError):
        pass
    return min(bounds, default=1 << 62)


def _left(root: Path, path: str, v1: bool) -> Iterator[int]:
    """What a cgroup and those above it leave; pages of files that may be dropped count as free."""
    limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if v1 else ("memory.max", "memory.current")
    here = root / path.lstrip("/")
    for group in (here, *here.parents):
        try:
            most = int((group / limit).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            cached = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
            yield most - int((group / used).read_text()) + cached
        except (OSError, ValueError):
            pass
        if group == root:
            return
