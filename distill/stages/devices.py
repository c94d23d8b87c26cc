"""The devices of a training stage: settings that every such stage has, and whether the training fits in memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from distill import modelspec
from distill.machine import cores, size_of_machine
from distill.training import memory
from pipeline.errors import InputError
from pipeline.stage import Context, Operational, Settings

if TYPE_CHECKING:
    from distill.engines.options import VllmOptions
    from distill.modelspec import Model


class DeviceSettings(Settings):
    devices: Annotated[int, Operational(), Field(ge=1)] = 1
    """Number of training processes, one per GPU (or on CPU cores without any). Under `torchrun`, the number it
    started."""
    parallel: Annotated[Literal["ddp", "fsdp"], Operational()] = "ddp"
    """With several devices: `ddp` keeps a copy of the model on each, `fsdp` shards its weights."""

    def ranks(self) -> int:
        """The number of training processes in all."""
        return max(self.devices, int(os.environ.get("WORLD_SIZE", "1")))

    def ranks_here(self) -> int:
        """The number of training processes on this machine."""
        launched = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE", "1")
        return max(self.devices, int(launched))


def threads(asked: int) -> int:
    """The number of threads; 0 means one per core."""
    return asked or cores()


Held = tuple["Model", str]
"""A model that a training holds beside its student, with its dtype."""


def check_memory(
    context: Context, settings: Any, start: Model, *, samples: bool = False, beside: Sequence[Held] = ()
) -> None:
    """Refuse a training that cannot fit, with the models ``beside`` it, before anything is loaded."""
    memory.check_fits(
        modelspec.directory_of(start.source), _training(settings, samples, beside), f"stage {context.name}",
        memory.free_memory(),
    )  # fmt: skip


SPARE = 0.95
"""vLLM's share of the GPU memory that others leave free: torch's allocator wastes some."""


def beside_training(
    engines: Mapping[str, tuple[Model, VllmOptions]], settings: Any, start: Model, network: Any,
    beside: Sequence[Held] = (), samples: bool = False,
) -> dict[str, VllmOptions]:  # fmt: skip
    """``engines`` as they can run beside the training of ``network``.

    Where several devices train, vLLM runs in processes of its own, as many as fit on these devices unless the user has
    set a number.
    On a GPU that the training uses too, vLLM gets what is free of it, less what the training and the models ``beside``
    have yet to take: vLLM's own default, 0.9 of all, would not be free. Several engines get their weights and equal
    parts of the remainder, of which the trainer's own sampler takes a part if it ``samples`` (its weights are counted
    with the training). A share that the user has set stays.
    """
    ranks = settings.ranks_here()
    asked = {name: _replicated(engine, ranks) for name, (_, engine) in engines.items()}
    near = {name: engine for name, engine in asked.items() if engine.first_gpu < ranks}
    unset = [name for name, engine in near.items() if "gpu_memory_utilization" not in engine.model_fields_set]
    if network.device.type != "cuda" or not unset:
        return asked
    from distill.tensors import free_of_gpu

    free, directory = free_of_gpu(network.device), modelspec.directory_of(start.source)
    need = memory.estimate(directory, _training(settings, samples, beside)) if directory else None
    held = sum(weight.nbytes for weight in network.parameters())
    left = free - max(0, need.total - held) if need else (free - size_of(beside)) // 2
    left -= sum(_bytes_of(near[name], network.device) for name in near if name not in unset)
    weights = {name: size_of([(engines[name][0], asked[name].dtype)]) // asked[name].gpus() for name in unset}
    remain, parts = left - sum(weights.values()), len(unset) + samples
    if left <= 0 or (parts > 1 and remain <= 0):
        raise InputError(
            f"engine vllm: of the {memory.size(free)} that are free of the GPU training ({need or 'about half'}) and "
            f"what is beside it leave {memory.size(max(0, left))}; weights of the {' and the '.join(unset)} are "
            f"{memory.size(sum(weights.values()))}: train with less, or set gpu_memory_utilization of each engine"
        )
    return asked | {name: _with(asked[name], weights[name] + remain // parts, network.device) for name in unset}


def _replicated(engine: VllmOptions, ranks: int) -> VllmOptions:
    if ranks == 1 or engine.data_parallel:
        return engine
    return engine.model_copy(update={"data_parallel": max(1, ranks // engine.gpus())})


def beside_models(engine: VllmOptions, taken: int) -> VllmOptions:
    """``engine`` with what is free of the GPU less what models that are loaded after it will take, in bytes. What the
    user has set stays, and so does an engine on other GPUs than these models, which have the first."""
    import torch

    beside = taken and not engine.first_gpu and torch.cuda.is_available()
    if not beside or "gpu_memory_utilization" in engine.model_fields_set:
        return engine
    from distill.tensors import free_of_gpu

    if (left := free_of_gpu() - taken) <= 0:
        raise InputError(f"engine vllm: the scorers beside it need {memory.size(taken)}, and leave nothing of the GPU")
    return _with(engine, left, "cuda")


def _with(engine: VllmOptions, left: int, device: Any) -> VllmOptions:
    import torch

    share = SPARE * left / torch.cuda.mem_get_info(device)[1]
    return engine.model_copy(update={"gpu_memory_utilization": min(engine.gpu_memory_utilization, share)})


def _bytes_of(engine: VllmOptions, device: Any) -> int:
    import torch

    return int(engine.gpu_memory_utilization * torch.cuda.mem_get_info(device)[1])


def size_of(models: Sequence[Held]) -> int:
    """The size of their weights in bytes, where their files show it."""
    found = ((modelspec.directory_of(model.source), dtype in ("float32", "float")) for model, dtype in models)
    return sum(memory.weights_of(directory, 4 if full else 2) for directory, full in found if directory)


def too_large(settings: Any, *, samples: bool = False) -> str | None:
    """Why a training can never fit into this machine, before anything is run; None if that is not known yet. With a GPU
    it is not: asking the GPU for its memory initialises CUDA, and a process with CUDA cannot be forked."""
    if memory.has_gpu():
        return None
    return memory.excess(_there(settings), _training(settings, samples), size_of_machine(), "are in this machine")


def _there(settings: Any) -> Path | None:
    """The student's directory, if there is one already."""
    name = settings.student
    return None if name.startswith(modelspec.STAGE) else modelspec.directory_of(name)


def foreseen(settings: Any, *, samples: bool = False) -> dict[str, int]:
    """The figure that `distill plan` shows, where the model is there to be looked at."""
    directory = _there(settings)
    need = memory.estimate(directory, _training(settings, samples)) if directory else None
    return {"memory": need.total} if need else {}


def _training(settings: Any, samples: bool, beside: Sequence[Held] = ()) -> memory.Training:
    return memory.Training(
        settings.micro_batch_tokens,
        settings.lora.rank if settings.lora else None,
        bits=4 if settings.quantize else 16 if settings.base_precision == "bf16" else 32,
        half=settings.precision == "bf16",
        checkpointing=settings.gradient_checkpointing,
        samples=samples,
        shards=settings.ranks() if settings.parallel == "fsdp" else 1,
        others=size_of(beside),
        cores=0 if memory.has_gpu() else _cores(settings),
        ranks=1 if memory.has_gpu() else settings.ranks_here(),
    )


def _cores(settings: Any) -> int:
    """Those that one rank computes on; of several ranks each is one process."""
    ranks = settings.ranks()
    return threads(settings.threads) if ranks == 1 and sys.platform == "linux" else 1
