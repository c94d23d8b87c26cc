"""Estimate the memory that a training will need, before the model is loaded; and measure what is free.

The estimate is arithmetic on the shapes in the headers of the weight files and on config.json, without torch, so
`distill plan` can show it too. Weights, gradients and AdamW's two moments are exact. What a micro-batch keeps for its
backward pass was measured on Qwen3 (tensors saved by autograd, in units of fp32): for each token and layer, multiples
of the hidden size, the intermediate size, and the widths of queries and keys (`KEPT`). Other architectures differ. On a
CPU glibc and oneDNN keep memory, too, and processes that share the work each take their own. Left out: the libraries
(they are loaded before free memory is measured), the waste of a GPU's allocator, the sampling engine's cache (it takes
what is free), and models whose files are not here yet, which have no estimate.

The estimate is for the memory that it is compared with: on GPUs that of the fullest one, on a CPU that of the machine,
which all of its ranks share.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill.machine import free_of_machine
from distill.training.allocator import LARGE
from pipeline.errors import InputError

MARGIN = 0.9
"""A run is refused if this share of its estimate is more than what is free. The estimate was 0.80 to 0.96 of the
measured peak (above what the process had with its libraries) in fp32 and 0.78 to 1.06 in bf16: Qwen3's architecture,
3M, 15M and 100M parameters, 2,048 tokens and a vocabulary of 4,096, LoRA and all weights, one process on a CPU, 4 to 12
micro-batches (it was 0.45 to 1.04 before, and 0.44 and 0.52 for two processes at 15M: 0.94 and 1.08 now). For two ranks
at 46M, ddp and fsdp, it was 0.81 to 1.05. The tenth is for other architectures: what would fit must not be refused."""
KEPT = {
    ("all", False): (4, 4, 3),
    ("all", True): (4.5, 2, 1.5),
    ("lora", False): (4, 2, 3),
    ("lora", True): (3, 1, 1.5),
    ("base", True): (2, 1, 1.5),
}
"""By what is trained (all weights, an adapter, an adapter over a base in bf16) and whether in half precision."""
TEXT_SECTIONS = ("text_encoder", "decoder", "generator", "text_config")
CHUNK, LARGE_CHUNK = 1 << 24, 1 << 27
"""Those of `distill.training.forward`, without importing torch; the latter on a GPU."""
HEAD = 3
"""Copies of a chunk of logits that exist at once: the logits, their softmax, their gradient."""
TILE = 1 << 20
"""Logits of a frozen head that exist at once on a CPU (`distill.training.head`); on a GPU it is a chunk."""
HEAP = {False: 0.5, True: 1.0}
"""What glibc keeps of blocks that micro-batches of other sizes freed (`distill.training.allocator`), as a share of the
peak of a pass, by whether in half precision: there tensors of two precisions and kernels are interleaved. It falls to
nothing as blocks grow to `LARGE`, from which size on they are given back (with a share above 1, more tokens would then
seem to need less). Moments are allocated after the first passes, in the memory that these have freed."""
KERNELS = 200 << 20
"""Bytes that oneDNN takes for its kernels in half precision: those that `distill.training.allocator` lets it keep, with
their code and their working memory."""
SMALL = 50_000_000
"""Parameters up to which one process per core is faster than threads on a CPU. Each process has its own micro-batches
and its own gradient."""
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Training:
    """The settings that memory depends on. With ``rank`` None all weights are trained. ``bits`` is the size of a frozen
    weight. Weights, gradients and moments are split over ``shards`` devices. ``others`` are the bytes of models that a
    rank holds beside the student: a teacher, a reward model. Each of ``ranks`` computes on ``cores`` of a CPU, whose
    memory they share; on GPUs, where each rank has its own, these are 1 and 0."""

    micro_batch_tokens: int
    rank: int | None
    bits: int = 32
    checkpointing: bool = False
    half: bool = False
    samples: bool = False
    shards: int = 1
    others: int = 0
    cores: int = 0
    ranks: int = 1


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes by purpose."""

    weights: int
    gradients: int
    moments: int
    activations: int
    logits: int
    allocator: int = 0
    kernels: int = 0
    sampling: int = 0
    others: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, name) for name in self.__slots__)

    def __str__(self) -> str:
        named = {name: getattr(self, name) for name in self.__slots__}
        return ", ".join(f"{name} {size(value)}" for name, value in named.items() if value)


