"""Numbers on their way to a device, models on their way back, and what room there is."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def put(values: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """What `torch.tensor` makes of ``values``, on ``device``.

    Given the device itself, torch waits until a GPU has done all that was asked of it before. With `non_blocking` the
    numbers go out at once, also from memory that isn't pinned (CUDA copies them before it returns).
    """
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def copied(model: Any, shared: Iterable[Tensor] = ()) -> Any:
    """A copy in the machine's memory, wherever the model lies; its weights that are ``shared`` stay the model's own."""
    weights: dict[int, Any] = {id(weight): weight for weight in shared}
    for p in model.parameters():
        if id(p) not in weights:
            weights[id(p)] = nn.Parameter(p.detach().to("cpu", copy=True), p.requires_grad)
    return copy.deepcopy(model, {**weights, **{id(b): b.to("cpu", copy=True) for b in model.buffers()}})


def free_of_gpu(device: torch.device | str = "cuda") -> int:
    """Bytes that may still be taken. What stages before this one left in this process is given back first: models that
    only cycles of references hold, and what torch's allocator keeps of all that was freed. The driver calls neither
    free."""
    gc.collect()
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0])
