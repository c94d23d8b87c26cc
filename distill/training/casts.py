"""Cast weights and inputs to the precision that products are computed in, under autocast and over 4-bit weights."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distill.training.adapted import is_packed

Dense = Callable[[Tensor], Tensor]


class Casts:
    """Casts fixed weights, and the input that several layers share, to the precision of the products only once."""

    def __init__(self, keeps: bool) -> None:
        self._keeps = keeps
        self._weights: dict[int, Tensor] = {}
        self._input: tuple[Any, Tensor] | None = None

    def __reduce__(self) -> Any:
        return Casts, (self._keeps,)  # another process makes its own

    def weight(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Dense | None]:
        """A weight to keep for the backward pass, and a function that converts it to ``dtype`` (None if it has it)."""
        if is_packed(weight):
            return weight, partial(_unpacked, weight.quant_state, dtype)  # type: ignore[attr-defined]
        if weight.dtype == dtype:
            return weight, None
        if not self._keeps:
            return weight, partial(_cast, dtype)
        if id(weight) not in self._weights:
            self._weights[id(weight)] = weight.detach().to(dtype)
        return self._weights[id(weight)], None

    def input(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if x.dtype == dtype:
            return x
        if self._input is None or not self._input[0](x):
            self._input = partial(_is_same, weakref.ref(x), x._version, torch.is_grad_enabled()), x.to(dtype)
        return self._input[1]


def _unpacked(state: Any, dtype: torch.dtype, packed: Tensor) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(packed, state).to(dtype)


def _cast(dtype: torch.dtype, weight: Tensor) -> Tensor:
    return weight.detach().to(dtype)


def _is_same(last: Callable[[], Tensor | None], version: int, learns: bool, x: Tensor) -> bool:
    return last() is x and x._version == version and torch.is_grad_enabled() == learns