def size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / (1 << 20):.0f} MiB"


@dataclass(frozen=True, slots=True)
class _Build:
    """A model according to its files: the number of all its weights, the shapes of its ``linear`` layers, and sizes as
    in config.json; ``attention`` is the width of queries and keys together."""

    weights: int
    linear: Sequence[Sequence[int]]
    hidden: int
    inner: int
    layers: int
    attention: int
    vocabulary: int

    @property
    def matrices(self) -> int:
        """Weights of linear layers."""
        return sum(a * b for a, b in self.linear)


def _build(directory: Path) -> _Build | None:
    shapes = _shapes(directory)
    try:
        config = _of_text(json.loads((directory / "config.json").read_text()))
        hidden, inner, layers = (config[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
        vocabulary = config.get("vocab_size") or _rows(shapes, "embed_tokens", hidden)
        attention = _attention(config, hidden) or sum(_rows(shapes, kind, hidden) for kind in ("q_proj", "k_proj"))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    if not all(isinstance(size, int) for size in (hidden, inner, layers, vocabulary, attention)):
        return None  # one per layer, as Gemma 3n has them
    linear = [s for s in shapes.values() if len(s) == 2 and vocabulary not in s]
    weights = sum(map(math.prod, shapes.values()))
    return _Build(weights, linear, hidden, inner, layers, attention, vocabulary) if shapes else None


def _of_text(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the language model if it is only a part of the model: the section that transformers' own
    ``get_text_config`` looks for (which is not called, because it would load torch)."""
    found: list[dict[str, Any]] = [config[name] for name in TEXT_SECTIONS if config.get(name) is not None]
    return found[0] if len(found) == 1 else config


def _attention(config: dict[str, Any], hidden: int) -> int:
    """The width of queries and keys together; 0 if the config leaves it to the defaults of its class, like those of
    Gemma 3 on the hub."""
    if not (heads := config.get("num_attention_heads")):
        return 0
    width: int = config.get("head_dim") or hidden // heads
    return width * (heads + (config.get("num_key_value_heads") or heads))


def _rows(shapes: Mapping[str, Sequence[int]], kind: str, columns: int) -> int:
    """The rows of the first matrix of this kind that fits the language model's hidden size: a vision tower has some,
    too."""
    fitting = (shape[0] for name, shape in shapes.items() if f"{kind}.weight" in name and shape[1:] == [columns])
    if (rows := next(fitting, None)) is None:
        raise KeyError(kind)
    return rows


def estimate(directory: Path, training: Training) -> Estimate | None:
    """The memory that training the model in ``directory`` takes on the fullest device, or of the machine if ranks share
    it; None if the files do not tell."""
    build = _build(directory)
    return None if build is None else _needs(build, training)


def _needs(build: _Build, training: Training) -> Estimate:
    rank, ranks, half = training.rank, training.ranks, training.half
    trained = build.weights if rank is None else sum(rank * (a + b) for a, b in build.linear)
    outside = (2 if training.bits == 16 else 4) * (build.weights - build.matrices)  # embeddings and norms, in bytes
    frozen = 0 if rank is None else outside + training.bits * build.matrices // 8
    cast = half and training.bits == 32 and (rank is None or training.shards == 1)
    activations, logits = 4 * training.micro_batch_tokens * _kept(build, training), 4 * _logits(build, training)
    block = 4 * training.micro_batch_tokens * max(build.hidden, build.inner)
    in_heap = max(0.0, 1 - block / LARGE) * HEAP[half] if training.cores else 0.0
    moments = 8 * trained // training.shards
    processes = training.cores if training.cores and build.weights <= SMALL else 1
    samplers = ranks if training.shards == 1 and build.weights > SMALL else 1  # one with workers samples for all ranks
    sampler = 4 * build.weights if rank is None else (2 if training.bits == 16 else 4) * build.matrices
    return Estimate(
        weights=ranks * ((frozen + 4 * trained) // training.shards + 2 * build.matrices * cast),
        gradients=ranks * (4 * trained * processes // training.shards),
        moments=ranks * moments,
        activations=ranks * round(activations) * processes,
        logits=ranks * logits * processes,
        allocator=ranks * max(0, round(in_heap * (activations + logits)) * processes - moments),
        kernels=ranks * KERNELS * processes if training.cores and half else 0,
        sampling=samplers * sampler if training.samples else 0,
        others=ranks * training.others,
    )


def _kept(build: _Build, training: Training) -> float:
    """The numbers that each token keeps for the backward pass."""
    kind = "all" if training.rank is None else "base" if training.bits == 16 else "lora"
    widths = build.hidden, build.inner, build.attention
    per_layer = sum(times * width for times, width in zip(KEPT[kind, training.half], widths, strict=True))
    return build.layers * build.hidden + per_layer if training.checkpointing else build.layers * per_layer


def _logits(build: _Build, training: Training) -> int:
    """The numbers that the output head holds at once."""
    tokens = training.micro_batch_tokens
    every = tokens * build.vocabulary
    if training.rank is None:
        return HEAD * min(CHUNK if training.cores else LARGE_CHUNK, every)
    # a tile in the precision of products and in fp32, and the gradient of hidden states twice for a moment
    return 2 * min(TILE if training.cores else CHUNK, every) + 2 * tokens * build.hidden


def weights_of(directory: Path, size: int) -> int:
    """Bytes of a model's weights at ``size`` bytes each; 0 where the files do not tell."""
    return size * sum(map(math.prod, _shapes(directory).values()))


def _shapes(directory: Path) -> dict[str, list[int]]:
    """The shapes of all tensors in a model's safetensors files: their headers, no more, are read. Empty where there are
    no such files, or one is damaged."""
    try:
        headers = [_header(file) for file in directory.glob("*.safetensors")]
        return {name: e["shape"] for header in headers for name, e in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, struct.error):
        return {}


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header: dict[str, Any] = json.loads(opened.read(length))
    return header


def check_fits(directory: Path | None, training: Training, where: str, free: int) -> None:
    """Raise `InputError`, in one line, if the training cannot fit into ``free`` bytes."""
    if why := excess(directory, training, free, "are free"):
        raise InputError(f"{where}: {why}")


def excess(directory: Path | None, training: Training, there: int, what: str) -> str | None:
    """Why a training cannot fit into the bytes that are ``there`` ("are free"), and what to change; or None."""
    if directory is None or (need := estimate(directory, training)) is None or need.total * MARGIN <= there:
        return None
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
        "use more devices with parallel: fsdp": {"shards": 2 * training.shards} if not training.cores else {},
        f"use fewer devices ({training.ranks})": {"ranks": max(1, training.ranks // 2)},
    }
    needs = {advice: estimate(directory, replace(training, **change)) for advice, change in changes.items()}
    helps = [advice for advice, less in needs.items() if less and less.total < need.total]
    return f"training needs about {size(need.total)} ({need}), but {size(there)} {what}; " + ", or ".join(helps)


def has_gpu() -> bool:
    """Whether NVIDIA's driver is there; an estimate must not load torch."""
    return Path("/dev/nvidiactl").exists()


def free_memory() -> int:
    """Bytes that a process may still take: of the GPU if there is one, else of the machine or its cgroup. The libraries
    of a training are loaded here first, so what they take is not counted as free."""
    from distill.pretrained import quiet_libraries

    quiet_libraries()
    import peft  # noqa: F401
    import torch
    import transformers

    from distill.tensors import free_of_gpu

    _ = transformers.AutoModelForCausalLM  # loaded when it is asked for
    return free_of_gpu() if torch.cuda.is_available() else free_of_machine()
