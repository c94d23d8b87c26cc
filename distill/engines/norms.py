"""RMS norms as one torch call instead of six, wherever that gives the same bits as the model's own.

In a step over few rows, the overhead of calls weighs as much as computing, and a model has four norms per layer. A
norm is replaced if, with random weights, it equals `torch.nn.functional.rms_norm` to the last bit; all others (Gemma's
adds one to its weight) stay. On a GPU, whose fused kernel sums in a different order, this is tested on the CPU in
fp32. Used by `distill.engines.weights` and, for training, by `distill.training.lean`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

PROBES = 64


def shorten_norms(model: nn.Module) -> int:
    """Replace the norms of ``model``, a private copy, where possible; returns how many were replaced."""
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    found = plain_norms(model, None if on_cpu else torch.float32)
    for module, epsilon in found.items():
        module.forward = _plain(module, epsilon)
    return len(found)


def plain_norms(model: nn.Module, dtype: torch.dtype | None = None) -> dict[Any, float]:
    """The norms of ``model`` that are plain RMS norms, each with its epsilon. With ``dtype``, they are tested in that
    type and on a CPU, where equal means equal bits."""
    named = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    candidates = [(module, epsilon) for module in named if (epsilon := _epsilon(module)) is not None]
    return {module: epsilon for module, epsilon in candidates if _is_plain(module, epsilon, dtype)}


def _epsilon(module: Any) -> float | None:
    weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return epsilon if isinstance(weight, nn.Parameter) and weight.dim() == 1 and isinstance(epsilon, float) else None


@torch.inference_mode()
def _is_plain(module: nn.Module, epsilon: float, dtype: torch.dtype | None) -> bool:
    probe: Any = copy.deepcopy(module)
    probe = probe.to("cpu", dtype) if dtype else probe
    generator = torch.Generator().manual_seed(0)
    weight, inputs = (torch.randn(shape, generator=generator).to(probe.weight) for shape in _shapes(probe))
    probe.weight = nn.Parameter(weight, requires_grad=False)
    try:
        return torch.equal(probe(inputs), _plain(probe, epsilon)(inputs))
    except (TypeError, RuntimeError):  # it takes more than hidden states
        return False


def _shapes(module: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    size = len(module.weight)
    return (size,), (PROBES, 1, size)


def _plain(module: Any, epsilon: float) -> Any:
    shape = (len(module.weight),)
    return lambda hidden_states: nn.functional.rms_norm(hidden_states, shape, module.weight, epsilon)
