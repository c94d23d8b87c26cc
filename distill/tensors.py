"""Move tensors to a device, copy models back to the host, and measure free GPU memory."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def put(values: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """`torch.tensor` of ``values`` on ``device``, without waiting for the GPU.

    If torch creates the tensor on the device itself, it waits until the GPU has finished all earlier work. With
    `non_blocking` the values are sent at once, even from memory that is not pinned (CUDA copies it before it returns).
    """
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def copied(model: Any, shared: Iterable[Tensor] = ()) -> Any:
    """A copy of the model in host memory, except that the ``shared`` weights are those of the model itself."""
    weights: dict[int, Any] = {id(weight): weight for weight in shared}
    for p in model.parameters():
        if id(p) not in weights:
            weights[id(p)] = nn.Parameter(p.detach().to("cpu", copy=True), p.requires_grad)
    return copy.deepcopy(model, {**weights, **{id(b): b.to("cpu", copy=True) for b in model.buffers()}})


def free_of_gpu(device: torch.device | str = "cuda") -> int:
    """Free memory of the GPU, in bytes, after `give_back`."""
    give_back()
    return int(torch.cuda.mem_get_info(device)[0])


def give_back() -> None:
    """Release the GPU memory that earlier stages left in this process, for other processes too: models that only
    reference cycles keep alive, and the cache of torch's allocator. The driver counts neither as free."""
    gc.collect()
    torch.cuda.empty_cache()
