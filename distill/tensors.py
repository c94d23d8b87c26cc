"""Numbers on their way to a device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def put(values: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """What `torch.tensor` makes of ``values``, on ``device``.

    Given the device itself, torch waits until a GPU has done all that was asked of it before. With `non_blocking` the
    numbers go out at once, also from memory that isn't pinned (CUDA copies them before it returns).
    """
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
